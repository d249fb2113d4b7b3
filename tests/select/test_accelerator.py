"""The steps of a search on an accelerator, on leaves of the CPU and of the simulated device."""

import math
from itertools import pairwise
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from gprune.select import accelerator, search
from gprune.select.accelerator import AcceleratorPass, AcceleratorSample, _order, _pieces, _prime
from gprune.select.blocks import Query, RankedLeaves
from gprune.select.keys import FLOAT32
from gprune.select.partition import empty_masks
from gprune.select.refine import Interval, OneProcess
from tests.support import fuzz, ranked
from tests.support.accelerator import DEVICE, measured
from tests.support.limits import Limits, limits, patched
from tests.support.queries import asked, brackets, flat, mask_at, settled, threshold

sizes = st.integers(1, 100) | st.sampled_from([1024, 2048])


def slots_for(leaves: RankedLeaves, query: Query, most: int) -> dict[int, int]:
    """As many slots for every block of a query."""
    return {start: most for start, *_ in leaves.spans(query.leaves)}


# --- the sample ---------------------------------------------------------------------------------


@given(ranked.trees, limits(), st.none() | st.integers(0, 9))
def test_what_is_drawn_are_candidates(tree: fuzz.Tree, small: Limits, seed: int | None) -> None:
    """Every n-th of them, so that all can be drawn."""
    own = ranked.rank(tree, seed)
    queries = [Query(x, 1, 1) for x in ranked.scopes(len(own.leaves.scores))]
    with patched(small):
        drawn = AcceleratorSample(own.leaves).draw(queries)
        for query, keys in zip(queries, drawn, strict=True):
            step = next((p.entries.step for p in _pieces(own.leaves, query.leaves)), 1)
            places = own.candidates(query.leaves)
            assert set(keys.tolist()) <= set(own.keys[places].tolist())
            if step == 1:
                assert sorted(keys.tolist()) == sorted(own.keys[places].tolist())


@given(ranked.trees, limits())
def test_the_pieces_of_a_sample_are_in_their_blocks(tree: fuzz.Tree, small: Limits) -> None:
    own = ranked.rank(tree).leaves
    with patched(small):
        blocks = {block.start: block for block in own.blocks(range(len(own.scores)))}
        pieces = _pieces(own, range(len(own.scores)))
        assert {piece.start for piece in pieces} == set(blocks)
        for start, leaf, entries in pieces:
            block = blocks[start]
            assert leaf in block.leaves
            size = block.sizes[block.leaves.index(leaf)]
            assert all(block.offset <= i < block.offset + size for i in entries)
        for leaf, scores in enumerate(own.scores):
            parts = sorted((p.entries for p in pieces if p.leaf == leaf), key=lambda x: x.start)
            drawn = [i for part in parts for i in part]
            gaps = {b - a for a, b in pairwise(drawn)}
            assert gaps <= {part.step for part in parts}  # nothing is left out between two blocks
            assert not scores.numel() or drawn or scores.numel() < parts[0].step


def test_pruned_entries_are_not_sampled() -> None:
    leaves = RankedLeaves([torch.arange(6.0)], [torch.arange(6) % 2 == 0])
    with patched(Limits(power=1.0)):
        [keys] = AcceleratorSample(leaves).draw([Query(range(1), 1, 3)])
    assert keys.view(torch.float32).tolist() == [0, 2, 4]


def test_the_leaves_of_a_block_share_its_slots() -> None:
    leaves = RankedLeaves([torch.ones(3), torch.ones(4), torch.zeros(2)], [])
    one = int(torch.ones(1).view(torch.int32))
    with patched(Limits(power=1.0, margin=0)):
        sample = AcceleratorSample(leaves)
        sample.draw([Query(range(3), 1, 9)])
        assert sample.num_slots(0, one, one + 1) == {0: 7}


def test_a_sample_has_entries_of_every_row_and_column() -> None:
    scores = torch.arange(96.0).repeat(1000, 1)  # each column is a constant
    leaves = RankedLeaves([scores], [])
    [keys] = AcceleratorSample(leaves).draw([Query(range(1), 1, scores.numel())])
    counts = np.unique(keys.view(torch.float32).numpy(), return_counts=True)[1]
    assert len(counts) == 96
    assert counts.max() - counts.min() <= 1


@pytest.mark.parametrize(
    ("least", "shape", "expected"),
    [(0, set(), 1), (1, {7}, 1), (2, set(), 2), (2, {4, 9}, 5), (8, {1, 22}, 13), (9, {0}, 11)],
)
def test_prime(least: int, shape: set[int], expected: int) -> None:
    assert _prime(least, shape) == expected


def test_small_leaves_are_sampled_in_turn() -> None:
    """Each of 1,000 leaves has four entries, and a hundredth of all is drawn."""
    leaves = RankedLeaves([torch.full((2, 2), float(i)) for i in range(1000)], [])
    [keys] = AcceleratorSample(leaves).draw([Query(range(1000), 1, 4000)])
    drawn = keys.view(torch.float32)
    assert len(drawn) == pytest.approx(4000 ** (2 / 3), rel=0.1)
    assert len(drawn.unique()) == len(drawn)


@pytest.mark.parametrize("seed", [None, 5])
def test_a_block_has_slots_for_more_than_the_sample_predicts(seed: int | None) -> None:
    generator = torch.Generator().manual_seed(0)
    scores = [torch.randn(50_000, generator=generator), torch.rand(30_000, generator=generator)]
    leaves = RankedLeaves(scores, [], seed=seed)
    own = ranked.of(leaves)
    with patched(Limits(block=2**14)):
        sample = AcceleratorSample(leaves)
        sample.draw([Query(range(2), 1, 80_000)])
        low, high = np.quantile(own.keys, [0.4, 0.45], method="nearest").tolist()
        slots = sample.num_slots(0, low, high)
        blocks = list(leaves.blocks(range(2)))
    assert set(slots) == {block.start for block in blocks}
    for block in blocks:
        keys = own.keys[block.start : block.stop]
        inside = int(((keys >= low) & (keys <= high)).sum())
        assert inside <= slots[block.start] <= 3 * inside + 2000


def test_no_margin_is_what_the_sample_predicts() -> None:
    leaves = RankedLeaves([torch.arange(1000.0)], [])
    with mock.patch.object(accelerator, "MARGIN", 0), patched(Limits(power=1.0, margin=0)):
        sample = AcceleratorSample(leaves)
        sample.draw([Query(range(1), 1, 1000)])
        low, high = torch.tensor([10.0, 19.0]).view(torch.int32).tolist()
        assert sample.num_slots(0, low, high) == {0: 10}


def test_a_process_without_entries_draws_nothing() -> None:
    leaves = RankedLeaves([torch.empty(0), torch.empty(0, 3)], [])
    sample = AcceleratorSample(leaves)
    [keys] = sample.draw([Query(range(2), 1, 9)])
    assert keys.numel() == 0
    assert sample.num_slots(0, 0, 9) == {}


# --- the pass -----------------------------------------------------------------------------------


@given(ranked.trees, sizes, st.none() | st.integers(0, 60), st.booleans(), st.data())
def test_a_pass_divides_every_query_by_its_bracket(
    tree: fuzz.Tree, size: int, most: int | None, writes: bool, data: st.DataObject
) -> None:
    """With slots for all candidates, or with so many in each block that they may be too few."""
    own = ranked.rank(tree)
    queries = data.draw(asked(own, distinct=writes))
    ends = [data.draw(brackets(own)) for _ in queries]
    masks = empty_masks(own.leaves.scores) if writes else None
    with patched(Limits(block=size)):
        slots = [slots_for(own.leaves, query, size if most is None else most) for query in queries]
        made = AcceleratorPass(own.leaves, queries, ends, masks, slots)
        counts = made.run()
    assert (counts.dtype, counts.numel()) == (torch.int64, made.num_counts)
    rows = zip(queries, ends, *counts.view(3, -1).tolist(), strict=True)
    settled_queries = []
    for number, (query, (low, high), not_below, inside, is_full) in enumerate(rows):
        places = own.candidates(query.leaves)
        keys = own.keys[places]
        is_in = (keys >= low) & (keys <= high)
        assert (not_below, inside) == ((keys >= low).sum(), is_in.sum())
        in_blocks = []
        for block in made.counted(number):
            part = (places >= block.start) & (places < block.stop)
            assert block.num_inside == (is_in & part).sum()
            in_blocks.append(block.num_inside)
        assert sum(in_blocks) == inside
        is_too_small = most is not None and max(in_blocks, default=0) > most
        assert is_full == (made.collects(number) and is_too_small)
        if made.collects(number) and not is_full:
            settled_queries.append((number, places[is_in]))
        if masks is not None:
            above = np.zeros(own.starts[-1], bool)
            above[places] = keys > high
            assert flat(masks, query.leaves) == above[own.span(query.leaves)].tolist()
    candidates = made.candidates([number for number, _ in settled_queries])
    expected = [i for _, found in settled_queries for i in found.tolist()]
    assert candidates.positions.tolist() == expected
    assert candidates.keys.tolist() == own.keys[expected].tolist()
    if candidates.query is not None:
        order = [i for i, (_, found) in enumerate(settled_queries) for _ in found]
        assert candidates.query.tolist() == order


@pytest.mark.parametrize("most", [2, 3])
def test_as_many_slots_as_candidates_are_enough(most: int) -> None:
    """The second query has too few slots in one block, and the first is not concerned."""
    scores = [torch.tensor([1.0, 2, 3]), torch.tensor([2.0, 9, 2, 2, 0, 2])]
    leaves, bounds = RankedLeaves(scores, []), torch.tensor([2.0, 4.0]).view(torch.int32).tolist()
    queries = [Query(range(i, i + 1), 1, len(x)) for i, x in enumerate(scores)]
    with patched(Limits(block=4)):
        slots = [slots_for(leaves, query, most) for query in queries]
        made = AcceleratorPass(leaves, queries, [tuple(bounds)] * 2, None, slots)
        assert made.run().tolist() == [2, 5, 2, 4, 0, int(most == 2)]
    assert made.candidates([0]).positions.tolist() == [1, 2]


def test_an_unused_slot_is_no_candidate() -> None:
    """Unused slots have index 0, which is not in the bracket, or is so only once."""
    scores = torch.tensor([5.0, 1, 3, 9])
    leaves, (low, high) = RankedLeaves([scores], []), FLOAT32.key_range(False)
    query = Query(range(1), 2, 4)
    for bracket, expected in (
        ((low, high), [0, 1, 2, 3]),
        ((scores[2:3].view(torch.int32).item(), scores[2:3].view(torch.int32).item() + 1), [2]),
    ):
        made = AcceleratorPass(leaves, [query], [bracket], None, [{0: 9}])
        made.run()
        assert made.candidates([0]).positions.tolist() == expected


# --- the last step ------------------------------------------------------------------------------


@given(ranked.trees, sizes, st.none() | st.integers(0, 9), st.booleans(), st.data())
def test_a_pass_is_finished(
    tree: fuzz.Tree, size: int, seed: int | None, writes: bool, data: st.DataObject
) -> None:
    """All its queries, or some of them, with masks if no two share a leaf."""
    own = ranked.rank(tree, seed)
    drawn = data.draw(settled(own, is_single=False))
    assume(drawn)
    if writes:
        drawn = (
            drawn[:1]
            if len(drawn[0][0].leaves) > 1
            else [pair for pair in drawn if len(pair[0].leaves) == 1]
        )
    queries = [query for query, _ in drawn]
    assume(len({query.leaves for query in queries}) == len(queries) or not writes)
    numbers = sorted(data.draw(st.sets(st.sampled_from(range(len(drawn))), min_size=1)))
    masks = empty_masks(own.leaves.scores) if writes else None
    with patched(Limits(block=size)):
        slots = [slots_for(own.leaves, query, size) for query in queries]
        ends = [known[:2] for _, known in drawn]
        made = AcceleratorPass(own.leaves, queries, ends, masks, slots)
        made.run()
        found = made.finish(numbers, [drawn[n][1] for n in numbers], masks)
    if masks is None:
        assert found == [threshold(own, queries[n]) for n in numbers]
    for n in numbers if masks is not None else []:
        assert flat(masks or [], queries[n].leaves) == mask_at(own, queries[n])


def test_joined_leaves_are_written_and_their_threshold_is_found() -> None:
    scores = [torch.tensor([4.0, 1, 5]), torch.tensor([[2.0, 2], [3, 0]]), torch.tensor([2.0, 9])]
    leaves, low = RankedLeaves(scores, []), int(torch.tensor(2.0).view(torch.int32))
    query = Query(range(3), 4, 9)  # 1, 0 and two of the three twos
    known = Interval(low, int(torch.tensor(4.0).view(torch.int32)), 2, 5)
    for masks in (empty_masks(scores), None):
        made = AcceleratorPass(leaves, [query], [known[:2]], masks, [{0: 9}])
        made.run()
        found = made.finish([0], [known], masks)
        if masks is None:
            assert found == [(low, 4)]
        else:
            assert [mask.tolist() for mask in masks] == [
                [True, False, True],
                [[False, False], [True, False]],
                [True, True],
            ]


@pytest.mark.parametrize("gap", [2**29, 2**31 - 2])
def test_int32_keys_of_wide_brackets_are_shifted_in_64_bits(gap: int) -> None:
    keys = torch.tensor([gap, 0, gap, 0, 0, gap], dtype=torch.int32)
    intervals = [Interval(0, gap, 0, 2)] * 3
    assert _order(keys, intervals).tolist() == [1, 0, 3, 2, 4, 5]


wide = st.integers(-(2**62), 2**62)


@given(
    st.lists(st.lists(st.integers(-3, 3), max_size=8), min_size=1, max_size=5),
    st.lists(wide, min_size=5, max_size=5),
    st.sampled_from([1, 2**20, 2**31, 2**60]),
    st.booleans(),
)
def test_keys_are_ordered_query_by_query(
    rows: list[list[int]], shifts: list[int], scale: int, is_narrow: bool
) -> None:
    """However wide the intervals are: shifted keys fit into 32 bits, into 64, or into neither."""
    if is_narrow:
        scale, shifts = min(scale, 2**28), [shift >> 33 for shift in shifts]
    rows = [
        [min(max(x * scale + shift, -(2**63)), 2**63 - 1) for x in row]
        for row, shift in zip(rows, shifts, strict=False)
    ]
    dtype = torch.int32 if is_narrow else torch.int64
    intervals = [Interval(min(row, default=0), max(row, default=0), 0, len(row)) for row in rows]
    keys = torch.tensor([x for row in rows for x in row], dtype=dtype)
    expected, first = list[int](), 0
    for row in rows:
        expected += [first + i for i in sorted(range(len(row)), key=row.__getitem__)]
        first += len(row)
    assert _order(keys, intervals).tolist() == expected


# --- the whole search ---------------------------------------------------------------------------


@pytest.mark.parametrize("num_leaves", [1, 3])
@pytest.mark.parametrize("pruned", [False, True])
def test_the_host_reads_the_sample_and_the_counts(num_leaves: int, pruned: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    scores = [torch.randn(400, 300, generator=generator) for _ in range(num_leaves)]
    priors = [torch.rand(400, 300, generator=generator) < 0.8 for _ in scores] if pruned else []
    leaves = RankedLeaves([x.to(DEVICE) for x in scores], [x.to(DEVICE) for x in priors])
    masks = empty_masks(leaves.scores)
    amounts = [torch.tensor(0.5)]
    with measured() as cost:
        search.select_into(masks, leaves, amounts, False, OneProcess())
    assert cost.waits == 2 + pruned, cost.table()
    own = ranked.of(RankedLeaves(scores, priors))
    num_candidates = len(own.candidates(range(num_leaves)))
    query = Query(range(num_leaves), round(num_candidates / 2), num_candidates)
    assert flat([mask.cpu() for mask in masks], range(num_leaves)) == mask_at(own, query)


def too_few(self: Any, query: int, low: int, high: int) -> dict[int, int]:
    return {piece.start: 1 for piece in self._pieces[query]}


@pytest.mark.parametrize("values", ["normal", "equal", "two", "nan"])
def test_a_search_goes_on_where_the_slots_are_too_few(values: str) -> None:
    scores = torch.randn(200_000, generator=torch.Generator().manual_seed(0))
    if values == "equal":
        scores.fill_(1.0)
    elif values == "two":
        scores = (scores > 0).float()
    elif values == "nan":
        scores[scores > 0] = math.nan
    leaves = RankedLeaves([scores.to(DEVICE)], [])
    masks = empty_masks(leaves.scores)
    with mock.patch.object(AcceleratorSample, "num_slots", too_few):
        search.select_into(masks, leaves, [torch.tensor(70_000)], False, OneProcess())
    own = ranked.of(RankedLeaves([scores], []))
    assert flat([masks[0].cpu()], range(1)) == mask_at(own, Query(range(1), 70_000, 200_000))
