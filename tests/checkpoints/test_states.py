"""State dicts of any file of torch; broken or harmful ones: exit code 2, one line, no change."""

import json
import os
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from gprune.cli.app import app
from tests.support.broken_checkpoints import STATES
from tests.support.checkpoint_commands import assert_command_is_refused, assert_refused, run


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


STATE = {"fc.weight": torch.tensor([[0.0, 1.0]]), "fc.bias": torch.zeros(2)}
OPTIMIZER = torch.optim.SGD([torch.ones(2, requires_grad=True)], lr=0.1).state_dict()
LOGS = {"epoch": 3, "best_acc1": torch.tensor(76.1), "optimizer": OPTIMIZER, "arch": "resnet"}


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("suffix", [".pt", ".pth", ".bin", ".ckpt", ".pth.tar", ""])
@pytest.mark.parametrize(
    ("saved", "prefix"),
    [
        (STATE, ""),
        ({"state_dict": STATE, **LOGS}, ""),
        ({"model": STATE, "optimizer": OPTIMIZER}, ""),
        ({"model": {"encoder": STATE}, **LOGS}, "encoder."),
        ({"model": STATE}, "model."),
    ],
    ids=["plain", "Lightning", "with an optimizer", "nested", "in a dict"],
)
def test_a_state_dict_is_found(
    tmp_path: Path, saved: Any, prefix: str, suffix: str, legacy: bool
) -> None:
    path = tmp_path / f"x{suffix}"
    torch.save(saved, path, _use_new_zipfile_serialization=not legacy)
    found = json.loads(run("report", path, "--json").stdout)
    zeros = {row["name"]: (row["entries"], row["zeros"]) for row in found["tensors"]}
    assert zeros == {f"{prefix}fc.bias": (2, 2), f"{prefix}fc.weight": (2, 1)}


def test_several_state_dicts_are_named(tmp_path: Path) -> None:
    torch.save({"model": STATE, "ema": STATE, "epoch": 1}, tmp_path / "x.ckpt")
    done = run("report", tmp_path / "x.ckpt")
    assert_refused(done)
    assert "'model', 'ema'" in done.stderr


def test_a_scripted_module_says_how_to_convert_it(tmp_path: Path) -> None:
    with warnings.catch_warnings():  # that torch.jit is deprecated
        warnings.simplefilter("ignore")
        torch.jit.script(torch.nn.Linear(2, 2)).save(tmp_path / "x.pt")
    done = run("report", tmp_path / "x.pt")
    assert_refused(done)
    assert "torch.jit.load(path).state_dict()" in done.stderr
