"""The command line itself: its commands, and the remedy where an extra is missing."""

import os
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from gprune.cli import DISTRIBUTIONS, main
from gprune.cli.app import app

GROUP: Any = typer.main.get_command(app)


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


@pytest.mark.parametrize("arguments", [[], ["--help"]], ids=["without arguments", "--help"])
def test_help_leads_to_the_commands(arguments: list[str]) -> None:
    shown = CliRunner().invoke(app, arguments)
    assert shown.exit_code == (0 if arguments else 2)
    assert all(f"gprune {command}" in shown.output for command in GROUP.commands)


def test_python_m_gprune_is_the_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["gprune", "--help"])
    with pytest.raises(SystemExit) as done:
        runpy.run_module("gprune", run_name="__main__")
    assert done.value.code == 0
    assert "gprune prune model/" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["", *GROUP.commands])
def test_examples_in_the_help_can_be_typed(name: str) -> None:
    """Each line that begins with `gprune` parses, and every command shows one of its own."""
    command = GROUP.commands[name] if name else GROUP
    examples = [shlex.split(line) for line in re.findall(r"^gprune (.*)$", command.help, re.M)]
    for example, *arguments in examples:
        assert not name or example == name
        assert GROUP.commands[example].make_context(example, arguments).params
    assert examples


@pytest.mark.parametrize("name", GROUP.commands)
def test_help_fits_a_terminal_of_80_columns(name: str) -> None:
    help_text = GROUP.commands[name].help
    assert max(map(len, help_text.splitlines()[1:])) < 80  # the first line is wrapped
    shown = CliRunner().invoke(app, [name, "--help"], env={"COLUMNS": "80"})
    assert shown.exit_code == 0
    assert all(line in shown.output for line in help_text.splitlines()[1:])
