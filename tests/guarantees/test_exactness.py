"""Exactness: the pruned candidates are the first k of the oracle's order, whatever the search does.

The oracle is tests/support/reference.py.
"""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import gprune as gp
from tests.support import reference
from tests.support.assertions import assert_masks, assert_threshold
from tests.support.cases import Case, cases, layerwise_cases
from tests.support.limits import Limits, limits, patched

# Everything rests on this guarantee. The quick profile draws 200 examples, because contributors run
# it all day; ci draws 2,000 and nightly 50,000.
IS_QUICK = settings().max_examples < 100
exactness = settings(max_examples=(8 if IS_QUICK else 20) * settings().max_examples)
more = settings(max_examples=(2 if IS_QUICK else 4) * settings().max_examples)


@exactness
@given(cases())
def test_exactness(case: Case) -> None:
    expected = reference.global_masks(case.params, case.scores, case.k, case.masks)
    assert_masks(case.masks_for(gp.global_unstructured), expected, case.params)


@pytest.mark.slow
@exactness
@given(cases(), limits())
def test_exactness_under_small_limits(case: Case, small: Limits) -> None:
    """What large leaves go through: trees that fit in a block would only be collected."""
    expected = reference.global_masks(case.params, case.scores, case.k, case.masks)
    with patched(small):
        assert_masks(case.masks_for(gp.global_unstructured), expected, case.params)
        threshold = case.masks_for(gp.find_threshold)
    assert_threshold(threshold, reference.threshold(case.params, case.scores, case.k, case.masks))


@pytest.mark.slow
@more
@given(cases(), limits(), st.lists(st.floats(0, 1), min_size=2, max_size=6))
def test_exactness_of_several_amounts(case: Case, small: Limits, amounts: list[float]) -> None:
    """Several amounts in one search."""
    vector = torch.tensor(amounts, dtype=torch.float64)

    def prune(amount: torch.Tensor) -> Any:
        return gp.global_unstructured(flat, scores, masks=masks, amount=amount)

    flat, scores, masks = (
        tree if tree is None else gp.trees.flatten(tree)[0]  # torch's vmap knows few kinds of nodes
        for tree in (case.params, case.scores, case.masks)
    )
    with patched(small):
        found = gp.find_threshold(case.params, case.scores, masks=case.masks, amount=vector)
        batch = torch.vmap(prune, out_dims=gp.vmap_dims(flat))(vector)
    candidates = reference.num_candidates(case.params, case.masks)
    for i, amount in enumerate(amounts):
        k = reference.num_to_prune(amount, candidates)
        threshold = gp.Threshold(found.value[i], found.flat_index[i])
        expected = reference.threshold(case.params, case.scores, k, case.masks)
        assert_threshold(threshold, expected)
        one = [None if leaf is None else leaf[i] for leaf in batch]
        assert_masks(one, reference.global_masks(case.params, case.scores, k, case.masks), flat)


@pytest.mark.slow
@more
@given(cases(), st.integers(1, 80))
def test_exactness_without_collecting(case: Case, block: int) -> None:
    """What every device but the CPU does: keys are counted in bins until one key is left."""
    expected = reference.global_masks(case.params, case.scores, case.k, case.masks)
    for max_pass_bits in (3, 15):
        small = Limits(block=block, max_pass_bits=max_pass_bits, limit=0, few=2**62)
        with patched(small):
            assert_masks(case.masks_for(gp.global_unstructured), expected, case.params)


def test_bins_are_counted_among_the_candidates() -> None:
    """Scores that share their first digits, each of them twice, and every third pruned before."""
    scores = [1 + (torch.arange(40) * 7 % 20) / 2**20]
    masks = [torch.arange(40) % 3 > 0]
    for k in range(reference.num_candidates(scores, masks) + 1):
        expected = reference.global_masks(scores, scores, k, masks)
        with patched(Limits(block=7, max_pass_bits=3, limit=0, few=2**62)):
            got = gp.global_unstructured(scores, scores, masks=masks, amount=k)
        assert_masks(got, expected, scores)


@given(layerwise_cases())
def test_layerwise(drawn: tuple[Case, list[int | None]]) -> None:
    case, ks = drawn
    expected = reference.layerwise_masks(case.params, case.scores, ks, case.masks)
    assert_masks(case.masks_for(gp.layerwise), expected, case.params)


@more
@given(layerwise_cases(), limits())
def test_layerwise_under_small_limits(drawn: tuple[Case, list[int | None]], small: Limits) -> None:
    """One query per leaf, some of which are settled by one pass and some by another."""
    case, ks = drawn
    expected = reference.layerwise_masks(case.params, case.scores, ks, case.masks)
    with patched(small):
        assert_masks(case.masks_for(gp.layerwise), expected, case.params)
