"""Reading: a safetensors file, or a Hugging Face folder of them, as mapped tensors with places.

A file is mapped read-only and shared. `safetensors.safe_open` for torch maps it privately, which
Linux refuses for a file larger than memory; so here it only makes the format's own checks (a header
that parses, tensors that fill the file without gap or overlap), after which the header is trusted.
"""

from __future__ import annotations

import json
import mmap
import os
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "C64": torch.complex64,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
"""By the names of the format. A tensor of any other dtype is taken as its bytes."""


class CheckpointError(ValueError):
    """What is wrong with a checkpoint, or with where its copy shall go, in one line."""


class Shard(NamedTuple):
    """A safetensors file.

    Attributes:
        path: where it is.
        spans: which of its bytes each tensor is, in the order of the file.
        num_bytes: its size.
    """

    path: Path
    spans: dict[str, range]
    num_bytes: int


class Checkpoint(NamedTuple):
    """A safetensors file or a Hugging Face folder.

    Attributes:
        path: the file or the folder.
        shards: its safetensors files.
        tensors: all of their tensors, mapped; not to be written to.
    """

    path: Path
    shards: list[Shard]
    tensors: dict[str, Tensor]

    @property
    def num_bytes(self) -> int:
        """The size of the safetensors files together."""
        return sum(shard.num_bytes for shard in self.shards)


def read(path: Path) -> Checkpoint:
    """Map a safetensors file, or those that the index of a Hugging Face folder names.

    Args:
        path: the file or the folder; a folder without an index has the one file
            `model.safetensors`.

    Returns:
        The checkpoint.

    Raises:
        CheckpointError: if a file is missing, truncated, corrupt or of another format, or the index
            does not fit the files, or names others than the one that is there as well.
    """
    if not path.is_dir():
        shard, tensors = _read_shard(path)
        return Checkpoint(path, [shard], tensors)
    homes = _read_index(path)
    if homes and SINGLE not in homes.values() and (path / SINGLE).exists():
        # transformers prefers the one file, which would be copied as it is
        raise CheckpointError(f"{path} has both {INDEX} and {SINGLE}; leave one of them in it")
    shards, tensors = [], {}
    for name in sorted(set(homes.values())) if homes else [SINGLE]:
        shard, own = _read_shard(path / name)
        for tensor in own:
            if homes and homes.get(tensor) != name:
                raise CheckpointError(f"{path / INDEX} does not say that {tensor!r} is in {name}")
        shards.append(shard)
        tensors.update(own)
    for tensor, name in homes.items():
        if tensor not in tensors:
            raise CheckpointError(f"{path / INDEX} says {tensor!r} is in {name}, and it is not")
    return Checkpoint(path, shards, tensors)


def require_file(path: Path) -> None:
    """Refuse what is no file: to open a pipe would wait for whoever writes to it.

    Args:
        path: what is to be read.

    Raises:
        CheckpointError: if it does not exist, or is anything but a file.
    """
    if not os.path.exists(path):  # False too for a name that no file can have
        raise CheckpointError(f"{path}: No such file or directory")
    if not path.is_file():
        raise CheckpointError(f"{path} is no file")


def _read_index(folder: Path) -> dict[str, str]:
    """Give the file of every tensor; nothing where there is no index."""
    path = folder / INDEX
    if not path.exists():
        return {}
    try:
        homes: Any = json.loads(path.read_bytes())["weight_map"]
        names = set(homes.values())
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OSError):
        raise CheckpointError(f"{path} is no index of a Hugging Face folder") from None
    for name in names:
        if not isinstance(name, str) or Path(name).name != name:
            raise CheckpointError(f"{path} names {name!r}, which is no file in its own folder")
    if not names:
        raise CheckpointError(f"{path} names no file")
    return dict(homes)


def _read_shard(path: Path) -> tuple[Shard, dict[str, Tensor]]:
    require_file(path)
    try:
        with safe_open(path, framework="numpy"), path.open("rb") as file:
            start = 8 + int.from_bytes(file.read(8), "little")
            entries: dict[str, Any] = json.loads(file.read(start - 8))
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except SafetensorError as error:
        raise CheckpointError(f"{path} is no safetensors file: {error}") from None
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror or 'cannot be read'}") from None
    entries.pop("__metadata__", None)
    for name, entry in entries.items():
        if not isinstance(entry, dict):  # the format's own reader takes a list of the values too
            raise CheckpointError(f"{path} describes {name!r} by a {type(entry).__name__}")
    ordered = sorted(entries.items(), key=lambda entry: entry[1]["data_offsets"])
    spans = {
        name: range(start + entry["data_offsets"][0], start + entry["data_offsets"][1])
        for name, entry in ordered
    }
    tensors = {}
    for name, entry in ordered:
        try:
            tensors[name] = _tensor(mapped, spans[name], entry)
        except (RuntimeError, TypeError, OverflowError):  # without an entry, but of 2**62 dims
            raise CheckpointError(f"{path}: {name!r} has a shape beyond what torch has") from None
    return Shard(path, spans, len(mapped)), tensors


def _tensor(mapped: mmap.mmap, span: range, entry: dict[str, Any]) -> Tensor:
    """View a span of a mapped file."""
    dtype, shape = DTYPES.get(entry["dtype"], torch.uint8), entry["shape"]
    if entry["dtype"] not in DTYPES:
        shape = [len(span)]
    if not span:
        return torch.empty(shape, dtype=dtype)
    with warnings.catch_warnings():  # the mapping is not writable, and nobody writes to it
        warnings.filterwarnings("ignore", "The given buffer is not writable")
        count = len(span) // dtype.itemsize
        return torch.frombuffer(mapped, dtype=dtype, count=count, offset=span.start).view(shape)
