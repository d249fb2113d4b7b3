"""`gprune prune` and `gprune report`: what they print, and bad options."""

import json
from pathlib import Path

import pytest

from tests.support.checkpoint_commands import assert_refused, example, prune
from tests.support.checkpoint_files import contents, save


def test_json(tmp_path: Path) -> None:
    source, out = save(tmp_path / "x.safetensors", example()), tmp_path / "y.safetensors"
    done = prune(source, out, "--json", "--method", "layerwise", amount="7")
    assert json.loads(done.stdout) == {
        "checkpoint": str(source),
        "out": str(out),
        "written": True,
        "amount": 7,
        "score": "magnitude",
        "method": "layerwise",
        "total": {"entries": 744, "pruned": 14, "zeros": 14, "density": 1 - 14 / 744},
        "tensors": [
            {
                "name": "layer0.weight",
                "shape": [30, 20],
                "entries": 600,
                "pruned": 7,
                "zeros": 7,
                "density": 1 - 7 / 600,
            },
            {
                "name": "layer0.wide",
                "shape": [8, 9, 2],
                "entries": 144,
                "pruned": 7,
                "zeros": 7,
                "density": 1 - 7 / 144,
            },
        ],
        "left_out": {"layer0.bias": "of fewer than two dimensions"},
    }
    assert done.stderr == ""


@pytest.mark.parametrize(
    "options",
    [
        ("--amount", "80.0"),
        ("--amount", "-1"),
        ("--amount", "nan"),
        ("--amount", "half"),
        ("--amount", "745"),
        ("--amount", "745", "--method", "layerwise"),
        ("--include", "nothing*"),
        ("--exclude", "nothing*"),
        ("--include", "*.bias"),
        ("--exclude", "*"),
        ("--score", "mean"),
        ("--method", "local"),
        ("-o", "nowhere/y.safetensors"),
    ],
    ids=" ".join,
)
def test_bad_options_exit_with_2(tmp_path: Path, options: tuple[str, ...]) -> None:
    source, before = save(tmp_path / "x.safetensors", example()), contents(tmp_path)
    done = prune(source, tmp_path / "y.safetensors", *options)
    assert done.exit_code == 2
    assert contents(tmp_path) == before
    if options[0] not in ("--score", "--method"):  # those are typer's own
        assert_refused(done)
