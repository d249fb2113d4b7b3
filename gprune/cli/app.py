"""The commands and their options. What they do is in the other files of this package."""

import io
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

app = typer.Typer(add_completion=False, no_args_is_help=True)


class ScoreName(StrEnum):
    """The scores that `gprune prune` can rank by."""

    magnitude = "magnitude"
    lamp = "lamp"
    l2 = "l2"
    wanda = "wanda"


class Method(StrEnum):
    """What `gprune prune` ranks together: all tensors, each tensor, or each row; or SparseGPT."""

    all_tensors = "global"
    layerwise = "layerwise"
    rows = "rows"
    sparsegpt = "sparsegpt"


Amount = Annotated[
    str,
    typer.Option(
        help="How many weights to prune: 0.5 is half of them, 1000 that many. 2:4 keeps 2 of every "
        "4 inputs, with --calibrate."
    ),
]
Include = Annotated[
    list[str] | None, typer.Option(metavar="GLOB", help="Prune only tensors with a matching name.")
]
Exclude = Annotated[
    list[str] | None,
    typer.Option(metavar="GLOB", help="Do not prune tensors with a matching name."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


@app.callback()
def gprune() -> None:
    """Exact pruning masks as pure functions."""
    if isinstance(sys.stdout, io.TextIOWrapper):  # names that the encoding lacks are escaped
        sys.stdout.reconfigure(errors="backslashreplace")


@app.command()
def demo(
    steps: Annotated[int, typer.Option(min=30, help="Training steps of each run.")] = 900,
    picture: Annotated[Path, typer.Option(help="Where to write the picture.")] = Path(
        "gprune-demo.png"
    ),
) -> None:
    """Prune a network in three ways while it learns digits, and draw what becomes of it.

    Takes about half a minute on two cores. Downloads nothing.
    """
    from gprune.cli.demo import run  # imported here, because it needs the extra `demo`

    run(steps, picture)


@app.command()
def prune(
    checkpoint: Annotated[
        Path, typer.Argument(help="A .safetensors file or a folder of one model.")
    ],
    amount: Amount,
    out: Annotated[Path, typer.Option("--out", "-o", help="The path of the pruned copy.")],
    include: Include = None,
    exclude: Exclude = None,
    score: Annotated[
        ScoreName | None,
        typer.Option(help="The score to rank by: magnitude by default; wanda needs --calibrate."),
    ] = None,
    method: Annotated[
        Method | None,
        typer.Option(
            help="Rank all tensors together (global, the default), each tensor by itself "
            "(layerwise), each row by itself (rows, for wanda), or prune by SparseGPT, which needs "
            "--calibrate."
        ),
    ] = None,
    calibrate: Annotated[
        Path | None,
        typer.Option(
            metavar="TEXT", help="Prune a language model with the inputs that a text gives it."
        ),
    ] = None,
    refit: Annotated[
        bool, typer.Option("--refit", help="Rebuild the kept weights, with --calibrate.")
    ] = False,
    tokens: Annotated[
        int | None,
        typer.Option(min=1, help="How many tokens of the text to read: 16,384 by default."),
    ] = None,
    length: Annotated[
        int | None,
        typer.Option(
            min=1, help="Tokens of a sequence: 2,048 by default, or as many as the model takes."
        ),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Replace an existing checkpoint at OUT.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Count what would be pruned, and write nothing.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Write a pruned copy of a checkpoint. Only the pruned entries change: they become zero.

    Prunes floating point tensors of two dimensions or more, except for those whose names are of
    biases, norms, scales, masks and the like, and prints what is left out and why. Include such a
    tensor by its whole name to prune it. Refuses quantized weights, whose zeros are not zero bytes.

    The checkpoint is a safetensors file, or a folder that transformers, diffusers (one component)
    or PEFT has saved. It is memory-mapped and may be larger than memory. lamp and l2 keep their
    scores in a temporary file beside OUT: 4 bytes for each weight, or 8 if a tensor is float64.
    lamp also sorts, and needs 40 bytes of memory for each entry of the largest tensor. Other files
    of a folder are copied unchanged, even if they have the same weights in another format.

    With --calibrate it prunes the linear layers in the blocks of a language model, but not its
    embedding, its head, and experts that transformers packs into one tensor. transformers loads the
    model and its tokenizer from the folder, and nothing is downloaded. One block after the other is
    pruned, with the inputs that the text gives it after the blocks before it are pruned. --score
    wanda prunes the amount of each row, that is of the inputs of each output; --method sparsegpt
    that of each tensor. SparseGPT and --refit change kept entries too, to make up for the pruned
    ones. Dtypes stay. The model runs in float32 on the CPU and must fit into memory twice.

    Exits with 2 for bad input and with 1 if the system fails. OUT is written atomically.
    """
    from gprune.cli import checkpoints  # imported here, because it needs safetensors
    from gprune.cli.printing import as_amount, one_line_errors

    with one_line_errors():
        common: dict[str, Any] = {
            "amount": as_amount(amount),
            "include": include or [],
            "exclude": exclude or [],
            "force": force,
            "dry_run": dry_run,
        }
        how: dict[str, Any]  # all that the JSON has of these options
        if calibrate is None:
            given = {"--refit": refit, "--tokens": tokens, "--length": length}
            how = dict(checkpoints.resolve_options(common["amount"], score, method, given))
            found, left_out = checkpoints.prune(checkpoint, out, **how, **common)
        else:
            from gprune.cli import calibrated  # needs transformers, which is imported later

            how = calibrated.resolve_options(score, method) | {"refit": refit, "length": length}
            how["tokens"] = calibrated.TOKENS if tokens is None else tokens
            found, left_out = calibrated.prune(checkpoint, out, text=calibrate, **how, **common)
            how["calibrate"] = str(calibrate)
        checkpoints.show_pruned(
            found,
            left_out,
            as_json,
            checkpoint=str(checkpoint),
            out=str(out),
            written=not dry_run,
            amount=amount if ":" in amount else common["amount"],
            **how,
        )


@app.command()
def report(
    checkpoint: Annotated[
        Path,
        typer.Argument(help="A .safetensors file, a folder of one model, or a file of torch.save."),
    ],
    as_json: AsJson = False,
) -> None:
    """Print the density of each tensor of a checkpoint, and in total.

    Reads state dicts saved by torch, also inside of checkpoints such as those of Lightning, without
    running code in them (weights_only). The density is the fraction of entries of the file that are
    not zero. Codes of quantized weights are listed, but not counted. A pair <name>_orig and
    <name>_mask, as torch.nn.utils.prune leaves it, counts as one tensor, their product.
    """
    from gprune.cli import checkpoints
    from gprune.cli.printing import one_line_errors

    with one_line_errors():
        found, uncounted = checkpoints.report(checkpoint)
        checkpoints.show_density(found, uncounted, as_json, checkpoint=str(checkpoint))
