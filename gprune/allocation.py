"""Allocation: the sparsity of each leaf, so that all leaves together have a given sparsity.

Each function returns a tree of sparsities for `layerwise`. The numbers of pruned entries per leaf
are integers, and their sum is exactly `round(sparsity * entries)`. If the sparsity rises, no leaf
gets fewer pruned entries, so an allocation can follow a schedule.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from gprune.select import operators
from gprune.select.counts import as_scalar
from gprune.trees import (
    Tree,
    describe_first,
    flatten,
    predicate,
    require_tensors,
    tensor_paths,
    unflatten_like,
)

__all__ = ["erdos_renyi", "uniform"]


def uniform(
    params: Tree,
    *,
    sparsity: float | Tensor,
    overrides: Mapping[str, float] | None = None,
    min_kept: int = 0,
) -> Tree:
    """Return the same sparsity for every leaf, rounded to a whole number of entries.

    Args:
        params: pytree of tensors of any shape; `None` where a leaf is not prunable.
        sparsity: the fraction of all prunable entries that is to be pruned, 0 to 1.
        overrides: the sparsities, 0 to 1, of leaves whose dotted path matches a glob; the first
            glob that matches a leaf counts. The other leaves are pruned so that the total is right.
            If that is impossible, an error is raised. So where `sparsity` may be 0, as at the start
            of a schedule, every override must be 0.
        min_kept: the least number of entries that a leaf without an override keeps. A leaf with
            fewer entries keeps them all.

    Returns:
        A tree of the structure of `params` with 0-dim float64 tensors on the CPU. Pass it as
        `sparsity=` to `layerwise`, which then prunes exactly the apportioned counts.

    Raises:
        TypeError: if a leaf, a number or a glob has the wrong type.
        ValueError: if a number is out of range, a glob matches no leaf, or the total cannot be met.

    Example:
        >>> import torch
        >>> params = {"fc": torch.ones(10, 10), "head": torch.ones(2, 10), "bias": None}
        >>> {name: float(x) for name, x in uniform(params, sparsity=0.5).items() if x is not None}
        {'fc': 0.5, 'head': 0.5}
        >>> float(uniform(params, sparsity=0.5, overrides={"head": 0})["fc"])
        0.6
    """
    return _allocate(params, sparsity, lambda leaf: float(leaf.numel()), overrides, min_kept)


def erdos_renyi(
    params: Tree,
    *,
    sparsity: float | Tensor,
    kernel: bool = True,
    overrides: Mapping[str, float] | None = None,
    min_kept: int = 0,
) -> Tree:
    """Return a sparsity for each leaf, lower for smaller ones: density ∝ sum of sizes / product.

    With the kernel, the density of a leaf of shape (n, m, h, w) is ε (n + m + h + w) / (n m h w).
    Without it, the density is ε (n + m) / (n m). ε is the same for all leaves, and chosen so that
    the total is right. A leaf whose density would exceed 1 is dense. A vector has the density
    min(1, ε).

    Args:
        params: pytree of tensors; `None` where a leaf is not prunable.
        sparsity: the fraction of all prunable entries that is to be pruned, 0 to 1.
        kernel: whether all dims of a leaf count ("ERK"), or only the first two ("ER").
        overrides: the sparsities, 0 to 1, of leaves whose dotted path matches a glob; the first
            glob that matches a leaf counts. The other leaves are pruned so that the total is right.
            If that is impossible, an error is raised. So where `sparsity` may be 0, as at the start
            of a schedule, every override must be 0.
        min_kept: the least number of entries that a leaf without an override keeps. A leaf with
            fewer entries keeps them all.

    Returns:
        A tree of the structure of `params` with 0-dim float64 tensors on the CPU. Pass it as
        `sparsity=` to `layerwise`, which then prunes exactly the apportioned counts.

    Raises:
        TypeError: if a leaf, a number or a glob has the wrong type.
        ValueError: if a number is out of range, a glob matches no leaf, or the total cannot be met.

    Example:
        >>> import torch
        >>> params = {"wide": torch.ones(20, 20), "narrow": torch.ones(20, 2)}
        >>> {name: float(x) for name, x in erdos_renyi(params, sparsity=0.9).items()}
        {'wide': 0.93, 'narrow': 0.6}

    References:
        Mocanu et al., 2018, arXiv:1707.04780, eq. 1 (plain).
        Evci et al., 2020, arXiv:1911.11134, section 3, "Sparsity distribution" (kernel).
    """

    def share(leaf: Tensor) -> float:
        sizes = leaf.shape if kernel else leaf.shape[:2]
        return sum(sizes) * math.prod(leaf.shape) / math.prod(sizes) if leaf.dim() else 1.0

    if not isinstance(kernel, bool):
        raise TypeError(f"kernel must be a bool, got {kernel!r}")
    return _allocate(params, sparsity, share, overrides, min_kept)


def _allocate(
    params: Tree,
    sparsity: Any,
    share: Callable[[Tensor], float],
    overrides: Any,
    min_kept: Any,
) -> Tree:
    """Return sparsities: the number of kept entries is proportional to `share`, within bounds."""
    leaves, treedef = flatten(params)
    require_tensors(leaves, treedef, "params")
    _check_bounds(min_kept, overrides)
    paths = tensor_paths(treedef, leaves)
    tensors = [leaf for leaf in leaves if leaf is not None]
    sizes = [leaf.numel() for leaf in tensors]
    fixed = _override_per_path(paths, overrides or {})
    high = [n if s is None else n - round(s * n) for n, s in zip(sizes, fixed, strict=True)]
    low = [min(min_kept, most) if s is None else most for most, s in zip(high, fixed, strict=True)]
    shares = [share(leaf) if leaf.numel() else 0.0 for leaf in tensors]
    total = as_scalar(sparsity, "sparsity")
    return unflatten_like(treedef, leaves, operators.apportion(total, sizes, shares, low, high))


def _override_per_path(paths: list[str], overrides: Mapping[str, float]) -> list[float | None]:
    """Return the sparsity of the first glob that matches each path, or `None`."""
    matches = {glob: predicate(glob) for glob in overrides}
    unused = [glob for glob in overrides if not any(matches[glob](path, None) for path in paths)]
    if unused:
        found, known = describe_first(unused, repr, ", "), describe_first(paths, repr, ", ")
        raise ValueError(
            f"overrides has globs that match no prunable leaf: {found}; a glob matches the whole "
            f"path, and the leaves are {known}"
        )
    return [
        next((overrides[glob] for glob in overrides if matches[glob](path, None)), None)
        for path in paths
    ]


def _check_bounds(min_kept: Any, overrides: Any) -> None:
    if isinstance(min_kept, bool) or not isinstance(min_kept, int):
        raise TypeError(f"min_kept must be an int, a number of entries, got {min_kept!r}")
    if min_kept < 0:
        raise ValueError(f"min_kept must not be negative, got {min_kept}")
    if overrides is None:
        return
    if not isinstance(overrides, Mapping) or not all(isinstance(glob, str) for glob in overrides):
        raise TypeError(
            f"overrides must be a dict from globs to sparsities, such as {{'head.*': 0.0}}, got "
            f"{overrides!r}"
        )
    for glob, number in overrides.items():
        if isinstance(number, bool) or not isinstance(number, int | float):
            raise TypeError(f"overrides[{glob!r}] must be an int or a float, got {number!r}")
        if not 0 <= number <= 1:
            hint = f"; did you mean {number / 100:g}?" if 2 <= number <= 100 else ""
            raise ValueError(f"overrides[{glob!r}] must be from 0 to 1, got {number}{hint}")
