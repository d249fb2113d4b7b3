"""Checkpoints for the tests: how they are made, and what their pruned copies must be, by hand."""

import json
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from hypothesis import strategies as st
from safetensors.torch import save_file

INDEX = "model.safetensors.index.json"
FLOATING = [torch.bfloat16, torch.float16, torch.float32, torch.float64]
OTHERS = [torch.int8, torch.int64, torch.bool, torch.uint16, torch.float8_e4m3fn]
VALUES = [0.0, -0.0, 0.25, -0.25, 1.0, -1.0, 1.5, 3.0, -7.0, float("inf"), float("-inf")]

Tensors = dict[str, torch.Tensor]


@st.composite
def floating_tensors(draw: st.DrawFn, values: Iterable[float]) -> torch.Tensor:
    """Ties everywhere; empty and 1-D ones too."""
    shape = draw(st.lists(st.integers(0, 5), min_size=1, max_size=3))
    size = torch.Size(shape).numel()
    numbers = draw(st.lists(st.sampled_from(list(values)), min_size=size, max_size=size))
    dtype = draw(st.sampled_from(FLOATING))
    return torch.tensor(numbers, dtype=torch.float64).to(dtype).view(shape)


@st.composite
def tensors(draw: st.DrawFn, values: Iterable[float] = (*VALUES, float("nan"))) -> Tensors:
    """At least one matrix with entries, and others that are not weights, in any order."""
    found = {"weight": draw(floating_tensors(values).filter(lambda x: x.dim() > 1 and x.numel()))}
    names = st.text("abc.[*é ", min_size=1, max_size=4)
    found |= draw(st.dictionaries(names, floating_tensors(values), max_size=4))
    for dtype in draw(st.lists(st.sampled_from(OTHERS), max_size=2, unique=True)):
        found[f"other.{dtype}"] = torch.tensor([[1, 0], [0, 1]]).to(dtype)
    return {name: found[name] for name in draw(st.permutations(list(found)))}


def is_weight(path: str, tensor: Any) -> bool:
    return tensor.dtype in FLOATING and tensor.dim() >= 2 and tensor.numel() > 0


def header(data: bytes) -> tuple[dict[str, Any], int]:
    """The header of a safetensors file, and where its data begins."""
    (size,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8 : 8 + size]), 8 + size


def zeroed(data: bytes, masks: dict[str, torch.Tensor | None]) -> bytes:
    """The bytes of a safetensors file, entry by entry zero where the masks say so."""
    entries, start = header(data)
    copy = bytearray(data)
    for name, mask in masks.items():
        if mask is None or name not in entries:
            continue
        begin, end = entries[name]["data_offsets"]
        flat = mask.flatten().tolist()
        width = (end - begin) // len(flat)
        for i, kept in enumerate(flat):
            at = start + begin + i * width
            if not kept:
                copy[at : at + width] = bytes(width)
    return bytes(copy)


def save(path: Path, tensors: Tensors) -> Path:
    save_file(tensors, path, metadata={"format": "pt", "made": "by the tests"})
    return path


def save_folder(folder: Path, *shards: Tensors) -> Path:
    """A Hugging Face folder, with files beside the shards and a folder in it."""
    (folder / "1_Pooling").mkdir(parents=True)
    (folder / "1_Pooling" / "config.json").write_text('{"a": 1}')
    (folder / "config.json").write_text("{}")
    homes = {}
    for number, shard in enumerate(shards, 1):
        name = f"model-{number:05}-of-{len(shards):05}.safetensors"
        save(folder / name, shard)
        homes |= dict.fromkeys(shard, name)
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": homes}))
    return folder


def save_large(folder: Path, num_shards: int, per_shard: int, shape: tuple[int, int]) -> Path:
    """A Hugging Face folder of bfloat16 matrices of any size, all of the same 4 Mi normal draws."""
    folder.mkdir()
    tile = torch.randn(2**22, generator=torch.Generator().manual_seed(0)).bfloat16()
    drawn, size = tile.view(torch.int16).numpy().tobytes(), shape[0] * shape[1] * 2
    homes = {}
    for shard in range(num_shards):
        name = f"model-{shard + 1:05}-of-{num_shards:05}.safetensors"
        spans = {f"{shard}.{i}.weight": [i * size, (i + 1) * size] for i in range(per_shard)}
        homes |= dict.fromkeys(spans, name)
        entry = {"dtype": "BF16", "shape": shape}
        text = json.dumps({key: entry | {"data_offsets": span} for key, span in spans.items()})
        with (folder / name).open("wb") as file:
            file.write(raw(text))
            for _ in range(size * per_shard // len(drawn)):
                file.write(drawn)
    (folder / INDEX).write_text(json.dumps({"weight_map": homes}))
    return folder


def raw(text: str, data: bytes = b"") -> bytes:
    """A safetensors file of any header."""
    return struct.pack("<Q", len(text.encode())) + text.encode() + data


def contents(folder: Path) -> dict[str, bytes]:
    """Every file under a folder, whatever its name."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }
