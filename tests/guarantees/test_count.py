"""Count: exactly as many candidates are pruned as an amount or a sparsity says."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import gprune as gp
from tests.support import reference
from tests.support.assertions import assert_subset
from tests.support.cases import Case, amounts, cases


@given(cases())
def test_candidates(case: Case) -> None:
    masks = case.masks_for(gp.global_unstructured)
    if case.masks is not None:
        assert_subset(masks, case.masks)
    assert reference.num_candidates(case.params, masks) == (
        reference.num_candidates(case.params, case.masks) - case.k
    )


@given(st.data(), st.integers(0, 10**6) | st.integers(2**24, 2**40))
def test_num_to_prune(data: st.DataObject, candidates: int) -> None:
    amount = data.draw(amounts(candidates))
    assert int(gp.num_to_prune(amount, candidates)) == reference.num_to_prune(amount, candidates)


@pytest.mark.parametrize("amount", [0.1, 0.3, 0.7])
def test_a_python_float_counts_in_float64(amount: float) -> None:
    """In float32, 0.3 of a billion would be twelve more."""
    assert int(gp.num_to_prune(amount, 10**9)) == round(amount * 10**9)


@pytest.mark.parametrize("candidates", range(1, 40, 2))
def test_halves_go_to_the_even_neighbour(candidates: int) -> None:
    k = candidates // 2 + candidates // 2 % 2
    params = torch.ones(candidates)
    assert int(gp.num_to_prune(0.5, candidates)) == k
    for budget in ({"amount": 0.5}, {"sparsity": 0.5}):
        assert int(gp.num_pruned(gp.global_unstructured(params, **budget))) == k


@pytest.mark.parametrize("pruned", range(11))
@pytest.mark.parametrize("sparsity", [0, 0.25, 0.5, 0.75, 0.85, 1])
def test_sparsity_counts_all_entries(pruned: int, sparsity: float) -> None:
    mask = torch.arange(10) >= pruned
    kept = gp.lowest_unstructured(torch.ones(10), mask=mask, sparsity=sparsity)
    assert int(gp.num_pruned(kept)) == max(pruned, round(sparsity * 10))


@given(cases())
def test_count(case: Case) -> None:
    masks = case.masks_for(gp.global_unstructured)
    before = reference.num_entries(case.params) - reference.num_candidates(case.params, case.masks)
    assert int(gp.num_pruned(masks)) == before + case.k
    ratio = gp.sparsity(masks)
    assert (ratio.dtype, ratio.shape) == (torch.float64, ())
    entries = reference.num_entries(case.params)
    if entries:
        assert ratio.item() == (before + case.k) / entries


def test_an_amount_that_requires_grad() -> None:
    amount = torch.tensor(0.5, requires_grad=True)
    assert gp.num_pruned(gp.global_unstructured([torch.ones(4)], amount=amount)) == 2
