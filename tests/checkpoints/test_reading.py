"""Broken files and folders: exit code 2, one line, and nothing written."""

import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gprune.checkpoints import CheckpointError, read
from tests.support.broken_checkpoints import FILES, GOOD, INDICES, SHARDS
from tests.support.checkpoint_commands import assert_unreadable
from tests.support.checkpoint_files import INDEX, save, save_folder

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
