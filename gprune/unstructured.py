"""Unstructured methods: pure functions of one tensor that decide which single entries go."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gprune.comparison import rank
from gprune.inputs import Leaves, check_one, is_sharded
from gprune.methods import built_in
from gprune.select.counts import as_seed


def _lowest(
    leaves: Leaves, *, amount: Any = None, sparsity: Any = None, dim: Any = None
) -> list[Tensor]:
    # signed weights are never meant to be ranked as they are: without scores, rank by magnitude
    absolute = leaves.unscored
    return rank(leaves, "lowest_unstructured", amount, sparsity, dim, absolute=absolute)


def _l1(
    leaves: Leaves, *, amount: Any = None, sparsity: Any = None, dim: Any = None
) -> list[Tensor]:
    return rank(leaves, "l1_unstructured", amount, sparsity, dim, absolute=True)


def _random(
    leaves: Leaves, *, seed: Any, amount: Any = None, sparsity: Any = None, dim: Any = None
) -> list[Tensor]:
    return rank(leaves, "random_unstructured", amount, sparsity, dim, seed=as_seed(seed))


def _identity(leaves: Leaves) -> list[Tensor]:
    if is_sharded(leaves.scores):  # the ranks meet, as in any method
        return rank(leaves, "identity", 0, None, None)
    if leaves.masks:
        return [mask.clone(memory_format=torch.contiguous_format) for mask in leaves.masks]
    return [torch.ones(x.shape, dtype=torch.bool, device=x.device) for x in leaves.scores]


@built_in("unstructured", _lowest)
def lowest_unstructured(
    scores: Tensor,
    mask: Tensor | None = None,
    *,
    amount: float | Tensor | None = None,
    sparsity: float | Tensor | None = None,
    dim: int | tuple[int, ...] | None = None,
) -> Tensor:
    """Prune the entries with the lowest scores, sign included.

    Exactly k candidates go, whatever the ties: among equal scores the lowest flat index first. NaN
    ranks above everything.

    Args:
        scores: any shape; float16 to float64, uint8, or int8 to int64.
        mask: prior bool mask of the same shape; what it has pruned stays pruned.
        amount: how many more to prune (int), or the fraction of the candidates (float, 0 to 1).
        sparsity: the fraction of all entries that is pruned after the call, 0 to 1.
        dim: compare only along these dims: every group of entries that differ in nothing else is
            pruned by the amount, `dim=-1` each row. `None` compares everything.

    Returns:
        Bool mask of the shape of `scores`, `True` = keep.

    Raises:
        TypeError: if both or neither of `amount` and `sparsity` are given, or a dtype does not fit.
        ValueError: if the amount or the sparsity is out of range, or a shape does not fit.

    Example:
        >>> lowest_unstructured(torch.tensor([3.0, -5.0, 1.0, 1.0]), amount=2)
        tensor([ True, False, False,  True])
    """
    [result] = _lowest(check_one(scores, mask), amount=amount, sparsity=sparsity, dim=dim)
    return result


@built_in("unstructured", _l1)
def l1_unstructured(
    scores: Tensor,
    mask: Tensor | None = None,
    *,
    amount: float | Tensor | None = None,
    sparsity: float | Tensor | None = None,
    dim: int | tuple[int, ...] | None = None,
) -> Tensor:
    """Prune the entries with the lowest absolute value, as `torch.nn.utils.prune.L1Unstructured`.

    Args:
        scores: any shape; float16 to float64, uint8, or int8 to int64.
        mask: prior bool mask of the same shape; what it has pruned stays pruned.
        amount: how many more to prune (int), or the fraction of the candidates (float, 0 to 1).
        sparsity: the fraction of all entries that is pruned after the call, 0 to 1.
        dim: compare only along these dims: every group of entries that differ in nothing else is
            pruned by the amount, `dim=-1` each row. `None` compares everything.

    Returns:
        Bool mask of the shape of `scores`, `True` = keep.

    Raises:
        TypeError: if both or neither of `amount` and `sparsity` are given, or a dtype does not fit.
        ValueError: if the amount or the sparsity is out of range, or a shape does not fit.

    Example:
        >>> l1_unstructured(torch.tensor([3.0, -5.0, 1.0, -1.0]), amount=0.5)
        tensor([ True,  True, False, False])
    """
    [result] = _l1(check_one(scores, mask), amount=amount, sparsity=sparsity, dim=dim)
    return result


@built_in("unstructured", _random)
def random_unstructured(
    scores: Tensor,
    mask: Tensor | None = None,
    *,
    seed: int | Tensor,
    amount: float | Tensor | None = None,
    sparsity: float | Tensor | None = None,
    dim: int | tuple[int, ...] | None = None,
) -> Tensor:
    """Prune entries at random: the lowest of `gprune.scores.random`, which is never stored.

    Args:
        scores: any shape; only the shape and the device matter.
        mask: prior bool mask of the same shape; what it has pruned stays pruned.
        seed: a 64-bit int or a 0-dim integer tensor; the same seed gives the same mask.
        amount: how many more to prune (int), or the fraction of the candidates (float, 0 to 1).
        sparsity: the fraction of all entries that is pruned after the call, 0 to 1.
        dim: compare only along these dims: every group of entries that differ in nothing else is
            pruned by the amount, `dim=-1` each row. `None` compares everything.

    Returns:
        Bool mask of the shape of `scores`, `True` = keep.

    Raises:
        TypeError: if both or neither of `amount` and `sparsity` are given, or a dtype does not fit.
        ValueError: if the amount or the sparsity is out of range, or a shape does not fit.

    Example:
        >>> int(random_unstructured(torch.ones(100), seed=0, amount=30).sum())
        70
    """
    leaves = check_one(scores, mask)
    [result] = _random(leaves, seed=seed, amount=amount, sparsity=sparsity, dim=dim)
    return result


@built_in("unstructured", _identity)
def identity(scores: Tensor, mask: Tensor | None = None) -> Tensor:
    """Prune nothing more.

    Args:
        scores: any shape.
        mask: prior bool mask of the same shape.

    Returns:
        A copy of the prior mask, or a mask that keeps everything.

    Raises:
        TypeError: if a dtype does not fit.
        ValueError: if a shape does not fit.

    Example:
        >>> identity(torch.zeros(3))
        tensor([True, True, True])
    """
    [result] = _identity(check_one(scores, mask))
    return result
