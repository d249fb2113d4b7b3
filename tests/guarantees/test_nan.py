"""NaN: ranked above everything, so pruned last."""

import math

from hypothesis import given

import gprune as gp
from tests.support import reference
from tests.support.cases import Case, cases


@given(cases())
def test_nan_is_pruned_last(case: Case) -> None:
    masks = reference.lists(case.masks_for(gp.global_unstructured))
    scores = reference.scores_of(case.params, case.scores)
    kept_numbers, lost_nans = 0, 0
    for score, prior, mask in zip(
        scores, reference.priors(case.params, case.masks), masks, strict=True
    ):
        for s, p, m in zip(score or [], prior or [], mask or [], strict=True):
            kept_numbers += m and not math.isnan(s)
            lost_nans += p and not m and math.isnan(s)
    assert not (kept_numbers and lost_nans), f"{lost_nans} NaN went, {kept_numbers} numbers stayed"
