"""Output of the commands for checkpoints: progress bar, tables, errors of one line."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import typer
from rich import box
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.table import Table
from rich.text import Text

from gprune.summaries import LeafSummary
from gprune.trees import describe_first


def progress_bar() -> Progress:
    """Build a bar with bytes and remaining time. It shows only if standard error is a terminal."""
    return _bar(DownloadColumn(), TransferSpeedColumn())


def step_bar() -> Progress:
    """Build a bar with steps and remaining time. It shows only if standard error is a terminal."""
    return _bar(MofNCompleteColumn())


def _bar(*counts: ProgressColumn) -> Progress:
    console = Console(stderr=True)
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        *counts,
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
        transient=True,
    )


def table(counts: Mapping[str, Sequence[LeafSummary]], num_totals: int) -> Table:
    """Build a table with a row per tensor, and the totals at its end.

    Args:
        counts: one or more counts of the entries of the same tensors, by the headings of their
            columns. The density is that of the last count.
        num_totals: how many rows at the end are totals.

    Returns:
        The table. Long names are folded.
    """
    drawn = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    drawn.add_column("tensor", overflow="fold")
    for column in ("shape", "entries", *counts, "density"):
        drawn.add_column(column, justify="right", no_wrap=True)
    rows = list(zip(*counts.values(), strict=True))
    num_tensors = len(rows) - num_totals
    for i, row in enumerate(rows):
        if i == num_tensors:
            drawn.add_section()
        leaf = row[-1]
        shape = "x".join(map(str, leaf.shape)) or ("scalar" if i < num_tensors else "")
        figures = [f"{x:,}" for x in (leaf.entries, *(count.pruned for count in row))]
        cells = printable(leaf.path), shape, *figures, f"{leaf.density:.4f}"
        drawn.add_row(*map(Text, cells))
    return drawn


def as_dict(counts: dict[str, LeafSummary]) -> dict[str, Any]:
    """Return the numbers of a row of `table` for JSON."""
    leaf = list(counts.values())[-1]
    numbers = {heading: count.pruned for heading, count in counts.items()}
    return {"entries": leaf.entries, **numbers, "density": leaf.density}


def listing(title: str, names: Mapping[str, Sequence[str]]) -> str:
    """Return a title and a line for each reason: how many names it has, and the first of them.

    Args:
        title: the first line.
        names: the names for each reason.

    Returns:
        The lines; no text if there are none.
    """
    lines = [
        f"  {len(group):,} {reason}: {describe_first(group, str, ', ')}"
        for reason, group in names.items()
    ]
    return "\n".join([title, *map(printable, lines)]) if lines else ""


def as_amount(text: str) -> float | tuple[int, int]:
    """Parse an amount: an int if it is written as one, n and m if it is n:m, otherwise a float.

    Args:
        text: the text that the user typed.

    Returns:
        The number, or n and m.

    Raises:
        ValueError: if the text is none of these.
    """
    n, colon, m = text.partition(":")
    if colon and n.isdecimal() and m.isdecimal():
        return int(n), int(m)
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    raise ValueError(f"amount must be an int, a float or a pattern such as 2:4, got {text!r}")


def printable(text: str) -> str:
    """Replace control characters, because names in a file may contain terminal commands."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


@contextmanager
def printed(done: str) -> Iterator[None]:
    """Make sure that all that is printed has been written to standard output.

    Args:
        done: what the command has done already, as the end of the note.

    Yields:
        Nothing.

    Raises:
        OSError: if standard output is full or closed, with a note.
    """
    try:
        yield
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError as error:
        # Python flushes once more when it exits, and would print a second error
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        error.add_note(f"the result cannot be printed{done}")
        raise


@contextmanager
def one_line_warnings() -> Iterator[None]:
    """Print the warnings of gprune as lines of standard error, each once, and ignore others.

    Yields:
        Nothing.
    """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("ignore")
        warnings.filterwarnings("always", category=UserWarning, module=r"gprune\.")
        try:
            yield
        finally:
            for text in dict.fromkeys(str(warning.message) for warning in caught):
                print(f"gprune: warning: {printable(text)}", file=sys.stderr)


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Print an error as one line and exit: with 2 for bad input, with 1 if the system fails.

    The line has the notes of the error too.

    Yields:
        Nothing.

    Raises:
        typer.Exit: instead of a ValueError or an OSError.
    """
    try:
        yield
        return
    except ValueError as error:
        code, reason = 2, str(error)
    except OSError as error:
        code, reason = 1, "; ".join([str(error), *getattr(error, "__notes__", [])])
    print(f"gprune: {printable(reason)}", file=sys.stderr)
    raise typer.Exit(code)
