"""What is done with masks: the laws of application and structure, and intersections."""

from typing import Any

import optree
import torch
from hypothesis import given
from hypothesis import strategies as st

import gprune as gp
from gprune.testing import param_trees, prior_masks
from tests import reference
from tests.assertions import (
    assert_are_masks,
    assert_entries,
    assert_equal_masks,
    assert_same_structure,
)
from tests.cases import map_tensors


@given(param_trees(), st.data())
def test_application(params: Any, data: st.DataObject) -> None:
    masks = data.draw(prior_masks(params))
    assert_entries(gp.apply_masks(params, masks), reference.apply_masks(params, masks), params)


@given(param_trees(dtypes=[torch.float32, torch.float64]), st.data())
def test_straight_through_is_the_masked_value_with_a_dense_gradient(
    params: Any, data: st.DataObject
) -> None:
    params = map_tensors(lambda leaf: leaf.detach().clone().requires_grad_(), params)
    masks = data.draw(prior_masks(params))
    through = gp.straight_through(params, masks)
    assert_entries(through, reference.apply_masks(params, masks), params)
    leaves = optree.tree_leaves(params)
    total = sum(leaf.sum() for leaf in optree.tree_leaves(through))
    for leaf, grad in zip(leaves, torch.autograd.grad(total, leaves), strict=True):
        assert (grad[leaf.isfinite()] == 1).all()


@given(param_trees(), st.data())
def test_masks_intersect(params: Any, data: st.DataObject) -> None:
    one, other = data.draw(prior_masks(params)), data.draw(prior_masks(params))
    both = map_tensors(lambda left, right: left & right, one, other)
    assert_equal_masks(gp.intersect(one, other), both, params)


@given(param_trees(), st.data())
def test_a_parameter_without_a_mask_is_returned_as_it_is(params: Any, data: st.DataObject) -> None:
    chosen = gp.prunable(params, lambda path, leaf: data.draw(st.booleans()))
    assert_same_structure(chosen, params)
    masks = gp.keep_all(chosen)
    assert_are_masks(masks, chosen)
    for apply in (gp.apply_masks, gp.straight_through):
        applied = apply(params, masks)
        assert_same_structure(applied, params)
        for before, mask, after in zip(
            *map(reference.leaves, (params, masks, applied)), strict=True
        ):
            assert mask is not None or after is before


@given(param_trees(), st.integers(-1, 2))
def test_vmap_dims(params: Any, dim: int) -> None:
    dims = gp.vmap_dims(params, dim)
    assert_same_structure(dims, params)
    assert reference.leaves(dims) == [
        None if leaf is None else dim for leaf in reference.leaves(params)
    ]
