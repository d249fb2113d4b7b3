"""Movement scores: against an oracle, and what the paper says of them."""

import torch
from hypothesis import given
from hypothesis import strategies as st

import gprune as gp
from tests.support import reference
from tests.support.scoring import assert_close, draw, each_dtype, each_model, seeds, setting


@each_model
@each_dtype
def test_movement(name: str, dtype: torch.dtype) -> None:
    _, params, _ = setting(name, dtype)
    steps = [(draw(params, 2 * i, dtype), draw(params, 2 * i + 1, dtype)) for i in range(3)]
    scores = reference.over(torch.zeros_like, params)
    for weights, grads in steps:
        scores = gp.scores.movement(scores, weights, grads)
    assert_close(scores, reference.movement(steps), dtype)


@given(seeds, st.integers(1, 20))
def test_movement_grows_where_descent_moves_away_from_zero(seed: int, steps: int) -> None:
    """And so its sum is, to first order, half the growth of the squared weights per step size."""
    generator = torch.Generator().manual_seed(seed)
    rate, theta = 1e-6, torch.randn(7, generator=generator, dtype=torch.float64)
    start, scores = theta, torch.zeros(7, dtype=torch.float64)
    for _ in range(steps):
        grad = torch.randn(7, generator=generator, dtype=torch.float64)
        scores = gp.scores.movement(scores, theta, grad)
        theta = theta - rate * grad
    growth = (theta.square() - start.square()) / (2 * rate)
    torch.testing.assert_close(scores, growth, rtol=1e-3, atol=1e-3)
