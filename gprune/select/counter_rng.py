"""Counter-based random numbers: each is a hash of a seed, a leaf's number and a flat index.

There is no generator state. Any part of a leaf can be drawn alone, so a random selection is pure,
can be streamed, and does not depend on how a leaf is split into blocks or shards. The hash is the
output function of SplitMix64 applied to a counter (Steele, Lea and Flood, 2014, "Fast Splittable
Pseudorandom Number Generators", figure 17).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

GAMMA = 0x9E37_79B9_7F4A_7C15
"""The increment of the counter of SplitMix64."""

FIRST_MULTIPLIER, SECOND_MULTIPLIER = 0xBF58_476D_1CE4_E5B9, 0x94D0_49BB_1331_11EB
"""The multipliers in the output function of SplitMix64."""

MODULUS = 2**64
"""The numbers are words of 64 bits, so all arithmetic is modulo this."""

NUM_BITS = 53
"""The number of bits of a draw. float64 holds every integer of 53 bits."""


def draw_integers(seed: int, leaf: int, flat_indices: Tensor) -> Tensor:
    """Draw integers for some entries of a leaf.

    Args:
        seed: any 64-bit integer.
        leaf: the leaf's number among the ranked leaves.
        flat_indices: the entries' flat indices in the leaf, int64; overwritten.

    Returns:
        int64 tensor of the same shape, uniform on the integers from 0 to 2^53 - 1.
    """
    stream = _mix(_mix((seed + GAMMA) % MODULUS) + leaf * GAMMA)
    return _hash(flat_indices.add_(1).mul_(_signed(GAMMA)).add_(_signed(stream)))


def _hash(z: Tensor) -> Tensor:
    """Return the upper 53 bits of the output of SplitMix64 for each counter; `z` is overwritten."""
    z = z.bitwise_xor_(_shift_right(z, 30)).mul_(_signed(FIRST_MULTIPLIER))
    z = z.bitwise_xor_(_shift_right(z, 27)).mul_(_signed(SECOND_MULTIPLIER))
    z = z.bitwise_xor_(_shift_right(z, 31))
    return _shift_right(z, 64 - NUM_BITS)


def draw_leaves(seed: int, leaves: Sequence[int], flat_indices: Sequence[Tensor]) -> Tensor:
    """Draw integers for some entries of several leaves at once; see `draw_integers`.

    Args:
        seed: any 64-bit integer.
        leaves: the numbers of the leaves.
        flat_indices: for each leaf the flat indices of the entries, int64.

    Returns:
        The draws of all leaves, 1-D int64.
    """
    device = flat_indices[0].device
    first = _mix((seed + GAMMA) % MODULUS)
    streams = [_signed(_mix(first + leaf * GAMMA)) for leaf in leaves]
    sizes = torch.tensor([index.numel() for index in flat_indices], device=device)
    counters = torch.cat(list(flat_indices)).add_(1).mul_(_signed(GAMMA))
    stream = torch.tensor(streams, device=device)
    return _hash(counters.add_(stream.repeat_interleave(sizes, output_size=counters.numel())))


def draw(seed: int, leaf: int, flat_indices: Tensor) -> Tensor:
    """Draw float64 numbers, uniform on the multiples of 2^-53 in [0, 1); see `draw_integers`."""
    return draw_integers(seed, leaf, flat_indices).to(torch.float64).mul_(2.0**-NUM_BITS)


def _mix(z: int) -> int:
    z %= MODULUS
    z = (z ^ (z >> 30)) * FIRST_MULTIPLIER % MODULUS
    z = (z ^ (z >> 27)) * SECOND_MULTIPLIER % MODULUS
    return z ^ (z >> 31)


def _signed(word: int) -> int:
    return (word + MODULUS // 2) % MODULUS - MODULUS // 2


def _shift_right(z: Tensor, num_bits: int) -> Tensor:
    # `>>` fills with copies of the sign bit, which the mask removes
    return (z >> num_bits).bitwise_and_(2 ** (64 - num_bits) - 1)
