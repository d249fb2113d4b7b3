"""The command line: it parses arguments and prints results; the library does the work.

    gprune demo    prune a small network while it trains, and draw a picture
    gprune prune   write a pruned copy of a checkpoint
    gprune report  print how many entries of a checkpoint are zero

`gprune --help` and `gprune prune --help` have examples and all options. `python -m gprune` is the
same command.

The commands are in `app.py`. `import gprune` imports nothing of this package. It needs the extra
`cli` (typer, rich, safetensors). `gprune demo` needs the extra `demo` too (scikit-learn,
matplotlib), and `gprune prune --calibrate` the extra `transformers`.
"""

import sys

DISTRIBUTIONS = {
    "typer": ("typer", "cli"),
    "rich": ("rich", "cli"),
    "sklearn": ("scikit-learn", "demo"),
    "matplotlib": ("matplotlib", "demo"),
    "safetensors": ("safetensors", "cli"),
    "transformers": ("transformers", "transformers"),
}
"""For each imported package: its distribution, and the extra that installs it."""


def main() -> None:
    """Run the command line. If a package of the extras is missing, print how to install it.

    Raises:
        ModuleNotFoundError: if the missing package is not in the extras.
    """
    try:
        from gprune.cli.app import app

        app()
    except ModuleNotFoundError as error:
        missing = DISTRIBUTIONS.get((error.name or "").partition(".")[0])
        if missing is None:
            raise
        distribution, extra = missing
        sys.exit(f'gprune: {distribution} is not installed; pip install "gprune[{extra}]"')
