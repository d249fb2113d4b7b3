"""Weights of any layout as matrices, and the checks that the functions of this package share."""

from __future__ import annotations

import math
import warnings
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gprune.methods.dims import DimFunction, ascending_dims, value_per_leaf
from gprune.scores.score_map import floating_leaves
from gprune.sharding import is_sharded
from gprune.trees import Tree, TreeDef, describe_first, leaf_names, leaves_like, tensor_paths

ASYMMETRY = 1e-4
"""How far mirror images in a Gram matrix may differ, as a fraction of its largest entry. Rounding
makes them differ by less."""


class Weight(NamedTuple):
    """A weight that is seen as matrices, with the Gram matrices of its inputs.

    Attributes:
        name: what errors call it, `params['fc']['weight']`.
        gram_name: what errors call its Gram matrix.
        leaf: the tensor of the tree, maybe a DTensor.
        columns: the dims of the inputs, ascending.
        gram: (parts, columns, columns).
    """

    name: str
    gram_name: str
    leaf: Tensor
    columns: list[int]
    gram: Tensor

    def matrices(self, tensor: Tensor) -> Tensor:
        """Return the weight, or a tensor of its shape, as (parts, rows, columns)."""
        local = tensor.to_local() if is_sharded([tensor]) else tensor  # type: ignore[attr-defined]
        matrix = local.detach().permute(self._order()).flatten(local.dim() - len(self.columns))
        matrix = matrix.reshape(-1, matrix.shape[-1])
        parts, num_columns = len(self.gram), self.gram.shape[-1]
        if matrix.shape[1] > num_columns:  # a transposed convolution: its columns are in groups
            return matrix.view(len(matrix), parts, num_columns).transpose(0, 1)
        return matrix.view(parts, -1, num_columns)

    def like_leaf(self, matrices: Tensor) -> Tensor:
        """Return what `matrices` makes of a tensor as a tensor of the layout of the weight."""
        is_local = is_sharded([self.leaf])
        shape = self.leaf.to_local().shape if is_local else self.leaf.shape  # type: ignore[attr-defined]
        order = self._order()
        if math.prod([shape[d] for d in self.columns]) > matrices.shape[-1]:
            matrices = matrices.transpose(0, 1)
        moved = matrices.reshape([shape[d] for d in order])
        local = moved.permute([order.index(d) for d in range(len(order))]).contiguous()
        if not is_local:
            return local
        whole: Tensor = type(self.leaf).from_local(  # type: ignore[attr-defined]
            local,
            self.leaf.device_mesh,  # type: ignore[attr-defined]
            self.leaf.placements,  # type: ignore[attr-defined]
            run_check=False,
            shape=self.leaf.shape,
            stride=self.leaf.stride(),
        )
        return whole

    def _order(self) -> list[int]:
        rows = [d for d in range(self.leaf.dim()) if d not in self.columns]
        return [*rows, *self.columns]


def weights_with_grams(
    leaves: list[Any],
    grams: Tree,
    dim: int | tuple[int, ...] | DimFunction,
    treedef: TreeDef,
    is_needed: list[bool],
) -> list[Weight | None]:
    """Pair the leaves with their Gram matrices.

    Args:
        leaves: the floating point leaves of `params`, `None`s included.
        grams: from `input_gram`: a tree of their structure.
        dim: the dims of the inputs: an int, a tuple, or a function `(path, leaf)`.
        treedef: the structure of `params`.
        is_needed: which leaves must have a Gram matrix; the others are left out.

    Returns:
        A weight for each leaf that is needed, `None` for the others.

    Raises:
        TypeError: if a Gram matrix is not a floating point tensor, or a dim is not an int.
        ValueError: if a Gram matrix is missing or has the wrong shape or device, a dim is out of
            range, or the columns of a DTensor are sharded.
    """
    names, gram_names = leaf_names(treedef, "params"), leaf_names(treedef, "grams")
    given, _ = floating_leaves(grams, "grams")
    leaves_like(grams, treedef, "grams")  # an error if the structure differs
    tensors = [leaf for leaf in leaves if leaf is not None]
    dims = iter(value_per_leaf(dim, lambda: tensor_paths(treedef, leaves), tensors))
    columns: list[Any] = []
    for leaf, name in zip(leaves, names, strict=True):
        try:
            columns.append(None if leaf is None else ascending_dims(next(dims), leaf.shape))
        except (TypeError, ValueError) as error:
            raise type(error)(f"{name}: {error}") from None
    needed = [i for i, is_one in enumerate(is_needed) if is_one]
    problems = {i: _gram_problem(given[i], leaves[i], columns[i]) for i in needed}
    wrong = [i for i in needed if problems[i]]
    if wrong:
        raise ValueError(describe_first(wrong, lambda i: f"{gram_names[i]} {problems[i]}"))
    found: list[Weight | None] = [None] * len(leaves)
    for i in needed:
        gram = given[i].full_tensor() if is_sharded([given[i]]) else given[i].detach()
        gram = gram.view(-1, *gram.shape[-2:])
        found[i] = Weight(names[i], gram_names[i], leaves[i], columns[i], gram)
    return found


def _gram_problem(gram: Any, leaf: Tensor, columns: list[int]) -> str | None:
    """Return what is wrong with the shape or the place of a Gram matrix, or `None`."""
    if gram is None:
        return (
            "is None, its parameter is a tensor; make the mask of the parameter None, or observe "
            "it with input_gram"
        )
    if gram.device != leaf.device:
        return f"is on {gram.device}, its parameter is on {leaf.device}"
    num_columns = math.prod([leaf.shape[d] for d in columns])
    num_rows = math.prod([n for d, n in enumerate(leaf.shape) if d not in columns])
    parts = gram.shape[0] if gram.dim() == 3 else 1
    size = gram.shape[-1] if gram.dim() in (2, 3) and gram.shape[-1] == gram.shape[-2] else -1
    are_rows_divided = size == num_columns and parts and num_rows % parts == 0
    if not are_rows_divided and (parts == 1 or size * parts != num_columns):
        return (
            f"has shape {tuple(gram.shape)}, its parameter has shape {tuple(leaf.shape)} with the "
            f"inputs in dims {tuple(columns)}: it must be ({num_columns}, {num_columns}), or "
            "(parts, columns, columns); pass dim= for a weight of another layout"
        )
    if not is_sharded([leaf]):
        return None
    placements = leaf.placements  # type: ignore[attr-defined]
    is_divided = [p.is_partial() or getattr(p, "dim", None) in columns for p in placements]
    if parts > 1 or any(is_divided):
        return (
            f"is for a DTensor with placements {placements}: only rows may be sharded, and all of "
            "them must have the same inputs; redistribute it"
        )
    return None


def group_order(weight: Weight, m: int) -> Tensor:
    """Return the columns in an order in which groups of m of them are consecutive.

    Args:
        weight: the weight.
        m: how many columns a group has; 0 if there are no groups.

    Returns:
        The numbers of the columns. For a convolution those of one position of the kernel come one
        after the other.

    Raises:
        ValueError: if the groups of one position do not end with it.
    """
    num_columns = weight.gram.shape[-1]
    positions = math.prod([weight.leaf.shape[d] for d in weight.columns[1:]])
    order = torch.arange(num_columns, device=weight.gram.device)
    if m == 0 or positions <= 1:
        return order
    channels = num_columns // positions
    if channels % m:
        raise ValueError(
            f"{weight.name} has {channels} input channels, which are not a multiple of m={m}"
        )
    return order.view(channels, positions).mT.flatten()


def require_damping(damping: Any) -> float:
    """Return the damping as a float.

    Args:
        damping: the damping.

    Returns:
        The same.

    Raises:
        TypeError: if it is not a number.
        ValueError: if it is negative, infinite or NaN.
    """
    if isinstance(damping, bool) or not isinstance(damping, int | float):
        raise TypeError(f"damping must be a float, got {damping!r}")
    if not 0 <= damping < math.inf:
        raise ValueError(f"damping must be finite and not negative, got {damping}")
    return float(damping)


def check_gram(gram: Tensor, name: str) -> None:
    """Check the values of Gram matrices.

    Args:
        gram: (parts, columns, columns).
        name: what errors call them.

    Raises:
        ValueError: if a value is not finite, a matrix is not symmetric, or a value on the diagonal
            is negative.
    """
    if not gram.numel():
        return
    if not gram.isfinite().all():
        raise ValueError(f"{name} has values that are NaN or infinite")
    if (gram.diagonal(dim1=-2, dim2=-1) < 0).any():
        raise ValueError(f"{name} has negative values on its diagonal, so it is no Gram matrix")
    difference = float((gram - gram.mT).abs().amax())
    if difference > ASYMMETRY * float(gram.abs().amax()):
        raise ValueError(
            f"{name} is not symmetric: entries differ from their mirror images by up to "
            f"{difference:g}; pass what input_gram returned"
        )


def damp(gram: Tensor, damping: float, name: str) -> Tensor:
    """Return G + λI, with λ so large that it has a Cholesky factor.

    Args:
        gram: G, (columns, columns).
        damping: λ as a fraction of the mean of the diagonal of G. If the sum has no Cholesky factor
            in the precision of G, it is raised tenfold until it has one, with a warning.
        name: what errors and warnings call G.

    Returns:
        The sum. It is the identity if G is zero, because then no weight changes an output.

    Raises:
        ValueError: if G + λI has no factor even with λ as large as the mean of the diagonal.
    """
    mean = float(gram.diagonal().mean()) if gram.numel() else 0.0
    identity = torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    if mean == 0:
        return identity
    smallest = 10 * torch.finfo(gram.dtype).eps
    used = damping
    while True:
        damped = gram + used * mean * identity
        if int(torch.linalg.cholesky_ex(damped).info) == 0:
            break
        used = max(10 * used, smallest)
        if used > 1:
            raise ValueError(
                f"{name} is not positive semidefinite, so it is no Gram matrix: it has no Cholesky "
                "factor even with the mean of its diagonal added to the diagonal"
            )
    if used != damping:
        warnings.warn(
            f"{name} has no Cholesky factor with damping={damping:g}, because it is singular or "
            f"nearly so; damping={used:g} is used instead",
            stacklevel=2,
        )
    return damped
