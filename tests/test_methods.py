"""The methods: of one tensor, by absolute value, at random, and a user's own."""

import copy
import functools
import inspect
import itertools
import pickle
import pydoc
from typing import Any

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

import gprune as gp
from gprune.testing import param_trees, prior_masks, scores_for, tensors
from tests.support import reference
from tests.support.assertions import (
    assert_equal_masks,
    assert_masks,
    assert_same_structure,
)
from tests.support.cases import Case, budgets, cases, map_tensors


@given(tensors(), st.data())
def test_methods_of_one_tensor(scores: torch.Tensor, data: st.DataObject) -> None:
    mask = data.draw(st.none() | prior_masks(scores))
    budget = data.draw(budgets(reference.num_candidates(scores, mask)))
    k = reference.count(scores, mask, **budget)
    param = torch.zeros(scores.shape)  # what the scores are of does not matter
    lowest = gp.lowest_unstructured(param, scores, mask=mask, **budget)
    assert_masks(lowest, reference.global_masks(scores, scores, k, mask), scores)
    by_magnitude = reference.global_masks(scores, None, k, mask)
    for masks in (
        gp.lowest_unstructured(scores, mask=mask, **budget),
        gp.l1_unstructured(scores, mask=mask, **budget),
        gp.l1_unstructured(param, scores, mask=mask, **budget),
    ):
        assert_masks(masks, by_magnitude, scores)
    assert_masks(gp.identity(scores, mask=mask), reference.priors(scores, mask), scores)


DIRECT: list[tuple[Any, dict[str, Any]]] = [
    (gp.lowest_unstructured, {"amount": 0.5}),
    (gp.lowest_unstructured, {"sparsity": 0.4, "dim": gp.input_dims}),
    (gp.l1_unstructured, {"sparsity": 0.75, "dim": (0, -1)}),
    (gp.random_unstructured, {"amount": 7, "seed": 3}),
    (gp.random_unstructured, {"amount": 1, "seed": 3, "dim": 0}),
    (gp.identity, {}),
    (gp.ln_structured, {"n": 2, "dim": 0, "amount": 2}),
    (gp.random_structured, {"dim": 1, "seed": 3, "amount": 0.5}),
    (gp.n_of_m, {"n": 2, "m": 4}),
    (gp.n_of_m, {"n": 1, "m": 2, "dim": lambda path, leaf: leaf.dim() - 1}),
    (gp.blocks, {"shape": (2, 2), "amount": 0.5}),
]
METHODS = [
    method
    for name in gp.__all__
    if isinstance(method := getattr(gp, name), gp.methods.PruningMethod)
]


@pytest.mark.parametrize(("method", "kwargs"), DIRECT)
@pytest.mark.parametrize("scored", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_a_direct_call_is_layerwise_on_one_leaf(
    method: Any, kwargs: dict[str, Any], scored: bool, masked: bool
) -> None:
    generator = torch.Generator().manual_seed(0)
    param = torch.randn(6, 8, generator=generator)
    scores = torch.randn(6, 8, generator=generator) if scored else None
    mask = torch.rand(6, 8, generator=generator) < 0.8 if masked else None
    direct = method(param, scores, mask=mask, **kwargs)
    given = None if scores is None else [scores]
    masks = None if mask is None else [mask]
    [lifted] = gp.layerwise([param], given, masks=masks, pruning_method=method, **kwargs)
    assert torch.equal(direct, lifted)
    [by_magnitude] = gp.layerwise([param], masks=masks, pruning_method=method, **kwargs)
    same = method in (gp.random_unstructured, gp.random_structured, gp.identity)
    assert torch.equal(direct, by_magnitude) == (same or not scored)


def test_every_method_is_called_directly_above() -> None:
    assert {id(method) for method, _ in DIRECT} == {id(method) for method in METHODS}


@gp.pruning_method("unstructured")
def keep_positive(param: torch.Tensor, scores: Any = None, *, mask: Any = None) -> torch.Tensor:
    """Keep what is positive."""
    return (param if scores is None else scores) > 0


@pytest.mark.parametrize("method", [*METHODS, keep_positive], ids=lambda method: method.__name__)
def test_a_method_is_a_small_object_that_stands_for_its_function(method: Any) -> None:
    assert method.PRUNING_TYPE in ("unstructured", "structured", "semi_structured")
    assert pickle.loads(pickle.dumps(method)) is method
    assert copy.deepcopy(method) is method
    partial = pickle.loads(pickle.dumps(functools.partial(method, amount=1)))
    assert partial.func is method
    function = method.__wrapped__
    assert inspect.isfunction(function)
    assert (method.__name__, method.__doc__) == (function.__name__, function.__doc__)
    assert inspect.signature(method) == inspect.signature(function)
    assert list(inspect.signature(method).parameters)[:3] == ["param", "scores", "mask"]
    text = pydoc.plain(pydoc.render_doc(method))
    assert inspect.getdoc(function).splitlines()[0] in text
    assert method.__name__ in repr(method)


def test_a_users_method_may_hand_on_what_it_is_given() -> None:
    @gp.pruning_method("unstructured")
    def handed_on(param: Any, scores: Any, *, mask: Any, amount: Any) -> torch.Tensor:
        return gp.lowest_unstructured(param, scores, mask=mask, amount=amount)

    generator = torch.Generator().manual_seed(0)
    params = [torch.randn(5, generator=generator), torch.randn(2, 3, generator=generator)]
    scores = [torch.randn(5, generator=generator), torch.randn(2, 3, generator=generator)]
    for prune in (gp.global_unstructured, gp.layerwise):
        for given_scores in (None, scores):
            got = prune(params, given_scores, pruning_method=handed_on, amount=0.5)
            assert_equal_masks(got, prune(params, given_scores, amount=0.5), params)


def test_a_users_method_needs_dtypes_that_can_be_concatenated() -> None:
    params = [torch.ones(2, dtype=torch.complex64), torch.ones(2)]
    with pytest.raises(TypeError, match=r"keep_positive needs leaves of one dtype.*complex64"):
        gp.global_unstructured(params, [torch.ones(2)] * 2, pruning_method=keep_positive)


@given(cases())
def test_l1_ranks_given_scores_by_absolute_value(case: Case) -> None:
    assume(case.scores is not None)
    masks = case.masks_for(
        lambda *args, **kwargs: gp.global_unstructured(
            *args, pruning_method=gp.l1_unstructured, **kwargs
        )
    )
    magnitudes = reference.magnitude(map_tensors(lambda _, score: score, case.params, case.scores))
    expected = reference.prune(magnitudes, reference.priors(case.params, case.masks), case.k)
    assert_masks(masks, expected, case.params)


@given(param_trees(), st.data(), st.sampled_from([0, 0.5]))
def test_masks_are_fresh(params: Any, data: st.DataObject, amount: float) -> None:
    """What is written into one mask reaches neither the prior nor another mask."""
    masks = data.draw(prior_masks(params))
    prior = reference.lists(masks)
    calls = [
        lambda: gp.global_unstructured(params, masks=masks, amount=amount),
        lambda: gp.layerwise(params, masks=masks, amount=amount),
        lambda: gp.global_unstructured(params, masks=masks, pruning_method=gp.identity),
    ]
    for call in calls:
        before = call()
        for mask in reference.leaves(before):
            if mask is not None:
                mask.logical_not_()
        assert reference.lists(masks) == prior
        flipped = [None if m is None else [not k for k in m] for m in reference.lists(before)]
        assert_masks(call(), flipped, params)


@given(param_trees(), st.data(), st.integers(0, 2**63 - 1))
def test_random_pruning_is_a_function_of_its_seed(
    params: Any, data: st.DataObject, seed: int
) -> None:
    masks = data.draw(st.none() | prior_masks(params))
    budget = data.draw(budgets(reference.num_candidates(params, masks)))
    scores = gp.scores.random(params, seed=seed)
    assert_same_structure(scores, params)
    expected = gp.global_unstructured(params, scores, masks=masks, **budget)
    for s in (seed, torch.tensor(seed)):
        got = gp.global_unstructured(
            params, masks=masks, pruning_method=gp.random_unstructured, seed=s, **budget
        )
        assert_equal_masks(got, expected, params)


def test_random_scores_differ_between_seeds_and_leaves() -> None:
    params = {"a": torch.zeros(1000), "b": torch.zeros(1000)}
    one, other = gp.scores.random(params, seed=1), gp.scores.random(params, seed=2)
    draws = [one["a"], one["b"], other["a"], other["b"]]
    for i, left in enumerate(draws):
        for right in draws[:i]:
            assert (left == right).double().mean() < 0.01
    masks = gp.global_unstructured(
        params, pruning_method=gp.random_unstructured, seed=1, amount=0.5
    )
    assert 420 < int(gp.num_pruned({"a": masks["a"]})) < 580  # five standard deviations of 15.8


@given(param_trees(), st.floats(0, 1), st.integers(0, 2**63 - 1))
def test_each_leaf_alone_is_pruned_at_random_by_its_own_draws(
    params: Any, amount: float, seed: int
) -> None:
    expected = gp.layerwise(params, gp.scores.random(params, seed=seed), amount=amount)
    method = {"pruning_method": gp.random_unstructured, "seed": seed}
    assert_equal_masks(gp.layerwise(params, amount=amount, **method), expected, params)


def test_random_scores_are_uniform_multiples_of_2_to_the_minus_53() -> None:
    draws = gp.scores.random([torch.zeros(100, 100)], seed=1)[0]
    assert draws.dtype == torch.float64
    assert ((draws >= 0) & (draws < 1)).all()
    assert torch.equal(draws * 2**53, (draws * 2**53).round())
    assert abs(draws.mean() - 0.5) < 5 * 12**-0.5 / 100  # five standard deviations
    assert draws.unique().numel() == 10_000


@pytest.mark.parametrize("dims", [(0,), (1,), (2,), (0, 1), (0, 2), (1, 2), (0, 1, 2)])
def test_every_group_is_a_tensor_of_its_own(dims: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    scores = torch.randint(1, 4, (4, 5, 6), generator=generator)
    masks = torch.rand(4, 5, 6, generator=generator) < 0.7
    got = gp.lowest_unstructured(scores, scores, mask=masks, amount=0.4, dim=dims)
    places = [[slice(None)] if d in dims else range(n) for d, n in enumerate(scores.shape)]
    for place in itertools.product(*places):
        group = scores[place]
        alone = gp.lowest_unstructured(group, group, mask=masks[place], amount=0.4)
        assert torch.equal(got[place], alone)


@pytest.mark.parametrize("dim", [0, 1, -1])
@pytest.mark.parametrize(
    "method",
    [
        gp.lowest_unstructured,
        gp.l1_unstructured,
        functools.partial(gp.random_unstructured, seed=1),
    ],
)
def test_vmap_over_any_dimension(method: Any, dim: int) -> None:
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(4, 4, 4, generator=generator)
    masks = torch.rand(4, 4, 4, generator=generator) < 0.8
    for kwargs in ({"amount": 5}, {"sparsity": 0.6}, {"amount": 1, "dim": 0}):

        def prune(score: Any, mask: Any, kwargs: Any = kwargs) -> torch.Tensor:
            return method(score, score, mask=mask, **kwargs)

        got = torch.vmap(prune, in_dims=dim)(scores, masks)
        for i in range(4):
            alone = prune(scores.select(dim, i), masks.select(dim, i))
            assert torch.equal(got[i], alone)


@given(param_trees(dtypes=[torch.float32]), st.data())
def test_a_users_method_sees_the_whole_tree_once(params: Any, data: st.DataObject) -> None:
    scores = data.draw(st.none() | scores_for(params, dtypes=[torch.float32]))
    masks = data.draw(st.none() | prior_masks(params))
    answer = data.draw(prior_masks(torch.zeros(reference.num_entries(params))))
    seen = []

    @gp.pruning_method("unstructured")
    def method(param: Any, scores: Any, *, mask: torch.Tensor, word: str) -> torch.Tensor:
        given = None if scores is None else scores.tolist()
        seen.append((param.tolist(), given, mask.tolist(), word))
        return answer

    got = gp.global_unstructured(params, scores, masks=masks, pruning_method=method, word="yes")
    prior = reference.priors(params, masks)
    flat_prior = [keep for leaf in prior for keep in leaf or []]
    flat_params = [entry for leaf in reference.lists(params) for entry in leaf or []]
    flat_scores = None
    if scores is not None:
        flat_scores = [s for leaf in reference.scores_of(params, scores) for s in leaf or []]
    assert repr(seen) == repr([(flat_params, flat_scores, flat_prior, "yes")])
    flat = [keep and new for keep, new in zip(flat_prior, answer.tolist(), strict=True)]
    assert_masks(got, reference.unflatten(flat, prior), params)
