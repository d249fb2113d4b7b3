"""The sharded search: as the search on one machine, with every count added up over the ranks.

Each rank samples its share; two order statistics of all the samples bracket the k-th candidate. One
pass over each rank's shards counts what is below the bracket, writes "above it" into the masks and
collects the few candidates in it, among which a descent finds the k-th. Where a rank has too many
to collect, or the bracket misses and the counts say on which side to look, the descent goes through
the shards instead. A last one, over the flat indices of what ties at the cut, finds where among
these it falls.

Searches for many cuts go in step and share their messages. One takes at most 26 messages of 8 KiB,
for any number of weights; 9 for a million in float32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from gprune.selection import search
from gprune.selection.keys import keys, value_of
from gprune.selection.passes import Divided, divide
from gprune.selection.sample import sample, spread
from gprune.selection.sharded.descent import Goal, descend
from gprune.selection.sharded.parts import Part
from gprune.selection.sharded.ranks import Ranks

COARSE = 2**10
"""A bound of the bracket is found to this part of the sample: what it adds to what is collected is
far below what the bracket holds anyway, and two messages of four are saved."""


class Task(NamedTuple):
    """A cut to search for.

    Attributes:
        part: the shards that this rank counts.
        k: how many candidates to prune, from 1 to all.
        candidates: how many there are on all ranks.
        masks: one for each shard of the part, to be written on the way, or `None`.
    """

    part: Part
    k: int
    candidates: int
    masks: list[Tensor] | None


class Found(NamedTuple):
    """A cut, and what this rank has collected on the way.

    Attributes:
        value: the cut's value.
        index: the cut's flat index in the tree.
        key: the key of the value, in the common space.
        seen: the candidates of this rank that the bracket held, if the masks of all others are
            right already; else `None`.
    """

    value: float
    index: int  # type: ignore[assignment]  # hides tuple.index, which nobody calls on a cut
    key: int
    seen: Divided | None


def find(ranks: Ranks, tasks: list[Task]) -> list[Found]:
    """Find the cut of every task.

    Args:
        ranks: those who hold the shards.
        tasks: the same on all ranks, but for their parts.

    Returns:
        The cuts.
    """
    if not tasks:
        return []
    goals, seen = _bracketed(ranks, tasks)
    cuts = descend(ranks, "finding the value of the cut", goals)
    ties = [
        Goal(0, task.part.entries - 1, cut.nth, cut.inside, _tied(task.part, cut.low, own))
        for task, cut, own in zip(tasks, cuts, seen, strict=True)
    ]
    indices = descend(ranks, "finding the index of the cut", ties)
    return [
        Found(value_of(cut.low, task.part.ranking.space), index.low, cut.low, own)
        for task, cut, index, own in zip(tasks, cuts, indices, seen, strict=True)
    ]


def _bracketed(ranks: Ranks, tasks: list[Task]) -> tuple[list[Goal], list[Divided | None]]:
    """Say between which keys each cut is, and give what this rank has collected there."""
    if any(x.device.type != "cpu" for task in tasks for x in task.part.ranking.scores):
        return [_everything(task) for task in tasks], [None] * len(tasks)
    brackets = _brackets(ranks, tasks)
    seen: list[Divided] = []

    def count() -> Tensor:
        for task, (low, high) in zip(tasks, brackets, strict=True):
            ranking = task.part.ranking
            values = value_of(low, ranking.space), value_of(high, ranking.space)
            seen.append(divide(ranking, *values, limit=search.LIMIT, masks=task.masks))
        return torch.tensor([(own.below, own.inside) for own in seen]).view(-1)

    totals = ranks.total("counting what the bracket divides", 2 * len(tasks), count)
    pairs = [
        _after_a_pass(task, bracket, below, inside, own)
        for task, bracket, (below, inside), own in zip(
            tasks, brackets, totals.view(-1, 2).tolist(), seen, strict=True
        )
    ]
    return [goal for goal, _ in pairs], [own for _, own in pairs]


def _after_a_pass(
    task: Task, bracket: tuple[int, int], below: int, inside: int, own: Divided
) -> tuple[Goal, Divided | None]:
    """Say where the cut is once the bracket is counted, and what this rank has collected there."""
    (low, high), whole = bracket, _everything(task)
    if task.k <= below:
        return whole._replace(high=low - 1, inside=below), None
    if task.k > below + inside:
        nth, above = task.k - below - inside, task.candidates - below - inside
        return whole._replace(low=high + 1, nth=nth, inside=above), None
    within = whole._replace(low=low, high=high, nth=task.k - below, inside=inside)
    if own.keys is None:  # too many; that is this rank's own affair
        return within, None
    return within._replace(values=_all_of(own.keys)), own


def _everything(task: Task) -> Goal:
    space = task.part.ranking.space
    return Goal(-space.infinity, space.nan, task.k, task.candidates, _candidates(task.part))


def _brackets(ranks: Ranks, tasks: list[Task]) -> list[tuple[int, int]]:
    """Guess two keys between which each cut lies."""
    samples: list[Tensor] = []

    def count() -> Tensor:
        samples.extend(_sample(task) for task in tasks)
        return torch.tensor([drawn.numel() for drawn in samples])

    sizes = ranks.total("counting the sample", len(tasks), count).tolist()
    goals = []
    for task, drawn, size in zip(tasks, samples, sizes, strict=True):
        below, above = spread(size, task.k, task.candidates) if size else (-1, 0)
        whole = _everything(task)._replace(
            values=_all_of(drawn), inside=size, enough=size // COARSE
        )
        low = whole._replace(nth=below + 1) if below >= 0 else whole._replace(high=whole.low)
        high = whole._replace(nth=above + 1) if above < size else whole._replace(low=whole.high)
        goals += [low, high]
    found = descend(ranks, "bracketing the cut", goals)
    return [(low.low, high.high) for low, high in zip(found[::2], found[1::2], strict=True)]


def _sample(task: Task) -> Tensor:
    """Draw this rank's share; nothing where so few candidates are collected outright."""
    ranking = task.part.ranking
    if ranking.entries == 0 or task.candidates <= search.FEW:
        return torch.empty(0, dtype=ranking.space.integer)
    return sample(ranking, of=task.part.entries)


def _all_of(values: Tensor) -> Callable[[int, int], Iterable[Tensor]]:
    return lambda low, high: [values]


def _candidates(part: Part) -> Callable[[int, int], Iterable[Tensor]]:
    """Stream the keys of the candidates."""
    ranking = part.ranking

    def stream(low: int, high: int) -> Iterator[Tensor]:
        for chunk in ranking.chunks():
            found = keys(chunk.scores, ranking.space, absolute=ranking.absolute)
            yield found if chunk.prior is None else found[chunk.prior]

    return stream


def _tied(part: Part, key: int, seen: Divided | None) -> Callable[[int, int], Iterable[Tensor]]:
    """Stream the tree's flat indices of the candidates that have a key."""
    ranking = part.ranking

    def collected(low: int, high: int) -> Iterator[Tensor]:
        assert seen is not None
        assert seen.positions is not None
        yield part.places(seen.positions[seen.keys == key])

    def stream(low: int, high: int) -> Iterator[Tensor]:
        first, last = part.last(low - 1) + 1, part.last(high)
        for chunk in ranking.chunks(first):
            if chunk.stop <= first or chunk.start > last:
                continue
            equal = keys(chunk.scores, ranking.space, absolute=ranking.absolute) == key
            equal = equal if chunk.prior is None else equal & chunk.prior
            yield part.places(equal.nonzero().view(-1) + chunk.start)

    return stream if seen is None else collected
