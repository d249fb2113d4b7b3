"""`gprune demo`: a small network learns handwritten digits while its weights are pruned."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import torch
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from rich import box
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from sklearn.datasets import load_digits  # type: ignore[import-untyped]  # it has no types
from sklearn.model_selection import train_test_split  # type: ignore[import-untyped]  # it has no types
from torch import Tensor, nn
from torch.func import functional_call, grad
from torch.nn.functional import cross_entropy

import gprune as gp

Params: TypeAlias = dict[str, Tensor]
Masks: TypeAlias = dict[str, Any]
"""A mask for each weight, and `None` for each bias."""
Batch: TypeAlias = tuple[Tensor, Tensor]
"""Images, (n, 64) float32 from 0 to 1, and their labels, (n,) int64."""

SPARSITIES = (0.9, 0.98)
LAYERS = ("64→300", "300→100", "100→10")
NUM_WEIGHTS = 64 * 300 + 300 * 100 + 100 * 10
EVERY = 10  # steps from one point of a curve to the next
# colours for colour-blind readers (Okabe & Ito, 2008), each with its own line and marker
STYLES = {
    "color": ["black", "#0072B2", "#D55E00", "#009E73"],
    "linestyle": ["-", "-", "--", ":"],
    "marker": ["None", "o", "s", "^"],
}
MARKERS: dict[str, Any] = {"markersize": 5, "markevery": 6}


class Point(NamedTuple):
    """A point of the curves: the test accuracy, and the fraction of each layer that is kept."""

    step: int
    accuracy: float
    densities: list[float]


class Run(NamedTuple):
    """A training run: its method, its sparsity, how many weights are pruned, and its curves."""

    method: str
    sparsity: float
    num_pruned: int
    points: list[Point]


def run(num_steps: int, picture: Path) -> None:
    """Train seven times from the same weights, print a table, and write the picture."""
    start = time.perf_counter()
    torch.set_num_threads(1)  # faster for tensors this small
    torch.manual_seed(0)
    model = nn.Sequential(
        *(nn.Linear(64, 300), nn.ReLU()),
        *(nn.Linear(300, 100), nn.ReLU()),
        nn.Linear(100, 10),
    )
    batches, test = load(num_steps)
    runs, console = [], Console()
    with Progress(console=console) as progress:
        todo = list(pruners(num_steps))
        task = progress.add_task("", total=len(todo) * num_steps)
        for method, sparsity, pruner in todo:
            progress.update(task, description=f"{method} {sparsity:.0%}")
            masks, points = train(model, pruner, batches, test, partial(progress.advance, task))
            runs.append(Run(method, sparsity, int(gp.num_pruned(masks)), points))
    console.print(table(runs))
    draw(runs, picture)
    versions = f"torch {torch.__version__}, Python {platform.python_version()}"
    took = f"{versions}: {time.perf_counter() - start:.0f} s."
    console.print(f"Picture: {picture}\n{took}", soft_wrap=True, highlight=False)


def load(num_steps: int) -> tuple[list[Batch], Batch]:
    """Load scikit-learn's 1,797 digits. Return a training batch for each step, and 360 to test."""
    images, labels = load_digits(return_X_y=True)
    split = train_test_split(images / 16, labels, test_size=360, random_state=0, stratify=labels)
    train_x, test_x = (torch.tensor(part, dtype=torch.float32) for part in split[:2])
    train_y, test_y = (torch.tensor(part, dtype=torch.int64) for part in split[2:])
    chosen = torch.randint(len(train_x), (num_steps, 128))
    return [(train_x[batch], train_y[batch]) for batch in chosen], (test_x, test_y)


def pruners(num_steps: int) -> Iterator[tuple[str, float, gp.pruners.Pruner[Any]]]:
    """Yield the method, the sparsity and the pruner of each run.

    Gradual pruning lasts from a sixth to two thirds of the steps. The others prune once, at its
    end. So all have the last third to recover.
    """
    begin, end = num_steps // 6, 2 * num_steps // 3
    at_each_step = partial(gp.schedules.every, begin=begin, end=end, freq=1)
    at_once = partial(gp.schedules.every, begin=end, end=end, freq=1)
    at_random = partial(gp.global_unstructured, pruning_method=gp.random_unstructured, seed=0)
    yield "dense", 0.0, gp.pruners.gradual(gp.schedules.constant(0.0), due=at_once)
    for sparsity in SPARSITIES:
        cubic = gp.schedules.polynomial(sparsity, begin=begin, end=end)
        final = gp.schedules.constant(sparsity)
        yield "gradual", sparsity, gp.pruners.gradual(cubic, due=at_each_step)
        yield "one-shot", sparsity, gp.pruners.gradual(final, due=at_once)
        yield "random", sparsity, gp.pruners.gradual(final, due=at_once, prune=at_random)


def train(
    model: nn.Module,
    pruner: gp.pruners.Pruner[Any],
    batches: list[Batch],
    test: Batch,
    on_step: Callable[[], None],
) -> tuple[Masks, list[Point]]:
    """Train and prune with pure functions. The model keeps its weights.

    Args:
        model: the network, with the weights to start from.
        pruner: what prunes it.
        batches: the training images of each step.
        test: the test images.
        on_step: called after each step.

    Returns:
        The last masks, and the points of the curves.
    """

    def loss_fn(params: Params, x: Tensor, y: Tensor) -> Tensor:
        return cross_entropy(functional_call(model, params, (x,)), y)

    params = {name: parameter.detach() for name, parameter in model.named_parameters()}
    momentum = {name: torch.zeros_like(value) for name, value in params.items()}
    state = pruner.init(params)
    points = []
    for step, (x, y) in enumerate(batches):
        grads = grad(loss_fn)(params, x, y)
        momentum = {name: 0.9 * momentum[name] + grads[name] for name in params}
        params = {name: params[name] - 0.1 * momentum[name] for name in params}
        params, state = pruner.update(params, state, grads)  # pruned weights come back zero
        if step % EVERY == 0 or step == len(batches) - 1:
            guesses = functional_call(model, params, (test[0],)).argmax(1)
            accuracy = (guesses == test[1]).double().mean().item()
            masks = [mask for mask in state.masks.values() if mask is not None]
            points.append(Point(step, accuracy, [mask.double().mean().item() for mask in masks]))
        on_step()
    return state.masks, points


def table(runs: list[Run]) -> Table:
    """Build the table: a row for each run, at most 80 columns wide."""
    built = Table(title="64-300-100-10 on digits", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    built.add_column("run")
    headings = ("sparsity\nasked", "weights\npruned", "expected", "test\naccuracy")
    for heading in (*headings, *(f"density\n{layer}" for layer in LAYERS)):
        built.add_column(heading, justify="right")
    for run in runs:
        expected = int(gp.num_to_prune(run.sparsity, NUM_WEIGHTS))
        built.add_row(
            run.method,
            f"{run.sparsity:.0%}",
            f"{run.num_pruned:,}",
            f"{expected:,}",
            f"{run.points[-1].accuracy:.1%}",
            *(f"{density:.2%}" for density in run.points[-1].densities),
        )
    return built


def draw(runs: list[Run], path: Path) -> None:
    """Draw a column for each sparsity: the accuracy above, and the density of each layer below."""
    figure = Figure(figsize=(8, 5.8), layout="constrained")
    figure.suptitle("Global pruning while a 64-300-100-10 network learns the digits")
    axes = figure.subplots(2, len(SPARSITIES), sharex=True, sharey="row")
    for axis in axes.flat:
        axis.set_prop_cycle(**STYLES)
        axis.grid(alpha=0.3)
    for (above, below), sparsity in zip(axes.T, SPARSITIES, strict=True):
        for run in runs:
            steps, accuracy, densities = zip(*run.points, strict=True)
            if run.sparsity in (0.0, sparsity):
                # until it is pruned, every run is the dense one
                start = 0 if run.method == "dense" else sum(min(d) == 1 for d in densities) - 1
                above.plot(steps[start:], accuracy[start:], label=run.method, **MARKERS)
            if (run.method, run.sparsity) == ("gradual", sparsity):
                below.plot(steps, [1 - sparsity] * len(steps), label="all, at the end")
                below.plot(steps, densities, label=LAYERS, **MARKERS)
        above.set_title(f"{sparsity:.0%} of the weights pruned")
        below.set(xlabel="step", yscale="log")
    axes[0, 0].set(ylabel="test accuracy")
    axes[0, 0].legend(loc=(0.1, 0.05))
    axes[1, 0].set(ylabel="weights kept, gradual")
    axes[1, 0].legend(loc="lower left")
    for axis in axes.flat:
        axis.yaxis.set_major_formatter(PercentFormatter(1))
    figure.savefig(path, dpi=150)
