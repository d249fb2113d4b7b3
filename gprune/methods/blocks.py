"""Blocks: prune whole rectangles of a tensor, as block-sparse kernels need."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from gprune.inputs import LeafError, Leaves, float64_device
from gprune.methods.lowest import select_lowest
from gprune.methods.method import built_in, select_on_one_leaf
from gprune.sharding import require_unsharded


def _select(
    leaves: Leaves, *, per_leaf: bool, shape: Any, amount: Any = None, sparsity: Any = None
) -> list[Tensor]:
    _check_block(shape)
    require_unsharded(leaves.ranked_by, "blocks")
    sizes = [_block_sizes(i, param, shape) for i, param in enumerate(leaves.params)]
    absolute = leaves.scores is None
    pairs = zip(leaves.ranked_by, sizes, strict=True)
    means = [_block_means(scores, size, absolute) for scores, size in pairs]
    # not strict, because leaves.masks is empty if there are no prior masks
    rows = zip(leaves.masks, sizes, means, strict=False)
    alive = [_tiles(mask, size).any(-1).to(mean.device) for mask, size, mean in rows]
    ranked = leaves._replace(scores=means, ranked_by=means, masks=alive)
    kept = select_lowest(ranked, amount, sparsity, per_leaf=per_leaf, method="blocks")
    masks = [
        _entry_mask(blocks.to(param.device), size, param.shape)
        for blocks, size, param in zip(kept, sizes, leaves.params, strict=True)
    ]
    if not leaves.masks:
        return masks
    return [(a & b).contiguous() for a, b in zip(masks, leaves.masks, strict=True)]


@built_in("semi_structured", _select)
def blocks(
    param: Tensor,
    scores: Tensor | None = None,
    *,
    mask: Tensor | None = None,
    shape: Sequence[int],
    amount: float | Tensor | None = None,
    sparsity: float | Tensor | None = None,
) -> Tensor:
    """Return the mask that prunes the blocks with the lowest mean scores.

    Blocks tile the tensor from its first entry. If the size of a dim is not a multiple of the
    block's, the last blocks along it are smaller, and their mean is over the entries that they
    have. Blocks are numbered in row-major order. Among equal means the block with the lowest number
    is pruned first. A block with a NaN is pruned last.

    Args:
        param: a tensor with at least one dimension.
        scores: its scores, of that shape, larger = more important, sign included; float16 to
            float64, uint8, or int8 to int64. Without them the magnitude of `param` ranks. Means are
            computed in float64, over pruned entries too; on the CPU if the device has no float64.
        mask: prior bool mask of that shape; what it has pruned stays pruned, and a block with no
            entry left is no candidate.
        shape: the size of a block along each of the last dims, in entries, at least 1. Along the
            other dims it is 1.
        amount: how many more blocks to prune (int), or the fraction of the candidates (float, 0 to
            1). Exactly one of `amount` and `sparsity` must be given.
        sparsity: the fraction of all blocks that have no entry left after the call, 0 to 1.

    Returns:
        Bool mask of the shape of `param`, `True` = keep.

    Raises:
        TypeError: if both or neither of `amount` and `sparsity` are given, or a type is wrong.
        ValueError: if a number is out of range, or a shape is wrong.

    Example:
        >>> import torch, gprune as gp
        >>> gp.blocks(torch.tensor([[1.0, 2.0, 1.0], [-1.0, 0.0, 5.0]]), shape=(2, 2), amount=1)
        tensor([[False, False,  True],
                [False, False,  True]])

    References:
        Gray et al., 2017, "GPU Kernels for Block-Sparse Weights", section 2.
        Narang et al., 2017, arXiv:1711.02782, section 3.
    """
    return select_on_one_leaf(
        _select, param, scores, mask, shape=shape, amount=amount, sparsity=sparsity
    )


def _check_block(shape: Any) -> None:
    if isinstance(shape, str) or not isinstance(shape, Sequence) or len(shape) == 0:
        raise TypeError(f"shape must be a sequence of ints, got {shape!r}")
    if any(isinstance(size, bool) or not isinstance(size, int) for size in shape):
        raise TypeError(f"shape must be a sequence of ints, got {shape!r}")
    if any(size < 1 for size in shape):
        raise ValueError(f"shape must be at least 1 everywhere, got {shape!r}")


def _block_sizes(leaf: int, param: Tensor, shape: Sequence[int]) -> list[int]:
    """Return the size of a block along every dim of a leaf, no larger than the leaf in any dim."""
    if len(shape) > param.dim():
        message = (
            f"blocks of shape {tuple(shape)} have more dims than a leaf of shape "
            f"{tuple(param.shape)}"
        )
        raise LeafError(leaf, "params", message)
    padded = [1] * (param.dim() - len(shape)) + list(shape)
    return [max(1, min(block, size)) for block, size in zip(padded, param.shape, strict=True)]


def _tiles(tensor: Tensor, block: list[int]) -> Tensor:
    """Return the entries of each block along a new last dim. Smaller blocks are padded with 0."""
    # each dim is split in two: the number of the block, and the index in the block
    missing = [-size % b for size, b in zip(tensor.shape, block, strict=True)]
    padded = pad(tensor, [side for end in reversed(missing) for side in (0, end)])
    pairs = [(size // b, b) for size, b in zip(padded.shape, block, strict=True)]
    split = padded.reshape([size for pair in pairs for size in pair])
    dims = range(split.dim())
    tiles = split.permute([*dims[::2], *dims[1::2]])
    return tiles.reshape([*(blocks for blocks, _ in pairs), math.prod(block)])


def _block_means(scores: Tensor, block: list[int], absolute: bool) -> Tensor:
    exact = scores.to(float64_device(scores.device)).to(torch.float64)
    sums = _tiles(exact.abs() if absolute else exact, block).sum(-1)
    return sums / _tiles(torch.ones_like(exact), block).sum(-1)


def _entry_mask(kept: Tensor, block: list[int], shape: Sequence[int]) -> Tensor:
    """Turn the mask of blocks into the mask of entries."""
    for dim, (size, b) in enumerate(zip(shape, block, strict=True)):
        kept = kept.repeat_interleave(b, dim).narrow(dim, 0, size)
    return kept.contiguous()
