"""SET: the rule of its paper at every step, and random growth."""

import functools
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import gprune as gp
from tests.support import reference_patterns
from tests.support.assertions import assert_same
from tests.support.pruning import GOLDEN_WEIGHT, HALF, always, assert_exchanged, every, like, models


@given(models(), st.data(), st.floats(0, 1), st.floats(0, 1), st.integers(0, 2**31))
def test_sparse_evolution(
    params: Any, data: st.DataObject, sparsity: float, fraction: float, seed: int
) -> None:
    pruner = gp.pruners.sparse_evolution(
        sparsity, fraction=gp.schedules.constant(fraction), due=every(2), seed=seed
    )
    state = pruner.init(params)
    for step in range(4):
        before, trained = state, like(data.draw, params)
        params, state = pruner.update(trained, before)
        seed_now = torch.tensor(seed) + (step + 1) * 2**32
        draws = gp.scores.random(gp.prunable(params), seed=seed_now)

        now = fraction if step % 2 == 0 else 0.0
        rule = functools.partial(reference_patterns.sparse_evolution, fraction=now)
        assert_exchanged(before, state, trained, params, draws, rule)


def test_golden_sparse_evolution() -> None:
    """By hand: of 4 weights the 2 lowest go, and SET never takes one of them back."""
    weight = GOLDEN_WEIGHT
    pruner = gp.pruners.sparse_evolution(
        0.5, fraction=gp.schedules.constant(0.5), due=always, seed=0
    )
    state = pruner.init({"w": weight})._replace(masks={"w": weight != 0})
    params, state = pruner.update({"w": weight}, state)
    assert state.masks["w"][0, :4].tolist() == [True, False, False, True]
    assert int(state.masks["w"][0, 4:].sum()) == 2
    assert params["w"].tolist() == [[5, 0, 0, -4, 0, 0, 0, 0]]


@pytest.mark.parametrize("num_kept", [0, 1, 7, 15, 20, 29, 30])
@pytest.mark.parametrize("fraction", [0.0, 0.1, 0.3, 0.5, 1.0])
def test_exactly_so_many_are_exchanged_and_none_that_was_just_dropped(
    num_kept: int, fraction: float
) -> None:
    """round(f n), half to even, or all zeros of the leaf if there are fewer."""
    mask = (torch.arange(30) < num_kept).view(5, 6)
    pruner = gp.pruners.sparse_evolution(
        0.5, fraction=gp.schedules.constant(fraction), due=always, seed=0
    )
    params = {"w": torch.where(mask, torch.arange(30.0, 0, -1).view(5, 6), 0.0)}
    state = pruner.init(params)._replace(masks={"w": mask})
    params, after = pruner.update(params, state)
    k = min(round(fraction * num_kept), 30 - num_kept)
    dropped, grown = mask & ~after.masks["w"], after.masks["w"] & ~mask
    assert (int(dropped.sum()), int(grown.sum())) == (k, k)
    assert dropped.flatten()[num_kept - k : num_kept].all()  # the smallest of the weights
    assert (params["w"] == 0).sum() == 30 - num_kept + k


def test_growth_is_random_and_differs_between_steps_and_seeds() -> None:
    params = {"w": torch.ones(40, 50)}

    def masks(seed: int) -> Iterator[torch.Tensor]:
        pruner = gp.pruners.sparse_evolution(
            0.5, fraction=gp.schedules.constant(0.5), due=always, seed=seed
        )
        state = pruner.init(params)
        for _ in range(3):
            before = state.masks["w"]
            _, state = pruner.update(params, state)
            yield state.masks["w"] & ~before

    grown = [*masks(0), *masks(1)]
    for i, one in enumerate(grown):
        for other in grown[:i]:
            assert (one & other).sum() < one.sum()
        assert 0.4 < one.nonzero().float().mean(0)[0] / 20 < 1.6  # rows from everywhere


@pytest.mark.parametrize("dtype", [torch.int32, torch.uint8, torch.uint64])
def test_the_seed_of_set_may_have_any_integer_dtype(dtype: torch.dtype) -> None:
    params = {"w": torch.ones(4, 5)}

    def run(seed: Any) -> Any:
        pruner = gp.pruners.sparse_evolution(0.5, fraction=HALF, due=always, seed=seed)
        return pruner.update(params, pruner.init(params))[1]

    state = run(torch.tensor(7, dtype=dtype))
    assert state.seed.dtype == torch.int64
    assert_same(state, run(7))
