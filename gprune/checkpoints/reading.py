"""Reading: map a safetensors file, or the files of a Hugging Face folder, into memory.

Files are mapped read-only and shared. `safetensors.safe_open` for torch maps them privately, which
Linux refuses for files larger than memory. So safetensors is used only to check the format: the
header parses, and the tensors fill the file without gaps or overlaps. After that the header is
trusted.
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

WEIGHT_FILES = (
    "model.safetensors",  # transformers
    "diffusion_pytorch_model.safetensors",  # a component of a diffusers pipeline
    "adapter_model.safetensors",  # PEFT
)
"""The files of weights that libraries write into a folder; with `.index.json`, those of shards."""

PIPELINE = "model_index.json"
"""The file that lists the components of a diffusers pipeline, each of which is a folder."""

FORMATS = {
    b"PK\x03\x04": "a file of torch.save; convert it with safetensors.torch.save_file(state_dict, "
    '"model.safetensors"), or save_model(module, ...) if weights are tied',
    b"\x80": "a pickle, such as torch.save once wrote; convert its state dict with "
    'safetensors.torch.save_file(state_dict, "model.safetensors")',
    b"GGUF": "a GGUF file; prune the checkpoint that it was made from",
    b"\x89HDF": "an HDF5 file; load it in its framework and save it as safetensors",
    b"version https://git-lfs": "a pointer of Git LFS; fetch the file with git lfs pull",
}
"""What other files begin with, what they are, and the remedy."""

STATE_SUFFIXES = (".pt", ".pth", ".bin", ".ckpt", ".tar")
"""The suffixes of files that torch saves; `.tar` is that of `.pth.tar`."""

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E4M3FNUZ": torch.float8_e4m3fnuz,
    "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
    "F8_E8M0": torch.float8_e8m0fnu,
    "F4": torch.float4_e2m1fn_x2,
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
"""The dtypes of the format by their names there. Others are read as bytes of dtype bits8."""


class CheckpointError(ValueError):
    """A checkpoint is invalid, or its copy may not be written. The message is one line.

    Example:
        >>> from pathlib import Path
        >>> from gprune import checkpoints
        >>> checkpoints.read(Path("missing.safetensors"))
        Traceback (most recent call last):
        gprune.checkpoints.reading.CheckpointError: missing.safetensors: No such file or directory
    """


class Shard(NamedTuple):
    """A safetensors file.

    Attributes:
        path: its path.
        spans: the byte range of each tensor, in the order of the file.
        num_bytes: its size.
    """

    path: Path
    spans: dict[str, range]
    num_bytes: int


class Checkpoint(NamedTuple):
    """A safetensors file or a Hugging Face folder, as `read` returns it.

    Attributes:
        path: the path of the file or the folder.
        shards: its safetensors files, with the byte range of each tensor.
        tensors: all of their tensors by name, mapped read-only.

    Example:
        >>> import torch
        >>> from pathlib import Path
        >>> from tempfile import TemporaryDirectory
        >>> from safetensors.torch import save_file
        >>> from gprune import checkpoints
        >>> with TemporaryDirectory() as folder:
        ...     path = Path(folder, "model.safetensors")
        ...     save_file({"fc.weight": torch.ones(2, 3)}, path)
        ...     checkpoint = checkpoints.read(path)
        >>> checkpoint.path.name, list(checkpoint.tensors)
        ('model.safetensors', ['fc.weight'])
    """

    path: Path
    shards: list[Shard]
    tensors: dict[str, Tensor]

    @property
    def num_bytes(self) -> int:
        """The sum of the sizes of the safetensors files."""
        return sum(shard.num_bytes for shard in self.shards)


def read(path: Path) -> Checkpoint:
    """Return a checkpoint that is mapped into memory: a safetensors file or a Hugging Face folder.

    Nothing is loaded. Tensors are read from the file when they are used.

    Args:
        path: the file or the folder. A folder contains one of `model.safetensors`,
            `diffusion_pytorch_model.safetensors` and `adapter_model.safetensors`, or its index.

    Returns:
        The checkpoint.

    Raises:
        CheckpointError: if a file is missing, truncated, corrupt or of another format; if the index
            does not match the files; or if a folder has both an index and an unindexed
            `model.safetensors`.

    Example:
        >>> import torch
        >>> from pathlib import Path
        >>> from tempfile import TemporaryDirectory
        >>> from safetensors.torch import save_file
        >>> from gprune import checkpoints
        >>> with TemporaryDirectory() as folder:
        ...     path = Path(folder, "model.safetensors")
        ...     save_file({"fc.weight": torch.ones(2, 3)}, path)
        ...     checkpoint = checkpoints.read(path)
        >>> checkpoint.tensors["fc.weight"]
        tensor([[1., 1., 1.],
                [1., 1., 1.]])
    """
    if not path.is_dir():
        shard, tensors = _read_shard(path)
        return Checkpoint(path, [shard], tensors)
    single, index = weight_file(path), None
    if (path / f"{single}.index.json").exists():
        index = path / f"{single}.index.json"
    file_of = _read_index(index) if index else {}
    if index and single not in file_of.values() and (path / single).exists():
        # transformers would load the single file, which would be copied without being pruned
        raise CheckpointError(f"{path} has both {index.name} and {single}; remove one of them")
    shards, tensors = [], {}
    for name in sorted(set(file_of.values())) if index else [single]:
        shard, mapped = _read_shard(path / name)
        for tensor in mapped:
            if index and file_of.get(tensor) != name:
                raise CheckpointError(f"{index} does not say that {tensor!r} is in {name}")
        shards.append(shard)
        tensors.update(mapped)
    for tensor, name in file_of.items():
        if tensor not in tensors:
            raise CheckpointError(f"{index} says that {tensor!r} is in {name}, but it is not")
    return Checkpoint(path, shards, tensors)


def require_file(path: Path) -> None:
    """Raise an error unless a path is a file; opening a pipe would wait for a writer.

    Args:
        path: the path to read.

    Raises:
        CheckpointError: if it does not exist, or is not a file.
    """
    if not os.path.exists(path):  # also False for invalid names, for which Path.exists raises
        raise CheckpointError(f"{path}: No such file or directory")
    if not path.is_file():
        raise CheckpointError(f"{path} is not a file")


def weight_file(folder: Path) -> str:
    """Find out which of `WEIGHT_FILES` a folder has, or has the index of.

    Args:
        folder: the folder.

    Returns:
        The name of the file, also if the folder has its index only.

    Raises:
        CheckpointError: if it has none of them, or several.
    """
    found = [
        name
        for name in WEIGHT_FILES
        if (folder / name).exists() or (folder / f"{name}.index.json").exists()
    ]
    if len(found) > 1:
        raise CheckpointError(f"{folder} has {' and '.join(found)}; give the path of one of them")
    if found:
        return found[0]
    wanted = f"{', '.join(WEIGHT_FILES)}, nor an index of one of them (<file>.index.json)"
    raise CheckpointError(f"{folder} has neither {wanted}{_what_else(folder)}")


def _what_else(folder: Path) -> str:
    """Return a remedy for a folder without weights that can be read, or no text."""
    if (folder / PIPELINE).exists():
        parts = sorted(path.parent.name for path in folder.glob("*/*.safetensors*"))
        names = ", ".join(dict.fromkeys(parts)) or "there are none with safetensors files"
        return f"; it is a diffusers pipeline, so give the folder of a component: {names}"
    if files := sorted(path.name for path in folder.glob("*.safetensors")):
        return f"; give the path of one of its files: {', '.join(files[:10])}"
    if ggufs := sorted(path.name for path in folder.glob("*.gguf")):
        return f"; {ggufs[0]} is {FORMATS[b'GGUF']}"
    if saved := sorted(path.name for path in folder.iterdir() if path.suffix in STATE_SUFFIXES):
        return (
            f"; {saved[0]} was saved by torch.save: gprune report reads it by its path, and to "
            "prune it, save the module with save_pretrained(), or its state dict with "
            "safetensors.torch.save_file()"
        )
    return ""


def first_bytes(path: Path) -> bytes:
    """Return the first bytes of a file, by which its format can be recognised."""
    with path.open("rb") as file:
        return file.read(32)


def _read_index(path: Path) -> dict[str, str]:
    """Return the file name of every tensor by an index."""
    require_file(path)
    try:
        file_of: Any = json.loads(path.read_bytes())["weight_map"]
        names = set(file_of.values())
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OSError):
        raise CheckpointError(f"{path} is not an index of a Hugging Face folder") from None
    for name in names:
        if not isinstance(name, str) or Path(name).name != name:
            raise CheckpointError(f"{path} names {name!r}, which is not a file in its own folder")
    if not names:
        raise CheckpointError(f"{path} names no file")
    return dict(file_of)


def _read_shard(path: Path) -> tuple[Shard, dict[str, Tensor]]:
    require_file(path)
    try:
        with safe_open(path, framework="numpy"), path.open("rb") as file:
            start = 8 + int.from_bytes(file.read(8), "little")
            entries: dict[str, Any] = json.loads(file.read(start - 8))
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except SafetensorError as error:
        start_of_file = first_bytes(path)
        formats = [text for magic, text in FORMATS.items() if start_of_file.startswith(magic)]
        reason = f"it is {formats[0]}" if formats else error
        raise CheckpointError(f"{path} is not a safetensors file: {reason}") from None
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror or 'cannot be read'}") from None
    entries.pop("__metadata__", None)
    for name, entry in entries.items():
        if not isinstance(entry, dict):  # safetensors accepts a list of the values too
            raise CheckpointError(
                f"{path}: the entry of {name!r} in the header must be an object, "
                f"got a {type(entry).__name__}"
            )
    ordered = sorted(entries.items(), key=lambda entry: entry[1]["data_offsets"])
    spans = {
        name: range(start + entry["data_offsets"][0], start + entry["data_offsets"][1])
        for name, entry in ordered
    }
    tensors = {}
    for name, entry in ordered:
        try:
            tensors[name] = _tensor(mapped, spans[name], entry)
        except (RuntimeError, TypeError, OverflowError):  # an empty tensor with sizes of 2**62
            raise CheckpointError(f"{path}: {name!r} has a shape too large for torch") from None
    return Shard(path, spans, len(mapped)), tensors


def _tensor(mapped: mmap.mmap, span: range, entry: dict[str, Any]) -> Tensor:
    """Return a view of a byte range of a mapped file."""
    dtype, shape = DTYPES.get(entry["dtype"], torch.bits8), entry["shape"]
    if dtype == torch.float4_e2m1fn_x2 and shape and shape[-1] % 2 == 0:
        shape = [*shape[:-1], shape[-1] // 2]  # a byte holds two entries
    elif dtype in (torch.bits8, torch.float4_e2m1fn_x2):
        shape = [len(span)]
    if not span:
        return torch.empty(shape, dtype=dtype)
    with warnings.catch_warnings():  # the mapping is read-only, and is only read
        warnings.filterwarnings("ignore", "The given buffer is not writable")
        count = len(span) // dtype.itemsize
        return torch.frombuffer(mapped, dtype=dtype, count=count, offset=span.start).view(shape)
