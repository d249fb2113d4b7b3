"""Gradual pruning: the sparsity follows a schedule while the weights train.

Zhu & Gupta, 2017, "To prune, or not to prune", arXiv:1710.01878, section 3. At a due step t the
k weights with the lowest scores are pruned,

    k = max(0, round(s(t) n) - number already pruned),

where s is the schedule and n the number of prunable entries. What is pruned stays pruned.

With `gprune.straight_through` in the loss, pruned weights keep training, and you may want to choose
among all weights anew at each due step. For that, pass a `prune` of your own. If the sparsity that
it gets is 0, the step is not due, or nothing is to be pruned: return the prior masks. Otherwise
ignore the prior masks, and prune from `keep_all`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from torch import Tensor

from gprune.masks import apply_masks, keep_all, prunable_params
from gprune.prune import global_unstructured
from gprune.pruners.pruner import (
    Allocation,
    Due,
    Pruner,
    ScoreFn,
    by_magnitude,
    can_skip,
    check_functions,
    first_step,
    is_due,
    no_allocation,
    raise_on_all_ranks_when_due,
    zero_unless,
)
from gprune.schedules import Schedule
from gprune.trees import Tree, Where, prunable


class GradualState(NamedTuple):
    """The state of gradual pruning.

    Attributes:
        masks: bool masks, `None` where a parameter is not prunable.
        step: the number of updates so far, 0-dim int64.
    """

    masks: Tree
    step: Tensor


def init(params: Tree, *, where: Where) -> GradualState:
    """Keep every weight."""
    return GradualState(keep_all(prunable(params, where)), first_step())


@raise_on_all_ranks_when_due
def update(
    params: Tree,
    state: GradualState,
    grads: Tree = None,
    scores: Tree = None,
    *,
    schedule: Schedule,
    due: Due,
    score_fn: ScoreFn,
    allocation: Allocation,
    prune: Callable[..., Tree],
) -> tuple[Tree, GradualState]:
    """Prune to the sparsity of the schedule, if the step is due."""
    step_is_due = is_due(due, state.step)
    if can_skip(step_is_due):
        return apply_masks(params, state.masks), state._replace(step=state.step + 1)
    weights = prunable_params(params, state.masks, "state.masks")
    scores = score_fn(params, grads) if scores is None else scores
    target = allocation(weights, sparsity=schedule(state.step))
    name = "the sparsity that schedule and allocation give"
    sparsity = zero_unless(step_is_due, target, name)  # 0 prunes nothing more
    masks = prune(weights, scores, masks=state.masks, sparsity=sparsity)
    return apply_masks(params, masks), GradualState(masks, state.step + 1)


def gradual(
    schedule: Schedule,
    *,
    due: Due,
    where: Where = None,
    score_fn: ScoreFn = by_magnitude,
    allocation: Allocation = no_allocation,
    prune: Callable[..., Tree] = global_unstructured,
) -> Pruner[GradualState]:
    """Build the pruner that follows a schedule from dense to sparse.

    At a due step t the max(0, round(s(t) n) - pruned) of the n prunable entries with the lowest
    scores are pruned.

    With DTensors `due` must give the same answer on all ranks; see `Pruner`.

    Args:
        schedule: the sparsity at each step, `step -> 0-dim float64 tensor`.
        due: whether to prune at a step, `step -> 0-dim bool tensor`: `schedules.every`. A schedule
            reaches its last sparsity only if its last step, or a later one, is due.
        where: which leaves are prunable, as in `gprune.prunable`.
        score_fn: `(params, grads) -> scores`; magnitudes by default.
        allocation: gives each leaf its sparsity, for `prune=layerwise`:
            `allocation.erdos_renyi`. By default all leaves are ranked together.
        prune: `global_unstructured`, `layerwise`, or a partial of one with another method.

    Returns:
        The pruner; its state has `masks` and `step`.

    Raises:
        TypeError: if a function cannot be called.

    Example:
        >>> import torch, gprune as gp
        >>> schedule = gp.schedules.linear(0.5, begin=0, end=8)
        >>> pruner = gradual(schedule, due=partial(gp.schedules.every, begin=0, end=8, freq=4))
        >>> params = {"weight": torch.arange(1.0, 9.0).view(2, 4)}
        >>> state = pruner.init(params)
        >>> for step in range(9):
        ...     params, state = pruner.update(params, state)
        ...     if step % 4 == 0:
        ...         print(step, int(gp.num_pruned(state.masks)))
        0 0
        4 2
        8 4

    References:
        Zhu & Gupta, 2017, arXiv:1710.01878, section 3.
    """
    check_functions(
        schedule=schedule, due=due, score_fn=score_fn, allocation=allocation, prune=prune
    )
    return Pruner(
        partial(init, where=where),
        partial(
            update,
            schedule=schedule,
            due=due,
            score_fn=score_fn,
            allocation=allocation,
            prune=prune,
        ),
    )
