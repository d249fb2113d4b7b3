"""Internal limits of the search, patched down: small trees then take the paths of large ones."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
from hypothesis import strategies as st

from gprune.select import blocks, finish, refine, sampling, search


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
        can_collect: whether the search may collect candidates and draw a sample, as on the CPU. If
            not, it counts in bins only, as it does on every other device.
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
    can_collect: bool = True


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
    "can_collect": [True] * 7 + [False],
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
        "DIRECT": small.direct,
        "GUESSES": small.guesses,
    }
    with ExitStack() as stack:
        if not small.can_collect:
            # what `Search.run` does on another device: nothing is collected, there is no sample,
            # and all queries run together
            of_search.update(LIMIT=0, BATCH=0, FEW=2**62, DIRECT=0)
            stack.enter_context(mock.patch.object(search, "batches", _one_run))
        for module, values in {
            blocks: {"BLOCK": small.block},
            search: of_search,
            sampling: {"POWER": small.power, "MISSES": small.misses, "COARSE": small.coarse},
            refine: {"MAX_SENT": small.max_sent},
            finish: {"MAX_TIES": small.limit},
            refine.OneProcess: one_process,
        }.items():
            stack.enter_context(mock.patch.multiple(module, **values))
        yield


def _one_run(queries: list[Any], reduce: Any) -> list[list[Any]]:
    return [queries] if queries else []


def small_limits(rng: np.random.Generator) -> AbstractContextManager[None]:
    """Patch every internal limit to a small value drawn from `rng`, for as long as it is entered.

    The same state of `rng` draws the same limits, so that the ranks of a process group agree.
    """
    drawn = {name: values[rng.integers(len(values))] for name, values in CHOICES.items()}
    return patched(Limits(**drawn))
