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
from gprune.checkpoints.scoring import Advance, BlockScore, no_progress, score_all
from gprune.summaries import LeafSummary, Summary

ThresholdFn: TypeAlias = Callable[
    [NamedTensors, NamedTensors | None, float, Advance], dict[str, gp.Threshold]
]
"""A function of weights, scores (or `None`) and an amount: a threshold for each weight."""


class Plan(NamedTuple):
    """The weights to prune, and their thresholds, as `plan` returns them.

    Attributes:
        weights: the mapped weights that are pruned, by name.
        scores: their mapped scores, or `None` for magnitude.
        thresholds: the threshold of each weight. Flat indices count from the weight's first entry.

    Example:
        >>> import torch
        >>> from pathlib import Path
        >>> from gprune import checkpoints
        >>> weights = {"fc.weight": torch.tensor([[0.1, -2.0], [3.0, 0.4]])}
        >>> plan = checkpoints.plan(weights, amount=0.5, folder=Path())
        >>> plan.mask("fc.weight")
        tensor([[False,  True],
                [ True, False]])
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
    """What pruning does to a checkpoint. The two counts differ if entries were zero already.

    Attributes:
        pruned: how many entries of each weight the masks prune.
        zeros: how many entries of each weight are zero in the copy, as `density` counts them.

    Example:
        >>> import torch
        >>> from pathlib import Path
        >>> from gprune import checkpoints
        >>> weights = {"fc.weight": torch.tensor([[0.0, -2.0], [3.0, 0.0]])}
        >>> found = checkpoints.preview(checkpoints.plan(weights, amount=1, folder=Path()))
        >>> found.pruned.total.pruned, found.zeros.total.pruned
        (1, 2)
    """

    pruned: Summary
    zeros: Summary


def global_thresholds(
    weights: NamedTensors, scores: NamedTensors | None, amount: float, advance: Advance
) -> dict[str, gp.Threshold]:
    """Return the thresholds of `gprune.global_unstructured`: one ranking over all weights.

    Args:
        weights: mapped weights by name.
        scores: their scores by name, or `None` for magnitude.
        amount: how many entries to prune (int), or the fraction of them (float, 0 to 1).
        advance: called with the number of bytes of each weight.

    Returns:
        A threshold for each weight, by name. All have the same value. Flat indices count from the
        weight's first entry.

    Raises:
        ValueError: if the amount is out of range.

    Example:
        >>> import torch
        >>> from gprune import checkpoints
        >>> weights = {"a": torch.tensor([[4.0, 3.0]]), "b": torch.tensor([[2.0, 1.0]])}
        >>> found = checkpoints.global_thresholds(weights, None, 3, lambda num_bytes: None)
        >>> [float(threshold.value) for threshold in found.values()]
        [3.0, 3.0]
    """
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
    """Return the thresholds of `gprune.layerwise`: a ranking of each weight by itself.

    Args:
        weights: mapped weights by name.
        scores: their scores by name, or `None` for magnitude.
        amount: how many entries of each weight to prune (int), or the fraction of them (float, 0
            to 1).
        advance: called with the number of bytes of each weight after its threshold is found.

    Returns:
        A threshold for each weight, by name.

    Raises:
        CheckpointError: if the amount is out of range for a weight.

    Example:
        >>> import torch
        >>> from gprune import checkpoints
        >>> weights = {"a": torch.tensor([[4.0, 3.0]]), "b": torch.tensor([[2.0, 1.0]])}
        >>> found = checkpoints.layerwise_thresholds(weights, None, 1, lambda num_bytes: None)
        >>> [float(threshold.value) for threshold in found.values()]
        [3.0, 1.0]
    """
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
    advance: Advance = no_progress,
) -> Plan:
    """Return the weights of a checkpoint to prune, with the thresholds that determine their masks.

    Args:
        weights: mapped weights by name, from `choose`.
        amount: how many entries to prune (int), or the fraction of them (float, 0 to 1).
        threshold_fn: `global_thresholds` or `layerwise_thresholds`.
        score: `l2`, `lamp`, or another function of one weight; `None` for magnitude.
        folder: where the temporary file of the scores is written. It takes 4 bytes for each entry,
            or 8 if one of the weights is float64.
        advance: called with the number of bytes of each weight after it is scored, and again after
            its threshold is found.

    Returns:
        The plan, for `preview` or `write`.

    Raises:
        ValueError: if the amount is out of range, or a weight cannot be scored.

    Example:
        >>> import torch
        >>> from pathlib import Path
        >>> from gprune import checkpoints
        >>> weights = {"fc.weight": torch.tensor([[0.1, -2.0], [3.0, 0.4]])}
        >>> plan = checkpoints.plan(weights, amount=0.5, score=checkpoints.lamp, folder=Path())
        >>> checkpoints.preview(plan).pruned.total.density
        0.5
    """
    scores = None if score is None else score_all(weights, score, folder, advance)
    return Plan(weights, scores, threshold_fn(weights, scores, amount, advance))


def preview(plan: Plan | Rebuilt, advance: Advance = no_progress) -> Outcome:
    """Return what a plan would prune, without writing anything.

    Args:
        plan: the plan, from `plan`, or new weights and their masks.
        advance: called with the number of bytes of each weight after it is counted.

    Returns:
        How much of each weight is pruned, and how much of it would be zero in the copy.

    Example:
        >>> import torch
        >>> from pathlib import Path
        >>> from gprune import checkpoints
        >>> weights = {"fc.weight": torch.tensor([[0.1, -2.0], [3.0, 0.4]])}
        >>> found = checkpoints.preview(checkpoints.plan(weights, amount=1, folder=Path()))
        >>> print(found.pruned)
        leaf       shape  entries  pruned  density
        fc.weight  2x2          4       1   0.7500
        total                   4       1   0.7500
    """
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
