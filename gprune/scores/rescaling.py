"""Rescalings: scores of different leaves, made comparable for one ranking across all.

`normalize_l2` takes scores, `lamp` takes parameters.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gprune.inputs import float64_device
from gprune.scores.score_map import scale_to_one, score_leaves
from gprune.sharding import require_unsharded
from gprune.trees import Tree, flatten

INTEGERS = {torch.float32: torch.int32, torch.float64: torch.int64}
"""For each floating dtype, the integer dtype of the same width."""


def normalize_l2(scores: Tree) -> Tree:
    """Divide the scores of each leaf by their norm: s / ‖s‖₂.

    s are the scores of a leaf. To rank weights, pass their magnitudes:
    `normalize_l2(magnitude(params))`. Weights themselves would rank by their sign. The norm is
    computed in float64, on the CPU if the device has no float64.

    Args:
        scores: pytree of floating point tensors of any shape, none of whose entries is negative;
            `None` stays `None`.

    Returns:
        Detached scores of that structure, in float32 at least, 0 to 1, without a unit; each leaf
        has norm 1, or 0 if it is all zero.

    Raises:
        TypeError: if a leaf is not a floating point tensor.
        ValueError: if a score is not finite or is negative.

    Example:
        >>> import torch, gprune as gp
        >>> gp.scores.normalize_l2([torch.tensor([3.0, 4.0]), torch.zeros(2)])
        [tensor([0.6000, 0.8000]), tensor([0., 0.])]

    References:
        Lee et al., 2023, arXiv:2304.14082 (the global normalization of JaxPruner).
    """

    def equation(leaf: Tensor) -> Tensor:
        unit = scale_to_one(leaf)
        exact = unit.to(float64_device(unit.device))
        norm = torch.linalg.vector_norm(exact, dtype=torch.float64).to(leaf.dtype).to(leaf.device)
        return unit / torch.where(norm == 0, 1, norm)

    remedy = "pass magnitude(params) to rank weights"
    return score_leaves(equation, magnitudes={"scores": remedy}, scores=scores)


def lamp(params: Tree) -> Tree:
    """Divide each square by the sum of all squares that are not smaller: θᵤ² / Σ_{v ≥ u} θᵥ².

    u and v number the entries of a leaf in ascending order of magnitude, equal ones by flat index.
    So the largest entry of every leaf has the score 1, and no leaf is pruned completely before
    all leaves are down to one entry. The sums are computed in float64, on the CPU if the device has
    no float64.

    Args:
        params: pytree of floating point tensors of any shape and sign; `None` stays `None`.

    Returns:
        Detached scores of that structure, in float32 at least, without a unit, 0 to 1; 0 for an
        all-zero leaf.

    Raises:
        TypeError: if a leaf is not a floating point tensor.
        ValueError: if a parameter is not finite, or is a DTensor (use `full_tensor()`).

    Example:
        >>> import torch, gprune as gp
        >>> gp.scores.lamp([torch.tensor([1.0, -2.0, 0.0])])
        [tensor([0.2000, 1.0000, 0.0000])]

    References:
        Lee et al., 2021, arXiv:2010.07611, section 2.
    """

    def equation(leaf: Tensor) -> Tensor:
        magnitudes = leaf.to(float64_device(leaf.device)).flatten().abs()
        # the bits of magnitudes, read as integers, have the same order, and are faster to sort
        bits, order = magnitudes.view(INTEGERS[leaf.dtype]).sort(stable=True)
        # in descending order, the sum of all squares that are not smaller is a cumulative sum
        ordered, order = bits.flip(0).view(leaf.dtype), order.flip(0)
        squares = scale_to_one(ordered.double()).square()
        # the largest square is 1, so each sum is at least 1, unless all squares are 0
        shares = squares.div_(squares.cumsum(0).clamp_min_(1)).to(leaf.dtype)
        scores = torch.empty_like(shares).scatter(0, order, shares)
        return scores.reshape(leaf.shape).to(leaf.device)

    require_unsharded(flatten(params)[0], "lamp")
    return score_leaves(equation, params=params)
