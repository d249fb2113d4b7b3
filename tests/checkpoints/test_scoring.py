"""Scores of tensors on disk: what cannot be scored is named."""

from pathlib import Path

import torch

from tests.support.checkpoint_commands import assert_refused, prune
from tests.support.checkpoint_files import save


def test_what_cannot_be_scored_is_named(tmp_path: Path) -> None:
    source = save(tmp_path / "x.safetensors", {"bad": torch.tensor([[1.0, float("nan")]])})
    for score in ("lamp", "l2"):
        done = prune(source, tmp_path / "y.safetensors", "--score", score)
        assert_refused(done)
        assert "'bad'" in done.stderr
