"""Property-based tests of masks: strategies that draw the hard cases, and contracts to assert.

Strategies, which hypothesis draws from:

    param_trees           trees of parameters, with ties, NaN, `None` leaves and every dtype
    scores_for            scores for a tree
    prior_masks           masks of an earlier pruning
    tensors               a single tensor
    SCORE_DTYPES          the dtypes that scores may have

Contracts, which are assertions for your own scores and methods:

    assert_pure           a function changes nothing, and returns memory of its own
    assert_mask_contract  masks prune exactly what a stable sort prunes

When a contract fails, its message names every bad leaf by its path, and has source code that
reproduces the failure. This package needs the extra `testing`. gprune itself never imports it.
"""

from gprune.testing.contracts import assert_mask_contract
from gprune.testing.purity import assert_pure
from gprune.testing.strategies import SCORE_DTYPES, param_trees, prior_masks, scores_for, tensors

__all__ = [
    "SCORE_DTYPES",
    "param_trees",
    "scores_for",
    "prior_masks",
    "tensors",
    "assert_pure",
    "assert_mask_contract",
]
