"""Iterative pruning: a fraction of the rest in each round, and rewinding."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import gprune as gp
from tests.support import reference
from tests.support.assertions import assert_same
from tests.support.pruning import always, every, like, models


@pytest.mark.slow
@given(models(), st.data(), st.floats(0, 1), st.integers(0, 5))
def test_iterative_prunes_a_fraction_of_the_rest_and_rewinds(
    params: Any, data: st.DataObject, amount: float, rewind_to: int
) -> None:
    pruner = gp.pruners.iterative(amount, due=every(3, begin=2), rewind_to=rewind_to)
    state, early = pruner.init(params), params
    left = reference.num_entries(gp.prunable(params))
    for step in range(9):
        trained = like(data.draw, params)
        early = trained if step + 1 == rewind_to else early
        params, state = pruner.update(trained, state)
        at_end = step % 3 == 2
        left -= reference.num_to_prune(amount, left) if at_end else 0
        assert sum(int(m.sum()) for m in state.masks.values() if m is not None) == left
        assert_same(params, gp.apply_masks(early if at_end else trained, state.masks))


def test_what_is_rewound_to_is_no_view_of_the_parameters() -> None:
    params = {"w": torch.ones(2, 2)}
    pruner = gp.pruners.iterative(1, due=always)
    state = pruner.init(params)
    params["w"].mul_(5)  # as optimizers do
    params, _ = pruner.update(params, state)
    assert params["w"].sum() == 3


def test_what_is_rewound_to_keeps_no_graph() -> None:
    """Or every step would hang another node on it, and all parameters since the first."""
    params = {"w": torch.ones(2, 2, requires_grad=True)}
    pruner = gp.pruners.iterative(1, due=always, rewind_to=1)
    state = pruner.init(params)
    for _ in range(2):
        _, state = pruner.update(params, state)
        assert not state.rewind_params["w"].requires_grad


@pytest.mark.parametrize("amount", [-0.5, -1, 1.5, float("nan")])
def test_a_bad_amount_is_refused_before_the_first_round(amount: float) -> None:
    with pytest.raises(ValueError, match="amount must"):
        gp.pruners.iterative(amount, due=always)
