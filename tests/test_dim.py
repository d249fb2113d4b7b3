"""Comparison groups: with `dim=`, the guarantees hold within each group of a leaf."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import gprune as gp
from gprune.testing import prior_masks, tensors
from tests.support import reference

METHODS = {"lowest": gp.lowest_unstructured, "l1": gp.l1_unstructured}


def groups(tensor: torch.Tensor, dims: list[int]) -> torch.Tensor:
    """One row per group, of the entries that differ in nothing but `dims`."""
    if tensor.numel() == 0:
        return tensor.new_empty(0, 0)
    rest = [d for d in range(tensor.dim()) if d not in dims]
    rows = tensor.permute(rest + dims).reshape(*(tensor.shape[d] for d in rest), -1)
    return rows.reshape(-1, rows.shape[-1])


@given(tensors().filter(lambda t: t.dim() > 0), st.data())
def test_every_group_is_pruned_as_if_alone(scores: torch.Tensor, data: st.DataObject) -> None:
    dims = sorted(data.draw(st.sets(st.integers(0, scores.dim() - 1), min_size=1)))
    signed = tuple(d - scores.dim() if data.draw(st.booleans()) else d for d in dims)
    dim = signed[0] if len(signed) == 1 else signed
    mask = data.draw(st.none() | prior_masks(scores))
    budget = data.draw(
        st.one_of(
            st.fixed_dictionaries({"amount": st.floats(0, 1)}),
            st.fixed_dictionaries({"sparsity": st.floats(0, 1)}),
            st.just({"amount": 0}),
        )
    )
    name = data.draw(st.sampled_from(sorted(METHODS)))
    if scores.numel() and all(scores.shape[d] == 1 for d in dims):
        with pytest.raises(ValueError, match="single entry"):
            METHODS[name](scores, mask=mask, dim=dim, **budget)
        return
    got = METHODS[name](scores, scores, mask=mask, dim=dim, **budget)
    assert (got.dtype, got.shape, got.is_contiguous()) == (torch.bool, scores.shape, True)
    masks = [None] * scores.numel() if mask is None else list(groups(mask, dims))
    for row, kept, prior in zip(groups(scores, dims), groups(got, dims), masks, strict=False):
        k = reference.count(row, prior, **budget)
        ranked = None if name == "l1" else row
        expected = reference.global_masks(row, ranked, k, prior)
        assert [kept.tolist()] == expected


@pytest.mark.parametrize("rows", [1, 3, 1000])
def test_more_rows_than_a_block_holds(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    scores = torch.randint(0, 5, (rows, 17), generator=torch.Generator().manual_seed(rows))
    together = gp.lowest_unstructured(scores, amount=0.3, dim=-1)
    monkeypatch.setattr("gprune.select.blocks.BLOCK", 40)
    assert torch.equal(gp.lowest_unstructured(scores, amount=0.3, dim=-1), together)
