"""Structure: masks have the structure of the parameters, and every leaf is its own."""

import optree
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

import gprune as gp
from gprune.testing import tensors
from tests.support import reference
from tests.support.assertions import assert_equal_masks, assert_masks
from tests.support.cases import Case, cases


@given(cases())
def test_scores_at_none_leaves_do_not_matter(case: Case) -> None:
    assume(case.scores is not None)
    filled = [torch.ones(2) if leaf is None else leaf for leaf in reference.leaves(case.scores)]
    scores = optree.tree_unflatten(reference.structure(case.scores), filled)
    masks = Case(case.params, scores, case.masks, case.budget).masks_for(gp.global_unstructured)
    assert_equal_masks(masks, case.masks_for(gp.global_unstructured), case.params)


@given(tensors(), st.data())
def test_leaves_are_independent_even_where_they_share_memory(
    shared: torch.Tensor, data: st.DataObject
) -> None:
    twice, apart = [shared, shared], [shared, shared.clone()]
    k = data.draw(st.integers(0, 2 * shared.numel()))
    masks = gp.global_unstructured(twice, amount=k)
    assert_masks(masks, reference.global_masks(apart, None, k), apart)
