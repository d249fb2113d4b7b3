"""The search: thresholds against numpy's stable sort, and what it knows on the way there."""

import functools
import math
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gprune.select import partition, search
from gprune.select.blocks import Query, RankedLeaves
from gprune.select.finish import KeyThreshold
from gprune.select.partition import empty_masks
from gprune.select.refine import Interval, OneProcess, Reduce
from gprune.select.sampling import Guess, draw_sample
from gprune.select.search import (
    Search,
    batches,
    choose_bracket,
    count_candidates,
    find_thresholds,
    select_into,
    write_at,
)
from tests.support import fuzz, ranked
from tests.support.limits import Limits, limits, patched
from tests.support.queries import threshold

more = settings(max_examples=(2 if settings().max_examples < 100 else 4) * settings().max_examples)


@st.composite
def asked(draw: st.DrawFn, own: ranked.Ranked, kind: str) -> list[Query]:
    """Queries of all leaves, several of them; of single leaves, one of each; or of both."""
    everything, *single = ranked.scopes(len(own.leaves.scores))
    scopes = {"all": [everything], "single": single, "both": [everything, *single]}[kind]
    queries = []
    for scope in scopes:
        n = len(own.candidates(scope))
        most = {"all": 6, "single": 1, "both": 3}[kind]
        ks = draw(st.lists(st.integers(1, n), max_size=most, unique=True)) if n else []
        queries += [Query(scope, k, n) for k in ks]
    return queries


def masks_at(own: ranked.Ranked, query: Query) -> np.ndarray:
    """The mask of the entries of a query's leaves."""
    kept = own.prior.copy()
    kept[own.order(query.leaves)[: query.k]] = False
    return kept[own.span(query.leaves)]


@pytest.mark.slow
@more
@given(
    ranked.trees,
    limits(),
    st.sampled_from(["all", "single", "both"]),
    st.none() | st.integers(0, 9),
    st.data(),
)
def test_thresholds(
    tree: fuzz.Tree, small: Limits, kind: str, seed: int | None, data: st.DataObject
) -> None:
    """Of any queries in one search."""
    own = ranked.rank(tree, seed)
    queries = data.draw(asked(own, kind))
    if queries:
        with patched(small), watched(own):
            found = Search(own.leaves, queries, OneProcess()).run()
        assert found == [threshold(own, query) for query in queries]


@pytest.mark.slow
@more
@given(ranked.trees, limits(), st.booleans(), st.none() | st.integers(0, 9), st.data())
def test_thresholds_with_masks(
    tree: fuzz.Tree, small: Limits, alone: bool, seed: int | None, data: st.DataObject
) -> None:
    """One query of all leaves, or queries of some leaves, each of one."""
    own = ranked.rank(tree, seed)
    queries = data.draw(asked(own, "single" if alone else "all"))[: None if alone else 1]
    if not queries:
        return
    masks = empty_masks(own.leaves.scores)
    with patched(small), watched(own):
        found = Search(own.leaves, queries, OneProcess(), masks).run()
    for query, got in zip(queries, found, strict=True):
        assert got == threshold(own, query) or (got is None and small.on_accelerator)
    for query in queries:
        mask = torch.cat([masks[leaf].view(-1) for leaf in query.leaves])
        assert mask.tolist() == masks_at(own, query).tolist()


@pytest.mark.slow
@settings(max_examples=2 * settings().max_examples)
@given(ranked.trees, limits(), st.sampled_from(["all", "single", "both"]), st.data())
def test_several_processes_find_the_same(
    tree: fuzz.Tree, small: Limits, kind: str, data: st.DataObject
) -> None:
    """Each has a slice of every leaf, or the whole leaf, which one of them counts."""
    own = ranked.rank(tree)
    queries = data.draw(asked(own, kind))
    split = data.draw(ranked.shards(own.leaves.scores))
    if not queries:
        return
    # masks can be written if no two queries share a leaf
    writes = kind == "single" or (kind == "all" and len(queries) == 1)
    parts = [ranked.local(own.leaves, split, i) for i in range(split.num_processes)]

    def run(reduce: Reduce) -> tuple[list[KeyThreshold], list[torch.Tensor]]:
        part = parts[reduce.process]
        masks = empty_masks(part.scores)
        return Search(part, queries, reduce, masks if writes else None).run(), masks

    with patched(small):
        results = ranked.Processes(split.num_processes).run(run)
    expected = [threshold(own, query) for query in queries]
    assert [found for found, _ in results] == [expected] * split.num_processes
    if not writes:
        return
    for query in queries:
        check_shards(own, split, query, [masks for _, masks in results])


# --- what the search knows ----------------------------------------------------------------------


@contextmanager
def watched(own: ranked.Ranked) -> Iterator[Counter[str]]:
    """Compare every interval with the truth, and count the passes over all weights."""
    calls: Counter[str] = Counter()

    def check(searching: Search) -> None:
        for query, interval in zip(searching._queries, searching._intervals, strict=True):
            rising = own.keys[own.order(query.leaves)]
            low, high, num_below, num_inside = interval
            assert num_below == (rising < low).sum()
            assert num_inside == ((rising >= low) & (rising <= min(high, 2**63 - 1))).sum()
            assert num_below < query.k <= num_below + num_inside

    def checking(name: str) -> Any:
        original = getattr(Search, name)

        @functools.wraps(original)
        def call(self: Search, *args: Any) -> Any:
            check(self)
            result = original(self, *args)
            check(self)
            return result

        return mock.patch.object(Search, name, call)

    def counting(target: Any, name: str) -> Any:
        original = getattr(target, name)

        @functools.wraps(original)
        def call(*args: Any) -> Any:
            calls[name] += 1
            assert calls.total() < 1000, "the search has no end"
            return original(*args)

        return mock.patch.object(target, name, call)

    with (
        checking("_settle"),
        checking("_count_in_bins"),
        counting(partition.PartitionPass, "run"),
        counting(search, "count_keys"),
    ):
        yield calls


def most_passes(own: RankedLeaves, small: Limits, can_overflow: bool = False) -> int:
    """The bound in the docstring of search.py.

    Queries of different leaves may have been narrowed for long when they first overflow together.
    One that had few enough candidates before may then have all its bits to find.
    """
    lowest, highest = own.key_range
    digits = math.ceil((highest - lowest).bit_length() / small.max_pass_bits)
    return small.guesses + digits + 3 + (digits + 1) * can_overflow


@st.composite
def dense(draw: st.DrawFn) -> ranked.Ranked:
    """The smallest float16 numbers, between which there are no others."""
    bits = draw(st.lists(st.integers(0, 5), min_size=10, max_size=40))
    scores = torch.tensor(bits, dtype=torch.int16).view(torch.float16)
    return ranked.of(RankedLeaves([scores], []))


@more
@given(
    ranked.trees.map(ranked.rank) | dense(),
    limits(),
    st.sampled_from(["all", "single", "both"]),
    st.data(),
)
def test_what_the_search_knows_is_true_and_its_passes_are_bounded(
    own: ranked.Ranked, small: Limits, kind: str, data: st.DataObject
) -> None:
    """Else it would look in the wrong place: the masks would still be right, but late."""
    queries = data.draw(asked(own, kind))
    small = small._replace(max_counts=2**20)  # too few would make the bins wider
    if queries:
        with patched(small), watched(own) as calls:
            Search(own.leaves, queries, OneProcess()).run()
        can_overflow = small.limit > 0 and len({query.leaves for query in queries}) > 1
        assert calls.total() <= most_passes(own.leaves, small, can_overflow), calls


HIDDEN = 2000


def hidden(sampled: float, rest: torch.Tensor) -> RankedLeaves:
    """Scores of which the sample sees nothing but one value; its places are always the same."""
    seen = draw_sample(RankedLeaves([torch.arange(HIDDEN)], []), range(1))
    scores = rest.clone()
    scores[seen] = sampled
    return RankedLeaves([scores], [])


@pytest.mark.slow
@pytest.mark.parametrize("sampled", [-math.inf, -1.0, 0.0, 2.0, math.nan])
@pytest.mark.parametrize(("limit", "max_pass_bits"), [(0, 4), (5, 1), (100, 15)])
@pytest.mark.parametrize("guesses", [0, 1, 3])
def test_a_sample_that_sees_nothing_costs_a_few_passes(
    sampled: float, limit: int, max_pass_bits: int, guesses: int
) -> None:
    rest = torch.exp2(torch.linspace(-149, 127, HIDDEN))
    own = ranked.of(hidden(sampled, rest))
    small = Limits(256, limit, 10, guesses=guesses, max_pass_bits=max_pass_bits)
    for ks in ([1], [HIDDEN], [HIDDEN // 2], [1, 7, 400, 1600, HIDDEN]):
        queries = [Query(range(1), k, HIDDEN) for k in ks]
        with patched(small), watched(own) as calls:
            found = Search(own.leaves, queries, OneProcess()).run()
        assert found == [threshold(own, query) for query in queries]
        assert calls.total() <= most_passes(own.leaves, small), calls


@st.composite
def misleading(draw: st.DrawFn, small: Limits) -> ranked.Ranked:
    """Leaves whose samples are close to each other, or far apart, and the other scores are not."""
    rng, scores = np.random.default_rng(draw(st.integers(0, 2**32 - 1))), []
    kinds = draw(st.sampled_from([["close", "normal"], ["close", "apart", "equal", "normal"]]))
    for size in draw(st.lists(st.integers(30, 300), min_size=1, max_size=4)):
        leaf = torch.from_numpy(rng.standard_normal(size)).float()
        with patched(small):
            seen = draw_sample(RankedLeaves([torch.arange(size)], []), range(1))
        kind = draw(st.sampled_from(kinds))
        if kind == "close":
            middle, width = (
                draw(st.sampled_from([-5, -1, 0, 1, 5])),
                draw(st.sampled_from([0, 1e-3])),
            )
            leaf[seen] = middle + width * torch.from_numpy(rng.random(len(seen))).float()
        elif kind == "apart":
            leaf = 0.5 + leaf / 10**5
            leaf[seen.unique()] = torch.linspace(0, 1, len(seen.unique()))
        elif kind == "equal":
            leaf = torch.ones(size)
        scores.append(leaf)
    return ranked.of(RankedLeaves(scores, []))


guiding = st.builds(
    lambda small, limit: small._replace(limit=limit, few=0, guesses=3, power=min(small.power, 0.7)),
    limits(),
    st.sampled_from([20, 100, 1000]),
)


@given(guiding, st.sampled_from(["all", "single", "both"]), st.data())
def test_samples_that_mislead(small: Limits, kind: str, data: st.DataObject) -> None:
    """Some brackets miss their thresholds, by much, and others of the same pass do not."""
    own = data.draw(misleading(small))
    queries = data.draw(asked(own, kind))
    if not queries:
        return
    masks = empty_masks(own.leaves.scores) if kind == "single" else None
    with patched(small), watched(own):
        found = Search(own.leaves, queries, OneProcess(), masks).run()
    for query, got in zip(queries, found, strict=True):
        assert got == threshold(own, query) or (got is None and small.on_accelerator)
    for query in queries if masks else []:
        [leaf] = query.leaves
        assert (masks or [])[leaf].view(-1).tolist() == masks_at(own, query).tolist()


@pytest.mark.slow
def test_nearly_always_one_pass_is_made() -> None:
    """One search in two hundred misses, and of twenty hardly more than one."""
    passes = Counter[str]()
    for seed in range(20, 30):
        scores = torch.randn(2**17 + 9, generator=torch.Generator().manual_seed(seed))
        own = ranked.of(RankedLeaves(list(scores.split(2**17)), []))
        for k in (2**14, 2**16):
            with watched(own) as calls:
                Search(own.leaves, [Query(range(2), k, 2**17 + 9)], OneProcess()).run()
            passes += calls
    assert passes.total() <= 21


@pytest.mark.parametrize("guesses", [0, 1, 2])
def test_the_sample_guides_no_more_than_the_first_passes(guesses: int) -> None:
    """Whatever it says. Bins then find the threshold in as many passes as there are digits."""
    own = ranked.of(hidden(0.0, torch.rand(HIDDEN) + 1))
    query = Query(range(1), 1500, HIDDEN)
    with (
        patched(Limits(256, 100, 10, guesses=guesses, max_pass_bits=4)),
        mock.patch.object(search, "choose_bracket", wraps=choose_bracket) as choose,
    ):
        assert Search(own.leaves, [query], OneProcess()).run() == [threshold(own, query)]
    given = [call.args[1] is not None for call in choose.call_args_list]
    assert given == [True] * guesses + [False] * (len(given) - guesses)
    assert len(given) > 3


def test_queries_that_share_their_leaves_are_not_sampled() -> None:
    """Bins narrow them all. A query of leaves of its own has a guess, if it has many candidates."""
    own = RankedLeaves([torch.rand(300), torch.rand(200)], [])
    both, one, other = Query(range(2), 7, 500), Query(range(1), 9, 300), Query(range(1, 2), 9, 200)
    with patched(Limits(few=250)):
        for queries, guessed in (
            ([both], {0}),
            ([both, both._replace(k=9)], set()),
            ([both, one, both._replace(k=9)], {1}),
            ([other], set()),
            ([other, one], {1}),
        ):
            assert Search(own, queries, OneProcess())._guess().keys() == guessed


@pytest.mark.parametrize("value", [0.0, 1.0, math.nan, math.inf])
def test_equal_scores_take_one_pass(value: float) -> None:
    own = ranked.of(RankedLeaves([torch.full((3000,), value)], []))
    with patched(Limits(256, 20, 10)), watched(own) as calls:
        Search(own.leaves, [Query(range(1), 1234, 3000)], OneProcess()).run()
    assert calls == {"run": 1}


# --- passes that overflow, and other ways to no end ---------------------------------------------


def test_queries_of_one_search_may_overflow_together() -> None:
    """Each alone has no more candidates than may be collected."""
    own = ranked.of(RankedLeaves([torch.randn(1000), torch.randn(1000)], []))
    queries = [Query(range(i, i + 1), 500, 1000) for i in range(2)]
    with patched(Limits(limit=1000, few=0, guesses=0)), watched(own) as calls:
        found = Search(own.leaves, queries, OneProcess()).run()
    assert found == [threshold(own, query) for query in queries]
    assert calls.total() < 5


def test_one_process_may_hold_all_candidates() -> None:
    whole = RankedLeaves([torch.randn(150, 10)], [])
    own = ranked.of(whole)
    split = ranked.Shards(2, [0], [[0, 149, 150]], [0])
    query = Query(range(1), 700, 1500)

    def run(reduce: Reduce) -> list[KeyThreshold]:
        return Search(ranked.local(whole, split, reduce.process), [query], reduce).run()

    processes = ranked.Processes(2)
    with patched(Limits(limit=1000, few=2000)):
        assert processes.run(run) == [[threshold(own, query)]] * 2
    assert len(processes.messages) < 12


def test_brackets_far_apart_are_narrowed_in_bins_of_their_own() -> None:
    own = ranked.of(RankedLeaves([torch.randn(3000)], []))
    queries = [Query(range(1), k, 3000) for k in (300, 2700)]
    small = Limits(limit=0, few=2**62)
    with patched(small), watched(own) as calls:
        found = Search(own.leaves, queries, OneProcess()).run()
    assert found == [threshold(own, query) for query in queries]
    assert calls.total() <= most_passes(own.leaves, small)


@contextmanager
def finished() -> Iterator[list[tuple[str, list[int]]]]:
    """Note which queries each pass has settled, and whether their candidates were collected."""
    calls: list[tuple[str, list[int]]] = []

    def noting(name: str) -> Any:
        original = getattr(search, name)

        def call(own: Any, reduce: Any, made: Any, numbers: list[int], *args: Any) -> Any:
            calls.append((name, [made.queries[number].leaves.start for number in numbers]))
            return original(own, reduce, made, numbers, *args)

        return mock.patch.object(search, name, call)

    with noting("finish_collected"), noting("finish_counted"):
        yield calls


@pytest.mark.parametrize("writes", [False, True])
def test_some_queries_may_be_left_for_a_later_pass(writes: bool) -> None:
    """The bracket of the second leaf misses. The masks of the others are not written again."""
    generator = torch.Generator().manual_seed(0)
    [missed] = hidden(0.0, torch.rand(HIDDEN, generator=generator) + 1).scores
    scores = [torch.rand(HIDDEN, generator=generator), missed, torch.zeros(50)]
    own = ranked.of(RankedLeaves(scores, []))
    queries = [Query(range(i, i + 1), k, len(scores[i])) for i, k in enumerate((700, 1500, 20))]
    masks = empty_masks(scores) if writes else None
    with patched(Limits(256, 1000, 100)), finished() as calls, watched(own):
        found = Search(own.leaves, queries, OneProcess(), masks).run()
    assert found == [threshold(own, query) for query in queries]
    assert calls[0] == ("finish_collected", [0, 2])
    assert [numbers for _, numbers in calls[1:]] == [[1]]
    for leaf, mask in enumerate(masks or []):
        assert mask.view(-1).tolist() == masks_at(own, queries[leaf]).tolist()


@pytest.mark.parametrize("writes", [False, True])
def test_a_bracket_of_one_key_is_settled_where_another_overflows(writes: bool) -> None:
    """The sample of the second leaf sees even steps, but the other scores are close together."""
    rest = 0.5 + torch.rand(HIDDEN, generator=torch.Generator().manual_seed(0)) / 10**4
    seen = torch.unique(draw_sample(RankedLeaves([torch.arange(HIDDEN)], []), range(1)))
    rest[seen] = torch.linspace(0, 1, len(seen))
    scores = [torch.ones(HIDDEN), rest]
    own = ranked.of(RankedLeaves(scores, []))
    queries = [Query(range(i, i + 1), 1000, HIDDEN) for i in range(2)]
    masks = empty_masks(scores) if writes else None
    with patched(Limits(256, 900, 100)), finished() as calls, watched(own) as passes:
        found = Search(own.leaves, queries, OneProcess(), masks).run()
    assert found == [threshold(own, query) for query in queries]
    assert calls == [("finish_counted", [0]), ("finish_collected", [1])]
    assert passes["run"] > 1
    for leaf, mask in enumerate(masks or []):
        assert mask.view(-1).tolist() == masks_at(own, queries[leaf]).tolist()


@pytest.mark.parametrize("pruned", [False, True])
@pytest.mark.parametrize(
    ("dtype", "spread"),
    [
        (torch.float16, 300),
        (torch.bfloat16, 90),
        (torch.float32, 3),
        (torch.float32, 2**20),
        (torch.float64, 2**40),
        (torch.int8, 128),
        (torch.int64, 5),
        (torch.int64, 2**53),
    ],
)
@pytest.mark.parametrize("limit", [0, 400])
def test_many_queries_of_the_same_leaves(
    dtype: torch.dtype, spread: int, limit: int, pruned: bool
) -> None:
    """Bins narrow each of them, and then one pass collects what is in all their brackets."""
    generator = torch.Generator().manual_seed(0)
    sizes = (1500, 2, 300)
    scores = [torch.randint(-spread, spread, (n,), generator=generator) for n in sizes]
    scores[0][::5] = spread // 2  # many ties, whose bracket is one key
    scores[0][1], scores[2][7] = -spread, spread - 1
    scores = [x.to(dtype) for x in scores]
    priors = [torch.rand(x.shape, generator=generator) < 0.8 for x in scores] if pruned else []
    own = ranked.of(RankedLeaves(scores, priors))
    n = len(own.candidates(range(3)))
    ks = sorted({1, 2, n - 1, n, *range(5, n, n // 15)})
    queries = [Query(range(3), k, n) for k in ks]
    n = len(own.candidates(range(1)))
    queries.append(Query(range(1), n // 2, n))
    with patched(Limits(256, limit, max_pass_bits=6)), watched(own) as calls:
        found = Search(own.leaves, queries, OneProcess()).run()
    assert found == [threshold(own, query) for query in queries]
    assert calls["count_keys"] > 0
    assert calls.total() <= most_passes(own.leaves, Limits(max_pass_bits=6))


# --- steps --------------------------------------------------------------------------------------


def test_what_is_known_after_a_bracket_that_missed() -> None:
    """Of 100 candidates, 10 lie below the key 0 and 60 at keys from 0 to 50, of which one is k."""
    leaves = RankedLeaves([torch.empty(0)], [])

    def settle(k: int, is_collected: bool = True) -> tuple[Interval, list[int]]:
        searching = Search(leaves, [Query(range(1), k, 100)], OneProcess())
        searching._intervals = [Interval(0, 50, 10, 60)]
        made = mock.Mock(brackets=[(20, 29)])
        settled = searching._settle(made, [0], [70, 15, int(not is_collected)])
        return searching._intervals[0], settled

    assert settle(30) == ((0, 19, 10, 20), [])
    assert settle(31) == ((20, 29, 30, 15), [0])
    assert settle(45) == ((20, 29, 30, 15), [0])
    assert settle(46) == ((30, 50, 45, 25), [])
    assert settle(31, is_collected=False) == ((20, 29, 30, 15), [])


def test_a_bracket_of_one_key_needs_no_collecting() -> None:
    searching = Search(RankedLeaves([torch.empty(0)], []), [Query(range(1), 5, 9)], OneProcess())
    made = mock.Mock(brackets=[(7, 7)])
    assert searching._settle(made, [0], [5, 5, 1]) == [0]
    assert searching._intervals == [Interval(7, 7, 4, 5)]


KNOWN = Interval(0, 100, 50, 1000)


@pytest.mark.parametrize(
    ("guess", "share", "expected"),
    [
        (None, 10, (0, 100, 1000)),
        (Guess(101, 120, 1, 1, 1), 10, (0, 100, 1000)),  # above all that is known
        (Guess(-9, -1, 1, 1, 1), 10, (0, 100, 1000)),
        (Guess(40, 60, 2, 3, 4), 10, (40, 60, 9)),
        (Guess(-5, 60, 200, 3, 4), 10, (0, 60, 7)),  # its lower end is out of the question
        (Guess(40, 120, 2, 300, 4), 10, (40, 100, 6)),
        (Guess(0, 100, 2, 2, 4), 10, (0, 100, 1000)),  # what is known is better than a guess
        (Guess(-1, 101, 2, 3, 4), 2000, (0, 100, 1000)),
        (Guess(40, 60, 9, 1, 4), 10, (40, 40, 14)),  # one key fills the bracket
        (Guess(40, 60, 1, 9, 4), 10, (60, 60, 14)),
        (Guess(40, 60, 9, 9, 4), 10, (40, 40, 22)),
        (Guess(40, 60, 3, 2, 40), 10, (40, 40, 45)),
        (Guess(40, 60, 2, 2, 40), 10, (40, 60, 44)),  # no key is heavy
    ],
)
def test_choose_bracket(guess: Guess | None, share: int, expected: tuple[int, int, int]) -> None:
    assert choose_bracket(KNOWN, guess, share) == expected


def test_batches_hold_what_may_be_collected() -> None:
    def sizes(counts: list[int], most: int = 100, processes: int = 1) -> list[list[int]]:
        queries = [Query(range(1), 1, n) for n in counts]
        reduce = mock.Mock(num_processes=processes)
        found = batches(queries, most, search.FEW, reduce)
        return [[query.num_candidates for query in run] for run in found]

    with patched(Limits(limit=100, few=50)):
        assert sizes([]) == []
        assert sizes([50, 50, 50, 10]) == [[50, 50], [50, 10]]
        assert sizes([50, 50, 50, 50, 1], processes=2) == [[50, 50, 50, 50], [1]]
        assert sizes([10**6, 10**6]) == [[10**6], [10**6]]  # 51,200 each are expected
    assert sizes([10**6] * 42, search.BATCH) == [[10**6] * 40, [10**6] * 2]


# --- amounts --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("amounts", "is_sparsity", "expected"),
    [
        ([0, 2, 5], False, ([-torch.inf, 1.0, 4.0], [-1, 1, 3])),
        ([5, 0, 2, 2], False, ([4.0, -torch.inf, 1.0, 1.0], [3, -1, 1, 1])),
        ([0.4, 1.0], True, ([1.0, 4.0], [1, 3])),
        ([], False, ([], [])),
    ],
)
def test_find_thresholds(amounts: list[float], is_sparsity: bool, expected: Any) -> None:
    leaves = RankedLeaves([torch.tensor([0.0, 1.0, 3.0]), torch.tensor([4.0, 2.0])], [])
    dtype = torch.float64 if is_sparsity else torch.int64
    value, index = find_thresholds(
        leaves, torch.tensor(amounts, dtype=dtype), is_sparsity, OneProcess()
    )
    assert (value.tolist(), index.tolist()) == expected
    assert (value.dtype, index.dtype) == (torch.float64, torch.int64)


def test_find_thresholds_keeps_the_shape_of_the_amounts() -> None:
    leaves = RankedLeaves([torch.arange(6.0)], [])
    for shape in ((), (1,), (2, 3)):
        amounts = torch.arange(6)[: torch.Size(shape).numel()].view(shape)
        value, index = find_thresholds(leaves, amounts, False, OneProcess())
        assert value.shape == index.shape == shape


@pytest.mark.parametrize("counted", [True, False])
def test_masks_from_a_threshold_are_written_also_for_replicas(counted: bool) -> None:
    """A leaf that another process counts has its own positions."""
    scores = [torch.tensor([1.0, 2.0, 1.0]), torch.tensor([1.0, 0.0])]
    whole = RankedLeaves(scores, [])
    split = ranked.Shards(2, [None, 0], [[0, 0, 0], [0, 1, 2]], [0 if counted else 1, 0])
    own = ranked.local(whole, split, 0)
    masks = [torch.empty(3, dtype=torch.bool), torch.empty(1, dtype=torch.bool)]
    for index, expected in ((1, [0, 1, 1, 1]), (2, [0, 1, 0, 1]), (3, [0, 1, 0, 0])):
        value = torch.tensor(1.0, dtype=torch.float64)
        write_at(masks, own, value, torch.tensor(index), OneProcess())
        assert torch.cat(masks).int().tolist() == expected


def test_candidates_of_several_processes_are_counted_once() -> None:
    """A replicated leaf is counted by one of them."""
    priors = [torch.tensor([True, False, True]), torch.tensor([True, True])]
    whole = RankedLeaves([torch.zeros(3), torch.zeros(2)], priors)
    split = ranked.Shards(2, [None, 0], [[0, 0, 0], [0, 1, 2]], [1, 0])
    scopes = ranked.scopes(2)
    processes = ranked.Processes(2)
    for leaves in (whole, RankedLeaves(whole.scores, [])):

        def run(reduce: Any, leaves: RankedLeaves = leaves) -> list[int]:
            part = ranked.local(leaves, split, reduce.process)
            return count_candidates(part, scopes, reduce)

        expected = [4, 2, 2] if leaves.priors else [5, 3, 2]
        assert processes.run(run) == [expected, expected]
    assert processes.messages == [("counting the candidates", 3)]


@pytest.mark.parametrize("alone", [True, False])
def test_selections_of_several_processes(alone: bool) -> None:
    """Counts, thresholds and masks, with priors and a replicated leaf."""
    generator = torch.Generator().manual_seed(0)
    scores = [torch.randn(6, 5, generator=generator), torch.randn(7, generator=generator)]
    priors = [torch.rand(6, 5, generator=generator) < 0.7, torch.arange(7) > 2]
    split = ranked.Shards(2, [1, None], [[0, 2, 5], [0, 0, 0]], [1, 1])
    whole = RankedLeaves(scores, priors)
    amounts = [torch.tensor(0.5, dtype=torch.float64)] * (2 if alone else 1)
    expected = empty_masks(scores)
    select_into(expected, whole, amounts, True, OneProcess())
    found = find_thresholds(whole, amounts[0], True, OneProcess())

    def run(reduce: Any) -> Any:
        part = ranked.local(whole, split, reduce.process)
        masks = empty_masks(part.scores)
        select_into(masks, part, amounts, True, reduce)
        return masks, find_thresholds(part, amounts[0], True, reduce)

    with patched(Limits(block=8, limit=9, few=3, power=0.5)):
        results = ranked.Processes(2).run(run)
    for process, (masks, got) in enumerate(results):
        first, last = split.ends[0][process : process + 2]
        assert masks[0].equal(expected[0][:, first:last])
        assert masks[1].equal(expected[1])
        assert got == found


@given(ranked.trees, limits(), st.booleans(), st.none() | st.integers(0, 9), st.data())
def test_masks_of_any_amounts(
    tree: fuzz.Tree, small: Limits, alone: bool, seed: int | None, data: st.DataObject
) -> None:
    """Of all leaves, or of each: leaves that lose nothing, small leaves, and others."""
    own = ranked.rank(tree, seed)
    scopes = ranked.scopes(len(own.leaves.scores))
    scopes = scopes[1:] if alone else scopes[:1]
    if alone and len(scopes) == 1:
        return
    ks = [data.draw(st.integers(0, len(own.candidates(leaves)))) for leaves in scopes]
    masks = empty_masks(own.leaves.scores)
    with patched(small):
        select_into(masks, own.leaves, [torch.tensor(k) for k in ks], False, OneProcess())
    for leaves, k in zip(scopes, ks, strict=True):
        got = torch.cat([masks[leaf].view(-1) for leaf in leaves]) if leaves else torch.empty(0)
        assert got.tolist() == masks_at(own, Query(leaves, k, 0)).tolist()


@given(ranked.trees, limits(), st.booleans(), st.data())
def test_several_processes_write_the_same_masks(
    tree: fuzz.Tree, small: Limits, alone: bool, data: st.DataObject
) -> None:
    """Of any amounts, in batches of as many queries as they may collect."""
    own = ranked.rank(tree)
    scopes = ranked.scopes(len(own.leaves.scores))
    scopes = scopes[1:] if alone and len(scopes) > 2 else scopes[:1]
    ks = [data.draw(st.integers(0, len(own.candidates(leaves)))) for leaves in scopes]
    split = data.draw(ranked.shards(own.leaves.scores))
    parts = [ranked.local(own.leaves, split, i) for i in range(split.num_processes)]

    def run(reduce: Reduce) -> list[torch.Tensor]:
        masks = empty_masks(parts[reduce.process].scores)
        select_into(masks, parts[reduce.process], [torch.tensor(k) for k in ks], False, reduce)
        return masks

    with patched(small):
        results = ranked.Processes(split.num_processes).run(run)
    for leaves, k in zip(scopes, ks, strict=True):
        check_shards(own, split, Query(leaves, k, 0), results)


def check_shards(
    own: ranked.Ranked, split: ranked.Shards, query: Query, results: list[list[torch.Tensor]]
) -> None:
    """Compare the masks of every process with its parts of the masks of whole leaves."""
    shapes = [x.shape for x in own.leaves.scores]
    flat = torch.from_numpy(masks_at(own, query))
    whole = flat.split([shapes[leaf].numel() for leaf in query.leaves])
    for leaf, kept in zip(query.leaves, whole, strict=True):
        dim = split.dims[leaf]
        for process, masks in enumerate(results):
            wanted = kept.view(shapes[leaf])
            if dim is not None:
                first, last = split.ends[leaf][process : process + 2]
                wanted = wanted.narrow(dim, first, last - first)
            assert masks[leaf].equal(wanted)


def test_small_leaves_take_no_search() -> None:
    """Their masks are made at once, but not where several processes must agree."""
    scores = [torch.arange(9.0), torch.arange(10.0), torch.arange(11.0)]
    amounts = [torch.tensor(4)] * 3
    searched: list[list[Query]] = []

    class Noting(Search):
        def __init__(self, own: Any, queries: Any, *args: Any) -> None:
            searched.append([*queries])
            super().__init__(own, queries, *args)

    def select(reduce: Any, some: list[torch.Tensor]) -> list[list[bool]]:
        masks = empty_masks(scores)
        select_into(masks, RankedLeaves(scores, []), some, False, reduce)
        return [mask.tolist() for mask in masks]

    with patched(Limits(direct=10)), mock.patch.object(search, "Search", Noting):
        expected = [[i >= 4 for i in range(n)] for n in (9, 10, 11)]
        assert select(OneProcess(), amounts) == expected
        assert searched == [[Query(range(2, 3), 4, 11)]]
        select(OneProcess(), amounts[:1])
        assert searched[1:] == [[Query(range(3), 4, 30)]]
        searched.clear()
        ranked.Processes(2).run(lambda reduce: select(reduce, amounts))
        assert [len(queries) for queries in searched] == [3, 3]


# --- messages -----------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [20_000, 200_000])
def test_messages_of_normal_weights_are_few_and_small(size: int) -> None:
    scores = torch.randn(size, generator=torch.Generator().manual_seed(0))
    whole = RankedLeaves([scores], [])
    split = ranked.Shards(2, [0], [[0, size // 2, size]], [0])
    query = Query(range(1), size // 2, size)

    def run(reduce: Reduce) -> list[KeyThreshold]:
        return Search(ranked.local(whole, split, reduce.process), [query], reduce).run()

    processes = ranked.Processes(2)
    first, second = processes.run(run)
    assert first == second == [threshold(ranked.of(whole), query)]
    assert len(processes.messages) <= 8
    assert sum(8 * size for _, size in processes.messages) <= 2**18
