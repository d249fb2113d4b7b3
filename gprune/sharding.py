"""DTensors at the public functions: recognising them, and raising errors on every rank.

If one rank raises an error and the others go on, they wait for its messages for ever. So public
functions that send messages are decorated with `raise_on_all_ranks`. The decorator does nothing if
no leaf is sharded. In functions that send no messages, only the rank with the error raises it.

The messages go to the ranks of the mesh. So a rank whose call has no DTensor at all cannot reach
the others, and they wait for it until their process group times out.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from gprune.inputs import PLAIN, unwrap
from gprune.trees import flatten

Function = TypeVar("Function", bound=Callable[..., Any])


def is_sharded(leaves: Sequence[Any]) -> bool:
    """Return whether there is a DTensor among some leaves.

    A DTensor is recognised by its attribute `device_mesh`. A check of its class would import
    `torch.distributed.tensor`, which most programs do not need.

    Args:
        leaves: tensors and anything else.

    Returns:
        Whether one is a DTensor.
    """
    others = [x for x in unwrap(leaves) if type(x) not in PLAIN and isinstance(x, Tensor)]
    return any(hasattr(leaf, "device_mesh") for leaf in others)


def require_unsharded(leaves: Sequence[Any], caller: str) -> None:
    """Raise an error if a leaf is a DTensor, for functions that need all entries of a leaf at once.

    Args:
        leaves: tensors.
        caller: the public function to name in the error.

    Raises:
        ValueError: if one is a DTensor.
    """
    if is_sharded(leaves):
        raise ValueError(
            f"{caller} needs whole leaves, got DTensors; pass leaf.full_tensor() for each of them"
        )


def load_dtensor_rules() -> None:
    """Register the rules of the operators for DTensors, if the program has imported DTensors."""
    if "torch.distributed.tensor" in sys.modules:
        import gprune.select.dtensors  # noqa: F401  registers the rules


def describe_call(caller: str, leaves: Sequence[Any], names: Callable[[], list[str]]) -> str:
    """Describe a call on DTensors; the ranks compare it to check that all make the same call.

    Args:
        caller: the public function.
        leaves: the tensors of the call.
        names: returns the path of each; called only if a leaf is a DTensor.

    Returns:
        The description, or `""` if no leaf is a DTensor.
    """
    return f"{caller} {' '.join(names())}" if is_sharded(leaves) else ""


def check_same_call(leaves: Sequence[Any], aspects: dict[str, str]) -> None:
    """Check that all ranks have come to the same place of a call, if a leaf is a DTensor.

    Args:
        leaves: the leaves of the call.
        aspects: what must be the same on all ranks, as in `gprune.select.ranks.ASPECTS`.

    Raises:
        ValueError: if an aspect differs between ranks.
        Exception: if another rank has raised it; see `raise_on_all_ranks`.
    """
    if is_sharded(leaves):
        from gprune.select import shards

        shards.check_same_call(leaves, aspects)


def check_same_leaves(
    call: str, leaves: Sequence[Tensor], paths: Callable[[], list[str]], *arguments: object
) -> None:
    """Check that all ranks call a function with the same leaves, if a leaf is a DTensor.

    A function calls it before it sends messages that are not those of an operator.

    Args:
        call: the function.
        leaves: its tensors.
        paths: returns the path of each.
        *arguments: plain values that must be the same on all ranks.

    Raises:
        ValueError: if something differs between ranks.
        Exception: if another rank has raised it; see `raise_on_all_ranks`.
    """
    if is_sharded(leaves):
        layouts = [
            (tuple(x.shape), x.dtype, getattr(x, "placements", None)) for x in unwrap(leaves)
        ]
        call = f"{call} {' '.join(paths())}"
        check_same_call(
            leaves, {"call": call, "leaves": repr(layouts), "arguments": repr(arguments)}
        )


def raise_on_all_ranks(function: Function) -> Function:
    """Make a public function raise an error on every rank if one rank raises it.

    Operators already send their errors to all ranks. This decorator does the same for an error that
    one rank raises outside an operator, such as a wrong shape. The other ranks receive the error
    with their next message. So on them the function must send one after any place where a rank can
    fail: from an operator, or by `check_same_call` or `check_same_leaves`.

    Args:
        function: a public function of trees.

    Returns:
        A function that does the same, and raises an error on all ranks or on none.
    """

    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_compiling():  # no messages are sent while tracing
            return function(*args, **kwargs)
        try:
            return function(*args, **kwargs)
        except Exception as error:
            leaves, _ = flatten((args, kwargs))
            if is_sharded(leaves) and not getattr(error, "is_on_all_ranks", False):
                from gprune.select import shards

                shards.raise_error(error, leaves)
            raise

    return run  # type: ignore[return-value]  # wraps() keeps the signature
