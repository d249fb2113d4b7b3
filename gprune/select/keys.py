"""Order-preserving integer keys for scores.

A *key* is an integer that compares as its score does. The bits of a non-negative IEEE float, read
as an integer, are in the order of the float. So the key of a float is the bits of its magnitude,
negated where the float is negative: `-0.0` and `0.0` share a key, and all NaNs share one key above
infinity. The key of an integer is the integer. Keys are made from bits by integer operations only,
so no score is rounded, and no setting of the process (flushed denormals, autocast) can change one.

A pass over all scores is bound by memory, and these keys take too many operators. It uses *raw*
keys, which take one to four operators. They have the same order, with two exceptions: NaNs have
many raw keys, all at the top, and `-0.0` has its own, just below that of `0.0`. The bounds from
`raw_bounds` allow for both.

Leaves of different formats are compared as float64 keys, which hold every score exactly.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch
from torch import Tensor


class Format(NamedTuple):
    """How the scores of a dtype are laid out in bits.

    Attributes:
        integer: the signed dtype of the bits.
        mantissa: how many bits the mantissa has; 0 for integers.
        infinity: the key of infinity; 0 for integers.
    """

    integer: torch.dtype
    mantissa: int = 0
    infinity: int = 0

    @property
    def is_float(self) -> bool:
        """Whether the scores are floats."""
        return self.mantissa > 0

    @property
    def num_bits(self) -> int:
        """The number of bits of the integers."""
        return torch.iinfo(self.integer).bits

    @property
    def largest(self) -> int:
        """The largest integer. As a bit mask it selects the magnitude: all bits but the sign."""
        return torch.iinfo(self.integer).max

    @property
    def nan(self) -> int:
        """The key of every NaN: one above infinity."""
        return self.infinity + 1

    @property
    def bias(self) -> int:
        """The bias of the exponent."""
        return self.infinity >> (self.mantissa + 1)

    @property
    def raw_offset(self) -> int:
        """The offset of raw keys. It moves `-inf` to the bottom; negative NaNs wrap to the top."""
        return self.infinity - self.largest

    def key_range(self, absolute: bool) -> tuple[int, int]:
        """Return the lowest and the highest possible key."""
        if self.is_float:
            return (0 if absolute else -self.infinity), self.nan
        lowest, highest = -self.largest - 1, self.largest
        if self == INT64:  # see `RankedLeaves.check_int64_range`
            lowest, highest = -MAX_INT64_SCORE, MAX_INT64_SCORE
        return (0, -lowest) if absolute else (lowest, highest)


FLOAT16 = Format(torch.int16, 10, 0x7C00)
BFLOAT16 = Format(torch.int16, 7, 0x7F80)
FLOAT32 = Format(torch.int32, 23, 0x7F80_0000)
FLOAT64 = Format(torch.int64, 52, 0x7FF0_0000_0000_0000)
INT64 = Format(torch.int64)

FORMATS = {
    torch.float16: FLOAT16,
    torch.bfloat16: BFLOAT16,
    torch.float32: FLOAT32,
    torch.float64: FLOAT64,
    torch.uint8: Format(torch.int16),  # no signed integer of 8 bits holds it
    torch.int8: Format(torch.int8),
    torch.int16: Format(torch.int16),
    torch.int32: Format(torch.int32),
    torch.int64: INT64,
}
"""The format of every dtype that scores may have."""

MAX_INT64_SCORE = 2**53
"""float64 holds every integer up to this magnitude, so no int64 score may be larger."""


def to_bits(scores: Tensor, form: Format) -> Tensor:
    """Read scores as the integers of a format.

    Args:
        scores: any shape. They have the dtype of the format, or are integers and are converted.
        form: the format.

    Returns:
        Integers of the same shape and of dtype `form.integer`; a view where that is possible.
    """
    if not scores.is_floating_point():
        if not form.is_float:
            return scores.to(form.integer)
        scores = scores.to(torch.float64)  # exact, and never a denormal
    return scores.view(form.integer)


def keys_of(bits: Tensor, form: Format, *, absolute: bool) -> Tensor:
    """Turn bits into keys.

    Args:
        bits: any shape, from `to_bits`.
        form: their format.
        absolute: whether to rank by absolute value.

    Returns:
        A new tensor of keys, of the same shape; of dtype `form.integer`, or int64 for integers.
    """
    if not form.is_float:
        bits = bits.to(torch.int64, copy=True)
        return bits.abs_() if absolute else bits
    magnitude = torch.bitwise_and(bits, form.largest).clamp_max_(form.nan)
    if absolute:
        return magnitude
    is_negative = (bits < 0).logical_and_(magnitude < form.nan)
    return torch.where(is_negative, -magnitude, magnitude)


def raw_keys(bits: Tensor, form: Format, *, absolute: bool, out: Tensor) -> Tensor:
    """Turn a block of bits into raw keys.

    Args:
        bits: 1-D, from `to_bits`.
        form: their format.
        absolute: whether to rank by absolute value.
        out: 1-D, of the same length and dtype, for the result.

    Returns:
        `out`.
    """
    if not form.is_float:  # |x| of the lowest integer wraps to itself; -1 moves it to the top
        return torch.abs(bits, out=out).sub_(1) if absolute else out.copy_(bits)
    if absolute:
        return torch.bitwise_and(bits, form.largest, out=out)
    torch.bitwise_right_shift(bits, form.num_bits - 1, out=out)  # all ones where negative
    return out.bitwise_and_(form.largest).bitwise_xor_(bits).add_(form.raw_offset)


@functools.lru_cache(maxsize=2**10)
def bounds_in(low: int, high: int, form: Format, key_format: Format) -> tuple[int, int]:
    """Turn a range of keys of one format into a range of keys of another.

    Args:
        low: the lowest key.
        high: the highest key, not below `low`.
        form: the format of the result.
        key_format: the format of `low` and `high`: the same, or float64.

    Returns:
        The least and the greatest key of the format whose values are in the range. The least is
        above the greatest if there are none.
    """
    if form == key_format:
        return low, high
    least, is_exact = round_down(low, form)
    return least + (not is_exact), round_down(high, form)[0]


@functools.lru_cache(maxsize=2**10)
def raw_bounds(
    low: int, high: int, raw_format: Format, key_format: Format, *, absolute: bool
) -> tuple[int, int]:
    """Turn a range of keys into a range of raw keys.

    Args:
        low: the lowest key.
        high: the highest key, not below `low`.
        raw_format: the format of the raw keys.
        key_format: the format of `low` and `high`: the same, or float64.
        absolute: whether the raw keys are those of absolute values.

    Returns:
        The least and the greatest raw key. The raw key of a score is between them if and only if
        its key is from `low` to `high`.
    """
    low, high = bounds_in(low, high, raw_format, key_format)
    if not raw_format.is_float:
        return low - absolute, high - absolute
    is_nan = high == raw_format.nan
    if not absolute:  # before the offset, a negative -m has the raw key -m - 1, and -0.0 has -1
        low = (low if low > 0 else low - 1) + raw_format.raw_offset
        high = (high if high >= 0 else high - 1) + raw_format.raw_offset
    return low, raw_format.largest if is_nan else high


def to_float64_keys(keys: Tensor, form: Format) -> Tensor:
    """Convert keys of any format to the float64 keys of the same values.

    Args:
        keys: any shape.
        form: their format.

    Returns:
        int64 keys of the same shape.
    """
    keys = keys.to(torch.int64)
    if not form.is_float:
        return keys_of(keys.to(torch.float64).view(torch.int64), FLOAT64, absolute=False)
    if form == FLOAT64:
        return keys
    magnitude = keys.abs()
    rebias = (FLOAT64.bias - form.bias) << FLOAT64.mantissa
    wide = (magnitude << (FLOAT64.mantissa - form.mantissa)) + rebias
    # A denormal is an integer times a power of two. In float64 both and their product are normal.
    unit = 2.0 ** (1 - form.bias - form.mantissa)
    denormal = (magnitude.to(torch.float64) * unit).view(torch.int64)
    wide = torch.where(magnitude < (1 << form.mantissa), denormal, wide)
    wide = torch.where(
        magnitude >= form.infinity, FLOAT64.infinity + magnitude - form.infinity, wide
    )
    return torch.where(keys < 0, -wide, wide)


def round_down(key: int, form: Format) -> tuple[int, bool]:
    """Round a float64 key down to a narrower float format.

    Args:
        key: a float64 key.
        form: the narrower format.

    Returns:
        The highest key of the format whose value is not above that of `key`, and whether the two
        values are equal.
    """
    magnitude = abs(key)
    shift = FLOAT64.mantissa - form.mantissa
    rebiased = magnitude - ((FLOAT64.bias - form.bias) << FLOAT64.mantissa)
    one = 1 << FLOAT64.mantissa
    if magnitude >= FLOAT64.infinity:
        narrow = magnitude - FLOAT64.infinity + form.infinity
    elif rebiased >= one:
        narrow = min(rebiased >> shift, form.infinity - 1)
    else:  # a denormal of the format: each lower exponent shifts one more bit of 1.mantissa out
        significand = magnitude % one + (one if magnitude >= one else 0)
        narrow = significand >> (shift + 1 - (rebiased >> FLOAT64.mantissa))
    narrow = narrow if key >= 0 else -narrow  # rounded towards zero
    if _to_float64_key(narrow, form) > key:
        narrow -= 1
    return narrow, _to_float64_key(narrow, form) == key


def _to_float64_key(key: int, form: Format) -> int:
    return int(to_float64_keys(torch.tensor(key, device="cpu"), form))


def values_of(keys: Tensor, form: Format) -> Tensor:
    """Return the scores that keys stand for.

    Args:
        keys: int64, any shape.
        form: their format.

    Returns:
        float64 values of the same shape, exact.
    """
    if not form.is_float:
        return keys.to(torch.float64)
    wide = to_float64_keys(keys, form)
    sign = torch.where(wide < 0, torch.iinfo(torch.int64).min, 0)
    bits = (wide.abs() | sign).masked_fill(wide == FLOAT64.nan, FLOAT64.nan | 1 << 51)
    return bits.view(torch.float64)
