"""The sample: what is drawn are candidates, and the guess is what their order statistics say."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gprune.select import sampling
from gprune.select.blocks import Query, RankedLeaves
from gprune.select.refine import OneProcess, Reduce
from gprune.select.sampling import Guess, bracket_places, draw_sample, guess_brackets
from tests.support import fuzz, ranked
from tests.support.limits import Limits, limits, patched


@given(ranked.trees, limits(), st.none() | st.integers(0, 9))
def test_what_is_drawn_are_candidates(tree: fuzz.Tree, small: Limits, seed: int | None) -> None:
    """About N^POWER of them if all entries are candidates, and at most one of a stratum twice."""
    own = ranked.rank(tree, seed)
    with patched(small):
        for scope in ranked.scopes(len(own.leaves.scores)):
            drawn = draw_sample(own.leaves, scope)
            assert drawn.dtype in (torch.int32, torch.int64)
            entries = own.starts[scope.stop] - own.starts[scope.start]
            size = math.ceil(entries**small.power) if entries else 0
            if seed is not None:  # uniform, whichever entries are candidates
                assert len(drawn) == size
                assert drawn.equal(drawn.sort().values)
                strata = torch.arange(size + 1).double() / max(1, size) * 2**53
                assert (drawn >= strata[:-1].long()).all()
                assert (drawn <= strata[1:].long()).all()
                continue
            keys, counts = np.unique(own.keys[own.candidates(scope)], return_counts=True)
            found, times = np.unique(drawn.numpy(), return_counts=True)
            known = dict(zip(keys.tolist(), counts.tolist(), strict=True))
            # strata are at least one entry wide, so an entry is in two of them at most
            for key, number in zip(found.tolist(), times.tolist(), strict=True):
                assert number <= 2 * known.get(key, 0)
            if not own.leaves.priors:
                assert len(drawn) == size


def test_every_stratum_gives_one_entry() -> None:
    leaves = RankedLeaves([torch.arange(500), torch.arange(500, 1000)], [])
    drawn = draw_sample(leaves, range(2))
    assert len(drawn) == 100
    assert (drawn.sort().values // 10).tolist() == list(range(100))
    [again] = [draw_sample(leaves, range(1, 2))]
    assert again.min() >= 500
    assert len(again) == math.ceil(500 ** (2 / 3))


def test_pruned_entries_of_joined_leaves_are_not_sampled() -> None:
    scores = [torch.arange(20), torch.arange(20, 50)]
    leaves = RankedLeaves(scores, [x % 2 == 0 for x in scores])
    assert leaves.groups(range(2)) == [[0, 1]]
    drawn = draw_sample(leaves, range(2))
    assert 0 < len(drawn) <= math.ceil(50 ** (2 / 3))
    assert not (drawn % 2).any()


def test_no_stride_hides_from_the_sample() -> None:
    """Every tenth entry is another; places in strata of ten entries are hashed."""
    scores = torch.zeros(1000)
    scores[::10] = 1
    share = draw_sample(RankedLeaves([scores], []), range(1)).count_nonzero() / 100
    assert 0.03 < share < 0.2


def test_the_sample_has_a_largest_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampling, "MAX_SAMPLED", 7)
    assert len(draw_sample(RankedLeaves([torch.arange(1000)], []), range(1))) == 7


@given(ranked.trees, limits(), st.data())
def test_processes_draw_their_shares(tree: fuzz.Tree, small: Limits, data: st.DataObject) -> None:
    own = ranked.rank(tree)
    split = data.draw(ranked.shards(own.leaves.scores))
    with patched(small):
        for scope in ranked.scopes(len(own.leaves.scores)):
            known = set(own.keys[own.candidates(scope)].tolist())
            total = 0
            for process in range(split.num_processes):
                part = ranked.local(own.leaves, split, process)
                drawn = draw_sample(part, scope)
                assert set(drawn.tolist()) <= known
                total += len(drawn)
            entries = own.starts[scope.stop] - own.starts[scope.start]
            if not own.leaves.priors and entries:
                size = entries**small.power
                assert size <= total <= math.ceil(size) + split.num_processes


# --- the ranks of a bracket -------------------------------------------------------------------


@given(st.integers(1, 10**6), st.integers(1, 10**9), st.data())
def test_bracket_places_are_around_the_quantile(
    size: int, candidates: int, data: st.DataObject
) -> None:
    k = data.draw(st.integers(1, candidates))
    low, high = bracket_places(size, Query(range(1), k, candidates), 1)
    middle = (k - 0.5) / candidates * size
    assert 0 <= low <= middle + 1
    assert middle <= high <= size + 1
    assert low < high
    wide = bracket_places(size, Query(range(1), k, candidates), 100)
    assert wide[0] <= low
    assert wide[1] >= high


def test_bracket_places_in_figures() -> None:
    """2.807 sigmas of sqrt(10,000 / 4) are 140, and two more; for 100 queries 4.056 sigmas."""
    assert bracket_places(10_000, Query(range(1), 500_000, 10**6), 1) == (4858, 5144)
    assert bracket_places(10_000, Query(range(1), 500_000, 10**6), 100) == (4796, 5206)
    assert bracket_places(0, Query(range(1), 1, 10), 1) == (0, 1)


def test_nearly_all_brackets_hold_the_threshold() -> None:
    """One in two hundred may miss; of 300 that is 1.5, and hardly ever more than 7."""
    misses = 0
    for seed in range(300):
        scores = torch.rand(3000, generator=torch.Generator().manual_seed(seed))
        k = 10 * seed + 1
        query = Query(range(1), k, 3000)
        [guess] = guess_brackets(RankedLeaves([scores], []), [query], OneProcess())
        key = int(scores.view(torch.int32).sort().values[k - 1])
        misses += not guess.low <= key <= guess.high
    assert misses <= 7


# --- guesses ----------------------------------------------------------------------------------


def check(guess: Guess, drawn: np.ndarray, query: Query, num: int, own: ranked.Ranked) -> None:
    """Compare a guess with what the sorted sample says."""
    lowest, highest = own.leaves.key_range
    rising, size = np.sort(drawn), len(drawn)
    if size == 0:
        assert guess == Guess(lowest, highest, 0, 0, query.num_candidates)
        return
    ranks = bracket_places(size, query, num)
    # the ends are known to a few samples, or to one key
    enough = max(size // sampling.COARSE, 4)
    assert lowest <= guess.low <= guess.high <= highest
    if ranks[0] < 1:
        assert guess.low == lowest
    else:
        end = rising[ranks[0] - 1]
        assert guess.low <= end
        assert guess.low == end or ((rising >= guess.low) & (rising < end)).sum() <= enough
    if ranks[1] > size:
        assert guess.high == highest
    else:
        end = rising[ranks[1] - 1]
        assert guess.high >= end
        assert guess.high == end or ((rising <= guess.high) & (rising > end)).sum() <= enough
    scale = query.num_candidates / size
    inside = ((rising >= guess.low) & (rising <= guess.high)).sum() * scale
    assert inside <= guess.at_low + guess.at_high + guess.between <= inside + 3
    if guess.at_low:
        assert guess.at_low == math.ceil((rising == guess.low).sum() * scale)
    if guess.at_high:
        assert guess.high != guess.low
        assert guess.at_high == math.ceil((rising == guess.high).sum() * scale)


@given(ranked.trees, limits(), st.data())
def test_guesses_are_what_the_sample_says(
    tree: fuzz.Tree, small: Limits, data: st.DataObject
) -> None:
    own = ranked.rank(tree)
    queries = []
    for scope in ranked.scopes(len(own.leaves.scores)):
        n = len(own.candidates(scope))
        ks = data.draw(st.lists(st.integers(1, n), max_size=2)) if n else []
        queries += [Query(scope, k, n) for k in ks]
    if not queries:
        return
    with patched(small):
        guesses = guess_brackets(own.leaves, queries, OneProcess())
        for guess, query in zip(guesses, queries, strict=True):
            drawn = draw_sample(own.leaves, query.leaves).numpy()
            check(guess, drawn, query, len(queries), own)


@given(ranked.trees, limits(), st.data())
def test_processes_guess_the_same(tree: fuzz.Tree, small: Limits, data: st.DataObject) -> None:
    own = ranked.rank(tree)
    scope = range(len(own.leaves.scores))
    n = len(own.candidates(scope))
    if not n:
        return
    split = data.draw(ranked.shards(own.leaves.scores))
    query = Query(scope, data.draw(st.integers(1, n)), n)
    parts = [ranked.local(own.leaves, split, i) for i in range(split.num_processes)]

    def guess(reduce: Reduce) -> list[Guess]:
        return guess_brackets(parts[reduce.process], [query], reduce)

    with patched(small):
        [first, *rest] = ranked.Processes(split.num_processes).run(guess)
        drawn = np.concatenate([draw_sample(part, scope).numpy() for part in parts])
        check(first[0], drawn, query, 1, own)
    assert all(other == first for other in rest)


def test_a_key_that_many_share_is_seen() -> None:
    """Half are zero. Above all the threshold is among them; at their end, it may be below."""
    scores = torch.rand(8000, generator=torch.Generator().manual_seed(0)) + 1
    scores[torch.arange(8000) % 10 > 4] = 0
    leaves = RankedLeaves([scores], [])
    [guess] = guess_brackets(leaves, [Query(range(1), 2000, 8000)], OneProcess())
    assert guess.low == guess.high == 0
    assert 3600 < guess.at_low < 4400
    assert guess.at_high == guess.between == 0
    [guess] = guess_brackets(leaves, [Query(range(1), 4000, 8000)], OneProcess())
    assert guess.low == 0 < guess.high
    assert 3600 < guess.at_low < 4400
    [guess] = guess_brackets(
        RankedLeaves([-scores], []), [Query(range(1), 4000, 8000)], OneProcess()
    )
    assert guess.low < guess.high == 0
    assert 3600 < guess.at_high < 4400
