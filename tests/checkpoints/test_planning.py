"""Plans: a dry run that writes nothing, and what is counted."""

import json
from pathlib import Path

import pytest
import torch

from tests.support.checkpoint_commands import SCORES, assert_refused, example, prune, run
from tests.support.checkpoint_files import contents, save


@pytest.mark.parametrize("score", SCORES)
def test_a_dry_run_counts_and_writes_nothing(tmp_path: Path, score: str) -> None:
    source = save(tmp_path / "x.safetensors", example())
    before = contents(tmp_path)
    done = prune(source, tmp_path / "y.safetensors", "--dry-run", "--json", "--score", score)
    found = json.loads(done.stdout)
    assert contents(tmp_path) == before
    assert not found["written"]
    assert found["total"]["pruned"] == 372
    again = prune(source, tmp_path / "y.safetensors", "--json", "--score", score)
    assert json.loads(again.stdout) == found | {"written": True}
    assert_refused(prune(source, tmp_path / "y.safetensors", "--dry-run"))


def test_the_density_is_that_of_the_copy(tmp_path: Path) -> None:
    """Of a file that is sparse already, and not that of the masks of this call."""
    weight = torch.arange(10.0).reshape(2, 5)
    weight[0] = torch.tensor([0.0, -0.0, 0.0, 0.0, 0.0])
    weight[1, :2] = 0
    source, out = save(tmp_path / "x.safetensors", {"w": weight}), tmp_path / "y.safetensors"
    for options in (["--dry-run"], []):
        found = json.loads(prune(source, out, "--json", *options, amount=0.2).stdout)
        want = {"entries": 10, "pruned": 2, "zeros": 7, "density": pytest.approx(0.3)}
        assert found["total"] == want
        assert found["tensors"] == [{"name": "w", "shape": [2, 5], **want}]
    reported = json.loads(run("report", out, "--json").stdout)["tensors"][0]
    assert reported == {
        "name": "w",
        "shape": [2, 5],
        "entries": 10,
        "zeros": 7,
        "density": want["density"],
    }
