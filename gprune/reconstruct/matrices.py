"""Weights of any layout as matrices, and the checks that the functions of this package share."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from gprune.inputs import float64_device
from gprune.methods.dims import DimFunction, ascending_dims, value_per_leaf
from gprune.scores.score_map import floating_leaves, score_leaves
from gprune.sharding import is_sharded
from gprune.trees import (
    Tree,
    TreeDef,
    describe_first,
    leaf_names,
    leaves_like,
    tensor_paths,
    unflatten,
)

ASYMMETRY = 1e-4
"""How much G_ij and G_ji may differ, as a fraction of the square root of G_ii G_jj. Rounding makes
them differ by less."""


class Weight(NamedTuple):
    """A weight as matrices, with the Gram matrices of its inputs.

    A part is a group of rows with inputs of its own, such as a group of a convolution. Most weights
    have one part.

    Attributes:
        gram_name: what errors call its Gram matrix, `grams['fc']['weight']`.
        leaf: the tensor of the tree, plain or a DTensor.
        columns: the dims of the inputs, ascending.
        gram: the Gram matrices, (parts, columns, columns).
    """

    gram_name: str
    leaf: Tensor
    columns: list[int]
    gram: Tensor

    def matrices(self, tensor: Tensor) -> Tensor:
        """Return the weight, or a tensor of its shape, as (parts, rows, columns)."""
        local = _local(tensor)
        sizes = [math.prod([local.shape[d] for d in dims]) for dims in (self._rows(), self.columns)]
        matrix = local.detach().permute(*self._rows(), *self.columns).reshape(sizes)
        parts, num_columns = len(self.gram), self.gram.shape[-1]
        if sizes[1] > num_columns:  # a transposed convolution: its columns are in groups
            return matrix.view(sizes[0], parts, num_columns).transpose(0, 1)
        return matrix.view(parts, sizes[0] // parts, num_columns)

    def like_leaf(self, matrices: Tensor) -> Tensor:
        """Return the inverse of `matrices`: a tensor with the shape and placement of the weight."""
        leaf: Any = self.leaf  # a DTensor has attributes that a tensor has not
        shape = _local(leaf).shape
        order = [*self._rows(), *self.columns]
        if math.prod([shape[d] for d in self.columns]) > matrices.shape[-1]:
            matrices = matrices.transpose(0, 1)
        moved = matrices.reshape([shape[d] for d in order])
        local = moved.permute([order.index(d) for d in range(len(order))]).contiguous()
        if not is_sharded([leaf]):
            return local
        whole: Tensor = type(leaf).from_local(
            local,
            leaf.device_mesh,
            leaf.placements,
            run_check=False,
            shape=leaf.shape,
            stride=leaf.stride(),
        )
        return whole

    def num_positions(self) -> int:
        """Return how many positions the kernel of a convolution has; 1 for other weights."""
        return max(1, math.prod([self.leaf.shape[d] for d in self.columns[1:]]))

    def _rows(self) -> list[int]:
        return [d for d in range(self.leaf.dim()) if d not in self.columns]


def _local(tensor: Any) -> Tensor:
    """Return the local shard of a DTensor, or the tensor itself if it is none."""
    local: Tensor = tensor.to_local() if is_sharded([tensor]) else tensor
    return local


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
            range, the columns of a DTensor are sharded, or a weight is not finite.
    """
    names, gram_names = leaf_names(treedef, "params"), leaf_names(treedef, "grams")
    given, _ = floating_leaves(grams, "grams")
    leaves_like(grams, treedef, "grams")  # raises an error if the structure differs
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
    needed_leaves = [
        leaf if is_one else None for leaf, is_one in zip(leaves, is_needed, strict=True)
    ]
    # raises an error if a weight is not finite
    score_leaves(lambda leaf: leaf, params=unflatten(treedef, needed_leaves))
    found: list[Weight | None] = [None] * len(leaves)
    for i in needed:
        gram = given[i].full_tensor() if is_sharded([given[i]]) else given[i].detach()
        gram = gram.unsqueeze(0) if gram.dim() == 2 else gram
        found[i] = Weight(gram_names[i], leaves[i], columns[i], gram)
    return found


def _gram_problem(gram: Any, leaf: Any, columns: list[int]) -> str | None:
    """Return what is wrong with the shape or the place of a Gram matrix, or `None`."""
    if gram is None:
        return (
            "is None, but its parameter has a mask; make the mask None, or observe the parameter "
            "with input_gram"
        )
    if gram.device != leaf.device:
        return f"is on {gram.device}, its parameter is on {leaf.device}"
    num_columns = math.prod([leaf.shape[d] for d in columns])
    num_rows = math.prod([n for d, n in enumerate(leaf.shape) if d not in columns])
    parts = gram.shape[0] if gram.dim() == 3 else 1
    size = gram.shape[-1] if gram.dim() in (2, 3) and gram.shape[-1] == gram.shape[-2] else -1
    are_rows_divided = size == num_columns and parts and num_rows % parts == 0
    # only the columns of a grouped transposed convolution, (inputs, outputs, *kernel), are in parts
    is_transposed = leaf.dim() > 2 and columns == [d for d in range(leaf.dim()) if d != 1]
    are_columns_divided = is_transposed and parts > 1 and size * parts == num_columns
    if not are_rows_divided and not are_columns_divided:
        return (
            f"has shape {tuple(gram.shape)}, its parameter has shape {tuple(leaf.shape)} with the "
            f"inputs in dims {tuple(columns)}: it must be ({num_columns}, {num_columns}), or "
            "(parts, columns, columns); pass dim= for a weight of another layout"
        )
    if not is_sharded([leaf]):
        return None
    placements = leaf.placements
    is_divided = [p.is_partial() or getattr(p, "dim", None) in columns for p in placements]
    if parts > 1 or any(is_divided):
        return (
            f"is for a DTensor with placements {placements}: only rows may be sharded, and all of "
            "them must have the same inputs; redistribute it"
        )
    return None


def group_columns(num_columns: int, positions: int, m: int, device: torch.device) -> Tensor:
    """Return the numbers of the columns in each group of m columns.

    Args:
        num_columns: how many columns there are.
        positions: how many positions the kernel of a convolution has; 1 for other weights.
        m: how many columns a group has.
        device: where the result is.

    Returns:
        int64, (groups, m). A shorter group is filled up with -1. The columns of a convolution
        weight run over channels and positions of the kernel. A group has channels of one position,
        and the groups of the first position come first.
    """
    channels = num_columns // positions
    columns = torch.arange(num_columns, device=device).view(channels, positions).mT
    return pad(columns, (0, -channels % m), value=-1).reshape(-1, m)


def scale_of(tensor: Tensor, step: int = 1) -> float:
    """Return what to divide a tensor by, so that products of a few entries stay in range.

    Args:
        tensor: floating point entries of any shape.
        step: 1, or 2 if a square root of the result must be a power of two.

    Returns:
        1 if the largest magnitude is from 2^-40 to 2^40. Otherwise a power of two near it, by which
        all but the smallest entries are divided exactly.
    """
    largest = float(tensor.abs().amax()) if tensor.numel() else 0.0
    exponent = max(-120, min(math.frexp(largest)[1], 120)) // step * step
    return 1.0 if largest == 0 or abs(exponent) <= 40 else 2.0**exponent


def require_damping(damping: Any) -> float:
    """Return the damping as a float.

    Args:
        damping: what the user has passed.

    Returns:
        The damping.

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
    norms = gram.diagonal(dim1=-2, dim2=-1).sqrt()
    difference = (gram - gram.mT).abs()
    if (difference > ASYMMETRY * norms.unsqueeze(-1) * norms.unsqueeze(-2)).any():
        raise ValueError(
            f"{name} is not symmetric: it differs from its transpose by up to "
            f"{float(difference.amax()):g}; pass what input_gram returned"
        )


def solve_damped(
    solve: Callable[[Tensor], Tensor | None], gram: Tensor, damping: float, name: str
) -> Tensor:
    """Return the solution of a problem with G + λI, with a λ so large that it has a factor.

    Args:
        solve: returns the solution for G + λI; `None` if rounding leaves the matrix, or a part of
            it, without a Cholesky factor.
        gram: G, (columns, columns).
        damping: λ as a fraction of the mean of the diagonal of G. If there is no factor, it is
            raised tenfold until there is one, with a warning.
        name: what errors and warnings call G.

    Returns:
        The solution. If G is zero, the identity takes its place. Then any solution is right,
        because no weight changes an output.

    Raises:
        ValueError: if there is no factor even with λ as large as the mean of the diagonal.
    """
    exact = gram.diagonal().to(float64_device(gram.device))
    mean = float(exact.mean(dtype=torch.float64))  # the sum may be too large for float32
    identity = torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    base, mean = (gram, mean) if gram.any() else (identity, 1.0)
    used = damping
    while used <= 1 or used == damping:
        damped = base + used * mean * identity
        has_factor = int(torch.linalg.cholesky_ex(damped).info) == 0
        solution = solve(damped) if has_factor else None
        if solution is not None:
            if used != damping:
                warnings.warn(
                    f"{name} has no Cholesky factor with damping={damping:g}, because it is "
                    f"singular or nearly so; damping={used:g} is used instead",
                    stacklevel=2,
                )
            return solution
        used = max(10 * used, 10 * torch.finfo(gram.dtype).eps)
    raise ValueError(
        f"{name} is not positive semidefinite, so it is no Gram matrix: it has no Cholesky factor "
        f"even with {max(1.0, damping):g} times the mean of its diagonal added to the diagonal"
    )
