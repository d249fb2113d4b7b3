"""Property-based tests of masks: strategies that draw the hard cases, and contracts to assert.

The strategies draw parameter trees, scores and prior masks. The contracts are assertions for your
own scores and methods. When one fails, its message names every bad leaf by its path, and has source
code that reproduces the failure. This package needs the extra `testing` (hypothesis and numpy).
gprune itself never imports it.
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
