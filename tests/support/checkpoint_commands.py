"""The commands on checkpoints, run within this process."""

from pathlib import Path
from typing import Any

import torch
from typer.testing import CliRunner

import gprune as gp
from gprune.cli.app import app
from tests.support.checkpoint_files import Tensors, contents

SCORES = {
    "magnitude": gp.scores.magnitude,
    "l2": lambda params: gp.scores.normalize_l2(gp.scores.magnitude(params)),
    "lamp": gp.scores.lamp,
}


def run(*arguments: Any) -> Any:
    return CliRunner().invoke(app, list(map(str, arguments)))


def prune(checkpoint: Path, out: Path, *options: Any, amount: Any = 0.5) -> Any:
    return run("prune", checkpoint, "-o", out, "--amount", amount, *options)


def example(seed: int = 0) -> Tensors:
    generator = torch.Generator().manual_seed(seed)
    return {
        f"layer{seed}.weight": torch.randn(30, 20, generator=generator).bfloat16(),
        f"layer{seed}.bias": torch.randn(20, generator=generator),
        f"layer{seed}.wide": torch.randn(8, 9, 2, generator=generator),
    }


def assert_refused(result: Any, code: int = 2) -> None:
    assert result.exit_code == code, result.output
    assert result.stdout == ""
    assert result.stderr.startswith("gprune: ")
    assert result.stderr.count("\n") == 1


def assert_command_is_refused(folder: Path, *arguments: Any) -> None:
    before = sorted(folder.rglob("*")), contents(folder)
    assert_refused(run(*arguments))
    assert (sorted(folder.rglob("*")), contents(folder)) == before


def assert_unreadable(folder: Path, path: Path) -> None:
    assert_command_is_refused(folder, "prune", path, "--amount", "0.5", "-o", folder / "out")
    assert_command_is_refused(folder, "report", path)
