"""Allocation: a sparsity for each leaf, so that all leaves together have a given sparsity.

    >>> import torch, gprune as gp
    >>> params = {"wide": torch.randn(20, 20), "narrow": torch.randn(20, 2)}
    >>> sparsities = gp.allocation.erdos_renyi(params, sparsity=0.9)
    >>> {name: float(sparsity) for name, sparsity in sparsities.items()}
    {'wide': 0.93, 'narrow': 0.6}
    >>> masks = gp.layerwise(params, sparsity=sparsities)

Pass the result as `sparsity=` to `gprune.layerwise`, or pass the function to a pruner as
`allocation=`.

    uniform      the same sparsity for every leaf
    erdos_renyi  lower for smaller leaves, by the sum of their sizes over the product (ERK, ER)
    owl          lower where scores have more outliers

The numbers of pruned entries per leaf are integers, and their sum is exactly
`round(sparsity * entries)`. If the sparsity rises, no leaf gets fewer pruned entries, so an
allocation can follow a schedule.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping
from typing import Any

from torch import Tensor

from gprune.inputs import LeafError, align, raise_with_path
from gprune.select import operators
from gprune.select.counts import as_nonnegative, as_scalar
from gprune.sharding import describe_call, load_dtensor_rules, raise_on_all_ranks
from gprune.trees import (
    Tree,
    describe_first,
    flatten,
    predicate,
    require_tensors,
    tensor_paths,
    unflatten_like,
)

__all__ = ["erdos_renyi", "owl", "uniform"]


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
            If that is impossible, an error is raised. So if `sparsity` may be 0, as at the start
            of a schedule, every override must be 0.
        min_kept: the least number of entries that a leaf without an override keeps. A leaf with
            fewer entries keeps them all.

    Returns:
        The sparsities, 0 to 1: a tree of the structure of `params` with 0-dim float64 tensors on
        the CPU. Pass it as `sparsity=` to `layerwise`, which then prunes exactly these counts.

    Raises:
        TypeError: if a leaf, a number or a glob has the wrong type.
        ValueError: if a number is out of range, a glob matches no leaf, or the total cannot be met.

    Example:
        >>> import torch, gprune as gp
        >>> params = {"fc": torch.ones(10, 10), "head": torch.ones(2, 10), "bias": None}
        >>> sparsities = gp.allocation.uniform(params, sparsity=0.5)
        >>> float(sparsities["fc"]), float(sparsities["head"]), sparsities["bias"]
        (0.5, 0.5, None)
        >>> float(gp.allocation.uniform(params, sparsity=0.5, overrides={"head": 0})["fc"])
        0.6
        >>> masks = gp.layerwise(params, sparsity=sparsities)
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

    The density, 1 - sparsity, of a leaf of shape (n, m, h, w) is

        min(1, ε (n + m + h + w) / (n m h w))  with the kernel ("ERK"),
        min(1, ε (n + m) / (n m))              without it ("ER").

    ε is the same for all leaves, and chosen so that the total is right. A vector has the density
    min(1, ε).

    Args:
        params: pytree of tensors; `None` where a leaf is not prunable.
        sparsity: the fraction of all prunable entries that is to be pruned, 0 to 1.
        kernel: whether all dims of a leaf count ("ERK"), or only the first two ("ER").
        overrides: the sparsities, 0 to 1, of leaves whose dotted path matches a glob; the first
            glob that matches a leaf counts. The other leaves are pruned so that the total is right.
            If that is impossible, an error is raised. So if `sparsity` may be 0, as at the start
            of a schedule, every override must be 0.
        min_kept: the least number of entries that a leaf without an override keeps. A leaf with
            fewer entries keeps them all.

    Returns:
        The sparsities, 0 to 1: a tree of the structure of `params` with 0-dim float64 tensors on
        the CPU. Pass it as `sparsity=` to `layerwise`, which then prunes exactly these counts.

    Raises:
        TypeError: if a leaf, a number or a glob has the wrong type.
        ValueError: if a number is out of range, a glob matches no leaf, or the total cannot be met.

    Example:
        >>> import torch, gprune as gp
        >>> params = {"wide": torch.ones(20, 20), "narrow": torch.ones(20, 2)}
        >>> {name: float(x) for name, x in gp.allocation.erdos_renyi(params, sparsity=0.9).items()}
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


@raise_on_all_ranks
def owl(
    params: Tree,
    scores: Tree,
    *,
    sparsity: float | Tensor,
    group: Callable[[str], Hashable],
    outlier: float = 5.0,
    width: float = 0.08,
) -> Tree:
    """Return a sparsity for each leaf, lower where the scores of its group have more outliers.

    The density, 1 - sparsity, of a group of leaves is

        c + 2 λ (D - min D) / (max D - min D), limited to the range 0 to 1.

    D is the fraction of the scores of the group that exceed M times their mean. c is the same for
    all groups, and chosen so that the total is right. If all D are equal, all groups have the same
    sparsity. The leaves of a group have the same sparsity, rounded to whole entries.

    Two passes read the scores of all leaves. They need memory for one leaf in float64.

    Args:
        params: pytree of tensors of any shape; `None` where a leaf is not prunable.
        scores: pytree of that structure and those shapes, from `scores.wanda` in the paper; finite
            and not negative.
        sparsity: the fraction of all prunable entries that is to be pruned, 0 to 1.
        group: a function of the dotted path of a leaf. The leaves for which it returns the same
            value are a group. In the paper a group is a transformer block.
        outlier: M: a score above M times the mean of its group is an outlier. Finite, at least 0.
        width: λ, half the difference between the highest and the lowest sparsity, 0 to 0.5.

    Returns:
        The sparsities, 0 to 1: a tree of the structure of `params` with 0-dim float64 tensors on
        the CPU. Pass it as `sparsity=` to `layerwise`, which then prunes exactly these counts.

    Raises:
        TypeError: if a leaf or a number has the wrong type, or `group` is not a function or returns
            what cannot be hashed.
        ValueError: if a number is out of range, a structure or shape differs, there is no prunable
            leaf, scores are negative or not finite, or their sum overflows.

    Example:
        >>> import torch, gprune as gp
        >>> params = {
        ...     f"layers.{i}.{name}.weight": torch.ones(10, 10)
        ...     for i in range(2)
        ...     for name in ("attention", "mlp")
        ... }
        >>> scores = {path: leaf.clone() for path, leaf in params.items()}
        >>> scores["layers.0.mlp.weight"][0, 0] = 100  # an outlier in the first block
        >>> block = lambda path: path.split(".")[1]
        >>> for path, x in gp.allocation.owl(params, scores, sparsity=0.5, group=block).items():
        ...     print(path, float(x))
        layers.0.attention.weight 0.42
        layers.0.mlp.weight 0.42
        layers.1.attention.weight 0.58
        layers.1.mlp.weight 0.58

    References:
        Yin et al., 2024, arXiv:2310.05175, section 3.
    """
    outlier = as_nonnegative(outlier, "outlier")
    width = as_nonnegative(width, "width", most=0.5)
    if not callable(group):
        raise TypeError(f"group must be a function of a path, got {group!r}")
    if scores is None:
        raise TypeError("scores must be tensors like params, got None; pass those of scores.wanda")
    total = as_scalar(sparsity, "sparsity")
    leaves = align(params, scores, None)
    groups = _number_groups(leaves.paths(), group)
    call = describe_call("owl", leaves.ranked_by, lambda: leaves.names(""))
    load_dtensor_rules()
    try:
        relative = operators.relative_outliers(leaves.ranked_by, groups, outlier, call)
    except LeafError as error:
        raise_with_path(error, leaves)
    sizes = [leaf.numel() for leaf in leaves.params]
    shares = [float(size) for size in sizes]
    shifts = relative * relative.new_tensor(shares) * (2 * width)
    found = operators.apportion(total, sizes, shares, [0] * len(sizes), sizes, shifts)
    return unflatten_like(leaves.treedef, leaves.flat, found)


def _number_groups(paths: list[str], group: Callable[[str], Hashable]) -> list[int]:
    """Return the number of the group of each path, from 0."""
    numbers: dict[Hashable, int] = {}
    found = []
    for path in paths:
        key = group(path)
        try:
            found.append(numbers.setdefault(key, len(numbers)))
        except TypeError:
            raise TypeError(f"group({path!r}) must return a hashable value, got {key!r}") from None
    return found


def _allocate(
    params: Tree,
    sparsity: Any,
    share: Callable[[Tensor], float],
    overrides: Any,
    min_kept: Any,
) -> Tree:
    """Return sparsities with which each leaf keeps entries in proportion to `share`, in bounds."""
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
