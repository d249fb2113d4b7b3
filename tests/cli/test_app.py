"""The command line itself: its commands, and the remedy where an extra is missing."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from gprune.cli import DISTRIBUTIONS, main
from gprune.cli.app import app


@pytest.mark.slow
@pytest.mark.parametrize(
    "module",
    [
        pytest.param(
            name, marks=pytest.mark.long if name in ("rich", "sklearn", "matplotlib") else []
        )
        for name in DISTRIBUTIONS
    ],
)
def test_missing_extra_names_the_remedy(module: str, tmp_path: Path) -> None:
    name, extra = DISTRIBUTIONS[module]
    calibrated = ["prune", "x", "-o", "y", "--amount", "0.5", "--score", "wanda"]
    command = {
        "demo": ["demo"],
        "cli": ["report", "x.safetensors"],
        "transformers": [*calibrated, "--calibrate", "text"],
    }[extra]
    code = (
        f"import sys; sys.modules[{module!r}] = None; sys.argv = {['gprune', *command]}; "
        "from gprune.cli import main; main()"
    )
    root = str(Path(__file__).parents[2])
    path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr == f'gprune: {name} is not installed; pip install "gprune[{extra}]"\n'
    assert not any(tmp_path.iterdir())


def test_missing_module_of_our_own_is_no_missing_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gprune.cli.app", None)
    with pytest.raises(ModuleNotFoundError, match=r"gprune\.cli\.app"):
        main()


def test_help_lists_the_commands() -> None:
    shown = CliRunner().invoke(app, ["--help"])
    assert shown.exit_code == 0
    assert all(command in shown.output for command in ("demo", "prune", "report"))
