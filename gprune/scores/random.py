"""Random scores: the baseline for all other scores."""

from __future__ import annotations

import torch

from gprune.select import operators
from gprune.select.counts import as_seed
from gprune.sharding import load_dtensor_rules
from gprune.trees import Tree, flatten, require_tensors, unflatten_like


def random(params: Tree, *, seed: int | torch.Tensor) -> Tree:
    """Return scores that are drawn uniformly from [0, 1).

    The score of an entry depends only on the seed, the number of its leaf among the tensors of the
    tree, and its flat index in the leaf. No random state is read or changed.

    It sends no messages between ranks: with DTensors, only the rank with an error raises it.

    Args:
        params: pytree of tensors of any shape and dtype; `None` stays `None`.
        seed: a 64-bit int or a 0-dim integer tensor.

    Returns:
        Scores of that structure: float64, multiples of 2^-53, on the device of each leaf, or on the
        CPU if that device has no float64.

    Raises:
        TypeError: if a leaf is neither a tensor nor `None`, or the seed is not an integer.
        ValueError: if the seed is a tensor with dimensions, or beyond 64 bits.

    Example:
        >>> import torch, gprune as gp
        >>> [scores] = gp.scores.random([torch.zeros(2, 3)], seed=0)
        >>> [again] = gp.scores.random([torch.zeros(2, 3)], seed=0)
        >>> scores.shape, torch.equal(scores, again)
        (torch.Size([2, 3]), True)
    """
    leaves, treedef = flatten(params)
    require_tensors(leaves, treedef, "params")
    tensors = [leaf.detach() for leaf in leaves if leaf is not None]
    load_dtensor_rules()
    return unflatten_like(
        treedef, leaves, operators.random_scores(tensors, as_seed(seed), "random")
    )
