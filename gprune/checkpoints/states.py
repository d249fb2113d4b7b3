"""State dicts saved by torch: map them, for the report. The files are never changed."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gprune.checkpoints.reading import (
    STATE_SUFFIXES,
    CheckpointError,
    first_bytes,
    read,
    require_file,
)
from gprune.trees import tensor_problem

MOST_DICTS = 10_000
"""The most dicts that a state dict may consist of; in a pickle a dict can contain itself."""

ZIP, PICKLE = b"PK\x03\x04", b"\x80"
"""What a file of `torch.save` begins with: today, and in the format before torch 1.6."""

CONVERT = (
    "if you trust it, load it with weights_only=False and save its state dict with "
    "torch.save(state_dict, path)"
)

TORCHSCRIPT = (
    "it is a TorchScript archive: save torch.jit.load(path).state_dict() with torch.save()"
)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Return the tensors of any checkpoint, mapped into memory where the format allows it.

    It runs no code of a file: state dicts are loaded with `weights_only=True`.

    Args:
        path: a Hugging Face folder, a safetensors file, or a file of `torch.save` with a state dict
            in it. That may be all of the file, or one entry beside others such as `epoch` and
            `optimizer`. A file of the format before torch 1.6 cannot be mapped and is loaded.

    Returns:
        The tensors by name. Names in nested dicts are joined by dots. Do not write to the tensors.

    Raises:
        CheckpointError: if it is none of these, or is missing, truncated or corrupt.

    Example:
        >>> import torch
        >>> from pathlib import Path
        >>> from tempfile import TemporaryDirectory
        >>> from gprune import checkpoints
        >>> with TemporaryDirectory() as folder:
        ...     path = Path(folder, "last.ckpt")
        ...     torch.save({"epoch": 3, "state_dict": {"fc.weight": torch.eye(2)}}, path)
        ...     tensors = checkpoints.read_tensors(path)
        >>> tensors
        {'fc.weight': tensor([[1., 0.],
                [0., 1.]])}
    """
    if path.is_dir():
        return read(path).tensors
    require_file(path)
    is_state = path.suffix in STATE_SUFFIXES
    if not is_state and path.suffix != ".safetensors":
        start = first_bytes(path)  # the header of a safetensors file is an object after 8 bytes
        is_state = start.startswith((ZIP, PICKLE)) and start[8:9] != b"{"
    return _read_state(path) if is_state else read(path).tensors


def _read_state(path: Path) -> dict[str, Tensor]:
    """Map a state dict without running any code of its pickle."""
    try:
        is_zip = first_bytes(path).startswith(ZIP)
        with warnings.catch_warnings():  # torch warns of old formats, which are fine here
            warnings.simplefilter("ignore")
            saved: Any = torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
    except Exception as error:  # a malicious pickle can make the loader raise any error
        reason = type(error).__name__
        remedy = TORCHSCRIPT if "TorchScript" in str(error) else CONVERT
        raise CheckpointError(
            f"{path} is not a state dict that weights_only=True can load ({reason}); {remedy}"
        ) from None
    if not isinstance(saved, dict):
        raise CheckpointError(f"{path} holds a {type(saved).__name__}, not a state dict; {CONVERT}")
    state, problems = _flat(saved)
    if problems:
        entries = {name: _flat(entry) for name, entry in saved.items() if isinstance(entry, dict)}
        states = {
            name: tensors for name, (tensors, wrong) in entries.items() if tensors and not wrong
        }
        if len(states) > 1:
            raise CheckpointError(
                f"{path} has several state dicts: {', '.join(map(repr, states))}; save one of them "
                "with torch.save(state_dict, path)"
            )
        if not states:
            raise CheckpointError(f"{path} is not a state dict: {problems[0]}")
        [state] = states.values()
    for name, tensor in state.items():
        if tensor.is_meta:
            raise CheckpointError(f"{path} has no values for {name!r}: it is a meta tensor")
    return state


def _flat(tree: dict[Any, Any]) -> tuple[dict[str, Tensor], list[str]]:
    """Return the tensors of nested dicts by their dotted names, and what else is in the dicts.

    Raises:
        CheckpointError: if two tensors have the same dotted name, or a dict contains itself.
    """
    tensors: dict[str, Tensor] = {}
    problems: list[str] = []
    todo, num_dicts = [("", tree)], 0
    while todo:
        prefix, inner = todo.pop()
        num_dicts += 1
        if num_dicts > MOST_DICTS:
            raise CheckpointError(
                f"there are more than {MOST_DICTS:,} nested dicts; does one contain itself?"
            )
        for key, value in inner.items():
            name = f"{prefix}{key}"
            if not isinstance(key, str):
                problems.append(f"the key {key!r} is not a string")
            elif isinstance(value, dict):
                todo.append((f"{name}.", value))
            elif problem := tensor_problem(value):
                problems.append(f"{name!r} {problem.replace('a tensor or None', 'a tensor')}")
            elif name in tensors:
                raise CheckpointError(f"{name!r} is the name of two tensors, one in a nested dict")
            else:
                tensors[name] = value
    return tensors, problems
