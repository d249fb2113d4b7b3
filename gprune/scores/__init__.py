"""Scores: functions from parameters to a tree of scores, and what they are computed from.

Scores are detached. Larger = more important. `iterative_synflow` returns masks, because its paper
scores and prunes in turn.

What an argument takes is said by its name. `params` takes the weights themselves, of any sign.
`scores` takes what a score returned: of any sign in `movement`, and not negative in `normalize_l2`,
because it compares magnitudes. `input_norms` takes norms, which are not negative either. `grads`
and `diagonal` may have any sign. A negative entry where only magnitudes make sense is a ValueError.

Each file has the scores of one paper or one kind, with the equation. They differ in what they need:

    magnitude.py, random.py          the parameters
    taylor.py, movement.py           the parameters and gradients
    snip.py, grasp.py, curvature.py  the parameters and a loss function
    synflow.py, wanda.py             the parameters and a forward function
    ria.py                           the parameters and the norms of their inputs
    gram.py                          Gram matrices of the inputs, for `gprune.reconstruct`
    observer.py                      which inputs a forward function multiplies with each weight
    rescaling.py                     scores (normalize_l2) or the parameters (lamp)
    accumulate.py                    gradients of many batches; their mean
    score_map.py                     the checks and the map over leaves that the scores share
    losses.py                        gradients and Hessian products of a loss of a tree

Score all parameters, then choose what to prune: `global_unstructured(prunable(params), scores)`.
"""

from gprune.scores.accumulate import accumulate
from gprune.scores.curvature import fisher, hessian_diagonal, obd
from gprune.scores.gram import input_gram
from gprune.scores.grasp import grasp
from gprune.scores.magnitude import magnitude
from gprune.scores.movement import movement
from gprune.scores.random import random
from gprune.scores.rescaling import lamp, normalize_l2
from gprune.scores.ria import ria
from gprune.scores.snip import snip
from gprune.scores.synflow import iterative_synflow, synflow
from gprune.scores.taylor import taylor
from gprune.scores.wanda import input_norms, wanda

__all__ = [
    "magnitude",
    "random",
    "taylor",
    "snip",
    "grasp",
    "synflow",
    "iterative_synflow",
    "fisher",
    "hessian_diagonal",
    "obd",
    "movement",
    "wanda",
    "ria",
    "input_norms",
    "input_gram",
    "normalize_l2",
    "lamp",
    "accumulate",
]
