"""Checkpoints: the copy is the library's masks and no other byte; it is whole, or absent."""

import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.utils import prune as torch_prune
from typer.testing import CliRunner

import gprune as gp
from gprune import checkpoints
from gprune.checkpoints import CheckpointError, writing
from gprune.cli.app import app
from tests.bench.measure import peak_anonymous
from tests.support.checkpoint_files import (
    VALUES,
    Tensors,
    contents,
    is_weight,
    save,
    save_folder,
    save_large,
    tensors,
    zeroed,
)

SCORES = {
    "magnitude": gp.scores.magnitude,
    "l2": lambda params: gp.scores.normalize_l2(gp.scores.magnitude(params)),
    "lamp": gp.scores.lamp,
}
METHODS = {"global": gp.global_unstructured, "layerwise": gp.layerwise}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("checkpoints")


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


# The copy.


@given(st.data(), tensors(), st.sampled_from(list(METHODS)), st.floats(0, 1))
def test_the_copy_is_the_masks_and_no_other_byte(
    folder: Path, data: st.DataObject, tree: Tensors, method: str, amount: float
) -> None:
    kind = data.draw(st.sampled_from(["magnitude", "l2", "lamp"]))
    if kind != "magnitude":  # these want finite numbers
        tree = data.draw(tensors(VALUES[:-2]))
    source, out = save(folder / "x.safetensors", tree), folder / "y.safetensors"
    weights = gp.prunable(tree, is_weight)
    masks = METHODS[method](weights, SCORES[kind](weights), amount=amount)
    done = prune(
        source, out, "--force", "--json", "--score", kind, "--method", method, amount=amount
    )
    assert done.exit_code == 0, done.output
    assert out.read_bytes() == zeroed(source.read_bytes(), masks)
    counts = {row["name"]: row["pruned"] for row in json.loads(done.stdout)["tensors"]}
    assert counts == {
        name: int(gp.num_pruned(mask)) for name, mask in masks.items() if mask is not None
    }


@pytest.mark.parametrize("score", SCORES)
def test_large_tensors_are_copied_in_blocks(
    tmp_path: Path, score: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writing, "COPY_BYTES", 1000)
    generator = torch.Generator().manual_seed(1)
    tree = {
        "b": torch.randn(1100, 1000, generator=generator).bfloat16(),
        "a": torch.randn(7, 3, generator=generator),
        "c": torch.randn(1 << 20, 2, generator=generator).half(),
        "long bias": torch.randn(12_345, generator=generator),
    }
    source, out = save(tmp_path / "x.safetensors", tree), tmp_path / "y.safetensors"
    assert prune(source, out, "--score", score, amount=1_000_001).exit_code == 0
    weights = gp.prunable(tree, is_weight)
    masks = gp.global_unstructured(weights, SCORES[score](weights), amount=1_000_001)
    assert out.read_bytes() == zeroed(source.read_bytes(), masks)


def test_a_folder_is_copied_with_all_that_is_in_it(tmp_path: Path) -> None:
    trees = example(0), example(1)
    source = save_folder(tmp_path / "model", *trees)
    assert prune(source, tmp_path / "out").exit_code == 0
    masks = gp.global_unstructured(gp.prunable(trees[0] | trees[1]), amount=0.5)
    was, is_now = contents(source), contents(tmp_path / "out")
    assert is_now == {
        name: zeroed(data, masks) if name.endswith(".safetensors") else data
        for name, data in was.items()
    }
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "out"]


def test_a_folder_without_an_index_has_one_file(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    save(tmp_path / "model" / "model.safetensors", example())
    assert prune(tmp_path / "model", tmp_path / "out").exit_code == 0
    assert (tmp_path / "out" / "model.safetensors").exists()


def test_the_mode_of_the_file_is_kept(tmp_path: Path) -> None:
    source = save(tmp_path / "x.safetensors", example())
    source.chmod(0o640)
    assert prune(source, tmp_path / "y.safetensors").exit_code == 0
    assert (tmp_path / "y.safetensors").stat().st_mode & 0o777 == 0o640


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


def test_a_checkpoint_may_be_pruned_in_place(tmp_path: Path) -> None:
    file, model = save(tmp_path / "x.safetensors", example()), tmp_path / "model"
    save_folder(model, example())
    for path in (file, model):
        assert_refused(prune(path, path))
        assert prune(path, path, "--force").exit_code == 0
        found = json.loads(run("report", path, "--json").stdout)
        assert found["matrices"]["density"] == 0.5
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "x.safetensors"]


# What is printed.


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
        "total": {"entries": 744, "pruned": 14, "density": 1 - 14 / 744},
        "tensors": [
            {
                "name": "layer0.weight",
                "shape": [30, 20],
                "entries": 600,
                "pruned": 7,
                "density": 1 - 7 / 600,
            },
            {
                "name": "layer0.wide",
                "shape": [8, 9, 2],
                "entries": 144,
                "pruned": 7,
                "density": 1 - 7 / 144,
            },
        ],
    }
    assert done.stderr == ""


def test_table(tmp_path: Path) -> None:
    tree = {"[bold]a\x1b[31m": torch.ones(2, 2)}
    source, out = save(tmp_path / "x.safetensors", tree), tmp_path / "y.safetensors"
    done = prune(source, out, amount=1)
    assert "[bold]a\N{REPLACEMENT CHARACTER}[31m" in done.stdout, "a name is text and nothing else"
    assert "\x1b" not in done.stdout
    assert "0.7500" in done.stdout
    assert "Written to" in done.stdout


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


def test_report(tmp_path: Path) -> None:
    tree = {
        "weight": torch.tensor([[0.0, -0.0], [1.0, float("nan")]]),
        "narrow": torch.tensor([[0, 2, 0]]).to(torch.float8_e5m2),
        "bias": torch.zeros(3),
        "empty": torch.empty(0, 2),
        "scalar": torch.tensor(True),
    }
    saved = save(tmp_path / "x.safetensors", tree), tmp_path / "x.pt"
    torch.save(tree, saved[1])
    for path in saved:
        found = json.loads(run("report", path, "--json").stdout)
        zeros = {row["name"]: row["zeros"] for row in found["tensors"]}
        assert zeros == {"weight": 2, "narrow": 2, "bias": 3, "empty": 0, "scalar": 0}
        assert found["matrices"] == {"entries": 4, "zeros": 2, "density": 0.5}
        assert found["all"] == {"entries": 11, "zeros": 7, "density": 1 - 7 / 11}
        assert "0.5000" in run("report", path).stdout


def test_report_of_a_pruned_module(tmp_path: Path) -> None:
    module = torch.nn.Linear(10, 10)
    torch_prune.l1_unstructured(module, "weight", amount=30)
    torch.save(module.state_dict(), tmp_path / "x.pt")
    source = save(tmp_path / "x.safetensors", module.state_dict())
    for path in (source, tmp_path / "x.pt"):
        found = json.loads(run("report", path, "--json").stdout)
        zeros = {row["name"]: row["zeros"] for row in found["tensors"]}
        assert zeros == {"weight": 30, "bias": 0}
    refused = prune(source, tmp_path / "y.safetensors")
    assert_refused(refused)
    assert "make_permanent_()" in refused.stderr


def test_report_reads_tensors_of_any_layout(tmp_path: Path) -> None:
    weight = torch.arange(12.0).view(3, 4).t()
    torch.save({"weight": weight, "expanded": torch.zeros(1).expand(5, 2)}, tmp_path / "x.pth")
    found = json.loads(run("report", tmp_path / "x.pth", "--json").stdout)
    assert {row["name"]: row["zeros"] for row in found["tensors"]} == {"weight": 1, "expanded": 10}


# Bad input.


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


def test_what_cannot_be_scored_is_named(tmp_path: Path) -> None:
    source = save(tmp_path / "x.safetensors", {"bad": torch.tensor([[1.0, float("nan")]])})
    for score in ("lamp", "l2"):
        done = prune(source, tmp_path / "y.safetensors", "--score", score)
        assert_refused(done)
        assert "'bad'" in done.stderr


def test_only_a_checkpoint_of_the_same_kind_is_replaced(tmp_path: Path) -> None:
    file, model = (
        save(tmp_path / "x.safetensors", example()),
        save_folder(tmp_path / "m", example()),
    )
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "letter").write_text("dear")
    before = contents(tmp_path)
    for source, out in [
        (file, model),
        (model, file),
        (model, tmp_path / "home"),
        (model, tmp_path),
        (model, model / "inside"),
        (model, model / "1_Pooling" / "inside"),
    ]:
        assert_refused(prune(source, out, "--force"))
    assert contents(tmp_path) == before


# Whole or not at all.

DYING = """
import os, pathlib, signal, sys
from gprune.checkpoints import writing
from gprune.cli.app import app

def die(*arguments, **named):
    os.kill(os.getpid(), signal.SIGKILL)

def die_after_the_first(path, target, rename=pathlib.Path.rename):
    rename(path, target)
    die()

def die_after_a_block(file, blocks):
    file.write(b"x" * 100)
    file.flush()
    die()

moment = sys.argv.pop(1)
if moment == "writing":
    writing.write_blocks = die_after_a_block
elif moment == "syncing":
    writing._sync = die
elif moment == "renaming":
    pathlib.Path.rename = pathlib.Path.replace = writing._exchange = die
else:
    pathlib.Path.rename = die_after_the_first
app()
"""
LIMITED = """
import resource
from gprune.cli.app import app
most = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, most))
try:
    app()
finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
"""


def python(code: str, *arguments: Any) -> subprocess.CompletedProcess[str]:
    root = str(Path(__file__).parents[1])
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": root},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.fixture(params=["file", "folder"])
def pair(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, Path]:
    """A checkpoint, and an older output."""
    if request.param == "file":
        save(tmp_path / "old.safetensors", example(1))
        return save(tmp_path / "x.safetensors", example()), tmp_path / "old.safetensors"
    save_folder(tmp_path / "old", example(1))
    return save_folder(tmp_path / "x", example()), tmp_path / "old"


def bytes_of(path: Path) -> Any:
    return contents(path) if path.is_dir() else path.read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["writing", "syncing", "renaming"])
def test_a_kill_leaves_the_old_output(pair: tuple[Path, Path], moment: str) -> None:
    source, old = pair
    before = bytes_of(source), bytes_of(old)
    arguments = "prune", source, "-o", old, "--amount", 0.5, "--force"
    assert python(DYING, moment, *arguments).returncode == -signal.SIGKILL
    assert (bytes_of(source), bytes_of(old)) == before
    assert run(*arguments).exit_code == 0, "what is left is in nobody's way"
    assert bytes_of(old) != before[1]


@pytest.mark.skipif(
    sys.platform != "linux", reason="elsewhere no two folders are exchanged at once"
)
def test_at_no_moment_is_there_no_output(tmp_path: Path) -> None:
    source, old = save_folder(tmp_path / "x", example()), save_folder(tmp_path / "old", example(1))
    python(DYING, "renamed", "prune", source, "-o", old, "--amount", 0.5, "--force")
    assert prune(source, tmp_path / "new").exit_code == 0
    assert contents(old) == contents(tmp_path / "new")


@pytest.mark.slow
def test_a_limit_on_the_size_of_files_leaves_the_old_output(pair: tuple[Path, Path]) -> None:
    source, old = pair
    before = contents(source.parent)
    done = python(LIMITED, "prune", source, "-o", old, "--amount", 0.5, "--force")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1), done.stderr
    assert "File too large" in done.stderr
    assert contents(source.parent) == before


@pytest.mark.parametrize("where", ["write_blocks", "_copy", "_sync"])
def test_a_full_disk_leaves_the_old_output(
    pair: tuple[Path, Path], where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    source, old = pair
    before = contents(source.parent)
    monkeypatch.setattr(writing, where, full)
    done = prune(source, old, "--force")
    assert_refused(done, code=1)
    assert "No space left" in done.stderr
    assert contents(source.parent) == before


def test_a_rename_that_fails_puts_the_old_folder_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: Any) -> None:
        raise KeyboardInterrupt

    source, old = save_folder(tmp_path / "x", example()), save_folder(tmp_path / "old", example(1))
    before = contents(tmp_path)
    monkeypatch.setattr(writing, "_exchange", lambda one, other: False)
    monkeypatch.setattr(Path, "replace", fail)
    assert prune(source, old, "--force").exit_code != 0
    assert contents(tmp_path) == before


def test_where_folders_cannot_be_exchanged_they_are_renamed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, out = save_folder(tmp_path / "x", example()), tmp_path / "out"
    assert prune(source, out).exit_code == 0
    half = contents(out)
    monkeypatch.setattr(writing, "_exchange", lambda one, other: False)
    assert prune(source, out, "--force", amount=0.25).exit_code == 0
    assert contents(out) != half
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "x"]


def test_what_comes_into_being_meanwhile_is_not_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, out = save(tmp_path / "x.safetensors", example()), tmp_path / "y.safetensors"
    monkeypatch.setattr(writing, "_sync", lambda path: out.write_text("dear"))
    assert_refused(prune(source, out))
    assert out.read_text() == "dear"


def test_a_file_that_shrinks_meanwhile_is_an_error(tmp_path: Path) -> None:
    source = checkpoints.read(save(tmp_path / "x.safetensors", example()))
    weights = checkpoints.choose(source.tensors)
    plan = checkpoints.plan(weights, amount=0.5, folder=tmp_path)
    [shard] = source.shards
    longer = source._replace(shards=[shard._replace(num_bytes=shard.num_bytes + 1)])
    with pytest.raises(CheckpointError, match="became shorter"):
        checkpoints.write(longer, plan, tmp_path / "y.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["x.safetensors"]


def test_links_in_a_folder(tmp_path: Path) -> None:
    """The cache of Hugging Face is made of links; one that leads back would be copied for ever."""
    source, blobs = save_folder(tmp_path / "x", example()), tmp_path / "blobs"
    [shard] = source.glob("*.safetensors")
    shard.rename(blobs)
    shard.symlink_to(blobs)
    assert prune(source, tmp_path / "out").exit_code == 0
    assert not (tmp_path / "out" / shard.name).is_symlink()
    (source / "1_Pooling" / "up").symlink_to("..")
    assert_refused(prune(source, tmp_path / "again"))
    (source / "1_Pooling" / "up").unlink()
    (source / "up").symlink_to("..")
    assert_refused(prune(source, tmp_path / "again"))


# Memory.


@pytest.mark.slow
@pytest.mark.parametrize("score", ["magnitude", "l2"])
def test_memory_is_bounded(tmp_path: Path, score: str) -> None:
    """Of 640 MiB in matrices of 32, which would not fit into the bound."""
    shape = 4096, 4096
    source = save_large(tmp_path / "model", num_shards=4, per_shard=5, shape=shape)
    command = [sys.executable, "-m", "gprune.cli", "prune", str(source), "--score", score]
    peak = peak_anonymous([*command, "-o", str(tmp_path / "out"), "--amount", "0.5"])
    assert peak <= 512 + shape[0] * shape[1] * 2 / 2**20
