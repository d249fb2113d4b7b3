"""Batching rules: what `vmap` does with an operator.

In general the operator is called once for each element of the batch. There are two faster cases.
The entries of small models become the rows of one matrix, which one operator prunes. Many amounts
of one model become one search for many thresholds.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from gprune.select import blocks


def by_loop(operator: Callable[..., Any]) -> Callable[..., tuple[Any, Any]]:
    """Make the rule that calls an operator for each element of the batch and stacks the results.

    Args:
        operator: takes tensors, lists of tensors and plain values; returns one or more tensors.

    Returns:
        The rule that `register_vmap` takes.
    """

    def rule(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Any, Any]:
        if info.batch_size == 0:
            raise ValueError("nothing can be selected from an empty batch")
        calls = [operator(*_slice(args, in_dims, i)) for i in range(info.batch_size)]
        if isinstance(calls[0], Tensor):
            return torch.stack(calls), 0
        stacked = [torch.stack(outputs) for outputs in zip(*calls, strict=True)]
        return type(calls[0])(stacked), type(calls[0])([0] * len(stacked))

    return rule


def of_find_threshold(find_threshold: Callable[..., Any]) -> Callable[..., tuple[Any, Any]]:
    """Make the rule of `find_threshold`: many amounts in one search, many models in a loop.

    Args:
        find_threshold: the operator, which takes an amount of any shape.

    Returns:
        The rule that `register_vmap` takes.
    """
    loop = by_loop(find_threshold)

    def rule(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Any, Any]:
        scores, masks, amount, absolute, sparsity, call = args
        if info.batch_size == 0 or _any_batched(in_dims[0], in_dims[1]):
            return loop(info, in_dims, *args)
        amounts = amount.movedim(in_dims[2], 0).contiguous()
        return find_threshold(scores, masks, amounts, absolute, sparsity, call), (0, 0)

    return rule


def of_select(
    select: Callable[..., list[Tensor]],
    select_rows: Callable[..., Tensor],
    find_threshold: Callable[..., tuple[Tensor, Tensor]],
    masks_from_threshold: Callable[..., list[Tensor]],
) -> Callable[..., tuple[Any, Any]]:
    """Make the rule of `select`: many amounts at once, many small models at once, or a loop.

    Args:
        select: the operator that the rule is for.
        select_rows: the operator that prunes each row of a matrix.
        find_threshold: the operator that finds the thresholds of many amounts in one search.
        masks_from_threshold: the operator that makes the masks at one threshold.

    Returns:
        The rule that `register_vmap` takes.
    """
    loop = by_loop(select)

    def rule(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Any, Any]:
        scores, masks, amounts, seed, absolute, sparsity, call = args
        if info.batch_size == 0 or seed is not None or len(amounts) > 1:
            return loop(info, in_dims, *args)
        if not _any_batched(in_dims[0], in_dims[1]):
            many = amounts[0].movedim(in_dims[2][0], 0).contiguous()
            found = zip(*find_threshold(scores, masks, many, absolute, sparsity, call), strict=True)
            calls = [masks_from_threshold(*one, scores, masks, absolute, call) for one in found]
            return [torch.stack(outputs) for outputs in zip(*calls, strict=True)], [0] * len(scores)
        alike = len({(leaf.dtype, leaf.device) for leaf in scores}) == 1
        blocks.RankedLeaves(scores, []).check_exact()  # an error names the leaf
        leaves = [_batched(*pair, info) for pair in zip(scores, in_dims[0], strict=True)]
        sizes = [leaf[0].numel() for leaf in leaves]
        if in_dims[2][0] is not None or not alike or sum(sizes) > blocks.BLOCK // 8:
            return loop(info, in_dims, *args)
        priors = [_batched(*pair, info) for pair in zip(masks, in_dims[1], strict=True)]
        prior = [_joined(priors)] if priors else []
        kept = select_rows(_joined(leaves), prior, amounts[0], absolute, sparsity)
        parts = torch.split(kept, sizes, dim=1)
        result = [part.reshape(leaf.shape) for part, leaf in zip(parts, leaves, strict=True)]
        return result, [0] * len(result)

    return rule


def _any_batched(*in_dims: Any) -> bool:
    """Return whether any tensor of some lists is batched."""
    return any(dim is not None for dims in in_dims if dims is not None for dim in dims)


def _batched(leaf: Tensor, dim: int | None, info: Any) -> Tensor:
    """Move the batch dim to the front; expand a leaf that has none."""
    return leaf.expand(info.batch_size, *leaf.shape) if dim is None else leaf.movedim(dim, 0)


def _joined(leaves: list[Tensor]) -> Tensor:
    """Concatenate the entries of each model into a row."""
    return torch.cat([leaf.reshape(len(leaf), math.prod(leaf.shape[1:])) for leaf in leaves], dim=1)


def _slice(arg: Any, in_dim: Any, i: int) -> Any:
    """Return the arguments with element i of every batched tensor, also inside lists."""
    if isinstance(arg, list | tuple):
        dims = in_dim if isinstance(in_dim, list | tuple) else [in_dim] * len(arg)
        return [_slice(one, dim, i) for one, dim in zip(arg, dims, strict=True)]
    return arg if in_dim is None else arg.select(in_dim, i)
