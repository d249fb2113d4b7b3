"""Names from files are printed as text, and can do nothing to the terminal."""

import json
import os
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest
import torch
from typer.testing import CliRunner

from gprune.cli.app import app
from tests.support.checkpoint_commands import prune
from tests.support.checkpoint_files import save


def test_table(tmp_path: Path) -> None:
    tree = {"[bold]a\x1b[31m": torch.ones(2, 2)}
    source, out = save(tmp_path / "x.safetensors", tree), tmp_path / "y.safetensors"
    done = prune(source, out, amount=1)
    assert "[bold]a\N{REPLACEMENT CHARACTER}[31m" in done.stdout, "a name is text and nothing else"
    assert "\x1b" not in done.stdout
    assert "0.7500" in done.stdout
    assert "Written to" in done.stdout


def test_an_error_of_the_system_speaks_of_what_the_command_has() -> None:
    """`gprune report` has no output path."""

    def fail(path: Path) -> None:
        raise OSError("the disk is gone")

    with mock.patch("gprune.checkpoints.read_tensors", fail):
        done = CliRunner().invoke(app, ["report", "x.pt"])
    assert (done.exit_code, done.stderr) == (1, "gprune: the disk is gone\n")


def test_no_more_than_the_file_is_run_or_said(tmp_path: Path) -> None:
    """A name from a file cannot write on the terminal."""
    path = tmp_path / "x.pt"
    torch.save({"\x1b[31m\nred": 1}, path)
    done = CliRunner().invoke(app, ["report", str(path)])
    assert done.exit_code == 2
    assert "\x1b" not in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("options", [[], ["--json"]], ids=["table", "json"])
def test_a_name_that_the_terminal_cannot_encode(tmp_path: Path, options: list[str]) -> None:
    """The copy is written, so an error would come too late. JSON has the very name."""
    source = save(tmp_path / "x.safetensors", {"Gewichtsmaß.\u4e2d": torch.ones(2, 2)})
    arguments = ["prune", source, "-o", tmp_path / "y.safetensors", "--amount", 1, *options]
    done = CliRunner(charset="ascii").invoke(app, [str(argument) for argument in arguments])
    assert (done.exit_code, done.stderr) == (0, "")
    if options:
        assert json.loads(done.stdout)["tensors"][0]["name"] == "Gewichtsmaß.\u4e2d"
    else:
        assert "Gewichtsma\\xdf.\\u4e2d" in done.stdout


@pytest.mark.long
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device of Linux")
@pytest.mark.parametrize("options", [[], pytest.param(["--json"], marks=pytest.mark.long)])
def test_a_full_standard_output_is_one_line(tmp_path: Path, options: list[str]) -> None:
    source, out = save(tmp_path / "x.safetensors", {"w": torch.ones(2, 2)}), tmp_path / "out"
    command = [sys.executable, "-m", "gprune", "prune", source, "-o", out, "--amount", "1"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [*command, *options],
            env=environment,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=120,
            check=False,
        )
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("gprune: [Errno 28] No space left on device")
    assert done.stderr.endswith(f"; the result cannot be printed, but {out} is written\n")
    assert out.exists()
