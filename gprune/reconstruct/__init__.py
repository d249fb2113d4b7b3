"""Weights and masks from the Gram matrices of the inputs, for pruning without training.

Removing weights changes the outputs of a layer. If the weights change by E, the squares of the
changes of the outputs have the sum tr(E G Eᵀ). G = XᵀX is the Gram matrix of the inputs, which
`gprune.scores.input_gram` measures. The functions here make this sum small. All are pure:
parameters, masks and Gram matrices go in, parameters or masks come out.

    refit.py        the best weights for given masks
    sparsegpt.py    SparseGPT: weights and masks in one pass over the columns
    swap.py         better masks, by exchanging kept for pruned entries
    sequential.py   one block of a network after the other, each with the outputs of the pruned
                    blocks before it
    matrices.py     weights of any layout as matrices; checks and damping of Gram matrices

A weight of any layout is seen as a matrix with one row for each output and one column for each
input of that output. `dim` says which dims are the columns. By default it is `gprune.input_dims`.

The control flow depends on values, such as how many entries a row keeps. So each computation is a
custom operator, as the selection is: `torch.compile` sees one node, and `vmap` calls the operator
once for each element of the batch. Errors and warnings about values are raised in the operator.
"""

from gprune.reconstruct.refit import refit
from gprune.reconstruct.sequential import sequential
from gprune.reconstruct.sparsegpt import sparsegpt
from gprune.reconstruct.swap import swap

__all__ = ["refit", "sparsegpt", "swap", "sequential"]
