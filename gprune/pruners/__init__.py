"""Pruners: masks that change while a model trains, as `(init, update)` pairs of pure functions.

    state = pruner.init(params)
    params, state = pruner.update(params, state, grads)

`update` is called once in every training step, inside a compiled one too: what is done at a step
depends on tensors only, so that one compilation lasts a whole run. At a step that is not due all
amounts are 0, and the operators return the masks at once.

    pruner.py            the pair, and what several pruners share
    gradual.py           from dense to sparse along a schedule
    iterative.py         in rounds, each rewinding to early weights
    static_sparse.py     sparse from the start, masks fixed
    sparse_evolution.py  the same number of weights, exchanged at random (SET)
    rigl.py              the same number of weights, exchanged by gradient (RigL)

Each file has the same order: the paper, the state, init, update, the builder.
"""

from gprune.pruners.gradual import gradual
from gprune.pruners.iterative import iterative
from gprune.pruners.pruner import Pruner
from gprune.pruners.rigl import rigl
from gprune.pruners.sparse_evolution import sparse_evolution
from gprune.pruners.static_sparse import static_sparse

__all__ = ["Pruner", "gradual", "iterative", "rigl", "sparse_evolution", "static_sparse"]
