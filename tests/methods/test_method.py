"""What a method is: one signature for direct calls and combinators, and a user's own methods."""

import copy
import functools
import inspect
import pickle
import pydoc
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.utils.prune import L1Unstructured

import gprune as gp
from gprune.testing import param_trees, prior_masks, scores_for
from tests.support import reference
from tests.support.assertions import assert_equal_masks, assert_masks

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
    for change in (
        lambda: setattr(method, "PRUNING_TYPE", "structured"),
        lambda: setattr(method, "note", 1),
        lambda: delattr(method, "select"),
    ):
        with pytest.raises(AttributeError, match=f"^{method.__name__} is immutable"):
            change()
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


@pytest.mark.parametrize("prune", [gp.global_unstructured, gp.layerwise])
def test_a_type_error_of_a_users_method_is_its_own(prune: Any) -> None:
    @gp.pruning_method("unstructured")
    def method(param: torch.Tensor, scores: Any, *, mask: torch.Tensor) -> torch.Tensor:
        raise TypeError("mine")

    with pytest.raises(TypeError, match=r"^mine$"):
        prune([torch.ones(2)], pruning_method=method)


def test_a_users_method_is_given_the_number_of_its_leaf() -> None:
    seen = []

    @gp.pruning_method("unstructured")
    def method(
        param: torch.Tensor, scores: Any, *, mask: torch.Tensor, amount: Any, sparsity: Any = None
    ) -> torch.Tensor:
        seen.append((param.numel(), amount, sparsity))
        return mask

    params = {"a": torch.ones(4), "b": torch.ones(3)}
    gp.layerwise(params, pruning_method=method, amount={"a": 1, "b": 2}, sparsity=None)
    gp.layerwise(params, pruning_method=method, amount=5)
    gp.global_unstructured(params, pruning_method=method, amount=6)
    assert seen == [(4, 1, None), (3, 2, None), (4, 5, None), (3, 5, None), (7, 6, None)]


def test_a_method_that_wraps_a_built_in_one_is_called() -> None:
    @functools.wraps(gp.lowest_unstructured)
    def highest(param: torch.Tensor, scores: Any = None, **kwargs: Any) -> torch.Tensor:
        return gp.lowest_unstructured(param, -param if scores is None else -scores, **kwargs)

    params = [torch.tensor([1.0, 2.0, 3.0, 4.0])]
    method = gp.pruning_method("unstructured")(highest)
    masks = gp.global_unstructured(params, pruning_method=method, amount=1)
    assert masks[0].tolist() == [True, True, True, False]
    with pytest.raises(TypeError, match="lowest_unstructured is not a pruning method; mark it"):
        gp.global_unstructured(params, pruning_method=highest, amount=1)


def test_a_users_method_sees_exact_scores_of_mixed_dtypes() -> None:
    seen = []

    @gp.pruning_method("unstructured")
    def method(param: torch.Tensor, scores: Any, *, mask: torch.Tensor) -> torch.Tensor:
        seen.append((param, scores))
        return mask

    params = [torch.tensor([2**24 + 1]), torch.ones(1)]
    gp.global_unstructured(params, pruning_method=method)
    assert seen[0][0].tolist() == [2**24 + 1, 1]
    assert seen[0][1] is None
    gp.global_unstructured([torch.ones(1), torch.ones(1)], params, pruning_method=method)
    assert seen[1][1].tolist() == [2**24 + 1, 1]


class Nameless:
    """A callable object without a name of its own."""

    def __call__(self, param: torch.Tensor, scores: Any, *, mask: torch.Tensor) -> Any:
        return 3


@pytest.mark.parametrize("prune", [gp.global_unstructured, gp.layerwise])
def test_what_is_wrong_with_a_method(prune: Any) -> None:
    params = [torch.ones(3)]
    with pytest.raises(ValueError, match="Nameless must return a bool mask of shape"):
        prune(params, pruning_method=gp.pruning_method("unstructured")(Nameless()))
    with pytest.raises(TypeError, match=r"is a class.*gprune\.l1_unstructured"):
        prune(params, pruning_method=L1Unstructured, amount=1)
    with pytest.raises(TypeError, match="keyword arguments only"):
        prune(params, pruning_method=functools.partial(gp.l1_unstructured, params[0]), amount=1)
    with pytest.raises(TypeError, match="is not a pruning method"):
        prune(params, pruning_method=lambda s, m: m)


def test_nested_partials_bind_from_the_inside_and_calls_from_the_outside() -> None:
    inner = functools.partial(gp.l1_unstructured, amount=1)
    outer = functools.partial(inner, amount=2)
    params = [torch.ones(4)]
    assert gp.num_pruned(gp.global_unstructured(params, pruning_method=outer)) == 2
    assert gp.num_pruned(gp.global_unstructured(params, pruning_method=outer, amount=3)) == 3


@pytest.mark.parametrize("kind", ["structured", "semi_structured"])
def test_other_types_are_for_layerwise(kind: str) -> None:
    @gp.pruning_method(kind)
    def none(param: torch.Tensor, scores: Any, *, mask: torch.Tensor) -> torch.Tensor:
        return torch.zeros_like(mask)

    assert not gp.layerwise([torch.ones(2)], pruning_method=none)[0].any()
    with pytest.raises(TypeError, match="use layerwise"):
        gp.global_unstructured([torch.ones(2)], pruning_method=none)


def test_only_three_types() -> None:
    with pytest.raises(ValueError, match="unstructured, structured, semi_structured"):
        gp.pruning_method("global")
