"""The error of one leaf, which knows which it is until somebody who knows its path tells it."""

from __future__ import annotations


class LeafError(ValueError):
    """What is wrong with the values of one leaf.

    Attributes:
        leaf: its number among the prunable leaves.
        what: the tree that is at fault, `params`, `scores`, `amount` or `sparsity`.
        kind: the class of the error to raise.
    """

    def __init__(
        self, leaf: int, what: str, message: str, kind: type[Exception] = ValueError
    ) -> None:
        super().__init__(f"{what} of prunable leaf {leaf}: {message}")
        self.leaf = leaf
        self.what = what
        self.message = message
        self.kind = kind
