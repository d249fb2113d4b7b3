"""Blocks are the entries of all leaves in flat order, however the leaves lie in memory."""

import math

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from gprune.inputs import LeafError
from gprune.select import blocks
from gprune.select.blocks import Block, RankedLeaves, ShardSlice, flat_blocks
from gprune.select.counter_rng import draw_integers
from gprune.select.keys import FLOAT32, FLOAT64, FORMATS, INT64, to_bits
from tests.support import fuzz, ranked
from tests.support.limits import Limits, patched

sizes = st.integers(1, 100) | st.sampled_from([1024, 2048])


def entries(leaves: RankedLeaves, found: list[Block]) -> None:
    """Check what every block says of its entries."""
    for block in found:
        whole = torch.cat([to_bits(leaves.scores[i].reshape(-1), block.form) for i in block.leaves])
        part = slice(block.offset, block.offset + sum(block.sizes))
        assert block.bits.equal(whole[part])
        assert block.form == leaves.form(block.leaves[0])
        assert block.stop - block.start == block.bits.numel() == sum(block.sizes)
        assert block.start == leaves.starts[block.leaves[0]] + block.offset
        if len(block.leaves) > 1:
            assert block.offset == 0
            assert block.sizes == [leaves.scores[i].numel() for i in block.leaves]
        if leaves.priors:
            prior = torch.cat([leaves.priors[i].reshape(-1) for i in block.leaves])
            assert block.prior is not None
            assert block.prior.equal(prior[part])
        else:
            assert block.prior is None


@given(ranked.trees, sizes)
def test_blocks_are_all_entries_in_flat_order(tree: fuzz.Tree, size: int) -> None:
    leaves = ranked.rank(tree).leaves
    with patched(Limits(block=size)):
        for scope in ranked.scopes(len(leaves.scores)):
            found = list(leaves.blocks(scope))
            ends = [leaves.starts[scope.start], *(block.stop for block in found)]
            assert [block.start for block in found] == ends[:-1]
            assert ends[-1] == leaves.starts[scope.stop]
            assert all(0 < block.stop - block.start <= size for block in found)
            assert [i for block in found for i in block.leaves if block.offset == 0] == [
                i for i in scope if leaves.scores[i].numel()
            ]
            entries(leaves, found)


@given(ranked.trees, sizes, st.data())
def test_blocks_outside_a_range_are_left_out(
    tree: fuzz.Tree, size: int, data: st.DataObject
) -> None:
    leaves = ranked.rank(tree).leaves
    end = leaves.starts[-1]
    first = data.draw(st.integers(0, end + 2))
    last = data.draw(st.integers(-1, end + 2))
    with patched(Limits(block=size)):
        for scope in ranked.scopes(len(leaves.scores)):
            every = list(leaves.blocks(scope))
            some = [(b.start, b.stop) for b in leaves.blocks(scope, first, last)]
            assert some == [(b.start, b.stop) for b in every if b.stop > first and b.start <= last]
            some = [(b.start, b.stop) for b in leaves.blocks(scope, first)]
            assert some == [(b.start, b.stop) for b in every if b.stop > first]


def test_small_neighbours_of_a_dtype_are_joined() -> None:
    scores = [torch.ones(3), torch.ones(0), torch.ones(2, 2), torch.ones(5).half(), torch.ones(5)]
    leaves = RankedLeaves([*scores, torch.ones(40), torch.ones(1)], [])
    with patched(Limits(block=320)):
        assert leaves.groups(range(7)) == [[0, 2], [3], [4, 5, 6]]
        assert leaves.groups(range(2, 3)) == [[2]]
        assert leaves.groups(range(1, 2)) == []
        assert leaves.joined_block([4, 5, 6]).sizes == [5, 40, 1]
        again = leaves.joined_block([0, 2]).bits
        assert again.tolist() == torch.ones(7).view(torch.int32).tolist()
        # leaf 0 ends before position 4, but the block that it is joined into does not
        assert [block.leaves for block in leaves.blocks(range(7), 4, 6)] == [[0, 2]]


@pytest.mark.parametrize("size", [64, 80, 320, 1000])
def test_joined_blocks_are_never_too_long(size: int) -> None:
    leaves = RankedLeaves([torch.arange(float(i % 9)) for i in range(60)], [])
    with patched(Limits(block=size)):
        assert max(block.bits.numel() for block in leaves.blocks(range(60))) <= size
        entries(leaves, list(leaves.blocks(range(60))))


def test_random_draws_of_small_neighbours_are_joined() -> None:
    leaves = RankedLeaves([torch.ones(3), torch.ones(2)], [], seed=1)
    assert leaves.groups(range(2)) == [[0, 1]]
    assert leaves.common == INT64
    [block] = leaves.blocks(range(2))
    apart = [draw_integers(1, leaf, torch.arange(size)) for leaf, size in ((0, 3), (1, 2))]
    assert block.bits.equal(torch.cat(apart))


@given(st.integers(1, 100), st.integers(-(2**63), 2**63 - 1), ranked.trees)
def test_random_draws_do_not_depend_on_the_blocks(size: int, seed: int, tree: fuzz.Tree) -> None:
    own = ranked.rank(tree, seed)
    with patched(Limits(block=size)):
        found = [block.bits for block in own.leaves.blocks(range(len(own.leaves.scores)))]
    assert torch.cat([*found, torch.empty(0, dtype=torch.int64)]).tolist() == own.keys.tolist()


def test_integers_among_floats_are_streamed_as_float64() -> None:
    leaves = RankedLeaves([torch.tensor([2**24 + 1]), torch.ones(1), torch.ones(1).half()], [])
    assert leaves.common == FLOAT64
    assert [leaves.form(i) for i in range(3)] == [FLOAT64, FLOAT32, FORMATS[torch.float16]]
    [first, *_] = leaves.blocks(range(3))
    assert first.bits.view(torch.float64).tolist() == [2**24 + 1]
    integers = [torch.ones(1, dtype=torch.int8), torch.ones(1, dtype=torch.int64)]
    assert RankedLeaves(integers, []).common == FLOAT64
    assert RankedLeaves([torch.ones(1)], [], exact=True).common == FLOAT64
    assert RankedLeaves([torch.ones(1)] * 2, []).common == FLOAT32


@given(ranked.trees)
def test_candidates_are_counted(tree: fuzz.Tree) -> None:
    own = ranked.rank(tree)
    if own.leaves.priors:
        counts = own.leaves.num_candidates()
        assert counts.dtype == torch.int64
        _, *each = ranked.scopes(len(own.leaves.scores))
        assert counts.tolist() == [len(own.candidates(scope)) for scope in each]


@pytest.mark.parametrize("sign", [1, -1])
def test_int64_scores_that_float64_cannot_hold(sign: int) -> None:
    good, bad = torch.tensor([sign * 2**53]), torch.tensor([0, sign * (2**53 + 1)])
    RankedLeaves([good, torch.empty(0, dtype=torch.int64)], []).check_int64_range()
    RankedLeaves([bad], [], seed=3).check_int64_range()
    with pytest.raises(LeafError, match=rf"at most 2\*\*53 .*got {sign * (2**53 + 1)}; cast"):
        RankedLeaves([torch.ones(2), bad], []).check_int64_range()


# --- positions in shards ----------------------------------------------------------------------


@given(ranked.trees, st.data())
def test_positions_and_tree_indices_of_shards(tree: fuzz.Tree, data: st.DataObject) -> None:
    own = ranked.rank(tree)
    split = data.draw(ranked.shards(own.leaves.scores))
    every = torch.arange(own.starts[-1]).split([x.numel() for x in own.leaves.scores])
    shapes = [x.shape for x in own.leaves.scores]
    whole = RankedLeaves([x.view(y) for x, y in zip(every, shapes, strict=True)], [])
    counted = []
    for process in range(split.num_processes):
        part = ranked.local(own.leaves, split, process)
        indices = ranked.local(whole, split, process)
        flat = [x.reshape(-1) for x, mine in zip(indices.scores, part.counted, strict=True) if mine]
        expected = torch.cat([*flat, torch.empty(0, dtype=torch.int64)])
        assert part.starts[-1] == len(expected)
        assert part.tree_starts == own.starts
        positions = torch.randperm(len(expected))
        assert part.tree_index(positions).tolist() == expected[positions].tolist()
        for index in data.draw(st.lists(st.integers(-1, own.starts[-1]), max_size=20)):
            assert part.last_position(index) == int((expected <= index).sum()) - 1
        counted.append(expected)
        rest = part.counted_elsewhere()
        if all(part.counted):
            assert rest is None
        else:
            assert rest is not None
            flags = zip(rest.counted, part.counted, strict=True)
            assert all(mine != theirs for mine, theirs in flags)
            assert rest.starts[-1] == sum(x.numel() for x in part.scores) - part.starts[-1]
    assert sorted(torch.cat(counted).tolist()) == list(range(own.starts[-1]))


def test_whole_leaves_have_their_positions() -> None:
    leaves = RankedLeaves([torch.ones(3), torch.ones(4)], [])
    positions = torch.tensor([6, 0])
    assert leaves.tree_index(positions).tolist() == [6, 0]
    assert [leaves.last_position(i) for i in (-1, 5)] == [-1, 5]
    assert leaves.counted_elsewhere() is None


def test_the_device_of_leaves_on_several_is_the_cpu() -> None:
    here, there = torch.ones(1), torch.ones(1, device="meta")
    assert RankedLeaves([there], []).device.type == "meta"
    assert RankedLeaves([here, there], []).device.type == "cpu"
    assert RankedLeaves([here], []).device.type == "cpu"


# --- slices -------------------------------------------------------------------------------------


@st.composite
def slices(draw: st.DrawFn) -> ShardSlice:
    shape = tuple(draw(st.lists(st.integers(0, 5), max_size=4)))
    start = tuple(draw(st.integers(0, n)) for n in shape)
    size = tuple(draw(st.integers(0, n - at)) for n, at in zip(shape, start, strict=True))
    if draw(st.booleans()):  # whole in some dims, which are then one
        full = [draw(st.booleans()) for _ in shape]
        start = tuple(0 if own else at for own, at in zip(full, start, strict=True))
        size = tuple(n if own else m for own, n, m in zip(full, shape, size, strict=True))
    return ShardSlice(shape, start, size)


def indices(piece: ShardSlice) -> np.ndarray:
    """The flat indices in the leaf of the entries of the slice, from numpy."""
    every = np.arange(math.prod(piece.shape)).reshape(piece.shape)
    at = tuple(slice(a, a + n) for a, n in zip(piece.start, piece.size, strict=True))
    return every[at].reshape(-1)


@given(slices())
@example(ShardSlice((3, 4, 5), (1, 1, 2), (1, 2, 2)))  # split in every dim
def test_leaf_index(piece: ShardSlice) -> None:
    expected = indices(piece)
    positions = torch.arange(len(expected))
    found = piece.leaf_index(positions)
    assert found.dtype == torch.int64
    assert found.tolist() == expected.tolist()
    assert positions.equal(torch.arange(len(expected)))
    assert piece.leaf_index(positions.flip(0)).tolist() == expected[::-1].tolist()
    assert piece.num_entries == math.prod(piece.shape)


@given(slices())
@example(ShardSlice((3, 4, 5), (1, 1, 2), (1, 2, 2)))  # split in every dim
def test_num_before(piece: ShardSlice) -> None:
    expected = indices(piece)
    for index in range(-2, math.prod(piece.shape) + 3):
        assert piece.num_before(index) == int((expected < index).sum()), index


def test_a_leaf_without_dims() -> None:
    piece = ShardSlice((), (), ())
    assert piece.leaf_index(torch.tensor([0])).tolist() == [0]
    assert [piece.num_before(i) for i in (-1, 0, 1, 2)] == [0, 0, 1, 1]


def test_more_entries_than_32_bits_count() -> None:
    piece = ShardSlice((2**20, 2**13), (2**19, 5), (2**19, 2**10))
    assert piece.leaf_index(torch.tensor([2**29 - 1])).item() == (2**20 - 1) * 2**13 + 5 + 2**10 - 1
    assert piece.num_before(2**33) == 2**29


# --- flat blocks ------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 7), max_size=4), st.integers(1, 60), st.randoms())
def test_flat_blocks_are_the_entries_in_row_major_order(shape, size, random) -> None:
    order = list(range(len(shape)))
    random.shuffle(order)
    count = int(np.prod(shape))
    tensor = torch.arange(count).reshape([shape[d] for d in order])
    tensor = tensor.permute([order.index(d) for d in range(len(shape))])
    mask = torch.arange(count).reshape(shape) % 3 > 0
    with patched(Limits(block=size)):
        found = list(flat_blocks(tensor, mask))
    assert all(len(a) == len(b) <= size for a, b in found)
    if count:
        assert torch.cat([a for a, _ in found]).equal(tensor.reshape(-1))
        assert torch.cat([b for _, b in found]).equal(mask.reshape(-1))
    else:
        assert not found


def test_blocks_of_a_contiguous_tensor_are_views() -> None:
    tensor = torch.ones(5, 4)
    with patched(Limits(block=7)):
        found = [block for (block,) in flat_blocks(tensor)]
    assert [len(block) for block in found] == [7, 7, 6]
    assert found[1].data_ptr() == tensor.data_ptr() + 7 * 4
    assert blocks.BLOCK == 2**20
