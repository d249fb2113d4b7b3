"""Rows: every row of a matrix is pruned as if it were alone."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import gprune as gp
from gprune.select.rows import _by_comparing, _by_sorting, _by_threshold, prune_rows
from gprune.testing import SCORE_DTYPES
from tests.support import fuzz
from tests.support.accelerator import DEVICE, measured
from tests.support.limits import Limits, patched


@pytest.mark.parametrize("dtype", SCORE_DTYPES, ids=str)
@pytest.mark.parametrize("absolute", [False, True])
def test_every_row_is_pruned_as_if_alone(dtype: torch.dtype, absolute: bool) -> None:
    @given(
        st.integers(0, 2**32 - 1),
        st.sampled_from(fuzz.DISTRIBUTIONS),
        st.sampled_from(
            ["none", "half kept", "nearly all pruned", "all kept", "first half pruned"]
        ),
        st.integers(1, 60),
    )
    def check(seed: int, values: str, kind: str, block: int) -> None:
        rng = np.random.default_rng(seed)
        rows, size = rng.integers(0, 7), rng.integers(0, 12)
        array = fuzz.values_of(values, rng, rows * size, dtype).reshape(rows, size)
        scores = fuzz.tensor_of(array, dtype).view(rows, size)
        exact = fuzz.exact(array, dtype)
        exact = np.abs(exact) if absolute else exact
        make = fuzz.PRIORS[kind]
        flat = np.ones(rows * size, bool) if make is None else make(rng, exact.reshape(-1))
        prior = flat.reshape(rows, size)
        number = float(rng.choice([rng.random(), 0.0, 0.5, 1.0]))
        is_sparsity = bool(rng.integers(0, 2))
        amount = torch.tensor(number, dtype=torch.float64)
        if not is_sparsity and rng.random() < 0.5:
            amount = torch.tensor(int(rng.integers(0, prior.sum(1).min(initial=size) + 1)))
        with patched(Limits(block=block)):
            kept = prune_rows(
                scores,
                None if make is None else torch.from_numpy(prior),
                amount,
                absolute=absolute,
                is_sparsity=is_sparsity,
            )
        assert (kept.dtype, kept.shape) == (torch.bool, scores.shape)
        for got, row, mask in zip(kept.numpy(), exact, prior, strict=True):
            much = {"sparsity" if is_sparsity else "amount": amount}
            k = fuzz.count(much, int(mask.sum()), int(size))
            expected = fuzz.pruned(mask, fuzz.order_of(row, mask)[:k])
            assert got.tolist() == expected.tolist()

    check()


def test_the_largest_integer_is_no_different_from_the_others() -> None:
    """Pruned entries are put above all candidates, also above the largest."""
    top = torch.iinfo(torch.int32).max
    scores = torch.tensor([[top, top, 0, top]], dtype=torch.int32)
    prior = torch.tensor([[False, True, True, True]])
    kept = prune_rows(scores, prior, torch.tensor(2), absolute=False, is_sparsity=False)
    assert kept.tolist() == [[False, False, False, True]]


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64], ids=str)
def test_nans_are_pruned_after_all_others_in_a_row_with_priors(dtype: torch.dtype) -> None:
    scores = torch.tensor([[float("nan"), 1, float("nan"), 2]], dtype=dtype)
    prior = torch.tensor([[True, True, False, True]])
    for k, expected in ((2, [1, 0, 0, 0]), (3, [0, 0, 0, 0])):
        kept = prune_rows(scores, prior, torch.tensor(k), absolute=False, is_sparsity=False)
        assert kept.tolist() == [[bool(x) for x in expected]]


@pytest.mark.parametrize("rows", [1, 3, 1000])
def test_more_rows_than_a_block_holds(rows: int) -> None:
    scores = torch.randint(0, 5, (rows, 17), generator=torch.Generator().manual_seed(rows))
    at_once = gp.lowest_unstructured(scores, amount=0.3, dim=-1)
    with patched(Limits(block=40)):
        assert torch.equal(gp.lowest_unstructured(scores, amount=0.3, dim=-1), at_once)


def test_amounts_are_checked_where_there_is_no_row() -> None:
    for shape in ((0, 3), (3, 0)):
        with pytest.raises(ValueError, match="amount must"):
            prune_rows(torch.ones(shape), None, torch.tensor(-1), absolute=False, is_sparsity=False)


def test_an_amount_above_the_candidates_of_one_row_is_refused() -> None:
    mask = torch.tensor([[True, True, True], [True, False, False]])
    with pytest.raises(ValueError, match="candidates, 1"):
        prune_rows(torch.ones(2, 3), mask, torch.tensor(2), absolute=False, is_sparsity=False)


@given(st.integers(0, 2**32 - 1), st.integers(1, 12), st.booleans())
def test_the_ways_to_prune_rows_agree(seed: int, size: int, is_each: bool) -> None:
    """Of few equal keys, so that ties are everywhere, with one k for all rows or one for each."""
    rng = np.random.default_rng(seed)
    keys = rng.integers(0, 4, (30, size))
    ks = rng.integers(0, size + 1, (30, 1)) if is_each else np.full((30, 1), rng.integers(size + 1))
    expected = np.ones(keys.shape, bool)
    for row, (own, [k]) in enumerate(zip(keys, ks, strict=True)):
        expected[row, np.argsort(own, kind="stable")[:k]] = False
    number = torch.from_numpy(ks) if is_each else int(ks[0, 0])
    for prune in (_by_comparing, _by_sorting, _by_threshold):
        assert prune(torch.from_numpy(keys), number).tolist() == expected.tolist()


@pytest.mark.parametrize("size", [4, 40])
def test_an_accelerator_is_not_waited_for(size: int) -> None:
    scores = torch.randn(50, size, generator=torch.Generator().manual_seed(0))
    prior = torch.rand(50, size, generator=torch.Generator().manual_seed(1)) < 0.7
    for amount, is_sparsity in ((torch.tensor(0.3), False), (torch.tensor(0.7), True)):
        for mask in (None, prior):
            given = {"absolute": True, "is_sparsity": is_sparsity}
            expected = prune_rows(scores, mask, amount, **given)
            prior_there = None if mask is None else mask.to(DEVICE)
            on_device = scores.to(DEVICE)
            with measured() as cost:
                got = prune_rows(on_device, prior_there, amount, **given)
            assert cost.waits == 0, cost.waits_at
            assert got.cpu().equal(expected)
