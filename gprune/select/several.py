"""Several cuts of one ranking, for little more than the price of one.

A sample says between which two keys all the cuts lie. One pass counts the candidates there in bins
of equal width, each of which holds a few hundredths of a percent of an ordinary model. A second one
collects the candidates of the bins in which the cuts fall, and each cut is found among those. A cut
whose bin holds too many, because scores tie or the sample misled, is searched for by itself.

Bins are made of keys by integer arithmetic, in their order, so every count is exact.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from gprune.select import flags, search
from gprune.select.keys import KeySpace, keys, raw_bounds, raw_keys, value_of
from gprune.select.ranking import Chunk, Ranking
from gprune.select.sample import sample, spread
from gprune.select.scratch import Scratch

BITS = 15
BINS = 2**BITS + 1  # a range of 2^15 keys may begin and end within a bin
NOWHERE = BINS
"""The bin of what is no candidate."""


def find(ranking: Ranking, ks: list[int]) -> list[tuple[float, int]]:
    """Find the cuts that prune so many candidates each.

    Args:
        ranking: what is ranked.
        ks: how many to prune, each from 0 to the number of candidates.

    Returns:
        The value and the flat index of each cut.
    """
    wanted = sorted(set(ks) - {0})
    one_space = len({leaf.dtype for leaf in ranking.scores}) == 1
    on_cpu = all(leaf.device.type == "cpu" for leaf in ranking.scores)
    together = len(wanted) > 1 and one_space and on_cpu and ranking.candidates > search.FEW
    found = _together(ranking, wanted) if together else {}
    return [found[k] if k in found else search.find(ranking, k) for k in ks]


def _together(ranking: Ranking, ks: list[int]) -> dict[int, tuple[float, int]]:
    """Find those of the cuts that are found in two passes."""
    binning = _binning(ranking, ks[0], ks[-1])
    counts = torch.zeros(BINS + 1, dtype=torch.int64)
    for _, bins in _binned(ranking, binning):
        counts += torch.bincount(bins, minlength=BINS + 1)
    behind = counts[:BINS].cumsum(0)
    bin_of = dict(zip(ks, torch.searchsorted(behind, torch.tensor(ks)).tolist(), strict=True))
    chosen: list[int] = []
    for number in sorted(set(bin_of.values()), key=counts.__getitem__):
        if int(counts[[*chosen, number]].sum()) <= search.LIMIT:
            chosen.append(number)
    collected = _collect(ranking, binning, chosen)
    found = {}
    for k, number in bin_of.items():
        if number in chosen:
            own = collected.bins == number
            nth = k - int(behind[number] - counts[number])
            key, index = search.pick(collected.keys[own], collected.positions[own], nth)
            found[k] = value_of(key, ranking.space), index
    return found


class _Binning(NamedTuple):
    """Which raw keys share a bin: those that agree once clamped to a range and shifted."""

    space: KeySpace
    least: int
    greatest: int

    @property
    def shift(self) -> int:
        return max(0, (self.greatest - self.least).bit_length() - BITS)


class _Collected(NamedTuple):
    """The candidates of the chosen bins, in flat order."""

    keys: Tensor
    positions: Tensor
    bins: Tensor


def _binning(ranking: Ranking, first: int, last: int) -> _Binning:
    """Lay the bins from where the first cut may be to where the last may be."""
    sampled, space = sample(ranking), ranking.space
    size = sampled.numel()
    below, _ = spread(size, first, ranking.candidates)
    _, above = spread(size, last, ranking.candidates)
    low = value_of(int(sampled[below]) if below >= 0 else -space.infinity, space)
    high = value_of(int(sampled[above]) if above < size else space.nan, space)
    return _Binning(space, *raw_bounds(low, high, space, absolute=ranking.absolute))


def _binned(ranking: Ranking, binning: _Binning) -> Iterator[tuple[Chunk, Tensor]]:
    """Stream the chunks with the bin of every entry, padded to whole words of flags."""
    space, least, greatest = binning
    scratch, shift = Scratch(), binning.shift
    for chunk in ranking.chunks():
        size = chunk.scores.numel()
        raw = scratch.room("keys", flags.padded(size), space.integer)
        raw_keys(chunk.scores, space, absolute=ranking.absolute, out=raw[:size])
        bins = raw.clamp_(least, greatest).bitwise_right_shift_(shift)
        bins = bins.to(torch.int32) if space.bits < 32 else bins
        bins.sub_(least >> shift)
        if chunk.prior is not None:
            bins[:size].masked_fill_(~chunk.prior, NOWHERE)
        bins[size:] = NOWHERE
        yield chunk, bins


def _collect(ranking: Ranking, binning: _Binning, chosen: list[int]) -> _Collected:
    """Take the candidates of the chosen bins."""
    wanted = torch.zeros(BINS + 1, dtype=torch.bool)
    wanted[chosen] = True
    scratch, parts = Scratch(), []
    for chunk, bins in _binned(ranking, binning):
        indices = scratch.room("indices", bins.numel(), torch.int64).copy_(bins)
        inside = scratch.room("inside", bins.numel())
        rows = indices.view(flags.WORD, -1)  # rows are looked up in parallel
        torch.gather(wanted.expand(flags.WORD, -1), 1, rows, out=inside.view(flags.WORD, -1))
        places = flags.positions(inside)
        scores = chunk.scores.index_select(0, places)
        key = keys(scores, ranking.space, absolute=ranking.absolute)
        parts.append((key, places + chunk.start, bins.index_select(0, places)))
    return _Collected(*(torch.cat(part) for part in zip(*parts, strict=True)))
