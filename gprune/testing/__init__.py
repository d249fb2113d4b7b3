"""Property-based testing of masks: strategies for every hard case, contracts for what must hold.

The strategies draw trees, scores, prior masks and amounts; the contracts are assertions for your
own scores and methods, which name every broken leaf by its path and print source that reproduces
the failure. Needs the extra `testing` (hypothesis and numpy), which gprune itself never imports.
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
