"""Passes over all weights, against numpy: what is below, inside and above a bracket."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gprune.select.blocks import Query, RankedLeaves
from gprune.select.keys import FLOAT32, values_of
from gprune.select.partition import (
    Bins,
    Buffers,
    Candidates,
    PartitionPass,
    by_leaves,
    copy_priors,
    count_keys,
    count_ties,
    empty_masks,
    keep_positions,
    tied_indices,
    write_block,
    write_masks,
)
from tests.support import fuzz, ranked
from tests.support.limits import Limits, patched
from tests.support.queries import asked, brackets

sizes = st.integers(1, 100) | st.sampled_from([1024, 2048])


@given(ranked.trees, sizes, st.integers(0, 60), st.booleans(), st.data())
def test_a_pass_divides_every_query_by_its_bracket(
    tree: fuzz.Tree, size: int, limit: int, writes: bool, data: st.DataObject
) -> None:
    """Also where brackets of the same leaves overlap, or are single keys."""
    own = ranked.rank(tree)
    queries = data.draw(asked(own, distinct=writes))
    ends = [data.draw(brackets(own)) for _ in queries]
    masks = empty_masks(own.leaves.scores) if writes else None
    with patched(Limits(block=size)):
        made = PartitionPass(own.leaves, queries, ends, masks, limit)
        counts = made.run()
    assert (counts.dtype, counts.numel()) == (torch.int64, made.num_counts)
    not_below, inside, is_full = counts.view(3, -1).tolist()
    expected: list[list[tuple[int, int]]] = []
    for number, (query, (low, high)) in enumerate(zip(queries, ends, strict=True)):
        places = own.candidates(query.leaves)
        keys = own.keys[places]
        is_in = (keys >= low) & (keys <= high)
        is_alone = [other.leaves for other in queries].count(query.leaves) == 1
        assert not_below[number] == ((keys >= low).sum() if is_alone else 0)
        assert inside[number] == is_in.sum()
        assert made.collects(number) == (low < high)
        found = places[is_in].tolist() if low < high else []  # one key is only counted
        expected.append([(i, int(own.keys[i])) for i in found])
        blocks = made.counted(number)
        assert sum(block.num_inside for block in blocks) == inside[number]
        for block in blocks:
            part = (places >= block.start) & (places < block.stop)
            assert block.num_inside == (is_in & part).sum()
        if masks is not None:
            above = np.zeros(own.starts[-1], bool)
            above[places] = keys > high
            got = torch.cat([masks[leaf].view(-1) for leaf in query.leaves])
            assert got.tolist() == above[own.span(query.leaves)].tolist()
    fits = sum(map(len, expected)) <= limit
    assert is_full == [not fits] * len(queries)
    if fits:
        check_candidates(made, expected, data)


def check_candidates(
    made: PartitionPass, expected: list[list[tuple[int, int]]], data: st.DataObject
) -> None:
    """Compare the collected candidates of some of the queries with pairs of position and key."""
    every = range(len(expected))
    chosen = sorted(data.draw(st.sets(st.sampled_from(every), min_size=1)))
    candidates = made.candidates(chosen)
    assert candidates.positions.dtype == torch.int64
    assert (candidates.query is None) == (len(chosen) == 1)
    numbers = [0] * len(candidates.keys) if candidates.query is None else candidates.query.tolist()
    found: list[list[tuple[int, int]]] = [[] for _ in chosen]
    pairs = zip(candidates.positions.tolist(), candidates.keys.tolist(), strict=True)
    for number, pair in zip(numbers, pairs, strict=True):
        found[number].append(pair)
    assert found == [expected[query] for query in chosen]  # in the order of the positions


@pytest.mark.parametrize("size", [8, 11])  # whole words of bools, and not
@pytest.mark.parametrize("pruned", [None, [5, 7], [0, 1, 4]])  # in, above and below the bracket
@pytest.mark.parametrize("absolute", [False, True])
def test_a_pass_divides_at_both_ends_of_its_bracket(
    size: int, pruned: list[int] | None, absolute: bool
) -> None:
    scores = torch.tensor([1.0, 2, 3, 4, 5, 2, 4, math.nan, 9, 1, 4][:size])
    prior = torch.ones(size, dtype=torch.bool)
    prior[pruned or []] = False
    masks = [torch.empty_like(prior)]
    leaves = RankedLeaves([scores], [] if pruned is None else [prior], absolute)
    low, high = torch.tensor([2.0, 4.0]).view(torch.int32).tolist()
    candidates = [i for i in range(size) if prior[i]]
    inside = [i for i in candidates if 2 <= scores[i] <= 4]
    not_below = sum(not scores[i] < 2 for i in candidates)
    query = Query(range(1), 1, len(candidates))
    made = PartitionPass(leaves, [query], [(low, high)], masks, size)
    assert made.run().tolist() == [not_below, len(inside), 0]
    collected = made.candidates([0])
    assert collected.positions.tolist() == inside
    assert values_of(collected.keys.long(), FLOAT32).tolist() == scores[inside].tolist()
    above = [i for i in candidates if scores[i] > 4 or scores[i].isnan()]
    assert masks[0].nonzero().view(-1).tolist() == above
    exact = PartitionPass(leaves, [query], [(low, high)], None, len(inside))
    assert exact.run().tolist() == [not_below, len(inside), 0]
    assert exact.candidates([0]).positions.tolist() == inside
    few = PartitionPass(leaves, [query], [(low, high)], None, len(inside) - 1)
    assert few.run().tolist() == [not_below, len(inside), 1]
    assert few.candidates([0]).keys.numel() == 0


@pytest.mark.parametrize("pruned", [False, True])
@pytest.mark.parametrize("left", [3.0, 9.0])  # in the bracket, and above it
def test_what_pads_a_block_is_nowhere(pruned: bool, left: float) -> None:
    """The second block is padded to a whole word, over what the first has left in the buffers."""
    scores = torch.cat([torch.full((16,), left), torch.ones(3)])
    masks = [torch.empty(19, dtype=torch.bool)]
    leaves = RankedLeaves([scores], [torch.ones(19, dtype=torch.bool)] * pruned)
    low, high = torch.tensor([2.0, 4.0]).view(torch.int32).tolist()
    with patched(Limits(block=16)):
        made = PartitionPass(leaves, [Query(range(1), 1, 19)], [(low, high)], masks, 19)
        counts = made.run().tolist()
    assert counts == [16, 16 if left == 3 else 0, 0]
    assert masks[0].tolist() == [left == 9] * 16 + [False] * 3


def test_joined_leaves_of_whole_words_are_written() -> None:
    """The buffer of a block can be a mask only if the block is of one leaf."""
    scores = [torch.tensor([1.0, 5, 2]), torch.tensor([9.0, 1, 3, 7, 2])]
    masks, (low, high) = empty_masks(scores), torch.tensor([2.0, 4.0]).view(torch.int32).tolist()
    leaves = RankedLeaves(scores, [])
    assert len(leaves.groups(range(2))) == 1
    PartitionPass(leaves, [Query(range(2), 1, 8)], [(low, high)], masks, 9).run()
    assert [mask.tolist() for mask in masks] == [(x > 4).tolist() for x in scores]


# --- several queries of the same leaves ---------------------------------------------------------


@pytest.mark.parametrize("pruned", [False, True])
@pytest.mark.parametrize("limit", [0, 2**20])
@pytest.mark.parametrize("is_wide", [False, True])  # whether a bracket has all keys
@pytest.mark.parametrize(
    ("dtype", "spread"),
    [
        (torch.float16, 500),
        (torch.bfloat16, 30),
        (torch.float32, 2**18),
        (torch.float64, 2**30),
        (torch.int8, 100),
        (torch.int64, 4),
        (torch.int64, 2**50),
    ],
)
def test_brackets_of_the_same_leaves(
    dtype: torch.dtype, spread: int, is_wide: bool, limit: int, pruned: bool
) -> None:
    """They overlap, touch, are the same, are single keys, miss all scores, or hold all of them."""
    generator = torch.Generator().manual_seed(0)
    scores = [torch.randint(-spread, spread, (n,), generator=generator) for n in (700, 3, 41)]
    scores[0][::7] = scores[0][3]
    scores = [x.to(dtype) for x in scores]
    priors = [torch.rand(x.shape, generator=generator) < 0.8 for x in scores] if pruned else []
    own = ranked.of(RankedLeaves(scores, priors))
    everything = range(3)
    keys = sorted(set(own.keys.tolist()))
    lowest, highest = own.leaves.key_range
    a, b, c, d = (keys[len(keys) * i // 5] for i in range(1, 5))
    tied = int(own.keys[3])
    ends = [(b, d), (b, b), (c, c + 1), (b, d), (tied, tied), (c - 1, d), (b + 1, d - 1), (d, d)]
    if is_wide:
        ends += [(lowest, highest), (a, c), (d + 1, highest), (lowest, keys[0] - 1)]
        ends += [(keys[0], keys[0]), (keys[-1], keys[-1]), (lowest, lowest), (highest, highest)]
    queries = [Query(everything, 1, len(own.candidates(everything))) for _ in ends]
    queries.append(Query(range(1), 1, len(own.candidates(range(1)))))  # one of its own leaf
    ends.append((b, c))
    with patched(Limits(block=64)):
        made = PartitionPass(own.leaves, queries, ends, None, limit)
        _, inside, is_full = made.run().view(3, -1).tolist()
    places = [own.candidates(query.leaves) for query in queries]
    places = [
        row[(own.keys[row] >= low) & (own.keys[row] <= high)]
        for row, (low, high) in zip(places, ends, strict=True)
    ]
    assert inside == [len(row) for row in places]
    assert is_full == [limit == 0] * len(ends)
    for number, row in enumerate(places):
        assert sum(block.num_inside for block in made.counted(number)) == len(row)
    if limit == 0:
        return
    collected = [n for n, (low, high) in enumerate(ends) if low < high]
    for some in (collected, collected[1:], collected[-1:]):
        candidates = made.candidates(some)
        numbers = torch.zeros(len(candidates.keys)) if len(some) == 1 else candidates.query
        assert numbers is not None
        for number, n in enumerate(some):
            own_part = candidates.keep(numbers == number)
            assert own_part.positions.tolist() == places[n].tolist()
            assert own_part.keys.tolist() == own.keys[places[n]].tolist()


@pytest.mark.parametrize("dtype", [torch.float16, torch.int8, torch.int64])
def test_narrow_keys_fill_a_wide_table(dtype: torch.dtype) -> None:
    """Bins are numbered up to 32769, which no 16-bit integer holds."""
    values = torch.arange(-128, 128)
    own = ranked.of(RankedLeaves([values.to(dtype)], []))
    ends = [own.leaves.key_range, (int(own.keys[250]), int(own.keys[255]))]
    made = PartitionPass(own.leaves, [Query(range(1), 1, 256)] * 2, ends, None, 2**20)
    assert made.run().tolist() == [0, 0, 256, 6, 0, 0]
    candidates = made.candidates([0, 1])
    assert candidates.query is not None
    assert candidates.positions.tolist() == [*range(256), *range(250, 256)]
    assert candidates.query.tolist() == [0] * 256 + [1] * 6


def test_brackets_at_the_ends_of_int64() -> None:
    """Half of the range has 2^63 keys, and all of it 2^64."""
    top = 2**63 - 1
    scores = torch.tensor([top, top - 1, top - 9, 0, 5, -1, 1 - top, -top, 9 - top])
    own = ranked.of(RankedLeaves([scores], []))
    ends = [(-top - 1, top), (0, top), (-top - 1, -1), (top - 9, top), (-top, 9 - top), (-1, 0)]
    queries = [Query(range(1), 1, 9)] * len(ends)
    made = PartitionPass(own.leaves, queries, ends, None, 99)
    assert made.run()[len(ends) :].tolist() == [9, 5, 4, 3, 3, 2, *[0] * len(ends)]
    candidates = made.candidates([3, 4])
    assert candidates.positions.tolist() == [0, 1, 2, 6, 7, 8]


def test_the_magnitude_of_the_lowest_int32_is_collected() -> None:
    """It is 2^31, which no int32 holds."""
    scores = torch.tensor([-(2**31), 5, 2**31 - 1], dtype=torch.int32)
    own = RankedLeaves([scores], [], absolute=True)
    made = PartitionPass(own, [Query(range(1), 1, 3)], [(6, 2**31)], None, 9)
    assert made.run().tolist() == [2, 2, 0]
    assert made.candidates([0]).keys.tolist() == [2**31, 2**31 - 1]


def test_the_candidates_of_some_queries_are_numbered_anew() -> None:
    own = RankedLeaves([torch.ones(2), torch.ones(3), torch.ones(1)], [])
    queries = [Query(range(i, i + 1), 1, 3) for i in range(3)]
    made = PartitionPass(own, queries, [own.key_range] * 3, None, 9)
    made.run()
    candidates = made.candidates([1, 2])
    assert candidates.query is not None
    assert candidates.query.tolist() == [0, 0, 0, 1]
    assert candidates.positions.tolist() == [2, 3, 4, 5]


def test_too_many_candidates_of_one_query_leave_the_counts_right() -> None:
    """What is collected is of no use, but a bracket of one key needs only its counts."""
    own = ranked.of(RankedLeaves([torch.arange(100) % 10], []))
    ends = [(3, 3), (0, 9), (4, 5)]
    made = PartitionPass(own.leaves, [Query(range(1), 1, 100)] * 3, ends, None, 50)
    assert made.run().tolist() == [0, 0, 0, 10, 100, 20, 1, 1, 1]
    assert [int(block.num_inside) for block in made.counted(0)] == [10]
    assert made.candidates([1, 2]).keys.numel() <= 50


def test_a_process_without_entries_has_no_candidates() -> None:
    """It takes part in the messages of the others, so it needs empty tensors of integers."""
    own = RankedLeaves([torch.empty(0), torch.empty(0, 3)], [])
    queries = [Query(range(i, i + 1), 1, 9) for i in range(2)]
    made = PartitionPass(own, queries, [(0, 9), (0, 9)], None, 5)
    assert made.run().tolist() == [0] * 6
    candidates = made.candidates([0, 1])
    assert candidates.query is not None
    assert (candidates.query.dtype, candidates.positions.dtype) == (torch.int32, torch.int64)
    assert len(candidates.query) == len(candidates.positions) == len(candidates.keys) == 0
    assert len(candidates.keep(candidates.keys >= candidates.look_up([1, 2])).keys) == 0


def test_candidates_are_kept_by_the_number_of_their_query() -> None:
    keys, positions = torch.tensor([4, 5, 6, 7], dtype=torch.int32), torch.tensor([1, 3, 2, 9])
    some = Candidates(keys, positions, torch.tensor([0, 0, 1, 1]))
    table = some.look_up([5, 7])
    assert isinstance(table, torch.Tensor)
    assert (table.dtype, table.tolist()) == (torch.int32, [5, 5, 7, 7])
    wide = some.look_up([-1, 2**40], torch.int64)
    assert isinstance(wide, torch.Tensor)
    assert (wide.dtype, wide.tolist()) == (torch.int64, [-1, -1, 2**40, 2**40])
    kept = some.keep(some.keys >= table)
    assert kept.query is not None
    assert (kept.keys.tolist(), kept.positions.tolist()) == ([5, 7], [3, 9])
    assert kept.query.tolist() == [0, 1]
    alone = some._replace(query=None)
    assert alone.look_up([5]) == 5
    assert alone.keep(keys > 5).query is None


def test_queries_of_the_same_leaves_share_their_blocks() -> None:
    one, two = range(1), range(2)
    queries = [Query(two, 1, 9), Query(one, 1, 9), Query(two, 2, 9)]
    assert by_leaves(queries) == [(two, [0, 2]), (one, [1])]


def test_buffers_are_used_again_and_grow() -> None:
    buffers, cpu = Buffers(), torch.device("cpu")
    first = buffers.get("a", 8, torch.int32, cpu)
    assert buffers.get("a", 3, torch.int32, cpu).data_ptr() == first.data_ptr()
    assert buffers.get("b", 8, torch.int32, cpu).data_ptr() != first.data_ptr()
    assert buffers.get("a", 8, torch.int16, cpu).dtype == torch.int16
    assert buffers.get("a", 9, torch.int32, cpu).numel() == 9
    assert buffers.get("a", 3, torch.int32, cpu).numel() == 3


# --- bins -------------------------------------------------------------------------------------


@given(
    st.integers(-(2**63), 2**63 - 1),
    st.integers(0, 2**20) | st.integers(0, 2**63),
    st.integers(2, 40) | st.sampled_from([2**12, 2**15]),
)
def test_bins_cover_what_they_must(low: int, width: int, num_bins: int) -> None:
    high = min(low + width, 2**63)
    bins = Bins.covering(low, high, num_bins)
    assert bins.num_bins == num_bins
    assert bins.first % (1 << bins.shift) == 0
    assert bins.first <= low < bins.first + (1 << bins.shift)
    assert high < bins.first + (num_bins << bins.shift)
    if bins.shift:
        assert (low >> bins.shift) < (high >> bins.shift)  # a pass halves an interval at least
        narrower = bins.shift - 1
        if num_bins & (num_bins - 1) == 0:
            assert (high >> narrower) - (low >> narrower) >= num_bins


@given(
    st.integers(-(2**63), 2**63 - 1),
    st.integers(0, 2**20) | st.integers(0, 2**63),
    st.integers(2, 40) | st.just(2**15),
    st.lists(st.integers(-(2**62), 2**62)),
)
def test_bins_are_numbered_from_one(low: int, width: int, num_bins: int, keys: list[int]) -> None:
    """0 is below them, and the number after the last is above them."""
    bins = Bins.covering(low, min(low + width, 2**63 - 1), num_bins)
    if bins.shift == 0:  # numbers below and above the bins need to be int64
        bins = bins._replace(first=min(max(bins.first, -(2**62)), 2**62))
    ends = [bins.first, bins.first + (num_bins << bins.shift)]
    near = [end + d for end in ends for d in (-1, 0, 1) if abs(end + d) < 2**63]
    numbers = bins.numbers(torch.tensor([*keys, *near], dtype=torch.int64)).tolist()
    expected = [(key - bins.first) >> bins.shift for key in [*keys, *near]]
    assert numbers == [min(max(number, -1), num_bins) + 1 for number in expected]


@given(ranked.trees, sizes, st.sampled_from([2, 3, 8, 2**12]), st.data())
def test_keys_are_counted_in_bins(
    tree: fuzz.Tree, size: int, num_bins: int, data: st.DataObject
) -> None:
    own = ranked.rank(tree)
    queries = data.draw(asked(own))
    bins = [Bins.covering(*data.draw(brackets(own)), num_bins) for _ in queries]
    if data.draw(st.booleans()):
        bins = [bins[0]] * len(bins)  # queries that share their counts
    with patched(Limits(block=size)):
        counts = count_keys(own.leaves, queries, bins)
    assert (counts.dtype, counts.shape) == (torch.int64, (len(queries) * (num_bins + 2),))
    for query, mine, row in zip(queries, bins, counts.view(len(queries), -1), strict=True):
        expected = [0] * (num_bins + 2)
        for key in own.keys[own.candidates(query.leaves)].tolist():
            number = (key - mine.first) >> mine.shift
            expected[min(max(number, -1), num_bins) + 1] += 1
        assert row.tolist() == expected


# --- ties -------------------------------------------------------------------------------------


@given(ranked.trees, sizes, st.data())
def test_ties_are_found_in_a_range_of_flat_indices(
    tree: fuzz.Tree, size: int, data: st.DataObject
) -> None:
    own = ranked.rank(tree)
    split = data.draw(ranked.shards(own.leaves.scores))
    if not len(own.keys):
        return
    key = data.draw(st.sampled_from(own.keys.tolist()))
    for scope in ranked.scopes(len(own.leaves.scores)):
        start, end = own.span(scope).start, own.span(scope).stop - 1
        if end < start:
            continue
        first, last = sorted(data.draw(st.tuples(*[st.integers(start, end)] * 2)))
        places = own.candidates(scope)
        expected = places[(own.keys[places] == key) & (places >= first) & (places <= last)]
        bins = Bins.covering(first, last, 4)
        in_bins = np.bincount((expected - bins.first) >> bins.shift, minlength=4)
        with patched(Limits(block=size)):
            whole = [x for part in tied_indices(own.leaves, scope, key, first, last) for x in part]
            assert whole == expected.tolist()
            counted = count_ties(own.leaves, scope, key, first, last, bins)
            assert counted.tolist() == in_bins.tolist()
            parts = [ranked.local(own.leaves, split, i) for i in range(split.num_processes)]
            found = [list(tied_indices(part, scope, key, first, last)) for part in parts]
            both = [count_ties(part, scope, key, first, last, bins) for part in parts]
        assert sorted(int(x) for part in found for x in torch.cat([*part, nothing()])) == (
            expected.tolist()
        )
        assert torch.stack(both).sum(0).tolist() == in_bins.tolist()


def nothing() -> torch.Tensor:
    return torch.empty(0, dtype=torch.int64)


# --- masks ------------------------------------------------------------------------------------


@given(ranked.trees, sizes, st.data())
def test_masks_are_written_at_any_threshold(
    tree: fuzz.Tree, size: int, data: st.DataObject
) -> None:
    own = ranked.rank(tree)
    key, _ = data.draw(brackets(own))
    last = data.draw(st.integers(-1, own.starts[-1]))
    places = np.arange(own.starts[-1])
    expected = own.prior & ((own.keys > key) | ((own.keys == key) & (places > last)))
    masks = empty_masks(own.leaves.scores)
    with patched(Limits(block=size)):
        everything = range(len(own.leaves.scores))
        write_masks(own.leaves, own.leaves.blocks(everything), key, last, masks)
    assert torch.cat([mask.view(-1) for mask in masks]).tolist() == expected.tolist()


@given(ranked.trees, sizes, st.booleans(), st.data())
def test_a_pass_and_the_positions_to_keep_make_a_mask(
    tree: fuzz.Tree, size: int, alone: bool, data: st.DataObject
) -> None:
    """The pass writes "above the bracket", also for joined leaves. The rest is kept afterwards."""
    own = ranked.rank(tree)
    everything, *each = ranked.scopes(len(own.leaves.scores))
    scopes = [x for x in each if data.draw(st.booleans())] if alone else [everything]
    queries = [Query(leaves, 1, len(own.candidates(leaves))) for leaves in scopes]
    if not queries:
        return
    ends = [data.draw(brackets(own)) for _ in queries]
    masks = empty_masks(own.leaves.scores)
    for mask in masks:
        mask.fill_(True)  # what was there before is overwritten
    kept = np.zeros(own.starts[-1], bool)
    with patched(Limits(block=size)):
        PartitionPass(own.leaves, queries, ends, masks, 0).run()
        positions = []
        for query, (low, high) in zip(queries, ends, strict=True):
            places = own.candidates(query.leaves)
            kept[places] = own.keys[places] > high
            inside = places[(own.keys[places] >= low) & (own.keys[places] <= high)].tolist()
            chosen = data.draw(st.sets(st.sampled_from(inside))) if inside else set()
            positions += sorted(chosen)
        kept[positions] = True
        keep_positions(own.leaves, scopes, torch.tensor(positions, dtype=torch.int64), masks)
    for leaves in scopes:
        got = torch.cat([masks[leaf].view(-1) for leaf in leaves])
        assert got.tolist() == kept[own.span(leaves)].tolist()
    for leaf, mask in enumerate(masks):
        if not any(leaf in leaves for leaves in scopes):
            assert mask.all()


def test_positions_are_kept_at_both_ends_of_every_leaf() -> None:
    """Joined leaves, a large leaf, an empty one, and leaves of which nothing is kept."""
    sizes = [2, 3, 0, 40, 4, 1]
    leaves = RankedLeaves([torch.zeros(n) for n in sizes], [])
    with patched(Limits(block=32)):
        assert leaves.groups(range(6)) == [[0, 1], [3], [4, 5]]
        for kept in ([], [0], [1, 2, 4], [4, 5, 44, 45], [5, 44], [49], [*range(50)], [48, 49]):
            for scopes in ([range(6)], [range(i, i + 1) for i in range(6)]):
                masks = [torch.zeros(n, dtype=torch.bool) for n in sizes]
                keep_positions(leaves, scopes, torch.tensor(kept, dtype=torch.int64), masks)
                assert torch.cat(masks).nonzero().view(-1).tolist() == kept


def test_a_block_is_written_into_the_masks_of_its_leaves() -> None:
    """From bools or from integers; entries beside the block stay as they are."""
    masks = [torch.zeros(n, dtype=torch.bool) for n in (3, 2, 40)]
    leaves = RankedLeaves([torch.zeros(n) for n in (3, 2, 40)], [])
    with patched(Limits(block=32)):
        joined, first, second = leaves.blocks(range(3))
    write_block(joined, torch.tensor([0, 1, 0, 1, 1], dtype=torch.int32), masks)
    write_block(second, torch.ones(8, dtype=torch.bool), masks)
    assert (joined.leaves, first.stop, second.offset) == ([0, 1], 37, 32)
    assert [mask.int().tolist() for mask in masks[:2]] == [[0, 1, 0], [1, 1]]
    assert masks[2].nonzero().view(-1).tolist() == [*range(32, 40)]


def test_only_the_given_blocks_are_written() -> None:
    masks = [torch.zeros(8, dtype=torch.bool)]
    leaves = RankedLeaves([torch.arange(8.0)], [])
    with patched(Limits(block=2)):
        write_masks(leaves, list(leaves.blocks(range(1)))[1:3], -1, -1, masks)
    assert masks[0].tolist() == [False, False, True, True, True, True, False, False]


def test_masks_are_contiguous_and_copies() -> None:
    scores = [torch.ones(4, 3).t(), torch.ones(2, device="meta")]
    masks = empty_masks(scores)
    assert [mask.dtype for mask in masks] == [torch.bool] * 2
    assert [mask.shape for mask in masks] == [(3, 4), (2,)]
    assert masks[0].is_contiguous()
    assert masks[1].is_meta
    prior = torch.tensor([[True, False]] * 2).t()
    kept = empty_masks([prior, prior])
    kept[1].fill_(False)
    copy_priors(RankedLeaves([prior, prior], [prior, prior]), range(1), kept)
    assert kept[0].equal(prior)
    assert not kept[1].any()
    copy_priors(RankedLeaves([prior, prior], []), range(1, 2), kept)
    assert kept[0].equal(prior)
    assert kept[1].all()
