"""Blocks of entries: by hand, and against an oracle."""

import torch
from hypothesis import given
from hypothesis import strategies as st

import gprune as gp
from gprune.testing import prior_masks, tensors
from tests.support import reference_patterns
from tests.support.cases import fractions
from tests.support.golden import SCORES, bits


def test_golden_blocks() -> None:
    """Means of 2 x 4: 3.5, 5.5, 3.5, 4.5; of 3 x 3, cut off at 8 and at 4, see below."""
    got = gp.blocks(SCORES, shape=(2, 4), amount=1)
    assert got.tolist() == bits("00001111", "00001111", "11111111", "11111111")
    got = gp.blocks(SCORES, shape=(2, 4), amount=2)
    assert got.tolist() == bits("00001111", "00001111", "00001111", "00001111")
    # rows 0-2: columns 0-2 31/9, 3-5 29/9, 6-7 42/6; row 3: 15/3, 17/3, 2/2
    got = gp.blocks(SCORES, shape=(3, 3), amount=2)
    assert got.tolist() == bits("11100011", "11100011", "11100011", "11111100")
    got = gp.blocks(SCORES, shape=(3, 3), amount=0.5)
    assert got.tolist() == bits("00000011", "00000011", "00000011", "11111100")
    # rows in pieces of 5 and of 3: 4.8 4, 3 7, 2.4 6, 4.8 3.33
    got = gp.blocks(SCORES, shape=(5,), sparsity=0.25)
    assert got.tolist() == bits("11111111", "00000111", "00000111", "11111111")


SMALL = [torch.float32, torch.int8, torch.uint8, torch.bfloat16]


@given(tensors(dtypes=SMALL).filter(lambda t: t.dim() > 0), st.data())
def test_blocks(scores: torch.Tensor, data: st.DataObject) -> None:
    """On integers, whose sums are exact; or with what is not a number."""
    scores = scores.nan_to_num(posinf=9, neginf=-9).clamp(-100, 100).round().to(scores.dtype)
    block = data.draw(st.lists(st.integers(1, 4), min_size=1, max_size=scores.dim()).map(tuple))
    mask = data.draw(st.none() | prior_masks(scores))
    prior = reference_patterns.prior_of(scores, mask)
    groups = reference_patterns.tiles_of(scores.shape, block)
    num_alive = sum(any(prior[index] for index in group) for group in groups)
    budget = data.draw(
        st.one_of(
            st.fixed_dictionaries({"amount": st.integers(0, num_alive)}),
            st.fixed_dictionaries({"amount": st.floats(0, 1)}),
            st.fixed_dictionaries({"sparsity": fractions()}),
        )
    )
    if not groups:  # of an empty tensor nothing is a block, and nothing is pruned
        budget = {"sparsity": 0.5}
    got = gp.blocks(torch.zeros(scores.shape), scores, mask=mask, shape=block, **budget)
    assert (got.dtype, got.shape, got.is_contiguous()) == (torch.bool, scores.shape, True)
    assert got.flatten().tolist() == reference_patterns.blocks(scores, mask, block, **budget)


def test_a_block_with_a_nan_is_pruned_last() -> None:
    scores = torch.tensor([float("nan"), 0.0, 9.0, 9.0, 1.0])
    assert gp.blocks(scores, shape=(2,), amount=2).tolist() == [True, True, False, False, False]


def test_single_entries_that_the_prior_has_pruned_stay_pruned() -> None:
    scores, mask = torch.tensor([3.0, 4.0, 1.0, 1.0]), torch.tensor([True, False, True, True])
    kept = gp.blocks(scores, mask=mask, shape=(2,), amount=1)
    assert kept.tolist() == [True, False, False, False]
