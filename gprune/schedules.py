"""Schedules: pure functions `step -> sparsity`, a 0-dim float64 tensor.

`step` is a Python int or a 0-dim tensor, so a schedule can live inside a compiled step: a tensor
that counts compiles once. The result goes to `sparsity=` of `global_unstructured` or `layerwise`,
which prune up to it and never beyond.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor

__all__ = ["constant", "linear", "one_shot", "polynomial"]

Schedule: TypeAlias = Callable[[int | Tensor], Tensor]


def constant(sparsity: float) -> Schedule:
    """Ask for one sparsity at every step.

    Args:
        sparsity: fraction pruned, 0 to 1.

    Returns:
        The schedule.

    Raises:
        TypeError: if the sparsity is not a number.
        ValueError: if the sparsity is out of range.

    Example:
        >>> constant(0.5)(0)
        tensor(0.5000, dtype=torch.float64)
    """
    _check_sparsity(sparsity, "sparsity")
    return lambda step: torch.full_like(_float64(step), sparsity)


def one_shot(sparsity: float, *, step: int) -> Schedule:
    """Ask for nothing before a step and for the whole sparsity from it on.

    Args:
        sparsity: fraction pruned from `step` on, 0 to 1.
        step: when to prune.

    Returns:
        The schedule.

    Raises:
        TypeError: if the sparsity is not a number.
        ValueError: if the sparsity is out of range.

    Example:
        >>> schedule = one_shot(0.5, step=100)
        >>> float(schedule(99)), float(schedule(100))
        (0.0, 0.5)
    """
    _check_sparsity(sparsity, "sparsity")
    _check_number(step, "step")
    due = step
    return lambda step: (_float64(step) >= due).to(torch.float64) * sparsity


def linear(sparsity: float, *, begin: int, end: int, initial: float = 0.0) -> Schedule:
    """Raise the sparsity in a straight line between two steps.

    Args:
        sparsity: fraction pruned from `end` on, 0 to 1.
        begin: the last step at the initial sparsity.
        end: the first step at the final one.
        initial: fraction pruned up to `begin`, 0 to 1.

    Returns:
        The schedule.

    Raises:
        TypeError: if a sparsity is not a number.
        ValueError: if a sparsity is out of range, or `begin` is not before `end`.

    Example:
        >>> float(linear(0.8, begin=100, end=200)(150))
        0.4
    """
    return polynomial(sparsity, begin=begin, end=end, initial=initial, power=1)


def polynomial(
    sparsity: float, *, begin: int, end: int, initial: float = 0.0, power: float = 3
) -> Schedule:
    """Raise the sparsity fast at first, then slower: s_f + (s_i - s_f) (1 - t)^power.

    t runs from 0 at `begin` to 1 at `end`. With the power 3 it is the cubic schedule of Zhu &
    Gupta, 2017, arXiv:1710.01878, eq. 1.

    Args:
        sparsity: fraction pruned from `end` on, s_f, 0 to 1.
        begin: the last step at the initial sparsity.
        end: the first step at the final one.
        initial: fraction pruned up to `begin`, s_i, 0 to 1.
        power: the exponent, above 0.

    Returns:
        The schedule.

    Raises:
        TypeError: if a sparsity is not a number.
        ValueError: if a sparsity is out of range, `begin` is not before `end`, or the power is not
            above 0.

    Example:
        >>> polynomial(0.8, begin=0, end=100)(50)
        tensor(0.7000, dtype=torch.float64)
    """
    _check_sparsity(sparsity, "sparsity")
    _check_sparsity(initial, "initial")
    _check_number(begin, "begin")
    _check_number(end, "end")
    _check_number(power, "power")
    if not begin < end:
        raise ValueError(f"begin must be before end, got begin={begin}, end={end}")
    if not power > 0:
        raise ValueError(f"power must be above 0, got {power}")

    def schedule(step: int | Tensor) -> Tensor:
        t = ((_float64(step) - begin) / (end - begin)).clamp(0, 1)
        return sparsity + (initial - sparsity) * (1 - t) ** power

    return schedule


def _float64(step: int | Tensor) -> Tensor:
    # A multiplication, since Dynamo compiles it at most twice for Python numbers; see amounts.py.
    return torch.ones((), dtype=torch.float64, device="cpu") * step


def _check_number(number: float, name: str) -> None:
    if isinstance(number, bool) or not isinstance(number, numbers.Real):
        raise TypeError(f"{name} must be a number, got {number!r}")
    if not math.isfinite(number):
        raise ValueError(f"{name} must be finite, got {number}")


def _check_sparsity(sparsity: float, name: str) -> None:
    _check_number(sparsity, name)
    if not 0 <= sparsity <= 1:
        raise ValueError(f"{name} must be from 0 to 1, got {sparsity}")
