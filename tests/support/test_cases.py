"""Drawn calls of the guarantees reach every hard case: `hypothesis.find` must find one."""

import math
from typing import Any

import optree
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gprune.testing import SCORE_DTYPES
from tests.support import reference
from tests.support.cases import Case, amounts, cases
from tests.support.reaching import Condition, reaches


def boundary(case: Case) -> tuple[Any, Any]:
    """The scores on both sides of the threshold."""
    ranking = reference.ranking(
        reference.scores_of(case.params, case.scores), reference.priors(case.params, case.masks)
    )
    return ranking[case.k - 1][1], ranking[case.k][1]


def is_threshold_inside(case: Case) -> bool:
    return 0 < case.k < reference.num_candidates(case.params, case.masks)


def is_tied(case: Case) -> bool:
    return is_threshold_inside(case) and len(set(boundary(case))) == 1


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
    "threshold among the NaNs": lambda case: (
        is_threshold_inside(case) and all(map(math.isnan, boundary(case)))
    ),
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


@pytest.mark.long
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
