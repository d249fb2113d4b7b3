"""The combinators: thresholds of several amounts, and arguments of a method."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import gprune as gp
from gprune.testing import param_trees, prior_masks
from tests.support import reference
from tests.support.assertions import assert_equal_masks


@given(param_trees(), st.lists(st.floats(0, 1), max_size=4), st.data())
def test_a_threshold_of_several_amounts_gives_a_list_of_trees(
    params: Any, amounts: list[float], data: st.DataObject
) -> None:
    masks = data.draw(st.none() | prior_masks(params))
    several = torch.tensor(amounts, dtype=torch.float64)
    threshold = gp.find_threshold(params, masks=masks, amount=several)
    trees = gp.masks_from_threshold(threshold, params, masks=masks)
    assert isinstance(trees, list)
    for tree, amount in zip(trees, amounts, strict=True):
        expected = gp.global_unstructured(params, masks=masks, amount=amount)
        assert_equal_masks(tree, expected, params)


def test_several_thresholds_compile() -> None:
    params = [torch.arange(6.0)]

    def masks(amounts: torch.Tensor) -> Any:
        return gp.masks_from_threshold(gp.find_threshold(params, amount=amounts), params)

    compiled = torch.compile(masks, backend="eager", fullgraph=True)
    kept = [[int(mask.sum()) for mask in tree] for tree in compiled(torch.tensor([1, 4]))]
    assert kept == [[5], [2]]


def test_a_threshold_is_defined_here_and_is_a_pair() -> None:
    threshold = gp.find_threshold([torch.arange(4.0)], amount=2)
    assert (threshold.value.item(), threshold.flat_index.item()) == (1.0, 1)
    assert type(threshold).__module__ == "gprune.prune"


@pytest.mark.parametrize("prune", [gp.global_unstructured, gp.layerwise])
def test_a_type_error_of_a_users_method_is_its_own(prune: Any) -> None:
    @gp.pruning_method("unstructured")
    def method(param: torch.Tensor, scores: Any, *, mask: torch.Tensor) -> torch.Tensor:
        raise TypeError("mine")

    with pytest.raises(TypeError, match=r"^mine$"):
        prune([torch.ones(2)], pruning_method=method)


def test_an_amount_for_each_leaf_may_be_a_tree_or_one_number() -> None:
    params = {"a": torch.arange(4.0), "b": torch.arange(3.0)}
    for amount in (1, {"a": 1, "b": 1}, torch.tensor(1), {"a": torch.tensor(1), "b": 1}):
        masks = gp.layerwise(params, amount=amount)
        assert [int(mask.sum()) for mask in reference.leaves(masks)] == [3, 2]


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
