"""Drawn trees and amounts reach every hard case: `hypothesis.find` must find one."""

from collections import OrderedDict
from typing import Any

import optree
import pytest
import torch
from hypothesis import Phase, given
from hypothesis import strategies as st

from gprune.testing import SCORE_DTYPES, amounts, param_trees, prior_masks, scores_for
from gprune.testing.strategies import Box, Pair
from tests.support import reference
from tests.support.reaching import Condition, reaches


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


def is_tensor_of(dtype: torch.dtype) -> Condition:
    return lambda amount: isinstance(amount, torch.Tensor) and amount.dtype == dtype


def is_halfway(amount: Any) -> bool:
    return isinstance(amount, float) and amount * 10 % 1 == 0.5


AMOUNTS: dict[str, Condition] = {
    "no weight": lambda amount: type(amount) is int and amount == 0,
    "one weight": lambda amount: type(amount) is int and amount == 1,
    "all weights": lambda amount: type(amount) is int and amount == 10,
    "no fraction": lambda amount: type(amount) is float and amount == 0,
    "all of it": lambda amount: type(amount) is float and amount == 1,
    "halfway to an even count": lambda amount: (
        is_halfway(amount) and round(amount * 10) < amount * 10
    ),
    "halfway to an odd count": lambda amount: (
        is_halfway(amount) and round(amount * 10) > amount * 10
    ),
    **{f"tensor of {dtype}": is_tensor_of(dtype) for dtype in SCORE_DTYPES},
}


@pytest.mark.parametrize("condition", AMOUNTS.values(), ids=AMOUNTS)
def test_amounts_reach(condition: Condition) -> None:
    reaches(amounts(10), condition)


@given(st.integers(0, 1_000), st.data())
def test_amounts_are_valid(candidates: int, data: st.DataObject) -> None:
    amount = reference.exact(data.draw(amounts(candidates)))
    assert 0 <= amount <= (candidates if isinstance(amount, int) else 1)


def test_a_failure_shrinks_to_one_small_leaf() -> None:
    def has_a_tie(params: Any) -> bool:
        entries = [x for leaf in reference.lists(params) for x in leaf or []]
        return len(entries) > len(set(entries))

    smallest = reaches(param_trees(), has_a_tie, Phase.shrink)
    assert isinstance(smallest, torch.Tensor)
    assert reference.entries(smallest) == [0.0, 0.0]
    assert smallest.dtype == torch.float32
