"""Static sparse training: masks are drawn once, before the first step, and never change.

Mocanu et al., 2016, "A topological insight into restricted Boltzmann machines", arXiv:1604.05978;
the baseline of Evci et al., 2020, arXiv:1911.11134, section 3.1, "Static".
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

from torch import Tensor

from gprune.allocation import erdos_renyi
from gprune.masks import apply_masks
from gprune.pruners.pruner import (
    Allocation,
    Pruner,
    check_functions,
    first_step,
    sparse_from_the_start,
)
from gprune.select.counts import as_scalar, as_seed
from gprune.trees import Tree, Where


class StaticSparseState(NamedTuple):
    """The state of static sparse training.

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
) -> StaticSparseState:
    """Draw the masks."""
    masks = sparse_from_the_start(params, sparsity, as_seed(seed), allocation, where)
    return StaticSparseState(masks, first_step())


def update(
    params: Tree, state: StaticSparseState, grads: Tree = None, scores: Tree = None
) -> tuple[Tree, StaticSparseState]:
    """Mask the parameters."""
    return apply_masks(params, state.masks), state._replace(step=state.step + 1)


def static_sparse(
    sparsity: float | Tensor,
    *,
    seed: int | Tensor,
    allocation: Allocation = erdos_renyi,
    where: Where = None,
) -> Pruner[StaticSparseState]:
    """Build the pruner whose masks never change.

    Args:
        sparsity: the fraction of all prunable entries that is pruned, 0 to 1.
        seed: draws the masks. For masks chosen otherwise, say by `scores.snip`, replace them:
            `state._replace(masks=...)`.
        allocation: how the leaves share the sparsity.
        where: which leaves are prunable, as in `gprune.prunable`.

    Returns:
        The pruner; its state has `masks` and `step`.

    Raises:
        TypeError: if the allocation is no function, or a number is of another type.

    Example:
        >>> import torch, gprune as gp
        >>> pruner = static_sparse(0.9, seed=0)
        >>> state = pruner.init({"weight": torch.ones(20, 30), "bias": torch.ones(20)})
        >>> int(gp.num_pruned(state.masks)), state.masks["bias"]
        (540, None)

    References:
        Evci et al., 2020, arXiv:1911.11134, section 3.1.
    """
    check_functions(allocation=allocation)
    return Pruner(
        partial(
            init,
            sparsity=as_scalar(sparsity, "sparsity"),
            seed=as_seed(seed),
            allocation=allocation,
            where=where,
        ),
        update,
    )
