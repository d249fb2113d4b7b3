"""Planning: which tensors are pruned, and the threshold of each. Nothing is written yet."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

import gprune as gp
from gprune.checkpoints.reading import CheckpointError
from gprune.checkpoints.scoring import Advance, BlockScore, score_all
from gprune.summaries import LeafSummary, Summary
from gprune.trees import predicate

DTYPES = (torch.bfloat16, torch.float16, torch.float32, torch.float64)

NamedTensors: TypeAlias = dict[str, Tensor]
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


def is_matrix(tensor: Tensor) -> bool:
    """Return whether `choose` chooses a tensor by default.

    Such a tensor is not empty, has two or more dims, and is of bfloat16 to float64.
    """
    return tensor.dtype in DTYPES and tensor.dim() >= 2 and tensor.numel() > 0


def choose(
    tensors: NamedTensors, *, include: Sequence[str] = (), exclude: Sequence[str] = ()
) -> NamedTensors:
    """Choose the tensors to prune: floating point tensors of at least two dimensions.

    Their dtype is bfloat16, float16, float32 or float64.

    Args:
        tensors: the tensors of a checkpoint, by name.
        include: globs of names. If there are any, only tensors that one of them matches are chosen.
        exclude: globs of names. Tensors that one of them matches are not chosen.

    Returns:
        The chosen tensors by name, sorted by name, which is the order of the flat indices.

    Raises:
        CheckpointError: if a glob matches no name, no tensor is chosen, or the checkpoint contains
            masks of `torch.nn.utils.prune`.
    """
    for glob in (*include, *exclude):
        matches = predicate(glob)
        if not any(matches(name, tensor) for name, tensor in tensors.items()):
            raise CheckpointError(f"{glob!r} matches none of the {len(tensors)} tensors")
    masked = [name for name in tensors if name.endswith("_mask") and f"{name[:-5]}_orig" in tensors]
    if masked:
        raise CheckpointError(
            f"{masked[0]!r} is a mask of torch.nn.utils.prune; make it permanent first, with its "
            "remove() or gprune.adapter.make_permanent_()"
        )
    included, excluded = predicate(include or "*"), predicate(exclude)
    chosen = {
        name: tensor
        for name, tensor in sorted(tensors.items())
        if is_matrix(tensor) and included(name, tensor) and not excluded(name, tensor)
    }
    if not chosen:
        raise CheckpointError(
            "there is nothing to prune: no floating point tensor of at least two dimensions is left"
        )
    return chosen


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


def preview(plan: Plan, advance: Advance = lambda num_bytes: None) -> Summary:
    """Count what a plan would prune, without writing anything."""
    rows = []
    for name, weight in plan.weights.items():
        rows.append(summary_row(name, weight, plan.mask(name)))
        advance(weight.nbytes)
    return Summary(tuple(rows))


def summary_row(name: str, weight: Tensor, mask: Tensor) -> LeafSummary:
    """Count the entries of a weight that a mask prunes."""
    pruned = weight.numel() - int(mask.count_nonzero())
    return LeafSummary(name, tuple(weight.shape), weight.numel(), pruned, prunable=True)
