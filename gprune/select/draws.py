"""Random scores without a generator: each entry's draw is a hash of (seed, leaf, flat index).

No state is kept or advanced, and any part of a leaf can be drawn alone, which is what makes random
selection pure, streamable and the same however a leaf is cut into blocks or shards. The hash is the
output function of SplitMix64 at a counter (Steele, Lea and Flood, 2014, "Fast Splittable
Pseudorandom Number Generators", figure 17).
"""

from __future__ import annotations

import torch
from torch import Tensor

GAMMA = 0x9E37_79B9_7F4A_7C15
FIRST, SECOND = 0xBF58_476D_1CE4_E5B9, 0x94D0_49BB_1331_11EB
WORD = 2**64


def draw(seed: int, leaf: int, places: Tensor) -> Tensor:
    """Draw the scores of some entries of a leaf.

    Args:
        seed: any 64-bit integer.
        leaf: the number of the leaf among the prunable leaves.
        places: flat indices in the leaf, int64; overwritten.

    Returns:
        float64 tensor of the shape of `places`, uniform on the multiples of 2^-53 in [0, 1).
    """
    stream = _mix(_mix((seed + GAMMA) % WORD) + leaf * GAMMA)
    z = places.add_(1).mul_(_signed(GAMMA)).add_(_signed(stream))
    z = z.bitwise_xor_(_shift_right(z, 30)).mul_(_signed(FIRST))
    z = z.bitwise_xor_(_shift_right(z, 27)).mul_(_signed(SECOND))
    z = z.bitwise_xor_(_shift_right(z, 31))
    return _shift_right(z, 11).to(torch.float64).mul_(2.0**-53)


def draw_range(seed: int, leaf: int, start: int, stop: int, device: torch.device) -> Tensor:
    """Draw the scores of the entries `start` to `stop` of a leaf; see `draw`."""
    return draw(seed, leaf, torch.arange(start, stop, dtype=torch.int64, device=device))


def _mix(z: int) -> int:
    z %= WORD
    z = (z ^ (z >> 30)) * FIRST % WORD
    z = (z ^ (z >> 27)) * SECOND % WORD
    return z ^ (z >> 31)


def _signed(word: int) -> int:
    return (word + WORD // 2) % WORD - WORD // 2


def _shift_right(z: Tensor, places: int) -> Tensor:
    # torch shifts the sign in; the mask drops it again
    return torch.bitwise_and(z >> places, 2 ** (64 - places) - 1)
