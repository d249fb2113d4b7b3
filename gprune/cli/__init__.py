"""The command line: argument parsing and printing; the work is in the library.

`app.py` has the commands. Nothing here is imported by `import gprune`, and what the commands need
beyond torch (typer, rich, scikit-learn, matplotlib) comes with the extras `cli` and `demo`.
"""

import sys

DISTRIBUTIONS = {
    "typer": "typer",
    "rich": "rich",
    "sklearn": "scikit-learn",
    "matplotlib": "matplotlib",
}
"""What the extra `demo` installs, by the names that are imported."""


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
        sys.exit(f'gprune: {missing} is not installed; pip install "gprune[demo]"')
