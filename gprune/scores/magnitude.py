"""Magnitude: |θ|, the score that needs no data."""

from __future__ import annotations

import torch
from torch import Tensor

from gprune.inputs import RANKABLE_DTYPES
from gprune.trees import Tree, describe_first, flatten, leaf_names, require_tensors, unflatten_like


def magnitude(params: Tree) -> Tree:
    """Score each entry by its absolute value: |θ|.

    `global_unstructured(params, amount=k)` ranks by magnitude too, without storing the scores.

    It sends no messages between ranks: with DTensors, only the rank with an error raises it.

    Args:
        params: pytree of tensors of any shape; `None` stays `None`.

    Returns:
        Detached scores of that structure, in the parameters' dtype and unit. Scores of integers are
        int64, so that no absolute value overflows. The only exception is -2^63, which selection
        refuses.

    Raises:
        TypeError: if a leaf is neither a tensor nor `None`, or has a dtype that cannot be ranked.

    Example:
        >>> import torch, gprune as gp
        >>> gp.scores.magnitude({"bias": None, "weight": torch.tensor([-2.0, 1.0])})
        {'bias': None, 'weight': tensor([2., 1.])}

    References:
        Han et al., 2015, arXiv:1506.02626, section 3.
    """
    leaves, treedef = flatten(params)
    require_tensors(leaves, treedef, "params")
    unfit = [
        i
        for i, leaf in enumerate(leaves)
        if leaf is not None and leaf.dtype not in RANKABLE_DTYPES and not leaf.is_complex()
    ]
    if unfit:
        names = leaf_names(treedef, "params")
        problem = "whose magnitude cannot be ranked; cast it"
        raise TypeError(
            describe_first(unfit, lambda i: f"{names[i]} has dtype {leaves[i].dtype}, {problem}")
        )
    return unflatten_like(treedef, leaves, [_absolute(leaf) for leaf in leaves if leaf is not None])


def _absolute(leaf: Tensor) -> Tensor:
    integer = not (leaf.is_floating_point() or leaf.is_complex())
    return (leaf.detach().to(torch.int64) if integer else leaf.detach()).abs()
