"""A pass: one stream over all the leaves that divides the candidates by a bracket of scores.

A bracket is two scores, `low <= high`. A pass counts the candidates below it and in it, collects
those in it, and, where masks are wanted, writes "above `high`" into them on the way. If the k-th
candidate is among the collected, all that remains is to sort those few and to put the masks right
for them.

Per block this costs three operators on the scores, and a handful on flags eight at a time.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from gprune.select import flags
from gprune.select.keys import SPACES, KeySpace, keys, raw_bounds, raw_keys
from gprune.select.ranking import Chunk, Ranking
from gprune.select.scratch import Scratch


class Divided(NamedTuple):
    """What a pass has seen.

    Attributes:
        below: how many candidates are lower than the bracket.
        inside: how many are in it.
        keys: of those inside, in flat order, in the ranking's common space; `None` if too many.
        positions: their flat indices; `None` if too many.
        counts: for each chunk, its flat start and how many of its candidates are inside.
    """

    below: int
    inside: int
    keys: Tensor | None
    positions: Tensor | None
    counts: list[tuple[int, int]]


def divide(
    ranking: Ranking, low: float, high: float, *, limit: int, masks: list[Tensor] | None
) -> Divided:
    """Make a pass.

    Args:
        ranking: what is ranked, on the CPU.
        low: lower end of the bracket; may be NaN.
        high: upper end of the bracket, not below `low`; may be NaN.
        limit: the most candidates to collect.
        masks: one contiguous bool mask per leaf, to be written where a leaf is streamed alone, or
            `None`.

    Returns:
        What was seen.
    """
    scratch = Scratch()
    bounds: dict[KeySpace, tuple[int, int]] = {}
    at_least, inside, collected = 0, 0, []
    counts: list[tuple[int, int]] = []
    for chunk in ranking.chunks():
        space = SPACES[chunk.scores.dtype]
        if space not in bounds:
            bounds[space] = raw_bounds(low, high, space, absolute=ranking.absolute)
        above, between = _flag(ranking, chunk, space, bounds[space], scratch, masks)
        at_least += int(flags.count(between))
        flags.words(between).bitwise_xor_(flags.words(above))
        counts.append((chunk.start, int(flags.count(between))))
        inside += counts[-1][1]
        if inside <= limit:
            collected.append(_collect(ranking, chunk, flags.positions(between)))
    below = ranking.candidates - at_least
    if inside > limit:
        return Divided(below, inside, None, None, counts)
    empty = torch.empty(0, dtype=torch.int64)
    return Divided(
        below,
        inside,
        torch.cat([key for key, _ in collected]) if collected else empty,
        torch.cat([position for _, position in collected]) if collected else empty,
        counts,
    )


def _flag(
    ranking: Ranking,
    chunk: Chunk,
    space: KeySpace,
    bounds: tuple[int, int],
    scratch: Scratch,
    masks: list[Tensor] | None,
) -> tuple[Tensor, Tensor]:
    """Flag the candidates of a chunk above the bracket, and those not below it."""
    size = chunk.scores.numel()
    whole = flags.padded(size)
    raw = scratch.room("keys", whole, space.integer)
    raw_keys(chunk.scores, space, absolute=ranking.absolute, out=raw[:size])
    target = None if masks is None or len(chunk.sizes) > 1 else _target(chunk, masks)
    direct = target is not None and size == whole and chunk.at % flags.WORD == 0  # whole words
    # a comparison is several times faster where it need not narrow its result; copying does that
    verdict = scratch.room("verdict", whole, space.integer)
    above = target if target is not None and direct else scratch.room("above", whole)
    above.copy_(torch.gt(raw, bounds[1], out=verdict))
    between = scratch.room("between", whole)
    between.copy_(torch.ge(raw, bounds[0], out=verdict))
    if chunk.prior is not None:
        prior = scratch.room("prior", whole)
        prior[:size].copy_(chunk.prior)
        prior[size:] = False
        flags.words(above).bitwise_and_(flags.words(prior))
        flags.words(between).bitwise_and_(flags.words(prior))
    elif size < whole:  # the padding is nowhere
        above[size:] = False
        between[size:] = False
    if target is not None and not direct:
        target.copy_(above[:size])
    return above, between


def _collect(ranking: Ranking, chunk: Chunk, found: Tensor) -> tuple[Tensor, Tensor]:
    """Take the keys and the flat indices of some entries of a chunk."""
    key = keys(chunk.scores.index_select(0, found), ranking.space, absolute=ranking.absolute)
    return key, found + chunk.start


def _target(chunk: Chunk, masks: list[Tensor]) -> Tensor:
    """Give the part of a mask that a block of its leaf is about."""
    return masks[chunk.leaf].view(-1)[chunk.at : chunk.at + chunk.sizes[0]]
