"""Structured methods: pure functions of one tensor that decide which whole channels go.

A channel is a slice at one index of `dim`. Channels are counted by torch's rule: a channel of which
the prior mask keeps nothing is no candidate, any other is one, and its score is that of all of its
entries. What is ranked is a vector of one number per channel, by the operator of the unstructured
methods, so ties, NaN and counts follow the same laws.
"""

from __future__ import annotations

import math
import numbers
from typing import Any

import torch
from torch import Tensor

from gprune.comparison import rank
from gprune.inputs import Leaves, check_one, require_whole, shape_error
from gprune.methods import built_in
from gprune.select.counts import as_float, as_seed


def _ln(
    leaves: Leaves, *, n: Any, dim: Any, amount: Any = None, sparsity: Any = None
) -> list[Tensor]:
    order = _order(n)
    channels = _channels(leaves, dim)
    for leaf, scores in enumerate(leaves.scores if order == "nuc" else []):
        if scores.dim() != 3:
            message = (
                f"the nuclear norm is one of matrices: scores must have three dimensions, "
                f"got {tuple(scores.shape)}"
            )
            raise shape_error(leaves, leaf, message)
    norms = [_norms(scores, order, dim % scores.dim()) for scores in leaves.scores]
    kept = rank(channels._replace(scores=norms), "ln_structured", amount, sparsity, None)
    return _whole(leaves, kept, dim)


def _random(
    leaves: Leaves, *, dim: Any, seed: Any, amount: Any = None, sparsity: Any = None
) -> list[Tensor]:
    channels = _channels(leaves, dim)
    kept = rank(channels, "random_structured", amount, sparsity, None, seed=as_seed(seed))
    return _whole(leaves, kept, dim)


@built_in("structured", _ln)
def ln_structured(
    scores: Tensor,
    mask: Tensor | None = None,
    *,
    n: float | str,
    dim: int,
    amount: float | Tensor | None = None,
    sparsity: float | Tensor | None = None,
) -> Tensor:
    """Prune the channels with the lowest norm, as `torch.nn.utils.prune.LnStructured`.

    The norm of channel c is ‖scores[..., c, ...]‖ₙ over all of its entries, also over those that
    the prior mask has pruned (torch hands a pruned weight over with zeros there; `apply_masks` does
    the same). It is computed in float64 for dtypes other than float32 and float64. Among equal
    norms the lowest index goes first; a channel with a NaN goes last.

    Args:
        scores: at least two dimensions; float16 to float64, uint8, or int8 to int64.
        mask: prior bool mask of the same shape; what it has pruned stays pruned, and a channel
            that it has pruned whole is no candidate.
        n: the order of the norm, any number or ±inf, as in `torch.linalg.vector_norm`; 0 counts the
            entries that are not zero, NaNs too; `"fro"` is 2; `"nuc"` is the nuclear norm, for
            scores of three dimensions.
        dim: the dim whose indices are the channels, from the end if negative.
        amount: how many more channels to prune (int), or the fraction of the candidates (float).
        sparsity: the fraction of all channels that is pruned whole after the call, 0 to 1.

    Returns:
        Bool mask of the shape of `scores`, `True` = keep.

    Raises:
        TypeError: if both or neither of `amount` and `sparsity` are given, or a type does not fit.
        ValueError: if the amount or the norm is out of range, or a shape does not fit.
        IndexError: if there is no such dim; torch raises the same.

    Example:
        >>> scores = torch.tensor([[3.0, -4.0], [1.0, 1.0]])
        >>> ln_structured(scores, n=2, dim=0, amount=1)
        tensor([[ True,  True],
                [False, False]])

    References:
        Li et al., 2017, arXiv:1608.08710, section 3.1 (n = 1).
    """
    leaves = check_one(scores, mask)
    [result] = _ln(leaves, n=n, dim=dim, amount=amount, sparsity=sparsity)
    return result


@built_in("structured", _random)
def random_structured(
    scores: Tensor,
    mask: Tensor | None = None,
    *,
    dim: int,
    seed: int | Tensor,
    amount: float | Tensor | None = None,
    sparsity: float | Tensor | None = None,
) -> Tensor:
    """Prune channels at random.

    Args:
        scores: at least two dimensions; only the shape and the device matter.
        mask: prior bool mask of the same shape; what it has pruned stays pruned, and a channel
            that it has pruned whole is no candidate.
        dim: the dim whose indices are the channels, from the end if negative.
        seed: a 64-bit int or a 0-dim integer tensor; the same seed gives the same mask.
        amount: how many more channels to prune (int), or the fraction of the candidates (float).
        sparsity: the fraction of all channels that is pruned whole after the call, 0 to 1.

    Returns:
        Bool mask of the shape of `scores`, `True` = keep.

    Raises:
        TypeError: if both or neither of `amount` and `sparsity` are given, or a type does not fit.
        ValueError: if the amount is out of range, or a shape does not fit.
        IndexError: if there is no such dim; torch raises the same.

    Example:
        >>> mask = random_structured(torch.ones(10, 3), dim=0, seed=0, amount=4)
        >>> int(mask.any(1).sum()), int(mask.sum())
        (6, 18)
    """
    leaves = check_one(scores, mask)
    [result] = _random(leaves, dim=dim, seed=seed, amount=amount, sparsity=sparsity)
    return result


def _channels(leaves: Leaves, dim: Any) -> Leaves:
    """Give one score per channel, as yet without a value, and whether its prior keeps anything."""
    if isinstance(dim, bool) or not isinstance(dim, int):
        raise TypeError(f"dim must be an int, got {dim!r}")
    require_whole(leaves.scores, "a structured method")
    for leaf, scores in enumerate(leaves.scores):
        shape = tuple(scores.shape)
        if scores.dim() < 2:
            message = f"channels need at least two dimensions, got a leaf of shape {shape}"
            raise shape_error(leaves, leaf, message)
        if not -scores.dim() <= dim < scores.dim():
            message = f"dim is {dim} for a leaf of shape {shape}"
            raise shape_error(leaves, leaf, message, IndexError)
    vectors = [scores.new_empty(scores.shape[dim]) for scores in leaves.scores]
    alive = [mask.any(_others(mask, dim % mask.dim())) for mask in leaves.masks]
    return leaves._replace(scores=vectors, masks=alive, unscored=False)


def _whole(leaves: Leaves, kept: list[Tensor], dim: int) -> list[Tensor]:
    """Spread the masks of the channels over their entries, beneath the prior masks."""
    masks = [
        channels.view([-1 if d == dim % x.dim() else 1 for d in range(x.dim())])
        for channels, x in zip(kept, leaves.scores, strict=True)
    ]
    if leaves.masks:
        return [(a & b).contiguous() for a, b in zip(masks, leaves.masks, strict=True)]
    return [a.expand(x.shape).contiguous() for a, x in zip(masks, leaves.scores, strict=True)]


def _norms(scores: Tensor, n: float | str, dim: int) -> Tensor:
    """Give the norm of every channel."""
    if scores.dtype not in (torch.float32, torch.float64):
        scores = scores.to(torch.float64)
    others = _others(scores, dim)
    if scores.numel() == 0:  # of nothing, norms of some orders are not defined
        return scores.new_zeros(scores.shape[dim])
    if n == "nuc":  # the decomposition refuses what is not finite
        finite = scores.isfinite()
        norms = torch.linalg.matrix_norm(torch.where(finite, scores, 0.0), "nuc", dim=others)
        return torch.where(finite.all(others), norms, math.nan)
    norm: Tensor = torch.linalg.vector_norm(scores, 2 if n == "fro" else n, dim=others)
    return norm


def _others(tensor: Tensor, dim: int) -> tuple[int, ...]:
    return tuple(d for d in range(tensor.dim()) if d != dim)


def _order(n: Any) -> float | str:
    """Check the order of a norm and give it as what torch takes."""
    if isinstance(n, str) and n in ("fro", "nuc"):
        return n
    if isinstance(n, bool) or not isinstance(n, numbers.Real):
        raise TypeError(f"n must be a number, 'fro' or 'nuc', got {n!r}")
    order = as_float(n, "n")
    if math.isnan(order):
        raise ValueError(f"n must be a number, 'fro' or 'nuc', got {n}")
    return order
