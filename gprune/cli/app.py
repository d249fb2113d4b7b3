"""The commands: what they take, and nothing of what they do."""

import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(add_completion=False, no_args_is_help=True)


class Score(StrEnum):
    """What `gprune prune` ranks by."""

    magnitude = "magnitude"
    lamp = "lamp"
    l2 = "l2"


class Method(StrEnum):
    """What `gprune prune` compares."""

    together = "global"
    layerwise = "layerwise"


Amount = Annotated[
    str, typer.Option(help="How many weights to prune: 0.5 is half of them, 1000 that many.")
]
Include = Annotated[
    list[str] | None, typer.Option(metavar="GLOB", help="Prune only tensors of such a name.")
]
Exclude = Annotated[
    list[str] | None, typer.Option(metavar="GLOB", help="Leave tensors of such a name alone.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


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


@app.command()
def prune(
    checkpoint: Annotated[Path, typer.Argument(help="A .safetensors file or a folder of them.")],
    amount: Amount,
    out: Annotated[Path, typer.Option("--out", "-o", help="Where the pruned copy goes.")],
    include: Include = None,
    exclude: Exclude = None,
    score: Annotated[Score, typer.Option(help="What to rank by.")] = Score.magnitude,
    method: Annotated[
        Method, typer.Option(help="Rank all tensors together, or each alone.")
    ] = Method.together,
    force: Annotated[bool, typer.Option("--force", help="Replace what is at OUT.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Search, and write nothing.")] = False,
    as_json: AsJson = False,
) -> None:
    """Prune a checkpoint into a copy that differs in nothing but the pruned entries, now zero.

    Prunes floating point tensors of two dimensions or more. The checkpoint is a safetensors file or
    a Hugging Face folder; it is memory-mapped and may be larger than memory. lamp and l2 keep their
    scores in a temporary file beside OUT, 4 bytes for each weight (8 if one has float64); lamp also
    sorts, and holds 53 bytes for each entry of the largest tensor. Other files of a folder are
    copied as they are, also where they hold the same weights in another format.

    Exits with 2 for bad input, 1 where the system fails; OUT is whole or as it was before.
    """
    from gprune.cli import checkpoints  # here, since it needs safetensors
    from gprune.cli.printing import as_number, one_line_errors

    with one_line_errors():
        number = as_number(amount)
        pruned = checkpoints.prune(
            checkpoint,
            out,
            amount=number,
            include=include or [],
            exclude=exclude or [],
            score=score,
            method=method,
            force=force,
            dry_run=dry_run,
        )
    checkpoints.show_pruned(
        pruned,
        as_json,
        checkpoint=str(checkpoint),
        out=str(out),
        written=not dry_run,
        amount=number,
        score=score,
        method=method,
    )


@app.command()
def report(
    checkpoint: Annotated[
        Path, typer.Argument(help="A .safetensors file, a folder of them, or a .pt state dict.")
    ],
    as_json: AsJson = False,
) -> None:
    """Print the density of each tensor of a checkpoint, and in total.

    Reads state dicts of torch without running anything in them (weights_only). A pair of
    <name>_orig and <name>_mask, as torch.nn.utils.prune leaves it, counts as the weight it makes.
    """
    from gprune.cli import checkpoints
    from gprune.cli.printing import one_line_errors

    with one_line_errors():
        found = checkpoints.report(checkpoint)
    checkpoints.show_density(found, as_json, checkpoint=str(checkpoint))
