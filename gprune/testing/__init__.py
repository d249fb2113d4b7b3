"""Property-based testing of masks: hypothesis strategies for every hard case of the laws.

Needs the extra `testing` (hypothesis and numpy), which gprune itself never imports.
"""

from gprune.testing.strategies import amounts, param_trees, prior_masks, scores_for
from gprune.testing.tensors import SCORE_DTYPES, layouts, tensors

__all__ = [
    "SCORE_DTYPES",
    "amounts",
    "layouts",
    "param_trees",
    "prior_masks",
    "scores_for",
    "tensors",
]
