"""`gprune prune` and `gprune report`: call the library step by step, and print the result."""

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
THRESHOLDS = {
    "global": checkpoints.global_thresholds,
    "layerwise": checkpoints.layerwise_thresholds,
}


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
    """Write a pruned copy of a checkpoint, and show a progress bar.

    Args:
        checkpoint: a safetensors file or a Hugging Face folder.
        out: the path of the copy.
        amount: how many weights to prune (int), or the fraction of them (float, 0 to 1).
        include: globs of names. If there are any, only tensors that one of them matches are pruned.
        exclude: globs of names. Tensors that one of them matches are not pruned.
        score: a key of `SCORES`.
        method: a key of `THRESHOLDS`.
        force: whether an existing checkpoint at `out` may be replaced.
        dry_run: whether to write nothing.

    Returns:
        How much of each tensor is pruned.
    """
    source = checkpoints.read(checkpoint)
    checkpoints.check_output_path(source, out, force=force)
    weights = checkpoints.choose(source.tensors, include=include, exclude=exclude)
    size = sum(weight.nbytes for weight in weights.values())
    with progress_bar() as bar:
        found = checkpoints.plan(
            weights,
            amount=amount,
            threshold_fn=THRESHOLDS[method],
            score=SCORES[score],
            folder=out.absolute().parent,
            advance=_phase(bar, "search", size if SCORES[score] is None else 2 * size),
        )
        if dry_run:
            return checkpoints.preview(found, _phase(bar, "count", size))
        write = _phase(bar, "write", source.num_bytes)
        return checkpoints.write(source, found, out, force=force, advance=write)


def report(checkpoint: Path) -> Summary:
    """Count the zeros of every tensor of a checkpoint."""
    return checkpoints.density(checkpoints.read_tensors(checkpoint))


def show_pruned(pruned: Summary, as_json: bool, **options: Any) -> None:
    """Print the options and how much is pruned, as one JSON object or as a table."""
    if as_json:
        _print_json("pruned", pruned, {"total": pruned.total}, options)
        return
    console = Console()
    console.print(table("pruned", pruned, [pruned.total]))
    done = f"Written to {options['out']}." if options["written"] else "Nothing is written."
    console.print(printable(done), markup=False, highlight=False, soft_wrap=True)


def show_density(found: Summary, as_json: bool, **options: Any) -> None:
    """Print the number of zeros of each tensor, of all matrices and of all tensors."""
    matrices = add_up("matrices", [leaf for leaf in found.leaves if leaf.prunable])
    everything = add_up("all", found.leaves)
    if as_json:
        _print_json("zeros", found, {"matrices": matrices, "all": everything}, options)
    else:
        Console().print(table("zeros", found, [matrices, everything]))


def _phase(bar: Progress, name: str, num_bytes: int) -> Callable[[int], None]:
    return functools.partial(bar.advance, bar.add_task(name, total=num_bytes))


def _print_json(
    heading: str, summary: Summary, totals: dict[str, LeafSummary], options: dict[str, Any]
) -> None:
    rows = [{"name": x.path, "shape": x.shape, **as_dict(heading, x)} for x in summary.leaves]
    sums = {name: as_dict(heading, total) for name, total in totals.items()}
    print(json.dumps({**options, **sums, "tensors": rows}))
