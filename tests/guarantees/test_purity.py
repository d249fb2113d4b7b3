"""Purity: a selection changes none of its inputs and no state of the process."""

import functools

import torch
from hypothesis import given
from hypothesis import strategies as st

import gprune as gp
from gprune.testing import assert_pure
from tests.support.cases import METHODS, Case, cases
from tests.support.limits import Limits, limits, patched


@given(cases(), st.none() | limits())
def test_selection_is_pure(case: Case, small: Limits | None) -> None:
    with patched(small or Limits()):
        for method in METHODS:
            prune = functools.partial(gp.global_unstructured, **method, **case.budget)
            assert_pure(
                lambda params, scores, masks, prune=prune: prune(params, scores, masks=masks),
                *(case.params, case.scores, case.masks),
            )
        assert_pure(
            lambda params, scores, masks: tuple(
                gp.find_threshold(params, scores, masks=masks, **case.budget)
            ),
            *(case.params, case.scores, case.masks),
        )


def test_masks_are_fresh_where_nothing_is_pruned() -> None:
    """Also of a leaf that is ranked alone, and of prior masks."""
    params, prior = [torch.ones(3), torch.ones(2)], [torch.ones(3) > 0, torch.ones(2) > 0]
    for prune in (gp.global_unstructured, gp.layerwise):
        masks = prune(params, masks=prior, amount=0)
        masks[0][0] = False
        assert prior[0].all()
