"""Combinators: lift a pruning method from one tensor to a pytree.

`global_unstructured` ranks all leaves together, `layerwise` each alone. `find_threshold` and `masks_from_threshold`
are the two halves of the first, for whoever wants to keep, send or compare the cut.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from gprune.calls import together
from gprune.inputs import align
from gprune.methods import over_leaves, unwrap
from gprune.select import operators
from gprune.select.counts import as_scalar, one_of
from gprune.select.cut import Threshold
from gprune.select.errors import LeafError
from gprune.trees import Tree, TreeDef, fill, is_leaf, leaf_names, match
from gprune.unstructured import lowest_unstructured
from gprune.user_methods import each, joined, name_of, whole


@together
def global_unstructured(
    params: Tree,
    scores: Tree = None,
    *,
    masks: Tree = None,
    pruning_method: Callable[..., Tensor] = lowest_unstructured,
    **kwargs: Any,
) -> Tree:
    """Rank the entries of all leaves together and prune the least important.

    The pure counterpart of `torch.nn.utils.prune.global_unstructured`. Built-in methods stream over
    the leaves; a method of yours is called once, with the 1-D concatenation of all scores, in flat
    order, and of the prior masks (all `True` if there are none).

    Args:
        params: pytree of tensors; `None` where a leaf is not prunable (see `prunable`).
        scores: pytree of that structure and those shapes, larger = more important. `None` hands the
            method the parameters themselves, which `lowest_unstructured` ranks by magnitude.
        masks: prior bool masks of that structure; what they have pruned stays pruned.
        pruning_method: a method whose `PRUNING_TYPE` is `"unstructured"`, or a
            `functools.partial` of one.
        **kwargs: the method's own, such as `amount` (how many more, or the fraction of what is
            left), `sparsity` (the fraction of all prunable entries) or `seed`.

    Returns:
        Bool masks, `True` = keep, of the structure of `params`, `None` at its holes.

    Raises:
        TypeError: if the method is not unstructured, an argument of it is unknown or missing, or a
            leaf has an unfit type.
        ValueError: if an amount is out of range, or a structure or shape does not fit.

    Example:
        >>> import torch
        >>> params = {"a": torch.tensor([0.1, -2.0]), "b": torch.tensor([[-0.3, 4.0]])}
        >>> global_unstructured(params, amount=2)
        {'a': tensor([False,  True]), 'b': tensor([[False,  True]])}
    """
    method, bound = unwrap(pruning_method)
    if method.PRUNING_TYPE != "unstructured":
        raise TypeError(
            f"global_unstructured takes methods of PRUNING_TYPE 'unstructured', {name_of(method)} "
            f"is {method.PRUNING_TYPE!r}; use layerwise"
        )
    arguments = {**bound, **kwargs}
    if arguments.get("dim") is not None and over_leaves(method):
        raise ValueError("dim compares within each leaf, not globally; use layerwise")
    leaves, flat, treedef = align(params, scores, masks)
    run = over_leaves(method) or whole(joined, method, leaves)
    return fill(treedef, flat, _named(flat, treedef, run, leaves, **arguments))


@together
def layerwise(
    params: Tree,
    scores: Tree = None,
    *,
    masks: Tree = None,
    pruning_method: Callable[..., Tensor] = lowest_unstructured,
    **kwargs: Any,
) -> Tree:
    """Apply a pruning method to each leaf alone.

    Args:
        params: pytree of tensors; `None` where a leaf is not prunable (see `prunable`).
        scores: pytree of that structure and those shapes, larger = more important. `None` hands the
            method the parameters themselves, which `lowest_unstructured` ranks by magnitude.
        masks: prior bool masks of that structure; what they have pruned stays pruned.
        pruning_method: a method of any `PRUNING_TYPE`, or a `functools.partial` of one.
        **kwargs: the method's own. `amount` and `sparsity` may be trees of the structure of
            `params`, one number or 0-dim tensor per leaf.

    Returns:
        Bool masks, `True` = keep, of the structure of `params`, `None` at its holes.

    Raises:
        TypeError: if an argument of the method is unknown or missing, or a leaf has an unfit type.
        ValueError: if an amount is out of range, or a structure or shape does not fit.

    Example:
        >>> import torch
        >>> params = {"a": torch.tensor([0.1, -2.0]), "b": torch.tensor([-3.0, 4.0])}
        >>> layerwise(params, amount={"a": 0, "b": 1})
        {'a': tensor([True, True]), 'b': tensor([False,  True])}
    """
    method, bound = unwrap(pruning_method)
    leaves, flat, treedef = align(params, scores, masks, separately=True)
    arguments = {
        name: _per_leaf(value, name, flat, treedef) if name in ("amount", "sparsity") else value
        for name, value in {**bound, **kwargs}.items()
    }
    run = over_leaves(method) or whole(each, method, leaves)
    return fill(treedef, flat, _named(flat, treedef, run, leaves, **arguments))


@together
def find_threshold(
    params: Tree,
    scores: Tree = None,
    *,
    amount: float | Tensor | None = None,
    sparsity: float | Tensor | None = None,
    masks: Tree = None,
) -> Threshold:
    """Find where `global_unstructured` cuts, without making masks.

    Args:
        params: pytree of tensors; `None` where a leaf is not prunable.
        scores: pytree of that structure and those shapes, or `None` for magnitude.
        amount: how many candidates to prune (int), or the fraction of them (float, 0 to 1); a 1-D
            tensor of several costs two passes over the scores, however many they are.
        sparsity: the fraction of all prunable entries that is to be pruned, 0 to 1, or several.
        masks: prior bool masks of that structure.

    Returns:
        The cut: two tensors on the CPU, of the shape of the amount.

    Raises:
        TypeError: if both or neither of `amount` and `sparsity` are given, or a leaf is unfit.
        ValueError: if an amount is out of range, or a structure or shape does not fit.

    Example:
        >>> import torch
        >>> find_threshold([torch.tensor([3.0, -1.0, 2.0])], amount=2)
        Threshold(value=tensor(2., dtype=torch.float64), flat_index=tensor(2))
    """
    number, is_sparsity = one_of(amount, sparsity, "find_threshold")
    leaves, flat, treedef = align(params, scores, masks)
    numbers = as_scalar(number, "sparsity" if is_sparsity else "amount", several=True)
    arguments = leaves.scores, leaves.masks, numbers, leaves.unscored, is_sparsity
    return Threshold(*_named(flat, treedef, operators.find_threshold, *arguments))


@together
def masks_from_threshold(
    threshold: Threshold, params: Tree, scores: Tree = None, *, masks: Tree = None
) -> Tree:
    """Make the masks at a cut.

    Args:
        threshold: from `find_threshold`, or any value and flat index.
        params: pytree of tensors; `None` where a leaf is not prunable.
        scores: pytree of that structure and those shapes, or `None` for magnitude.
        masks: prior bool masks of that structure; what they have pruned stays pruned.

    Returns:
        Bool masks, `True` = keep, of the structure of `params`, `None` at its holes.

    Raises:
        TypeError: if the cut is not two numbers or 0-dim tensors, or a leaf is unfit.
        ValueError: if a structure or shape does not fit.

    Example:
        >>> import torch
        >>> masks_from_threshold(Threshold(2.0, -1), [torch.tensor([3.0, -1.0, 2.0])])
        [tensor([ True, False,  True])]
    """
    if not isinstance(threshold, tuple) or len(threshold) != 2:
        raise TypeError(f"cut must be a Threshold(value, index), got {threshold!r}")
    leaves, flat, treedef = align(params, scores, masks)
    meta = all(leaf.is_meta for leaf in leaves.scores)
    value = as_scalar(threshold[0], "threshold.value", meta=meta)
    index = as_scalar(threshold[1], "threshold.flat_index", meta=meta)
    if index.is_floating_point():
        raise TypeError(f"threshold.flat_index must be an integer, got {threshold[1]!r}")
    arguments = value, index, leaves.scores, leaves.masks, leaves.unscored
    return fill(treedef, flat, _named(flat, treedef, operators.masks_from_threshold, *arguments))


def num_to_prune(amount: float | Tensor, candidates: int) -> Tensor:
    """Count the candidates that an amount prunes: the law of counts.

    `amount` if it is an integer, else `round(amount * candidates)` in float64, half to even.

    Args:
        amount: an int or integer tensor (that many) or a float or floating tensor (a fraction of
            the candidates, 0 to 1); a tensor is 0-dim and taken at its exact value.
        candidates: how many entries there are to choose from.

    Returns:
        0-dim int64 tensor on the CPU.

    Raises:
        TypeError: if `amount` is not a number or a 0-dim tensor of numbers.
        ValueError: if `amount` is negative, NaN, a float above 1 or an int above `candidates`, or
            `candidates` is negative or beyond 64 bits.

    Example:
        >>> num_to_prune(0.5, 5), num_to_prune(3, 5)
        (tensor(2), tensor(3))
    """
    if isinstance(candidates, bool) or not isinstance(candidates, int):
        raise TypeError(f"candidates must be an int, got {candidates!r}")
    if not 0 <= candidates < 2**63:
        raise ValueError(f"candidates must be from 0 to 2**63 - 1, got {candidates}")
    k: Tensor = operators.num_to_prune(as_scalar(amount, "amount"), candidates)
    return k


def _named(
    flat: list[Any], treedef: TreeDef, run: Callable[..., Any], *args: Any, **kwargs: Any
) -> Any:
    """Run what may find one leaf at fault, and name the leaf by its path then."""
    try:
        return run(*args, **kwargs)
    except LeafError as error:
        names = leaf_names(treedef, error.what)
        path = [name for name, leaf in zip(names, flat, strict=True) if leaf is not None][
            error.leaf
        ]
        raise error.kind(f"{path}: {error.message}") from None


def _per_leaf(value: Any, name: str, flat: list[Any], treedef: TreeDef) -> Any:
    """Take a tree of numbers as a list with one per prunable leaf; a single number stays itself."""
    if is_leaf(value):
        return value
    numbers = match(value, treedef, name)
    missing = [
        path
        for path, leaf, number in zip(leaf_names(treedef, name), flat, numbers, strict=True)
        if leaf is not None and number is None
    ]
    if missing:
        raise ValueError(f"{', '.join(missing)} must be a number where params has a tensor")
    return [number for leaf, number in zip(flat, numbers, strict=True) if leaf is not None]
