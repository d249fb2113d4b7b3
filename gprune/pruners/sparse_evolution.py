"""Sparse evolutionary training (SET): the weakest weights make room for random new ones.

Mocanu et al., 2018, "Scalable training of artificial neural networks with adaptive sparse
connectivity inspired by network science", arXiv:1707.04780, algorithm 1. At a due step every leaf
drops a fraction of its weights, those closest to zero, and grows as many where it had none. What
was just dropped is not grown again: the new connections are new. The paper takes the fraction of
the positive and of the negative weights apart; here, as in later work, all are ranked together.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from gprune.allocation import erdos_renyi
from gprune.masks import apply_masks, with_holes
from gprune.methods import random_unstructured
from gprune.prune import layerwise
from gprune.pruners.pruner import (
    Allocation,
    Due,
    Pruner,
    ScoreFn,
    by_magnitude,
    check_functions,
    first_step,
    is_due,
    kept_and_share,
    only_when,
    regrown,
    sparse_from_the_start,
)
from gprune.schedules import Schedule
from gprune.select.amounts import as_scalar, as_seed
from gprune.trees import Tree, Where, map_leaves


class SparseEvolutionState(NamedTuple):
    """The state of SET.

    Attributes:
        masks: bool masks, `None` where a parameter is not pruned.
        step: 0-dim int64, how many updates there were.
        seed: 0-dim int64; with the step it seeds the draw of new weights.
    """

    masks: Tree
    step: Tensor
    seed: Tensor


def init(
    params: Tree,
    *,
    sparsity: float | Tensor,
    seed: int | Tensor,
    allocation: Allocation,
    where: Where,
) -> SparseEvolutionState:
    """Draw the first masks."""
    start = as_seed(seed).to(torch.int64, copy=True)
    masks = sparse_from_the_start(params, sparsity, start, allocation, where)
    return SparseEvolutionState(masks, first_step(), start)


def update(
    params: Tree,
    state: SparseEvolutionState,
    grads: Tree = None,
    scores: Tree = None,
    *,
    fraction: Schedule,
    due: Due,
    score_fn: ScoreFn,
) -> tuple[Tree, SparseEvolutionState]:
    """Drop the lowest and grow as many at random, if the step is due."""
    weights = with_holes(params, state.masks, "state.masks")
    ranked = score_fn(params, grads) if scores is None else scores
    share = only_when(is_due(due, state.step), fraction(state.step))
    k = map_leaves(lambda mask: None if mask is None else _num_exchanged(share, mask), state.masks)
    survivors = layerwise(weights, ranked, masks=state.masks, amount=k)
    free = map_leaves(lambda mask: None if mask is None else ~mask, state.masks)
    still_free = layerwise(
        weights,
        masks=free,
        pruning_method=random_unstructured,
        seed=state.seed + ((state.step + 1) << 32),  # no small seed meets another's steps
        amount=k,
    )
    masks = regrown(survivors, free, still_free)
    # new weights start at zero, which is what is masked here: all but the survivors
    return apply_masks(params, survivors), SparseEvolutionState(masks, state.step + 1, state.seed)


def sparse_evolution(
    sparsity: float | Tensor,
    *,
    fraction: Schedule,
    due: Due,
    seed: int | Tensor,
    allocation: Allocation = erdos_renyi,
    where: Where = None,
    score_fn: ScoreFn = by_magnitude,
) -> Pruner[SparseEvolutionState]:
    """Build the pruner of sparse evolutionary training.

    At a due step t a leaf with n weights and z zeros exchanges k = min(round(ζ(t) n), z) of them;
    the number of weights never changes.

    Args:
        sparsity: the fraction of all prunable entries that is pruned at any time, 0 to 1.
        fraction: ζ, the fraction of a leaf's weights that is exchanged, `step -> 0-dim float64
            tensor`: `schedules.constant(0.3)`.
        due: whether to exchange at a step, `step -> 0-dim bool tensor`: `schedules.every`.
        seed: draws the first masks and the new weights.
        allocation: how the leaves share the sparsity.
        where: which leaves are prunable, as in `gprune.prunable`.
        score_fn: `(params, grads) -> scores`; the lowest are dropped. Magnitudes by default.

    Returns:
        The pruner; its state has `masks`, `step` and `seed`.

    Raises:
        TypeError: if one of the functions is none, or a number is of another type.

    Example:
        >>> import gprune as gp
        >>> every_2 = partial(gp.schedules.every, begin=0, end=8, freq=2)
        >>> third = gp.schedules.constant(1 / 3)
        >>> pruner = sparse_evolution(0.5, fraction=third, due=every_2, seed=0)
        >>> params = {"weight": torch.arange(1.0, 13.0).view(3, 4)}
        >>> state = pruner.init(params)
        >>> params, new = pruner.update(params, state)
        >>> int((new.masks["weight"] & ~state.masks["weight"]).sum())
        2
        >>> int(gp.num_pruned(new.masks))
        6

    References:
        Mocanu et al., 2018, arXiv:1707.04780, algorithm 1.
    """
    check_functions(fraction=fraction, due=due, score_fn=score_fn, allocation=allocation)
    return Pruner(
        partial(
            init,
            sparsity=as_scalar(sparsity, "sparsity"),
            seed=as_seed(seed),
            allocation=allocation,
            where=where,
        ),
        partial(update, fraction=fraction, due=due, score_fn=score_fn),
    )


def _num_exchanged(share: Tensor, mask: Tensor) -> Tensor:
    num_kept, wanted = kept_and_share(mask, share)
    k = torch.minimum(wanted, mask.numel() - num_kept)
    return torch.where(wanted > num_kept, wanted, k)  # a fraction above 1 is refused
