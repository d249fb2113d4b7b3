"""The sharded search: as the search on one machine, with every count added up over the ranks.

Each rank samples its share; two order statistics of all the samples bracket the k-th candidate. One
pass over each rank's shards counts what is below the bracket, writes "above it" into the masks and
collects the few candidates in it, among which a descent finds the k-th. Sample and pass send their
counts as the first step of the descent that follows, so neither takes a message of its own. Where a
rank has too many to collect, or the bracket misses and the counts say on which side to look, the
descent goes through the shards instead. A last one, over the flat indices of what ties at the cut,
finds where among these it falls.

Searches for many cuts go in step and share their messages. One takes at most 25 messages of 8 KiB,
for any number of weights; 7 for a million in float32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from gprune.select import search
from gprune.select.keys import keys, value_of
from gprune.select.passes import Divided, divide
from gprune.select.sample import sample, spread
from gprune.select.sharded.descent import Goal, Tally, descend, narrow, tally
from gprune.select.sharded.parts import Part
from gprune.select.sharded.ranks import Ranks

COARSE = 2**10
"""A bound of the bracket is found to this part of the sample: what it adds to what is collected is
far below what the bracket holds anyway, and two messages of nine are saved."""


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

    def below() -> Tensor:
        for task, (low, high) in zip(tasks, brackets, strict=True):
            ranking = task.part.ranking
            values = value_of(low, ranking.space), value_of(high, ranking.space)
            seen.append(divide(ranking, *values, limit=search.LIMIT, masks=task.masks))
        return torch.tensor([own.below for own in seen])

    goals = [
        _everything(task)._replace(low=low, high=high, values=partial(_collected, task, seen, i))
        for i, (task, (low, high)) in enumerate(zip(tasks, brackets, strict=True))
    ]
    phase = "counting what the bracket divides"
    belows, tallies = tally(ranks, phase, goals, len(tasks), below)
    steps = zip(tasks, goals, belows.tolist(), tallies, seen, strict=True)
    pairs = [_after_a_pass(*step) for step in steps]
    return [goal for goal, _ in pairs], [own for _, own in pairs]


def _after_a_pass(
    task: Task, goal: Goal, below: int, tally: Tally, own: Divided
) -> tuple[Goal, Divided | None]:
    """Say where the cut is once the bracket is counted, and what this rank has collected there."""
    whole, inside = _everything(task), tally.total
    if task.k <= below:
        return whole._replace(high=goal.low - 1, inside=below), None
    if task.k > below + inside:
        nth, above = task.k - below - inside, task.candidates - below - inside
        return whole._replace(low=goal.high + 1, nth=nth, inside=above), None
    return narrow(goal._replace(nth=task.k - below), tally), own if own.keys is not None else None


def _everything(task: Task) -> Goal:
    space = task.part.ranking.space
    return Goal(-space.infinity, space.nan, task.k, task.candidates, _candidates(task.part))


def _brackets(ranks: Ranks, tasks: list[Task]) -> list[tuple[int, int]]:
    """Guess two keys between which each cut lies."""
    samples: list[Tensor] = []

    def draw() -> Tensor:
        samples.extend(_sample(task) for task in tasks)
        return torch.empty(0, dtype=torch.int64)

    wholes = [
        _everything(task)._replace(values=partial(_sampled, samples, i))
        for i, task in enumerate(tasks)
    ]
    _, tallies = tally(ranks, "counting the sample", wholes, 0, draw)
    goals = []
    for task, whole, drawn in zip(tasks, wholes, tallies, strict=True):
        size = drawn.total
        below, above = spread(size, task.k, task.candidates) if size else (-1, 0)
        whole = whole._replace(enough=size // COARSE)
        lowest, highest = whole._replace(high=whole.low), whole._replace(low=whole.high)
        low = narrow(whole._replace(nth=below + 1), drawn) if below >= 0 else lowest
        high = narrow(whole._replace(nth=above + 1), drawn) if above < size else highest
        goals += [low, high]
    found = descend(ranks, "bracketing the cut", goals)
    return [(low.low, high.high) for low, high in zip(found[::2], found[1::2], strict=True)]


def _sample(task: Task) -> Tensor:
    """Draw this rank's share; nothing where so few candidates are collected outright."""
    ranking = task.part.ranking
    if ranking.entries == 0 or task.candidates <= search.FEW:
        return torch.empty(0, dtype=ranking.space.integer)
    return sample(ranking, of=task.part.entries)


def _sampled(samples: list[Tensor], number: int, low: int, high: int) -> Iterable[Tensor]:
    """Stream the keys of a sample, once it is drawn."""
    return [samples[number]]


def _collected(
    task: Task, seen: list[Divided], number: int, low: int, high: int
) -> Iterable[Tensor]:
    """Stream the keys that a pass has collected, once it is made; if too many, those of all."""
    found = seen[number].keys
    return _candidates(task.part)(low, high) if found is None else [found]


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
