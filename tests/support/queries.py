"""Queries of ranked leaves, brackets of their keys, and what is true of them."""

from __future__ import annotations

import torch
from hypothesis import strategies as st

from gprune.select.blocks import Query
from gprune.select.finish import KeyThreshold
from gprune.select.refine import Interval
from tests.support import ranked


def threshold(own: ranked.Ranked, query: Query) -> KeyThreshold:
    last = int(own.order(query.leaves)[query.k - 1])
    return KeyThreshold(int(own.keys[last]), last)


def mask_at(own: ranked.Ranked, query: Query) -> list[bool]:
    """The mask of the entries of a query's leaves."""
    kept = own.prior.copy()
    kept[own.order(query.leaves)[: query.k]] = False
    found: list[bool] = kept[own.span(query.leaves)].tolist()
    return found


def flat(masks: list[torch.Tensor], leaves: range) -> list[bool]:
    parts = [masks[leaf].view(-1) for leaf in leaves]
    return torch.cat(parts).tolist() if parts else []


def interval_of(own: ranked.Ranked, query: Query, low: int, high: int) -> Interval:
    """What a pass says of the bracket from `low` to `high`."""
    keys = own.keys[own.candidates(query.leaves)]
    inside = int(((keys >= low) & (keys <= high)).sum())
    return Interval(low, high, int((keys < low).sum()), inside)


@st.composite
def settled(draw: st.DrawFn, own: ranked.Ranked, is_single: bool) -> list[tuple[Query, Interval]]:
    """Queries whose threshold is in their bracket, which is a single key or not."""
    everything, *each = ranked.scopes(len(own.leaves.scores))
    scopes = draw(st.sampled_from([[everything], each, [everything, *each, everything]]))
    lowest, highest = own.leaves.key_range
    drawn = []
    for leaves in scopes:
        if not (n := len(own.candidates(leaves))):
            continue
        query = Query(leaves, draw(st.integers(1, n)), n)
        low = high = threshold(own, query).key
        if not is_single:
            low = max(lowest, low - draw(st.sampled_from([0, 1, 2**9, 2**30, 2**64])))
            high = min(highest, high + draw(st.sampled_from([1, 2**9, 2**30, 2**64])))
            low = low if low < high else low - 1  # the highest key alone
        drawn.append((query, interval_of(own, query, low, high)))
    return drawn


@st.composite
def brackets(draw: st.DrawFn, own: ranked.Ranked) -> tuple[int, int]:
    """The ends of a bracket: keys that there are, keys beside them, or all keys."""
    lowest, highest = own.leaves.key_range
    if not len(own.keys) or draw(st.integers(0, 5)) == 0:
        return lowest, highest
    # a key below all scores or above them is an end of a bracket that missed
    near = st.sampled_from(sorted(set(own.keys.tolist()))[:: max(1, len(own.keys) // 50)])
    key = st.builds(lambda x, d: min(max(x + d, lowest), highest), near, st.integers(-1, 1))
    low, high = sorted([draw(key), draw(key)])
    if not own.leaves.common.is_float:
        high = min(high, 2**62)
    return low, high


@st.composite
def asked(draw: st.DrawFn, own: ranked.Ranked, distinct: bool = False) -> list[Query]:
    """Queries of all leaves and of single ones, several of the same leaves; or of distinct ones."""
    everything, *each = ranked.scopes(len(own.leaves.scores))
    scopes = st.sampled_from([everything, *each])
    if not distinct:
        drawn = draw(st.lists(scopes, min_size=1, max_size=5))
    elif draw(st.booleans()):
        drawn = [everything]
    else:
        drawn = draw(st.lists(st.sampled_from(each), min_size=1, max_size=4, unique_by=str))
        drawn.sort(key=lambda leaves: leaves.start)
    return [Query(x, 1, len(own.candidates(x))) for x in drawn]
