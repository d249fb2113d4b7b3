"""Scoring: scores of mapped weights, in a file of their own that is mapped in turn.

A score is a function of one weight that gives its scores as consecutive blocks, so none is held
longer than it takes to write it. The file has no name: nothing is left of it, whatever happens.

What is held besides a block: nothing for `l2`; for `lamp`, which sorts, 53 bytes for each
entry of the weight at hand. Magnitudes are no business of this room: the search takes them from
the weights themselves.
"""

from __future__ import annotations

import ctypes
import math
import mmap
import tempfile
from collections.abc import Callable, Iterable, Iterator
from functools import reduce
from pathlib import Path
from typing import BinaryIO, TypeAlias

import torch
from torch import Tensor

import gprune as gp
from gprune.checkpoints.reading import CheckpointError
from gprune.select.blocks import BLOCK

Score: TypeAlias = Callable[[Tensor], Iterable[Tensor]]
"""A function of one weight: its scores in flat order, as 1-D blocks of float32 or float64."""

Advance: TypeAlias = Callable[[int], object]
"""What is told of every so many bytes that are done."""


def l2(weight: Tensor) -> Iterator[Tensor]:
    """Score by magnitude over the norm of the weight, as `gprune.scores.normalize_l2` does.

    Args:
        weight: contiguous, of a floating dtype.

    Yields:
        |w| / ‖w‖₂, or 0 if all are zero.

    Raises:
        ValueError: if an entry is not finite.
    """
    blocks = torch.split(weight.view(-1), BLOCK)
    # as floats: small tensors kept between large temporaries would keep the heap from reusing them
    norms = (float(torch.linalg.vector_norm(block, dtype=torch.float64)) for block in blocks)
    norm = math.hypot(*norms)
    if not math.isfinite(norm):
        raise ValueError("NaN or infinity cannot be scored")
    wide = torch.promote_types(weight.dtype, torch.float32)
    for block in blocks:
        yield block.abs().to(wide) / (norm or 1.0)


def lamp(weight: Tensor) -> Iterable[Tensor]:
    """Score by `gprune.scores.lamp`.

    Args:
        weight: contiguous, of a floating dtype.

    Returns:
        The scores.
    """
    return torch.split(gp.scores.lamp(weight).view(-1), BLOCK)


def score_all(
    weights: dict[str, Tensor], score: Score, folder: Path, advance: Advance
) -> dict[str, Tensor]:
    """Score weights, one after the other.

    Args:
        weights: mapped weights by name.
        score: a function of one of them.
        folder: where the file of the scores, which has no name, finds room.
        advance: told of the bytes of weights that are scored.

    Returns:
        The scores by name, mapped.

    Raises:
        CheckpointError: if a weight cannot be scored.
    """
    dtypes = [weight.dtype for weight in weights.values()]
    dtype = reduce(torch.promote_types, dtypes, torch.float32)
    with tempfile.TemporaryFile(dir=folder) as file:
        for name, weight in weights.items():
            try:
                write_blocks(file, (block.to(dtype) for block in score(weight)))
            except ValueError as error:
                raise CheckpointError(f"{name!r}: {error}") from None
            advance(weight.nbytes)
        file.flush()
        mapped = torch.frombuffer(mmap.mmap(file.fileno(), 0), dtype=dtype)
    sizes = [weight.numel() for weight in weights.values()]
    return {
        name: scores.view(weight.shape)
        for (name, weight), scores in zip(weights.items(), torch.split(mapped, sizes), strict=True)
    }


def write_blocks(file: BinaryIO, blocks: Iterable[Tensor]) -> None:
    """Write the bytes of contiguous tensors on the CPU, one after the other."""
    for block in blocks:  # torch gives the bytes of a tensor to numpy only, which it does not need
        file.write((ctypes.c_char * block.nbytes).from_address(block.data_ptr()))
