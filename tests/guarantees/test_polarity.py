"""Polarity: a mask is a bool tensor, True = keep, with the shape and device of its parameter."""

from hypothesis import given

import gprune as gp
from tests.support import reference
from tests.support.assertions import assert_are_masks, assert_masks
from tests.support.cases import Case, cases


@given(cases())
def test_polarity(case: Case) -> None:
    kept = gp.keep_all(case.params)
    assert_masks(kept, reference.priors(case.params, None), case.params)
    assert_are_masks(case.masks_for(gp.global_unstructured), case.params)
    everything = gp.global_unstructured(case.params, case.scores, amount=1.0)
    assert not any(any(mask) for mask in reference.lists(everything) if mask is not None)
