"""Scoring: write the scores of mapped weights to a temporary file, and map that file.

A score function takes one weight and yields the scores of its entries as consecutive blocks, so
that only one block is in memory at a time. The temporary file has no name, so it disappears with
the process.

`l2` needs memory for one block only. `lamp` sorts, and needs 40 bytes for each entry of the weight
that it scores. Magnitudes are not written: the search computes them from the weights.
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

BlockScore: TypeAlias = Callable[[Tensor], Iterable[Tensor]]
"""A function of one weight: its scores in flat order, as 1-D blocks of float32 or float64."""

Advance: TypeAlias = Callable[[int], object]
"""Called with a number of bytes after they have been processed."""


def no_progress(number: int) -> None:
    """Do nothing with the number of bytes or blocks that have been processed."""


def l2(weight: Tensor) -> Iterator[Tensor]:
    """Yield the scores of a weight by magnitude over its norm: |w| / ‖w‖₂.

    They are those of `gprune.scores.normalize_l2(gprune.scores.magnitude(weight))`, block by block.

    Args:
        weight: contiguous, of any shape and of a floating dtype.

    Yields:
        The scores in flat order, 0 to 1, as 1-D blocks in float32 at least; 0 if all entries are 0.

    Raises:
        ValueError: if an entry is not finite.

    Example:
        >>> import torch
        >>> from gprune import checkpoints
        >>> list(checkpoints.l2(torch.tensor([[3.0, -4.0]])))
        [tensor([0.6000, 0.8000])]
    """
    blocks = torch.split(weight.view(-1), BLOCK)
    # as floats, because small tensors between large temporaries would fragment the heap
    norms = (float(torch.linalg.vector_norm(block, dtype=torch.float64)) for block in blocks)
    norm = math.hypot(*norms)
    if not math.isfinite(norm):
        raise ValueError("contains NaN or infinity, which cannot be scored")
    dtype = torch.promote_types(weight.dtype, torch.float32)
    for block in blocks:
        yield block.abs().to(dtype) / (norm or 1.0)


def lamp(weight: Tensor) -> Iterable[Tensor]:
    """Return the scores of a weight by `gprune.scores.lamp`: θᵤ² / Σ_{v ≥ u} θᵥ².

    It sorts, and needs 40 bytes of memory for each entry of the weight.

    Args:
        weight: contiguous, of any shape and of a floating dtype.

    Returns:
        The scores in flat order, 0 to 1, as 1-D blocks in float32 at least.

    Raises:
        ValueError: if an entry is not finite.

    Example:
        >>> import torch
        >>> from gprune import checkpoints
        >>> list(checkpoints.lamp(torch.tensor([[1.0, -2.0, 0.0]])))
        [tensor([0.2000, 1.0000, 0.0000])]

    References:
        Lee et al., 2021, arXiv:2010.07611, section 2.
    """
    return torch.split(gp.scores.lamp(weight).view(-1), BLOCK)


def score_all(
    weights: dict[str, Tensor], score: BlockScore, folder: Path, advance: Advance
) -> dict[str, Tensor]:
    """Score weights one after the other, into a temporary file.

    Args:
        weights: mapped weights by name.
        score: a function of one weight.
        folder: where the temporary file is written.
        advance: called with the number of bytes of each weight after it is scored.

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
    for block in blocks:  # by address, because torch exposes the bytes of a tensor only to numpy
        file.write((ctypes.c_char * block.nbytes).from_address(block.data_ptr()))
