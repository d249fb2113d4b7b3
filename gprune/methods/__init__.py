"""Pruning methods: each decides which entries of a parameter are pruned.

- `method.py`: what a method is, the `pruning_method` decorator, and how a user's method runs
- `dims.py`: `dim=`, the dims of a leaf along which entries are compared
- `lowest.py`: prune the lowest scores of all leaves, of each leaf, or of each group in a leaf
- `unstructured.py`: single entries, by score, by absolute value, at random, or none
- `structured.py`: channels, by norm or at random
- `n_of_m.py`: n of every m consecutive entries, and a check of that pattern
- `blocks.py`: rectangular blocks, by mean score
"""

from gprune.methods.blocks import blocks
from gprune.methods.dims import input_dims
from gprune.methods.method import PruningMethod, pruning_method
from gprune.methods.n_of_m import check_n_of_m, n_of_m
from gprune.methods.structured import ln_structured, random_structured
from gprune.methods.unstructured import (
    identity,
    l1_unstructured,
    lowest_unstructured,
    random_unstructured,
)

__all__ = [
    "PruningMethod",
    "pruning_method",
    "input_dims",
    "lowest_unstructured",
    "l1_unstructured",
    "random_unstructured",
    "identity",
    "ln_structured",
    "random_structured",
    "n_of_m",
    "check_n_of_m",
    "blocks",
]
