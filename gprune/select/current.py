"""The public call that is going on: what its ranks must agree on, and whether they have met."""

from __future__ import annotations

from contextvars import ContextVar
from typing import Any

from gprune.trees import flatten, leaf_names


class Call:
    """A public call.

    Attributes:
        arguments: what it was called with.
        met: whether the ranks have met in it; from then on whatever one raises, all raise.
    """

    def __init__(self, arguments: Any) -> None:
        self.arguments = arguments
        self.met = False

    def structure(self) -> str:
        """Describe the trees in the arguments: their paths, less the holes."""
        leaves, treedef = flatten(self.arguments)
        names = leaf_names(treedef, "")
        return " ".join(x for x, leaf in zip(names, leaves, strict=True) if leaf is not None)


current: ContextVar[Call | None] = ContextVar("current", default=None)


def current_call() -> Call:
    """Give the call that is going on; under `torch.compile` one that nothing is known of."""
    return current.get() or Call(())
