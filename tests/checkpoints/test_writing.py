"""Copies: the library's masks and no other byte, written atomically."""

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

import gprune as gp
from gprune import checkpoints
from gprune.checkpoints import CheckpointError, writing
from tests.bench.measure import peak_anonymous
from tests.support.checkpoint_commands import SCORES, assert_refused, example, prune, run
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

METHODS = {"global": gp.global_unstructured, "layerwise": gp.layerwise}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("checkpoints")


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
    quantized = ["--exclude", "other.torch.float8*"] * any("float8" in name for name in tree)
    options = "--force", "--json", "--score", kind, "--method", method, *quantized
    done = prune(source, out, *options, amount=amount)
    assert done.exit_code == 0, done.output
    assert out.read_bytes() == zeroed(source.read_bytes(), masks)
    counts = {row["name"]: row["pruned"] for row in json.loads(done.stdout)["tensors"]}
    assert counts == {
        name: int(gp.num_pruned(mask)) for name, mask in masks.items() if mask is not None
    }


@pytest.mark.parametrize(
    "score", ["magnitude", *(pytest.param(x, marks=pytest.mark.long) for x in ("l2", "lamp"))]
)
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


@pytest.mark.parametrize("amount", [2, 5, 6])
def test_the_threshold_may_be_a_tie_in_a_later_weight(tmp_path: Path, amount: int) -> None:
    tree = {"a": torch.ones(2, 2), "b": torch.ones(2, 2)}
    source, out = save(tmp_path / "x.safetensors", tree), tmp_path / "y.safetensors"
    assert prune(source, out, amount=amount).exit_code == 0
    masks = gp.global_unstructured(tree, amount=amount)
    assert out.read_bytes() == zeroed(source.read_bytes(), masks)


def test_the_norm_is_that_of_all_blocks(tmp_path: Path) -> None:
    """`b` scores 1 / 1448, less than 1 / 1200 in `a`; one block alone has norm 1024."""
    tree = {"a": torch.tensor([[1.0, 1200.0]]), "b": torch.ones(2, 2**20)}
    source, out = save(tmp_path / "x.safetensors", tree), tmp_path / "y.safetensors"
    assert prune(source, out, "--score", "l2", amount=1).exit_code == 0
    masks = gp.keep_all(tree)
    masks["b"][0, 0] = False
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


def test_a_checkpoint_may_be_pruned_in_place(tmp_path: Path) -> None:
    file, model = save(tmp_path / "x.safetensors", example()), tmp_path / "model"
    save_folder(model, example())
    for path in (file, model):
        assert_refused(prune(path, path))
        assert prune(path, path, "--force").exit_code == 0
        found = json.loads(run("report", path, "--json").stdout)
        assert found["matrices"]["density"] == 0.5
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "x.safetensors"]


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
    root = str(Path(__file__).parents[2])
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


FILE_IS_LONG = pytest.mark.parametrize(
    "pair", [pytest.param("file", marks=pytest.mark.long), "folder"], indirect=True
)


@pytest.mark.slow
@FILE_IS_LONG
@pytest.mark.parametrize(
    "moment",
    [
        "renaming",
        *(pytest.param(moment, marks=pytest.mark.long) for moment in ("writing", "syncing")),
    ],
)
def test_a_kill_leaves_the_old_output(pair: tuple[Path, Path], moment: str) -> None:
    source, old = pair
    before = bytes_of(source), bytes_of(old)
    arguments = "prune", source, "-o", old, "--amount", 0.5, "--force"
    assert python(DYING, moment, *arguments).returncode == -signal.SIGKILL
    assert (bytes_of(source), bytes_of(old)) == before
    assert run(*arguments).exit_code == 0, "what is left is in nobody's way"
    assert bytes_of(old) != before[1]


@pytest.mark.long
@pytest.mark.skipif(
    sys.platform != "linux", reason="elsewhere no two folders are exchanged at once"
)
def test_at_no_moment_is_there_no_output(tmp_path: Path) -> None:
    source, old = save_folder(tmp_path / "x", example()), save_folder(tmp_path / "old", example(1))
    python(DYING, "renamed", "prune", source, "-o", old, "--amount", 0.5, "--force")
    assert prune(source, tmp_path / "new").exit_code == 0
    assert contents(old) == contents(tmp_path / "new")


@pytest.mark.long
@FILE_IS_LONG
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
    assert f"; {old} has not changed\n" in done.stderr
    assert contents(source.parent) == before


def test_an_error_after_the_rename_does_not_say_that_nothing_changed(
    pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    source, old = pair

    def fail_on_the_folder(path: Path, sync: Any = writing._sync) -> None:
        if path == old.parent:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        sync(path)

    before = bytes_of(old)
    monkeypatch.setattr(writing, "_sync", fail_on_the_folder)
    done = prune(source, old, "--force")
    assert_refused(done, code=1)
    assert "error" in done.stderr
    assert "has not changed" not in done.stderr
    assert bytes_of(old) != before


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


def test_what_cannot_be_copied_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    """Some devices have no end, and a pipe waits for a writer. This device is empty."""
    source = save_folder(tmp_path / "x", example())
    for name, target in [
        ("device", "/dev/null"),
        ("1_Pooling/device", "/dev/null"),
        ("gone", "nowhere"),
        ("itself", "itself"),
        ("pipe", None),
    ]:
        path = source / name
        if target is None:
            os.mkfifo(path)
        else:
            path.symlink_to(target)
        for options in ([], ["--dry-run"]):
            done = prune(source, tmp_path / "out", *options)
            assert_refused(done)
            assert f"{path} is " in done.stderr
            assert "not a file or a folder" in done.stderr
        path.unlink()
        assert sorted(path.name for path in tmp_path.iterdir()) == ["x"]


def test_an_output_that_is_a_link_to_itself_is_refused(tmp_path: Path) -> None:
    source, out = save(tmp_path / "x.safetensors", example()), tmp_path / "out"
    out.symlink_to("out")
    for options in ([], ["--force"]):
        assert_refused(prune(source, out, *options))
    assert out.is_symlink()


def test_links_that_lead_to_each_other_are_a_loop(tmp_path: Path) -> None:
    """Neither is in a folder that contains it, and each copy would contain the other's."""
    source = save_folder(tmp_path / "x", example())
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    (source / "a").symlink_to("../a")
    (tmp_path / "a" / "b").symlink_to("../b")
    (tmp_path / "b" / "a").symlink_to("../a")
    done = prune(source, tmp_path / "out")
    assert_refused(done)
    assert "contains it" in done.stderr


@pytest.mark.long
@pytest.mark.parametrize("score", ["magnitude", "l2"])
def test_memory_is_bounded(tmp_path: Path, score: str) -> None:
    """Of 640 MiB in matrices of 32, which would not fit into the bound."""
    shape = 4096, 4096
    source = save_large(tmp_path / "model", num_shards=4, per_shard=5, shape=shape)
    command = [sys.executable, "-m", "gprune", "prune", str(source), "--score", score]
    peak = peak_anonymous([*command, "-o", str(tmp_path / "out"), "--amount", "0.5"])
    assert peak <= 512 + shape[0] * shape[1] * 2 / 2**20
