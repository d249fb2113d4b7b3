"""`gprune prune` and `gprune report`: call the library step by step, and print the result."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress

from gprune import checkpoints
from gprune.cli.printing import as_dict, listing, printable, printed, progress_bar, table
from gprune.summaries import LeafSummary, Summary, add_up

SCORES = {"magnitude": None, "lamp": checkpoints.lamp, "l2": checkpoints.l2}
THRESHOLDS = {
    "global": checkpoints.global_thresholds,
    "layerwise": checkpoints.layerwise_thresholds,
}


def resolve_options(
    amount: float | tuple[int, int],
    score: str | None,
    method: str | None,
    given: Mapping[str, Any],
) -> dict[str, str]:
    """Check that the options need no calibration text, and return the score and method.

    Args:
        amount: the amount.
        score: the option of that name, if it is given.
        method: the option of that name, if it is given.
        given: what other options that need a text are set to, by name.

    Returns:
        The `score` and the `method` for `prune`.

    Raises:
        CheckpointError: if an option needs a text.
    """
    score, method = score or "magnitude", method or "global"
    wanted = [f"--score {score}"] * (score not in SCORES)
    wanted += [f"--method {method}"] * (method not in THRESHOLDS)
    wanted += ["an amount n:m"] * isinstance(amount, tuple)
    wanted += [option for option, value in given.items() if value]
    if wanted:
        raise checkpoints.CheckpointError(
            f"{' and '.join(wanted)} can only be used with --calibrate TEXT, for language models"
        )
    return {"score": score, "method": method}


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
) -> tuple[checkpoints.Outcome, dict[str, str]]:
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
        How much of each tensor is pruned, and why the other tensors are left out.
    """
    source = checkpoints.read(checkpoint)
    checkpoints.check_output_path(source, out, force=force)
    weights = checkpoints.choose(source.tensors, include=include, exclude=exclude)
    reasons = checkpoints.left_out(source.tensors, include=include, exclude=exclude)
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
            return checkpoints.preview(found, _phase(bar, "count", size)), reasons
        write = _phase(bar, "write", source.num_bytes)
        return checkpoints.write(source, found, out, force=force, advance=write), reasons


def report(checkpoint: Path) -> tuple[Summary, dict[str, str]]:
    """Count the zeros of every tensor of a checkpoint, and say which cannot be counted and why."""
    tensors = checkpoints.read_tensors(checkpoint)
    return checkpoints.density(tensors), checkpoints.uncounted(tensors)


def show_pruned(
    found: checkpoints.Outcome, left_out: dict[str, str], as_json: bool, **options: Any
) -> None:
    """Print the options, how much is pruned and what is left out, as JSON or as a table."""
    counts = {"pruned": found.pruned.leaves, "zeros": found.zeros.leaves}
    totals = {"total": {"pruned": found.pruned.total, "zeros": found.zeros.total}}
    out = printable(options["out"])
    with printed(f", but {out} is written" if options["written"] else ""):
        if as_json:
            _print_json(counts, totals, {"left_out": left_out}, options)
        else:
            done = f"Written to {out}." if options["written"] else "Nothing is written."
            _print_table(counts, totals, listing("Left out:", checkpoints.group(left_out)), done)


def show_density(found: Summary, uncounted: dict[str, str], as_json: bool, **options: Any) -> None:
    """Print the number of zeros of each tensor, of all weights and of all tensors."""
    weights = add_up("matrices", [leaf for leaf in found.leaves if leaf.prunable])
    everything = add_up("all", found.leaves)
    totals = {"matrices": {"zeros": weights}, "all": {"zeros": everything}}
    with printed(""):
        if as_json:
            _print_json({"zeros": found.leaves}, totals, {"not_counted": uncounted}, options)
        else:
            _print_table(
                {"zeros": found.leaves},
                totals,
                listing("Not counted:", checkpoints.group(uncounted)),
            )


def _phase(bar: Progress, name: str, num_bytes: int) -> Callable[[int], None]:
    return functools.partial(bar.advance, bar.add_task(name, total=num_bytes))


def _print_table(
    counts: Mapping[str, Sequence[LeafSummary]],
    totals: dict[str, dict[str, LeafSummary]],
    *texts: str,
) -> None:
    """Print a table of the counts and the totals, and then texts, except for empty ones."""
    console = Console()
    columns = {
        heading: [*leaves, *(total[heading] for total in totals.values())]
        for heading, leaves in counts.items()
    }
    console.print(table(columns, len(totals)))
    for text in filter(None, texts):
        console.print(text, markup=False, highlight=False, soft_wrap=True)


def _print_json(
    counts: Mapping[str, Sequence[LeafSummary]],
    totals: dict[str, dict[str, LeafSummary]],
    reasons: dict[str, dict[str, str]],
    options: dict[str, Any],
) -> None:
    """Print the counts, the totals, the reasons and the options as one JSON object."""
    rows = []
    for leaves in zip(*counts.values(), strict=True):
        row = as_dict(dict(zip(counts, leaves, strict=True)))
        rows.append({"name": leaves[0].path, "shape": leaves[0].shape, **row})
    sums = {name: as_dict(total) for name, total in totals.items()}
    print(json.dumps({**options, **sums, "tensors": rows, **reasons}))
