"""Scores leaf by leaf: the checks of the public functions, and the map over the leaves.

A score is an equation between the entries of a parameter and the corresponding entries of other
trees. `score_leaves` takes the equation of one leaf. It checks structures, shapes, devices and
dtypes, leaves `None`s alone, computes in float32 at least, and refuses scores that are not finite
and negative entries where only magnitudes make sense. Errors give the path of every bad leaf.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import is_fake

from gprune.inputs import mismatch
from gprune.select import operators
from gprune.sharding import check_same_leaves, load_dtensor_rules, raise_on_all_ranks
from gprune.trees import (
    MOST_NAMED,
    Tree,
    TreeDef,
    describe_first,
    dotted_paths,
    flatten,
    leaf_names,
    leaves_like,
    predicate,
    require_tensors,
    tensor_paths,
    unflatten,
)

NORMS_ARE_MAGNITUDES = {"input_norms": "pass params first, then what input_norms() returned"}
"""The `magnitudes` of `score_leaves` for scores of the norms of inputs."""


@raise_on_all_ranks
def score_leaves(
    equation: Callable[..., Tensor],
    *,
    magnitudes: Mapping[str, str] | None = None,
    per_leaf: Sequence[Any] | None = None,
    **trees: Tree,
) -> Tree:
    """Apply an equation to the leaves of trees of one structure.

    Args:
        equation: a function of one detached leaf of each tree, in float32 or float64. If an
            entry is not finite, neither is its result.
        magnitudes: the names of the trees that may not have negative entries, and for each of them
            the remedy, for the error.
        per_leaf: a value for each leaf of the first tree, `None`s included, which the equation
            takes after the leaves.
        **trees: pytrees of floating point tensors, under the names that errors use. Where the first
            tree has `None`, the leaves of the others are ignored.

    Returns:
        The results, a tree of the structure of the first, `None` where it has `None`.

    Raises:
        TypeError: if a leaf is not a floating point tensor.
        ValueError: if a structure, shape or device differs, a value is not finite, or a magnitude
            is negative.
    """
    [(first_name, first), *rest] = trees.items()
    leaves, treedef = floating_leaves(first, first_name)
    columns = {first_name: leaves}
    for name, tree in rest:
        columns[name] = _matching_leaves(tree, name, leaves, treedef, first_name)
    tensors = [leaf for column in columns.values() for leaf in column if leaf is not None]
    call = f"scores of {' and '.join(columns)}"
    check_same_leaves(call, tensors, lambda: tensor_paths(treedef, leaves))
    remedies = magnitudes or {}
    scores: list[Any] = []
    for i, row in enumerate(zip(*columns.values(), strict=True)):
        if row[0] is None:
            scores.append(None)
            continue
        values = [
            _nan_if_negative(leaf) if name in remedies else upcast(leaf)
            for name, leaf in zip(columns, row, strict=True)
        ]
        scores.append(equation(*values, *([] if per_leaf is None else [per_leaf[i]])))
    _require_finite(scores, columns, treedef, remedies)
    return unflatten(treedef, scores)


def floating_leaves(tree: Tree, name: str) -> tuple[list[Any], TreeDef]:
    """Flatten a tree whose leaves must be floating point tensors or `None`.

    Args:
        tree: the tree to flatten.
        name: what errors call it.

    Returns:
        The leaves, `None`s included, and the structure.

    Raises:
        TypeError: if a leaf is neither, with the paths of all such leaves.
    """
    leaves, treedef = flatten(tree)
    require_tensors(leaves, treedef, name)
    wrong = [i for i, leaf in enumerate(leaves) if leaf is not None and not _has_arithmetic(leaf)]
    if wrong:
        names = leaf_names(treedef, name)
        found = describe_first(wrong, lambda i: f"{names[i]} has dtype {leaves[i].dtype}")
        remedy = "cast it, or put None in its place; a loss function can close over the tensor"
        raise TypeError(f"{found}: only float16 to float64 can be scored; {remedy}")
    return leaves, treedef


def require_positive(number: Any, name: str) -> None:
    """Raise an error unless a number is an int of at least 1.

    Args:
        number: the number.
        name: what errors call it.

    Raises:
        TypeError: if it is not an int.
        ValueError: if it is less than 1.
    """
    if isinstance(number, bool) or not isinstance(number, int):
        raise TypeError(f"{name} must be an int, got {number!r}")
    if number < 1:
        raise ValueError(f"{name} must be at least 1, got {number}")


def require_batches(batches: Any) -> None:
    """Raise a TypeError if an argument is not an iterable of batches.

    Args:
        batches: the argument.

    Raises:
        TypeError: if it cannot be iterated over, or is a tensor or a dict, whose rows or keys would
            be taken for batches.
    """
    if isinstance(batches, Tensor):
        raise TypeError(
            "batches must be an iterable of batches, got a tensor of shape "
            f"{tuple(batches.shape)}, whose rows would be the batches; pass [tensor]"
        )
    if isinstance(batches, Mapping):
        raise TypeError(
            f"batches must be an iterable of batches, got a {type(batches).__name__}, whose keys "
            "would be the batches; pass [batch]"
        )
    if not hasattr(batches, "__iter__") and not hasattr(batches, "__getitem__"):
        raise TypeError(f"batches must be an iterable of batches, got {batches!r}; pass [batch]")


def require_norms(leaves: list[Any], norms: list[Any], treedef: TreeDef) -> None:
    """Raise a ValueError if `input_norms` has not observed a parameter that is to be scored.

    Args:
        leaves: the parameters, with `None` where one is not scored.
        norms: the norms of their inputs, `None` where there are none.
        treedef: the structure of both.

    Raises:
        ValueError: with the paths of the parameters, and the globs that leave them out.
    """
    unseen = [i for i, leaf in enumerate(leaves) if leaf is not None and norms[i] is None]
    if unseen:
        wrong = describe_first(unseen, leaf_names(treedef, "params").__getitem__, ", ")
        raise ValueError(
            f"{wrong}: input_norms has seen no linear or convolution layer and no matrix product "
            "with this weight, so there are no norms for it; leave it out: "
            f"prunable(params, exclude={_globs(unseen, norms, treedef)})"
        )


def _globs(unseen: list[int], norms: list[Any], treedef: TreeDef) -> list[str]:
    """Return globs that match the leaves without norms: with `*` for numbers of layers."""
    paths = dotted_paths(treedef)
    seen = [path for path, norm in zip(paths, norms, strict=True) if norm is not None]
    found: list[str] = []
    for path in (paths[i] for i in unseen):
        glob = ".".join("*" if part.isdigit() else part for part in path.split("."))
        matches = predicate(glob)
        glob = path if any(matches(other, None) for other in seen) else glob
        found += [] if glob in found else [glob]
    return found


def upcast(leaf: Tensor) -> Tensor:
    """Return a leaf detached, in float64 if it is float64 and in float32 otherwise."""
    return leaf.detach().to(upcast_dtype(leaf))


def upcast_dtype(leaf: Tensor) -> torch.dtype:
    """Return the dtype that a leaf is scored in: float32, or float64 if the leaf is float64."""
    return torch.promote_types(leaf.dtype, torch.float32)


def scale_to_one(leaf: Tensor) -> Tensor:
    """Divide a leaf by its largest magnitude, so that sums of its entries cannot overflow.

    The squares of its entries do not all vanish, either.

    Args:
        leaf: a floating point tensor of any shape.

    Returns:
        The quotients, from -1 to 1; zeros if the leaf is all zero.
    """
    largest = leaf.abs().max() if leaf.numel() else leaf.new_zeros(())
    return leaf / torch.where(largest == 0, 1, largest)


def _has_arithmetic(leaf: Tensor) -> bool:
    return leaf.is_floating_point() and leaf.dtype.itemsize > 1  # float8 has none


def _matching_leaves(
    tree: Tree, name: str, first_leaves: list[Any], treedef: TreeDef, first_name: str
) -> list[Any]:
    """Flatten a tree that must match the first one in structure, shapes and devices."""
    given = leaves_like(tree, treedef, name, first_name)
    pairs = zip(given, first_leaves, strict=True)
    leaves = [leaf if first is not None else None for leaf, first in pairs]
    floating_leaves(unflatten(treedef, leaves), name)
    problems = [mismatch(leaf, first) for leaf, first in zip(leaves, first_leaves, strict=True)]
    wrong = [i for i, problem in enumerate(problems) if problem]
    if wrong:
        names = leaf_names(treedef, name)
        raise ValueError(describe_first(wrong, lambda i: f"{names[i]} {problems[i]}"))
    return leaves


def _nan_if_negative(leaf: Tensor) -> Tensor:
    """Upcast a leaf, with NaN for its negative entries: one check finds both."""
    values = upcast(leaf)
    return torch.where(values < 0, torch.nan, values)


def _require_finite(
    scores: list[Any],
    columns: dict[str, list[Any]],
    treedef: TreeDef,
    remedies: Mapping[str, str],
) -> None:
    """Raise a ValueError that names the leaves whose scores are NaN or infinite, and the cause."""
    # While tracing and under FakeTensorMode there are no values to check. So compiled code keeps a
    # NaN in the scores, and prunes it last. Under vmap the whole batch is checked at once.
    indices = [i for i, score in enumerate(scores) if score is not None]
    if torch.compiler.is_compiling() or not indices:
        return
    found = [scores[i] for i in indices]
    load_dtensor_rules()
    finite = operators.all_finite(found, "scores")
    if is_fake(finite):
        return
    wrong = [i for i, fine in zip(indices, finite.tolist(), strict=True) if not fine]
    if wrong:
        names = [leaf_names(treedef, name) for name in columns]
        rows = {i: [column[i] for column in columns.values()] for i in wrong[:MOST_NAMED]}
        inputs = [upcast(leaf) for row in rows.values() for leaf in row]
        signed = [
            _nan_if_negative(leaf) if name in remedies else upcast(leaf)
            for row in rows.values()
            for name, leaf in zip(columns, row, strict=True)
        ]
        # the scores are passed too: they have a DTensor if the ranks must agree on the error
        fine = operators.all_finite([*inputs, *signed, *found], "inputs").tolist()
        are_finite, are_nonnegative = iter(fine), iter(fine[len(inputs) :])
        checks = {
            i: [(next(are_finite), next(are_nonnegative)) for _ in row] for i, row in rows.items()
        }
        hints = [remedies.get(name) for name in columns]
        raise ValueError(
            describe_first(
                wrong,
                lambda i: _why_not_finite(
                    [paths[i] for paths in names], rows[i][0], checks[i], hints
                ),
            )
        )


def _why_not_finite(
    names: list[str],
    leaf: Tensor,
    checks: list[tuple[bool, bool]],
    hints: list[str | None],
) -> str:
    """Say why the score of a leaf is not finite.

    Args:
        names: the names of the leaves that it is computed from, the parameter first.
        leaf: the parameter.
        checks: for each of these leaves whether all entries are finite, and whether they are
            finite and not negative.
        hints: for each of them the remedy if an entry is negative, `None` where it may be.

    Returns:
        The reason and the remedy.
    """
    wrong = [name for name, (is_finite, _) in zip(names, checks, strict=True) if not is_finite]
    for name, (_, is_fine), hint in zip(names, checks, hints, strict=True):
        if not wrong and hint and not is_fine:
            return f"{name} has negative entries; {hint}"
    param = names[0]
    remedy = "scale them" if leaf.dtype == torch.float64 else "cast the parameters to float64"
    if not wrong:
        return f"the score of {param} overflows; {remedy}"
    advice = "" if param in wrong else f"; if it has overflowed, {remedy}"
    return f"{', '.join(wrong)} contains NaN or infinity, which cannot be scored{advice}"
