"""The cut: where the order of all candidates is divided into pruned and kept."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Threshold(NamedTuple):
    """Where the ascending order of all candidates, by (score, flat index), is cut.

    A candidate is pruned if its score is below `value`, or equal to it at a flat index up to
    `flat_index`. The flat index counts the entries of the prunable leaves in pytree order. A cut that
    prunes nothing is `(-inf, -1)`; one that falls among NaN scores has the value NaN.

    Attributes:
        value: float64 tensor on the CPU, 0-dim, or 1-D for several cuts.
        flat_index: int64 tensor on the CPU of the same shape.
    """

    value: Tensor
    flat_index: Tensor
