"""The public edge of the scores: trees checked against each other, once, and mapped leaf by leaf.

A score is an equation between the entries of a parameter and those of the same place in other
trees. `score_leaves` takes that equation and does the rest: holes, structures, shapes, dtypes,
finite values, and arithmetic in float32 at least. Every bad leaf is named, by its path.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from gprune.calls import together
from gprune.inputs import is_sharded, mismatch
from gprune.select import operators
from gprune.trees import Tree, TreeDef, flatten, leaf_names, match, require_tensors, unflatten


@together
def score_leaves(equation: Callable[..., Tensor], **trees: Tree) -> Tree:
    """Map an equation over the leaves of trees of one structure.

    Args:
        equation: of one detached leaf of each tree, in float32 or float64.
        **trees: pytrees of floating point tensors, by the names that errors call them. Where the
            first has a hole, the others do not matter.

    Returns:
        What the equation gives, with the structure and the holes of the first tree.

    Raises:
        TypeError: if a leaf is not a floating point tensor.
        ValueError: if a structure, shape or device differs, or a value is not finite.
    """
    [(owner, first), *rest] = trees.items()
    leaves, treedef = floating_leaves(first, owner)
    columns = {owner: leaves}
    for name, tree in rest:
        columns[name] = _fitting(tree, name, leaves, treedef, owner)
    rows = zip(*columns.values(), strict=True)
    scores = [None if row[0] is None else equation(*map(wide, row)) for row in rows]
    _require_finite(scores, columns, treedef)
    return unflatten(treedef, scores)


def floating_leaves(tree: Tree, name: str) -> tuple[list[Any], TreeDef]:
    """Flatten a tree whose leaves must be floating point tensors or holes.

    Args:
        tree: what to flatten.
        name: what to call it in an error.

    Returns:
        The leaves, holes included, and the structure.

    Raises:
        TypeError: if a leaf is neither, naming them all.
    """
    leaves, treedef = flatten(tree)
    require_tensors(leaves, treedef, name)
    wrong = [i for i, leaf in enumerate(leaves) if leaf is not None and not _has_arithmetic(leaf)]
    if wrong:
        names = leaf_names(treedef, name)
        found = "; ".join(f"{names[i]} has dtype {leaves[i].dtype}" for i in wrong)
        remedy = "cast it, or close over it and leave a hole"
        raise TypeError(f"{found}: only float16 to float64 is scored; {remedy}")
    return leaves, treedef


def require_positive(number: Any, name: str) -> None:
    """Refuse what is no count of at least one.

    Args:
        number: the count.
        name: what to call it in an error.

    Raises:
        TypeError: if it is not an int.
        ValueError: if it is less than 1.
    """
    if isinstance(number, bool) or not isinstance(number, int):
        raise TypeError(f"{name} must be an int, got {number!r}")
    if number < 1:
        raise ValueError(f"{name} must be at least 1, got {number}")


def wide(leaf: Tensor) -> Tensor:
    """Give a leaf detached, in float32, or in float64 if it is."""
    return leaf.detach().to(wide_dtype(leaf))


def wide_dtype(leaf: Tensor) -> torch.dtype:
    """Give the dtype that a leaf is scored in."""
    return torch.promote_types(leaf.dtype, torch.float32)


def _has_arithmetic(leaf: Tensor) -> bool:
    return leaf.is_floating_point() and leaf.dtype.itemsize > 1  # float8 has none


def _fitting(tree: Tree, name: str, owners: list[Any], treedef: TreeDef, owner: str) -> list[Any]:
    """Flatten a tree that must fit another leaf by leaf, except at its holes."""
    others = match(tree, treedef, name, owner=owner)
    leaves = [o if mine is not None else None for o, mine in zip(others, owners, strict=True)]
    floating_leaves(unflatten(treedef, leaves), name)
    problems = [mismatch(other, mine) for other, mine in zip(leaves, owners, strict=True)]
    if any(problems):
        pairs = zip(leaf_names(treedef, name), problems, strict=True)
        raise ValueError("; ".join(f"{place} {problem}" for place, problem in pairs if problem))
    return leaves


def _require_finite(scores: list[Any], columns: dict[str, list[Any]], treedef: TreeDef) -> None:
    """Refuse scores that are NaN or infinite, naming the leaves that made them so."""
    # A batch of vmap is looked at as a whole. In a trace there are no values to look at: there, NaN
    # stays in the scores, where it ranks above everything.
    places = [i for i, score in enumerate(scores) if score is not None]
    if torch.compiler.is_compiling() or not places:
        return
    found = [scores[i] for i in places]
    is_sharded(found)  # the operators must know of DTensors before they meet one
    finite = operators.all_finite(found).tolist()
    wrong = [i for i, fine in zip(places, finite, strict=True) if not fine]
    if wrong:
        raise ValueError("; ".join(_why_not_finite(i, columns, treedef) for i in wrong))


def _why_not_finite(i: int, columns: dict[str, list[Any]], treedef: TreeDef) -> str:
    names = {name: leaf_names(treedef, name)[i] for name in columns}
    finite = operators.all_finite([wide(column[i]) for column in columns.values()]).tolist()
    wrong = [name for name, fine in zip(names.values(), finite, strict=True) if not fine]
    owner, first = next(iter(names.values())), next(iter(columns.values()))[i]
    remedy = "scale them" if first.dtype == torch.float64 else "cast the parameters to float64"
    if not wrong:
        return f"the score of {owner} overflows; {remedy}"
    advice = "" if owner in wrong else f"; if it has overflowed, {remedy}"
    return f"{', '.join(wrong)}: NaN or infinity cannot be scored{advice}"
