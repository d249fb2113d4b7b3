"""The public edge: params, scores and prior masks, checked once, as aligned lists of leaves.

Behind this room the types are trusted. Every bad leaf is named, by its path, in one error.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gprune.select.errors import LeafError
from gprune.select.keys import FORMATS
from gprune.trees import (
    Tree,
    TreeDef,
    flatten,
    leaf_names,
    match,
    require_tensors,
    tensor_problem,
)


class Leaves(NamedTuple):
    """The prunable leaves: what selection works on.

    Attributes:
        scores: one detached tensor per prunable leaf, in pytree order.
        masks: the prior mask of each, or an empty list where nothing is pruned yet.
        separately: whether each leaf is ranked alone.
        unscored: whether the scores are the parameters themselves, for want of any.
    """

    scores: list[Tensor]
    masks: list[Tensor]
    separately: bool = False
    unscored: bool = False


def align(
    params: Tree, scores: Tree, masks: Tree, separately: bool = False
) -> tuple[Leaves, list[Any], TreeDef]:
    """Check the three trees against each other and take their prunable leaves.

    Args:
        params: pytree of tensors and holes.
        scores: a tree of that structure, whose leaves at holes do not matter, or `None` for the
            parameters themselves.
        masks: a tree of bool masks of that structure, with the same holes, or `None`.
        separately: goes into the result.

    Returns:
        The leaves, and the flattened params with their structure, to rebuild a tree of masks from.

    Raises:
        TypeError: if a leaf is not a tensor or has an unfit dtype.
        ValueError: if a structure, shape or device differs, or no leaf is prunable.
    """
    leaves, treedef = flatten(params)
    require_tensors(leaves, treedef, "params")
    places = [i for i, leaf in enumerate(leaves) if leaf is not None]
    if not places:
        raise ValueError(
            "params has no prunable leaf: every leaf is None; did the globs of prunable() match?"
        )
    ranked = leaves if scores is None else match(scores, treedef, "scores")
    priors = [] if masks is None else match(masks, treedef, "masks")
    problems = [*_type_problems(leaves, ranked, priors, treedef, scores is None)]
    if problems:
        raise TypeError("; ".join(problems))
    problems = [*_value_problems(leaves, ranked, priors, treedef)]
    problems += _meta_problems([ranked[i] for i in places], places, treedef)
    if problems:
        raise ValueError("; ".join(problems))
    chosen = [ranked[i].detach() for i in places]
    is_sharded(chosen)  # the operators must know of DTensors before they meet one
    priors = [priors[i] for i in places if priors]
    return Leaves(chosen, priors, separately, unscored=scores is None), leaves, treedef


def _type_problems(
    leaves: list[Any], scores: list[Any], masks: list[Any], treedef: TreeDef, own: bool
) -> Iterator[str]:
    """Name the leaves whose type or dtype does not fit."""
    for i, leaf in enumerate(leaves):
        if leaf is not None and scores[i] is not None:
            # the parameters themselves are known to be tensors
            problem = dtype_problem(scores[i]) if own else score_problem(scores[i])
            if problem:
                yield f"{leaf_names(treedef, 'params' if own else 'scores')[i]} {problem}"
        if masks and masks[i] is not None:
            problem = mask_problem(masks[i])
            if problem:
                yield f"{leaf_names(treedef, 'masks')[i]} {problem}"


def _value_problems(
    leaves: list[Any], scores: list[Any], masks: list[Any], treedef: TreeDef
) -> Iterator[str]:
    """Name the leaves that are missing or whose shape or device does not fit."""
    for i, leaf in enumerate(leaves):
        if leaf is not None:
            problem = misfit(scores[i], leaf)
            if problem:
                yield f"{leaf_names(treedef, 'scores')[i]} {problem}"
        if masks:
            problem = misfit(masks[i], leaf)
            if problem:
                yield f"{leaf_names(treedef, 'masks')[i]} {problem}"


def _meta_problems(scores: list[Any], places: list[int], treedef: TreeDef) -> list[str]:
    """Name the leaves that have no values beside others that have."""
    empty = [i for i, leaf in zip(places, scores, strict=True) if leaf is not None and leaf.is_meta]
    if not empty or len(empty) == len(places):
        return []
    names = leaf_names(treedef, "params")
    return [f"{names[i]} is on the meta device, others have values" for i in empty]


def score_problem(scores: Any) -> str | None:
    """Say what is wrong with the type of one leaf of scores, or nothing."""
    if problem := tensor_problem(scores):
        return problem.replace("a tensor or None", "a tensor")
    return dtype_problem(scores)


def dtype_problem(scores: Tensor) -> str | None:
    """Say what is wrong with the dtype of one leaf of scores, or nothing."""
    if scores.dtype not in FORMATS:
        names = ", ".join(str(dtype).removeprefix("torch.") for dtype in FORMATS)
        return f"has dtype {scores.dtype}, which cannot be ranked; cast it to one of {names}"
    return None


def mask_problem(mask: Any) -> str | None:
    """Say what is wrong with the type of one mask, or nothing."""
    if problem := tensor_problem(mask):
        return problem
    if mask.dtype != torch.bool:
        return (
            f"has dtype {mask.dtype}, a mask is torch.bool (True = keep); did you mean mask != 0?"
        )
    return None


def misfit(other: Tensor | None, leaf: Tensor | None) -> str | None:
    """Say how one leaf of scores or masks does not fit its parameter, or nothing."""
    if leaf is None:
        return None if other is None else "is a tensor, its parameter is None (not prunable)"
    if other is None:
        return "is None, its parameter is a tensor; pass prunable(params), with the same holes"
    if other.shape != leaf.shape:
        return f"has shape {tuple(other.shape)}, its parameter has {tuple(leaf.shape)}"
    if other.device != leaf.device:
        return f"is on {other.device}, its parameter is on {leaf.device}"
    if _placing(other) != _placing(leaf):
        return f"is placed as {_placing(other)}, its parameter as {_placing(leaf)}; redistribute it"
    return None


def _placing(leaf: Tensor) -> Any:
    """Give the placements and the mesh of a DTensor; `None` of a plain tensor."""
    mesh = getattr(leaf, "device_mesh", None)
    return None if mesh is None else (getattr(leaf, "placements", None), mesh)


def is_sharded(leaves: Sequence[Any]) -> bool:
    """Say whether there is a DTensor among some leaves; from then on the operators know it.

    A DTensor is told by its mesh, and not by its class: asking for that would import
    `torch.distributed`, which most programs do without.

    Args:
        leaves: tensors and anything else.

    Returns:
        Whether one is a DTensor.
    """
    if not any(isinstance(leaf, Tensor) and hasattr(leaf, "device_mesh") for leaf in leaves):
        return False
    import gprune.select.sharded  # noqa: F401  registers the rules of the operators

    return True


def require_whole(leaves: Sequence[Any], who: str) -> None:
    """Refuse DTensors where whole leaves are compared within.

    Args:
        leaves: tensors.
        who: what compares.

    Raises:
        ValueError: if one is a DTensor.
    """
    if is_sharded(leaves):
        raise ValueError(
            f"{who} compares within whole leaves, these are sharded; use full_tensor()"
        )


def shape_error(
    leaves: Leaves, leaf: int, message: str, kind: type[Exception] = ValueError
) -> Exception:
    """Make the error of a leaf whose shape does not fit.

    Args:
        leaves: the leaves.
        leaf: the number of that leaf.
        message: what is wrong.
        kind: the class of the error.

    Returns:
        An error that is to be told the path of the leaf, or the plain one of a method of one.
    """
    return LeafError(leaf, "params", message, kind) if leaves.separately else kind(message)


def check_one(scores: Any, mask: Any) -> Leaves:
    """Check the arguments of a method of one tensor.

    Args:
        scores: the scores to check.
        mask: the prior mask to check, or `None`.

    Returns:
        The leaves of a tree of one.

    Raises:
        TypeError: if a type or dtype does not fit.
        ValueError: if the shape or device of the mask does not fit.
    """
    if problem := score_problem(scores):
        raise TypeError(f"scores {problem}")
    if mask is None:
        return Leaves([scores.detach()], [])
    if problem := mask_problem(mask):
        raise TypeError(f"mask {problem}")
    if problem := misfit(mask, scores):
        raise ValueError(f"mask {problem}".replace("its parameter has", "scores have"))
    return Leaves([scores.detach()], [mask])
