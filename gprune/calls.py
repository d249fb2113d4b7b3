"""Calls: what the ranks of a sharded call must agree on, and that they fail together.

A rank that raises while the others go on would leave them waiting for its messages. So the public
functions whose search sends messages are marked with `together`: what one of them raises before the
ranks have met, all raise. Where nothing is sharded this costs nothing.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any, TypeVar

import torch

from gprune.leaves import is_sharded
from gprune.trees import flatten, leaf_names

Function = TypeVar("Function", bound=Callable[..., Any])


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


_current: ContextVar[Call | None] = ContextVar("_current", default=None)


def current_call() -> Call:
    """Give the call that is going on; under `torch.compile` one that nothing is known of."""
    return _current.get() or Call(())


def together(function: Function) -> Function:
    """Make all ranks raise what one raises.

    Args:
        function: a public function of trees.

    Returns:
        The same, which fails on all ranks or on none.
    """

    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        # a trace sends no messages, and a call within another is a part of that
        if torch.compiler.is_compiling() or _current.get() is not None:
            return function(*args, **kwargs)
        call = Call((args, kwargs))
        token = _current.set(call)
        try:
            return function(*args, **kwargs)
        except Exception as error:
            leaves, _ = flatten(call.arguments)
            if not call.met and is_sharded(leaves):
                from gprune.selection import sharded

                sharded.announce(error, leaves)
            raise
        finally:
            _current.reset(token)

    return run  # type: ignore[return-value]
