"""SynFlow: against an oracle, and the theorems of its paper."""

import itertools
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F  # noqa: N812  torch's own name for it

import gprune as gp
from tests.support import reference
from tests.support.scoring import (
    assert_close,
    batch,
    each_dtype,
    each_model,
    layers,
    loss,
    network,
    seeds,
    setting,
)


@each_model
@each_dtype
def test_synflow(name: str, dtype: torch.dtype) -> None:
    model, params, _ = setting(name, dtype)
    shape = (1, *model.inputs[1:])
    got = gp.scores.synflow(model.forward, params, shape)
    assert_close(got, reference.synflow(model.forward, params, shape), dtype)


def test_synflow_is_what_the_flow_loses_without_a_weight() -> None:
    model, params, _ = setting("conv", torch.float64)
    params["bias"] = torch.zeros(2, dtype=torch.float64)
    shape = (1, *model.inputs[1:])
    want = reference.synflow_by_removal(model.forward, params, shape)
    assert_close(gp.scores.synflow(model.forward, params, shape), want, torch.float64)


@each_model
@pytest.mark.parametrize("rounds", [1, 7])
def test_iterative_synflow(name: str, rounds: int) -> None:
    model, params, _ = setting(name, torch.float64)
    shape = (1, *model.inputs[1:])
    weights = gp.prunable(params)
    prior = gp.global_unstructured(weights, gp.scores.random(weights, seed=1), amount=4)
    for masks in (gp.keep_all(weights), prior):
        want = masks
        for k in range(1, rounds + 1):
            now = 1 - (1 - 0.8) ** (k / rounds) if k < rounds else 0.8
            scores = reference.synflow(model.forward, gp.apply_masks(params, want), shape)
            count = reference.count(weights, want, sparsity=now)
            kept = reference.global_masks(weights, scores, count, want)
            want = reference.like(
                weights,
                [
                    torch.tensor(keep).reshape(leaf.shape)
                    for keep, leaf in zip(kept, reference.leaves(weights), strict=True)
                    if keep is not None
                ],
            )
        got = gp.scores.iterative_synflow(
            model.forward, params, shape, sparsity=0.8, masks=masks, rounds=rounds
        )
        assert reference.lists(got) == reference.lists(want)
    got = gp.scores.iterative_synflow(model.forward, params, shape, sparsity=0.8, rounds=rounds)
    assert (gp.num_pruned(got), got.get("bias")) == (
        reference.count(weights, sparsity=0.8),
        None,
    )


@given(st.lists(st.integers(1, 6), min_size=3, max_size=6), seeds)
def test_synflow_is_conserved_at_every_hidden_neuron(widths: list[int], seed: int) -> None:
    """Tanaka et al., 2020, theorem 1: what flows in flows out; and through every layer flows R."""
    weights = layers(widths, seed)
    scores = gp.scores.synflow(network, weights, (1, widths[0]))
    for before, after in itertools.pairwise(scores):
        torch.testing.assert_close(before.sum(1), after.sum(0), rtol=1e-12, atol=0)
    for score in scores:
        torch.testing.assert_close(score.sum(), scores[0].sum(), rtol=1e-12, atol=0)


@given(seeds, st.integers(1, 3), st.integers(1, 3))
def test_synflow_is_conserved_at_channels_with_biases(seed: int, stride: int, padding: int) -> None:
    """The bias is one of the ways in."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {"first": (3, 2, 3, 3), "bias": (3,), "second": (2, 3, 2, 2)}
    params = {k: torch.randn(s, generator=generator).double() for k, s in shapes.items()}

    def forward(p: Any, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(F.conv2d(x, p["first"], p["bias"], stride, padding))
        return F.conv2d(F.avg_pool2d(x, 2, 1), p["second"])

    scores = gp.scores.synflow(forward, params, (1, 2, 9, 9))
    into = scores["first"].sum((1, 2, 3)) + scores["bias"]
    torch.testing.assert_close(into, scores["second"].sum((0, 2, 3)), rtol=1e-12, atol=0)


DEEP = [24, 24, 24, 6, 6, 6, 6, 24, 10]
ENTRIES = sum(a * b for a, b in itertools.pairwise(DEEP))
CRITICAL = 1 - (len(DEEP) - 1) / ENTRIES  # one weight for each layer is left


def empty_layers(masks: list[torch.Tensor]) -> int:
    return sum(not mask.any() for mask in masks)


@pytest.mark.slow
@settings(max_examples=settings().max_examples // 5)
@given(seeds, st.floats(0.5, CRITICAL) | st.just(CRITICAL))
def test_iterative_synflow_keeps_every_layer(seed: int, sparsity: float) -> None:
    """Theorem 3: up to the maximal critical compression, where a single path is left."""
    weights = layers(DEEP, seed)
    masks = gp.scores.iterative_synflow(network, weights, (1, DEEP[0]), sparsity=sparsity)
    assert empty_layers(masks) == 0
    assert gp.num_pruned(masks) == reference.count(weights, sparsity=sparsity)
    if sparsity == CRITICAL:  # and it is a path: something still flows
        left = gp.scores.synflow(network, gp.apply_masks(weights, masks), (1, DEEP[0]))
        assert left[0].sum() > 0


NARROW = [200, 200, 200, 6, 6, 6, 6, 6, 10]  # the large layers are emptied first
TWICE = 1 - 2 * (len(NARROW) - 1) / sum(a * b for a, b in itertools.pairwise(NARROW))


@pytest.mark.parametrize("seed", range(5))
def test_one_shot_scores_empty_layers_before(seed: int) -> None:
    """Magnitude, SNIP and GraSP do where two weights are left for each layer.

    That is a fact of nearly all networks and not of all: about one of 1,000 keeps its layers.
    """
    weights, data = layers(NARROW, seed), batch(NARROW, seed + 1)
    for scores in (
        gp.scores.magnitude(weights),
        gp.scores.snip(loss, weights, *data),
        gp.scores.grasp(loss, weights, *data),
    ):
        masks = gp.global_unstructured(weights, scores, sparsity=TWICE)
        assert empty_layers(masks) > 0


@settings(max_examples=1)
@given(seeds)
def test_iterative_synflow_does_not_where_they_do(seed: int) -> None:
    weights = layers(NARROW, seed)
    masks = gp.scores.iterative_synflow(network, weights, (1, NARROW[0]), sparsity=TWICE)
    assert empty_layers(masks) == 0
