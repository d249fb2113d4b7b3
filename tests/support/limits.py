"""Internal limits of the search, patched down: small trees then take the paths of large ones."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
from hypothesis import strategies as st

from gprune.select import accelerator, blocks, finish, refine, rows, sampling, search


class Limits(NamedTuple):
    """The constants of the search.

    Attributes:
        block: `blocks.BLOCK`, entries of a block.
        limit: `search.LIMIT` and `finish.MAX_TIES`, candidates that a process may collect.
        few: `search.FEW`, candidates that are all collected, without a sample.
        direct: `search.DIRECT`, entries whose masks are made without a search. By default there are
            none: what is tested is the search.
        guesses: `search.GUESSES`, passes that the sample may guide.
        power: `sampling.POWER`, how the size of the sample grows.
        misses: `sampling.MISSES`, how many searches have a bracket that misses.
        coarse: `sampling.COARSE`, how exactly the ends of a bracket are found.
        max_bits: `OneProcess.max_bits`, the widest digit.
        max_pass_bits: `OneProcess.max_pass_bits`, the widest digit that takes a pass.
        max_counts: `OneProcess.max_counts`, counts in a message.
        max_sent: `refine.MAX_SENT`, integers that are sent instead of counted.
        on_accelerator: whether leaves on the CPU are searched as those on an accelerator are.
        slots: `accelerator.MAX_SLOTS`, slots of a pass on an accelerator.
        margin: `accelerator.MARGIN`, standard deviations that a block has in reserve.
        short: `rows.SHORT`, entries of a row of which every two are compared.
        small: `search.SMALL`, entries of a leaf that is pruned together with others.
    """

    block: int = blocks.BLOCK
    limit: int = search.LIMIT
    few: int = search.FEW
    direct: int = 0
    guesses: int = search.GUESSES
    power: float = sampling.POWER
    misses: float = sampling.MISSES
    coarse: int = sampling.COARSE
    max_bits: int = refine.OneProcess.max_bits
    max_pass_bits: int = refine.OneProcess.max_pass_bits
    max_counts: int = refine.OneProcess.max_counts
    max_sent: int = refine.MAX_SENT
    on_accelerator: bool = False
    slots: int = accelerator.MAX_SLOTS
    margin: float = accelerator.MARGIN
    short: int = rows.SHORT
    small: int = search.SMALL


CHOICES: dict[str, Sequence[Any]] = {
    "block": [16, 24, 37, 64, 100, 256, 1000, 1024, 4096, 10_007],  # whole words, and not
    "limit": [0, 1, 2, 5, 9, 20, 40, 60, 100, 150, 200, 400, 1000],
    "few": [0, 0, 1, 3, 9, 30, 300],
    "direct": [0, 10, 1000],
    "guesses": [0, 1, 2, 3, 3, 3],
    "power": [0.3, 0.5, 0.7, 1.0],
    "misses": [1 / 200, 0.9, 0.9],
    "coarse": [1, 4, 1024],
    "max_bits": [1, 2, 3, 5, 8, 12],
    "max_pass_bits": [1, 2, 4, 8, 15],
    "max_counts": [1, 4, 64, 1024, 2**20],
    "max_sent": [0, 1, 2, 16],
    "on_accelerator": [False, False, True],
    "slots": [0, 5, 40, 200, 1000, 2**22],
    "margin": [0, 0, 1, 5],
    "short": [0, 3, 8],
    "small": [0, 5, 512],
}
"""What each limit is drawn from. A large leaf has too many blocks of fewer than 16 entries."""


def limits() -> st.SearchStrategy[Limits]:
    """Build the strategy for small limits; the blocks are those for trees of a few entries.

    A block has at least five: a search by one bit a pass reads all of them some sixty times. In
    blocks of hundreds, leaves of tens of entries are joined.
    """
    choices = {name: st.sampled_from(values) for name, values in CHOICES.items()}
    choices["block"] = st.integers(5, 80) | st.sampled_from([160, 320, 640])
    return st.builds(Limits, **choices)


@contextmanager
def patched(small: Limits) -> Iterator[None]:
    """Patch every internal limit, for as long as it is entered."""
    one_process = {
        "max_bits": small.max_bits,
        "max_pass_bits": small.max_pass_bits,
        "max_counts": small.max_counts,
    }
    of_search = {
        "LIMIT": small.limit,
        "BATCH": small.limit,
        "FEW": small.few,
        "MIN_FEW": small.few,
        "DIRECT": small.direct,
        "GUESSES": small.guesses,
        "MAX_SLOTS": small.slots,
        "SMALL": small.small,
    }
    with ExitStack() as stack:
        if small.on_accelerator:
            stack.enter_context(mock.patch.object(blocks.RankedLeaves, "is_on_cpu", False))
        for module, values in {
            blocks: {"BLOCK": small.block},
            search: of_search,
            accelerator: {"MARGIN": small.margin},
            rows: {"SHORT": small.short},
            sampling: {"POWER": small.power, "MISSES": small.misses, "COARSE": small.coarse},
            refine: {"MAX_SENT": small.max_sent},
            finish: {"MAX_TIES": small.limit},
            refine.OneProcess: one_process,
        }.items():
            stack.enter_context(mock.patch.multiple(module, **values))
        yield


def small_limits(rng: np.random.Generator) -> AbstractContextManager[None]:
    """Patch every internal limit to a small value drawn from `rng`, for as long as it is entered.

    The same state of `rng` draws the same limits, so that the ranks of a process group agree.
    """
    drawn = {name: values[rng.integers(len(values))] for name, values in CHOICES.items()}
    return patched(Limits(**drawn))
