"""The source of inputs, and code to reproduce that can be pasted."""

import functools
import re
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import gprune as gp
from gprune.testing import assert_mask_contract, assert_pure, param_trees, prior_masks, scores_for
from gprune.testing.reports import source
from tests.support.assertions import assert_same
from tests.support.cases import amounts
from tests.support.faulty import (
    F,
    T,
    breaks,
    exactly,
    inf,
    leaf,
    nan,
    prior,
    scores_with_nan,
    tree,
    weights,
)


@given(param_trees(), st.data())
def test_the_source_of_inputs_rebuilds_them(params: Any, data: st.DataObject) -> None:
    drawn = (params, data.draw(scores_for(params)), data.draw(prior_masks(params)))
    drawn += (data.draw(amounts(3)), [nan, -inf, 3, "x"])
    scope: dict[str, Any] = {}
    exec(source("assert_pure", rebuilt=drawn), scope)
    assert_same(scope["rebuilt"][:4], drawn[:4])
    assert repr(scope["rebuilt"][4]) == repr(drawn[4])
    for got, was in zip(*(gp.trees.flatten(x)[0] for x in (scope["rebuilt"], drawn)), strict=True):
        if isinstance(was, torch.Tensor) and was.numel() > 1:
            same = [i for i in range(was.dim()) if was.shape[i] > 1]
            assert was.is_contiguous() == got.is_contiguous()
            assert [got.stride(i) == 0 for i in same] == [was.stride(i) == 0 for i in same]


def test_the_source_of_what_is_too_large_or_empty() -> None:
    shown = source("assert_pure", large=torch.ones(2_000), empty=torch.ones(0, 3))
    assert "large = torch.empty((2000,), dtype=torch.float32)\n" in shown
    assert "empty = torch.empty((0, 3), dtype=torch.float32)" in shown
    assert source("assert_pure", x=torch.ones(2, device="meta")).endswith("device='meta')")


def test_the_source_of_what_is_no_dense_tensor_is_its_repr() -> None:
    sparse = torch.eye(2).to_sparse()
    assert source("assert_pure", x=[sparse, len]).endswith(f"x = [{sparse!r}, {len!r}]")


def run_repro(message: str, **scope: Any) -> dict[str, Any]:
    """Run what stands under "to reproduce", which must raise the same message."""
    lines = message.split("to reproduce:\n")[1].splitlines()
    with pytest.raises(AssertionError) as again:
        exec("\n".join(line.removeprefix("  ") for line in lines), scope)
    assert str(again.value) == message
    return scope


def test_the_repro_can_be_pasted() -> None:
    faulty = exactly(tree([F, F, T], [T, T]))
    run_repro(
        breaks(assert_mask_contract, faulty, weights(), scores_with_nan(), prior(), amount=3),
        prune=faulty,
    )
    run_repro(
        breaks(assert_mask_contract, faulty, weights(), amount=1, separately=True), prune=faulty
    )
    run_repro(breaks(assert_pure, leaf, weights() | {"w": torch.ones(1)}), leaf=leaf)


def test_functions_without_a_name() -> None:
    partial = functools.partial(exactly(tree([F, F, F], [T, T])))
    message = breaks(assert_mask_contract, partial, weights(), amount=2)
    assert re.search(r"^  assert_mask_contract\(function, params", message, re.M)
