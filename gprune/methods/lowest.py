"""Prune the lowest scores: of all leaves, of each leaf alone, or of each group within a leaf.

`select_lowest` ranks single entries, or one score for each channel or block. `select_rows` ranks
the entries of every row of a matrix, for `dim=` and for `n_of_m`.
"""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from gprune.inputs import LeafError, Leaves
from gprune.methods.dims import dims_per_leaf, single_entry_problem
from gprune.select import operators
from gprune.select.counts import amount_or_sparsity, as_scalar
from gprune.sharding import describe_call, load_dtensor_rules, require_unsharded
from gprune.trees import is_single_leaf


def select_lowest(
    leaves: Leaves,
    amount: Any,
    sparsity: Any,
    dim: Any = None,
    *,
    per_leaf: bool,
    method: str,
    absolute: bool = False,
    seed: Tensor | None = None,
) -> list[Tensor]:
    """Return the masks that prune the lowest scores.

    Args:
        leaves: the leaves, ranked by `leaves.ranked_by`.
        amount: a number, a list with one number per leaf if `per_leaf` is true, or `None`.
        sparsity: the same. Exactly one of the two must be given.
        dim: the dims of the groups within which entries are ranked; `None` for no groups.
        per_leaf: whether each leaf is ranked alone.
        method: the public method to name in an error.
        absolute: whether to rank by absolute value, also if there are scores.
        seed: if given, the ranking is by random draws instead of `leaves.ranked_by`.

    Returns:
        The masks, one per leaf.

    Raises:
        TypeError: if a number has the wrong type.
        ValueError: if `dim` is given for a global ranking, or with DTensors.
        LeafError: if a number or a dim does not fit one leaf.
    """
    number, is_sparsity = amount_or_sparsity(amount, sparsity, method)
    name = "sparsity" if is_sparsity else "amount"
    if not per_leaf and not is_single_leaf(number):
        raise TypeError(
            f"one ranking of all leaves takes one {name} for all leaves, got {number!r}; "
            "layerwise takes one per leaf"
        )
    numbers = number if per_leaf else [number]
    if all(one is numbers[0] for one in numbers):  # one number for all leaves is converted once
        amounts = [as_scalar(numbers[0], name)] * len(numbers)
    else:
        amounts = [as_scalar(one, name) for one in numbers]
    scores = leaves.ranked_by
    absolute = absolute or (leaves.scores is None and seed is None)
    if dim is None:
        call = describe_call(method, scores, lambda: leaves.names(""))
        load_dtensor_rules()
        kept: list[Tensor] = operators.select(
            scores, leaves.masks, amounts, seed, leaves.min_per_leaf, absolute, is_sparsity, call
        )
        return kept
    if not per_leaf:
        raise ValueError(
            "dim ranks within groups of a leaf, and one ranking of all leaves has no groups; "
            "use layerwise"
        )
    require_unsharded(scores, f"{method} with dim=")
    if seed is not None:  # draws depend on the flat index in the leaf, not on the groups
        scores = operators.random_scores(scores, seed, "")  # on the CPU if a device has no float64
    masks = []
    for i, dims in enumerate(dims_per_leaf(dim, leaves)):
        if problem := single_entry_problem(scores[i].shape, dims):
            raise LeafError(i, "params", problem)
        priors = [prior.to(scores[i].device) for prior in leaves.masks[i : i + 1]]
        mask = _select_in_groups(i, scores[i], priors, dims, amounts[i], absolute, name)
        masks.append(mask.to(leaves.params[i].device))
    return masks


def _select_in_groups(
    leaf: int,
    scores: Tensor,
    priors: list[Tensor],
    dims: list[int],
    amount: Tensor,
    absolute: bool,
    name: str,
) -> Tensor:
    """Prune the lowest entries of every group along `dims`: the groups are the rows of a matrix."""
    order = [d for d in range(scores.dim()) if d not in dims] + dims
    moved = [x.permute(order) for x in (scores, *priors)]
    group_size = math.prod([scores.shape[d] for d in dims])  # a list: Dynamo traces no generator
    num_groups = math.prod(moved[0].shape[: scores.dim() - len(dims)])
    matrix, *prior_rows = (x.reshape(num_groups, group_size) for x in moved)
    kept = select_rows(leaf, matrix, prior_rows, amount, absolute=absolute, name=name)
    back = sorted(range(len(order)), key=order.__getitem__)
    return kept.view(moved[0].shape).permute(back).contiguous()


def select_rows(
    leaf: int, rows: Tensor, priors: list[Tensor], amount: Tensor, *, absolute: bool, name: str
) -> Tensor:
    """Return the mask that prunes the lowest entries of every row of a matrix made from one leaf.

    Args:
        leaf: the index of the leaf, to name it in an error.
        rows: (rows, entries).
        priors: the prior mask of that shape, or an empty list.
        amount: 0-dim tensor, the amount or sparsity of each row.
        absolute: whether to rank by absolute value.
        name: what the amount is, `amount` or `sparsity`.

    Returns:
        The mask, (rows, entries).

    Raises:
        LeafError: if the amount is out of range, or the scores cannot be ranked.
    """
    try:
        kept: Tensor = operators.select_rows(rows, priors, amount, absolute, name == "sparsity")
    except LeafError as error:
        raise LeafError(leaf, error.tree, error.message, error.kind) from None
    except ValueError as error:
        raise LeafError(leaf, name, str(error)) from None
    return kept
