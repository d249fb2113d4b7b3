"""Iterative pruning with rewinding, which finds lottery tickets.

Frankle & Carbin, 2019, "The lottery ticket hypothesis", arXiv:1803.03635, section 1. Training goes
in rounds. At the end of each round a fraction p of the remaining weights is pruned, and the others
are set back to their first values:

    θ ← θ_0 ⊙ m,  where m keeps (1 - p)^r of the weights after round r.

Late rewinding sets them back to θ_k, their values after k steps (Frankle et al., 2019, "Stabilizing
the lottery ticket hypothesis", arXiv:1903.01611, section 3).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from gprune.masks import apply_masks, keep_all, prunable_params
from gprune.prune import global_unstructured, num_to_prune
from gprune.pruners.pruner import (
    Due,
    Pruner,
    ScoreFn,
    by_magnitude,
    can_skip,
    check_functions,
    first_step,
    is_due,
    raise_on_all_ranks_when_due,
    zero_unless,
)
from gprune.trees import Tree, Where, map_leaves, prunable


class IterativeState(NamedTuple):
    """The state of iterative pruning.

    Attributes:
        masks: bool masks, `None` where a parameter is not prunable.
        step: the number of updates so far, 0-dim int64.
        rewind_params: the parameters that are restored at the end of a round.
    """

    masks: Tree
    step: Tensor
    rewind_params: Tree


def init(params: Tree, *, where: Where) -> IterativeState:
    """Keep every weight, and store a copy of the parameters.

    Args:
        params: the parameters, a pytree of tensors of any shape.
        where: which leaves are prunable, as in `gprune.prunable`.

    Returns:
        The first state.
    """
    return IterativeState(keep_all(prunable(params, where)), first_step(), _copied(params))


@raise_on_all_ranks_when_due
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
    """Prune and rewind at the end of a round; apply the masks at other steps.

    Args:
        params: pytree of tensors of the structure of `state.masks`.
        state: the state from `init` or from the last `update`.
        grads: pytree of that structure; given to `score_fn`, and not used otherwise.
        scores: pytree of that structure, larger = more important; by default those of `score_fn`.
        amount: see `iterative`.
        due: see `iterative`.
        rewind_to: see `iterative`.
        score_fn: see `iterative`.
        prune: see `iterative`.

    Returns:
        The masked parameters and the next state.

    Raises:
        TypeError: if a function returns a value of the wrong type.
        ValueError: if a structure or shape differs, or a function returns a value out of range.
    """
    ends_round, is_rewind_step = is_due(due, state.step), state.step + 1 == rewind_to
    if can_skip(ends_round):
        rewind_params = state.rewind_params if can_skip(is_rewind_step) else _copied(params)
        masked = apply_masks(params, state.masks)
        return masked, IterativeState(state.masks, state.step + 1, rewind_params)
    weights = prunable_params(params, state.masks, "state.masks")
    scores = score_fn(params, grads) if scores is None else scores
    amount_now = zero_unless(ends_round, amount, "amount")
    masks = prune(weights, scores, masks=state.masks, amount=amount_now)
    rewind_params = _choose(is_rewind_step, _detached(params), state.rewind_params)
    params = _choose(ends_round, rewind_params, params)
    return apply_masks(params, masks), IterativeState(masks, state.step + 1, rewind_params)


def iterative(
    amount: float | Tensor,
    *,
    due: Due,
    rewind_to: int = 0,
    where: Where = None,
    score_fn: ScoreFn = by_magnitude,
    prune: Callable[..., Tree] = global_unstructured,
) -> Pruner[IterativeState]:
    """Return the pruner that prunes and rewinds in rounds, which finds lottery tickets.

    At the end of a round the lowest of the remaining weights are pruned, and all parameters are set
    back to those of step k, also the parameters that are not prunable:

        θ ← θ_k ⊙ m,    where m keeps (1 - p)^r of the weights after round r.

    p is the amount, if it is a fraction, and k is `rewind_to`. The training loop resets the
    optimizer's moments and the learning rate itself.

    With DTensors `due` must give the same answer on all ranks; see `Pruner`.

    Args:
        amount: how many weights are pruned in each round (int), or the fraction of the remaining
            ones (float, 0 to 1).
        due: whether a round ends at a step, `step -> 0-dim bool tensor`: `schedules.every`.
        rewind_to: rewind to the parameters after this many updates; 0 means those given to `init`.
        where: which leaves are prunable, as in `gprune.prunable`.
        score_fn: `(params, grads) -> scores`; magnitudes by default.
        prune: `global_unstructured`, `layerwise`, or a partial of one with another method.

    Returns:
        The pruner; its state has `masks`, `step` and `rewind_params`.

    Raises:
        TypeError: if a function cannot be called, or a number has the wrong type.
        ValueError: if `rewind_to` is negative, or the amount is out of range.

    Example:
        >>> from functools import partial
        >>> import torch, gprune as gp
        >>> every_10 = partial(gp.schedules.every, begin=9, end=19, freq=10)
        >>> pruner = gp.pruners.iterative(0.5, due=every_10)
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
    num_to_prune(amount, 2**62)  # so that a wrong amount raises now, not after the first round
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


def _copied(params: Tree) -> Tree:
    return map_leaves(lambda leaf: None if leaf is None else leaf.detach().clone(), params)


def _detached(params: Tree) -> Tree:
    return map_leaves(lambda leaf: None if leaf is None else leaf.detach(), params)


def _choose(condition: Tensor, if_true: Tree, if_false: Tree) -> Tree:
    return map_leaves(
        lambda a, b: None if a is None else torch.where(condition.to(a.device), a, b),
        if_true,
        if_false,
    )
