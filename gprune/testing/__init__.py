"""Property-based tests of masks: strategies that draw the hard cases, and contracts to assert.

The strategies draw trees, scores, prior masks and amounts. The contracts are assertions for your
own scores and methods. When one fails, its message names every bad leaf by its path, and has source
code that reproduces the failure. This package needs the extra `testing` (hypothesis and numpy).
gprune itself never imports it.
"""

from gprune.testing.contracts import (
    assert_equivariant,
    assert_mask_contract,
    assert_nested,
    assert_scale_invariant,
)
from gprune.testing.purity import assert_pure
from gprune.testing.strategies import amounts, param_trees, prior_masks, scores_for
from gprune.testing.tensors import SCORE_DTYPES, layouts, tensors
from gprune.testing.transforms import assert_compiles, assert_meta, assert_vmaps

__all__ = [
    "SCORE_DTYPES",
    "amounts",
    "layouts",
    "param_trees",
    "prior_masks",
    "scores_for",
    "tensors",
    "assert_mask_contract",
    "assert_pure",
    "assert_nested",
    "assert_equivariant",
    "assert_scale_invariant",
    "assert_compiles",
    "assert_vmaps",
    "assert_meta",
]
