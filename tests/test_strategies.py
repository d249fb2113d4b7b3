"""The strategies reach every hard case: `hypothesis.find` must find one."""

import math
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import optree
import pytest
import torch
from hypothesis import HealthCheck, Phase, find, given, settings
from hypothesis import strategies as st
from hypothesis.errors import NoSuchExample

from gprune.testing import (
    SCORE_DTYPES,
    amounts,
    layouts,
    param_trees,
    prior_masks,
    scores_for,
    tensors,
)
from gprune.testing.strategies import Box, Pair
from tests.support import reference
from tests.support.cases import Case, cases

Condition = Callable[[Any], bool]


def reaches(strategy: st.SearchStrategy[Any], condition: Condition, *more: Phase) -> Any:
    """An example that meets the condition, within 5,000 draws of a fixed sequence."""
    limits = settings(
        max_examples=5_000,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.generate, *more],
        suppress_health_check=[HealthCheck.too_slow],  # as in conftest.py
    )
    try:
        return find(strategy, condition, settings=limits)
    except NoSuchExample:
        pytest.fail("not reached in 5,000 draws")


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


@pytest.mark.parametrize("dtype", SCORE_DTYPES, ids=str)
def test_tensors_reach_the_ends_of_each_dtype(dtype: torch.dtype) -> None:
    for extreme in EXTREMES[dtype]:
        found = reaches(tensors(dtypes=[dtype]), any_entry(lambda x, at=extreme: x == at))
        assert found.dtype == dtype


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
    "hole": lambda tree: any(one is None for one in nodes(tree)),
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


@given(tensors(), st.data())
def test_layouts_keep_the_entries(tensor: torch.Tensor, data: st.DataObject) -> None:
    other = data.draw(layouts(tensor))
    assert (other.dtype, other.shape) == (tensor.dtype, tensor.shape)
    assert repr(reference.entries(other)) == repr(reference.entries(tensor))


def boundary(case: Case) -> tuple[Any, Any]:
    """The scores on both sides of the cut."""
    ranking = reference.ranking(
        reference.scores_of(case.params, case.scores), reference.priors(case.params, case.masks)
    )
    return ranking[case.k - 1][1], ranking[case.k][1]


def is_cut_inside(case: Case) -> bool:
    return 0 < case.k < reference.num_candidates(case.params, case.masks)


def is_tied(case: Case) -> bool:
    return is_cut_inside(case) and len(set(boundary(case))) == 1


def flat_masks(case: Case) -> list[bool]:
    return [keep for mask in reference.priors(case.params, case.masks) for keep in mask or []]


CASES: dict[str, Condition] = {
    "tie at the boundary": is_tied,
    "tie between leaves": lambda case: (
        is_tied(case) and all(leaf.numel() == 1 for leaf in optree.tree_leaves(case.params))
    ),
    "tie between dtypes": lambda case: (
        is_tied(case) and len({type(score) for score in boundary(case)}) == 2
    ),
    "tie of the zeros": lambda case: (
        is_tied(case) and sorted(map(str, boundary(case))) == ["-0.0", "0.0"]
    ),
    "cut among the NaNs": lambda case: is_cut_inside(case) and all(map(math.isnan, boundary(case))),
    "prior": lambda case: case.masks is not None and len(set(flat_masks(case))) == 2,
    "fully pruned prior": lambda case: flat_masks(case) and not any(flat_masks(case)),
    "one leaf fully pruned": lambda case: (
        case.masks is not None
        and {any(mask) for mask in reference.lists(case.masks) if mask} == {True, False}
    ),
    "prior not contiguous": lambda case: any(
        not mask.is_contiguous() for mask in optree.tree_leaves(case.masks)
    ),
    "nothing to prune": lambda case: case.k == 0 and any(flat_masks(case)),
    "everything to prune": lambda case: case.k == sum(flat_masks(case)) > 1,
    "sparsity already passed": lambda case: (
        "sparsity" in case.budget
        and case.budget["sparsity"] > 0
        and case.k == 0
        and not all(flat_masks(case))
    ),
}


@pytest.mark.parametrize("condition", CASES.values(), ids=CASES)
def test_cases_reach(condition: Condition) -> None:
    reaches(cases(), condition)


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
