"""Contracts of selection that the order of the masks alone does not say, where rows have them.

The function under test is called `prune(params, scores, masks=masks, amount=amount)`.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch

from tests.support import reference
from tests.support.assertions import assert_same, assert_subset
from tests.support.cases import map_tensors


def assert_nested(
    prune: Callable[..., Any], params: Any, scores: Any, masks: Any, *, amounts: Sequence[Any]
) -> None:
    """What a larger amount keeps, a smaller one keeps. The amounts ascend."""
    results = [prune(params, scores, masks=masks, amount=amount) for amount in amounts]
    for more, fewer in pairwise(results):
        assert_subset(fewer, more)


def assert_equivariant(
    prune: Callable[..., Any],
    params: Any,
    scores: Any,
    masks: Any,
    *,
    amount: Any,
    ranked_by: Any = None,
) -> None:
    """Reversing or rotating every leaf does the same to its mask, where no two scores are equal.

    `ranked_by` are the scores that decide, if neither `scores` nor the magnitudes do.
    """
    deciding = reference.scores_of(params, scores if ranked_by is None else ranked_by)
    ranks = [reference.rank(score) for leaf in deciding for score in leaf or []]
    if len(set(ranks)) < len(ranks):
        raise ValueError("assert_equivariant needs distinct scores")
    expected = prune(params, scores, masks=masks, amount=amount)
    for permute in (reverse, rotate):
        moved = [map_tensors(permute, tree) for tree in (params, scores, masks)]
        got = prune(moved[0], moved[1], masks=moved[2], amount=amount)
        assert_same(got, map_tensors(permute, expected))


def reverse(leaf: torch.Tensor) -> torch.Tensor:
    return leaf.reshape(-1).flip(0).reshape(leaf.shape)


def rotate(leaf: torch.Tensor) -> torch.Tensor:
    return leaf.reshape(-1).roll(1).reshape(leaf.shape)


def assert_scale_invariant(
    prune: Callable[..., Any],
    params: Any,
    scores: Any,
    masks: Any,
    *,
    amount: Any,
    factor: float,
) -> None:
    """Multiplying all scores by a factor, or the parameters without scores, changes no mask.

    The products must be exact, as those with a power of two are unless they leave the range of the
    dtype. Otherwise a ValueError is raised. Integer leaves are scaled in float64.
    """

    def scale(leaf: torch.Tensor) -> torch.Tensor:
        floating = leaf if leaf.is_floating_point() else leaf.double()
        scaled = floating * factor
        if not bool(((scaled / factor == floating) | floating.isnan()).all()):
            raise ValueError(f"the scores times {factor} are not exact in {floating.dtype}")
        return scaled

    expected = prune(params, scores, masks=masks, amount=amount)
    if scores is None:
        got = prune(map_tensors(scale, params), None, masks=masks, amount=amount)
    else:
        got = prune(params, map_tensors(scale, scores), masks=masks, amount=amount)
    assert_same(got, expected)
