"""The training loops and the tables of names of notebook 09, run from its cells."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib
import nbformat
import optree
import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

import gprune as gp

NOTEBOOK = Path(__file__).parents[1] / "notebooks" / "09_from_jax.ipynb"
CELLS = {cell.id: cell.source for cell in nbformat.read(NOTEBOOK, as_version=4).cells}
LOOPS = {"adam-loop": "train_with_adam", "torchopt-loop": "train_with_torchopt"}


def run_cells(*names: str) -> dict[str, Any]:
    """Run some of the notebook's cells, and return the names that they define."""
    defined: dict[str, Any] = {"__name__": "notebook"}
    with matplotlib.rc_context():  # a cell changes the size of letters
        for name in names:
            exec(CELLS[name], defined)
    return defined


@pytest.fixture(scope="module")
def runs() -> Iterator[dict[str, Any]]:
    """Parameters, moments, state and curves of each loop, and how often its step was compiled."""
    finished = {}
    for cell, train in LOOPS.items():
        torch._dynamo.reset()
        counter = CompileCounterWithBackend("aot_eager")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch, "compile", partial(torch.compile, backend=counter))
            defined = run_cells("imports", "problem", "pruner", cell)
        finished[cell] = (*defined[train](defined["start"]), counter.frame_count)
    yield finished
    torch._dynamo.reset()


@pytest.mark.slow
@pytest.mark.parametrize("cell", LOOPS)
def test_counts_are_exact_and_pruned_moments_are_zero(cell: str, runs: dict[str, Any]) -> None:
    params, moments, state, _, compilations = runs[cell]
    assert gp.num_pruned(state.masks) == gp.num_to_prune(0.9, 100 * 64 + 10 * 100)
    for tree in (params, *moments):
        for leaf, mask in zip(*map(leaves, (tree, state.masks)), strict=True):
            if mask is not None:
                assert not leaf[~mask].any()
                assert leaf[mask].any()
    assert compilations == 1


@pytest.mark.slow
def test_both_loops_have_the_same_curves(runs: dict[str, Any]) -> None:
    by_hand, library = (torch.tensor(runs[cell][3]) for cell in LOOPS)
    assert by_hand[-1, 0] < by_hand[0, 0] / 5  # the loss, from which Adam has learned
    torch.testing.assert_close(by_hand, library, rtol=0.05, atol=0.02)


@pytest.mark.slow
def test_adam_by_hand_is_that_of_torch() -> None:
    defined = run_cells("imports", "problem", "pruner", "adam-loop")
    draw = torch.Generator().manual_seed(0)
    start = torch.randn(5, dtype=torch.float64, generator=draw)
    params, state = {"w": start}, defined["adam_init"]({"w": start})
    theirs = start.clone().requires_grad_()
    optimizer = torch.optim.Adam([theirs], lr=0.01)
    for _ in range(20):
        theirs.grad = torch.randn(5, dtype=torch.float64, generator=draw)
        optimizer.step()
        changes, state = defined["adam_update"]({"w": theirs.grad}, state)
        params = optree.tree_map(torch.add, params, changes)
    torch.testing.assert_close(params["w"], theirs.detach(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("cell", LOOPS)
def test_an_example_has_at_most_40_lines(cell: str) -> None:
    lines = [line for name in ("pruner", cell) for line in CELLS[name].splitlines()]
    assert len(lines) <= 40


def test_every_name_in_the_tables_exists() -> None:
    assert len(run_cells("imports", "tables")["names"]) > 30


def leaves(tree: Any) -> list[Any]:
    return optree.tree_leaves(tree, none_is_leaf=True)
