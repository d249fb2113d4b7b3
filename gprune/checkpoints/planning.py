"""Planning: which tensors are pruned, and where each of them is cut. Nothing is written yet."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

import gprune as gp
from gprune.checkpoints.reading import CheckpointError
from gprune.checkpoints.scoring import Advance, Score, score_all
from gprune.summaries import LeafSummary, Summary
from gprune.trees import predicate

DTYPES = (torch.bfloat16, torch.float16, torch.float32, torch.float64)

Tensors: TypeAlias = dict[str, Tensor]
Method: TypeAlias = Callable[[Tensors, Tensors | None, float, Advance], dict[str, gp.Threshold]]
"""A function of weights, scores (or none, for magnitude) and an amount: a cut for each weight."""


class Plan(NamedTuple):
    """Where each weight is cut.

    Attributes:
        weights: the mapped weights that are pruned, by name.
        scores: their mapped scores, or `None` for magnitude.
        cuts: where each is cut; flat indices count from the weight's own first entry.
    """

    weights: Tensors
    scores: Tensors | None
    cuts: dict[str, gp.Threshold]

    def mask(self, name: str) -> Tensor:
        """Make the mask of one weight."""
        scores = None if self.scores is None else self.scores[name]
        mask: Tensor = gp.masks_from_threshold(self.cuts[name], self.weights[name], scores)
        return mask


def is_matrix(tensor: Tensor) -> bool:
    """Say whether a tensor is a weight that is pruned unless it is excluded."""
    return tensor.dtype in DTYPES and tensor.dim() >= 2 and tensor.numel() > 0


def choose(
    tensors: Tensors, *, include: Sequence[str] = (), exclude: Sequence[str] = ()
) -> Tensors:
    """Choose what is pruned: of what has at least two dimensions in bfloat16 or float16 to 64.

    Args:
        tensors: the tensors of a checkpoint.
        include: globs of names; if there are any, only what one of them matches.
        exclude: globs of names that are left alone.

    Returns:
        The chosen tensors, by name, in flat order.

    Raises:
        CheckpointError: if a glob matches no name, nothing is left, or the checkpoint has masks.
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
        raise CheckpointError("none of the tensors is a floating point matrix that is to be pruned")
    return chosen


def together(
    weights: Tensors, scores: Tensors | None, amount: float, advance: Advance
) -> dict[str, gp.Threshold]:
    """Rank all weights together, as `gprune.global_unstructured` does: one search."""
    cut = gp.find_threshold(weights, scores, amount=amount)
    cuts, before = {}, 0
    for name, weight in weights.items():
        cuts[name] = gp.Threshold(cut.value, cut.flat_index - before)
        before += weight.numel()
        advance(weight.nbytes)
    return cuts


def each_alone(
    weights: Tensors, scores: Tensors | None, amount: float, advance: Advance
) -> dict[str, gp.Threshold]:
    """Rank each weight alone, as `gprune.layerwise` does."""
    cuts = {}
    for name, weight in weights.items():
        own = None if scores is None else scores[name]
        try:
            cuts[name] = gp.find_threshold(weight, own, amount=amount)
        except ValueError as error:
            raise CheckpointError(f"{name!r}: {error}") from None
        advance(weight.nbytes)
    return cuts


def plan(
    weights: Tensors,
    *,
    amount: float,
    method: Method = together,
    score: Score | None = None,
    folder: Path,
    advance: Advance = lambda num_bytes: None,
) -> Plan:
    """Find where the weights are cut.

    Args:
        weights: mapped weights by name, from `choose`.
        amount: how many to prune: an int, or a fraction as a float.
        method: `together` or `each_alone`.
        score: a function of one weight, or `None` for magnitude.
        folder: where a file without a name finds room for the scores; 4 bytes for each entry, 8 if
            a weight has them.
        advance: told of bytes: of each weight twice, or once where there is no score.

    Returns:
        The plan.

    Raises:
        ValueError: if the amount is out of range, or a weight cannot be scored.
    """
    scores = None if score is None else score_all(weights, score, folder, advance)
    return Plan(weights, scores, method(weights, scores, amount, advance))


def preview(plan: Plan, advance: Advance = lambda num_bytes: None) -> Summary:
    """Say what a plan would prune, without writing anything."""
    rows = []
    for name, weight in plan.weights.items():
        rows.append(row(name, weight, plan.mask(name)))
        advance(weight.nbytes)
    return Summary(tuple(rows))


def row(name: str, weight: Tensor, mask: Tensor) -> LeafSummary:
    """Say what a mask prunes of a weight."""
    pruned = weight.numel() - int(mask.count_nonzero())
    return LeafSummary(name, tuple(weight.shape), weight.numel(), pruned, prunable=True)
