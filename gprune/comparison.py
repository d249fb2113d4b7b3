"""Who is compared with whom: all leaves together, each leaf alone, or groups within a leaf.

The methods come to this, of entries, channels or blocks alike: their arguments, checked, and a call
of an operator.
"""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from gprune.inputs import Leaves, require_whole
from gprune.select import operators
from gprune.select.counts import as_scalar, one_of
from gprune.trees import is_leaf


def rank(
    leaves: Leaves,
    caller: str,
    amount: Any,
    sparsity: Any,
    dim: Any,
    *,
    absolute: bool = False,
    seed: Tensor | None = None,
) -> list[Tensor]:
    """Prune the lowest.

    Args:
        leaves: the leaves, and whether each is ranked alone.
        caller: the public method to name in an error.
        amount: an amount, or a list of one for each leaf that is ranked alone, or `None`.
        sparsity: the same; exactly one of the two is given.
        dim: the dims that are compared within a leaf; `None` compares everything.
        absolute: whether to rank by absolute value.
        seed: ranks by random draws if given.

    Returns:
        The masks, one per leaf.

    Raises:
        TypeError: if the number is a tree and the leaves are ranked together.
        ValueError: if `dim` is given for leaves that are sharded.
    """
    number, is_sparsity = one_of(amount, sparsity, caller)
    name = "sparsity" if is_sparsity else "amount"
    if not leaves.separately and not is_leaf(number):
        raise TypeError(f"{name} must be one number for all leaves; a tree is for layerwise")
    numbers = number if leaves.separately and isinstance(number, list) else [number]
    if leaves.separately and len(numbers) == 1:
        numbers = numbers * len(leaves.scores)
    amounts = [as_scalar(one, name) for one in numbers]
    if dim is not None:
        require_whole(leaves.scores, "dim")
        if seed is not None:  # drawn by the flat index in the leaf, however it is grouped
            leaves = leaves._replace(scores=operators.random_scores(leaves.scores, seed))
        return [
            _within(leaves, leaf, amount, dim, absolute, is_sparsity)
            for leaf, amount in enumerate(amounts)
        ]
    kept: list[Tensor] = operators.select(
        leaves.scores, leaves.masks, amounts, seed, absolute, is_sparsity
    )
    return kept


def _within(
    leaves: Leaves,
    leaf: int,
    amount: Tensor,
    dim: Any,
    absolute: bool,
    is_sparsity: bool,
) -> Tensor:
    """Compare within one leaf: the compared dims last, the others as the rows of a matrix."""
    scores = leaves.scores[leaf]
    compared = _dims(dim, scores)
    order = [d for d in range(scores.dim()) if d not in compared] + compared
    moved = [x.permute(order) for x in (scores, *leaves.masks[leaf : leaf + 1])]
    size = math.prod(scores.shape[d] for d in compared)
    num_rows = math.prod(moved[0].shape[: scores.dim() - len(compared)])
    matrix, *prior = (x.reshape(num_rows, size) for x in moved)
    kept: Tensor = operators.select_rows(matrix, prior, amount, absolute, is_sparsity)
    back = sorted(range(len(order)), key=order.__getitem__)
    return kept.view(moved[0].shape).permute(back).contiguous()


def _dims(dim: Any, scores: Tensor) -> list[int]:
    """Check the dims against a leaf, and give them from 0 and ascending."""
    given = list(dim) if isinstance(dim, tuple | list) else [dim]
    if not given or any(isinstance(d, bool) or not isinstance(d, int) for d in given):
        raise TypeError(f"dim must be an int or a tuple of ints, got {dim!r}")
    if any(not -scores.dim() <= d < scores.dim() for d in given):
        raise ValueError(
            f"dim must be dims of every leaf, got {dim!r} for a leaf of shape {tuple(scores.shape)}"
        )
    compared = sorted({d % scores.dim() for d in given})
    if len(compared) < len(given):
        raise ValueError(f"dim must name each dim once, got {dim!r}")
    return compared
