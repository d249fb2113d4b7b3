"""Order-preserving keys: every score as an integer that compares as the score does.

The bits of a non-negative IEEE float, read as an integer, are in the order of the float. So the
key of a score is the bits of its magnitude, negated where the score is negative. That makes `-0.0`
and `0.0` the same key, all NaNs one key above infinity, and every comparison in the search exact:
no rounding of a threshold into a leaf's dtype, no denormal flushed to zero, no NaN that compares
false.

Two key spaces are enough. What float32 holds exactly is ranked by 32-bit keys, everything else by
the 64-bit keys of float64.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor


class KeySpace(NamedTuple):
    """A floating dtype, the integer dtype of its bits, and the key of its infinity.

    Attributes:
        floating: the dtype that scores are converted to, exactly.
        integer: the dtype of the keys.
        infinity: the key of `inf`; keys run from `-infinity` to `nan`.
    """

    floating: torch.dtype
    integer: torch.dtype
    infinity: int

    @property
    def nan(self) -> int:
        """The key of every NaN: one above infinity."""
        return self.infinity + 1

    @property
    def bits(self) -> int:
        """The width of a key."""
        return torch.iinfo(self.integer).bits


SINGLE = KeySpace(torch.float32, torch.int32, 0x7F80_0000)
DOUBLE = KeySpace(torch.float64, torch.int64, 0x7FF0_0000_0000_0000)

SPACES = {
    torch.float16: SINGLE,
    torch.bfloat16: SINGLE,
    torch.float32: SINGLE,
    torch.uint8: SINGLE,
    torch.int8: SINGLE,
    torch.int16: SINGLE,
    torch.float64: DOUBLE,
    torch.int32: DOUBLE,
    torch.int64: DOUBLE,
}
"""The dtypes that scores may have, and the space in which each is exact."""

LARGEST_INT64 = 2**53  # float64 holds every integer up to here


def space_of(dtypes: set[torch.dtype]) -> KeySpace:
    """Give the narrowest space in which all these dtypes are exact."""
    return DOUBLE if any(SPACES[dtype] is DOUBLE for dtype in dtypes) else SINGLE


def keys(scores: Tensor, space: KeySpace, *, absolute: bool) -> Tensor:
    """Turn a block of scores into keys.

    Args:
        scores: 1-D, at least one entry, of a dtype that is exact in `space`.
        space: where the keys live.
        absolute: whether to rank by absolute value. The magnitude of an integer is taken after
            conversion, so the lowest integer of a dtype does not wrap.

    Returns:
        Fresh keys of the same shape, of dtype `space.integer`.
    """
    bits = scores.to(space.floating).view(space.integer)
    magnitude = (bits & torch.iinfo(space.integer).max).clamp_max_(space.nan)
    if absolute:
        return magnitude
    negative = (bits < 0) & (magnitude < space.nan)
    return torch.where(negative, -magnitude, magnitude)


def key_below(value: float, space: KeySpace) -> tuple[int, bool]:
    """Round a value *down* into a space: exactly the scores `<= value` have keys up to the result.

    Args:
        value: any float, NaN and infinities included.
        space: the space to round into.

    Returns:
        The key, and whether it is the key of `value` itself, that is, nothing was rounded.
    """
    rounded = torch.tensor([value], dtype=torch.float64).to(space.floating)
    if rounded.item() > value:
        rounded = torch.nextafter(rounded, torch.full_like(rounded, -math.inf))
    exact = math.isnan(value) or rounded.item() == value
    return int(keys(rounded, space, absolute=False).item()), exact


def value_of(key: int, space: KeySpace) -> float:
    """Give the score that a key stands for."""
    if key == space.nan:
        return math.nan
    magnitude = torch.tensor(abs(key), dtype=space.integer).view(space.floating)
    return math.copysign(magnitude.item(), key)


def check_exact(scores: list[Tensor]) -> None:
    """Refuse int64 scores that float64 cannot hold.

    Args:
        scores: tensors of any dtype and shape.

    Raises:
        ValueError: if an int64 score is beyond 2^53 in magnitude.
    """
    for leaf in scores:
        if leaf.dtype == torch.int64 and leaf.numel():
            low, high = (int(bound) for bound in torch.aminmax(leaf))
            if low < -LARGEST_INT64 or high > LARGEST_INT64:
                raise ValueError(
                    "int64 scores must be at most 2**53 in magnitude to compare exactly, "
                    f"got {low if low < -LARGEST_INT64 else high}; cast them to float64"
                )
