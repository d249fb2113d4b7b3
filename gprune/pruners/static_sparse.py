"""Static sparse training: random masks are drawn before the first step and never change.

Mocanu et al., 2016, "A topological insight into restricted Boltzmann machines", arXiv:1604.05978.
It is the baseline "Static" of Evci et al., 2020, arXiv:1911.11134, section 3.1.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from torch import Tensor

from gprune.allocation import erdos_renyi
from gprune.masks import apply_masks
from gprune.pruners.pruner import Allocation, Pruner, bind_random_masks, first_step
from gprune.trees import Tree, Where


class StaticSparseState(NamedTuple):
    """The state of static sparse training.

    Attributes:
        masks: bool masks, `None` where a parameter is not prunable.
        step: the number of updates so far, 0-dim int64.
    """

    masks: Tree
    step: Tensor


def init(params: Tree, *, draw_masks: Callable[[Tree], Tree]) -> StaticSparseState:
    """Draw the masks.

    Args:
        params: the parameters, a pytree of tensors of any shape.
        draw_masks: draws the masks of the parameters.

    Returns:
        The first state.
    """
    return StaticSparseState(draw_masks(params), first_step())


def update(
    params: Tree, state: StaticSparseState, grads: Tree = None, scores: Tree = None
) -> tuple[Tree, StaticSparseState]:
    """Apply the masks to the parameters.

    Args:
        params: pytree of tensors of the structure of `state.masks`.
        state: the state from `init` or from the last `update`.
        grads: not used.
        scores: not used.

    Returns:
        The masked parameters and the next state.

    Raises:
        ValueError: if a structure or shape differs.
    """
    return apply_masks(params, state.masks), state._replace(step=state.step + 1)


def static_sparse(
    sparsity: float | Tensor,
    *,
    seed: int | Tensor,
    allocation: Allocation = erdos_renyi,
    where: Where = None,
) -> Pruner[StaticSparseState]:
    """Return the pruner whose random masks never change.

    It is the baseline of the other methods of sparse training. Its `update` sends no messages, so
    with DTensors only the rank with the error raises it.

    Args:
        sparsity: the fraction of all prunable entries that is pruned, 0 to 1.
        seed: the seed of the random masks. To use other masks, say by `scores.snip`, replace them
            in the state: `state._replace(masks=...)`.
        allocation: gives each leaf its sparsity.
        where: which leaves are prunable, as in `gprune.prunable`.

    Returns:
        The pruner; its state has `masks` and `step`.

    Raises:
        TypeError: if the allocation is not a function, or a number has the wrong type.
        ValueError: if the sparsity is not from 0 to 1.

    Example:
        >>> import torch, gprune as gp
        >>> pruner = gp.pruners.static_sparse(0.9, seed=0)
        >>> state = pruner.init({"weight": torch.ones(20, 30), "bias": torch.ones(20)})
        >>> int(gp.num_pruned(state.masks)), state.masks["bias"]
        (540, None)

    References:
        Evci et al., 2020, arXiv:1911.11134, section 3.1.
    """
    draw_masks = bind_random_masks(sparsity, seed, allocation, where)
    return Pruner(partial(init, draw_masks=draw_masks), update)
