"""Broken files and folders: exit code 2, one line, and nothing written."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gprune.checkpoints import CheckpointError, read
from tests.support.broken_checkpoints import FILES, GOOD, INDICES, SHARDS
from tests.support.checkpoint_commands import assert_refused, assert_unreadable, prune, run
from tests.support.checkpoint_files import INDEX, contents, save, save_folder

TREE = {"a": torch.ones(2, 2), "b": torch.zeros(3, 1)}


def test_the_good_ones_are_read(tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").write_bytes(GOOD)
    assert list(read(tmp_path / "x.safetensors").tensors) == ["a"]
    folder = save_folder(tmp_path / "model", {"a": torch.ones(2)}, {"b": torch.ones(2)})
    assert sorted(read(folder).tensors) == ["a", "b"]
    assert sorted(path.name for path in folder.glob("*.safetensors")) == list(SHARDS)


@pytest.mark.parametrize("name", FILES)
def test_file(tmp_path: Path, name: str) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(FILES[name])
    assert_unreadable(tmp_path, path)


@pytest.mark.parametrize("name", INDICES)
def test_index(tmp_path: Path, name: str) -> None:
    save(tmp_path / "x.safetensors", {"a": torch.ones(2, 2)})
    folder = save_folder(tmp_path / "model", {"a": torch.ones(2, 2)}, {"b": torch.ones(2, 2)})
    (folder / INDEX).write_bytes(INDICES[name])
    assert_unreadable(tmp_path, folder)


def test_an_index_of_nothing(tmp_path: Path) -> None:
    """The error is about the index, and not about the tensors that it leaves out."""
    folder = save_folder(tmp_path / "model", {"a": torch.ones(2, 2)}, {"b": torch.ones(2, 2)})
    (folder / INDEX).write_bytes(INDICES["nothing"])
    with pytest.raises(CheckpointError, match="names no file"):
        read(folder)


def test_two_models_in_a_folder(tmp_path: Path) -> None:
    """Which one is loaded is for others to say, and the pruned one might not be."""
    folder = save_folder(tmp_path / "model", {"a": torch.ones(2, 2)}, {"b": torch.ones(2, 2)})
    save(folder / "model.safetensors", TREE)
    assert_unreadable(tmp_path, folder)


def test_missing(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for name in ("none.safetensors", "none.pt", "none", "empty"):
        assert_unreadable(tmp_path, tmp_path / name)


WEIGHT_FILES = "model", "diffusion_pytorch_model", "adapter_model"


@pytest.mark.parametrize("stem", WEIGHT_FILES)
@pytest.mark.parametrize("num_shards", [1, 2])
def test_folders_of_other_libraries(tmp_path: Path, stem: str, num_shards: int) -> None:
    """Of transformers, of a component of diffusers, and of PEFT."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    names = [f"{stem}-{i + 1:05}-of-00002.safetensors" for i in range(2)]
    names = names if num_shards == 2 else [f"{stem}.safetensors"]
    for i, name in enumerate(names):
        save(folder / name, {f"{i}.weight": torch.ones(2, 2)})
    if num_shards == 2:
        where = {f"{i}.weight": name for i, name in enumerate(names)}
        index = folder / f"{stem}.safetensors.index.json"
        index.write_text(json.dumps({"weight_map": where}))
    assert len(read(folder).tensors) == num_shards
    assert prune(folder, tmp_path / "out", amount=1).exit_code == 0
    assert contents(tmp_path / "out").keys() == contents(folder).keys()
    assert prune(folder, tmp_path / "out", "--force", amount=1).exit_code == 0


def test_a_folder_that_cannot_be_read_says_what_was_looked_for(tmp_path: Path) -> None:
    for name, files, words in [
        ("pipeline", ["model_index.json", "unet/diffusion_pytorch_model.safetensors"], ["unet"]),
        ("loose", ["lora.safetensors"], ["lora.safetensors"]),
        ("saved", ["pytorch_model.bin"], ["pytorch_model.bin", "save_file()"]),
        ("bare", ["config.json"], []),
        ("gguf", ["config.json", "x.gguf"], ["x.gguf is a GGUF file; prune the checkpoint"]),
        ("both", ["model.safetensors", "adapter_model.safetensors"], ["give the path"]),
    ]:
        for file in files:
            (tmp_path / name / file).parent.mkdir(parents=True, exist_ok=True)
            save(tmp_path / name / file, TREE)
        assert_unreadable(tmp_path, tmp_path / name)
        stderr = run("report", tmp_path / name).stderr
        assert all(word in stderr for word in ["model.safetensors", *words]), stderr
        if name != "both":
            assert "diffusion_pytorch_model.safetensors" in stderr
            assert "adapter_model.safetensors" in stderr


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"GGUF\x03\0\0\0" + bytes(20), "GGUF"),
        (b"\x89HDF\r\n\x1a\n" + bytes(20), "HDF5"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "git lfs pull"),
        (None, "a file of torch.save; convert it with safetensors.torch.save_file"),
    ],
)
def test_a_file_of_another_format_says_which(tmp_path: Path, data: Any, words: str) -> None:
    path = tmp_path / "x.pt"
    torch.save(TREE, path)
    if data is not None:
        path.write_bytes(data)
    before = contents(tmp_path)
    done = prune(path, tmp_path / "out")
    assert_refused(done)
    assert words in done.stderr
    assert contents(tmp_path) == before


def test_an_index_that_is_a_device_is_not_read(tmp_path: Path) -> None:
    """Some devices have no end; this one is empty, so that the test ends if it is read."""
    folder = save_folder(tmp_path / "model", TREE)
    (folder / INDEX).unlink()
    (folder / INDEX).symlink_to("/dev/null")
    done = run("report", folder)
    assert_refused(done)
    assert "is not a file" in done.stderr


@given(st.data())
def test_damage_is_noticed_or_harmless(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """Whatever is done to a file, it is read as tensors within it, or refused."""
    folder = tmp_path_factory.mktemp("damage")
    path = save(folder / "x.safetensors", TREE)
    whole = bytearray(path.read_bytes())
    size = int.from_bytes(whole[:8], "little")
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, 8 + size - 1))
        whole[at : at + data.draw(st.integers(0, 2))] = data.draw(st.binary(max_size=2))
    length = data.draw(st.sampled_from([len(whole), len(whole) // 2, len(whole) - 1]))
    damaged = bytes(whole[:length])
    path.write_bytes(damaged)
    try:
        found = read(path)
    except CheckpointError:
        pass
    else:
        spans = sorted((span.start, span.stop) for span in found.shards[0].spans.values())
        assert all(8 <= start <= stop <= len(damaged) for start, stop in spans)
        assert sum(tensor.nbytes for tensor in found.tensors.values()) == sum(
            stop - start for start, stop in spans
        )
    finally:
        shutil.rmtree(folder)
