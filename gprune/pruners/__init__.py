"""Pruners: masks that change while a model trains. Each is a pair of pure functions.

    state = pruner.init(params)
    params, state = pruner.update(params, state, grads)

Call `update` once in every training step, also inside a compiled one: whether and how much is
pruned at a step is computed from tensors, so one compilation serves a whole run. At a step that is
not due all amounts are 0, and the masks are returned without a search.

    pruner.py            what a pruner is, and the steps that several pruners share
    gradual.py           from dense to sparse along a schedule
    iterative.py         in rounds, each rewinding to early weights
    static_sparse.py     random masks that never change
    sparse_evolution.py  a constant number of weights, exchanged at random (SET)
    rigl.py              a constant number of weights, exchanged by gradient (RigL)

Each file has the same order: the paper with its equation, the state, init, update, the builder.
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
