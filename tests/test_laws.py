"""The laws of selection, each a property against tests/support/reference.py."""

import itertools
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple
from unittest import mock

import optree
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import gprune as gp
from gprune.select import digits, keys, ranking, sample, search, several
from gprune.testing import SCORE_DTYPES, amounts, param_trees, tensors
from tests.support import reference
from tests.support.assertions import (
    assert_are_masks,
    assert_cut,
    assert_entries,
    assert_equal_masks,
    assert_masks,
    assert_same_structure,
    assert_subset,
)
from tests.support.cases import Case, cases, layerwise_cases, map_tensors

# the law that everything rests on: 2,000 examples in the ci profile, 50,000 in nightly
exactness = settings(max_examples=20 * settings().max_examples)


METHODS: list[dict[str, Any]] = [
    {"pruning_method": gp.lowest_unstructured},
    {"pruning_method": gp.l1_unstructured},
    {"pruning_method": gp.random_unstructured, "seed": 7},
]


class Sizes(NamedTuple):
    """The constants of the search, so small that little trees take every path of large ones."""

    block: int
    few: int
    limit: int
    guesses: int
    power: float


sizes = st.builds(
    Sizes,
    st.integers(1, 80),
    st.integers(0, 9),
    st.integers(0, 9),
    st.integers(0, 3),
    st.sampled_from([0.3, 0.7, 1.0]),
)


@contextmanager
def streaming(small: Sizes) -> Iterator[None]:
    """Search in small blocks from a small sample, collect little, and give up guessing early."""
    with (
        mock.patch.object(ranking, "BLOCK", small.block),
        mock.patch.multiple(search, LIMIT=small.limit, FEW=small.few, GUESSES=small.guesses),
        mock.patch.object(sample, "POWER", small.power),
        mock.patch.multiple(digits, DIGIT=8, BINS=2**8),
    ):
        yield


# --- polarity -------------------------------------------------------------------------------


@given(cases())
def test_polarity(case: Case) -> None:
    kept = gp.keep_all(case.params)
    assert_masks(kept, reference.priors(case.params, None), case.params)
    assert_are_masks(case.masks_for(gp.global_unstructured), case.params)
    everything = gp.global_unstructured(case.params, case.scores, amount=1.0)
    assert not any(any(mask) for mask in reference.lists(everything) if mask is not None)


# --- candidates, count, exactness, order ----------------------------------------------------


@given(cases())
def test_candidates(case: Case) -> None:
    masks = case.masks_for(gp.global_unstructured)
    if case.masks is not None:
        assert_subset(masks, case.masks)
    assert reference.num_candidates(case.params, masks) == (
        reference.num_candidates(case.params, case.masks) - case.k
    )


@given(st.data(), st.integers(0, 10**6) | st.integers(2**24, 2**40))
def test_num_to_prune(data: st.DataObject, candidates: int) -> None:
    amount = data.draw(amounts(candidates))
    assert int(gp.num_to_prune(amount, candidates)) == reference.num_to_prune(amount, candidates)


@pytest.mark.parametrize("amount", [0.1, 0.3, 0.7])
def test_a_python_float_counts_in_float64(amount: float) -> None:
    """In float32, 0.3 of a billion would be twelve more."""
    assert int(gp.num_to_prune(amount, 10**9)) == round(amount * 10**9)


@pytest.mark.parametrize("candidates", range(1, 40, 2))
def test_halves_go_to_the_even_neighbour(candidates: int) -> None:
    k = candidates // 2 + candidates // 2 % 2
    params = torch.ones(candidates)
    assert int(gp.num_to_prune(0.5, candidates)) == k
    for budget in ({"amount": 0.5}, {"sparsity": 0.5}):
        assert int(gp.num_pruned(gp.global_unstructured(params, **budget))) == k


@pytest.mark.parametrize("pruned", range(11))
@pytest.mark.parametrize("sparsity", [0, 0.25, 0.5, 0.75, 0.85, 1])
def test_sparsity_counts_all_entries(pruned: int, sparsity: float) -> None:
    mask = torch.arange(10) >= pruned
    kept = gp.lowest_unstructured(torch.ones(10), mask=mask, sparsity=sparsity)
    assert int(gp.num_pruned(kept)) == max(pruned, round(sparsity * 10))


@given(cases())
def test_count(case: Case) -> None:
    masks = case.masks_for(gp.global_unstructured)
    before = reference.num_entries(case.params) - reference.num_candidates(case.params, case.masks)
    assert int(gp.num_pruned(masks)) == before + case.k
    ratio = gp.sparsity(masks)
    assert (ratio.dtype, ratio.shape) == (torch.float64, ())
    entries = reference.num_entries(case.params)
    if entries:
        assert ratio.item() == (before + case.k) / entries


@exactness
@given(cases())
def test_exactness(case: Case) -> None:
    expected = reference.global_masks(case.params, case.scores, case.k, case.masks)
    assert_masks(case.masks_for(gp.global_unstructured), expected, case.params)


@pytest.mark.slow
@exactness
@given(cases(), sizes)
def test_exactness_of_the_streaming_search(case: Case, small: Sizes) -> None:
    """What large leaves go through: trees that fit in a block would only be collected."""
    expected = reference.global_masks(case.params, case.scores, case.k, case.masks)
    with streaming(small):
        assert_masks(case.masks_for(gp.global_unstructured), expected, case.params)
        cut = case.masks_for(gp.find_threshold)
    assert_cut(cut, reference.cut(case.params, case.scores, case.k, case.masks))


@settings(max_examples=4 * settings().max_examples)
@given(cases(), sizes, st.integers(1, 8), st.lists(st.floats(0, 1), min_size=2, max_size=6))
def test_exactness_of_several_cuts(
    case: Case, small: Sizes, bits: int, amounts: list[float]
) -> None:
    """Several amounts in one search, with a limit on what is collected, and as few bins."""
    bins = {"BITS": bits, "BINS": 2**bits + 1, "NOWHERE": 2**bits + 1}
    vector = torch.tensor(amounts, dtype=torch.float64)

    def prune(amount: torch.Tensor) -> Any:
        return gp.global_unstructured(flat, scores, masks=masks, amount=amount)

    flat, scores, masks = (
        tree if tree is None else gp.trees.flatten(tree)[0]  # torch's vmap knows few kinds of nodes
        for tree in (case.params, case.scores, case.masks)
    )
    with streaming(small), mock.patch.multiple(several, **bins):
        cuts = gp.find_threshold(case.params, case.scores, masks=case.masks, amount=vector)
        batch = torch.vmap(prune, out_dims=gp.vmap_dims(flat))(vector)
    candidates = reference.num_candidates(case.params, case.masks)
    for i, amount in enumerate(amounts):
        k = reference.num_to_prune(amount, candidates)
        cut = gp.Threshold(cuts.value[i], cuts.flat_index[i])
        assert_cut(cut, reference.cut(case.params, case.scores, k, case.masks))
        expected = reference.global_masks(case.params, case.scores, k, case.masks)
        one = [None if leaf is None else leaf[i] for leaf in batch]
        assert_masks(one, expected, flat)


@settings(max_examples=4 * settings().max_examples)
@given(cases(), st.integers(1, 80))
def test_exactness_of_the_search_by_digits(case: Case, block: int) -> None:
    expected = reference.global_masks(case.params, case.scores, case.k, case.masks)
    with streaming(Sizes(block, few=0, limit=0, guesses=0, power=0.3)):
        assert_masks(case.masks_for(gp.global_unstructured), expected, case.params)


def test_digits_are_counted_among_the_candidates() -> None:
    """Scores that share their first digits, each of them twice, and every third pruned before."""
    scores = [1 + (torch.arange(40) * 7 % 20) / 2**20]
    masks = [torch.arange(40) % 3 > 0]
    for k in range(reference.num_candidates(scores, masks) + 1):
        expected = reference.global_masks(scores, scores, k, masks)
        with streaming(Sizes(block=7, few=0, limit=0, guesses=0, power=0.3)):
            got = gp.global_unstructured(scores, scores, masks=masks, amount=k)
        assert_masks(got, expected, scores)


@st.composite
def dense_cases(draw: st.DrawFn) -> Case:
    """The smallest float16 numbers, between which there are no others."""
    bits = draw(st.lists(st.integers(0, 5), min_size=10, max_size=40))
    scores = torch.tensor(bits, dtype=torch.int16).view(torch.float16)
    return Case([scores], [scores], None, {"amount": draw(st.integers(0, len(bits)))})


def nan_last(score: float) -> tuple[bool, float]:
    return (True, 0) if math.isnan(score) else (False, score)


@settings(max_examples=4 * settings().max_examples)
@given(cases() | dense_cases(), sizes)
def test_what_the_search_learns_is_true(case: Case, small: Sizes) -> None:
    """Else it would look in the wrong place: the masks would still be right, but late."""
    order = reference.ranking(
        reference.scores_of(case.params, case.scores), reference.priors(case.params, case.masks)
    )
    ranked = [nan_last(score) for _, score in order]
    scores = case.params if case.scores is None else case.scores
    space = keys.common_space({leaf.dtype for leaf in optree.tree_leaves(scores)})
    learn, learnt = search._learn, []

    def listen(*args: Any) -> Any:
        learnt.append(learn(*args))
        return learnt[-1]

    with streaming(small), mock.patch.object(search, "_learn", listen):
        case.masks_for(gp.find_threshold)
    for known in learnt:
        least, most = (nan_last(keys.value_of(key, space)) for key in known[:2])
        assert known.before == sum(score < least for score in ranked)
        assert known.among == sum(least <= score <= most for score in ranked)
        assert known.before < case.k <= known.before + known.among


@given(param_trees(), st.data())
def test_order_of_equal_scores_is_the_flat_index(params: Any, data: st.DataObject) -> None:
    k = data.draw(st.integers(0, reference.num_entries(params)))
    masks = gp.global_unstructured(params, map_tensors(torch.zeros_like, params), amount=k)
    flat = [keep for mask in reference.lists(masks) if mask is not None for keep in mask]
    assert flat == [False] * k + [True] * (len(flat) - k)


@given(layerwise_cases())
def test_layerwise(drawn: tuple[Case, list[int | None]]) -> None:
    case, ks = drawn
    expected = reference.layerwise_masks(case.params, case.scores, ks, case.masks)
    assert_masks(case.masks_for(gp.layerwise), expected, case.params)


# --- determinism ----------------------------------------------------------------------------


@given(cases())
def test_cut_and_masks_at_it_are_the_two_halves(case: Case) -> None:
    cut = case.masks_for(gp.find_threshold)
    assert isinstance(cut, gp.Threshold)
    assert_cut(cut, reference.cut(case.params, case.scores, case.k, case.masks))
    masks = gp.masks_from_threshold(cut, case.params, case.scores, masks=case.masks)
    assert_equal_masks(masks, case.masks_for(gp.global_unstructured), case.params)


@st.composite
def cuts(draw: st.DrawFn, case: Case) -> reference.Cut:
    """Any cut: at a score, right beside one, or anywhere."""
    scores = [
        score for leaf in reference.scores_of(case.params, case.scores) for score in leaf or []
    ]
    near = st.sampled_from([float(score) for score in scores] or [0.0])
    value = st.one_of(
        near,
        st.builds(math.nextafter, near, st.sampled_from([-math.inf, math.inf])),
        near.map(lambda score: score + 0.5),
        st.floats(),
    )
    return reference.Cut(draw(value), draw(st.integers(-1, len(scores))))


@given(st.data(), cases())
def test_masks_at_any_cut(data: st.DataObject, case: Case) -> None:
    at = data.draw(cuts(case))
    cut = gp.Threshold(torch.tensor(at.value, dtype=torch.float64), torch.tensor(at.index))
    masks = gp.masks_from_threshold(cut, case.params, case.scores, masks=case.masks)
    expected = reference.masks_from_threshold(at, case.params, case.scores, case.masks)
    assert_masks(masks, expected, case.params)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_a_cut_between_neighbours_is_rounded_down(dtype: torch.dtype) -> None:
    integer = torch.int16 if dtype.itemsize == 2 else torch.int32
    one = torch.ones((), dtype=dtype).view(integer)
    bits = torch.cat([torch.arange(3, dtype=integer), one + torch.arange(-2, 3, dtype=integer)])
    values = bits.view(dtype)
    scores = [torch.cat([values, -values])]
    rising = sorted(set(reference.entries(scores[0])))
    for low, high in itertools.pairwise(rising):
        for part in (0.25, 0.5, 0.75):
            at = reference.Cut(low + part * (high - low), 5)
            cut = gp.Threshold(torch.tensor(at.value, dtype=torch.float64), torch.tensor(at.index))
            expected = reference.masks_from_threshold(at, scores, scores, None)
            assert_masks(gp.masks_from_threshold(cut, scores, scores), expected, scores)


@given(cases())
def test_determinism(case: Case) -> None:
    """Again, on contiguous copies, on wider dtypes and on more threads: the same masks."""
    masks = case.masks_for(gp.global_unstructured)
    assert_equal_masks(case.masks_for(gp.global_unstructured), masks, case.params)

    def copy(leaf: torch.Tensor) -> torch.Tensor:
        return leaf.clone(memory_format=torch.contiguous_format)

    params = map_tensors(copy, case.params)
    scores = None if case.scores is None else map_tensors(copy, case.scores)
    priors = None if case.masks is None else map_tensors(copy, case.masks)
    copied = Case(params, scores, priors, case.budget)
    assert_equal_masks(copied.masks_for(gp.global_unstructured), masks, case.params)

    magnitudes = gp.scores.magnitude(params) if scores is None else scores
    wider = Case(params, map_tensors(lambda x: x.double(), magnitudes), priors, case.budget)
    assert_equal_masks(wider.masks_for(gp.global_unstructured), masks, case.params)

    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        assert_equal_masks(case.masks_for(gp.global_unstructured), masks, case.params)
    finally:
        torch.set_num_threads(threads)


@given(cases(), sizes)
def test_masks_do_not_depend_on_the_sizes_of_the_search(case: Case, small: Sizes) -> None:
    def masks() -> list[Any]:
        return [
            gp.global_unstructured(
                case.params, case.scores, masks=case.masks, **case.budget, **method
            )
            for method in METHODS
        ]

    in_one_block = masks()
    with streaming(small):
        for got, expected in zip(masks(), in_one_block, strict=True):
            assert_equal_masks(got, expected, case.params)


@given(cases(), st.integers(0, 12))
def test_masks_do_not_depend_on_how_the_entries_are_split_into_leaves(case: Case, at: int) -> None:
    def split(tree: Any) -> Any:
        flat = [leaf.flatten() for leaf in optree.tree_leaves(tree)]
        return [part for leaf in flat for part in (leaf[:at], leaf[at:])]

    scores = None if case.scores is None else split(case.scores)
    priors = None if case.masks is None else split(case.masks)
    whole = split(case.masks_for(gp.global_unstructured))
    parts = Case(split(case.params), scores, priors, case.budget)
    assert_equal_masks(parts.masks_for(gp.global_unstructured), whole, parts.params)


@given(cases())
def test_no_scores_are_magnitudes(case: Case) -> None:
    magnitudes = gp.scores.magnitude(case.params)
    without = Case(case.params, None, case.masks, case.budget)
    given_them = Case(case.params, magnitudes, case.masks, case.budget)
    masks = without.masks_for(gp.global_unstructured)
    assert_equal_masks(given_them.masks_for(gp.global_unstructured), masks, case.params)
    cut = without.masks_for(gp.find_threshold)
    assert_equal_masks(
        gp.masks_from_threshold(cut, case.params, masks=case.masks), masks, case.params
    )


# --- NaN, mixed dtypes, magnitudes ----------------------------------------------------------


@given(cases())
def test_nan_is_pruned_last(case: Case) -> None:
    masks = reference.lists(case.masks_for(gp.global_unstructured))
    scores = reference.scores_of(case.params, case.scores)
    kept_numbers, lost_nans = 0, 0
    for score, prior, mask in zip(
        scores, reference.priors(case.params, case.masks), masks, strict=True
    ):
        for s, p, m in zip(score or [], prior or [], mask or [], strict=True):
            kept_numbers += m and not math.isnan(s)
            lost_nans += p and not m and math.isnan(s)
    assert not (kept_numbers and lost_nans), f"{lost_nans} NaN went, {kept_numbers} numbers stayed"


@pytest.mark.parametrize("dtype", SCORE_DTYPES, ids=str)
def test_every_dtype_alone(dtype: torch.dtype) -> None:
    @given(tensors(dtypes=[dtype]), st.data())
    def check(scores: torch.Tensor, data: st.DataObject) -> None:
        k = data.draw(st.integers(0, scores.numel()))
        expected = reference.global_masks([scores], [scores], k)
        assert_masks(gp.global_unstructured([scores], [scores], amount=k), expected, [scores])

    check()


# some dtype rounds the second of each pair to the first
NEIGHBOURS = [
    1.0,
    1 + 2**-7,
    1 + 2**-10,
    1 + 2**-23,
    1 + 2**-52,
    256,
    257,
    2048,
    2049,
    65504,
    65505,
]
NEIGHBOURS += [2**24, 2**24 + 1, 2**31 - 1, 2**31, 2**53 - 1, 2**53, 2.0**-24, 2.0**-25, 127, 128]


@pytest.mark.parametrize("one", SCORE_DTYPES, ids=str)
def test_every_pair_of_dtypes(one: torch.dtype) -> None:
    """Neighbours in falling order: where they are compared in too narrow a dtype, they tie."""

    def held(dtype: torch.dtype) -> torch.Tensor:
        both = sorted({*NEIGHBOURS, *(-x for x in NEIGHBOURS)}, reverse=True)
        if not dtype.is_floating_point:
            info = torch.iinfo(dtype)
            both = [int(x) for x in both if x == int(x) and info.min <= x <= info.max]
        exact = torch.tensor(both, dtype=torch.float64)
        return exact[exact.to(dtype).double() == exact].to(dtype)

    for other in SCORE_DTYPES:
        scores = [held(one), held(other)]
        entries = reference.num_entries(scores)
        for k in range(0, entries + 1, 3):
            expected = reference.global_masks(scores, scores, k)
            assert_masks(gp.global_unstructured(scores, scores, amount=k), expected, scores)
        cut = gp.find_threshold(scores, scores, amount=entries // 2)
        assert_cut(cut, reference.cut(scores, scores, entries // 2))


@pytest.mark.parametrize("dtype", [torch.int8, torch.int16, torch.int32], ids=str)
def test_the_magnitude_of_the_lowest_integer_does_not_wrap(dtype: torch.dtype) -> None:
    low, high = torch.iinfo(dtype).min, torch.iinfo(dtype).max
    params = [torch.tensor([low, high, -high], dtype=dtype)]
    assert gp.scores.magnitude(params)[0].tolist() == [-low, high, high]
    assert gp.global_unstructured(params, amount=2)[0].tolist() == [True, False, False]


@given(param_trees())
def test_magnitudes_are_exact(params: Any) -> None:
    magnitudes = gp.scores.magnitude(params)
    assert_same_structure(magnitudes, params)
    assert_entries(magnitudes, reference.magnitude(params), magnitudes)
    for magnitude, leaf in zip(
        optree.tree_leaves(magnitudes), optree.tree_leaves(params), strict=True
    ):
        assert (magnitude.shape, magnitude.requires_grad) == (leaf.shape, False)


@pytest.mark.parametrize(
    "dtype", [torch.bool, torch.complex64, torch.float8_e4m3fn, torch.uint16, torch.uint64], ids=str
)
def test_other_dtypes_are_refused(dtype: torch.dtype) -> None:
    params = {"fc": {"weight": torch.ones(2, 3)}}
    scores = {"fc": {"weight": torch.ones(2, 3).to(dtype)}}
    for prune in (gp.global_unstructured, gp.layerwise, gp.find_threshold):
        with pytest.raises(TypeError, match=r"fc.*weight.*cast"):
            prune(params, scores, amount=1)
    with pytest.raises(TypeError, match="cast"):
        gp.lowest_unstructured(scores["fc"]["weight"], amount=1)


@pytest.mark.parametrize("score", [2**53 + 1, -(2**53) - 1, 2**63 - 1, -(2**63)])
def test_int64_beyond_float64_is_refused(score: int) -> None:
    scores = torch.tensor([1, score, 2])
    params, masks = [torch.ones(3)], [torch.tensor([True, True, False])]
    calls: list[Callable[[int], Any]] = [
        lambda k: gp.global_unstructured([scores], amount=k),
        lambda k: gp.global_unstructured(params, [scores], amount=k),
        lambda k: gp.global_unstructured(params, [scores], masks=masks, amount=k),
        lambda k: gp.layerwise(params, [scores], masks=masks, amount=k),
        lambda k: gp.find_threshold(params, [scores], amount=k),
        lambda k: gp.lowest_unstructured(scores, amount=k),
        lambda k: gp.lowest_unstructured(scores, mask=masks[0], amount=k),
    ]
    for call in calls:
        for k in (0, 1):
            with pytest.raises(ValueError, match="53"):
                call(k)


def test_the_magnitude_that_no_int64_holds_is_refused_when_ranked() -> None:
    """`|-2^63|` wraps in `magnitude`, which looks at no values; no mask comes of it."""
    params = [torch.tensor([1, -(2**63)])]
    with pytest.raises(ValueError, match="int64"):
        gp.global_unstructured(params, gp.scores.magnitude(params), amount=1)


# --- nesting --------------------------------------------------------------------------------


@given(cases(), st.data())
def test_nesting(case: Case, data: st.DataObject) -> None:
    candidates = reference.num_candidates(case.params, case.masks)
    few = data.draw(st.integers(0, candidates))
    many = data.draw(st.integers(few, candidates))
    for method in METHODS:
        masks = [
            gp.global_unstructured(case.params, case.scores, masks=case.masks, amount=k, **method)
            for k in (few, many)
        ]
        assert_subset(masks[1], masks[0])


# --- structure ------------------------------------------------------------------------------


@given(cases())
def test_scores_at_holes_do_not_matter(case: Case) -> None:
    assume(case.scores is not None)
    filled = [torch.ones(2) if leaf is None else leaf for leaf in reference.leaves(case.scores)]
    scores = optree.tree_unflatten(reference.structure(case.scores), filled)
    masks = Case(case.params, scores, case.masks, case.budget).masks_for(gp.global_unstructured)
    assert_equal_masks(masks, case.masks_for(gp.global_unstructured), case.params)


@given(tensors(), st.data())
def test_leaves_are_independent_even_where_they_share_memory(
    shared: torch.Tensor, data: st.DataObject
) -> None:
    twice, apart = [shared, shared], [shared, shared.clone()]
    k = data.draw(st.integers(0, 2 * shared.numel()))
    masks = gp.global_unstructured(twice, amount=k)
    assert_masks(masks, reference.global_masks(apart, None, k), apart)
