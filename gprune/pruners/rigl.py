"""RigL: drop the smallest weights, grow those with the largest gradients.

Evci et al., 2020, "Rigging the lottery: making all tickets winners", arXiv:1911.11134, algorithm 1.
The n entries that a leaf keeps are its weights. At a due step t, the leaf

1. drops the k weights with the lowest scores, k = round(f(t) n); the others are the survivors,
2. grows k of the entries that are not survivors, those with the largest |gradient|.

By this rule of the paper, a weight that was just dropped may be grown again. It keeps its value.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from torch import Tensor

from gprune.allocation import erdos_renyi
from gprune.masks import apply_masks, intersect, prunable_params
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
    gradients_of,
    is_due,
    raise_on_all_ranks_when_due,
    round_fraction,
)
from gprune.schedules import Schedule
from gprune.trees import Tree, Where, map_leaves


class RiglState(NamedTuple):
    """The state of RigL.

    Attributes:
        masks: bool masks, `None` where a parameter is not prunable.
        step: the number of updates so far, 0-dim int64.
    """

    masks: Tree
    step: Tensor


def init(params: Tree, *, draw_masks: Callable[[Tree], Tree]) -> RiglState:
    """Draw the first masks.

    Args:
        params: the parameters, a pytree of tensors of any shape.
        draw_masks: draws the masks of the parameters.

    Returns:
        The first state.
    """
    return RiglState(draw_masks(params), first_step())


@raise_on_all_ranks_when_due
def update(
    params: Tree,
    state: RiglState,
    grads: Tree = None,
    scores: Tree = None,
    *,
    fraction: Schedule,
    due: Due,
    score_fn: ScoreFn,
) -> tuple[Tree, RiglState]:
    """Drop the weights with the lowest scores and grow as many by gradient, if the step is due.

    Args:
        params: pytree of tensors of the structure of `state.masks`.
        state: the state from `init` or from the last `update`.
        grads: pytree of that structure: the gradients of all entries, also of the pruned ones.
        scores: pytree of that structure, larger = more important; by default those of `score_fn`.
        fraction: see `rigl`.
        due: see `rigl`.
        score_fn: see `rigl`.

    Returns:
        The masked parameters and the next state.

    Raises:
        TypeError: if `grads` is missing, or a function returns a value of the wrong type.
        ValueError: if a structure or shape differs, or a function returns a value out of range.
    """
    if grads is None:
        raise TypeError("rigl grows by gradients: update(params, state, grads), got None for grads")
    weights = prunable_params(params, state.masks, "state.masks")
    gradients = gradients_of(weights, grads)
    step_is_due = is_due(due, state.step)
    if can_skip(step_is_due):
        return apply_masks(params, state.masks), state._replace(step=state.step + 1)
    scores = score_fn(params, grads) if scores is None else scores
    fraction_now = fraction_at(fraction, state.step, step_is_due)
    k = round_fraction(count_kept(state.masks), fraction_now)

    survivors = layerwise(weights, scores, masks=state.masks, amount=k)

    # The free entries with the largest |gradient| are grown. They are selected by pruning k entries
    # from the mask of free entries, those with the lowest -|gradient| first.
    free = map_leaves(lambda mask: None if mask is None else ~mask, survivors)
    growth_scores = map_leaves(lambda grad: None if grad is None else -grad.abs(), gradients)
    still_free = layerwise(weights, growth_scores, masks=free, amount=k)
    masks = add_grown(survivors, free, still_free)
    # weights kept before and after the step keep their values; grown weights start at zero
    params = apply_masks(params, intersect(state.masks, masks))
    return params, RiglState(masks, state.step + 1)


def rigl(
    sparsity: float | Tensor,
    *,
    fraction: Schedule,
    due: Due,
    seed: int | Tensor,
    allocation: Allocation = erdos_renyi,
    where: Where = None,
    score_fn: ScoreFn = by_magnitude,
) -> Pruner[RiglState]:
    """Return the pruner of RigL: drop the smallest weights, grow those with the largest gradients.

    A leaf keeps n entries, its weights. At a due step t it

    1. drops the k weights with the lowest scores, k = round(f(t) n), rounded half to even,
    2. grows the k entries with the largest |gradient| among those that are then not kept.

    The number of weights never changes. By the paper's rule a weight that was just dropped may be
    grown again; then fewer than k entries differ after the step.

    `update` needs the gradients of all entries, also of the pruned ones. The gradient of the loss
    at the masked parameters has them, because only the parameters are masked. An entry with an
    infinite gradient is grown first, one with a NaN gradient last. In the paper a due step replaces
    the optimizer's step.

    With DTensors `due` must give the same answer on all ranks; see `Pruner`.

    Args:
        sparsity: the fraction of all prunable entries that is pruned at any time, 0 to 1.
        fraction: f, the fraction of a leaf's weights that is exchanged, `step -> 0-dim float64
            tensor`; the paper's is `schedules.cosine(0.0, begin=0, end=..., initial=0.3)`.
        due: whether to exchange weights at a step, `step -> 0-dim bool tensor`: `schedules.every`.
        seed: the seed of the first, random masks.
        allocation: gives each leaf its sparsity.
        where: which leaves are prunable, as in `gprune.prunable`.
        score_fn: `(params, grads) -> scores`; the lowest are dropped. Magnitudes by default.

    Returns:
        The pruner; its state has `masks` and `step`.

    Raises:
        TypeError: if a function cannot be called, or a number has the wrong type.
        ValueError: if the sparsity is not from 0 to 1.

    Example:
        >>> import torch, gprune as gp
        >>> half = gp.schedules.constant(0.5)
        >>> pruner = gp.pruners.rigl(0.5, fraction=half, due=lambda step: step == 0, seed=0)
        >>> params = {"weight": torch.tensor([[3.0, 1.0, 0.0, 0.0]])}
        >>> state = pruner.init(params)._replace(masks={"weight": params["weight"] > 0})
        >>> grads = {"weight": torch.tensor([[0.1, 0.2, -9.0, 1.0]])}
        >>> params, state = pruner.update(params, state, grads)
        >>> state.masks["weight"]
        tensor([[ True, False,  True, False]])

    References:
        Evci et al., 2020, arXiv:1911.11134, section 3 and algorithm 1.
    """
    check_functions(fraction=fraction, due=due, score_fn=score_fn)
    return Pruner(
        partial(init, draw_masks=bind_random_masks(sparsity, seed, allocation, where)),
        partial(update, fraction=fraction, due=due, score_fn=score_fn),
    )
