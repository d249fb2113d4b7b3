"""Reconstruction: better masks, and new weights, from the inputs of each layer, without training.

    >>> import torch, gprune as gp
    >>> params, x = {"weight": torch.randn(8, 16)}, torch.randn(64, 16)
    >>> forward = lambda params, x: x @ params["weight"].mT
    >>> grams = gp.scores.input_gram(forward, params, [x])
    >>> masks = gp.layerwise(params, amount=0.5, dim=gp.input_dims)
    >>> rebuilt = gp.reconstruct.refit(params, masks, grams)
    >>> error = lambda new: (forward(new, x) - forward(params, x)).norm()
    >>> bool(error(rebuilt) < error(gp.apply_masks(params, masks)))
    True

Removing weights changes the outputs of a layer. If the weights change by E, the squares of the
changes of the outputs have the sum tr(E G Eᵀ). G = XᵀX is the Gram matrix of the inputs, which
`gprune.scores.input_gram` measures. The functions here make this sum small:

    refit       parameters, masks -> the best parameters for these masks
    sparsegpt   parameters -> parameters and masks, in one pass over the columns (SparseGPT)
    swap        parameters, masks -> better masks, by exchanging kept for pruned entries
    sequential  blocks of a network, one after the other, each with the inputs of the pruned network

All are pure, and also take the Gram matrices (`sequential` takes batches instead).

A weight of any layout is seen as a matrix with one row for each output and one column for each
input of that output. `dim` says which dims are the columns. By default it is `gprune.input_dims`.

Each function has a file. `matrices.py` has what they share: weights of any layout as matrices, and
the checks and the damping of Gram matrices. The control flow depends on values, such as how many
entries a row keeps. So each computation is a custom operator, as the selection is: `torch.compile`
sees one node, and `vmap` calls the operator once for each element of the batch. Errors and warnings
about values are raised in the operator.

Read `help(gprune.checkpoints.language)` next to do this to a language model on disk.
"""

from gprune.reconstruct.refit import refit
from gprune.reconstruct.sequential import sequential
from gprune.reconstruct.sparsegpt import sparsegpt
from gprune.reconstruct.swap import swap

__all__ = ["refit", "sparsegpt", "swap", "sequential"]
