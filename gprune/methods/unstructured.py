"""Unstructured methods: which single entries are pruned."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gprune.inputs import Leaves
from gprune.methods.dims import DimFunction
from gprune.methods.lowest import select_lowest
from gprune.methods.method import built_in, select_on_one_leaf
from gprune.select.counts import as_seed
from gprune.sharding import is_sharded


def _select_lowest(
    leaves: Leaves, *, per_leaf: bool, amount: Any = None, sparsity: Any = None, dim: Any = None
) -> list[Tensor]:
    method = "lowest_unstructured"
    return select_lowest(leaves, amount, sparsity, dim, per_leaf=per_leaf, method=method)


@built_in("unstructured", _select_lowest)
def lowest_unstructured(
    param: Tensor,
    scores: Tensor | None = None,
    *,
    mask: Tensor | None = None,
    amount: float | Tensor | None = None,
    sparsity: float | Tensor | None = None,
    dim: int | tuple[int, ...] | DimFunction | None = None,
) -> Tensor:
    """Return the mask that prunes the entries with the lowest scores, sign included.

    Exactly as many candidates are pruned as the amount or the sparsity asks for. A candidate is an
    entry that the prior mask keeps. Among equal scores those with the lowest flat indices are
    pruned first. NaN ranks above everything, so it is pruned last.

    Args:
        param: a tensor of any shape.
        scores: its scores, of that shape, larger = more important; float16 to float64, uint8, or
            int8 to int64. Without them the magnitude of `param` ranks.
        mask: prior bool mask of that shape; what it has pruned stays pruned.
        amount: how many more to prune (int), or the fraction of the candidates (float, 0 to 1).
            Exactly one of `amount` and `sparsity` must be given.
        sparsity: the fraction of all entries that is pruned after the call, 0 to 1.
        dim: rank within groups instead of over all entries, and apply the amount to every group. A
            group runs along these dims: with `dim=-1` each row of a matrix is a group. It is an
            int, a tuple, or a function `(path, leaf)` that returns one of these, such as
            `gprune.input_dims`; the path is `""` in a direct call. By default there are no groups.

    Returns:
        Bool mask of the shape of `param`, `True` = keep.

    Raises:
        TypeError: if both or neither of `amount` and `sparsity` are given, or a dtype is wrong.
        ValueError: if a number is out of range, a shape differs, or a group is a single entry.

    Example:
        >>> import torch, gprune as gp
        >>> gp.lowest_unstructured(torch.tensor([3.0, -5.0, 1.0, 1.0]), amount=2)
        tensor([ True,  True, False, False])
        >>> scores = torch.tensor([3.0, -5.0, 1.0, 1.0])
        >>> gp.lowest_unstructured(torch.ones(4), scores, amount=2)
        tensor([ True, False, False,  True])

        `torch.vmap` maps only positional arguments, so a prior mask is passed by a lambda:

        >>> params, masks = torch.rand(8, 4), torch.rand(8, 4) < 0.7
        >>> prune = lambda param, mask: gp.lowest_unstructured(param, mask=mask, sparsity=0.5)
        >>> torch.vmap(prune)(params, masks).shape
        torch.Size([8, 4])
    """
    return select_on_one_leaf(
        _select_lowest, param, scores, mask, amount=amount, sparsity=sparsity, dim=dim
    )


def _select_l1(
    leaves: Leaves, *, per_leaf: bool, amount: Any = None, sparsity: Any = None, dim: Any = None
) -> list[Tensor]:
    method = "l1_unstructured"
    return select_lowest(
        leaves, amount, sparsity, dim, per_leaf=per_leaf, method=method, absolute=True
    )


@built_in("unstructured", _select_l1)
def l1_unstructured(
    param: Tensor,
    scores: Tensor | None = None,
    *,
    mask: Tensor | None = None,
    amount: float | Tensor | None = None,
    sparsity: float | Tensor | None = None,
    dim: int | tuple[int, ...] | DimFunction | None = None,
) -> Tensor:
    """Return the mask that prunes the entries with the lowest absolute values: |scores|.

    It prunes what `torch.nn.utils.prune.L1Unstructured` prunes. Among equal absolute values it
    prunes those with the lowest flat indices first.

    Args:
        param: a tensor of any shape.
        scores: what to take the absolute value of, of that shape; float16 to float64, uint8, or
            int8 to int64. Without them it is `param`.
        mask: prior bool mask of that shape; what it has pruned stays pruned.
        amount: how many more to prune (int), or the fraction of the candidates (float, 0 to 1).
            Exactly one of `amount` and `sparsity` must be given.
        sparsity: the fraction of all entries that is pruned after the call, 0 to 1.
        dim: the dims along which groups run, as in `lowest_unstructured`; by default no groups.

    Returns:
        Bool mask of the shape of `param`, `True` = keep.

    Raises:
        TypeError: if both or neither of `amount` and `sparsity` are given, or a dtype is wrong.
        ValueError: if a number is out of range, a shape differs, or a group is a single entry.

    Example:
        >>> import torch, gprune as gp
        >>> gp.l1_unstructured(torch.tensor([3.0, -5.0, 1.0, -1.0]), amount=0.5)
        tensor([ True,  True, False, False])
    """
    return select_on_one_leaf(
        _select_l1, param, scores, mask, amount=amount, sparsity=sparsity, dim=dim
    )


def _select_random(
    leaves: Leaves,
    *,
    per_leaf: bool,
    seed: Any,
    amount: Any = None,
    sparsity: Any = None,
    dim: Any = None,
) -> list[Tensor]:
    return select_lowest(
        leaves,
        amount,
        sparsity,
        dim,
        per_leaf=per_leaf,
        method="random_unstructured",
        seed=as_seed(seed),
    )


@built_in("unstructured", _select_random)
def random_unstructured(
    param: Tensor,
    scores: Tensor | None = None,
    *,
    mask: Tensor | None = None,
    seed: int | Tensor,
    amount: float | Tensor | None = None,
    sparsity: float | Tensor | None = None,
    dim: int | tuple[int, ...] | DimFunction | None = None,
) -> Tensor:
    """Return a random mask, without storing random scores.

    The pruned entries are those with the lowest scores that `gprune.scores.random` draws for a tree
    of the ranked leaves with the same seed.

    Args:
        param: a tensor of any shape, of a dtype that can be ranked; its values do not matter.
        scores: checked, but not used.
        mask: prior bool mask of that shape; what it has pruned stays pruned.
        seed: a 64-bit int or a 0-dim integer tensor; the same seed gives the same mask.
        amount: how many more to prune (int), or the fraction of the candidates (float, 0 to 1).
            Exactly one of `amount` and `sparsity` must be given.
        sparsity: the fraction of all entries that is pruned after the call, 0 to 1.
        dim: the dims along which groups run, as in `lowest_unstructured`; by default no groups.

    Returns:
        Bool mask of the shape of `param`, `True` = keep.

    Raises:
        TypeError: if both or neither of `amount` and `sparsity` are given, or a dtype is wrong.
        ValueError: if a number is out of range, a shape differs, or a group is a single entry.

    Example:
        >>> import torch, gprune as gp
        >>> int(gp.random_unstructured(torch.ones(100), seed=0, amount=30).sum())
        70
    """
    return select_on_one_leaf(
        _select_random, param, scores, mask, seed=seed, amount=amount, sparsity=sparsity, dim=dim
    )


def _select_nothing(leaves: Leaves, *, per_leaf: bool) -> list[Tensor]:
    if is_sharded(leaves.ranked_by):  # the operator checks that all ranks make the same call
        return select_lowest(leaves, 0, None, per_leaf=False, method="identity")
    if leaves.masks:
        return [mask.clone(memory_format=torch.contiguous_format) for mask in leaves.masks]
    return [torch.ones(x.shape, dtype=torch.bool, device=x.device) for x in leaves.params]


@built_in("unstructured", _select_nothing)
def identity(param: Tensor, scores: Tensor | None = None, *, mask: Tensor | None = None) -> Tensor:
    """Return a copy of the prior mask, which prunes nothing more.

    Args:
        param: a tensor of any shape.
        scores: checked, but not used.
        mask: prior bool mask of that shape.

    Returns:
        A copy of the prior mask, or a mask that keeps everything.

    Raises:
        TypeError: if a dtype is wrong.
        ValueError: if a shape differs.

    Example:
        >>> import torch, gprune as gp
        >>> gp.identity(torch.zeros(3))
        tensor([True, True, True])
    """
    return select_on_one_leaf(_select_nothing, param, scores, mask)
