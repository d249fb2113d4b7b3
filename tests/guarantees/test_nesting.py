"""Nesting: with the same scores, the mask of a larger amount is a subset of that of a smaller."""

from hypothesis import given
from hypothesis import strategies as st

import gprune as gp
from tests.support import reference
from tests.support.assertions import assert_subset
from tests.support.cases import METHODS, Case, cases
from tests.support.limits import Limits, limits, patched


@given(cases(), st.data(), st.none() | limits())
def test_nesting(case: Case, data: st.DataObject, small: Limits | None) -> None:
    candidates = reference.num_candidates(case.params, case.masks)
    few = data.draw(st.integers(0, candidates))
    many = data.draw(st.integers(few, candidates))
    for method in METHODS:
        arguments = {"masks": case.masks, **method}
        with patched(small or Limits()):
            fewer = gp.global_unstructured(case.params, case.scores, amount=few, **arguments)
        more = gp.global_unstructured(case.params, case.scores, amount=many, **arguments)
        assert_subset(more, fewer)
