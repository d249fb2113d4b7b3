"""GraSP: against an oracle, and as the change of the gradient norm."""

import torch
from hypothesis import given

import gprune as gp
from tests.support import reference
from tests.support.scoring import assert_close, each_dtype, each_model, in_float64, seeds, setting


@each_model
@each_dtype
def test_grasp(name: str, dtype: torch.dtype) -> None:
    model, params, batch = setting(name, dtype)
    want = reference.grasp(in_float64(model, batch), params)
    assert_close(gp.scores.grasp(model.loss, params, *batch), want, dtype)


@each_model
def test_grasp_is_minus_half_the_change_of_the_gradient_norm(name: str) -> None:
    """To first order in the part of a weight that is removed."""
    model, params, batch = setting(name, torch.float64)
    loss = in_float64(model, batch)
    theta, scores = (
        reference.flat(params),
        reference.flat(gp.scores.grasp(model.loss, params, *batch)),
    )
    step = 1e-5

    def squared_norm(vector: torch.Tensor) -> torch.Tensor:
        return (
            reference.flat(reference.gradient(loss, reference.unflat(vector, params)))
            .square()
            .sum()
        )

    for q in range(len(theta)):
        part = torch.zeros_like(theta)
        part[q] = step * theta[q]
        change = (squared_norm(theta - part) - squared_norm(theta + part)) / (2 * step)
        assert (change + 2 * scores[q]).abs() <= 1e-7 * scores.abs().max()


@given(seeds)
def test_grasp_of_a_quadratic_is_the_change_of_the_gradient_norm_but_for_its_square(
    seed: int,
) -> None:
    """‖g‖² without weight q is ‖g - θ_q H_q‖²; of that, -2 θ_q (Hg)_q is of first order."""
    generator = torch.Generator().manual_seed(seed)
    root = torch.randn(5, 5, generator=generator, dtype=torch.float64)
    h, theta = root @ root.T, torch.randn(5, generator=generator, dtype=torch.float64)
    scores = gp.scores.grasp(lambda w: w @ h @ w / 2, theta)
    g = h @ theta
    for q in range(5):
        without = theta.clone()
        without[q] = 0
        exact = (h @ without).square().sum() - g.square().sum()
        second = (theta[q] * h[q]).square().sum()
        torch.testing.assert_close(exact, second - 2 * scores[q])
