"""The sample: a guess at where the k-th candidate lies, which only guides the search.

One entry is drawn from each of many equal strata of the flat index, at a hashed place in it, so no
stride of the data can hide from it. The order statistics of the sample around the rank of the k-th
bracket it in all but one of two hundred searches.
"""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor

from gprune.select.draws import draw_range
from gprune.select.keys import keys
from gprune.select.ranking import Ranking

POWER = 2 / 3
"""With N entries, N^(2/3) are sampled: what the sample costs grows with its size, what is left to
collect falls with the square root of it, and this is where the sum is least."""

LARGEST = 2**20
SIGMAS = 2.8
SEED = 0x5EED


def sample(ranking: Ranking, of: int | None = None) -> Tensor:
    """Draw candidates.

    Args:
        ranking: what is ranked, on the CPU; at least one entry.
        of: how many entries there are in all, where these are a part; its share is drawn.

    Returns:
        Their keys in the ranking's common space, ascending.
    """
    whole = ranking.entries if of is None else of
    size = math.ceil(min(whole**POWER, LARGEST) * ranking.entries / whole)
    if ranking.seed is not None:  # random draws are spread evenly, whichever are candidates
        even = torch.arange(0.5, size, dtype=torch.float64) / size
        return keys(even, ranking.space, absolute=False)
    jitter = draw_range(SEED, 0, 0, size, torch.device("cpu"))
    strata = torch.arange(size, dtype=torch.float64).add_(jitter).mul_(ranking.entries / size)
    places = strata.to(torch.int64).clamp_(max=ranking.entries - 1)
    starts = [ranking.offsets[piece.start] for piece in ranking.pieces]
    ends = torch.searchsorted(places, torch.tensor([*starts, ranking.entries])).tolist()
    taken: dict[torch.dtype, list[Tensor]] = {}
    for piece, (start, end) in zip(ranking.pieces, pairwise(ends), strict=True):
        if start < end:
            scores = _taken(ranking, piece, places[start:end] - ranking.offsets[piece.start])
            taken.setdefault(scores.dtype, []).append(scores)
    found = [
        keys(torch.cat(scores), ranking.space, absolute=ranking.absolute)
        for scores in taken.values()
    ]
    return torch.cat(found).sort().values


def spread(size: int, rank: int, candidates: int) -> tuple[int, int]:
    """Bracket a rank by positions in a sample.

    Args:
        size: how many candidates are sampled.
        rank: the rank among all candidates, from 1.
        candidates: how many candidates there are.

    Returns:
        Two positions, the lower from -1 (nothing sampled is low enough), the upper to `size`.
    """
    q = (rank - 0.5) / candidates
    width = SIGMAS * math.sqrt(size * q * (1 - q)) + 2
    return max(-1, math.floor(q * size - width)), min(size, math.ceil(q * size + width))


def _taken(ranking: Ranking, piece: range, places: Tensor) -> Tensor:
    """Take the scores of the candidates among some places of a piece."""
    if len(piece) > 1:
        chunk = ranking.joined(piece)
        scores, prior = chunk.scores, chunk.prior
    else:
        scores = ranking.scores[piece.start]
        prior = ranking.masks[piece.start] if ranking.masks else None
    if prior is not None:
        places = places[_at(prior, places)]
    return _at(scores, places)


def _at(tensor: Tensor, places: Tensor) -> Tensor:
    if tensor.is_contiguous():
        return tensor.view(-1).index_select(0, places)
    return tensor[torch.unravel_index(places, tensor.shape)]
