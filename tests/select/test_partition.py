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
    PartitionPass,
    by_leaves,
    copy_priors,
    count_keys,
    count_ties,
    empty_masks,
    tied_indices,
    write_masks,
)
from tests.support import fuzz, ranked
from tests.support.limits import Limits, patched

sizes = st.integers(1, 100) | st.sampled_from([1024, 2048])


@st.composite
def brackets(draw: st.DrawFn, own: ranked.Ranked) -> tuple[int, int]:
    """The ends of a bracket: keys that there are, keys beside them, or all keys."""
    lowest, highest = own.leaves.key_range
    if not len(own.keys) or draw(st.integers(0, 5)) == 0:
        return lowest, highest
    # a key below all scores or above them is an end of a bracket that missed
    near = st.sampled_from(sorted(set(own.keys.tolist()))[:: max(1, len(own.keys) // 50)])
    key = st.builds(lambda x, d: min(max(x + d, lowest), highest), near, st.integers(-1, 1))
    low, high = sorted([draw(key), draw(key)])
    if not own.leaves.common.is_float:
        high = min(high, 2**62)
    return low, high


@st.composite
def asked(draw: st.DrawFn, own: ranked.Ranked, distinct: bool = False) -> list[Query]:
    scopes = st.sampled_from(ranked.scopes(len(own.leaves.scores)))
    if distinct:
        scopes = st.sampled_from(ranked.scopes(len(own.leaves.scores))[1:])
    drawn = draw(st.lists(scopes, min_size=1, max_size=4, unique_by=str if distinct else None))
    return [Query(x, 1, len(own.candidates(x))) for x in drawn]


def single(own: ranked.Ranked, scope: range) -> list[int]:
    """The leaves that are streamed alone."""
    return [group[0] for group in own.leaves.groups(scope) if len(group) == 1]


@given(ranked.trees, sizes, st.integers(0, 60), st.booleans(), st.data())
def test_a_pass_divides_every_query_by_its_bracket(
    tree: fuzz.Tree, size: int, limit: int, writes: bool, data: st.DataObject
) -> None:
    own = ranked.rank(tree)
    queries = data.draw(asked(own, distinct=writes))
    ends = [data.draw(brackets(own)) for _ in queries]
    masks = empty_masks(own.leaves.scores) if writes else None
    with patched(Limits(block=size)):
        made = PartitionPass(own.leaves, queries, ends, masks, limit)
        counts = made.run()
        streamed = {query.leaves: single(own, query.leaves) for query in queries}
    assert (counts.dtype, counts.numel()) == (torch.int64, made.num_counts)
    below, inside = counts[: len(queries)].tolist(), counts[len(queries) : -1].tolist()
    expected: list[tuple[int, int, int]] = []
    for number, (query, (low, high)) in enumerate(zip(queries, ends, strict=True)):
        places = own.candidates(query.leaves)
        keys = own.keys[places]
        is_in = (keys >= low) & (keys <= high)
        assert below[number] == (keys < low).sum()
        assert inside[number] == is_in.sum()
        assert made.collects(number) == (limit > 0 and low < high)
        if low < high:  # one key is only counted
            expected += [(number, int(i), int(own.keys[i])) for i in places[is_in]]
        is_all = limit > 0 and (low, high) == own.leaves.key_range
        assert made.is_whole(number) == is_all
        blocks = [block for block in made.counted if block.query == number]
        if not is_all:
            assert sum(int(block.num_inside) for block in blocks) == inside[number]
            for block in blocks:
                part = (places >= block.start) & (places < block.stop)
                assert int(block.num_inside) == (is_in & part).sum()
        if masks is not None and not is_all:
            above = np.zeros(own.starts[-1], bool)
            above[places] = keys > high
            for leaf in streamed[query.leaves]:
                got = masks[leaf].view(-1).numpy()
                assert got.tolist() == above[own.starts[leaf] : own.starts[leaf + 1]].tolist()
    fits = len(expected) <= limit and limit > 0
    assert int(counts[-1]) == (not fits)
    if fits and expected:
        numbers = [0] * len(expected) if len(queries) == 1 else made.query.tolist()
        places = made.positions(torch.arange(len(expected))).tolist()
        keys = made.keys.tolist()
        assert sorted(zip(numbers, places, keys, strict=True)) == sorted(expected)
        some = torch.randperm(len(expected))[: len(expected) // 2]
        assert made.positions(some).tolist() == [places[i] for i in some]
    elif not fits:
        assert made.keys.numel() == 0


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
    num_below = sum(bool(scores[i] < 2) for i in candidates)
    query = Query(range(1), 1, len(candidates))
    made = PartitionPass(leaves, [query], [(low, high)], masks, size)
    assert made.run().tolist() == [num_below, len(inside), 0]
    assert made.positions(torch.arange(len(inside))).tolist() == inside
    assert values_of(made.keys.long(), FLOAT32).tolist() == scores[inside].tolist()
    above = [i for i in candidates if scores[i] > 4 or scores[i].isnan()]
    assert masks[0].nonzero().view(-1).tolist() == above
    few = PartitionPass(leaves, [query], [(low, high)], None, len(inside) - 1)
    assert few.run().tolist() == [num_below, len(inside), 1]
    assert few.keys.numel() == 0


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
    assert counts == [3, 16 if left == 3 else 0, 0]
    assert masks[0].tolist() == [left == 9] * 16 + [False] * 3


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
