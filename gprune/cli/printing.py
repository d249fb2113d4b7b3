"""Output of the commands for checkpoints: progress bar, tables, errors of one line."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import typer
from rich import box
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.table import Table
from rich.text import Text

from gprune.summaries import LeafSummary, Summary


def progress_bar() -> Progress:
    """Build a bar with bytes and remaining time. It shows only if standard error is a terminal."""
    console = Console(stderr=True)
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
        transient=True,
    )


def table(heading: str, summary: Summary, totals: Sequence[LeafSummary]) -> Table:
    """Build a table with a row per tensor, and the totals at its end.

    Args:
        heading: the heading of the column with the number of zeros.
        summary: the rows of the tensors.
        totals: the rows at the end.

    Returns:
        The table. Long names are folded.
    """
    drawn = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    drawn.add_column("tensor", overflow="fold")
    for column in ("shape", "entries", heading, "density"):
        drawn.add_column(column, justify="right", no_wrap=True)
    for leaf in summary.leaves:
        drawn.add_row(*_cells(leaf, "x".join(map(str, leaf.shape)) or "scalar"))
    drawn.add_section()
    for leaf in totals:
        drawn.add_row(*_cells(leaf, ""))
    return drawn


def as_dict(heading: str, leaf: LeafSummary) -> dict[str, Any]:
    """Return the numbers of a row for JSON; `heading` is the name of the number of zeros."""
    return {"entries": leaf.entries, heading: leaf.pruned, "density": leaf.density}


def as_number(text: str) -> float:
    """Parse an amount: an int if it is written as one, otherwise a float.

    Args:
        text: the text that the user typed.

    Returns:
        The number.

    Raises:
        ValueError: if the text is not a number.
    """
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    raise ValueError(f"amount must be an int or a float, got {text!r}")


def printable(text: str) -> str:
    """Replace control characters, because names in a file may contain terminal commands."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


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


def _cells(leaf: LeafSummary, shape: str) -> tuple[Text, ...]:
    figures = f"{leaf.entries:,}", f"{leaf.pruned:,}", f"{leaf.density:.4f}"
    return tuple(Text(cell) for cell in (printable(leaf.path), shape, *figures))
