"""SNIP: against an oracle, and under a loss of another scale."""

import torch
from hypothesis import given
from hypothesis import strategies as st

import gprune as gp
from tests.support import reference
from tests.support.scoring import (
    assert_close,
    batch,
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
def test_snip(name: str, dtype: torch.dtype) -> None:
    model, params, batch = setting(name, dtype)
    want = reference.snip(in_float64(model, batch), params)
    assert_close(gp.scores.snip(model.loss, params, *batch), want, dtype)


@given(seeds, st.integers(-20, 20).map(lambda power: 2.0**power), st.floats(0, 1))
def test_snip_ranks_alike_whatever_the_scale_of_the_loss(
    seed: int, scale: float, amount: float
) -> None:
    weights, data = layers([4, 5, 3], seed), batch([4, 3], seed + 1)
    scores = gp.scores.snip(loss, weights, *data)
    scaled = gp.scores.snip(lambda *args: loss(*args) * scale, weights, *data)
    assert reference.lists(scaled) == reference.lists([score * scale for score in scores])
    masks, others = (gp.global_unstructured(weights, s, amount=amount) for s in (scores, scaled))
    assert reference.lists(masks) == reference.lists(others)
