"""Contracts of selection: each is broken by a faulty function."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

import gprune as gp
from tests.support.contracts import assert_equivariant, assert_nested, assert_scale_invariant
from tests.support.faulty import below_two, breaks, by_place, inf, ladder, nan, rounded, weights


def test_nesting() -> None:
    message = breaks(assert_nested, rounded, weights(), None, None, amounts=[1, 2])
    assert "['a']: [True, False, True] keeps what [False, True, False] does not" in message
    assert "['b'][0]:" in message
    assert_nested(rounded, weights(), None, None, amounts=[2, 2])
    assert_nested(gp.global_unstructured, weights(), None, None, amounts=[0, 1, 5])


def test_equivariance() -> None:
    message = breaks(assert_equivariant, by_place, ladder(), None, None, amount=1)
    assert "['a']: is" in message
    assert "['b'][0]: is" in message
    assert_equivariant(gp.global_unstructured, ladder(), None, None, amount=2)


def the_middle(params: Any, scores: Any, masks: Any, amount: Any) -> Any:
    """Prunes the same entry of the reversed leaf."""
    return torch.tensor([True, False, True])


def after_the_largest(params: Any, scores: Any, masks: Any, amount: Any) -> Any:
    """Prunes the entry after the largest, also if the leaf is rotated."""
    return (params != params.max()).roll(1)


@pytest.mark.parametrize("prune", [the_middle, after_the_largest])
def test_a_reversal_and_a_rotation_are_tried(prune: Callable[..., Any]) -> None:
    breaks(assert_equivariant, prune, torch.tensor([3.0, 1.0, 2.0]), None, None, amount=1)


@pytest.mark.parametrize("scores", [[1.0, 2.0, 1.0], [nan, 1.0, nan], [0.0, -0.0, 1.0]])
def test_equivariance_needs_distinct_scores(scores: list[float]) -> None:
    params = [torch.ones(3)]
    with pytest.raises(ValueError, match="distinct scores"):
        assert_equivariant(gp.global_unstructured, params, [torch.tensor(scores)], None, amount=1)
    with pytest.raises(ValueError, match="distinct scores"):
        assert_equivariant(gp.global_unstructured, params, None, None, amount=1)


def test_scale_invariance() -> None:
    arguments = weights(), None, None
    message = breaks(assert_scale_invariant, below_two, *arguments, amount=1, factor=2.0)
    assert "['a']: is tensor([True, True, True]), expected" in message
    assert "['b'][0]" not in message  # it keeps all of that leaf at either scale
    arguments = weights(), weights(), None
    message = breaks(assert_scale_invariant, below_two, *arguments, amount=1, factor=0.5)
    assert "['a']" in message
    assert "['b'][0]" in message


@pytest.mark.parametrize(
    ("leaf", "factor"),
    [
        (torch.tensor([65504.0], dtype=torch.float16), 2.0),
        (torch.tensor([2.0**-149]), 0.5),
    ],
)
def test_scale_invariance_needs_exact_multiples(leaf: torch.Tensor, factor: float) -> None:
    with pytest.raises(ValueError, match="not exact"):
        assert_scale_invariant(below_two, [leaf], None, None, amount=1, factor=factor)


def test_scale_invariance_of_integers_and_nan() -> None:
    params = [torch.tensor([-128, 127], dtype=torch.int8), torch.tensor([nan, inf])]
    assert_scale_invariant(gp.global_unstructured, params, None, None, amount=1, factor=2.0)
