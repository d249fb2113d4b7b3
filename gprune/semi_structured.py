"""Semi-structured methods: pure functions of one tensor that choose within, or among, small groups.

`n_of_m` keeps the best n of every m along a dim, the pattern of sparse tensor cores. `blocks` keeps
or prunes rectangles whole, the pattern of block-sparse kernels.

Both rank the scores as given, sign included; under `layerwise`, without scores, they rank by
magnitude, since signed weights are never meant to be ranked as they are.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from gprune.comparison import rank
from gprune.inputs import Leaves, check_one, is_sharded, require_whole, shape_error
from gprune.masks import mask_leaves
from gprune.methods import built_in
from gprune.select import operators
from gprune.select.counts import as_scalar
from gprune.trees import Tree, flatten, leaf_names


def _n_of_m(leaves: Leaves, *, n: Any, m: Any, dim: Any = -1) -> list[Tensor]:
    _check_pattern(n, m, dim)
    require_whole(leaves.scores, "n_of_m")
    kept = []
    for leaf, scores in enumerate(leaves.scores):
        if not -scores.dim() <= dim < scores.dim():
            message = f"dim is {dim} for a leaf of shape {tuple(scores.shape)}"
            raise shape_error(leaves, leaf, message)
        groups = _groups(scores, m, dim)
        width = groups.shape[1]
        sparsity = as_scalar((width - min(n, width)) / width, "sparsity")
        prior = _priors_of_groups(leaves, leaf, m, dim)
        chosen = operators.select_rows(groups, prior, sparsity, leaves.unscored, True)
        kept.append(_ungroup(chosen, scores, dim))
    return kept


def _blocks(
    leaves: Leaves, *, shape: Any, amount: Any = None, sparsity: Any = None
) -> list[Tensor]:
    _check_block(shape)
    require_whole(leaves.scores, "blocks")
    sizes = [_block_sizes(leaves, leaf, shape) for leaf in range(len(leaves.scores))]
    means = [_means(*pair, leaves.unscored) for pair in zip(leaves.scores, sizes, strict=True)]
    alive = [_tiles(mask, size).any(-1) for mask, size in zip(leaves.masks, sizes, strict=False)]
    of_blocks = leaves._replace(scores=means, masks=alive, unscored=False)
    kept = rank(of_blocks, "blocks", amount, sparsity, None)
    masks = [
        _spread(blocks, size, scores.shape)
        for blocks, size, scores in zip(kept, sizes, leaves.scores, strict=True)
    ]
    if not leaves.masks:
        return masks
    return [(a & b).contiguous() for a, b in zip(masks, leaves.masks, strict=True)]


@built_in("semi_structured", _n_of_m)
def n_of_m(scores: Tensor, mask: Tensor | None = None, *, n: int, m: int, dim: int = -1) -> Tensor:
    """Keep the n highest of every m consecutive entries along a dim.

    A group keeps min(n, candidates) entries: exactly n unless the prior mask left it fewer. Where m
    does not divide the size, the last group is shorter and keeps its n highest too, or all if it
    has no more than n: padded with zeros, the pruned tensor has the pattern everywhere. Among equal
    scores the lowest index is pruned first, and NaN last.

    Args:
        scores: at least one dimension; float16 to float64, uint8, or int8 to int64; ranked as
            given.
        mask: prior bool mask of the same shape; what it has pruned stays pruned.
        n: how many of a group are kept, 0 to m; "2:4" is n=2, m=4.
        m: how many entries are a group.
        dim: along which the groups lie; the reduction dim of a linear layer's weight is -1.

    Returns:
        Bool mask of the shape of `scores`, `True` = keep.

    Raises:
        TypeError: if n, m or the dim is not an int, or a dtype does not fit.
        ValueError: if n or m is out of range, there is no such dim, or a shape does not fit.

    Example:
        >>> n_of_m(torch.tensor([4.0, 1.0, 3.0, 2.0, 1.0]), n=2, m=4)
        tensor([ True, False,  True, False,  True])

    References:
        Mishra et al., 2021, arXiv:2104.08378, section 3 (2:4).
        Zhou et al., 2021, arXiv:2102.04010 (N:M).
    """
    [result] = _n_of_m(check_one(scores, mask), n=n, m=m, dim=dim)
    return result


@built_in("semi_structured", _blocks)
def blocks(
    scores: Tensor,
    mask: Tensor | None = None,
    *,
    shape: Sequence[int],
    amount: float | Tensor | None = None,
    sparsity: float | Tensor | None = None,
) -> Tensor:
    """Prune the blocks with the lowest mean score.

    Blocks tile the tensor from its first entry. Where the shape does not divide a size, the last
    blocks are cut off there, and their mean is that of the entries that they have. Blocks are
    numbered in row-major order; among equal means the lowest number goes first, and a block with a
    NaN last.

    Args:
        scores: at least one dimension; float16 to float64, uint8, or int8 to int64; ranked as
            given. Means are computed in float64, over pruned entries too.
        mask: prior bool mask of the same shape; what it has pruned stays pruned, and a block that
            it has pruned whole is no candidate.
        shape: the size of a block along each of the last dims; it is 1 along the dims before.
        amount: how many more blocks to prune (int), or the fraction of the candidates (float).
        sparsity: the fraction of all blocks that is pruned whole after the call, 0 to 1.

    Returns:
        Bool mask of the shape of `scores`, `True` = keep.

    Raises:
        TypeError: if both or neither of `amount` and `sparsity` are given, or a type does not fit.
        ValueError: if the amount is out of range, or a shape does not fit.

    Example:
        >>> blocks(torch.tensor([[1.0, 2.0, 1.0], [1.0, 0.0, 5.0]]), shape=(2, 2), amount=1)
        tensor([[False, False,  True],
                [False, False,  True]])

    References:
        Gray et al., 2017, "GPU Kernels for Block-Sparse Weights", section 2.
        Narang et al., 2017, arXiv:1711.02782, section 3.
    """
    [result] = _blocks(check_one(scores, mask), shape=shape, amount=amount, sparsity=sparsity)
    return result


def check_n_of_m(masks: Tree, *, n: int, m: int, dim: int = -1) -> None:
    """Check that no more than n of every m consecutive entries along a dim are kept.

    Args:
        masks: pytree of bool masks and holes; of DTensors, one whole leaf is gathered at a time.
        n: how many of a group may be kept, 0 to m.
        m: how many entries are a group; the last group may be shorter.
        dim: along which the groups lie.

    Raises:
        TypeError: if a mask is not a bool tensor, or n, m or the dim is not an int.
        ValueError: if a group keeps more or there is no such dim, naming every leaf of which that
            is so; or if n or m is out of range.

    Example:
        >>> check_n_of_m([torch.tensor([True, False, True, True])], n=2, m=4)
        Traceback (most recent call last):
        ValueError: masks[0] keeps more than 2 of 4 along dim -1 in 1 of 1 groups
    """
    _check_pattern(n, m, dim)
    mask_leaves(masks)
    leaves, treedef = flatten(masks)
    problems = []
    for name, mask in zip(leaf_names(treedef, "masks"), leaves, strict=True):
        if mask is None:
            continue
        if not -mask.dim() <= dim < mask.dim():
            problems.append(f"{name} has shape {tuple(mask.shape)} and no dim {dim}")
            continue
        full = _groups(mask.full_tensor() if is_sharded([mask]) else mask, m, dim).sum(1) > n
        if full.any():
            problems.append(
                f"{name} keeps more than {n} of {m} along dim {dim} "
                f"in {int(full.sum())} of {full.numel()} groups"
            )
    if problems:
        raise ValueError("; ".join(problems))


# --- n of m: the groups as the rows of a matrix ---------------------------------------------------


def _groups(tensor: Tensor, m: int, dim: int) -> Tensor:
    """Lay every m entries along a dim in a row, the last ones padded with zeros."""
    m = max(1, min(m, tensor.shape[dim]))  # no longer than the dim: padding takes memory
    moved = tensor.movedim(dim, -1)
    return pad(moved, (0, -moved.shape[-1] % m)).reshape(-1, m)


def _ungroup(rows: Tensor, like: Tensor, dim: int) -> Tensor:
    moved = like.movedim(dim, -1)
    padded = rows.view(*moved.shape[:-1], -(-moved.shape[-1] // rows.shape[1]) * rows.shape[1])
    return padded[..., : moved.shape[-1]].movedim(-1, dim).contiguous()


def _priors_of_groups(leaves: Leaves, leaf: int, m: int, dim: int) -> list[Tensor]:
    """Give the prior of the groups, in which padding counts as pruned."""
    scores = leaves.scores[leaf]
    if leaves.masks:
        return [_groups(leaves.masks[leaf], m, dim)]
    if scores.shape[dim] % m:
        return [_groups(torch.ones_like(scores, dtype=torch.bool), m, dim)]
    return []


def _check_pattern(n: Any, m: Any, dim: Any) -> None:
    for name, number in (("n", n), ("m", m), ("dim", dim)):
        if isinstance(number, bool) or not isinstance(number, int):
            raise TypeError(f"{name} must be an int, got {number!r}")
    if not 0 <= n <= m or m == 0:
        raise ValueError(f"n must be from 0 to m and m above 0, got n={n}, m={m}")


# --- blocks: each dim is split in two, blocks and entries of a block ------------------------------


def _block_sizes(leaves: Leaves, leaf: int, shape: Sequence[int]) -> list[int]:
    """Give the size of a block along every dim of a leaf: none is longer than the leaf."""
    scores = leaves.scores[leaf]
    if len(shape) > scores.dim():
        message = (
            f"blocks of shape {tuple(shape)} have more dims than a leaf of shape "
            f"{tuple(scores.shape)}"
        )
        raise shape_error(leaves, leaf, message)
    whole = [1] * (scores.dim() - len(shape)) + list(shape)
    return [max(1, min(block, size)) for block, size in zip(whole, scores.shape, strict=True)]


def _tiles(tensor: Tensor, block: list[int]) -> Tensor:
    """Give the entries of each block along a last dim, zeros where it is cut off."""
    missing = [-size % b for size, b in zip(tensor.shape, block, strict=True)]
    padded = pad(tensor, [side for end in reversed(missing) for side in (0, end)])
    pairs = [(size // b, b) for size, b in zip(padded.shape, block, strict=True)]
    split = padded.reshape([size for pair in pairs for size in pair])
    dims = range(split.dim())
    tiles = split.permute([*dims[::2], *dims[1::2]])
    return tiles.reshape([*(blocks for blocks, _ in pairs), math.prod(block)])


def _means(scores: Tensor, block: list[int], absolute: bool) -> Tensor:
    exact = scores.to(torch.float64)
    sums = _tiles(exact.abs() if absolute else exact, block).sum(-1)
    return sums / _tiles(torch.ones_like(exact), block).sum(-1)


def _spread(kept: Tensor, block: list[int], shape: Sequence[int]) -> Tensor:
    """Give every entry the mask of its block."""
    for dim, (size, b) in enumerate(zip(shape, block, strict=True)):
        kept = kept.repeat_interleave(b, dim).narrow(dim, 0, size)
    return kept.contiguous()


def _check_block(shape: Any) -> None:
    if isinstance(shape, str) or not isinstance(shape, Sequence) or len(shape) == 0:
        raise TypeError(f"shape must be a sequence of ints, got {shape!r}")
    if any(isinstance(size, bool) or not isinstance(size, int) for size in shape):
        raise TypeError(f"shape must be a sequence of ints, got {shape!r}")
    if any(size < 1 for size in shape):
        raise ValueError(f"shape must be at least 1 everywhere, got {shape!r}")
