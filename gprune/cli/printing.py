"""What the commands on checkpoints print: a progress bar, tables, errors of one line."""

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
    """Make a bar with bytes and time left, on the standard error of a terminal and nowhere else."""
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


def table(zeros: str, summary: Summary, totals: Sequence[LeafSummary]) -> Table:
    """Make a table with a row per tensor, and the totals at its foot.

    Args:
        zeros: the heading of the column that counts what is zero.
        summary: the tensors.
        totals: the rows at the foot.

    Returns:
        The table; long names are folded.
    """
    drawn = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    drawn.add_column("tensor", overflow="fold")
    for heading in ("shape", "entries", zeros, "density"):
        drawn.add_column(heading, justify="right", no_wrap=True)
    for leaf in summary.leaves:
        drawn.add_row(*_cells(leaf, "x".join(map(str, leaf.shape)) or "scalar"))
    drawn.add_section()
    for leaf in totals:
        drawn.add_row(*_cells(leaf, ""))
    return drawn


def as_dict(zeros: str, leaf: LeafSummary) -> dict[str, Any]:
    """Give the figures of a row as JSON has them."""
    return {"entries": leaf.entries, zeros: leaf.pruned, "density": leaf.density}


def as_number(text: str) -> float:
    """Take an amount as an int if it is written as one, else as a float.

    Args:
        text: what was typed.

    Returns:
        The number.

    Raises:
        ValueError: if it is none.
    """
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    raise ValueError(f"amount must be an int or a float, got {text!r}")


def printable(text: str) -> str:
    """Replace what would act on a terminal: the names in a file may be anybody's."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Turn an error into one line and an exit code: 2 for bad input, 1 where the system fails.

    Yields:
        Nothing.

    Raises:
        typer.Exit: in place of a ValueError or an OSError.
    """
    try:
        yield
        return
    except ValueError as error:
        code, reason = 2, str(error)
    except OSError as error:
        code, reason = 1, f"{error}; what was there before is as it was"
    print(f"gprune: {printable(reason)}", file=sys.stderr)
    raise typer.Exit(code)


def _cells(leaf: LeafSummary, shape: str) -> tuple[Text, ...]:
    figures = f"{leaf.entries:,}", f"{leaf.pruned:,}", f"{leaf.density:.4f}"
    return tuple(Text(cell) for cell in (printable(leaf.path), shape, *figures))
