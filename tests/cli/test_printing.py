"""Names from files are printed as text, and can do nothing to the terminal."""

from pathlib import Path
from unittest import mock

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
