"""Allocation: how much of a sparsity each leaf takes. Trees of sparsities for `layerwise`.

The leaves' counts are whole numbers that sum to exactly `round(sparsity * entries)`, and none of
them falls when the sparsity rises, so an allocation can follow a schedule.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from gprune.select import operators
from gprune.select.counts import as_scalar
from gprune.trees import Tree, dotted_paths, fill, flatten, predicate, require_tensors

__all__ = ["erdos_renyi", "uniform"]


def uniform(
    params: Tree,
    *,
    sparsity: float | Tensor,
    overrides: Mapping[str, float] | None = None,
    min_kept: int = 0,
) -> Tree:
    """Give every leaf the same sparsity, as nearly as whole numbers allow.

    Args:
        params: pytree of tensors of any shape; `None` where a leaf is not prunable.
        sparsity: the fraction of all prunable entries that is to be pruned, 0 to 1.
        overrides: sparsities, 0 to 1, by glob on the dotted path, the first that matches; the
            other leaves make up for them. Under a schedule that starts at 0 only 0 can be met.
        min_kept: how many entries a leaf without an override keeps at least; all, if it has no
            more.

    Returns:
        0-dim float64 tensors on the CPU, of the structure of `params`; for `sparsity=` of
        `layerwise`, which prunes exactly the apportioned counts.

    Raises:
        TypeError: if a leaf, a number or a glob is not of the right type.
        ValueError: if a number is out of range, a glob matches nothing, or the total cannot be met.

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
    """Give a leaf a density in proportion to the sum of its sizes over their product.

    With the kernel, the density of a leaf of shape (n, m, h, w) is ε (n + m + h + w) / (n m h w);
    in the plain form it is ε (n + m) / (n m). A leaf whose density would exceed 1 is dense, and the
    others share what is left: one ε for all of them makes the total right. A leaf of one dimension
    has the density min(1, ε).

    Args:
        params: pytree of tensors; `None` where a leaf is not prunable.
        sparsity: the fraction of all prunable entries that is to be pruned, 0 to 1.
        kernel: whether all sizes of a leaf count ("ERK"), or the first two alone ("ER").
        overrides: sparsities, 0 to 1, by glob on the dotted path, the first that matches; the
            other leaves make up for them. Under a schedule that starts at 0 only 0 can be met.
        min_kept: how many entries a leaf without an override keeps at least; all, if it has no
            more.

    Returns:
        0-dim float64 tensors on the CPU, of the structure of `params`; for `sparsity=` of
        `layerwise`, which prunes exactly the apportioned counts.

    Raises:
        TypeError: if a leaf, a number or a glob is not of the right type.
        ValueError: if a number is out of range, a glob matches nothing, or the total cannot be met.

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
    """Apportion what is kept in proportion to shares, within bounds."""
    leaves, treedef = flatten(params)
    require_tensors(leaves, treedef, "params")
    _check(min_kept, overrides)
    paths = [p for p, x in zip(dotted_paths(treedef), leaves, strict=True) if x is not None]
    tensors = [leaf for leaf in leaves if leaf is not None]
    sizes = [leaf.numel() for leaf in tensors]
    own = _own(paths, overrides or {})
    high = [n if s is None else n - round(s * n) for n, s in zip(sizes, own, strict=True)]
    low = [min(min_kept, most) if s is None else most for most, s in zip(high, own, strict=True)]
    shares = [share(leaf) if leaf.numel() else 0.0 for leaf in tensors]
    total = as_scalar(sparsity, "sparsity")
    return fill(treedef, leaves, operators.apportion(total, sizes, shares, low, high))


def _own(paths: list[str], overrides: Mapping[str, float]) -> list[float | None]:
    """Give each path its own sparsity, `None` where no glob matches."""
    chosen = {glob: predicate(glob) for glob in overrides}
    idle = [glob for glob in overrides if not any(chosen[glob](path, None) for path in paths)]
    if idle:
        raise ValueError(f"overrides match no prunable leaf: {', '.join(map(repr, idle))}")
    return [
        next((overrides[glob] for glob in overrides if chosen[glob](path, None)), None)
        for path in paths
    ]


def _check(min_kept: Any, overrides: Any) -> None:
    if isinstance(min_kept, bool) or not isinstance(min_kept, int):
        raise TypeError(f"min_kept must be an int, got {min_kept!r}")
    if min_kept < 0:
        raise ValueError(f"min_kept must not be negative, got {min_kept}")
    if overrides is None:
        return
    if not isinstance(overrides, Mapping) or not all(isinstance(glob, str) for glob in overrides):
        raise TypeError(f"overrides must map globs to sparsities, got {overrides!r}")
    for glob, number in overrides.items():
        if isinstance(number, bool) or not isinstance(number, int | float):
            raise TypeError(f"overrides[{glob!r}] must be a number, got {number!r}")
        if not 0 <= number <= 1:
            raise ValueError(f"overrides[{glob!r}] must be from 0 to 1, got {number}")
