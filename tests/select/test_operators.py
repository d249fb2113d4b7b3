"""Operators: what torch.library asks of them, their checks, what they are made of, and `vmap`.

A batch under `vmap` is the stack of its elements, side by side in one operator or in turn.
"""

import functools
from typing import Any
from unittest import mock

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import gprune as gp
from gprune.select import operators
from gprune.testing import SCORE_DTYPES, param_trees, prior_masks
from tests.support import reference
from tests.support.assertions import assert_equal_masks, assert_masks, assert_same
from tests.support.limits import Limits, limits, patched

TENSORS = [torch.randn(3, 4), torch.randn(5).requires_grad_(False)]
MASKS = [torch.ones(3, 4, dtype=torch.bool), torch.tensor([True, False, True, True, False])]
HALF = torch.tensor(0.5, dtype=torch.float64)
SEED = torch.tensor(7)
CALL = "prune"


@pytest.mark.parametrize(
    ("operator", "args"),
    [
        (operators.select, (TENSORS, [], [HALF], None, None, True, False, CALL)),
        (operators.select, (TENSORS, MASKS, [HALF], SEED, None, False, True, CALL)),
        (operators.select, (TENSORS, MASKS, [HALF], None, HALF, False, True, CALL)),
        (operators.select, (TENSORS, None, [HALF], None, None, True, False, CALL)),
        (operators.select, (TENSORS, MASKS, [HALF, HALF], None, None, False, False, CALL)),
        (operators.select_rows, (TENSORS[0], [], HALF, True, False)),
        (operators.select_rows, (TENSORS[0], MASKS[:1], HALF, False, True)),
        (operators.find_threshold, (TENSORS, MASKS, HALF, True, False, CALL)),
        (operators.find_threshold, (TENSORS, [], torch.stack([HALF, HALF]), True, False, CALL)),
        (operators.masks_from_threshold, (HALF, SEED, TENSORS, MASKS, False, CALL)),
        (operators.num_to_prune, (HALF, 9)),
        (operators.random_scores, (TENSORS, SEED, CALL)),
        (operators.all_finite, (TENSORS, CALL)),
        (operators.count_pruned, (MASKS, CALL)),
        (operators.apportion, (HALF, [10, 4], [3.0, 1.0], [0, 1], [10, 4])),
    ],
    ids=lambda value: getattr(value, "_name", ""),
)
def test_opcheck(operator: Any, args: tuple[Any, ...]) -> None:
    torch.library.opcheck(operator, args)


def test_operators_are_unsafe_in_cuda_graphs() -> None:
    """The host reads counts."""
    for operator in (operators.select, operators.select_rows, operators.find_threshold):
        assert torch.Tag.cudagraph_unsafe in operator._opoverload.tags


@pytest.mark.parametrize(
    ("operator", "before", "after"),
    [
        (operators.select, [TENSORS], [[HALF], None, None, True, False, CALL]),
        (operators.select, [TENSORS], [[HALF], None, HALF, True, False, CALL]),
        (operators.select_rows, [TENSORS[0]], [HALF, True, False]),
        (operators.find_threshold, [TENSORS], [HALF, True, False, CALL]),
        (operators.masks_from_threshold, [HALF, SEED, TENSORS], [False, CALL]),
    ],
    ids=lambda value: getattr(value, "_name", ""),
)
def test_no_list_of_masks_is_an_empty_one(operator: Any, before: Any, after: Any) -> None:
    """AOTInductor passes `None` where the program that it compiles has an empty list."""
    assert_same(operator(*before, None, *after), operator(*before, [], *after))


def test_one_amount_is_for_all_leaves_and_one_per_leaf_for_each() -> None:
    scores = [torch.tensor([1.0, 2.0]), torch.tensor([0.0, 9.0, 8.0])]
    [a, b] = operators.select(scores, [], [torch.tensor(2)], None, None, False, False, CALL)
    assert (a.tolist(), b.tolist()) == ([False, True], [False, True, True])
    both = [torch.tensor(0), torch.tensor(2)]
    [a, b] = operators.select(scores, [], both, None, None, False, False, CALL)
    assert (a.tolist(), b.tolist()) == ([True, True], [False, True, False])


def test_the_results_of_the_operators_are_contiguous_and_fresh() -> None:
    scores = [torch.randn(3, 4).t()]
    prior = [torch.ones(3, 4, dtype=torch.bool).t()]
    for k in (0, 5):
        [mask] = operators.select(scores, prior, [torch.tensor(k)], None, None, False, False, CALL)
        assert mask.is_contiguous()
        assert mask.data_ptr() != prior[0].data_ptr()


def test_errors_of_values_name_the_leaf() -> None:
    params = {"a": torch.ones(2), "b": {"c": torch.ones(3), "none": None}}
    with pytest.raises(ValueError, match=r"amount\['b'\]\['c'\]: amount must be at most 1"):
        gp.layerwise(params, amount={"a": 0.5, "b": {"c": 80.0, "none": None}})
    with pytest.raises(ValueError, match=r"amount\['a'\]: .*candidates, 2"):
        gp.layerwise(params, amount=3)
    with pytest.raises(ValueError, match=r"sparsity\['a'\]: sparsity must be at most 1"):
        gp.layerwise(params, sparsity=1.5)
    integers = {"a": torch.ones(2, dtype=torch.int64), "b": torch.tensor([2**60])}
    for prune in (gp.global_unstructured, gp.layerwise, gp.find_threshold):
        with pytest.raises(
            ValueError, match=r"params\['b'\]: int64 scores must be at most 2\*\*53"
        ):
            prune(integers, amount=1)


def test_leaves_without_values_beside_others_are_refused() -> None:
    meta = torch.empty(2, 2, device="meta")
    with pytest.raises(ValueError, match=r"params\['a'\] is on the meta device"):
        gp.global_unstructured({"a": meta, "b": torch.ones(2)}, amount=1)
    with pytest.raises(ValueError, match="amount must have a value"):
        gp.global_unstructured([torch.ones(3)], amount=torch.tensor(1, device="meta"))
    assert gp.find_threshold([meta], amount=1).value.is_meta
    with pytest.raises(ValueError, match=r"masks\[0\] is on meta, its parameter is on cpu"):
        gp.global_unstructured(
            [torch.ones(2)], masks=[torch.empty(2, dtype=torch.bool, device="meta")], amount=1
        )


def test_all_finite() -> None:
    leaves = [torch.ones(3), torch.tensor([1, float("nan")]), torch.ones(0), -torch.ones(1) / 0]
    assert operators.all_finite(leaves, CALL).tolist() == [True, False, True, False]
    assert operators.all_finite([torch.tensor([float("inf"), 1])], CALL).tolist() == [False]


def test_pruned_entries_are_counted() -> None:
    masks = [*MASKS, torch.zeros(2, 3, dtype=torch.bool), torch.ones(0, dtype=torch.bool)]
    assert operators.count_pruned(masks, CALL).tolist() == [0, 2, 6, 0]


def test_random_scores_are_the_draws_of_each_leaf() -> None:
    leaves = [torch.empty(2, 3), torch.empty(6)]
    first, second = operators.random_scores(leaves, SEED, CALL)
    assert first.shape == (2, 3)
    assert first.dtype == torch.float64
    assert not first.view(-1).equal(second)
    assert second.equal(operators.random_scores(leaves[::-1][:1] * 2, SEED, CALL)[1])


def test_apportion_names_the_bounds() -> None:
    found = operators.apportion(HALF, [10, 4, 0], [1.0, 1.0, 1.0], [0, 1, 0], [10, 4, 0])
    assert [float(x) for x in found] == [0.6, 0.25, 0.0]
    with pytest.raises(ValueError, match=r"sparsity 0.5 keeps 7 of 14 .* from 8 to 14"):
        operators.apportion(HALF, [10, 4], [1.0, 1.0], [4, 4], [10, 4])


# --- batches ------------------------------------------------------------------------------------

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
    rule = operators.vmap_of_select(*map(note, names))
    info = mock.Mock(batch_size=SIZE)
    amounts = much.pop("amounts", [torch.tensor(1)])
    batched = much.pop("amount_dims", [None] * len(amounts))
    rest = (None, None, False, False, "")
    rule(info, (in_dims, [], batched, *[None] * 5), params, [], amounts, *rest)
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
