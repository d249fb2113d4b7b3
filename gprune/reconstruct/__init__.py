"""Weights and masks from the Gram matrices of the inputs, for pruning without training.

Removing weights changes the outputs of a layer. With the Gram matrix G = XᵀX of its inputs, which
`gprune.scores.input_gram` measures, the squared change of the outputs is tr(E G Eᵀ) for an error E
of the weights. The functions here make it small. All are pure: parameters, masks and Gram matrices
go in, parameters or masks come out.

    refit.py        the best weights for given masks
    sparsegpt.py    SparseGPT: weights and masks in one pass over the columns
    swap.py         better masks, by exchanging kept for pruned entries
    sequential.py   one block of a network after the other, each with the inputs that the pruned
                    blocks before it produce
    matrices.py     weights of any layout as matrices; checks and damping of Gram matrices

A weight of any layout is seen as a matrix with one row for each output and one column for each
input of that output. `dim` says which dims are the columns. By default it is `gprune.input_dims`.

The computations depend on values: how many entries a row keeps, and when nothing improves any more.
So each is a custom operator, as the selection is: one node for `torch.compile`, and called once for
each element of a batch by `vmap`. Errors and warnings about values are raised there.
"""

from gprune.reconstruct.refit import refit
from gprune.reconstruct.sequential import sequential
from gprune.reconstruct.sparsegpt import sparsegpt
from gprune.reconstruct.swap import swap

__all__ = ["refit", "sparsegpt", "swap", "sequential"]
