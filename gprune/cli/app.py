"""The commands."""

import sys
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(add_completion=False, no_args_is_help=True)


@app.callback()
def gprune() -> None:
    """Exact pruning masks as pure functions."""


@app.command()
def demo(
    steps: Annotated[int, typer.Option(min=30, help="Training steps of each run.")] = 1500,
    picture: Annotated[Path, typer.Option(help="Where to write the picture.")] = Path(
        "gprune-demo.png"
    ),
) -> None:
    """Prune a network while it trains on real digits, three ways, and compare with torch.

    Takes about half a minute on two cores, most of it for one compilation; downloads nothing.
    Exits with 1 if a count, a mask or the number of compilations is not as promised.
    """
    from gprune.cli.demo import run  # here, since it needs the whole extra `demo`

    sys.exit(0 if run(steps, picture) else 1)
