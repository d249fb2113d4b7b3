"""Sparse evolutionary training (SET): drop the smallest weights, grow as many at random.

Mocanu et al., 2018, "Scalable training of artificial neural networks with adaptive sparse
connectivity inspired by network science", arXiv:1707.04780, algorithm 1. At a due step t, a leaf
with n weights and z zeros

1. drops its k weights with the lowest scores, k = min(round(ζ(t) n), z),
2. grows k of its z zeros at random. Weights that were just dropped are not grown again.

The paper drops the fraction ζ of the positive and of the negative weights separately. Here all
weights of a leaf are ranked by magnitude, as in later work.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from gprune.allocation import erdos_renyi
from gprune.masks import apply_masks, prunable_params
from gprune.methods import random_unstructured
from gprune.prune import layerwise
from gprune.pruners.pruner import (
    Allocation,
    Due,
    Pruner,
    ScoreFn,
    add_grown,
    bind_random_masks,
    by_magnitude,
    can_skip,
    check_functions,
    count_kept,
    first_step,
    fraction_at,
    is_due,
    raise_on_all_ranks_when_due,
    round_fraction,
)
from gprune.schedules import Schedule
from gprune.select.counts import as_seed
from gprune.trees import Tree, Where, map_leaves


class SparseEvolutionState(NamedTuple):
    """The state of SET.

    Attributes:
        masks: bool masks, `None` where a parameter is not prunable.
        step: the number of updates so far, 0-dim int64.
        seed: 0-dim int64. Together with the step it seeds the draw of new weights.
    """

    masks: Tree
    step: Tensor
    seed: Tensor


def init(
    params: Tree, *, draw_masks: Callable[[Tree], Tree], seed: int | Tensor
) -> SparseEvolutionState:
    """Draw the first masks.

    Args:
        params: the parameters, a pytree of tensors of any shape.
        draw_masks: draws the masks of the parameters.
        seed: the seed of the new weights.

    Returns:
        The first state.
    """
    start = as_seed(seed).to(torch.int64, copy=True)
    return SparseEvolutionState(draw_masks(params), first_step(), start)


@raise_on_all_ranks_when_due
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
    """Drop the weights with the lowest scores and grow as many at random, if the step is due.

    Args:
        params: pytree of tensors of the structure of `state.masks`.
        state: the state from `init` or from the last `update`.
        grads: pytree of that structure; given to `score_fn`, and not used otherwise.
        scores: pytree of that structure, larger = more important; by default those of `score_fn`.
        fraction: see `sparse_evolution`.
        due: see `sparse_evolution`.
        score_fn: see `sparse_evolution`.

    Returns:
        The masked parameters and the next state.

    Raises:
        TypeError: if a function returns a value of the wrong type.
        ValueError: if a structure or shape differs, or a function returns a value out of range.
    """
    step_is_due = is_due(due, state.step)
    if can_skip(step_is_due):
        return apply_masks(params, state.masks), state._replace(step=state.step + 1)
    weights = prunable_params(params, state.masks, "state.masks")
    scores = score_fn(params, grads) if scores is None else scores
    fraction_now = fraction_at(fraction, state.step, step_is_due)
    num_kept = count_kept(state.masks)
    k = map_leaves(_limit_to_zeros, round_fraction(num_kept, fraction_now), num_kept, state.masks)

    survivors = layerwise(weights, scores, masks=state.masks, amount=k)

    # To grow k of the free entries, prune k entries at random from the mask of free entries.
    free = map_leaves(lambda mask: None if mask is None else ~mask, state.masks)
    still_free = layerwise(
        weights,
        masks=free,
        pruning_method=random_unstructured,
        seed=state.seed + ((state.step + 1) << 32),  # differs for all steps of all seeds below 2^32
        amount=k,
    )
    masks = add_grown(survivors, free, still_free)
    # the survivors keep their values; grown weights start at zero
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
    """Return the pruner of sparse evolutionary training (SET), which grows weights at random.

    At a due step t a leaf with n weights and z zeros

    1. drops the k weights with the lowest scores, k = min(round(ζ(t) n), z), rounded half to even,
    2. grows k of its z zeros at random.

    The number of weights never changes. What grows was zero before the step, so no weight is
    dropped and grown in the same step. RigL's rule differs in this.

    With DTensors `due` must give the same answer on all ranks; see `Pruner`.

    Args:
        sparsity: the fraction of all prunable entries that is pruned at any time, 0 to 1.
        fraction: ζ, the fraction of a leaf's weights that is exchanged, `step -> 0-dim float64
            tensor`: `schedules.constant(0.3)`.
        due: whether to exchange weights at a step, `step -> 0-dim bool tensor`: `schedules.every`.
        seed: the seed of the first, random masks and of the new weights.
        allocation: gives each leaf its sparsity.
        where: which leaves are prunable, as in `gprune.prunable`.
        score_fn: `(params, grads) -> scores`; the lowest are dropped. Magnitudes by default.

    Returns:
        The pruner; its state has `masks`, `step` and `seed`.

    Raises:
        TypeError: if a function cannot be called, or a number has the wrong type.
        ValueError: if the sparsity is not from 0 to 1.

    Example:
        >>> from functools import partial
        >>> import torch, gprune as gp
        >>> every_2 = partial(gp.schedules.every, begin=0, end=8, freq=2)
        >>> third = gp.schedules.constant(1 / 3)
        >>> pruner = gp.pruners.sparse_evolution(0.5, fraction=third, due=every_2, seed=0)
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
    check_functions(fraction=fraction, due=due, score_fn=score_fn)
    draw_masks = bind_random_masks(sparsity, seed, allocation, where)
    return Pruner(
        partial(init, draw_masks=draw_masks, seed=seed),
        partial(update, fraction=fraction, due=due, score_fn=score_fn),
    )


def _limit_to_zeros(k: Tensor | None, num_kept: Tensor, mask: Tensor) -> Tensor | None:
    """Limit k to the number of zeros of a leaf, because no more than these can be grown."""
    if k is None:
        return None
    limited = torch.minimum(k, mask.numel() - num_kept)
    # A fraction above 1 gives a k above num_kept. It is not limited, so that layerwise refuses it.
    return torch.where(k > num_kept, k, limited)
