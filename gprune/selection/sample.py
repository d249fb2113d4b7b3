"""The sample: a guess at where the k-th candidate lies, which only guides the search.

One entry is drawn from each of many equal strata of the flat index, at a hashed place in it, so no
stride of the data can hide from it. The order statistics of the sample around the rank of the k-th
bracket it in all but one of a thousand searches.
"""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor

from gprune.selection.draws import draw, draw_range
from gprune.selection.keys import keys
from gprune.selection.ranking import Ranking

POWER = 2 / 3
"""With N entries, N^(2/3) are sampled: what the sample costs grows with its size, what is left to
collect falls with the square root of it, and this is where the sum is least."""

LARGEST = 2**20
SIGMAS = 3.3
SEED = 0x5EED


def sample(ranking: Ranking) -> Tensor:
    """Draw candidates.

    Args:
        ranking: what is ranked, on the CPU; at least one entry.

    Returns:
        Their keys in the ranking's common space, ascending.
    """
    size = min(math.ceil(ranking.entries**POWER), LARGEST)
    jitter = draw_range(SEED, 0, 0, size, torch.device("cpu"))
    strata = torch.arange(size, dtype=torch.float64).add_(jitter).mul_(ranking.entries / size)
    places = strata.to(torch.int64).clamp_(max=ranking.entries - 1)
    ends = torch.searchsorted(places, torch.tensor(ranking.offsets)).tolist()
    taken: dict[torch.dtype, list[Tensor]] = {}
    for leaf, (start, end) in enumerate(pairwise(ends)):
        if start < end:
            scores = _taken(ranking, leaf, places[start:end] - ranking.offsets[leaf])
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


def _taken(ranking: Ranking, leaf: int, places: Tensor) -> Tensor:
    """Take the scores of the candidates among some places of a leaf."""
    if ranking.masks:
        places = places[_at(ranking.masks[leaf], places)]
    if ranking.seed is not None:
        return draw(ranking.seed, ranking.first + leaf, places)
    return _at(ranking.scores[leaf], places)


def _at(tensor: Tensor, places: Tensor) -> Tensor:
    if tensor.is_contiguous():
        return tensor.view(-1)[places]
    return tensor[torch.unravel_index(places, tensor.shape)]
