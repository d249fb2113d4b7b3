"""SparseGPT: weights and masks in one pass over the columns of a weight."""

from __future__ import annotations

import bisect
import itertools
from typing import Any

import torch
from torch import Tensor

from gprune.methods.dims import DimFunction, input_dims
from gprune.methods.n_of_m import check_pattern
from gprune.reconstruct.matrices import (
    check_gram,
    group_columns,
    require_damping,
    scale_of,
    solve_damped,
    weights_with_grams,
)
from gprune.scores.score_map import floating_leaves, require_positive, upcast_dtype
from gprune.select.counts import amount_or_sparsity, as_scalar, resolve
from gprune.select.operators import TAGS, vmap_by_loop
from gprune.sharding import raise_on_all_ranks, require_unsharded
from gprune.trees import Tree, is_single_leaf, leaves_like, unflatten


@raise_on_all_ranks
def sparsegpt(
    params: Tree,
    grams: Tree,
    *,
    amount: Any = None,
    sparsity: Any = None,
    n: int | None = None,
    m: int | None = None,
    block_size: int = 128,
    damping: float = 0.01,
    dim: int | tuple[int, ...] | DimFunction = input_dims,
) -> tuple[Tree, Tree]:
    """Return pruned weights and their masks; kept weights change to make up for the pruned ones.

    Each weight is pruned column by column. Let G be the Gram matrix of the inputs, and U the upper
    triangular matrix with

        H⁻¹ = Uᵀ U,    H = G + λI,    λ = damping · mean of the diagonal of G.

    The score of an entry w in column c is w² / U_cc². The columns are taken in blocks. At the start
    of a block, those of its entries that have the lowest scores are chosen, over all rows. Then,
    column by column, the chosen entries e_c of column c are set to zero, and e_c / U_cc times
    U[c, c+1:] is subtracted from the columns after c, in the rows of the chosen entries.

    If k entries of a leaf with d columns are to be pruned, floor(k c / d) of them are in the blocks
    up to column c, so the total is exact. Among equal scores the entry in the first row is pruned
    first, and within a row that in the first column. With `n` and `m`, a row keeps the n highest of
    every m consecutive columns. They are chosen when the first of the m columns is reached.

    For r rows and d columns it takes about r d² + d³ multiplications.

    Args:
        params: pytree of floating point tensors of any shape and `None`s.
        grams: the Gram matrices, from `gprune.scores.input_gram`: of that structure. A leaf without
            one is not pruned: it is returned as it is, and its mask is `None`.
        amount: how many entries of each leaf to prune (int), or the fraction of them (float, 0 to
            1); or a tree with a number for each leaf.
        sparsity: the fraction of the entries of each leaf to prune, 0 to 1; or such a tree, as the
            functions of `gprune.allocation` return it.
        n: how many entries of a group are kept, 0 to m, in place of an amount.
        m: how many consecutive columns are a group; the last group may be shorter. In a convolution
            a group has input channels at one position of the kernel, as in `n_of_m`, and the
            columns are taken position by position.
        block_size: how many columns a block has, at least 1. It has more if a group of m columns
            would otherwise be divided.
        damping: what is added to the diagonal of G, as a fraction of its mean, at least 0. If H has
            no Cholesky factor with it, more is added, with a warning.
        dim: the dims of the inputs, which are the columns: an int, a tuple of ints, or a function
            `(path, leaf)` that returns one of these; see `gprune.input_dims`.

    Returns:
        The new parameters and the masks, two trees of the structure of `params`. The parameters are
        detached, in the dtypes of `params`, and exactly 0 where they are pruned. A leaf of which
        nothing is pruned is unchanged.

    Raises:
        TypeError: if not exactly one of `amount`, `sparsity` and `n` with `m` is given, a leaf is
            not a floating point tensor, or an argument has the wrong type.
        ValueError: if a structure, shape or device differs, a number is out of range, a Gram matrix
            is not finite, not symmetric or not positive semidefinite, no leaf has one, or a leaf is
            a DTensor.

    Warns:
        UserWarning: if a Gram matrix is so nearly singular that the damping had to be raised.

    Example:
        >>> import torch, gprune as gp
        >>> weight = torch.tensor([[1.0, 2.0], [3.0, 0.5]])
        >>> gram = torch.tensor([[2.0, 1.0], [1.0, 2.0]])
        >>> gp.reconstruct.sparsegpt(weight, gram, amount=0.5, block_size=1, damping=0.0)
        (tensor([[0.0000, 2.5000],
                [3.0000, 0.0000]]), tensor([[False,  True],
                [ True, False]]))

    References:
        Frantar & Alistarh, 2023, arXiv:2301.00774, algorithm 1.
    """
    pattern: Any = (0, 0)
    number: Any = 0
    is_sparsity = False
    has_number = amount is not None or sparsity is not None
    if has_number == (n is not None or m is not None):
        raise TypeError(
            "sparsegpt takes either amount or sparsity, or n with m; got "
            f"{'both' if has_number else 'neither'}"
        )
    if has_number:
        number, is_sparsity = amount_or_sparsity(amount, sparsity, "sparsegpt")
    elif n is None or m is None:
        raise TypeError(f"sparsegpt takes n and m together, got n={n} and m={m}")
    else:
        check_pattern(n, m)
        pattern = (n, m)
    require_positive(block_size, "block_size")
    damping = require_damping(damping)
    leaves, treedef = floating_leaves(params, "params")
    require_unsharded([leaf for leaf in leaves if leaf is not None], "sparsegpt")
    given = leaves_like(grams, treedef, "grams")
    is_pruned = [a is not None and b is not None for a, b in zip(leaves, given, strict=True)]
    if not any(is_pruned):
        raise ValueError(
            "grams has no Gram matrix for any tensor of params, so there is nothing to prune; pass "
            "what input_gram returned"
        )
    weights = weights_with_grams(leaves, grams, dim, treedef, is_pruned)
    name = "sparsity" if is_sparsity else "amount"
    several = not is_single_leaf(number)
    numbers = leaves_like(number, treedef, name) if several else [number] * len(leaves)
    rebuilt: list[Any] = list(leaves)
    masks: list[Any] = [None] * len(leaves)
    for i, weight in enumerate(weights):
        if weight is None:
            continue
        new, kept = sparsegpt_matrices(
            weight.matrices(weight.leaf),
            weight.gram,
            as_scalar(numbers[i], name),
            is_sparsity,
            *pattern,
            weight.num_positions(),
            block_size,
            damping,
            weight.gram_name,
        )
        rebuilt[i], masks[i] = weight.like_leaf(new), weight.like_leaf(kept)
    return unflatten(treedef, rebuilt), unflatten(treedef, masks)


@torch.library.custom_op("gprune::sparsegpt", mutates_args=(), tags=TAGS)
def sparsegpt_matrices(
    weight: Tensor,
    gram: Tensor,
    number: Tensor,
    is_sparsity: bool,
    n: int,
    m: int,
    positions: int,
    block_size: int,
    damping: float,
    name: str,
) -> list[Tensor]:
    """Prune the matrices of one weight, and rebuild them.

    Args:
        weight: (parts, rows, columns).
        gram: (parts, columns, columns).
        number: the amount or the sparsity of all parts together, 0-dim; not used if m is above 0.
        is_sparsity: whether it is a sparsity.
        n: how many entries of a group are kept.
        m: how many columns a group has; 0 for an amount or a sparsity.
        positions: how many positions the kernel of a convolution has.
        block_size: how many columns a block has.
        damping: as in `sparsegpt`.
        name: what errors call the Gram matrices.

    Returns:
        The new weights, of the shape and dtype of `weight`, and the masks.
    """
    check_gram(gram, name)
    num_pruned = 0 if m else resolve(number, weight.numel(), weight.numel(), is_sparsity)
    if not weight.numel():
        return [weight.clone(), torch.ones_like(weight, dtype=torch.bool)]
    dtype = torch.promote_types(upcast_dtype(weight), gram.dtype)
    num_columns = weight.shape[2]
    groups = group_columns(num_columns, positions, m or num_columns, weight.device)
    order = groups[groups >= 0] if m else torch.arange(num_columns, device=weight.device)
    w, gram = weight.to(dtype)[:, :, order], gram.to(dtype)[:, order][:, :, order]
    unit = scale_of(w)  # the result is the same for weights and Gram matrices of any unit
    w, gram = w / unit, gram / scale_of(gram, step=2)
    kept = torch.ones_like(w, dtype=torch.bool)
    factor = torch.stack([solve_damped(_inverse_factor, g, damping, name) for g in gram])
    scale = factor.diagonal(dim1=1, dim2=2).unsqueeze(1)
    sizes = (groups >= 0).sum(1).tolist() if m else [1] * num_columns
    bounds = [0, *itertools.accumulate(sizes)]  # where groups end: no block divides a group
    end_of_group = dict(itertools.pairwise(bounds))
    start = 0
    while start < num_columns:
        end = bounds[bisect.bisect_left(bounds, min(start + block_size, num_columns))]
        if m == 0:  # choose the entries of the whole block
            count = num_pruned * end // num_columns - num_pruned * start // num_columns
            score = (w[:, :, start:end] / scale[:, :, start:end]).square()
            chosen = _all_but_lowest(score.reshape(1, -1), count)
            kept[:, :, start:end] = chosen.view(score.shape)
        block = w[:, :, start:end].mT.contiguous()  # (parts, columns, rows): a column is contiguous
        errors = torch.empty_like(block)
        for i, c in enumerate(range(start, end)):  # column c of the weight is i of the block
            if m and c in end_of_group:  # choose the entries of the group that begins here
                group = slice(c, end_of_group[c])
                score = (block[:, i : group.stop - start].mT / scale[:, :, group]).square()
                count = max(0, score.shape[2] - n)
                kept[:, :, group] = _all_but_lowest(score.flatten(0, 1), count).view(score.shape)
            pruned = torch.where(kept[:, :, c], 0, block[:, i])
            errors[:, i] = pruned / scale[:, :, c]
            block[:, i] -= pruned
            later = factor[:, c, c + 1 : end].unsqueeze(2)
            block[:, i + 1 :].addcmul_(later, errors[:, i : i + 1], value=-1)
        w[:, :, start:end] = block.mT
        w[:, :, end:] -= errors.mT @ factor[:, start:end, end:]
        start = end
    back = order.argsort()
    return [(w * unit)[:, :, back].to(weight.dtype), kept[:, :, back]]


@sparsegpt_matrices.register_fake
def _fake_sparsegpt(weight: Tensor, *_: object) -> list[Tensor]:
    return [torch.empty_like(weight), torch.empty_like(weight, dtype=torch.bool)]


sparsegpt_matrices.register_vmap(vmap_by_loop(sparsegpt_matrices))


def _inverse_factor(damped: Tensor) -> Tensor | None:
    """Return the upper triangular U with H⁻¹ = Uᵀ U, or `None` if H has no Cholesky factor.

    With the rows and columns in reversed order, the Cholesky factor of H becomes an upper
    triangular R with H = R Rᵀ. So U = R⁻¹, and H⁻¹ itself is never computed.
    """
    factor, info = torch.linalg.cholesky_ex(damped.flip(0, 1))
    if info:
        return None
    identity = torch.eye(len(damped), dtype=damped.dtype, device=damped.device)
    upper: Tensor = torch.linalg.solve_triangular(factor.flip(0, 1), identity, upper=True)
    return upper if upper.isfinite().all() else None


def _all_but_lowest(scores: Tensor, count: int) -> Tensor:
    """Return a mask that prunes the first `count` entries of each row by (score, column)."""
    kept = torch.ones_like(scores, dtype=torch.bool)
    return kept.scatter(1, scores.argsort(dim=1, stable=True)[:, :count], False)
