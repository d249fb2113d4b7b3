"""Drawn trees and tensors reach every hard case: `hypothesis.find` must find one."""

import math
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import optree
import pytest
import torch
from hypothesis import Phase, given
from hypothesis import strategies as st

from gprune.testing import SCORE_DTYPES, param_trees, prior_masks, scores_for, tensors
from gprune.testing.strategies import Box, Pair, layouts
from tests.support import reference
from tests.support.reaching import Condition, reaches

# --- trees --------------------------------------------------------------------------------------


def nodes(tree: Any) -> list[Any]:
    """The tree and all the containers in it."""
    is_leaf = tree is None or isinstance(tree, torch.Tensor)
    children = [] if is_leaf else optree.tree_flatten_one_level(tree)[0]
    return [tree, *(node for child in children for node in nodes(child))]


def holds(node: type) -> Condition:
    return lambda tree: any(type(one) is node and optree.tree_leaves(one) for one in nodes(tree))


def dtypes_of(tree: Any) -> set[torch.dtype]:
    return {leaf.dtype for leaf in optree.tree_leaves(tree)}


TREES: dict[str, Condition] = {
    "a tensor alone": lambda tree: isinstance(tree, torch.Tensor),
    "dict": holds(dict),
    "list": holds(list),
    "tuple": holds(tuple),
    "OrderedDict": holds(OrderedDict),
    "OrderedDict out of order": lambda tree: any(
        isinstance(one, OrderedDict) and list(one) != sorted(one) for one in nodes(tree)
    ),
    "named tuple": holds(Pair),
    "custom node": holds(Box),
    "dict in a dict": lambda tree: any(
        isinstance(one, dict) and any(map(holds(dict), one.values())) for one in nodes(tree)
    ),
    "`None` leaf": lambda tree: any(one is None for one in nodes(tree)),
    "empty container": lambda tree: any(
        isinstance(one, dict | list | tuple) and not one for one in nodes(tree)
    ),
    "three leaves": lambda tree: len(optree.tree_leaves(tree)) == 3,
    "two dtypes": lambda tree: len(dtypes_of(tree)) == 2,
    "float and int": lambda tree: len({d.is_floating_point for d in dtypes_of(tree)}) == 2,
    "an empty leaf among others": lambda tree: (
        {leaf.numel() > 0 for leaf in optree.tree_leaves(tree)} == {True, False}
    ),
    "only empty leaves": lambda tree: reference.num_entries(tree) == 0,
}


@pytest.mark.slow
@pytest.mark.parametrize("condition", TREES.values(), ids=TREES)
def test_param_trees_reach(condition: Condition) -> None:
    reaches(param_trees(), condition)


@given(param_trees(), st.data())
def test_param_trees_have_a_tensor_and_what_is_drawn_for_them_fits(
    params: Any, data: st.DataObject
) -> None:
    assert optree.tree_leaves(params)
    for tree in (data.draw(scores_for(params)), data.draw(prior_masks(params))):
        assert reference.structure(tree) == reference.structure(params)
        for leaf, param in zip(optree.tree_leaves(tree), optree.tree_leaves(params), strict=True):
            assert leaf.shape == param.shape


def test_a_failure_shrinks_to_one_small_leaf() -> None:
    def has_a_tie(params: Any) -> bool:
        entries = [x for leaf in reference.lists(params) for x in leaf or []]
        return len(entries) > len(set(entries))

    smallest = reaches(param_trees(), has_a_tie, Phase.shrink)
    assert isinstance(smallest, torch.Tensor)
    assert reference.entries(smallest) == [0.0, 0.0]
    assert smallest.dtype == torch.float32


# --- tensors ------------------------------------------------------------------------------------


def any_entry(condition: Callable[[float], bool]) -> Condition:
    return lambda tensor: any(map(condition, reference.entries(tensor)))


def smallest_normal(tensor: torch.Tensor) -> float:
    return torch.finfo(tensor.dtype).smallest_normal


def has_denormal(tensor: torch.Tensor) -> bool:
    entries = reference.entries(tensor)
    return tensor.is_floating_point() and any(0 < abs(x) < smallest_normal(tensor) for x in entries)


def has_both_zeros(tensor: torch.Tensor) -> bool:
    return tensor.is_floating_point() and {
        math.copysign(1, x) for x in reference.entries(tensor) if x == 0
    } == {-1.0, 1.0}


TENSORS: dict[str, Condition] = {
    "empty": lambda t: t.numel() == 0,
    "0-dim": lambda t: t.dim() == 0,
    "4-dim": lambda t: t.dim() == 4,
    "all equal": lambda t: t.numel() > 2 and len(set(reference.entries(t))) == 1,
    "all different": lambda t: t.numel() > 4 and len(set(reference.entries(t))) == t.numel(),
    "NaN": any_entry(math.isnan),
    "all NaN": lambda t: t.numel() > 1 and all(map(math.isnan, reference.entries(t))),
    "NaN and numbers": lambda t: len(set(map(math.isnan, reference.entries(t)))) == 2,
    "inf": any_entry(lambda x: x == math.inf),
    "-inf": any_entry(lambda x: x == -math.inf),
    "-0.0 beside 0.0": has_both_zeros,
    "denormal": has_denormal,
    "expanded": lambda t: 0 in t.stride() and t.numel() > 1,
    "not contiguous": lambda t: not t.is_contiguous() and 0 not in t.stride(),
    "strided, with an offset": lambda t: t.storage_offset() > 0 and t.numel() > 1,
    "transposed": lambda t: t.dim() == 2 and t.t().is_contiguous() and not t.is_contiguous(),
    "channels-last": lambda t: (
        t.dim() == 4
        and t.is_contiguous(memory_format=torch.channels_last)
        and not t.is_contiguous()
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("condition", TENSORS.values(), ids=TENSORS)
def test_tensors_reach(condition: Condition) -> None:
    reaches(tensors(), condition)


EXTREMES: dict[torch.dtype, tuple[float, float]] = {
    torch.float32: (2.0**-149, torch.finfo(torch.float32).max),
    torch.float64: (2.0**-1074, torch.finfo(torch.float64).max),
    torch.float16: (2.0**-24, 65504),
    torch.bfloat16: (2.0**-133, torch.finfo(torch.bfloat16).max),
    torch.int64: (-(2**53), 2**53),
    torch.int32: (-(2**31), 2**31 - 1),
    torch.int16: (-(2**15), 2**15 - 1),
    torch.int8: (-128, 127),
    torch.uint8: (0, 255),
}


LONG = (torch.float64, torch.float16, torch.bfloat16)


@pytest.mark.slow
@pytest.mark.parametrize(
    "dtype",
    [
        pytest.param(dtype, marks=pytest.mark.long if dtype in LONG else [])
        for dtype in SCORE_DTYPES
    ],
    ids=str,
)
def test_tensors_reach_the_ends_of_each_dtype(dtype: torch.dtype) -> None:
    for extreme in EXTREMES[dtype]:
        found = reaches(tensors(dtypes=[dtype]), any_entry(lambda x, at=extreme: x == at))
        assert found.dtype == dtype


@given(tensors(), st.data())
def test_layouts_keep_the_entries(tensor: torch.Tensor, data: st.DataObject) -> None:
    other = data.draw(layouts(tensor))
    assert (other.dtype, other.shape) == (tensor.dtype, tensor.shape)
    assert repr(reference.entries(other)) == repr(reference.entries(tensor))
