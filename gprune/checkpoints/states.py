"""State dicts saved by torch: map them, for the report. The files are never changed."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gprune.checkpoints.reading import CheckpointError, read, require_file
from gprune.trees import tensor_problem

SUFFIXES = (".pt", ".pth", ".bin")


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Map the tensors of any checkpoint.

    Args:
        path: a Hugging Face folder, a safetensors file, or a state dict saved by torch.

    Returns:
        The tensors by name, mapped. Do not write to them.

    Raises:
        CheckpointError: if it is none of these, or is missing, truncated or corrupt.
    """
    if path.suffix in SUFFIXES and not path.is_dir():
        return _read_state(path)
    return read(path).tensors


def _read_state(path: Path) -> dict[str, Tensor]:
    """Map a state dict without running any code of its pickle."""
    require_file(path)
    try:
        with warnings.catch_warnings():  # torch warns of old formats, which are fine here
            warnings.simplefilter("ignore")
            state: Any = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # a malicious pickle can make the loader raise any error
        reason = type(error).__name__
        raise CheckpointError(
            f"{path} is not a state dict that weights_only=True can map ({reason}); "
            "save one with torch.save(module.state_dict(), path)"
        ) from None
    if not isinstance(state, dict):
        raise CheckpointError(f"{path} holds a {type(state).__name__}, not a state dict")
    for name, tensor in state.items():
        if not isinstance(name, str):
            raise CheckpointError(f"{path} is not a state dict: the key {name!r} is not a string")
        if problem := tensor_problem(tensor):
            problem = problem.replace("a tensor or None", "a tensor")
            raise CheckpointError(f"{path} is not a state dict: {name!r} {problem}")
        if tensor.is_meta:
            raise CheckpointError(f"{path} has no values for {name!r}: it is a meta tensor")
    return dict(state)
