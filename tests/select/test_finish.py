"""The last step of a search: from what is inside the brackets to thresholds and masks."""

from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from gprune.select import finish
from gprune.select.blocks import Query, RankedLeaves, ShardSlice
from gprune.select.finish import (
    KeyThreshold,
    _narrow_ties,
    finish_collected,
    finish_counted,
    prune_directly,
    write_replicas,
)
from gprune.select.partition import Candidates, CountedBlock, PartitionPass, empty_masks
from gprune.select.refine import Interval, OneProcess, Reduce
from tests.support import fuzz, ranked
from tests.support.limits import Limits, limits, patched
from tests.support.queries import flat, interval_of, mask_at, settled, threshold

DTYPES = [*fuzz.FLOATING, *fuzz.INTEGER]


# --- after a pass -------------------------------------------------------------------------------


@given(ranked.trees, limits(), st.booleans(), st.none() | st.integers(0, 9), st.data())
def test_a_pass_is_finished(
    tree: fuzz.Tree, small: Limits, is_single: bool, seed: int | None, data: st.DataObject
) -> None:
    """All its queries, or some of them, with masks if no two share a leaf."""
    own = ranked.rank(tree, seed)
    drawn = data.draw(settled(own, is_single))
    assume(drawn)
    queries = [query for query, _ in drawn]
    numbers = sorted(data.draw(st.sets(st.sampled_from(range(len(drawn))), min_size=1)))
    intervals = [drawn[n][1] for n in numbers]
    is_distinct = len({leaf for query in queries for leaf in query.leaves}) == sum(
        len(query.leaves) for query in queries
    )
    masks = empty_masks(own.leaves.scores) if is_distinct else None
    finish_pass = finish_counted if is_single else finish_collected
    with patched(small):
        ends = [known[:2] for _, known in drawn]
        made = PartitionPass(own.leaves, queries, ends, masks, 2**20)
        made.run()
        found = finish_pass(own.leaves, OneProcess(), made, numbers, intervals, masks)
    assert found == [threshold(own, queries[n]) for n in numbers]
    for n in numbers if masks is not None else []:
        assert flat(masks or [], queries[n].leaves) == mask_at(own, queries[n])


@given(ranked.trees, limits(), st.booleans(), st.data())
def test_several_processes_finish_the_same(
    tree: fuzz.Tree, small: Limits, is_single: bool, data: st.DataObject
) -> None:
    """Some of them may have no candidates at all, or no entries."""
    own = ranked.rank(tree)
    drawn = data.draw(settled(own, is_single))
    assume(drawn)
    queries, intervals = [query for query, _ in drawn], [known for _, known in drawn]
    split = data.draw(ranked.shards(own.leaves.scores))
    numbers = list(range(len(drawn)))
    finish_pass = finish_counted if is_single else finish_collected

    def run(reduce: Reduce) -> list[KeyThreshold]:
        part = ranked.local(own.leaves, split, reduce.process)
        made = PartitionPass(part, queries, [known[:2] for known in intervals], None, 2**20)
        made.run()
        return finish_pass(part, reduce, made, numbers, intervals, None)

    with patched(small):
        results = ranked.Processes(split.num_processes).run(run)
    assert results == [[threshold(own, query) for query in queries]] * split.num_processes


@pytest.mark.parametrize("k", [1, 3, 4, 7, 8, 9, 16])
@pytest.mark.parametrize("is_single", [False, True])
def test_ties_beyond_the_threshold_are_kept(k: int, is_single: bool) -> None:
    """In its block, and in later blocks; also in joined leaves, and beside candidates above."""
    scores = [torch.ones(3), torch.ones(3), torch.tensor([1.0, 2.0] * 10)]
    own = ranked.of(RankedLeaves(scores, []))
    query, masks = Query(range(3), k, 26), empty_masks(scores)
    one, two = torch.tensor([1.0, 2.0]).view(torch.int32).tolist()
    ends = (one, one) if is_single else (one, two)
    finish_pass = finish_counted if is_single else finish_collected
    with patched(Limits(block=24)):
        assert own.leaves.groups(range(3)) == [[0, 1], [2]]
        made = PartitionPass(own.leaves, [query], [ends], masks, 99)
        made.run()
        known = [interval_of(own, query, *ends)]
        found = finish_pass(own.leaves, OneProcess(), made, [0], known, masks)
    assert found == [threshold(own, query)]
    assert flat(masks, range(3)) == mask_at(own, query)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_tree_indices_beyond_int32(dtype: torch.dtype) -> None:
    """The keys are int32, but a leaf may have more entries than that can count."""
    scores = [torch.tensor([2.0, 1.0, 1.0, 1.0, 3.0], dtype=dtype) for _ in range(2)]
    size, start = 2**33, 2**33 - 9
    slices = [ShardSlice((size,), (start,), (5,))] * 2
    own, masks = RankedLeaves(scores, [], slices=slices), empty_masks(scores)
    keys = ranked.true_keys(RankedLeaves(scores, []))[0].tolist()
    one, two = keys[1], keys[0]
    queries = [Query(range(i, i + 1), k, 5) for i, k in enumerate((2, 3))]
    for finish_pass, high, below in ((finish_collected, two, 4), (finish_counted, one, 3)):
        made = PartitionPass(own, queries, [(one, high)] * 2, masks, 99)
        made.run()
        known = [Interval(one, high, 0, below)] * 2
        found = finish_pass(own, OneProcess() if high > one else Two(), made, [0, 1], known, masks)
        assert found == [KeyThreshold(one, start + 2), KeyThreshold(one, size + start + 3)]
        kept = [[True, False, False, True, True], [True, False, False, False, True]]
        assert [mask.tolist() for mask in masks] == kept


def test_positions_beyond_int32() -> None:
    """In a process that has so many entries; here they are views of one."""
    scores = [torch.ones(1).expand(2**32)] * 2
    own, queries = RankedLeaves(scores, []), [Query(range(i, i + 1), 2, 2**32) for i in range(2)]
    first = torch.tensor([2**31 + 5, 2**31 + 7, 2**32 - 2, 2**32 - 1])
    keys, query = torch.tensor([8, 7, 7, 7] * 2, dtype=torch.int32), torch.arange(8) // 4
    candidates = Candidates(keys, torch.cat([first, first + 2**32]), query)
    made = mock.Mock(queries=queries, candidates=lambda numbers: candidates)
    known = [Interval(7, 8, 0, 4)] * 2
    with mock.patch.object(finish, "keep_positions") as keep:
        found = finish_collected(own, OneProcess(), made, [0, 1], known, [])
    assert found == [KeyThreshold(7, 2**32 - 2), KeyThreshold(7, 2**33 - 2)]
    kept = [2**31 + 5, 2**32 - 1]
    assert keep.call_args.args[2].tolist() == [*kept, *(i + 2**32 for i in kept)]


class Two(OneProcess):
    """Two processes, of which the other has no candidates."""

    num_processes = 2


def test_errors_are_raised_inside_the_sum() -> None:
    """So that every process raises them: candidates, tie offsets and masks are made there."""
    own = RankedLeaves([torch.tensor([1.0, 1.0, 3.0])], [])
    key = int(torch.tensor(1.0).view(torch.int32))
    masks = empty_masks(own.scores)

    class Refusing(Two):
        def sum(self, phase: str, size: int, count: Any) -> torch.Tensor:
            raise RuntimeError(phase)

    for ends, finish_pass, phase in (
        ((key, key + 9), finish_collected, "finding the keys of the thresholds"),
        ((key, key), finish_counted, "finding the flat indices of the thresholds"),
    ):
        made = PartitionPass(own, [Query(range(1), 1, 3)], [ends], masks, 9)
        made.run()
        with pytest.raises(RuntimeError, match=phase):
            finish_pass(own, Refusing(), made, [0], [Interval(*ends, 0, 2)], masks)


# --- ties ---------------------------------------------------------------------------------------


@given(st.integers(0, 30), st.integers(1, 60), st.integers(0, 9), st.data())
def test_a_process_finds_the_tie_from_the_counts_of_its_blocks(
    lower: int, num_tied: int, limit: int, data: st.DataObject
) -> None:
    """The blocks have counted the ties, wherever they are."""
    scores = torch.tensor([0.0] * lower + [1.0] * num_tied + [2.0] * 5)
    scores = scores[data.draw(st.permutations(range(len(scores))))]
    own = ranked.of(RankedLeaves([scores], []))
    nth = data.draw(st.integers(1, num_tied))
    query = Query(range(1), lower + nth, len(scores))
    with patched(Limits(block=8, limit=limit)):
        blocks = [
            CountedBlock(b.start, b.stop, (scores[b.start : b.stop] == 1).sum())
            for b in own.leaves.blocks(range(1))
        ]
        key = Interval(int(own.keys[own.order(range(1))[query.k - 1]]), 0, lower, num_tied)
        found = _narrow_ties(own.leaves, OneProcess(), query, key, blocks)
    index = threshold(own, query).tree_index
    assert found == Interval(index, index, nth - 1, 1)


@given(ranked.trees, st.integers(0, 9), st.integers(1, 5), st.data())
def test_processes_narrow_ties_until_they_have_few(
    tree: fuzz.Tree, max_ties: int, max_bits: int, data: st.DataObject
) -> None:
    own = ranked.rank(tree)
    split = data.draw(ranked.shards(own.leaves.scores))
    leaves = data.draw(st.sampled_from(ranked.scopes(len(own.leaves.scores))))
    assume(len(own.candidates(leaves)))
    query = Query(leaves, 0, len(own.candidates(leaves)))
    keys = own.keys[own.order(leaves)]
    # the key that most candidates share, and any of them
    values, counts = np.unique(keys, return_counts=True)
    key, num_tied = int(values[counts.argmax()]), int(counts.max())
    known = Interval(key, key, int((keys < key).sum()), num_tied)
    query = query._replace(k=known.num_below + data.draw(st.integers(1, num_tied)))

    def run(reduce: Reduce) -> Interval:
        part = ranked.local(own.leaves, split, reduce.process)
        return _narrow_ties(part, reduce, query, known, [])

    with patched(Limits(limit=max_ties, max_bits=max_bits)):
        processes = ranked.Processes(split.num_processes)
        found, *others = processes.run(run)
    assert others == [found] * (split.num_processes - 1)
    assert found.num_inside <= max_ties or found.low == found.high
    index = threshold(own, query).tree_index
    first, last = own.starts[leaves.start], own.starts[leaves.stop] - 1
    assert first <= found.low <= index <= found.high <= last
    ties = own.candidates(leaves)[own.keys[own.candidates(leaves)] == key]
    assert found.num_below == (ties < found.low).sum()
    assert found.num_inside == ((ties >= found.low) & (ties <= found.high)).sum()
    if num_tied <= max_ties:
        assert processes.messages == []
    else:
        assert len(processes.messages) <= (last - first).bit_length() // max_bits + 2
        assert {size for _, size in processes.messages} <= {1 << max_bits}


def test_masks_of_replicas_are_written_at_the_thresholds() -> None:
    """By the process that does not count them; the others have nothing to write."""
    scores = [torch.tensor([1.0, 2.0, 1.0]), torch.tensor([2.0, 1.0]), torch.tensor([1.0, 0.0])]
    whole = RankedLeaves(scores, [])
    key = int(torch.tensor(1.0).view(torch.int32))
    split = ranked.Shards(2, [None] * 3, [[0, 0, 0]] * 3, [0, 1, 1])
    queries = [Query(range(3), 3, 7)]
    written = [[False, True, False], [True, False], [True, False]]
    for process, replicas in ((0, [1, 2]), (1, [0])):
        part = ranked.local(whole, split, process)
        for before in (False, True):
            masks = [torch.full(x.shape, before) for x in scores]
            empty = write_replicas(part, queries, [KeyThreshold(key, 4)], masks)
            assert (empty.dtype, empty.numel()) == (torch.int64, 0)
            for leaf, mask in enumerate(masks):
                untouched = [before] * len(mask)
                assert mask.tolist() == (written[leaf] if leaf in replicas else untouched)
    assert write_replicas(whole, queries, [KeyThreshold(key, 4)], []).numel() == 0


# --- small leaves -------------------------------------------------------------------------------


@given(ranked.trees, limits(), st.none() | st.integers(0, 9), st.data())
def test_few_candidates_are_pruned_in_order(
    tree: fuzz.Tree, small: Limits, seed: int | None, data: st.DataObject
) -> None:
    """Of all leaves, which may have several dtypes and layouts, and of each."""
    own = ranked.rank(tree, seed)
    for leaves in ranked.scopes(len(own.leaves.scores)):
        if not (n := len(own.candidates(leaves))):
            continue
        query = Query(leaves, data.draw(st.integers(1, n)), n)
        masks = [mask.fill_(True) for mask in empty_masks(own.leaves.scores)]
        with patched(small):
            prune_directly(own.leaves, leaves, query.k, masks)
        assert flat(masks, leaves) == mask_at(own, query)
        assert all(mask.all() for leaf, mask in enumerate(masks) if leaf not in leaves)


@pytest.mark.parametrize("size", [7, 300])  # the keys are sent, and counted
@pytest.mark.parametrize("pruned", [False, True])
@pytest.mark.parametrize("absolute", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_few_candidates_of_every_dtype(
    dtype: torch.dtype, absolute: bool, pruned: bool, size: int
) -> None:
    """At every k, with ties, and the ends of the dtype's range."""
    generator = torch.Generator().manual_seed(size)
    scores = torch.randint(-4 if dtype.is_signed else 0, 5, (size,), generator=generator).to(dtype)
    if dtype.is_floating_point:
        ends = torch.tensor([torch.nan, -torch.inf, torch.inf, -0.0], dtype=dtype)
    else:
        ends = torch.tensor(fuzz.int_range(dtype), dtype=dtype)
    scores[1 : 1 + len(ends)] = ends
    prior = torch.arange(size) % 3 > 0
    own = ranked.of(RankedLeaves([scores], [prior] if pruned else [], absolute))
    n = len(own.candidates(range(1)))
    for k in {1, 2, 3, n // 2, n - 1, n}:
        masks = [torch.ones(size, dtype=torch.bool)]
        prune_directly(own.leaves, range(1), k, masks)
        assert masks[0].tolist() == mask_at(own, Query(range(1), k, n))


@pytest.mark.parametrize("first", DTYPES)
def test_few_candidates_of_two_dtypes(first: torch.dtype) -> None:
    """They are compared as float64, in which equal values tie."""
    values = torch.tensor([3.0, 1.0, 2.0, 0.0, 2.0, 1.0])
    for second in DTYPES:
        scores = [values.to(first), values.flip(0).to(second), torch.empty(0, dtype=first)]
        own = ranked.of(RankedLeaves(scores, []))
        for k in range(1, 13):
            masks = empty_masks(scores)
            prune_directly(own.leaves, range(3), k, masks)
            assert flat(masks, range(3)) == mask_at(own, Query(range(3), k, 12))
