"""Unstructured methods: pure functions of one tensor that decide which single entries go.

A method is `method(scores, mask=None, **kwargs) -> mask` with a `PRUNING_TYPE`. The methods here
also know how to rank many leaves together without joining them; that is their `over_leaves`
attribute, `over_leaves(leaves, **kwargs) -> masks`, which the combinators call and of which the
method itself is the case of one leaf.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

from gprune.comparison import rank
from gprune.leaves import Leaves, check_one, is_sharded
from gprune.selection.amounts import as_seed

Method = TypeVar("Method", bound=Callable[..., Tensor])

PRUNING_TYPES = ("unstructured", "structured", "semi_structured")


def pruning_method(kind: str) -> Callable[[Method], Method]:
    """Mark a function of one tensor as a pruning method.

    The function is called as `method(scores, mask, **kwargs)` and returns a bool mask of the shape
    of `scores`. `global_unstructured` calls it once, with the 1-D concatenation of all scores and
    prior masks; `layerwise` once per leaf.

    Args:
        kind: `"unstructured"` if single entries are chosen, else `"structured"` or
            `"semi_structured"`, which `layerwise` takes and `global_unstructured` refuses.

    Returns:
        A decorator that sets `PRUNING_TYPE` and returns the function itself.

    Raises:
        ValueError: if `kind` is none of these.

    Example:
        >>> @pruning_method("unstructured")
        ... def negative(scores, mask=None):
        ...     return scores >= 0
        >>> negative.PRUNING_TYPE
        'unstructured'
    """
    if kind not in PRUNING_TYPES:
        raise ValueError(f"a pruning method is one of {', '.join(PRUNING_TYPES)}, got {kind!r}")

    def decorate(function: Method) -> Method:
        function.PRUNING_TYPE = kind  # type: ignore[attr-defined]
        return function

    return decorate


def over_leaves(method: Any) -> Callable[..., list[Tensor]] | None:
    """Give what runs a built-in method over many leaves; `None` for any other method.

    A function that wraps a built-in one may have copied its attributes, but it is another method.

    Args:
        method: a marked function.

    Returns:
        The function of `Leaves` and the method's arguments.
    """
    function = getattr(method, "over_leaves", None)
    return function if getattr(function, "method", None) is method else None


def unwrap(method: Any) -> tuple[Any, dict[str, Any]]:
    """Look through `functools.partial` at the method inside and the arguments that it holds.

    Args:
        method: a marked function, or a partial of one.

    Returns:
        The marked function and its bound keyword arguments.

    Raises:
        TypeError: if the function is not marked, or the partial binds positional arguments.
    """
    bound: dict[str, Any] = {}
    while isinstance(method, functools.partial):
        if method.args:
            raise TypeError("a partial of a pruning method must bind keyword arguments only")
        bound = {**method.keywords, **bound}
        method = method.func
    if isinstance(method, type):
        raise TypeError(
            f"{method.__name__} is a class, a pruning method is a function; use "
            "gprune.l1_unstructured and its like, or gprune.adapter for the classes of torch"
        )
    if not hasattr(method, "PRUNING_TYPE"):
        name = getattr(method, "__name__", repr(method))
        raise TypeError(
            f'{name} is not a pruning method; mark it with @gprune.pruning_method("unstructured")'
        )
    return method, bound


def _over_leaves(
    function: Callable[..., list[Tensor]],
) -> Callable[[Method], Method]:
    """Mark a built-in method and give it its `over_leaves`."""

    def decorate(method: Method) -> Method:
        function.__qualname__ = method.__qualname__  # what Python's own TypeErrors name
        function.method = method  # type: ignore[attr-defined]
        method.over_leaves = function  # type: ignore[attr-defined]
        return pruning_method("unstructured")(method)

    return decorate


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


@_over_leaves(_lowest)
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


@_over_leaves(_l1)
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


@_over_leaves(_random)
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


@_over_leaves(_identity)
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
