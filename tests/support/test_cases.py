"""Drawn calls of the guarantees reach every hard case: `hypothesis.find` must find one."""

import math
from typing import Any

import optree
import pytest

from tests.support import reference
from tests.support.cases import Case, cases
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
