"""Refitting: the weights that change the outputs least, given what the masks keep."""

from __future__ import annotations

import bisect
import functools
import warnings

import torch
from torch import Tensor

from gprune.masks import paired_with_masks
from gprune.methods.dims import DimFunction, input_dims
from gprune.reconstruct.matrices import (
    check_gram,
    require_damping,
    scale_of,
    solve_damped,
    weights_with_grams,
)
from gprune.scores.score_map import floating_leaves, upcast_dtype
from gprune.select.operators import TAGS, vmap_by_loop
from gprune.sharding import check_same_leaves, raise_on_all_ranks
from gprune.trees import Tree, tensor_paths, unflatten

MAX_FACTORED = 2**26
"""The most numbers in the matrices that are factored at once, 256 MiB in float32."""

CHEAP_ITERATIONS = 200
"""How many iterations of conjugate gradients to expect when their cost is compared."""

MAX_ITERATIONS = 2_000
"""The most iterations of conjugate gradients. If they do not suffice, there is a warning."""


@raise_on_all_ranks
def refit(
    params: Tree,
    masks: Tree,
    grams: Tree,
    *,
    damping: float = 0.01,
    dim: int | tuple[int, ...] | DimFunction = input_dims,
) -> Tree:
    """Return the weights that change the outputs least, given what the masks keep.

    For each row w of a weight, the new row v is zero where the mask prunes, and minimises

        (w - v) H (w - v)ᵀ,    H = G + λI,    λ = damping · mean of the diagonal of G.

    G is the Gram matrix of the inputs. If K are the columns that the mask keeps, v solves the
    normal equations H[K, K] v[K] = (H w)[K]. So rows that keep all are unchanged, and rows that
    keep nothing become zero.

    For r rows that keep k of d columns it takes about r k³ / 3 multiplications: one Cholesky
    factorization for each row, in batches of at most 256 MiB. Where k is so large that conjugate
    gradients are cheaper, these take about r d² multiplications for each iteration.

    Args:
        params: pytree of floating point tensors of any shape and `None`s.
        masks: bool masks of that structure; a parameter whose mask is `None` is returned as it is.
        grams: the Gram matrices, from `gprune.scores.input_gram`: of that structure, `None` allowed
            where the mask is `None`.
        damping: what is added to the diagonal of G, as a fraction of its mean, at least 0. If H, or
            the part of H that a row keeps, has no Cholesky factor with it, more is added for all
            rows of the weight, with a warning.
        dim: the dims of the inputs, which are the columns: an int, a tuple of ints, or a function
            `(path, leaf)` that returns one of these; see `gprune.input_dims`.

    Returns:
        The new parameters, detached, in the dtypes of `params`, computed in float32 at least.
        Pruned entries are exactly 0.

    Raises:
        TypeError: if a leaf is not a floating point tensor, a mask is not a bool tensor, or an
            argument has the wrong type.
        ValueError: if a structure, shape or device differs, a Gram matrix is missing, not finite,
            not symmetric or not positive semidefinite, `damping` is negative, or a DTensor is
            sharded along its columns.

    Warns:
        UserWarning: if a Gram matrix is so nearly singular that the damping had to be raised.

    Example:
        >>> import torch, gprune as gp
        >>> weight = torch.tensor([[1.0, 1.0]])
        >>> gram = torch.tensor([[2.0, 1.0], [1.0, 2.0]])
        >>> gp.reconstruct.refit(weight, torch.tensor([[True, False]]), gram, damping=0.0)
        tensor([[1.5000, 0.0000]])

    References:
        Frantar & Alistarh, 2023, arXiv:2301.00774, eq. 2 (the problem, solved exactly here).
    """
    damping = require_damping(damping)
    floating_leaves(params, "params")
    leaves, kept, treedef = paired_with_masks(params, masks)
    is_needed = [mask is not None for mask in kept]
    weights = weights_with_grams(leaves, grams, dim, treedef, is_needed)
    tensors = [leaf for leaf in leaves if leaf is not None]
    check_same_leaves("refit", tensors, lambda: tensor_paths(treedef, leaves), damping)
    rebuilt = []
    for leaf, mask, weight in zip(leaves, kept, weights, strict=True):
        if weight is None:
            rebuilt.append(leaf)
            continue
        rows, keeps = weight.matrices(leaf), weight.matrices(mask)
        new = refit_matrices(rows, keeps, weight.gram, damping, weight.gram_name)
        rebuilt.append(weight.like_leaf(new))
    return unflatten(treedef, rebuilt)


@torch.library.custom_op("gprune::refit", mutates_args=(), tags=TAGS)
def refit_matrices(weight: Tensor, kept: Tensor, gram: Tensor, damping: float, name: str) -> Tensor:
    """Refit the rows of matrices.

    Args:
        weight: (parts, rows, columns).
        kept: bool, of the same shape.
        gram: (parts, columns, columns).
        damping: as in `refit`.
        name: what errors call the Gram matrices.

    Returns:
        The new weights, of the shape and dtype of `weight`.
    """
    check_gram(gram, name)
    dtype = torch.promote_types(upcast_dtype(weight), gram.dtype)
    new = torch.where(kept, weight, 0)
    unit = scale_of(weight)  # the equations are the same for weights and Gram matrices of any unit
    weights, gram = weight.to(dtype) / unit, gram.to(dtype) / scale_of(gram, step=2)
    for part, (w, keeps, g) in enumerate(zip(weights, kept, gram, strict=True)):
        changed = (keeps.any(1) & ~keeps.all(1)).nonzero().squeeze(1)
        if not len(changed):
            continue
        w, keeps = w[changed], keeps[changed]
        solve = functools.partial(_solve_rows, w, keeps, name)
        new[part, changed] = (solve_damped(solve, g, damping, name) * unit).to(weight.dtype)
    return new


refit_matrices.register_fake(lambda weight, *_: torch.empty_like(weight))
refit_matrices.register_vmap(vmap_by_loop(refit_matrices))


def _solve_rows(w: Tensor, kept: Tensor, name: str, damped: Tensor) -> Tensor | None:
    """Return the refitted rows, or `None` if a matrix has no Cholesky factor.

    Args:
        w: the weights, (rows, columns).
        kept: which of them are kept.
        name: what a warning calls the Gram matrix.
        damped: H, (columns, columns).

    Returns:
        The new rows, zero outside K.
    """
    # v[K] = w[K] + c with H[K, K] c = (H e)[K], where e has the pruned entries of w
    target = torch.where(kept, torch.where(kept, 0, w) @ damped, 0)
    most_kept = int(kept.sum(1).max())
    if most_kept**3 / 3 <= CHEAP_ITERATIONS * len(damped) ** 2:
        correction = _solve_by_cholesky(damped, kept, target)
    else:
        correction = _solve_by_conjugate_gradients(damped, kept, target, name)
    return None if correction is None else torch.where(kept, w + correction, 0)


def _solve_by_cholesky(damped: Tensor, kept: Tensor, target: Tensor) -> Tensor | None:
    """Return c with H[K, K] c[K] = target[K] for each row, by one factorization for each row.

    Args:
        damped: H, (columns, columns).
        kept: which columns are in K, (rows, columns).
        target: (rows, columns), zero outside K.

    Returns:
        c, (rows, columns), zero outside K; `None` if a matrix has no Cholesky factor.
    """
    solution = torch.zeros_like(target)
    num_kept = kept.sum(1)
    by_count = num_kept.argsort()  # rows that keep about as many entries are solved together
    counts = num_kept[by_count].tolist()
    start = 0
    while start < len(kept):
        size = _batch_size(counts[start:])
        batch = by_count[start : start + size]
        most = counts[start + size - 1]
        index = kept[batch].to(torch.uint8).argsort(dim=1, descending=True, stable=True)[:, :most]
        is_padding = torch.arange(most, device=kept.device) >= num_kept[batch, None]
        matrices = damped[index.unsqueeze(2), index.unsqueeze(1)]
        if is_padding.any():  # rows that keep fewer entries get equations c = 0 in addition
            matrices.masked_fill_(is_padding.unsqueeze(1) | is_padding.unsqueeze(2), 0)
            matrices.diagonal(dim1=1, dim2=2).masked_fill_(is_padding, 1)
        factors, info = torch.linalg.cholesky_ex(matrices)
        if info.any():
            return None
        right = target[batch].gather(1, index).unsqueeze(2)
        solved = torch.cholesky_solve(right, factors).squeeze(2)
        solution[batch] = solution[batch].scatter(1, index, solved)
        start += size
    return torch.where(kept, solution, 0)


def _batch_size(counts: list[int]) -> int:
    """Return how many of the first rows fit into a batch, if all are padded to the largest.

    Args:
        counts: how many entries each row keeps, ascending.

    Returns:
        At least 1.
    """
    sizes = range(1, len(counts) + 1)
    return max(1, bisect.bisect_right(sizes, MAX_FACTORED, key=lambda n: n * counts[n - 1] ** 2))


def _solve_by_conjugate_gradients(
    damped: Tensor, kept: Tensor, target: Tensor, name: str
) -> Tensor:
    """Return the solution of the equations of `_solve_by_cholesky`, by conjugate gradients.

    All rows are solved at once. The preconditioner is the diagonal of H. A row is solved when the
    norm of its residual is at most 8 eps times that of its target.

    Args:
        damped: H, (columns, columns).
        kept: which columns are in K, (rows, columns).
        target: (rows, columns), zero outside K.
        name: what a warning calls the Gram matrix.

    Returns:
        c, (rows, columns), zero outside K.
    """
    inverse = 1 / damped.diagonal()
    solution, residual = torch.zeros_like(target), target.clone()
    direction = residual * inverse
    product = (residual * direction).sum(1, keepdim=True)
    goal = 8 * torch.finfo(target.dtype).eps * target.norm(dim=1)
    for _ in range(MAX_ITERATIONS):
        is_open = residual.norm(dim=1) > goal
        if not is_open.any():
            return solution
        image = torch.where(kept, direction @ damped, 0)
        curvature = (direction * image).sum(1, keepdim=True)
        step = torch.where(is_open.unsqueeze(1) & (curvature > 0), product / curvature, 0)
        solution += step * direction
        residual -= step * image
        scaled = residual * inverse
        before, product = product, (residual * scaled).sum(1, keepdim=True)
        direction = scaled + torch.where(before > 0, product / before, 0) * direction
    worst = float((residual.norm(dim=1) / target.norm(dim=1)).max())
    warnings.warn(
        f"{name}: refit stopped after {MAX_ITERATIONS} iterations with a relative residual of "
        f"{worst:.1e}; raise the damping",
        stacklevel=2,
    )
    return solution
