"""What is handed to pruners: checked before anything changes, taken at its exact value."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

import gprune as gp
from tests.support.assertions import assert_same

HALF = gp.schedules.constant(0.5)


def always(step: torch.Tensor) -> torch.Tensor:
    return step >= 0


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


@pytest.mark.parametrize("dtype", [torch.int32, torch.uint8, torch.uint64])
def test_the_seed_of_set_may_have_any_integer_dtype(dtype: torch.dtype) -> None:
    params = {"w": torch.ones(4, 5)}

    def run(seed: Any) -> Any:
        pruner = gp.pruners.sparse_evolution(0.5, fraction=HALF, due=always, seed=seed)
        return pruner.update(params, pruner.init(params))[1]

    state = run(torch.tensor(7, dtype=dtype))
    assert state.seed.dtype == torch.int64
    assert_same(state, run(7))


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


BY_DUE: list[Callable[[Any], gp.pruners.Pruner]] = [
    lambda due: gp.pruners.gradual(HALF, due=due),
    lambda due: gp.pruners.iterative(0.5, due=due),
    lambda due: gp.pruners.sparse_evolution(0.5, fraction=HALF, due=due, seed=0),
    lambda due: gp.pruners.rigl(0.5, fraction=HALF, due=due, seed=0),
]


@pytest.mark.parametrize("build", BY_DUE)
def test_what_is_due_is_true_or_false(build: Callable[[Any], gp.pruners.Pruner]) -> None:
    """`step % 5` says when it is not: as a factor it would prune five times as much, or so."""
    params = {"w": torch.arange(1.0, 13.0).view(3, 4)}
    bad: list[tuple[Any, type[Exception]]] = [
        (lambda step: step % 5, TypeError),
        (lambda step: 1, TypeError),
        (lambda step: None, TypeError),
        (lambda step: torch.tensor([True]), ValueError),
    ]
    for due, error in bad:
        pruner = build(due)
        with pytest.raises(error, match="due must give a 0-dim bool tensor"):
            pruner.update(params, pruner.init(params), params)
    for answer in (True, False):
        tensors = build(lambda step, answer=answer: (step >= 0) & answer)
        bools = build(lambda step, answer=answer: answer)
        start = tensors.init(params)
        assert_same(tensors.update(params, start, params), bools.update(params, start, params))


@pytest.mark.parametrize("build", [gp.pruners.sparse_evolution, gp.pruners.rigl])
def test_the_fraction_is_taken_at_its_exact_value_and_held_to_its_range(build: Any) -> None:
    """0.3 in float32 is above 0.3, so that of 15 weights 5 go: 4.5 in float32, which is even."""
    params = {"w": torch.arange(1.0, 31.0).view(5, 6)}
    mask = {"w": params["w"] > 15}
    grads = {"w": (~mask["w"]).float()}  # none of those that are dropped comes back

    def exchanged(fraction: float) -> int:
        share = torch.tensor(fraction, dtype=torch.float32)
        pruner = build(0.5, fraction=lambda step: share, due=always, seed=0)
        state = pruner.init(params)._replace(masks=mask)
        _, after = pruner.update(params, state, grads)
        return int((mask["w"] & ~after.masks["w"]).sum())

    assert exchanged(0.3) == 5
    with pytest.raises(ValueError, match="at most the number of candidates"):
        exchanged(2.0)
    with pytest.raises(ValueError, match="negative"):
        exchanged(-0.5)


def test_an_allocation_is_for_layerwise() -> None:
    params = {"w": torch.ones(2, 3)}
    pruner = gp.pruners.gradual(HALF, due=always, allocation=gp.allocation.uniform)
    with pytest.raises(TypeError, match="sparsity must be one number for all leaves"):
        pruner.update(params, pruner.init(params))
