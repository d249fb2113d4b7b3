"""DTensors at the public edge: recognising them, and raising errors on every rank.

A rank that raises while the others go on would leave them waiting for its messages. So public
functions that send messages are decorated with `raise_on_all_ranks`. If nothing is sharded, it does
nothing.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from gprune.trees import flatten

Function = TypeVar("Function", bound=Callable[..., Any])

PLAIN = (Tensor, torch.nn.Parameter)


def is_sharded(leaves: Sequence[Any]) -> bool:
    """Return whether there is a DTensor among some leaves.

    A DTensor is told by its mesh, and not by its class: asking for that would import
    `torch.distributed.tensor`, which most programs do without.

    Args:
        leaves: tensors and anything else.

    Returns:
        Whether one is a DTensor.
    """
    others = [leaf for leaf in leaves if type(leaf) not in PLAIN and isinstance(leaf, Tensor)]
    return any(hasattr(leaf, "device_mesh") for leaf in others)


def require_unsharded(leaves: Sequence[Any], caller: str) -> None:
    """Raise an error for DTensors, where entries of one leaf are compared with each other.

    Args:
        leaves: tensors.
        caller: the function to name in the error.

    Raises:
        ValueError: if one is a DTensor.
    """
    if is_sharded(leaves):
        raise ValueError(f"{caller} needs unsharded leaves, these are DTensors; use full_tensor()")


def load_dtensor_rules() -> None:
    """Let the operators take DTensors, if torch has loaded DTensors by now."""
    if "torch.distributed.tensor" in sys.modules:
        import gprune.select.dtensors  # noqa: F401  registers the rules


def describe_call(caller: str, leaves: Sequence[Any], names: Callable[[], list[str]]) -> str:
    """Describe a call, which must be the same on all ranks; nothing if it is not sharded.

    Args:
        caller: the public function.
        leaves: the tensors of the call.
        names: gives the path of each.

    Returns:
        The description.
    """
    return f"{caller} {' '.join(names())}" if is_sharded(leaves) else ""


def raise_on_all_ranks(function: Function) -> Function:
    """Make all ranks raise what one raises before they have exchanged a message.

    Args:
        function: a public function of trees.

    Returns:
        The same function, which fails on all ranks or on none.
    """

    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_compiling():  # a trace sends no messages
            return function(*args, **kwargs)
        try:
            return function(*args, **kwargs)
        except Exception as error:
            leaves, _ = flatten((args, kwargs))
            if is_sharded(leaves) and not getattr(error, "is_on_all_ranks", False):
                from gprune.select import dtensors

                dtensors.raise_error(error, leaves)
            raise

    return run  # type: ignore[return-value]  # wraps() keeps the signature
