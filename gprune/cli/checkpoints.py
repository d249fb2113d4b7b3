"""`gprune prune` and `gprune report`: the library's steps in a row, and what they print."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress

from gprune import checkpoints
from gprune.cli.printing import as_dict, printable, progress_bar, table
from gprune.summaries import LeafSummary, Summary, add_up

SCORES = {"magnitude": None, "lamp": checkpoints.lamp, "l2": checkpoints.l2}
METHODS = {"global": checkpoints.together, "layerwise": checkpoints.each_alone}


def prune(
    checkpoint: Path,
    out: Path,
    *,
    amount: float,
    include: Sequence[str],
    exclude: Sequence[str],
    score: str,
    method: str,
    force: bool,
    dry_run: bool,
) -> Summary:
    """Prune a checkpoint into a copy, behind a progress bar.

    Args:
        checkpoint: a safetensors file or a Hugging Face folder.
        out: where the copy goes.
        amount: how many weights to prune, or the fraction of them.
        include: globs of names; if there are any, only what one of them matches.
        exclude: globs of names that are left alone.
        score: a key of `SCORES`.
        method: a key of `METHODS`.
        force: whether to replace what is at `out`.
        dry_run: whether to write nothing.

    Returns:
        What is pruned.
    """
    source = checkpoints.read(checkpoint)
    checkpoints.require_free(source, out, force=force)
    weights = checkpoints.choose(source.tensors, include=include, exclude=exclude)
    size = sum(weight.nbytes for weight in weights.values())
    with progress_bar() as bar:
        found = checkpoints.plan(
            weights,
            amount=amount,
            method=METHODS[method],
            score=SCORES[score],
            folder=out.absolute().parent,
            advance=_phase(bar, "search", size if SCORES[score] is None else 2 * size),
        )
        if dry_run:
            return checkpoints.preview(found, _phase(bar, "count", size))
        write = _phase(bar, "write", source.num_bytes)
        return checkpoints.write(source, found, out, force=force, advance=write)


def report(checkpoint: Path) -> Summary:
    """Count the zeros of any checkpoint that gprune reads."""
    return checkpoints.density(checkpoints.read_tensors(checkpoint))


def show_pruned(pruned: Summary, as_json: bool, **asked: Any) -> None:
    """Print what was asked for and what is pruned, as one JSON object or as a table."""
    if as_json:
        _print_json("pruned", pruned, {"total": pruned.total}, asked)
        return
    console = Console()
    console.print(table("pruned", pruned, [pruned.total]))
    done = f"Written to {asked['out']}." if asked["written"] else "Nothing is written."
    console.print(printable(done), markup=False, highlight=False, soft_wrap=True)


def show_density(found: Summary, as_json: bool, **asked: Any) -> None:
    """Print the zeros of each tensor, of all matrices and of all tensors."""
    matrices = add_up("matrices", [leaf for leaf in found.leaves if leaf.prunable])
    everything = add_up("all", found.leaves)
    if as_json:
        _print_json("zeros", found, {"matrices": matrices, "all": everything}, asked)
    else:
        Console().print(table("zeros", found, [matrices, everything]))


def _phase(bar: Progress, name: str, num_bytes: int) -> Callable[[int], None]:
    return functools.partial(bar.advance, bar.add_task(name, total=num_bytes))


def _print_json(
    zeros: str, summary: Summary, totals: dict[str, LeafSummary], asked: dict[str, Any]
) -> None:
    rows = [{"name": x.path, "shape": x.shape, **as_dict(zeros, x)} for x in summary.leaves]
    sums = {name: as_dict(zeros, total) for name, total in totals.items()}
    print(json.dumps({**asked, **sums, "tensors": rows}))
