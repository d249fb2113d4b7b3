"""Fisher, Hessian diagonal and OBD: against oracles, and what is known of them."""

from typing import Any
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F  # noqa: N812  torch's own name for it

import gprune as gp
from gprune.scores import curvature
from tests.support import reference
from tests.support.scoring import (
    assert_close,
    batch,
    draw,
    each_dtype,
    each_model,
    in_float64,
    layers,
    loss,
    seeds,
    setting,
)


@each_model
@each_dtype
def test_obd(name: str, dtype: torch.dtype) -> None:
    _, params, _ = setting(name, dtype)
    diagonal = draw(params, 3, dtype)
    assert_close(gp.scores.obd(params, diagonal), reference.obd(params, diagonal), dtype)


@each_model
@each_dtype
@pytest.mark.parametrize("chunk_size", [1, 2, 32])
def test_fisher(name: str, dtype: torch.dtype, chunk_size: int) -> None:
    model, params, (x, y) = setting(name, dtype)
    examples = zip(x.double().split(1), y.split(1), strict=True)
    losses = [lambda p, a=a, b=b: model.loss(p, a, b) for a, b in examples]
    got = gp.scores.fisher(model.loss, params, x, y, chunk_size=chunk_size)
    assert_close(got, reference.fisher(losses, params), dtype)


@each_model
@each_dtype
def test_hessian_diagonal(name: str, dtype: torch.dtype) -> None:
    """The probes are those that it drew itself: each is -1 or 1 everywhere."""
    model, params, batch = setting(name, dtype)
    probes: list[torch.Tensor] = []
    signs = curvature._signs

    def recorded(*args: Any) -> list[torch.Tensor]:
        probes.append(reference.flat(drawn := signs(*args)))
        return drawn

    with mock.patch.object(curvature, "_signs", recorded):
        got = gp.scores.hessian_diagonal(model.loss, params, *batch, seed=5, num_probes=3)
    assert_close(got, reference.hutchinson(in_float64(model, batch), params, probes), dtype)
    assert len(probes) == len({tuple(v.tolist()) for v in probes}) == 3
    assert all((v.abs() == 1).all() for v in probes)


def test_hessian_diagonal_is_exact_where_the_hessian_is_diagonal() -> None:
    params = {
        "a": torch.randn(3, 4, dtype=torch.float64),
        "none": None,
        "b": torch.randn(5).double(),
    }

    def loss(p: Any) -> torch.Tensor:
        return (p["a"] ** 3).sum() + p["b"].exp().sum()

    want = {"a": 6 * params["a"], "none": None, "b": params["b"].exp()}
    got = gp.scores.hessian_diagonal(loss, params, seed=0, num_probes=1)
    assert_close(got, want, torch.float64)


@given(seeds)
def test_obd_is_the_change_of_a_loss_at_its_minimum(seed: int) -> None:
    """Exactly, if the Hessian is diagonal; of which one probe is enough."""
    generator = torch.Generator().manual_seed(seed)
    best, h = (torch.randn(6, generator=generator, dtype=torch.float64) for _ in range(2))

    def quadratic(w: torch.Tensor) -> torch.Tensor:
        return (h * (w - best) ** 2).sum() / 2

    diagonal = gp.scores.hessian_diagonal(quadratic, best, seed=seed, num_probes=1)
    changes = [quadratic(torch.where(torch.arange(6) == q, 0, best)) for q in range(6)]
    torch.testing.assert_close(gp.scores.obd(best, diagonal), torch.stack(changes))


@pytest.mark.slow
@pytest.mark.parametrize("num_probes", [1, 4, 16, pytest.param(64, marks=pytest.mark.long)])
def test_hutchinson_converges_as_one_over_the_root_of_the_probes(num_probes: int) -> None:
    """Its variance is exactly the sum of the squares beside the diagonal, over the probes."""
    generator = torch.Generator().manual_seed(0)
    root = torch.randn(8, 8, generator=generator, dtype=torch.float64)
    h, theta = root @ root.T, torch.zeros(8, dtype=torch.float64)
    deviation = (h - h.diag().diag()).square().sum(1).sqrt()

    def estimate(seed: torch.Tensor) -> Any:
        return gp.scores.hessian_diagonal(
            lambda w: w @ h @ w / 2, theta, seed=seed, num_probes=num_probes
        )

    estimates = torch.vmap(estimate)(torch.arange(500))
    error = (estimates - h.diag()).square().mean(0).sqrt()
    ratio = error / (deviation / num_probes**0.5)
    assert ((ratio > 0.8) & (ratio < 1.2)).all(), ratio  # 500 draws: a deviation of 0.032
    bias = (estimates.mean(0) - h.diag()).abs() / (deviation / (500 * num_probes) ** 0.5)
    assert (bias < 4.5).all(), bias


@settings(max_examples=settings().max_examples // 5)
@given(seeds)
def test_fisher_is_the_hessian_of_a_softmax_regression_within_sampling_error(seed: int) -> None:
    """At the parameters that generated the data, where it is the expectation of the Hessian."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(3, 4, generator=generator, dtype=torch.float64)
    x = torch.randn(4000, 4, generator=generator, dtype=torch.float64)
    p = torch.softmax(x @ weight.T, dim=1)
    y = torch.multinomial(p, 1, generator=generator).squeeze(1)
    got = gp.scores.fisher(loss, [weight], x, y, chunk_size=1000)[0]
    hessian = torch.einsum("nk,nj->kj", p * (1 - p), x.square()) / len(x)
    squares = torch.einsum("nk,nj->nkj", (F.one_hot(y, 3) - p).square(), x.square())
    error = (squares - torch.einsum("nk,nj->nkj", p * (1 - p), x.square())).std(0) / len(x) ** 0.5
    assert ((got - hessian).abs() < 6 * error).all()
    assert (error < 0.1 * hessian.max()).all()


@settings(max_examples=settings().max_examples // 5)
@given(seeds, st.integers(1, 9), st.integers(1, 10))
def test_fisher_does_not_depend_on_the_chunk(seed: int, size: int, chunk_size: int) -> None:
    weights, data = layers([4, 5, 3], seed), batch([4, 3], seed + 1, size)
    whole = gp.scores.fisher(loss, weights, *data, chunk_size=100)
    parts = gp.scores.fisher(loss, weights, *data, chunk_size=chunk_size)
    for a, b in zip(whole, parts, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-15)
