"""The commands and their options. What they do is in the other files of this package."""

import io
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

app = typer.Typer(add_completion=False, no_args_is_help=True)

# the titles of groups of options in the help of `gprune prune`
WHICH = "Which weights are pruned"
CALIBRATED = "Language models, pruned with the inputs of a text"
OUTPUT = "Output"


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
        help="How many weights to prune: 0.5 is half of them, 1000 is that many. With --calibrate, "
        "2:4 keeps 2 of every 4 inputs."
    ),
]
Include = Annotated[
    list[str] | None,
    typer.Option(
        metavar="GLOB",
        rich_help_panel=WHICH,
        help="Prune only tensors with a matching name. May be given several times.",
    ),
]
Exclude = Annotated[
    list[str] | None,
    typer.Option(
        metavar="GLOB",
        rich_help_panel=WHICH,
        help="Do not prune tensors with a matching name. May be given several times.",
    ),
]
AsJson = Annotated[
    bool, typer.Option("--json", rich_help_panel=OUTPUT, help="Print one JSON object, not a table.")
]


def _print_version(is_asked: bool) -> None:
    """Print the version and leave, if asked.

    Raises:
        Exit: after the version is printed.
    """
    if is_asked:
        from gprune import __version__

        typer.echo(f"gprune {__version__}")
        raise typer.Exit


@app.callback()
def gprune(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None:
    """Prune the weights of checkpoints, and count their zeros.

    See on your machine what pruning does, without a checkpoint:

    gprune demo

    Prune half of the weights of a model, and look at the copy:

    gprune prune model/ --amount 0.5 --out pruned/
    gprune report pruned/

    "gprune prune --help" has all options. To prune while a model trains, use
    the library: python -c "import gprune; help(gprune)"
    """
    if isinstance(sys.stdout, io.TextIOWrapper):  # characters that the encoding lacks are escaped
        sys.stdout.reconfigure(errors="backslashreplace")


def _png(path: Path) -> Path:
    """Return the path of a picture.

    Raises:
        BadParameter: if no PNG can be written there.
    """
    if path.suffix.lower() != ".png" or not path.absolute().parent.is_dir():
        raise typer.BadParameter(f"{path} must end in .png and lie in a folder that exists")
    return path


@app.command()
def demo(
    steps: Annotated[int, typer.Option(min=30, help="Training steps of each run.")] = 900,
    picture: Annotated[
        Path, typer.Option(help="Path of the picture to write, a PNG.", callback=_png)
    ] = Path("gprune-demo.png"),
) -> None:
    """Prune a network in three ways while it learns digits, and draw the results.

    gprune demo
    gprune demo --steps 300 --picture digits.png

    It takes about half a minute on a CPU. It downloads nothing, and writes one
    picture. It needs the extra "demo".
    """
    from gprune.cli.demo import run  # imported here, because it needs the extra `demo`

    run(steps, picture)


@app.command()
def prune(
    checkpoint: Annotated[
        Path, typer.Argument(help="A .safetensors file or the folder of one model.")
    ],
    amount: Amount,
    out: Annotated[Path, typer.Option("--out", "-o", help="Path of the pruned copy.")],
    include: Include = None,
    exclude: Exclude = None,
    score: Annotated[
        ScoreName | None,
        typer.Option(
            metavar="SCORE",
            rich_help_panel=WHICH,
            show_default="magnitude",
            help="What weights are ranked by: magnitude, lamp, l2, or wanda, which needs "
            "--calibrate. The lowest are pruned.",
        ),
    ] = None,
    method: Annotated[
        Method | None,
        typer.Option(
            metavar="METHOD",
            rich_help_panel=WHICH,
            show_default="global, and rows for wanda",
            help="What is ranked together: all tensors (global), each tensor (layerwise), or each "
            "row (rows, for wanda). sparsegpt prunes each tensor column by column, and needs "
            "--calibrate.",
        ),
    ] = None,
    calibrate: Annotated[
        Path | None,
        typer.Option(
            metavar="TEXT",
            rich_help_panel=CALIBRATED,
            help="A text file in UTF-8. The model reads it, and its layers are pruned with the "
            "inputs that they get. The other options of this group need it.",
        ),
    ] = None,
    refit: Annotated[
        bool,
        typer.Option(
            "--refit",
            rich_help_panel=CALIBRATED,
            help="Rebuild the kept weights, to make up for the pruned ones.",
        ),
    ] = False,
    tokens: Annotated[
        int | None,
        typer.Option(
            min=1,
            rich_help_panel=CALIBRATED,
            show_default="16,384",
            help="How many tokens of the text are read.",
        ),
    ] = None,
    length: Annotated[
        int | None,
        typer.Option(
            min=1,
            rich_help_panel=CALIBRATED,
            show_default="2,048, or fewer if the model takes no more",
            help="How many tokens a sequence has.",
        ),
    ] = None,
    force: Annotated[
        bool,
        typer.Option(
            "--force", rich_help_panel=OUTPUT, help="Replace an existing checkpoint at OUT."
        ),
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            rich_help_panel=OUTPUT,
            help="Count what would be pruned, and write nothing.",
        ),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Write a pruned copy of a checkpoint, in which the pruned entries are zero.

    Prune half of all weights by magnitude, but none of the embeddings:

    gprune prune model/ --amount 0.5 --exclude "*embed*" --out pruned/

    Prune half of the inputs of every output of a language model, by Wanda:

    gprune prune model/ --amount 0.5 --score wanda --calibrate text.txt -o out/

    The checkpoint is a safetensors file, or a folder that transformers, PEFT
    or diffusers (one component) has saved. It is memory-mapped and may be
    larger than memory. OUT is written atomically. Other files of a folder are
    copied unchanged, even if they have the same weights in another format.

    Weights are floating point tensors of two dimensions or more, except for
    those whose names are of biases, norms, scales, masks and the like. What is
    left out is printed, with the reason. To prune such a tensor, include it by
    its whole name. Quantized weights are refused: their zeros are not zero
    bytes.

    The scores lamp and l2 are kept in a temporary file beside OUT: 4 bytes for
    each weight, or 8 if a tensor is float64. lamp also sorts, and needs 40
    bytes of memory for each entry of the largest tensor.

    With --calibrate the linear layers in the blocks of a language model are
    pruned, but not its embedding, its head, or experts that transformers
    packs into one tensor. transformers loads the model and its tokenizer from
    the folder, and nothing is downloaded. The blocks are pruned in turn, each
    with the inputs that it gets from the pruned blocks before it. --score
    wanda applies --amount to each row, and --method sparsegpt to each tensor.
    SparseGPT and --refit change kept entries too. Dtypes do not change. The
    model runs in float32 on the CPU and must fit into memory twice.

    The exit status is 2 for bad input and 1 if the system fails.
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
        typer.Argument(
            help="A .safetensors file, the folder of one model, or a file of torch.save."
        ),
    ],
    as_json: AsJson = False,
) -> None:
    """Print how many entries of each tensor of a checkpoint are zero, and in total.

    gprune report pruned/
    gprune report epoch-3.ckpt --json

    The density is the fraction of the entries that are not zero, 0 to 1.
    Codes of quantized weights are listed, but not counted. A pair <name>_orig
    and <name>_mask, as torch.nn.utils.prune leaves it, counts as one tensor,
    their product.

    State dicts that torch has saved are read too, also inside of checkpoints
    such as those of Lightning. No code in them is run (weights_only).
    """
    from gprune.cli import checkpoints
    from gprune.cli.printing import one_line_errors

    with one_line_errors():
        found, uncounted = checkpoints.report(checkpoint)
        checkpoints.show_density(found, uncounted, as_json, checkpoint=str(checkpoint))
