"""State dicts that are broken, or made to do harm: exit code 2, one line, nothing written."""

import os
from pathlib import Path

import pytest
from typer.testing import CliRunner

from gprune.cli.app import app
from tests.support.broken_checkpoints import STATES
from tests.support.checkpoint_commands import assert_command_is_refused


@pytest.mark.parametrize("name", STATES)
def test_state(tmp_path: Path, name: str) -> None:
    path = tmp_path / "x.pt"
    STATES[name](path)
    assert_command_is_refused(tmp_path, "report", path)
    assert not (tmp_path / "harmed").exists()


def test_what_is_no_file_is_not_waited_for(tmp_path: Path) -> None:
    for name in ("x.safetensors", "x.pt"):
        os.mkfifo(tmp_path / name)
        done = CliRunner().invoke(app, ["report", str(tmp_path / name)])
        assert (done.exit_code, done.stderr) == (2, f"gprune: {tmp_path / name} is not a file\n")
