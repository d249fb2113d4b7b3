"""Pruners: masks that change while a model trains. Each is a pair of pure functions.

    >>> import torch, gprune as gp
    >>> schedule = gp.schedules.polynomial(0.75, begin=0, end=4)
    >>> pruner = gp.pruners.gradual(schedule, due=lambda step: step % 2 == 0)
    >>> params = {"weight": torch.arange(1.0, 9.0).view(2, 4)}
    >>> state = pruner.init(params)
    >>> for step in range(5):
    ...     grads = {"weight": torch.ones(2, 4)}  # of your loss
    ...     params = {"weight": params["weight"] - 0.01 * grads["weight"]}
    ...     params, state = pruner.update(params, state, grads)
    >>> gp.num_pruned(state.masks)
    tensor(6)

Call `update` once in every training step, also inside a compiled one. Whether and how much is
pruned at a step is computed from tensors, so one compilation serves a whole run. At a step that is
not due all amounts are 0, and the masks are returned without a search.

    Pruner            the pair of functions `init` and `update`
    gradual           from dense to sparse along a schedule
    iterative         in rounds, each rewinding to early weights (lottery tickets)
    static_sparse     random masks that never change
    sparse_evolution  a constant number of weights, exchanged at random (SET)
    rigl              a constant number of weights, exchanged by gradient (RigL)

Score, method, allocation and schedule are functions that you pass. Each pruner has a file of the
same order: the paper with its equation, the state, init, update, and the function that builds it.
`pruner.py` has the steps that several pruners share.

Read `help(gprune.schedules)` next for the schedules, and `help(gprune.allocation)` for the
sparsities of the layers.
"""

import torch

from gprune.pruners.gradual import GradualState, gradual
from gprune.pruners.iterative import IterativeState, iterative
from gprune.pruners.pruner import Pruner
from gprune.pruners.rigl import RiglState, rigl
from gprune.pruners.sparse_evolution import SparseEvolutionState, sparse_evolution
from gprune.pruners.static_sparse import StaticSparseState, static_sparse

# By default torch.load reads tensors, plain containers and the classes that are listed here.
torch.serialization.add_safe_globals(
    [GradualState, IterativeState, RiglState, SparseEvolutionState, StaticSparseState]
)

__all__ = ["Pruner", "gradual", "iterative", "rigl", "sparse_evolution", "static_sparse"]
