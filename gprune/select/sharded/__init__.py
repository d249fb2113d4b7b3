"""Sharded selection: the same cut on DTensors, whose entries are spread over many processes.

Every rank counts in its own shard, the counts are added up, and every rank draws the same
conclusion; then each marks its own shard at the same cut. No score and no mask ever travels. An
entry that several ranks hold is counted by one of them.

    layouts.py    DTensors -> local shards, the box of each in its leaf, and who counts it
    ranks.py      the ranks: adding counts, and raising on all what is wrong on one
    parts.py      local flat indices <-> those of the whole tree
    descent.py    the n-th of integers that nobody has all of, from counts alone
    search.py     the search: guess, pass, and the cut
    shards.py     a call on shards: the ranks agree on it, search, and mark their own
    operators.py  all of it as operators, and what those of selection do when they meet a DTensor

The only room that imports `torch.distributed`. It is entered with the first DTensor.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gprune.select.sharded.layouts import mesh_of, ranks_of
from gprune.select.sharded.operators import num_pruned

__all__ = ["announce", "num_pruned"]


def announce(error: Exception, leaves: Sequence[Any]) -> None:
    """Tell the others, who open a call or will, that this rank could not.

    Args:
        error: what is wrong here.
        leaves: whatever was given, a DTensor among it.

    Raises:
        Exception: `error`, or that of a lower rank.
    """

    def describe() -> dict[str, str]:
        raise error

    ranks_of(mesh_of(leaves)).agree(describe)
