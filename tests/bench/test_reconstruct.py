"""What rebuilding weights costs: a weight of 2048 x 2048 at 50 %."""

from __future__ import annotations

import time

import pytest
import torch
from torch import Tensor

import gprune as gp
from tests.bench.conftest import Report

pytestmark = pytest.mark.bench

SIZE = 2048
BATCH = 64
"""How many rows are factored at once: as many as refit takes in 256 MiB."""


@pytest.fixture(scope="module")
def layer() -> tuple[Tensor, Tensor, Tensor]:
    """A weight, its mask by Wanda, and the Gram matrix of 4,096 correlated inputs."""
    generator = torch.Generator().manual_seed(0)
    mix = torch.randn(SIZE, SIZE, generator=generator) / SIZE**0.5
    x = torch.randn(2 * SIZE, SIZE, generator=generator) @ mix
    weight, gram = torch.randn(SIZE, SIZE, generator=generator), x.mT @ x
    scores = weight.abs() * gram.diagonal().sqrt()
    return weight, gp.layerwise(weight, scores, amount=0.5, dim=gp.input_dims), gram


def seconds(function: object, *args: object, **kwargs: object) -> float:
    start = time.perf_counter()
    function(*args, **kwargs)  # type: ignore[operator]  # a function
    return time.perf_counter() - start


def test_refit_over_cholesky(report: Report, layer: tuple[Tensor, Tensor, Tensor]) -> None:
    """Cholesky of as many matrices of the same size, batched alike."""
    weight, mask, gram = layer
    half = SIZE // 2
    damped = gram[:half, :half] + 0.01 * gram.diagonal().mean() * torch.eye(half)
    matrices = damped.expand(BATCH, half, half).contiguous()

    def factor_all() -> None:
        for _ in range(SIZE // BATCH):
            torch.linalg.cholesky(matrices)

    once = seconds(factor_all)
    value = seconds(gp.reconstruct.refit, weight, mask, gram) / min(once, seconds(factor_all))
    report("refit of 2048 x 2048 at 50 % over 2048 Cholesky factors", value, at_most=3)


def test_seconds_of_swap(report: Report, layer: tuple[Tensor, Tensor, Tensor]) -> None:
    value = seconds(gp.reconstruct.swap, *layer, rounds=25)
    report("swap of 2048 x 2048, 25 rounds, seconds", value, at_most=120)
