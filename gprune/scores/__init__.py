"""Scores: functions from parameters to a tree of scores, which say how important each entry is.

    >>> import torch, gprune as gp
    >>> params = {"weight": torch.tensor([[2.0, -1.0], [0.5, 3.0]])}
    >>> loss_fn = lambda params, x: (x @ params["weight"].mT).square().sum()
    >>> scores = gp.scores.snip(loss_fn, params, torch.ones(4, 2))
    >>> gp.global_unstructured(params, scores, sparsity=0.5)
    {'weight': tensor([[ True, False],
            [False,  True]])}

Larger = more important. Scores are detached, in float32 at least except `magnitude`. Score all
parameters, then choose what to prune: `gp.global_unstructured(gp.prunable(params), scores, ...)`.

From the parameters:

    magnitude          |θ|
    random             uniform, from a seed
    lamp               θᵤ² / Σ_{v ≥ u} θᵥ², comparable across leaves

From the parameters and their gradients:

    taylor             |θ ⊙ g|, of gradients that you have
    movement           S - θ ⊙ g, the scores S after one more training step

From a loss function and a batch:

    snip               |θ ⊙ g|
    grasp              θ ⊙ Hg
    fisher             the diagonal of the Fisher information, for `obd`
    hessian_diagonal   the diagonal of the Hessian, for `obd`
    obd                θ² ⊙ h / 2, of such a diagonal h

From a forward function, without data:

    synflow            |θ| ⊙ ∂R/∂|θ|, the paths through a weight
    iterative_synflow  masks, from scoring and pruning in turn

From the inputs of each layer:

    input_norms        ‖X_j‖₂, for `wanda` and `ria`
    wanda              |W_ij| ‖X_j‖₂
    ria                the weight relative to its row and its column, times a power of ‖X_j‖₂
    input_gram         XᵀX, for `gprune.reconstruct`

From scores or gradients:

    normalize_l2       s / ‖s‖₂ of each leaf, comparable across leaves
    accumulate         the mean of the gradients of several batches

The name of an argument says what it takes. `params` takes the weights themselves, of any sign.
`scores` takes what a score returned: of any sign in `movement`, and not negative in `normalize_l2`,
because it compares magnitudes. `input_norms` takes norms, which are not negative either. `grads`
and `diagonal` may have any sign. A negative entry where only magnitudes make sense is a ValueError.

Each file has the scores of one paper or one kind. These files are shared by several:

    observer.py        which inputs a forward function multiplies with each weight
    score_map.py       the checks and the map over leaves
    losses.py          gradients and Hessian products of a loss of a tree

Read `help(gprune.reconstruct)` next to prune a trained network without training it again, and
`help(gprune.allocation)` to give each layer its own sparsity.
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
