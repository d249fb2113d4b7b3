"""Many small selections at once: each row of a matrix is pruned alone.

With `dim=` a leaf may have thousands of small groups, and each group is ranked alone. One operator
prunes all groups as the rows of a matrix, in one of three ways:

- Short rows, such as those of `n_of_m`: every two entries of a row are compared. The results give
  each entry its place in the order of its row.
- Long rows on the CPU: the k-th key of each row is found. Flat indices are compared only in rows
  where some, but not all, of the entries with that key are pruned.
- Long rows on an accelerator: a stable sort puts each row in order, and the host reads no value.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gprune.select import blocks
from gprune.select.counts import resolve, resolve_each
from gprune.select.keys import FORMATS, keys_of, to_bits

SHORT = 8
"""The most entries of a row of which every two are compared."""


def prune_rows(
    scores: Tensor, prior: Tensor | None, amount: Tensor, *, absolute: bool, is_sparsity: bool
) -> Tensor:
    """Prune each row of a matrix by the amount.

    Args:
        scores: (rows, entries).
        prior: the prior mask, of the same shape, or `None`.
        amount: 0-dim tensor.
        absolute: whether to rank by absolute value.
        is_sparsity: whether the amount is a sparsity.

    Returns:
        A new bool mask of the same shape.

    Raises:
        ValueError: if the amount is out of range.
    """
    num_rows, size = scores.shape
    ks: int | Tensor
    if prior is None:
        ks = resolve(amount, size, size, is_sparsity)
    else:
        ks = resolve_each(amount, size, prior.sum(1), is_sparsity).unsqueeze(1)
    mask = torch.empty(scores.shape, dtype=torch.bool, device=scores.device)
    step = max(1, blocks.block_size(scores.device) // max(1, size))
    form, is_on_cpu = FORMATS[scores.dtype], scores.device.type == "cpu"
    prune = _by_comparing if size <= SHORT else _by_threshold if is_on_cpu else _by_sorting
    for start in range(0, num_rows if size else 0, step):
        rows = slice(start, min(start + step, num_rows))
        keys = keys_of(to_bits(scores[rows], form), form, absolute=absolute)
        if isinstance(ks, int) or prior is None:
            mask[rows] = prune(keys, ks)
        else:  # the highest integer is above the key of every candidate
            keys = keys.where(prior[rows], torch.iinfo(keys.dtype).max)
            mask[rows] = prune(keys, ks[rows]).logical_and_(prior[rows])
    return mask


def _by_comparing(keys: Tensor, ks: int | Tensor) -> Tensor:
    """Keep all but the k lowest keys of each row; among equal keys the lower index is pruned.

    Args:
        keys: (rows, entries).
        ks: one number for all rows, or (rows, 1).

    Returns:
        A new bool mask of the shape of `keys`.
    """
    columns = keys.unbind(1)
    # places in the order of a row, first as if all keys were equal, then corrected by comparisons
    places = [
        torch.full(key.shape, i, dtype=torch.int8, device=key.device)
        for i, key in enumerate(columns)
    ]
    for j, key in enumerate(columns):
        for i in range(j):
            is_less = (key < columns[i]).view(torch.int8)  # then entry j comes before entry i
            places[i].add_(is_less)
            places[j].sub_(is_less)
    ks = ks if isinstance(ks, int) else ks.view(-1).to(torch.int8)
    return torch.stack([place >= ks for place in places], dim=1)


def _by_sorting(keys: Tensor, ks: int | Tensor) -> Tensor:
    """Do the same as `_by_comparing`, by a stable sort."""
    order = keys.sort(dim=1, stable=True).indices
    is_kept = torch.arange(keys.shape[1], device=keys.device) >= ks
    mask = torch.empty(keys.shape, dtype=torch.bool, device=keys.device)
    return mask.scatter_(1, order, is_kept.expand(keys.shape))


def _by_threshold(keys: Tensor, ks: int | Tensor) -> Tensor:
    """Do the same as `_by_comparing`, by the k-th key of each row."""
    threshold = _kth_of_rows(keys, ks)
    compared = torch.empty_like(keys)  # comparing into the dtype of the keys is faster
    below = torch.lt(keys, threshold, out=compared).sum(1, keepdim=True, dtype=torch.int32)
    above = torch.gt(keys, threshold, out=compared).sum(1, keepdim=True, dtype=torch.int32)
    kept = compared.to(torch.bool)
    num_pruned_ties = ks - below  # how many of the entries with the key of the threshold are pruned
    some = (num_pruned_ties < keys.shape[1] - below - above).view(-1).nonzero().view(-1)
    if some.numel():
        ties = keys[some] == threshold[some]
        kept[some] |= ties & (ties.cumsum(1) > num_pruned_ties[some])
    return kept


def _kth_of_rows(keys: Tensor, ks: int | Tensor) -> Tensor:
    """Return the k-th lowest key of each row, (rows, 1); the lowest integer where k is 0."""
    lowest = torch.full_like(keys[:, :1], torch.iinfo(keys.dtype).min)
    if isinstance(ks, Tensor):
        first = int(ks[0])
        if bool((ks != first).any()):
            ordered = torch.cat([lowest, keys.sort(dim=1).values], dim=1)
            return ordered.gather(1, ks)
        ks = first
    return torch.kthvalue(keys, ks, dim=1, keepdim=True).values if ks else lowest
