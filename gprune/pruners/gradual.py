"""Gradual pruning: the sparsity follows a schedule while the weights train.

Zhu & Gupta, 2017, "To prune, or not to prune", arXiv:1710.01878, section 3. At a due step t the
k weights with the lowest scores are pruned, with

    k = max(0, round(s(t) n) - number already pruned),

where s is the schedule and n the number of prunable entries. What is pruned stays pruned.

With `gprune.straight_through` in the loss, pruned weights keep training, and you may want to choose
among all weights anew at each due step. For that, pass a `prune` of your own. It gets the
sparsity 0 if the step is not due or nothing is to be pruned. Then return the prior masks. Otherwise
ignore them, and prune as if nothing were pruned yet.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gprune.allocation import erdos_renyi, owl, uniform
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
from gprune.schedules import Schedule, every
from gprune.select.counts import as_scalar
from gprune.trees import Tree, Where, prunable


class GradualState(NamedTuple):
    """The state of gradual pruning.

    Attributes:
        masks: bool masks, `None` where a parameter is not prunable.
        step: the number of updates so far, 0-dim int64.
        target: what the schedule gave at the last due step, 0-dim float32; 0 before the first. The
            masks have reached the last sparsity of the schedule, `s`, when `target == s`.
    """

    masks: Tree
    step: Tensor
    target: Tensor


def init(params: Tree, *, where: Where) -> GradualState:
    """Keep every weight.

    Args:
        params: the parameters, a pytree of tensors of any shape.
        where: which leaves are prunable, as in `gprune.prunable`.

    Returns:
        The first state.
    """
    # not float64: for a float64 number on the CPU, torch.compile calls its backend twice
    target = torch.zeros((), dtype=torch.float32, device="cpu")
    return GradualState(keep_all(prunable(params, where)), first_step(), target)


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
    """Prune to the sparsity of the schedule, if the step is due.

    Args:
        params: pytree of tensors of the structure of `state.masks`.
        state: the state from `init` or from the last `update`.
        grads: pytree of that structure; given to `score_fn`, and not used otherwise.
        scores: pytree of that structure, larger = more important; by default those of `score_fn`.
        schedule: see `gradual`.
        due: see `gradual`.
        score_fn: see `gradual`.
        allocation: see `gradual`.
        prune: see `gradual`.

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
    target = schedule(state.step)
    allocated = allocation(weights, sparsity=target)
    name = "the sparsity that schedule and allocation give"
    sparsity = zero_unless(step_is_due, allocated, name)  # 0 prunes nothing more
    masks = prune(weights, scores, masks=state.masks, sparsity=sparsity)
    reached = as_scalar(target, "schedule(step)").to(state.target)
    target = torch.where(step_is_due.to(reached.device), reached, state.target)
    return apply_masks(params, masks), GradualState(masks, state.step + 1, target)


def gradual(
    schedule: Schedule,
    *,
    due: Due,
    where: Where = None,
    score_fn: ScoreFn = by_magnitude,
    allocation: Allocation = no_allocation,
    prune: Callable[..., Tree] = global_unstructured,
) -> Pruner[GradualState]:
    """Return the pruner that follows a schedule from dense to sparse.

    At a due step t, k of the n prunable entries are pruned, those with the lowest scores:

        k = max(0, round(s(t) n) - number already pruned).

    s is the schedule. What is pruned stays pruned.

    With DTensors `due` must give the same answer on all ranks; see `Pruner`.

    Args:
        schedule: the sparsity at each step, `step -> 0-dim float64 tensor`.
        due: whether to prune at a step, `step -> 0-dim bool tensor`: `schedules.every`. A schedule
            reaches its last sparsity only if its last step, or a later one, is due. `state.target`
            says whether it has.
        where: which leaves are prunable, as in `gprune.prunable`.
        score_fn: `(params, grads) -> scores`; magnitudes by default.
        allocation: gives each leaf its sparsity, for `prune=layerwise`:
            `allocation.erdos_renyi`. By default all leaves get the sparsity of the schedule.
        prune: `global_unstructured`, `layerwise`, or a partial of one with another method.

    Returns:
        The pruner; its state has `masks`, `step` and `target`.

    Raises:
        TypeError: if a function cannot be called, or an allocation of gprune is used without
            `prune=layerwise`.
        ValueError: if `schedule` is one of `gprune.schedules` and `due` a partial of
            `schedules.every` whose last step comes before the end of the schedule.

    Example:
        >>> from functools import partial
        >>> import torch, gprune as gp
        >>> schedule = gp.schedules.linear(0.5, begin=0, end=8)
        >>> every_4 = partial(gp.schedules.every, begin=0, end=8, freq=4)
        >>> pruner = gp.pruners.gradual(schedule, due=every_4)
        >>> params = {"weight": torch.arange(1.0, 9.0).view(2, 4)}
        >>> state = pruner.init(params)
        >>> for step in range(9):
        ...     params, state = pruner.update(params, state)
        ...     if step % 4 == 0:
        ...         print(step, int(gp.num_pruned(state.masks)))
        0 0
        4 2
        8 4
        >>> bool(state.target == 0.5)  # the last sparsity of the schedule
        True

    References:
        Zhu & Gupta, 2017, arXiv:1710.01878, section 3.
    """
    check_functions(
        schedule=schedule, due=due, score_fn=score_fn, allocation=allocation, prune=prune
    )
    _check_last_due_step(schedule, due)
    per_leaf = _function_in(allocation) in (erdos_renyi, owl, uniform)
    if per_leaf and _function_in(prune) is global_unstructured:
        raise TypeError(
            f"allocation gives each leaf its own sparsity, got {_function_in(allocation).__name__} "
            "with prune=global_unstructured, which takes one for all; pass prune=gprune.layerwise"
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


def _check_last_due_step(schedule: Schedule, due: Due) -> None:
    """Raise a ValueError if the last due step is known, and is before the end of the schedule."""
    end = getattr(schedule, "end", None)
    if end is None or not isinstance(due, partial) or due.func is not every:
        return
    due(0)  # so that a wrong argument of `every` raises now, not at the first step
    first, freq = due.keywords["begin"], due.keywords["freq"]
    last = due.keywords["end"] - (due.keywords["end"] - first) % freq
    if last < end:
        needed = last + math.ceil((end - last) / freq) * freq
        raise ValueError(
            f"the last due step must not be before step {end:g}, where the schedule reaches its "
            f"last sparsity, got {last}; pass end={needed} to every(), or end the schedule at "
            f"step {last}"
        )


def _function_in(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return the function inside a `functools.partial`, or the function itself."""
    return function.func if isinstance(function, partial) else function
