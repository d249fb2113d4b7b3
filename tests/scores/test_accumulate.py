"""Means over batches: against an oracle, and against the mean over all data."""

from typing import Any

import pytest
import torch

import gprune as gp
from tests.support import reference
from tests.support.scoring import (
    assert_close,
    batch,
    cast,
    each_dtype,
    each_model,
    in_float64,
    layers,
    loss,
    setting,
)


@each_model
@each_dtype
def test_accumulate(name: str, dtype: torch.dtype) -> None:
    """The score of the mean gradient is that of the whole data."""
    model, params, _ = setting(name, dtype)
    batches = [(x.to(dtype), y) for x, y in map(model.batch, range(4))]
    done: list[int] = []

    def grad_fn(batch: Any) -> Any:
        return cast(reference.gradient(in_float64(model, batch), params), dtype)

    got = gp.scores.accumulate(grad_fn, iter(batches), progress=done.append)
    losses = [in_float64(model, batch) for batch in batches]
    want = reference.gradient(lambda p: sum(loss(p) for loss in losses) / 4, params)
    assert_close(got, want, dtype)
    assert done == [1, 2, 3, 4]


@pytest.mark.parametrize("score", [gp.scores.fisher, None])
def test_the_mean_over_equal_batches_is_that_of_the_whole(score: Any) -> None:
    weights, (x, y) = layers([4, 5, 3], 0), batch([4, 3], 1, 12)
    score = score or (lambda f, *args: torch.func.grad(f)(*args))
    batches = zip(x.split(3), y.split(3), strict=True)
    mean = gp.scores.accumulate(lambda data: score(loss, weights, *data), batches)
    for a, b in zip(mean, score(loss, weights, x, y), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-15)
