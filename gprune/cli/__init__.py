"""The command line: argument parsing and printing; the work is in the library.

`app.py` has the commands. Nothing here is imported by `import gprune`, and what the commands need
beyond torch comes with the extras `cli` (typer, rich, safetensors) and `demo` (scikit-learn,
matplotlib and the former).
"""

import sys

DISTRIBUTIONS = {
    "typer": ("typer", "demo"),
    "rich": ("rich", "demo"),
    "sklearn": ("scikit-learn", "demo"),
    "matplotlib": ("matplotlib", "demo"),
    "safetensors": ("safetensors", "cli"),
}
"""What the extras install and which of them to name, by the names that are imported."""


def main() -> None:
    """Run the command line; where a package of the extras is missing, say how to get it.

    Raises:
        ModuleNotFoundError: if what is missing is not in the extras.
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
