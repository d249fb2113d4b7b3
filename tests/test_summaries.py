"""Summaries: counts of each leaf and of all, and the agreement of two trees of masks."""

import io
import re
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import gprune as gp
from gprune.testing import param_trees, prior_masks
from tests.support import reference
from tests.support.assertions import assert_same, assert_same_structure


@given(param_trees(), st.data())
def test_agreement(params: Any, data: st.DataObject) -> None:
    one, other = data.draw(prior_masks(params)), data.draw(prior_masks(params))
    got = gp.agreement(one, other)
    assert_same_structure(got.hamming, params)
    pairs = zip(reference.lists(one), reference.lists(other), strict=True)
    both = [(set(_kept(a)), set(_kept(b))) for a, b in pairs if a is not None]
    hamming = [x.item() for x in reference.leaves(got.hamming) if x is not None]
    assert hamming == [len(a ^ b) for a, b in both]
    jaccard = [x.item() for x in reference.leaves(got.jaccard) if x is not None]
    assert jaccard == [len(a & b) / len(a | b) if a | b else 1 for a, b in both]


def _kept(mask: list[bool]) -> list[int]:
    return [i for i, keep in enumerate(mask) if keep]


@given(param_trees(), st.data())
def test_summary(params: Any, data: st.DataObject) -> None:
    chosen = gp.prunable(params, lambda path, leaf: data.draw(st.booleans()))
    masks = data.draw(prior_masks(chosen))
    got = gp.summary(params, masks)
    pairs = zip(reference.leaves(params), reference.lists(masks), strict=True)
    expected = [
        (tuple(leaf.shape), leaf.numel(), mask.count(False) if mask else 0, mask is not None)
        for leaf, mask in pairs
        if leaf is not None
    ]
    assert [(row.shape, row.entries, row.pruned, row.prunable) for row in got.leaves] == expected
    total = got.total
    assert total.entries == sum(row[1] for row in expected if row[3])
    assert total.pruned == sum(row[2] for row in expected)
    assert len(str(got).splitlines()) == len(expected) + 2


def test_an_error_of_agreement_names_the_trees() -> None:
    keep, more = {"a": torch.ones(2).bool(), "b": None}, torch.ones(3).bool()
    for others, message in [
        ({"a": more, "b": None}, "others['a'] has shape (3,), masks['a'] has (2,)"),
        ({"a": None, "b": None}, "others['a'] is None, masks['a'] is a tensor"),
        ({"a": keep["a"]}, "others must have the structure of masks"),
        ({"a": torch.ones(2), "b": None}, "others['a'] has dtype torch.float32"),
    ]:
        with pytest.raises((TypeError, ValueError), match=re.escape(message)):
            gp.agreement(keep, others)
    with pytest.raises(TypeError, match=r"masks\['a'\] has dtype"):
        gp.agreement({"a": torch.ones(2), "b": None}, keep)


def test_an_agreement_is_loaded_with_the_default_of_torch_load() -> None:
    masks = {"a": torch.tensor([True, False]), "b": None}
    found, file = gp.agreement(masks, masks), io.BytesIO()
    torch.save(found, file)
    file.seek(0)
    assert_same(torch.load(file), found)
