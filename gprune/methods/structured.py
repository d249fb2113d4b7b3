"""Structured methods: which channels are pruned.

A channel is a slice at one index of `dim`. As in torch, a channel is a candidate if the prior mask
keeps at least one of its entries, and its score is computed from all of its entries. The channels
of a leaf are ranked like the entries of a vector with one score per channel. So counts, ties and
NaN follow the same guarantees as in unstructured methods.
"""

from __future__ import annotations

import math
import numbers
from typing import Any

import torch
from torch import Tensor

from gprune.inputs import LeafError, Leaves, float64_device
from gprune.methods.lowest import select_lowest
from gprune.methods.method import built_in, select_on_one_leaf
from gprune.select.counts import as_float, as_seed
from gprune.sharding import require_unsharded


def _select_ln(
    leaves: Leaves, *, per_leaf: bool, n: Any, dim: Any, amount: Any = None, sparsity: Any = None
) -> list[Tensor]:
    order = _check_order(n)
    _check_channels(leaves, dim, "ln_structured")
    for i, scores in enumerate(leaves.ranked_by if order == "nuc" else []):
        if scores.dim() != 3:
            message = (
                f"the nuclear norm is the norm of a matrix: scores must have three dimensions, "
                f"got {tuple(scores.shape)}"
            )
            raise LeafError(i, "params", message)
    norms = [_norms(scores, order, dim % scores.dim()) for scores in leaves.ranked_by]
    pairs = zip(_alive(leaves, dim), norms, strict=False)  # there may be no prior masks
    alive = [channels.to(norm.device) for channels, norm in pairs]
    channels = leaves._replace(scores=norms, ranked_by=norms, masks=alive)
    kept = select_lowest(channels, amount, sparsity, per_leaf=per_leaf, method="ln_structured")
    kept = [channels.to(x.device) for channels, x in zip(kept, leaves.params, strict=True)]
    return _entry_masks(kept, leaves, dim)


@built_in("structured", _select_ln)
def ln_structured(
    param: Tensor,
    scores: Tensor | None = None,
    *,
    mask: Tensor | None = None,
    n: float | str,
    dim: int,
    amount: float | Tensor | None = None,
    sparsity: float | Tensor | None = None,
) -> Tensor:
    """Return the mask that prunes the channels c with the lowest norms: ‖scores[..., c, ...]‖ₙ.

    This is the method of `torch.nn.utils.prune.LnStructured`. The norm is over all entries of a
    channel, also over those that the prior mask has pruned. (torch sets those to zero first; use
    `apply_masks` to do the same.) The norm is computed in float64 for dtypes other than float32 and
    float64, on the CPU if the device has no float64. Among equal norms the lowest index is pruned
    first. A channel with a NaN is pruned last. The exception is n = 0, which counts a NaN as an
    entry that is not zero. The nuclear norm of a channel with infinity is NaN too.

    Args:
        param: a tensor with at least two dimensions.
        scores: what to take the norms of, of that shape; float16 to float64, uint8, or int8 to
            int64. Without scores it is `param`.
        mask: prior bool mask of that shape; what it has pruned stays pruned, and a channel with no
            entry left is no candidate.
        n: the order of the norm, any number or ±inf, as in `torch.linalg.vector_norm`; 0 counts the
            entries that are not zero, NaNs too; `"fro"` is 2; `"nuc"` is the nuclear norm, for
            tensors of three dimensions.
        dim: the dim whose indices are the channels, from the end if negative.
        amount: how many more channels to prune (int), or the fraction of the candidates (float, 0
            to 1). Exactly one of `amount` and `sparsity` must be given.
        sparsity: the fraction of all channels that have no entry left after the call, 0 to 1.

    Returns:
        Bool mask of the shape of `param`, `True` = keep.

    Raises:
        TypeError: if both or neither of `amount` and `sparsity` are given, or a type is wrong.
        ValueError: if the amount or the norm is out of range, or a shape is wrong.
        IndexError: if there is no such dim; torch raises the same.

    Example:
        >>> import torch, gprune as gp
        >>> weight = torch.tensor([[3.0, -4.0], [1.0, 1.0]])
        >>> gp.ln_structured(weight, n=2, dim=0, amount=1)
        tensor([[ True,  True],
                [False, False]])

    References:
        Li et al., 2017, arXiv:1608.08710, section 3.1 (n = 1).
    """
    return select_on_one_leaf(
        _select_ln, param, scores, mask, n=n, dim=dim, amount=amount, sparsity=sparsity
    )


def _select_random(
    leaves: Leaves,
    *,
    per_leaf: bool,
    dim: Any,
    seed: Any,
    amount: Any = None,
    sparsity: Any = None,
) -> list[Tensor]:
    _check_channels(leaves, dim, "random_structured")
    vectors = [scores.new_empty(scores.shape[dim]) for scores in leaves.ranked_by]
    channels = leaves._replace(scores=vectors, ranked_by=vectors, masks=_alive(leaves, dim))
    kept = select_lowest(
        channels,
        amount,
        sparsity,
        per_leaf=per_leaf,
        method="random_structured",
        seed=as_seed(seed),
    )
    return _entry_masks(kept, leaves, dim)


@built_in("structured", _select_random)
def random_structured(
    param: Tensor,
    scores: Tensor | None = None,
    *,
    mask: Tensor | None = None,
    dim: int,
    seed: int | Tensor,
    amount: float | Tensor | None = None,
    sparsity: float | Tensor | None = None,
) -> Tensor:
    """Return a mask that prunes channels at random.

    Args:
        param: a tensor with at least two dimensions, of a dtype that can be ranked; its values do
            not matter.
        scores: checked, but not used.
        mask: prior bool mask of that shape; what it has pruned stays pruned, and a channel with no
            entry left is no candidate.
        dim: the dim whose indices are the channels, from the end if negative.
        seed: a 64-bit int or a 0-dim integer tensor; the same seed gives the same mask.
        amount: how many more channels to prune (int), or the fraction of the candidates (float, 0
            to 1). Exactly one of `amount` and `sparsity` must be given.
        sparsity: the fraction of all channels that have no entry left after the call, 0 to 1.

    Returns:
        Bool mask of the shape of `param`, `True` = keep.

    Raises:
        TypeError: if both or neither of `amount` and `sparsity` are given, or a type is wrong.
        ValueError: if the amount is out of range, or a shape is wrong.
        IndexError: if there is no such dim; torch raises the same.

    Example:
        >>> import torch, gprune as gp
        >>> mask = gp.random_structured(torch.ones(10, 3), dim=0, seed=0, amount=4)
        >>> int(mask.any(1).sum()), int(mask.sum())
        (6, 18)
    """
    return select_on_one_leaf(
        _select_random, param, scores, mask, dim=dim, seed=seed, amount=amount, sparsity=sparsity
    )


def _check_channels(leaves: Leaves, dim: Any, method: str) -> None:
    """Raise an error for leaves without channels along `dim`."""
    if isinstance(dim, bool) or not isinstance(dim, int):
        raise TypeError(f"dim must be an int, got {dim!r}")
    require_unsharded(leaves.ranked_by, method)
    for i, param in enumerate(leaves.params):
        shape = tuple(param.shape)
        if param.dim() < 2:
            message = f"channels need at least two dimensions, got a leaf of shape {shape}"
            raise LeafError(i, "params", message)
        if not -param.dim() <= dim < param.dim():
            message = f"dim {dim} is out of range for a leaf of shape {shape}"
            raise LeafError(i, "params", message, IndexError)


def _alive(leaves: Leaves, dim: int) -> list[Tensor]:
    """Return which channels of each leaf are candidates: the prior mask keeps an entry of them."""
    return [mask.any(_other_dims(mask, dim % mask.dim())) for mask in leaves.masks]


def _entry_masks(kept: list[Tensor], leaves: Leaves, dim: int) -> list[Tensor]:
    """Turn masks of channels into masks of entries, and apply the prior masks."""
    masks = [
        channels.view([-1 if d == dim % x.dim() else 1 for d in range(x.dim())])
        for channels, x in zip(kept, leaves.params, strict=True)
    ]
    if leaves.masks:
        return [(a & b).contiguous() for a, b in zip(masks, leaves.masks, strict=True)]
    return [a.expand(x.shape).contiguous() for a, x in zip(masks, leaves.params, strict=True)]


def _norms(scores: Tensor, n: float | str, dim: int) -> Tensor:
    """Return the norm of every channel."""
    if scores.dtype not in (torch.float32, torch.float64):
        scores = scores.to(float64_device(scores.device)).to(torch.float64)
    others = _other_dims(scores, dim)
    if scores.numel() == 0:  # torch defines no norm of some orders for an empty tensor
        return scores.new_zeros(scores.shape[dim])
    if n == "nuc":  # the decomposition raises an error for NaN and inf
        finite = scores.isfinite()
        norms = torch.linalg.matrix_norm(torch.where(finite, scores, 0.0), "nuc", dim=others)
        return torch.where(finite.all(others), norms, math.nan)
    norm: Tensor = torch.linalg.vector_norm(scores, 2 if n == "fro" else n, dim=others)
    return norm


def _other_dims(tensor: Tensor, dim: int) -> tuple[int, ...]:
    return tuple(d for d in range(tensor.dim()) if d != dim)


def _check_order(n: Any) -> float | str:
    """Check the order of a norm, and return it as a float, `"fro"` or `"nuc"`."""
    if isinstance(n, str) and n in ("fro", "nuc"):
        return n
    if isinstance(n, bool) or not isinstance(n, numbers.Real):
        raise TypeError(f"n must be a number, 'fro' or 'nuc', got {n!r}")
    order = as_float(n, "n")
    if math.isnan(order):
        raise ValueError(f"n must be a number, 'fro' or 'nuc', got {n}")
    return order
