"""Many small selections at once: the rows of a matrix, each with a threshold of its own.

With `dim=` a leaf has thousands of groups of a few entries, and each group is ranked alone. One
operator finds the k-th key of every row. In most rows, either all or none of the entries with that
key are pruned. Only in the other rows do their flat indices matter.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gprune.select import blocks
from gprune.select.counts import resolve
from gprune.select.keys import FORMATS, keys_of, to_bits


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
    """
    num_rows, size = scores.shape
    candidates = [size] * num_rows if prior is None else prior.sum(1).tolist()
    k_of = {n: resolve(amount, size, n, is_sparsity) for n in set(candidates) or {size}}
    ks = torch.tensor([k_of[n] for n in candidates], device=scores.device)
    mask = torch.empty(scores.shape, dtype=torch.bool, device=scores.device)
    step = max(1, blocks.BLOCK // max(1, size))
    form = FORMATS[scores.dtype]
    for start in range(0, num_rows if size else 0, step):
        rows = slice(start, min(start + step, num_rows))
        keys = keys_of(to_bits(scores[rows], form), form, absolute=absolute)
        mask[rows] = _prune_block(keys, None if prior is None else prior[rows], ks[rows])
    return mask


def _prune_block(keys: Tensor, prior: Tensor | None, ks: Tensor) -> Tensor:
    """Prune the k lowest keys of each row; among equal keys those of the lowest index."""
    if prior is not None:
        keys = keys.where(prior, torch.iinfo(keys.dtype).max)  # above every candidate
    threshold = _kth_of_rows(keys, ks).unsqueeze(1)
    compared = torch.empty_like(keys)  # comparing into the dtype of the keys is faster
    below = torch.lt(keys, threshold, out=compared).sum(1, dtype=torch.int32)
    above = torch.gt(keys, threshold, out=compared).sum(1, dtype=torch.int32)
    kept = compared.to(torch.bool)
    num_tied = ks - below  # how many of the entries with the key of the threshold are pruned
    some = (num_tied < keys.shape[1] - below - above).nonzero().view(-1)
    if some.numel():
        ties = keys[some] == threshold[some]
        kept[some] |= ties & (ties.cumsum(1) > num_tied[some].unsqueeze(1))
    return kept if prior is None else kept & prior


def _kth_of_rows(keys: Tensor, ks: Tensor) -> Tensor:
    """Return the k-th lowest key of each row, or the lowest integer where k is 0."""
    lowest = torch.full_like(keys[:, :1], torch.iinfo(keys.dtype).min)
    if bool((ks == ks[0]).all()):
        k = int(ks[0])
        return torch.kthvalue(keys, k, dim=1).values if k else lowest.view(-1)
    ordered = torch.cat([lowest, keys.sort(dim=1).values], dim=1)
    return ordered.gather(1, ks.unsqueeze(1)).view(-1)
