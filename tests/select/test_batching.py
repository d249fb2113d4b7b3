"""A batch under vmap is the stack of its elements, side by side in one operator or in turn."""

import functools
from typing import Any
from unittest import mock

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import gprune as gp
from gprune.select import batching, operators
from gprune.testing import SCORE_DTYPES, param_trees, prior_masks
from tests.support import reference
from tests.support.assertions import assert_equal_masks, assert_masks
from tests.support.limits import Limits, limits, patched

SIZE = 3


def stack(trees: list[Any]) -> Any:
    return gp.trees.map_leaves(lambda *xs: None if xs[0] is None else torch.stack(xs), *trees)


def element(tree: Any, i: int) -> Any:
    return gp.trees.map_leaves(lambda x: None if x is None else x[i], tree)


def permuted(tree: Any, i: int) -> Any:
    """Another tree of the same shapes: the entries of every leaf, rolled."""
    return gp.trees.map_leaves(
        lambda x: None if x is None else x.reshape(-1).roll(i).reshape(x.shape), tree
    )


def flat(params: Any) -> list[Any]:
    """The leaves as a list, since torch's vmap does not know optree's custom nodes."""
    return gp.trees.flatten(params)[0]


@given(param_trees().map(flat), st.floats(0, 1), st.booleans(), st.data(), st.none() | limits())
def test_a_batch_of_models(
    params: Any, sparsity: float, layers: bool, data: st.DataObject, small: Limits | None
) -> None:
    models = [permuted(params, i) for i in range(SIZE)]
    priors = [data.draw(prior_masks(params)) for _ in range(SIZE)]
    shared = data.draw(st.booleans())  # one prior for all models, without a batch dimension
    prune = gp.layerwise if layers else gp.global_unstructured
    dims = gp.vmap_dims(params)
    with patched(small or Limits()):
        masks = torch.vmap(
            lambda p, m: prune(p, masks=m, sparsity=sparsity),
            in_dims=(dims, None if shared else dims),
            out_dims=dims,
        )(stack(models), priors[0] if shared else stack(priors))
    for i, model in enumerate(models):
        alone = prune(model, masks=priors[0 if shared else i], sparsity=sparsity)
        assert_equal_masks(element(masks, i), alone, model)


@given(param_trees(dtypes=SCORE_DTYPES[:1]).map(flat), st.floats(0, 1))
def test_a_batch_of_models_against_the_oracle(params: Any, amount: float) -> None:
    models = [permuted(params, i) for i in range(SIZE)]
    dims = gp.vmap_dims(params)
    masks = torch.vmap(
        lambda p: gp.global_unstructured(p, amount=amount), in_dims=(dims,), out_dims=dims
    )(stack(models))
    for i, model in enumerate(models):
        k = reference.count(model, None, amount=amount)
        assert_masks(element(masks, i), reference.global_masks(model, None, k, None), model)


@pytest.mark.parametrize("dim", [0, 1, 2, -1])
def test_any_batch_dimension(dim: int) -> None:
    models = torch.randn(3, 3, 3, generator=torch.Generator().manual_seed(0))
    at_random = functools.partial(gp.random_unstructured, seed=0)
    for method in (gp.lowest_unstructured, at_random):  # side by side, and in turn

        def prune(weight: torch.Tensor, method: Any = method) -> torch.Tensor:
            return gp.global_unstructured([weight], pruning_method=method, amount=4)[0]

        masks = torch.vmap(prune, in_dims=dim, out_dims=dim)(models)
        for i in range(3):
            assert masks.select(dim, i).equal(prune(models.select(dim, i)))


PARAMS = {"a": torch.linspace(-1, 1, 12).reshape(3, 4), "b": [torch.arange(5.0), None]}


@pytest.mark.parametrize(
    "amounts", [torch.tensor([0.0, 0.3, 1.0]), torch.tensor([0, 5, 17])], ids=["float", "int"]
)
def test_vmap_over_amounts(amounts: torch.Tensor) -> None:
    dims = gp.vmap_dims(PARAMS)
    masks = torch.vmap(lambda a: gp.global_unstructured(PARAMS, amount=a), out_dims=dims)(amounts)
    found = torch.vmap(lambda a: gp.find_threshold(PARAMS, amount=a))(amounts)
    for i, amount in enumerate(amounts):
        alone = gp.global_unstructured(PARAMS, amount=amount)
        assert_equal_masks(element(masks, i), alone, PARAMS)
        assert (found.value[i], found.flat_index[i]) == gp.find_threshold(PARAMS, amount=amount)


def test_amounts_along_another_dim() -> None:
    """Of amounts that are 1-D within the batch, for the thresholds of each element."""
    amounts = torch.tensor([[0, 1, 2], [3, 4, 5]])
    found = torch.vmap(lambda a: gp.find_threshold(PARAMS, amount=a), in_dims=1)(amounts)
    assert found.value.shape == (3, 2)
    alone = gp.find_threshold(PARAMS, amount=amounts.t().reshape(-1))
    assert found.value.view(-1).equal(alone.value)
    assert found.flat_index.view(-1).equal(alone.flat_index)


def test_nested_vmap_over_amounts_and_models() -> None:
    models = {"a": torch.randn(2, 6, generator=torch.Generator().manual_seed(1))}
    masks = torch.vmap(
        lambda a: torch.vmap(lambda p: gp.global_unstructured(p, amount=a)["a"])(models)
    )(torch.tensor([1, 3, 5]))
    assert masks.shape == (3, 2, 6)
    assert (~masks).sum(-1).tolist() == [[1, 1], [3, 3], [5, 5]]


def test_an_empty_batch_is_refused() -> None:
    with pytest.raises(ValueError, match="empty batch"):
        torch.vmap(lambda w: gp.global_unstructured([w], amount=0)[0])(torch.zeros(0, 3))
    with pytest.raises(ValueError, match="empty batch"):
        torch.vmap(lambda a: gp.find_threshold([torch.ones(3)], amount=a))(torch.zeros(0))


def test_finite_is_asked_of_the_whole_batch() -> None:
    batch = torch.tensor([[1.0, 2.0], [3.0, float("inf")]])
    found = torch.vmap(lambda x: operators.all_finite([x], "").expand(1), out_dims=None)(batch)
    assert found.tolist() == [False]


# --- which rule ---------------------------------------------------------------------------------


def which(params: Any, in_dims: Any, **much: Any) -> list[str]:
    """The names of the operators that a batch calls."""
    called = []

    def note(name: str) -> Any:
        def call(*args: Any) -> Any:
            called.append(name)
            return getattr(operators, name)(*args)

        return call

    names = ["select", "select_rows", "find_threshold", "masks_from_threshold"]
    rule = batching.of_select(*map(note, names))
    info = mock.Mock(batch_size=SIZE)
    amounts = much.pop("amounts", [torch.tensor(1)])
    batched = much.pop("amount_dims", [None] * len(amounts))
    rest = (None, False, False, "")
    rule(info, (in_dims, [], batched, *[None] * 4), params, [], amounts, *rest)
    return called


def test_small_models_are_side_by_side_and_others_in_turn() -> None:
    small = [torch.randn(SIZE, 4), torch.randn(5)]
    assert which(small, [0, None]) == ["select_rows"]
    assert which([small[0].double(), small[1]], [0, None]) == ["select"] * SIZE
    with patched(Limits(block=71)):  # an eighth of it is less than nine entries
        assert which(small, [0, None]) == ["select"] * SIZE
    with patched(Limits(block=72)):
        assert which(small, [0, None]) == ["select_rows"]
    assert which(small, [0, None], amounts=[torch.tensor(1)] * 2) == ["select"] * SIZE
    amounts = [torch.tensor([1, 2, 3])]
    assert which(small, [0, None], amounts=amounts, amount_dims=[0]) == ["select"] * SIZE
    several = ["find_threshold", *["masks_from_threshold"] * SIZE]
    assert which(small, [None, None], amounts=amounts, amount_dims=[0]) == several


def test_an_error_of_one_leaf_names_it_under_vmap() -> None:
    scores = {"a": torch.ones(2, 3), "b": torch.full((2, 3), 2**53 + 1)}
    scores["a"] = scores["a"].to(torch.int64)
    with pytest.raises(ValueError, match=r"scores\['b'\]: int64 scores must be at most"):
        torch.vmap(lambda scores: gp.global_unstructured(scores, scores, amount=1))(scores)
