"""What an accelerator is asked to do: calls, bytes and waits, counted on the simulated one.

The counts are exact, so a test fails on any regression. `tests/bench/RESULTS.md` has the times that
they predict.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

import gprune as gp
from tests.support.accelerator import DEVICE, measured

Leaves = dict[str, Tensor]
Call = Callable[[], Any]

FRACTION = gp.schedules.constant(0.3)


class Tree(NamedTuple):
    num_leaves: int
    shape: tuple[int, int]

    def leaves(self) -> Leaves:
        torch.manual_seed(0)
        return {str(i): torch.randn(self.shape, device=DEVICE) for i in range(self.num_leaves)}


LARGE = Tree(24, (1024, 2048))
MANY = Tree(300, (200, 400))


def update(pruner: Any, tree: Leaves) -> Call:
    """A step of a pruner, after another one."""
    grads = {name: torch.randn_like(leaf) for name, leaf in tree.items()}
    _, state = pruner.update(tree, pruner.init(tree), grads)
    return lambda: pruner.update(tree, state, grads)


def always(step: Tensor) -> Tensor:
    return step >= 0


def never(step: Tensor) -> Tensor:
    return step < 0


def gradual(due: Callable[[Tensor], Tensor]) -> Callable[[Leaves], Call]:
    pruner = gp.pruners.gradual(lambda step: 0.5 + 0.01 * step, due=due, where="*")
    return lambda tree: update(pruner, tree)


def rigl(due: Callable[[Tensor], Tensor]) -> Callable[[Leaves], Call]:
    pruner = gp.pruners.rigl(0.5, fraction=FRACTION, due=due, seed=0, where="*")
    return lambda tree: update(pruner, tree)


def evolution(due: Callable[[Tensor], Tensor]) -> Callable[[Leaves], Call]:
    pruner = gp.pruners.sparse_evolution(0.5, fraction=FRACTION, due=due, seed=0, where="*")
    return lambda tree: update(pruner, tree)


CALLS: dict[str, Callable[[Leaves], Call]] = {
    "global": lambda tree: lambda: gp.global_unstructured(tree, amount=0.5),
    "layerwise": lambda tree: lambda: gp.layerwise(tree, amount=0.5),
    "2:4": lambda tree: lambda: gp.layerwise(tree, pruning_method=gp.n_of_m, n=2, m=4),
    "dim=-1": lambda tree: lambda: gp.layerwise(tree, amount=0.5, dim=-1),
    "gradual, due": gradual(always),
    "gradual, not due": gradual(never),
    "rigl, due": rigl(always),
    "rigl, not due": rigl(never),
    "SET, due": evolution(always),
    "SET, not due": evolution(never),
}


class Most(NamedTuple):
    """The most that a call may cost.

    Attributes:
        waits: how often the host may wait.
        calls: how many operators may be called, if that is bounded.
        bytes: how many bytes may be read and written for each weight, if that is bounded.
    """

    waits: int
    calls: int | None = None
    bytes: float | None = None


BOUNDS: dict[tuple[str, Tree], Most] = {
    ("global", LARGE): Most(2, calls=250, bytes=26),
    ("global", MANY): Most(2, calls=60, bytes=40),
    ("layerwise", LARGE): Most(2, calls=260, bytes=29),
    ("layerwise", MANY): Most(2, calls=2_800, bytes=38.5),
    ("2:4", LARGE): Most(0, bytes=54),
    ("2:4", MANY): Most(0, bytes=54),
    ("dim=-1", LARGE): Most(0, bytes=44),
    ("dim=-1", MANY): Most(0, bytes=44),
    ("gradual, due", LARGE): Most(3, bytes=42),
    ("gradual, due", MANY): Most(3, bytes=58),
    ("rigl, due", LARGE): Most(7, bytes=136),
    ("rigl, due", MANY): Most(7, bytes=153),
    ("SET, due", LARGE): Most(7),
    ("SET, due", MANY): Most(7),
    **{
        (f"{name}, not due", tree): Most(0, bytes=9.1)
        for name in ("gradual", "rigl", "SET")
        for tree in (LARGE, MANY)
    },
}


def row_id(value: Any) -> str:
    return f"{value.num_leaves} leaves" if isinstance(value, Tree) else str(value)


QUICK = {("global", MANY), ("layerwise", MANY), ("gradual, not due", MANY)}
ROWS = [
    pytest.param(*row, marks=pytest.mark.slow if row in QUICK else pytest.mark.long)
    for row in BOUNDS
]


@pytest.mark.parametrize(("name", "tree"), ROWS, ids=row_id)
def test_costs(name: str, tree: Tree) -> None:
    most = BOUNDS[name, tree]
    leaves = tree.leaves()
    call = CALLS[name](leaves)
    with measured() as cost:
        call()
    num_weights = sum(leaf.numel() for leaf in leaves.values())
    assert cost.waits <= most.waits, cost.waits_at
    assert most.calls is None or cost.calls <= most.calls, cost.table()
    assert most.bytes is None or cost.bytes / num_weights <= most.bytes, cost.table()


@pytest.mark.parametrize("name", ["gradual, not due", "rigl, not due", "SET, not due"])
def test_a_step_that_is_not_due_returns_the_masks_of_the_state(name: str) -> None:
    tree = {"a": torch.randn(6, 5, device=DEVICE), "b": torch.randn(4, 4, device=DEVICE)}
    step = CALLS[name](tree)
    (_, first), (_, second) = step(), step()
    assert all(first.masks[leaf] is second.masks[leaf] for leaf in tree)
