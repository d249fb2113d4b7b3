"""A call on shards: the ranks agree on it, search, and each marks its own."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gprune.select.amounts import resolve
from gprune.select.boxes import Box
from gprune.select.current import current_call
from gprune.select.errors import LeafError
from gprune.select.host import to_host
from gprune.select.keys import check_exact
from gprune.select.marking import mark_chunks
from gprune.select.ranking import Ranking
from gprune.select.search import keep
from gprune.select.sharded.layouts import Layout
from gprune.select.sharded.parts import Part, chosen_of, part_of
from gprune.select.sharded.ranks import Ranks
from gprune.select.sharded.search import Found, Task, find

NOTHING = Found(-math.inf, -1, 0, None)


class Shards(NamedTuple):
    """What a rank has of the leaves of a call.

    Attributes:
        ranks: those who hold the shards.
        scores: the local shard of each leaf.
        owned: for each leaf, whether this rank counts its entries.
        own: the shards that this rank counts.
        others: those that another rank counts, where leaves are replicated.
    """

    ranks: Ranks
    scores: list[Tensor]
    owned: list[bool]
    own: Part
    others: Part

    @property
    def copied(self) -> list[bool]:
        """For each leaf, whether another rank counts it."""
        return [not owned for owned in self.owned]


def open_call(
    layout: Layout,
    scores: list[Tensor],
    masks: list[Tensor],
    absolute: bool,
    seed: Tensor | None,
    arguments: tuple[Any, ...],
) -> Shards:
    """Check this rank's shards, and go on once all ranks have been called with the same.

    Args:
        layout: where the shards are.
        scores: the local shard of each leaf.
        masks: their prior masks, or empty.
        absolute: ranks by absolute value.
        seed: ranks by random draws if given.
        arguments: the operator's name and whatever else must be equal on all ranks.

    Returns:
        The shards.
    """
    ready: list[Shards] = []

    def describe() -> dict[str, str]:
        number = None if seed is None else int(seed.item())
        if number is None:
            check_exact(scores)
        boxes, owned = layout.shards()
        _check_shapes(layout, boxes, scores)
        ranking = Ranking(scores, masks, absolute, number, boxes=boxes)
        own, others = part_of(ranking, owned), part_of(ranking, [not mine for mine in owned])
        ready.append(Shards(layout.ranks, scores, owned, own, others))
        return {
            "structure": current_call().structure(),
            "leaves": repr((layout.leaves, layout.mesh, [x.dtype for x in scores], len(masks))),
            "arguments": repr((absolute, number, arguments)),
        }

    current_call().met = True
    layout.ranks.agree(describe)
    return ready[0]


def _check_shapes(layout: Layout, boxes: list[Box], scores: list[Tensor]) -> None:
    for i, (leaf, box, own) in enumerate(zip(layout.leaves, boxes, scores, strict=True)):
        if tuple(own.shape) != box.size:
            raise LeafError(
                i,
                "params",
                f"has a local shard of shape {tuple(own.shape)}; of all, {leaf.shape}, the "
                f"placements give this rank {box.size}",
            )


def select_together(shards: Shards, masks: list[Tensor], amount: Tensor, sparsity: bool) -> None:
    """Prune all leaves together.

    Args:
        shards: what this rank has.
        masks: one for each local shard, to be written.
        amount: 0-dim tensor.
        sparsity: whether it is one.
    """
    [candidates] = _candidates(shards.ranks, [shards.own])
    k = resolve(amount, shards.own.entries, candidates, sparsity)
    counted, copied = chosen_of(masks, shards.owned), chosen_of(masks, shards.copied)
    [cut] = _find(shards.ranks, [Task(shards.own, k, candidates, counted)])

    def write() -> None:
        _finish(shards.own, counted, cut)
        _mark(shards.others, copied, cut.value, cut.index)

    shards.ranks.all_do("writing the masks", write)


def select_alone(
    shards: Shards, masks: list[Tensor], amounts: list[Tensor], sparsity: bool
) -> None:
    """Prune each leaf alone; the searches share their messages.

    Args:
        shards: what this rank has.
        masks: one for each local shard, to be written.
        amounts: one per leaf.
        sparsity: whether they are sparsities.

    Raises:
        LeafError: if an amount is out of range.
    """
    own = [shards.own.only(leaf) for leaf in range(len(masks))]
    counted, copied = chosen_of(masks, shards.owned), chosen_of(masks, shards.copied)
    tasks = []
    for leaf, candidates in enumerate(_candidates(shards.ranks, own)):
        try:
            k = resolve(amounts[leaf], own[leaf].entries, candidates, sparsity)
        except ValueError as error:
            raise LeafError(leaf, "sparsity" if sparsity else "amount", str(error)) from None
        tasks.append(Task(own[leaf], k, candidates, [counted[leaf]]))
    cuts = _find(shards.ranks, tasks)

    def write() -> None:
        for leaf, cut in enumerate(cuts):
            _finish(own[leaf], [counted[leaf]], cut)
            _mark(shards.others.only(leaf), [copied[leaf]], cut.value, cut.index)

    shards.ranks.all_do("writing the masks", write)


def find_cuts(shards: Shards, amounts: Sequence[Tensor], sparsity: bool) -> tuple[Tensor, Tensor]:
    """Find the cut of all leaves at each amount.

    Args:
        shards: what this rank has.
        amounts: 0-dim tensors.
        sparsity: whether they are sparsities.

    Returns:
        The values and the flat indices.
    """
    [candidates] = _candidates(shards.ranks, [shards.own])
    ks = [resolve(amount, shards.own.entries, candidates, sparsity) for amount in amounts]
    cuts = _find(shards.ranks, [Task(shards.own, k, candidates, None) for k in ks])
    values = torch.tensor([cut.value for cut in cuts], dtype=torch.float64)
    return values, torch.tensor([cut.index for cut in cuts], dtype=torch.int64)


def masks_from_threshold(shards: Shards, masks: list[Tensor], value: float, index: int) -> None:
    """Write the masks of the local shards at a cut."""

    def write() -> None:
        _mark(shards.own, chosen_of(masks, shards.owned), value, index)
        _mark(shards.others, chosen_of(masks, shards.copied), value, index)

    shards.ranks.all_do("writing the masks", write)


def num_pruned(shards: Shards) -> Tensor:
    """Count the entries that the masks, given as the scores, do not keep."""
    masks = shards.own.ranking.scores

    def count() -> Tensor:
        return torch.tensor([sum(to_host([(~mask).count_nonzero() for mask in masks]))])

    total = shards.ranks.total("counting what is pruned", 1, count)
    return total[0].to(shards.scores[0].device)


def _candidates(ranks: Ranks, parts: list[Part]) -> list[int]:
    """Count the candidates of each part on all ranks."""
    if not any(part.ranking.masks for part in parts):
        return [part.entries for part in parts]

    def count() -> Tensor:
        return torch.tensor([part.ranking.candidates for part in parts])

    found: list[int] = ranks.total("counting the candidates", len(parts), count).tolist()
    return found


def _find(ranks: Ranks, tasks: list[Task]) -> list[Found]:
    """Find the cut of each task; that of nothing needs no search."""
    cuts = iter(find(ranks, [task for task in tasks if task.k]))
    return [next(cuts) if task.k else NOTHING for task in tasks]


def _finish(part: Part, masks: list[Tensor], cut: Found) -> None:
    """Make the masks of what this rank has counted, where they have not been written already."""
    ranking, seen = part.ranking, cut.seen
    if seen is None or seen.keys is None or seen.positions is None:
        _mark(part, masks, cut.value, cut.index)
        return
    last = part.last(cut.index)
    kept = (seen.keys > cut.key) | ((seen.keys == cut.key) & (seen.positions > last))
    keep(ranking, masks, seen.positions[kept])
    mark_chunks(ranking, ranking.joined_chunks(), cut.value, last, masks)


def _mark(part: Part, masks: list[Tensor], value: float, index: int) -> None:
    """Make the masks of a part at a cut of the tree."""
    mark_chunks(part.ranking, part.ranking.chunks(), value, part.last(index), masks)
