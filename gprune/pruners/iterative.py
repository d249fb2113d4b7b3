"""Iterative pruning with rewinding: the way to lottery tickets.

Frankle & Carbin, 2019, "The lottery ticket hypothesis", arXiv:1803.03635, section 1: train, prune a
fraction of what is left, put the survivors back to where they started, and train again. Late
rewinding puts them back to where they were after a few steps instead (Frankle et al., 2019,
"Stabilizing the lottery ticket hypothesis", arXiv:1903.01611, section 3).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from gprune.masks import apply_masks, keep_all, with_holes
from gprune.prune import global_unstructured, num_to_prune
from gprune.pruners.pruner import (
    Due,
    Pruner,
    ScoreFn,
    by_magnitude,
    check_functions,
    first_step,
    is_due,
    only_when,
)
from gprune.trees import Tree, Where, map_leaves, prunable


class IterativeState(NamedTuple):
    """The state of iterative pruning.

    Attributes:
        masks: bool masks, `None` where a parameter is not pruned.
        step: 0-dim int64, how many updates there were.
        early: the parameters that are rewound to.
    """

    masks: Tree
    step: Tensor
    early: Tree


def init(params: Tree, *, where: Where) -> IterativeState:
    """Keep everything, and remember the parameters."""
    early = map_leaves(lambda leaf: None if leaf is None else leaf.detach().clone(), params)
    return IterativeState(keep_all(prunable(params, where)), first_step(), early)


def update(
    params: Tree,
    state: IterativeState,
    grads: Tree = None,
    scores: Tree = None,
    *,
    amount: float | Tensor,
    due: Due,
    rewind_to: int,
    score_fn: ScoreFn,
    prune: Callable[..., Tree],
) -> tuple[Tree, IterativeState]:
    """At the end of a round, prune and rewind."""
    weights = with_holes(params, state.masks, "state.masks")
    ranked = score_fn(params, grads) if scores is None else scores
    at_end = is_due(due, state.step)
    masks = prune(weights, ranked, masks=state.masks, amount=only_when(at_end, amount))
    early = _choose(state.step + 1 == rewind_to, _detached(params), state.early)
    params = _choose(at_end, early, params)
    return apply_masks(params, masks), IterativeState(masks, state.step + 1, early)


def iterative(
    amount: float | Tensor,
    *,
    due: Due,
    rewind_to: int = 0,
    where: Where = None,
    score_fn: ScoreFn = by_magnitude,
    prune: Callable[..., Tree] = global_unstructured,
) -> Pruner[IterativeState]:
    """Build the pruner that prunes and rewinds in rounds.

    After r rounds with a fraction p as the amount, (1 - p)^r of the weights are left, at the values
    that they had early on. All parameters are rewound, also those that are not pruned; moments and
    learning rate are the training loop's to start again.

    Args:
        amount: how many weights go in each round (int), or the fraction of what is left (float).
        due: whether a round ends at a step, `step -> 0-dim bool tensor`: `schedules.every`.
        rewind_to: rewind to the parameters after so many updates; 0 for those given to `init`.
        where: which leaves are prunable, as in `gprune.prunable`.
        score_fn: `(params, grads) -> scores`; magnitudes by default.
        prune: `global_unstructured`, `layerwise`, or a partial of one with another method.

    Returns:
        The pruner; its state has `masks`, `step` and `early`.

    Raises:
        TypeError: if one of the functions is none, or a number is of another type.
        ValueError: if `rewind_to` is negative, or the amount out of range.

    Example:
        >>> import gprune as gp
        >>> pruner = iterative(0.5, due=partial(gp.schedules.every, begin=9, end=19, freq=10))
        >>> state = pruner.init({"weight": torch.ones(2, 4)})
        >>> params = {"weight": torch.arange(8.0).view(2, 4)}  # after some training
        >>> for _ in range(20):
        ...     params, state = pruner.update(params, state)
        >>> params["weight"]
        tensor([[0., 0., 0., 0.],
                [0., 0., 1., 1.]])

    References:
        Frankle & Carbin, 2019, arXiv:1803.03635, section 1.
        Frankle et al., 2019, arXiv:1903.01611, section 3.
    """
    num_to_prune(amount, 2**62)  # a bad one is refused here, not at the end of the first round
    if isinstance(rewind_to, bool) or not isinstance(rewind_to, int):
        raise TypeError(f"rewind_to must be an int, got {rewind_to!r}")
    if rewind_to < 0:
        raise ValueError(f"rewind_to must not be negative, got {rewind_to}")
    check_functions(due=due, score_fn=score_fn, prune=prune)
    return Pruner(
        partial(init, where=where),
        partial(
            update,
            amount=amount,
            due=due,
            rewind_to=rewind_to,
            score_fn=score_fn,
            prune=prune,
        ),
    )


def _detached(params: Tree) -> Tree:
    return map_leaves(lambda leaf: None if leaf is None else leaf.detach(), params)


def _choose(condition: Tensor, if_true: Tree, if_false: Tree) -> Tree:
    return map_leaves(
        lambda a, b: None if a is None else torch.where(condition.to(a.device), a, b),
        if_true,
        if_false,
    )
