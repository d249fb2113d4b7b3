"""Batching rules: what `vmap` does with an operator."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def by_loop(operator: Callable[..., Any]) -> Callable[..., tuple[Any, Any]]:
    """Make the rule "one call per element of the batch, then stack".

    Args:
        operator: from tensors, lists of tensors and plain values to a tensor or several.

    Returns:
        The rule that `register_vmap` takes.
    """

    def rule(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Any, Any]:
        calls = [operator(*_slice(args, in_dims, i)) for i in range(info.batch_size)]
        if isinstance(calls[0], Tensor):
            return torch.stack(calls), 0
        stacked = [torch.stack(outputs) for outputs in zip(*calls, strict=True)]
        return type(calls[0])(stacked), type(calls[0])([0] * len(stacked))

    return rule


def _slice(arg: Any, in_dim: Any, i: int) -> Any:
    """Take element i of every batched tensor in a nest of lists."""
    if isinstance(arg, list | tuple):
        dims = in_dim if isinstance(in_dim, list | tuple) else [in_dim] * len(arg)
        return [_slice(one, dim, i) for one, dim in zip(arg, dims, strict=True)]
    return arg if in_dim is None else arg.select(in_dim, i)
