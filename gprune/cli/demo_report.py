"""The output of `gprune demo`: a table of the runs, and a picture of their curves."""

from __future__ import annotations

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from rich import box
from rich.table import Table

from gprune.cli.demo_training import LAYERS, Run

# Colours for colour-blind readers (Okabe & Ito, 2008), each with its own line style.
METHOD_STYLES = {
    "dense": ("black", "-", ""),
    "gradual": ("#0072B2", "-", "o"),
    "one-shot": ("#D55E00", "--", "s"),
    "random": ("#009E73", ":", "^"),
}
LAYER_STYLES = (("#0072B2", "-", "o"), ("#D55E00", "--", "s"), ("#009E73", ":", "^"))
LAYER_NAMES = ("64→300", "300→100", "100→10")


def table(runs: list[Run]) -> Table:
    """Build the table: a row per run, at most 80 columns wide."""
    drawn = Table(title="64-300-100-10 on digits", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    drawn.add_column("run")
    for heading in ("sparsity\nasked", "weights\npruned", "expected", "test\naccuracy"):
        drawn.add_column(heading, justify="right")
    for name in LAYER_NAMES:
        drawn.add_column(f"density\n{name}", justify="right")
    for i, run in enumerate(runs):
        final = run.records[-1]
        drawn.add_row(
            run.method,
            f"{run.sparsity:.0%}",
            f"{run.num_pruned:,}",
            f"{run.num_expected:,}",
            f"{final.accuracy:.1%}",
            *(f"{density:.2%}" for density in final.densities),
            end_section=i + 1 < len(runs) and runs[i + 1].sparsity != run.sparsity,
        )
    return drawn


def draw(runs: list[Run], path: Path) -> None:
    """Draw a column per sparsity, with the accuracy above and the density of each layer below."""
    dense = runs[0]
    sparsities = sorted({run.sparsity for run in runs} - {dense.sparsity})
    figure = Figure(figsize=(10, 7), layout="constrained")
    figure.suptitle("Global pruning while a 64-300-100-10 network learns the digits")
    axes = figure.subplots(2, len(sparsities), sharex=True, sharey="row", squeeze=False)
    for column, sparsity in enumerate(sparsities):
        chosen = [dense, *(run for run in runs if run.sparsity == sparsity)]
        _draw_accuracy(axes[0, column], chosen, f"{sparsity:.0%} of the weights pruned")
        gradual = next(run for run in chosen if run.method == "gradual")
        _draw_densities(axes[1, column], gradual)
    axes[0, 0].set_ylabel("test accuracy")
    axes[1, 0].set_ylabel("weights kept, gradual run")
    axes[0, 0].legend(loc="lower center")
    axes[1, 0].legend(loc="lower left")
    figure.savefig(path, dpi=100)


def _draw_accuracy(axes: Axes, runs: list[Run], title: str) -> None:
    for run in runs:
        color, style, marker = METHOD_STYLES[run.method]
        axes.plot(
            [record.step for record in run.records],
            [record.accuracy for record in run.records],
            color=color,
            linestyle=style,
            marker=marker,
            markersize=4,
            markevery=3,
            label=run.method,
        )
    axes.set_title(title)
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    axes.grid(alpha=0.3)


def _draw_densities(axes: Axes, run: Run) -> None:
    steps = [record.step for record in run.records]
    kept = zip(*(record.densities for record in run.records), strict=True)
    for layer, name, (color, style, marker), curve in zip(
        LAYERS, LAYER_NAMES, LAYER_STYLES, kept, strict=True
    ):
        axes.plot(
            steps,
            curve,
            color=color,
            linestyle=style,
            marker=marker,
            markersize=4,
            markevery=3,
            label=f"{layer}, {name}",
        )
    axes.axhline(1 - run.sparsity, color="black", linewidth=0.8, label="all layers, at the end")
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    axes.set_xlabel("step")
    axes.grid(alpha=0.3)
