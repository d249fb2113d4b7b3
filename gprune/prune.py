"""Combinators: apply a pruning method to a pytree.

`global_unstructured` ranks the entries of all leaves together, `layerwise` ranks each leaf alone.
`find_threshold` finds the threshold of `global_unstructured`, and `masks_from_threshold` makes the
same masks from it. They are for programs that keep, send or compare the threshold.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gprune.inputs import RANKABLE_DTYPES, LeafError, Leaves, align, raise_with_path
from gprune.methods import lowest_unstructured
from gprune.methods.method import NUMBER_ARGUMENTS, check_arguments, unwrap_partials
from gprune.select import operators
from gprune.select.counts import amount_or_sparsity, as_scalar
from gprune.sharding import describe_call, load_dtensor_rules, raise_on_all_ranks
from gprune.trees import Tree, describe_first, is_single_leaf, leaves_like, unflatten_like


class Threshold(NamedTuple):
    """The score and the flat index of the last pruned entry, which determine all masks of a model.

    All candidates are ordered by (score, flat index), ascending. A candidate is pruned if its score
    is below `value`, or if its score equals `value` and its flat index is at most `flat_index`. The
    flat index counts the entries of all ranked leaves in pytree order: it goes on from one leaf to
    the next. A threshold that prunes nothing is `(-inf, -1)`. If the score of the last pruned entry
    is NaN, so is `value`.

    Attributes:
        value: float64 tensor, 0-dim, or 1-D for several amounts. It is on the CPU, or on `meta` if
            a leaf is.
        flat_index: int64 tensor of the same shape, on the same device.

    Example:
        >>> import torch, gprune as gp
        >>> params = [torch.tensor([3.0, -1.0, 2.0])]
        >>> threshold = gp.find_threshold(params, amount=2)
        >>> threshold
        Threshold(value=tensor(2., dtype=torch.float64), flat_index=tensor(2))
        >>> gp.masks_from_threshold(threshold, params)
        [tensor([ True, False, False])]
    """

    value: Tensor
    flat_index: Tensor


torch.serialization.add_safe_globals([Threshold])  # so that torch.load reads it by default


@raise_on_all_ranks
def global_unstructured(
    params: Tree,
    scores: Tree = None,
    *,
    masks: Tree = None,
    pruning_method: Callable[..., Tensor] = lowest_unstructured,
    min_per_leaf: float | Tensor | None = None,
    **kwargs: Any,
) -> Tree:
    """Return masks that prune the entries with the lowest scores of all leaves together.

    This is the pure counterpart of `torch.nn.utils.prune.global_unstructured`. The methods of
    gprune stream over the leaves. A method of yours is called once, with the 1-D concatenations of
    all parameters, all scores and all prior masks.

    A leaf whose scores are low may lose all of its entries. With `min_per_leaf` every leaf keeps at
    least that many: the entries that are next in the ranking are pruned instead, and the total
    stays exact.

    Args:
        params: pytree of tensors; `None` where a leaf is not prunable (see `prunable`).
        scores: pytree of that structure and those shapes, larger = more important. Without scores
            the magnitude of the parameters ranks.
        masks: prior bool masks of that structure; what they have pruned stays pruned. A leaf whose
            mask is `None` is not ranked, and its mask in the result is `None`. `masks=None` means
            that nothing is pruned yet.
        pruning_method: a method whose `PRUNING_TYPE` is `"unstructured"`, or a
            `functools.partial` of one.
        min_per_leaf: how many entries each leaf keeps at least (int), or the fraction of its
            entries (float, 0 to 1, rounded half to even, but at least one entry if it is above 0).
            A smaller leaf keeps all, and a leaf that has fewer left by its prior mask keeps those.
            Only for the methods of gprune. By default a leaf may lose all.
        **kwargs: the arguments of the method. `amount` is how many more entries to prune (int), or
            the fraction of the candidates (float, 0 to 1). `sparsity` is the fraction of all
            prunable entries that is pruned after the call, 0 to 1.

    Returns:
        Bool masks of the structure of `params`, `True` = keep, `None` for leaves that are not
        ranked.

    Raises:
        TypeError: if the method is not unstructured, an argument of it is unknown or missing, or a
            leaf has the wrong type.
        ValueError: if a number is out of range, a structure or shape differs, there is no leaf
            to rank, or `min_per_leaf` does not allow the total.

    Example:
        >>> import torch, gprune as gp
        >>> params = {"a": torch.tensor([0.1, -2.0]), "b": torch.tensor([[-0.3, 4.0]])}
        >>> gp.global_unstructured(params, amount=2)
        {'a': tensor([False,  True]), 'b': tensor([[False,  True]])}
        >>> params = {"a": torch.tensor([0.1, 0.2]), "b": torch.tensor([[3.0, 4.0]])}
        >>> gp.global_unstructured(params, amount=2, min_per_leaf=1)
        {'a': tensor([False,  True]), 'b': tensor([[False,  True]])}
    """
    method, bound = unwrap_partials(pruning_method)
    if method.PRUNING_TYPE != "unstructured":
        raise TypeError(
            "global_unstructured takes methods of PRUNING_TYPE 'unstructured', "
            f"but {method.__name__} is {method.PRUNING_TYPE!r}; use layerwise"
        )
    arguments = {**bound, **kwargs}
    leaves = align(params, scores, masks)
    if min_per_leaf is not None:
        leaves = leaves._replace(min_per_leaf=as_scalar(min_per_leaf, "min_per_leaf"))
    try:
        kept = method.select(leaves, per_leaf=False, **arguments)
    except LeafError as error:
        raise_with_path(error, leaves)
    except TypeError:
        check_arguments(method, arguments)
        raise
    return unflatten_like(leaves.treedef, leaves.flat, kept)


@raise_on_all_ranks
def layerwise(
    params: Tree,
    scores: Tree = None,
    *,
    masks: Tree = None,
    pruning_method: Callable[..., Tensor] = lowest_unstructured,
    **kwargs: Any,
) -> Tree:
    """Return the masks that a pruning method gives for each leaf by itself.

    Args:
        params: pytree of tensors; `None` where a leaf is not prunable (see `prunable`).
        scores: pytree of that structure and those shapes, larger = more important. Without scores
            the magnitude of the parameters ranks.
        masks: prior bool masks of that structure; what they have pruned stays pruned. A leaf whose
            mask is `None` is not ranked, and its mask in the result is `None`. `masks=None` means
            that nothing is pruned yet.
        pruning_method: a method of any `PRUNING_TYPE`, or a `functools.partial` of one.
        **kwargs: the arguments of the method. `amount` and `sparsity` may be trees of the structure
            of `params`, with one number or 0-dim tensor per leaf; numbers at leaves that are not
            ranked are ignored.

    Returns:
        Bool masks of the structure of `params`, `True` = keep, `None` for leaves that are not
        ranked.

    Raises:
        TypeError: if an argument of the method is unknown or missing, or a leaf has the wrong type.
        ValueError: if a number is out of range, a structure or shape differs, or there is no leaf
            to rank.

    Example:
        >>> import torch, gprune as gp
        >>> params = {"a": torch.tensor([0.1, -2.0]), "b": torch.tensor([-3.0, 4.0])}
        >>> gp.layerwise(params, amount={"a": 0, "b": 1})
        {'a': tensor([True, True]), 'b': tensor([False,  True])}
    """
    method, bound = unwrap_partials(pruning_method)
    leaves = align(params, scores, masks)
    arguments = {
        name: _numbers_per_leaf(value, name, leaves) if name in NUMBER_ARGUMENTS else value
        for name, value in {**bound, **kwargs}.items()
    }
    try:
        kept = method.select(leaves, per_leaf=True, **arguments)
    except LeafError as error:
        raise_with_path(error, leaves)
    except TypeError:
        check_arguments(method, arguments)
        raise
    return unflatten_like(leaves.treedef, leaves.flat, kept)


@raise_on_all_ranks
def find_threshold(
    params: Tree,
    scores: Tree = None,
    *,
    amount: float | Tensor | None = None,
    sparsity: float | Tensor | None = None,
    masks: Tree = None,
) -> Threshold:
    """Return the threshold of `global_unstructured`, without making masks.

    It is the score and the flat index of the k-th candidate in the order (score, flat index).

    Args:
        params: pytree of tensors; `None` where a leaf is not prunable.
        scores: pytree of that structure and those shapes, or `None` for magnitude.
        amount: how many candidates to prune (int), or the fraction of them (float, 0 to 1); or a
            1-D tensor of several amounts, whose thresholds are found in one search.
        sparsity: the fraction of all prunable entries that is to be pruned, 0 to 1; or a 1-D tensor
            of several sparsities.
        masks: prior bool masks of that structure, as in `global_unstructured`.

    Returns:
        The threshold: two tensors of the shape of the amount.

    Raises:
        TypeError: if both or neither of `amount` and `sparsity` are given, or a leaf has the wrong
            type.
        ValueError: if a number is out of range, a structure or shape differs, or there is no leaf
            to rank.

    Example:
        >>> import torch, gprune as gp
        >>> gp.find_threshold([torch.tensor([3.0, -1.0, 2.0])], amount=2)
        Threshold(value=tensor(2., dtype=torch.float64), flat_index=tensor(2))
    """
    leaves = align(params, scores, masks)
    number, is_sparsity = amount_or_sparsity(amount, sparsity, "find_threshold")
    numbers = as_scalar(number, "sparsity" if is_sparsity else "amount", several=True)
    call = describe_call("find_threshold", leaves.ranked_by, lambda: leaves.names(""))
    absolute = leaves.scores is None
    load_dtensor_rules()
    try:
        found = operators.find_threshold(
            leaves.ranked_by, leaves.masks, numbers, absolute, is_sparsity, call
        )
    except LeafError as error:
        raise_with_path(error, leaves)
    return Threshold(*found)


@raise_on_all_ranks
def masks_from_threshold(
    threshold: Threshold, params: Tree, scores: Tree = None, *, masks: Tree = None
) -> Tree:
    """Return the masks that a threshold determines.

    A candidate with the score s and the flat index i is pruned if s < value, or if s = value and
    i ≤ flat_index.

    Args:
        threshold: from `find_threshold`, or any value and flat index: numbers, 0-dim tensors, or
            1-D tensors of one length.
        params: pytree of tensors; `None` where a leaf is not prunable.
        scores: pytree of that structure and those shapes, or `None` for magnitude.
        masks: prior bool masks of that structure, as in `global_unstructured`.

    Returns:
        Bool masks of the structure of `params`, `True` = keep, `None` for leaves that are not
        ranked. A 1-D threshold gives a list of such trees, one per entry.

    Raises:
        TypeError: if the threshold is not two numbers or tensors, or a leaf has the wrong type.
        ValueError: if a structure or shape differs, or there is no leaf to rank.

    Example:
        >>> import torch, gprune as gp
        >>> params = [torch.tensor([3.0, -1.0, 2.0])]
        >>> gp.masks_from_threshold(gp.Threshold(2.0, -1), params)
        [tensor([ True, False,  True])]
        >>> threshold = gp.find_threshold(params, amount=torch.tensor([1, 2]))
        >>> gp.masks_from_threshold(threshold, params)
        [[tensor([ True, False,  True])], [tensor([ True, False, False])]]
    """
    if not isinstance(threshold, tuple) or len(threshold) != 2:
        got = type(threshold).__name__
        raise TypeError(f"threshold must be a Threshold(value, flat_index), got {got}")
    leaves = align(params, scores, masks)
    meta = all(leaf.is_meta for leaf in leaves.params)
    value = as_scalar(threshold[0], "threshold.value", meta=meta, several=True)
    index = as_scalar(threshold[1], "threshold.flat_index", meta=meta, several=True)
    if index.is_floating_point():
        raise TypeError(f"threshold.flat_index must be an integer, got {threshold[1]!r}")
    if value.dtype not in RANKABLE_DTYPES:
        raise TypeError(f"threshold.value has dtype {value.dtype}; cast it to float64")
    if value.shape != index.shape:
        raise ValueError(
            f"threshold.flat_index has shape {tuple(index.shape)}, "
            f"threshold.value has {tuple(value.shape)}"
        )
    if value.dim() == 1:
        pairs = zip(value.unbind(), index.unbind(), strict=True)
        return [_masks_of_one(*pair, leaves) for pair in pairs]
    return _masks_of_one(value, index, leaves)


def num_to_prune(amount: float | Tensor, candidates: int) -> Tensor:
    """Return how many candidates an amount prunes: k = round(amount * candidates).

    The product is computed in float64 and rounded half to even. If `amount` is an integer, k is
    `amount` itself.

    Args:
        amount: an integer is that many candidates; a float is a fraction of them, 0 to 1. Both may
            be 0-dim tensors, which are taken at their exact value.
        candidates: how many entries there are to choose from.

    Returns:
        0-dim int64 tensor on the CPU.

    Raises:
        TypeError: if `amount` is not a number or a 0-dim tensor of numbers.
        ValueError: if `amount` is negative, NaN, a float above 1 or an int above `candidates`, or
            `candidates` is negative or beyond 64 bits.

    Example:
        >>> import gprune as gp
        >>> gp.num_to_prune(0.5, 5), gp.num_to_prune(3, 5)
        (tensor(2), tensor(3))
    """
    if isinstance(candidates, bool) or not isinstance(candidates, int):
        raise TypeError(f"candidates must be an int, got {candidates!r}")
    if not 0 <= candidates < 2**63:
        raise ValueError(f"candidates must be from 0 to 2**63 - 1, got {candidates}")
    k: Tensor = operators.num_to_prune(as_scalar(amount, "amount"), candidates)
    return k


def _masks_of_one(value: Tensor, flat_index: Tensor, leaves: Leaves) -> Tree:
    """Make the masks of a 0-dim threshold."""
    call = describe_call("masks_from_threshold", leaves.ranked_by, lambda: leaves.names(""))
    absolute = leaves.scores is None
    load_dtensor_rules()
    try:
        kept = operators.masks_from_threshold(
            value, flat_index, leaves.ranked_by, leaves.masks, absolute, call
        )
    except LeafError as error:
        raise_with_path(error, leaves)
    return unflatten_like(leaves.treedef, leaves.flat, kept)


def _numbers_per_leaf(value: Any, name: str, leaves: Leaves) -> list[Any] | None:
    """Return one number per ranked leaf, from a single number or a tree of them."""
    if value is None:
        return None
    if is_single_leaf(value):
        return [value] * len(leaves.params)
    numbers = leaves_like(value, leaves.treedef, name)
    pairs = zip(numbers, leaves.flat, strict=True)
    numbers = [number for number, leaf in pairs if leaf is not None]
    missing = [i for i, number in enumerate(numbers) if number is None]
    if missing:
        found = describe_first(missing, leaves.names(name).__getitem__, ", ")
        raise ValueError(f"{found} must be a number where params has a tensor")
    return numbers
