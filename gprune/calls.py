"""Calls: what the ranks of a sharded call must agree on, and that they fail together.

A rank that raises while the others go on would leave them waiting for its messages. So the public
functions whose search sends messages are marked with `together`: what one of them raises before the
ranks have met, all raise. Where nothing is sharded this costs nothing.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import torch

from gprune.inputs import is_sharded
from gprune.select.current import Call, current
from gprune.trees import flatten

Function = TypeVar("Function", bound=Callable[..., Any])


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
        if torch.compiler.is_compiling() or current.get() is not None:
            return function(*args, **kwargs)
        call = Call((args, kwargs))
        token = current.set(call)
        try:
            return function(*args, **kwargs)
        except Exception as error:
            leaves, _ = flatten(call.arguments)
            if not call.met and is_sharded(leaves):
                from gprune.select import sharded

                sharded.announce(error, leaves)
            raise
        finally:
            current.reset(token)

    return run  # type: ignore[return-value]  # wraps() keeps the signature
