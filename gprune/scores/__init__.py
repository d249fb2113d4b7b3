"""Scores: functions from parameters to a tree of scores, detached. Larger = more important.

One score a file, each with its paper and its equation, in the order of what they need: parameters
alone, gradients, a loss, a forward pass. Then come means over batches and rescalings.
`score_map.py` has the checks and the map over leaves that they share, `losses.py` makes a loss of a
tree differentiable.

Score all parameters, then choose what to prune: `global_unstructured(prunable(params), scores)`.
"""

from gprune.scores.accumulate import accumulate
from gprune.scores.curvature import fisher, hessian_diagonal, obd
from gprune.scores.grasp import grasp
from gprune.scores.magnitude import magnitude
from gprune.scores.movement import movement
from gprune.scores.random import random
from gprune.scores.rescaling import lamp, normalize_l2
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
    "input_norms",
    "normalize_l2",
    "lamp",
    "accumulate",
]
