"""What is done with masks: the laws of application and structure, and intersections."""

import math
from typing import Any

import optree
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import gprune as gp
from gprune.testing import param_trees, prior_masks
from tests.support import reference
from tests.support.assertions import (
    assert_are_masks,
    assert_entries,
    assert_equal_masks,
    assert_same_structure,
)
from tests.support.cases import map_tensors


@given(param_trees(), st.data())
def test_application(params: Any, data: st.DataObject) -> None:
    masks = data.draw(prior_masks(params))
    assert_entries(gp.apply_masks(params, masks), reference.apply_masks(params, masks), params)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("apply", [gp.apply_masks, gp.straight_through])
def test_what_is_masked_is_zero_whatever_it_was(apply: Any, dtype: torch.dtype) -> None:
    weights = torch.tensor([math.nan, math.inf, -math.inf, -2.0, 3.0], dtype=dtype)
    masked = apply([weights], [torch.zeros(5, dtype=torch.bool)])[0]
    assert masked.dtype == dtype
    assert masked.tolist() == [0.0] * 5
    kept = apply([weights], [torch.ones(5, dtype=torch.bool)])[0]
    assert kept[1:].equal(weights[1:])
    assert kept[0].isnan()


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


def test_a_mask_at_a_hole_is_refused() -> None:
    params, masks = [torch.ones(2), None], [torch.ones(2).bool(), torch.ones(2).bool()]
    for call in (
        lambda: gp.global_unstructured(params, masks=masks, amount=1),
        lambda: gp.find_threshold(params, masks=masks, amount=1),
        lambda: gp.apply_masks(params, masks),
        lambda: gp.intersect(gp.keep_all(params), masks),
    ):
        with pytest.raises(ValueError, match=r"masks\[1\] is a tensor, its parameter is None"):
            call()


def test_counts_are_exact_beyond_float32() -> None:
    rows = 2**24 + 1
    masks = torch.tensor([[True], [False]]).expand(2, rows)  # takes two bytes
    pruned = gp.num_pruned([masks, None])
    assert (pruned.dtype, pruned.shape, pruned.item()) == (torch.int64, (), rows)
    assert gp.sparsity([masks, None]).item() == 0.5


@pytest.mark.parametrize("backend", [None, "eager"])
def test_dicts_keep_the_order_of_insertion(backend: str | None) -> None:
    params = {"b": torch.ones(2), "c": {"z": None, "y": torch.ones(1)}, "a": torch.ones(3)}
    make = gp.keep_all
    if backend:
        torch._dynamo.reset()
        make = torch.compile(make, backend=backend, fullgraph=True)
    masks = make(params)
    assert list(masks) == ["b", "c", "a"]
    assert list(masks["c"]) == ["z", "y"]
    assert_are_masks(masks, params)


@pytest.mark.parametrize(
    ("where", "chosen"),
    [
        (None, ["fc.weight", "head.fc.weight"]),
        ("fc.*", ["fc.bias", "fc.weight"]),
        ("*fc.weight", ["fc.weight", "head.fc.weight"]),
        (["fc.b*", "norm.?eight"], ["fc.bias", "norm.weight"]),
        ("FC.*", []),
        ([], []),
        (lambda path, leaf: leaf.numel() == 2, ["fc.bias", "norm.weight"]),
    ],
)
def test_prunable(where: Any, chosen: list[str]) -> None:
    params = {
        "norm": {"weight": torch.ones(2)},
        "fc": {"weight": torch.ones(2, 3), "bias": torch.ones(2)},
        "head": {"fc": {"weight": torch.ones(1, 3)}, "ids": torch.ones(1, 3).int()},
    }
    tree = gp.prunable(params, where)
    assert_same_structure(tree, params)
    paths = ["fc.bias", "fc.weight", "head.fc.weight", "head.ids", "norm.weight"]
    kept = reference.leaves(tree)
    assert [path for path, leaf in zip(paths, kept, strict=True) if leaf is not None] == chosen
    for leaf, param in zip(kept, reference.leaves(params), strict=True):
        assert leaf is None or leaf is param


@given(param_trees(), st.integers(-1, 2))
def test_vmap_dims(params: Any, dim: int) -> None:
    dims = gp.vmap_dims(params, dim)
    assert_same_structure(dims, params)
    assert reference.leaves(dims) == [
        None if leaf is None else dim for leaf in reference.leaves(params)
    ]


@given(param_trees(), st.data())
def test_agreement(params: Any, data: st.DataObject) -> None:
    one, other = data.draw(prior_masks(params)), data.draw(prior_masks(params))
    got = gp.agreement(one, other)
    assert_same_structure(got.hamming, params)
    pairs = zip(reference.lists(one), reference.lists(other), strict=True)
    both = [(set(_kept(a)), set(_kept(b))) for a, b in pairs if a is not None]
    hamming = [x.item() for x in reference.leaves(got.hamming) if x is not None]
    assert hamming == [len(a ^ b) for a, b in both]
    jaccard = [x.item() for x in reference.leaves(got.jaccard) if x is not None]
    assert jaccard == [len(a & b) / len(a | b) if a | b else 1 for a, b in both]


def _kept(mask: list[bool]) -> list[int]:
    return [i for i, keep in enumerate(mask) if keep]
