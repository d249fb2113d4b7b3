"""Many small selections at once: the rows of a matrix, each cut at its own count.

What `dim=` compares within a tensor are thousands of rankings of a few entries each. The k-th key
of every row is found by one operator, and a row is looked at singly only where some, but not all,
of the entries tied at its cut must go.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gprune.select.amounts import resolve
from gprune.select.keys import keys
from gprune.select.marking import empty_masks
from gprune.select.ranking import BLOCK, Ranking


def select(ranking: Ranking, amount: Tensor, sparsity: bool) -> Tensor:
    """Prune each row of a matrix by the amount.

    Args:
        ranking: of one leaf of shape (rows, entries).
        amount: 0-dim tensor.
        sparsity: whether it is one.

    Returns:
        Fresh bool mask of that shape.
    """
    [scores] = ranking.scores
    prior = ranking.masks[0] if ranking.masks else None
    num_rows, size = scores.shape
    candidates = [size] * num_rows if prior is None else prior.sum(1).tolist()
    count = {
        number: resolve(amount, size, number, sparsity) for number in set(candidates) or {size}
    }
    ks = torch.tensor([count[number] for number in candidates], device=scores.device)
    [mask] = empty_masks([scores])
    step = max(1, BLOCK // max(1, size))
    for start in range(0, num_rows if size else 0, step):
        rows = slice(start, min(start + step, num_rows))
        mask[rows] = _prune_block(
            _keys(ranking, rows), None if prior is None else prior[rows], ks[rows]
        )
    return mask


def _keys(ranking: Ranking, rows: slice) -> Tensor:
    """Compute the keys of some rows."""
    scores = ranking.scores[0][rows]
    flat = keys(scores.reshape(-1), ranking.space, absolute=ranking.absolute)
    return flat.view(scores.shape)


def _prune_block(keys: Tensor, prior: Tensor | None, ks: Tensor) -> Tensor:
    """Prune the lowest k of each row of keys, stably."""
    if prior is not None:
        keys = keys.where(prior, torch.iinfo(keys.dtype).max)  # behind every candidate
    cut = _kth_of_rows(keys, ks).unsqueeze(1)
    verdict = torch.empty_like(keys)  # comparing into the keys' own dtype is several times faster
    below = torch.lt(keys, cut, out=verdict).sum(1, dtype=torch.int32)
    above = torch.gt(keys, cut, out=verdict).sum(1, dtype=torch.int32)
    kept = verdict.to(torch.bool)
    tied = ks - below  # of the entries at the cut, so many go
    some = (tied < keys.shape[1] - below - above).nonzero().view(-1)
    if some.numel():
        ties = keys[some] == cut[some]
        kept[some] |= ties & (ties.cumsum(1) > tied[some].unsqueeze(1))
    return kept if prior is None else kept & prior


def _kth_of_rows(keys: Tensor, ks: Tensor) -> Tensor:
    """Give the k-th smallest key of each row, and a key below all where k is 0."""
    lowest = torch.full_like(keys[:, :1], torch.iinfo(keys.dtype).min)
    if bool((ks == ks[0]).all()):
        k = int(ks[0])
        return torch.kthvalue(keys, k, dim=1).values if k else lowest.view(-1)
    ordered = torch.cat([lowest, keys.sort(dim=1).values], dim=1)
    return ordered.gather(1, ks.unsqueeze(1)).view(-1)
