"""Single entries by score, by absolute value and at random, against the oracle."""

from typing import Any

import torch
from hypothesis import assume, given
from hypothesis import strategies as st

import gprune as gp
from gprune.testing import param_trees, prior_masks, tensors
from tests.support import reference
from tests.support.assertions import assert_equal_masks, assert_masks, assert_same_structure
from tests.support.cases import Case, budgets, cases, map_tensors


@given(tensors(), st.data())
def test_methods_of_one_tensor(scores: torch.Tensor, data: st.DataObject) -> None:
    mask = data.draw(st.none() | prior_masks(scores))
    budget = data.draw(budgets(reference.num_candidates(scores, mask)))
    k = reference.count(scores, mask, **budget)
    param = torch.zeros(scores.shape)  # what the scores are of does not matter
    lowest = gp.lowest_unstructured(param, scores, mask=mask, **budget)
    assert_masks(lowest, reference.global_masks(scores, scores, k, mask), scores)
    by_magnitude = reference.global_masks(scores, None, k, mask)
    for masks in (
        gp.lowest_unstructured(scores, mask=mask, **budget),
        gp.l1_unstructured(scores, mask=mask, **budget),
        gp.l1_unstructured(param, scores, mask=mask, **budget),
    ):
        assert_masks(masks, by_magnitude, scores)
    assert_masks(gp.identity(scores, mask=mask), reference.priors(scores, mask), scores)


@given(cases())
def test_l1_ranks_given_scores_by_absolute_value(case: Case) -> None:
    assume(case.scores is not None)
    masks = case.masks_for(
        lambda *args, **kwargs: gp.global_unstructured(
            *args, pruning_method=gp.l1_unstructured, **kwargs
        )
    )
    magnitudes = reference.magnitude(map_tensors(lambda _, score: score, case.params, case.scores))
    expected = reference.prune(magnitudes, reference.priors(case.params, case.masks), case.k)
    assert_masks(masks, expected, case.params)


@given(param_trees(), st.data(), st.integers(0, 2**63 - 1))
def test_random_pruning_is_a_function_of_its_seed(
    params: Any, data: st.DataObject, seed: int
) -> None:
    masks = data.draw(st.none() | prior_masks(params))
    budget = data.draw(budgets(reference.num_candidates(params, masks)))
    scores = gp.scores.random(params, seed=seed)
    assert_same_structure(scores, params)
    expected = gp.global_unstructured(params, scores, masks=masks, **budget)
    for s in (seed, torch.tensor(seed)):
        got = gp.global_unstructured(
            params, masks=masks, pruning_method=gp.random_unstructured, seed=s, **budget
        )
        assert_equal_masks(got, expected, params)


@given(param_trees(), st.floats(0, 1), st.integers(0, 2**63 - 1))
def test_each_leaf_alone_is_pruned_at_random_by_its_own_draws(
    params: Any, amount: float, seed: int
) -> None:
    expected = gp.layerwise(params, gp.scores.random(params, seed=seed), amount=amount)
    method = {"pruning_method": gp.random_unstructured, "seed": seed}
    assert_equal_masks(gp.layerwise(params, amount=amount, **method), expected, params)
