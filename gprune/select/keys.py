"""Order-preserving keys: every score as an integer that compares as the score does.

The bits of a non-negative IEEE float, read as an integer, are in the order of the float. So the
key of a score is the bits of its magnitude, negated where the score is negative. That makes `-0.0`
and `0.0` the same key, all NaNs one key above infinity, and every comparison in the search exact:
no rounding of a threshold into a leaf's dtype, no denormal flushed to zero, no NaN that compares
false.

A pass over all the weights cannot afford to compute such keys: what it does per block is bound by
memory. It compares *raw* keys, which one operator makes from the bits (four where signs count), in
the order of the keys but for two liberties: NaNs have many raw keys, all on top, and `-0.0` has its
own just below that of `0.0`. The thresholds are moved accordingly, so what they divide is the same.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from gprune.select.errors import LeafError
from gprune.select.host import to_host


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

    @property
    def largest(self) -> int:
        """The largest integer of the width: at once the mask of the magnitude."""
        return torch.iinfo(self.integer).max

    @property
    def rotation(self) -> int:
        """What makes the raw key of `-inf` the lowest and wraps negative NaNs to the top."""
        return self.infinity - self.largest


HALF = KeySpace(torch.float16, torch.int16, 0x7C00)
BRAIN = KeySpace(torch.bfloat16, torch.int16, 0x7F80)
SINGLE = KeySpace(torch.float32, torch.int32, 0x7F80_0000)
DOUBLE = KeySpace(torch.float64, torch.int64, 0x7FF0_0000_0000_0000)

SPACES = {
    torch.float16: HALF,
    torch.bfloat16: BRAIN,
    torch.float32: SINGLE,
    torch.uint8: SINGLE,
    torch.int8: SINGLE,
    torch.int16: SINGLE,
    torch.float64: DOUBLE,
    torch.int32: DOUBLE,
    torch.int64: DOUBLE,
}
"""The dtypes that scores may have, and the narrowest space in which each is exact."""

LARGEST_INT64 = 2**53  # float64 holds every integer up to here


def common_space(dtypes: set[torch.dtype]) -> KeySpace:
    """Give the narrowest space in which all these dtypes are exact."""
    spaces = {SPACES[dtype] for dtype in dtypes}
    if len(spaces) == 1:
        return spaces.pop()
    return DOUBLE if DOUBLE in spaces else SINGLE


def keys(scores: Tensor, space: KeySpace, *, absolute: bool) -> Tensor:
    """Turn scores into keys.

    Args:
        scores: 1-D, of a dtype that is exact in `space`.
        space: where the keys live.
        absolute: whether to rank by absolute value. The magnitude of an integer is taken after
            conversion, so the lowest integer of a dtype does not wrap.

    Returns:
        Fresh keys of the same shape, of dtype `space.integer`.
    """
    bits = scores.to(space.floating).view(space.integer)
    magnitude = torch.bitwise_and(bits, space.largest).clamp_max_(space.nan)
    if absolute:
        return magnitude
    negative = (bits < 0) & (magnitude < space.nan)
    return torch.where(negative, -magnitude, magnitude)


def raw_keys(scores: Tensor, space: KeySpace, *, absolute: bool, out: Tensor) -> Tensor:
    """Turn a block of scores into raw keys.

    Args:
        scores: 1-D, at least one entry, of a dtype that is exact in `space`.
        space: where the keys live.
        absolute: whether to rank by absolute value.
        out: 1-D of the same length and of dtype `space.integer`, for the result.

    Returns:
        `out`.
    """
    bits = scores.to(space.floating).view(space.integer)
    if absolute:
        return torch.bitwise_and(bits, space.largest, out=out)
    torch.bitwise_right_shift(bits, space.bits - 1, out=out)  # all ones where negative
    return out.bitwise_and_(space.largest).bitwise_xor_(bits).add_(space.rotation)


def raw_bounds(low: float, high: float, space: KeySpace, *, absolute: bool) -> tuple[int, int]:
    """Give the raw keys between which the scores from `low` to `high` lie.

    Args:
        low: any float, as all scores are compared by exact value; may be NaN.
        high: not below `low`; may be NaN.
        space: the space of the raw keys.
        absolute: whether they are of absolute values.

    Returns:
        The least and the greatest raw key: a score is in `[low, high]` if and only if its raw key
        is in this range; one below it is lower, one above it higher.
    """
    least, exact = key_below(low, space)
    least += 0 if exact else 1  # rounded down: what has that key is still lower than `low`
    greatest, _ = key_below(high, space)
    if not absolute:  # a negative key -m has the raw key -m - 1, and -0.0 stands beside 0
        least = (least if least > 0 else least - 1) + space.rotation
        greatest = (greatest if greatest >= 0 else greatest - 1) + space.rotation
    return least, space.largest if math.isnan(high) else greatest


def key_below(value: float, space: KeySpace) -> tuple[int, bool]:
    """Round a value *down* into a space: exactly the scores `<= value` have keys up to the result.

    Args:
        value: any float, NaN and infinities included.
        space: the space to round into.

    Returns:
        The key, and whether it is the key of `value` itself, that is, nothing was rounded.
    """
    rounded = torch.tensor([value], dtype=torch.float64).to(space.floating)
    key = int(keys(rounded, space, absolute=False))
    if rounded.item() > value:
        key -= 1
    return key, math.isnan(value) or rounded.item() == value


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
        LeafError: if an int64 score is beyond 2^53 in magnitude.
    """
    wide = [i for i, leaf in enumerate(scores) if leaf.dtype == torch.int64 and leaf.numel()]
    bounds = to_host([bound for i in wide for bound in torch.aminmax(scores[i])])
    for number, low, high in zip(wide, bounds[::2], bounds[1::2], strict=True):
        if low < -LARGEST_INT64 or high > LARGEST_INT64:
            raise LeafError(
                number,
                "scores",
                "int64 scores must be at most 2**53 in magnitude to compare exactly, "
                f"got {low if low < -LARGEST_INT64 else high}; cast them to float64",
            )
