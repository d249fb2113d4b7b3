"""RigL: the weakest weights make room for those with the largest gradients.

Evci et al., 2020, "Rigging the lottery: making all tickets winners", arXiv:1911.11134, algorithm 1.
At a due step every leaf drops a fraction of its weights, those closest to zero, and grows as many:
of all entries but the survivors, those with the largest gradient. By the paper's rule what was just
dropped may be grown again, and then it was never gone.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

from torch import Tensor

from gprune.allocation import erdos_renyi
from gprune.masks import apply_masks, intersect, with_holes
from gprune.prune import layerwise
from gprune.pruners.pruner import (
    Allocation,
    Due,
    Pruner,
    ScoreFn,
    by_magnitude,
    check_functions,
    first_step,
    gradients_of,
    is_due,
    kept_and_share,
    only_when,
    regrown,
    sparse_from_the_start,
)
from gprune.schedules import Schedule
from gprune.select.counts import as_scalar, as_seed
from gprune.trees import Tree, Where, map_leaves


class RiglState(NamedTuple):
    """The state of RigL.

    Attributes:
        masks: bool masks, `None` where a parameter is not pruned.
        step: 0-dim int64, how many updates there were.
    """

    masks: Tree
    step: Tensor


def init(
    params: Tree,
    *,
    sparsity: float | Tensor,
    seed: int | Tensor,
    allocation: Allocation,
    where: Where,
) -> RiglState:
    """Draw the first masks."""
    masks = sparse_from_the_start(params, sparsity, as_seed(seed), allocation, where)
    return RiglState(masks, first_step())


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
    """Drop the lowest and grow as many by their gradients, if the step is due."""
    if grads is None:
        raise TypeError("rigl grows by gradients: update(params, state, grads), got None for grads")
    weights = with_holes(params, state.masks, "state.masks")
    ranked = score_fn(params, grads) if scores is None else scores
    share = only_when(is_due(due, state.step), fraction(state.step))
    k = map_leaves(
        lambda mask: None if mask is None else kept_and_share(mask, share)[1], state.masks
    )
    survivors = layerwise(weights, ranked, masks=state.masks, amount=k)
    free = map_leaves(lambda mask: None if mask is None else ~mask, survivors)
    slopes = gradients_of(weights, grads)
    steepest_first = map_leaves(lambda grad: None if grad is None else -grad.abs(), slopes)
    still_free = layerwise(weights, steepest_first, masks=free, amount=k)
    masks = regrown(survivors, free, still_free)
    # new weights start at zero; what was there before and after keeps its value
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
    """Build the pruner of RigL.

    At a due step t a leaf with n weights exchanges k = round(f(t) n) of them; the number of weights
    never changes. `update` needs the gradients in all entries: those of the loss at the masked
    parameters are, as they are not masked themselves; a NaN among them grows last. In the paper a
    due step takes the place of the optimizer's step.

    Args:
        sparsity: the fraction of all prunable entries that is pruned at any time, 0 to 1.
        fraction: f, the fraction of a leaf's weights that is exchanged, `step -> 0-dim float64
            tensor`; the paper's is `schedules.cosine(0.0, begin=0, end=..., initial=0.3)`.
        due: whether to exchange at a step, `step -> 0-dim bool tensor`: `schedules.every`.
        seed: draws the first masks.
        allocation: how the leaves share the sparsity.
        where: which leaves are prunable, as in `gprune.prunable`.
        score_fn: `(params, grads) -> scores`; the lowest are dropped. Magnitudes by default.

    Returns:
        The pruner; its state has `masks` and `step`.

    Raises:
        TypeError: if one of the functions is none, or a number is of another type.

    Example:
        >>> import torch, gprune as gp
        >>> half = gp.schedules.constant(0.5)
        >>> pruner = rigl(0.5, fraction=half, due=lambda step: step == 0, seed=0)
        >>> params = {"weight": torch.tensor([[3.0, 1.0, 0.0, 0.0]])}
        >>> state = pruner.init(params)._replace(masks={"weight": params["weight"] > 0})
        >>> grads = {"weight": torch.tensor([[0.1, 0.2, -9.0, 1.0]])}
        >>> params, state = pruner.update(params, state, grads)
        >>> state.masks["weight"]
        tensor([[ True, False,  True, False]])

    References:
        Evci et al., 2020, arXiv:1911.11134, section 3 and algorithm 1.
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
