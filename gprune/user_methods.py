"""A user's method: any marked function, called with whole tensors and held to its contract."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from gprune.inputs import Leaves, is_sharded



def name_of(method: Any) -> str:
    """Give what an error calls a method."""
    return str(getattr(method, "__name__", repr(method)))


def whole(call: Callable[..., Any], method: Any, leaves: Leaves) -> Callable[..., Any]:
    """Give the way to call a user's method, which must have all of what it ranks."""
    if is_sharded(leaves.scores):
        raise ValueError(
            f"{name_of(method)} would need whole leaves, these are sharded; the built-in "
            "unstructured methods do not"
        )
    return functools.partial(call, method)


def joined(method: Any, leaves: Leaves, **kwargs: Any) -> list[Tensor]:
    """Call a user's method once, on the concatenation of all leaves."""
    if len({x.device for x in leaves.scores}) > 1:
        raise ValueError(
            f"{name_of(method)} needs all leaves on one device; the built-in methods do not"
        )
    dtypes = {x.dtype for x in leaves.scores}
    exact = dtypes.pop() if len(dtypes) == 1 else torch.float64
    scores = torch.cat([x.reshape(-1).to(exact) for x in leaves.scores])
    prior = torch.cat([mask.reshape(-1) for mask in _priors(leaves)])
    kept = _call(method, scores, prior, kwargs)
    parts = torch.split(kept, [x.numel() for x in leaves.scores])
    return [part.reshape(x.shape).clone() for part, x in zip(parts, leaves.scores, strict=True)]


def each(method: Any, leaves: Leaves, **kwargs: Any) -> list[Tensor]:
    """Call a user's method once per leaf; a list among the arguments has one value per leaf."""
    return [
        _call(method, scores, prior, _at(kwargs, i))
        for i, (scores, prior) in enumerate(zip(leaves.scores, _priors(leaves), strict=True))
    ]


def _call(method: Any, scores: Tensor, prior: Tensor, kwargs: dict[str, Any]) -> Tensor:
    """Call a user's method and hold it to its contract; what was pruned stays pruned."""
    kept: Any = method(scores, prior, **kwargs)
    if not isinstance(kept, Tensor) or kept.dtype != torch.bool or kept.shape != scores.shape:
        got = f"{kept.dtype} of shape {tuple(kept.shape)}" if isinstance(kept, Tensor) else kept
        raise ValueError(
            f"{name_of(method)} must return a bool mask of shape {tuple(scores.shape)}, got {got}"
        )
    return torch.logical_and(prior, kept)


def _priors(leaves: Leaves) -> list[Tensor]:
    return leaves.masks or [torch.ones_like(x, dtype=torch.bool) for x in leaves.scores]


def _at(kwargs: dict[str, Any], i: int) -> dict[str, Any]:
    return {
        name: value[i] if name in ("amount", "sparsity") and isinstance(value, list) else value
        for name, value in kwargs.items()
    }
