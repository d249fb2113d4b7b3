"""Plans: which tensors are pruned, and a dry run that writes nothing."""

import json
from pathlib import Path

import pytest

from tests.support.checkpoint_commands import SCORES, assert_refused, example, prune
from tests.support.checkpoint_files import contents, save


@pytest.mark.parametrize(
    ("options", "pruned"),
    [
        ((), {"layer0.weight", "layer0.wide", "layer1.weight", "layer1.wide"}),
        (("--include", "layer0.*"), {"layer0.weight", "layer0.wide"}),
        (
            ("--include", "*1.wide", "--include", "layer0.w*"),
            {"layer0.weight", "layer0.wide", "layer1.wide"},
        ),
        (("--exclude", "*.wide", "--exclude", "layer1.b*"), {"layer0.weight", "layer1.weight"}),
        (("--include", "layer1.*", "--exclude", "*.weight"), {"layer1.wide"}),
    ],
)
def test_globs_choose(tmp_path: Path, options: tuple[str, ...], pruned: set[str]) -> None:
    source = save(tmp_path / "x.safetensors", example(0) | example(1))
    done = prune(source, tmp_path / "y.safetensors", "--json", *options)
    assert {row["name"] for row in json.loads(done.stdout)["tensors"]} == pruned


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
