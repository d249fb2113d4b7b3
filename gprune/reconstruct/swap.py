"""Swapping: better masks, by exchanging kept for pruned entries."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from gprune.inputs import float64_device
from gprune.masks import paired_with_masks
from gprune.methods.dims import DimFunction, input_dims
from gprune.reconstruct.matrices import check_gram, group_columns, scale_of, weights_with_grams
from gprune.scores.score_map import floating_leaves, require_positive, upcast_dtype
from gprune.select.operators import TAGS, vmap_by_loop
from gprune.sharding import check_same_leaves, raise_on_all_ranks
from gprune.trees import Tree, tensor_paths, unflatten

MAX_PAIRS = 2**20
"""The most pairs that are compared at once, 4 MiB in float32: they stay in the cache of a CPU."""

TOLERANCE = 1e-12
"""An exchange must lower the error by more than this fraction of the sum of its |terms|."""


@raise_on_all_ranks
def swap(
    params: Tree,
    masks: Tree,
    grams: Tree,
    *,
    rounds: int = 100,
    m: int | None = None,
    dim: int | tuple[int, ...] | DimFunction = input_dims,
) -> Tree:
    """Return better masks: kept entries are exchanged for pruned ones, so outputs change less.

    The error of a row w is e G eᵀ. G is the Gram matrix of the inputs, and e has the pruned entries
    of w, and 0 elsewhere. If a kept column p is pruned, and a pruned column u is kept instead, the
    error changes by

        2 w_p (G e)_p + w_p² G_pp - 2 w_u (G e)_u + w_u² G_uu - 2 w_p w_u G_pu.

    In each round every row makes the exchange that lowers its error most, until no exchange lowers
    it. So each row keeps as many entries as before, and its error never rises.

    For r rows that keep k and prune p of d columns a round takes about r k p multiplications. On a
    device without float64 it is computed on the CPU.

    Args:
        params: pytree of floating point tensors of any shape and `None`s: the weights before they
            are pruned.
        masks: bool masks of that structure; a mask that is `None` stays `None`.
        grams: the Gram matrices, from `gprune.scores.input_gram`: of that structure, `None` allowed
            where the mask is `None`.
        rounds: the most exchanges of a row, at least 1.
        m: if given, entries are exchanged only within groups of m consecutive columns, which keeps
            the pattern of `n_of_m`. In a convolution a group has input channels at one position of
            the kernel: the first of the dims of the inputs has the channels.
        dim: the dims of the inputs, which are the columns: an int, a tuple of ints, or a function
            `(path, leaf)` that returns one of these; see `gprune.input_dims`.

    Returns:
        The new masks, of the structure of `params`.

    Raises:
        TypeError: if a leaf is not a floating point tensor, a mask is not a bool tensor, or an
            argument has the wrong type.
        ValueError: if a structure, shape or device differs, `rounds` or `m` is below 1, a Gram
            matrix is missing, not finite or not symmetric, or a DTensor is sharded along its
            columns.

    Example:
        >>> import torch, gprune as gp
        >>> weight = torch.tensor([[1.0, -1.0, 0.5]])
        >>> gram = torch.tensor([[1.0, 1.0, 0.0], [1.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
        >>> mask = torch.tensor([[False, True, False]])
        >>> # the first two inputs are equal, and their weights cancel
        >>> gp.reconstruct.swap(weight, mask, gram)
        tensor([[False, False,  True]])

    References:
        Zimmer et al., 2025, arXiv:2512.10922 (SparseSwaps).
    """
    require_positive(rounds, "rounds")
    if m is not None:
        require_positive(m, "m")
    floating_leaves(params, "params")
    leaves, kept, treedef = paired_with_masks(params, masks)
    is_needed = [mask is not None for mask in kept]
    weights = weights_with_grams(leaves, grams, dim, treedef, is_needed)
    tensors = [leaf for leaf in leaves if leaf is not None]
    check_same_leaves("swap", tensors, lambda: tensor_paths(treedef, leaves), rounds, m)
    swapped: list[Tensor | None] = []
    for leaf, mask, weight in zip(leaves, kept, weights, strict=True):
        if weight is None:
            swapped.append(None)
            continue
        new = swap_matrices(
            weight.matrices(leaf),
            weight.matrices(mask),
            weight.gram,
            rounds,
            m or 0,
            weight.num_positions(),
            weight.gram_name,
        )
        swapped.append(weight.like_leaf(new))
    return unflatten(treedef, swapped)


@torch.library.custom_op("gprune::swap", mutates_args=(), tags=TAGS)
def swap_matrices(
    weight: Tensor, kept: Tensor, gram: Tensor, rounds: int, m: int, positions: int, name: str
) -> Tensor:
    """Improve the masks of the matrices of one weight.

    Args:
        weight: (parts, rows, columns).
        kept: bool, of the same shape.
        gram: (parts, columns, columns).
        rounds: the most exchanges of a row.
        m: how many columns a group has; 0 if all columns are one group.
        positions: how many positions the kernel of a convolution has.
        name: what errors call the Gram matrices.

    Returns:
        The new masks.
    """
    check_gram(gram, name)
    dtype = torch.promote_types(upcast_dtype(weight), gram.dtype)
    device = float64_device(weight.device)  # the CPU if the device of the weight has no float64
    new = kept.to(device, copy=True)
    if not new.numel():
        return new.to(kept.device)
    size = weight.shape[2]
    groups = group_columns(size, positions if m else 1, m or size, device)
    # the exchanges are the same for weights and Gram matrices of any unit
    weight, gram = (x.to(device, dtype) / scale_of(x) for x in (weight, gram))
    for mask, w, g in zip(new, weight, gram, strict=True):
        slots, exact_gram = _slots(mask, groups), g.to(torch.float64)
        products = torch.where(mask, 0, w.to(torch.float64)) @ exact_gram  # G e
        pairs = max(1, slots.kept[0].numel() * slots.pruned.shape[2])
        for start in range(0, len(mask), num_rows := max(1, MAX_PAIRS // pairs)):
            rows = slice(start, start + num_rows)
            of_rows = Slots(*(x[rows] for x in slots))
            _swap_rows(w[rows], mask[rows], g, exact_gram, products[rows], of_rows, rounds)
    return new.to(kept.device)


swap_matrices.register_fake(lambda weight, kept, *_: torch.empty_like(kept))
swap_matrices.register_vmap(vmap_by_loop(swap_matrices))


class Slots(NamedTuple):
    """The columns that each group of each row keeps and prunes.

    Groups differ in how many they keep, so some slots at the end of a group are not used.

    Attributes:
        kept: int64, (rows, groups, most that a group keeps).
        pruned: int64, (rows, groups, most that a group prunes).
        is_kept: which slots of `kept` are used.
        is_pruned: which slots of `pruned` are used.
    """

    kept: Tensor
    pruned: Tensor
    is_kept: Tensor
    is_pruned: Tensor


def _slots(mask: Tensor, groups: Tensor) -> Slots:
    """List the columns that each row keeps and prunes in each group; see `group_columns`."""
    columns = groups.clamp(min=0)
    is_column = groups >= 0
    lists = []
    for chosen in (mask[:, columns] & is_column, ~mask[:, columns] & is_column):
        count = chosen.sum(2, keepdim=True)
        order = chosen.to(torch.uint8).argsort(dim=2, descending=True, stable=True)
        order = order[:, :, : int(count.max())]
        is_used = torch.arange(order.shape[2], device=mask.device) < count
        listed = columns.expand(len(mask), -1, -1).gather(2, order)
        lists.append((listed, is_used))
    return Slots(lists[0][0], lists[1][0], lists[0][1], lists[1][1])


def _swap_rows(
    w: Tensor,
    mask: Tensor,
    gram: Tensor,
    exact_gram: Tensor,
    products: Tensor,
    slots: Slots,
    rounds: int,
) -> None:
    """Make the best exchange of every row, round by round, in place in `mask`.

    Args:
        w: the weights, (rows, columns).
        mask: their mask.
        gram: G, (columns, columns).
        exact_gram: the same in float64.
        products: G e for each row, where e is what is pruned of it, in float64; overwritten.
        slots: the columns that are kept and pruned; overwritten.
        rounds: the most exchanges of a row.
    """
    kept, pruned, is_kept, is_pruned = slots
    if not kept.numel() or not pruned.numel():
        return
    # All pairs are compared in the dtype of the weights. Whether the best one lowers the error is
    # decided in float64, so that the error cannot rise.
    numbers = torch.arange(len(w), device=w.device)  # of the rows that are left, in `mask`
    mixed = -2 * _mixed_terms(w, gram, numbers, kept.unsqueeze(3), pruned.unsqueeze(2))
    exact, changes = w.to(torch.float64), torch.empty_like(mixed)
    squares = exact.square() * exact_gram.diagonal()
    for _ in range(rounds):
        # the change of the error by pruning each kept column, and by keeping each pruned one
        if_pruned = _at(squares + 2 * exact * products, kept).masked_fill_(~is_kept, torch.inf)
        if_kept = _at(squares - 2 * exact * products, pruned).masked_fill_(~is_pruned, torch.inf)
        # the best pair of each row: column p is pruned, and u is kept instead
        torch.add(mixed, if_kept.to(w.dtype).unsqueeze(2), out=changes)
        best = (changes.amin(3) + if_pruned.to(w.dtype)).flatten(1).argmin(1)
        all_rows = torch.arange(len(best), device=w.device)
        group, p_slot = best // kept.shape[2], best % kept.shape[2]
        u_slot = changes[all_rows, group, p_slot].argmin(1)
        p, u = kept[all_rows, group, p_slot], pruned[all_rows, group, u_slot]
        terms = torch.stack(
            [
                if_pruned[all_rows, group, p_slot],
                if_kept[all_rows, group, u_slot],
                -2 * _mixed_terms(exact, exact_gram, all_rows, p, u),
            ]
        )
        better = (terms.sum(0) < -TOLERANCE * terms.abs().sum(0)).nonzero().squeeze(1)
        if not len(better):
            break
        # make the exchange in rows whose error falls
        group, p_slot, u_slot, p, u = (x[better] for x in (group, p_slot, u_slot, p, u))
        kept[better, group, p_slot], pruned[better, group, u_slot] = u, p
        mask[numbers[better], u], mask[numbers[better], p] = True, False
        products[better] += exact[better, p, None] * exact_gram[p]
        products[better] -= exact[better, u, None] * exact_gram[u]
        row = better.unsqueeze(1)
        mixed[better, group, p_slot] = -2 * _mixed_terms(
            w, gram, row, u.unsqueeze(1), pruned[better, group]
        )
        mixed[better, group, :, u_slot] = -2 * _mixed_terms(
            w, gram, row, kept[better, group], p.unsqueeze(1)
        )
        if 2 * len(better) <= len(w):  # a row without a better exchange never gets one again
            kept, pruned, is_kept, is_pruned = (
                x[better] for x in (kept, pruned, is_kept, is_pruned)
            )
            w, exact, products, squares = (x[better] for x in (w, exact, products, squares))
            mixed, numbers = mixed[better], numbers[better]
            changes = changes[: len(better)]


def _mixed_terms(w: Tensor, gram: Tensor, rows: Tensor, p: Tensor, u: Tensor) -> Tensor:
    """Return w_p w_u G_pu for columns p and u, of shapes that broadcast with the rows in front."""
    rows = rows.view(-1, *[1] * (max(p.dim(), u.dim()) - 1)) if rows.dim() == 1 else rows
    return w[rows, p] * w[rows, u] * gram[p, u]


def _at(values: Tensor, columns: Tensor) -> Tensor:
    """Return the values of (rows, columns) at the columns of each group."""
    return values.gather(1, columns.flatten(1)).view(columns.shape)
