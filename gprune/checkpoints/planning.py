"""Planning: the threshold or the mask of each weight, and what it prunes. Nothing is written."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple, TypeAlias

from torch import Tensor

import gprune as gp
from gprune.checkpoints.choosing import NamedTensors
from gprune.checkpoints.density import count_zeros
from gprune.checkpoints.reading import CheckpointError
from gprune.checkpoints.scoring import Advance, BlockScore, score_all
from gprune.summaries import LeafSummary, Summary

ThresholdFn: TypeAlias = Callable[
    [NamedTensors, NamedTensors | None, float, Advance], dict[str, gp.Threshold]
]
"""A function of weights, scores (or `None`) and an amount: a threshold for each weight."""


class Plan(NamedTuple):
    """The weights to prune, and their thresholds.

    Attributes:
        weights: the mapped weights that are pruned, by name.
        scores: their mapped scores, or `None` for magnitude.
        thresholds: the threshold of each weight. Flat indices count from the weight's first entry.
    """

    weights: NamedTensors
    scores: NamedTensors | None
    thresholds: dict[str, gp.Threshold]

    def mask(self, name: str) -> Tensor:
        """Compute the mask of one weight."""
        scores = None if self.scores is None else self.scores[name]
        mask: Tensor = gp.masks_from_threshold(self.thresholds[name], self.weights[name], scores)
        return mask


class Rebuilt(NamedTuple):
    """New weights to write in place of those of a checkpoint, and their masks, in memory.

    Attributes:
        weights: the new weights, by name, each with the shape and dtype of the tensor that it
            replaces.
        masks: their masks.
    """

    weights: NamedTensors
    masks: NamedTensors

    def mask(self, name: str) -> Tensor:
        """Return the mask of one weight."""
        return self.masks[name]


class Outcome(NamedTuple):
    """What pruning does to a checkpoint. The two differ if entries were zero already.

    Attributes:
        pruned: how many entries of each weight the masks prune.
        zeros: how many entries of each weight are zero in the copy, as `density` counts them.
    """

    pruned: Summary
    zeros: Summary


def global_thresholds(
    weights: NamedTensors, scores: NamedTensors | None, amount: float, advance: Advance
) -> dict[str, gp.Threshold]:
    """Find the threshold of `gprune.global_unstructured`, with flat indices for each weight."""
    threshold = gp.find_threshold(weights, scores, amount=amount)
    thresholds, num_before = {}, 0
    for name, weight in weights.items():
        thresholds[name] = gp.Threshold(threshold.value, threshold.flat_index - num_before)
        num_before += weight.numel()
        advance(weight.nbytes)
    return thresholds


def layerwise_thresholds(
    weights: NamedTensors, scores: NamedTensors | None, amount: float, advance: Advance
) -> dict[str, gp.Threshold]:
    """Find the thresholds of `gprune.layerwise`: one search for each weight."""
    thresholds = {}
    for name, weight in weights.items():
        scores_of_weight = None if scores is None else scores[name]
        try:
            thresholds[name] = gp.find_threshold(weight, scores_of_weight, amount=amount)
        except ValueError as error:
            raise CheckpointError(f"{name!r}: {error}") from None
        advance(weight.nbytes)
    return thresholds


def plan(
    weights: NamedTensors,
    *,
    amount: float,
    threshold_fn: ThresholdFn = global_thresholds,
    score: BlockScore | None = None,
    folder: Path,
    advance: Advance = lambda num_bytes: None,
) -> Plan:
    """Score the weights and find their thresholds.

    Args:
        weights: mapped weights by name, from `choose`.
        amount: how many entries to prune (int), or the fraction of them (float, 0 to 1).
        threshold_fn: `global_thresholds` or `layerwise_thresholds`.
        score: a function of one weight, or `None` for magnitude.
        folder: where the temporary file of the scores is written. It takes 4 bytes for each entry,
            or 8 if one of the weights is float64.
        advance: called with the number of bytes of each weight after it is scored, and again after
            its threshold is found.

    Returns:
        The plan.

    Raises:
        ValueError: if the amount is out of range, or a weight cannot be scored.
    """
    scores = None if score is None else score_all(weights, score, folder, advance)
    return Plan(weights, scores, threshold_fn(weights, scores, amount, advance))


def preview(plan: Plan | Rebuilt, advance: Advance = lambda num_bytes: None) -> Outcome:
    """Count what a plan would prune, without writing anything."""
    rows = []
    for name, weight in plan.weights.items():
        rows.append(count_entries(name, weight, plan.mask(name)))
        advance(weight.nbytes)
    return outcome(rows)


def count_entries(name: str, weight: Tensor, mask: Tensor) -> tuple[LeafSummary, LeafSummary]:
    """Count the entries of a weight that a mask prunes, and those that are zero afterwards."""
    pruned, zeros = mask.numel() - int(mask.count_nonzero()), count_zeros(weight, mask)
    shape, size = tuple(weight.shape), weight.numel()
    return (
        LeafSummary(name, shape, size, pruned, prunable=True),
        LeafSummary(name, shape, size, zeros, prunable=True),
    )


def outcome(rows: Iterable[tuple[LeafSummary, LeafSummary]]) -> Outcome:
    """Sort the rows of `count_entries` by name."""
    pruned, zeros = zip(*sorted(rows, key=lambda row: row[0].path), strict=True)
    return Outcome(Summary(pruned), Summary(zeros))
