"""The host: where counts meet, and what of the process must not reach into the arithmetic."""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, TypeVar

import torch
from torch import Tensor

Function = TypeVar("Function", bound=Callable[..., Any])


def to_host(numbers: list[Tensor]) -> list[int]:
    """Bring integers to the host, waiting once for each device and not for each of them.

    Args:
        numbers: 0-dim integer tensors.

    Returns:
        Their values.
    """
    places: dict[torch.device, list[int]] = {}
    for i, number in enumerate(numbers):
        places.setdefault(number.device, []).append(i)
    found = [0] * len(numbers)
    for own in places.values():
        for i, value in zip(own, torch.stack([numbers[i] for i in own]).tolist(), strict=True):
            found[i] = value
    return found


def undisturbed(function: Function) -> Function:
    """Run a function on the CPU's own terms, whatever the process has set.

    A default device (`torch.set_default_device`) would send the few tensors that a search makes for
    itself there, and flushed denormals (`torch.set_flush_denormal`) would make scores equal that
    are not. Both are put back afterwards.

    Args:
        function: what an operator does.

    Returns:
        The same with these settings at rest.
    """

    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        with ExitStack() as stack:
            if torch.get_default_device().type != "cpu":
                stack.enter_context(torch.device("cpu"))
            if _flushes_denormals():
                torch.set_flush_denormal(False)
                stack.callback(torch.set_flush_denormal, True)
            return function(*args, **kwargs)

    return run  # type: ignore[return-value]  # wraps() keeps the signature


def _flushes_denormals() -> bool:
    smallest = torch.ones((), dtype=torch.int32, device="cpu").view(torch.float32)
    return smallest.item() == 0
