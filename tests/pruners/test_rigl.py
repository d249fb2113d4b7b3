"""RigL: the rule of its paper at every step, and its gradients."""

import functools
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import gprune as gp
from tests.support import reference_patterns
from tests.support.pruning import GOLDEN_WEIGHT, always, assert_exchanged, every, like, models


@pytest.mark.slow
@given(models(), st.data(), st.floats(0, 1), st.floats(0, 1), st.integers(0, 2**31))
def test_rigl(
    params: Any, data: st.DataObject, sparsity: float, fraction: float, seed: int
) -> None:
    pruner = gp.pruners.rigl(
        sparsity, fraction=gp.schedules.constant(fraction), due=every(2), seed=seed
    )
    state = pruner.init(params)
    for step in range(4):
        before, trained, grads = state, like(data.draw, params), like(data.draw, params)
        params, state = pruner.update(trained, before, grads)

        now = fraction if step % 2 == 0 else 0.0
        rule = functools.partial(reference_patterns.rigl, fraction=now)
        assert_exchanged(before, state, trained, params, grads, rule)


def test_golden_rigl() -> None:
    """By hand: of 4 weights the 2 lowest go, and RigL takes one of them back."""
    weight = GOLDEN_WEIGHT
    grad = torch.tensor([[0.0, 8.0, 1.0, 9.0, 3.0, -9.0, 2.0, 0.0]])
    pruner = gp.pruners.rigl(0.5, fraction=gp.schedules.constant(0.5), due=always, seed=0)
    state = pruner.init({"w": weight})._replace(masks={"w": weight != 0})
    params, state = pruner.update({"w": weight}, state, {"w": grad})
    assert state.masks["w"].tolist() == [[True, True, False, True, False, True, False, False]]
    assert params["w"].tolist() == [[5, -1, 0, -4, 0, 0, 0, 0]]  # what came back was never gone


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_infinite_gradients_grow_first_and_nan_last(dtype: torch.dtype) -> None:
    inf, nan = float("inf"), float("nan")
    weight = torch.tensor([[5.0, 4.0, 0.0, 0.0, 0.0, 0.0]], dtype=dtype)
    grad = torch.tensor([[0.0, 0.0, nan, torch.finfo(dtype).max, -inf, 1.0]], dtype=dtype)
    grown = []
    for fraction in (0.5, 1.0):
        pruner = gp.pruners.rigl(0.5, fraction=gp.schedules.constant(fraction), due=always, seed=0)
        state = pruner.init({"w": weight})._replace(masks={"w": weight != 0})
        _, state = pruner.update({"w": weight}, state, {"w": grad})
        grown.append(state.masks["w"].nonzero()[:, 1].tolist())
    assert grown == [[0, 4], [3, 4]]


def test_rigl_needs_gradients() -> None:
    pruner = gp.pruners.rigl(0.5, fraction=gp.schedules.constant(0.5), due=always, seed=0)
    params = {"w": torch.ones(2, 2)}
    with pytest.raises(TypeError, match="grads"):
        pruner.update(params, pruner.init(params))


@pytest.mark.parametrize(
    ("grads", "error", "words"),
    [
        ({"w": None, "b": None}, TypeError, r"grads\['w'\] must be a tensor, got NoneType"),
        ({"w": 1.0, "b": None}, TypeError, r"grads\['w'\] must be a tensor, got float"),
        ({"w": torch.ones(2, 3).byte(), "b": None}, TypeError, r"\['w'\] has dtype torch.uint8"),
        ({"w": torch.ones(3, 2), "b": 0}, ValueError, r"grads\['w'\] has shape \(3, 2\)"),
        ({"w": torch.ones(2, 3)}, ValueError, r"grads\['b'\] is missing"),
    ],
)
def test_gradients_that_do_not_fit_are_named(
    grads: Any, error: type[Exception], words: str
) -> None:
    pruner = gp.pruners.rigl(0.5, fraction=gp.schedules.constant(0.5), due=always, seed=0)
    params = {"w": torch.ones(2, 3), "b": torch.ones(3)}
    with pytest.raises(error, match=words):
        pruner.update(params, pruner.init(params), grads)
