"""Schedules: pure functions from a training step to a sparsity, a 0-dim float64 tensor.

    >>> import torch, gprune as gp
    >>> schedule = gp.schedules.polynomial(0.8, begin=0, end=100)
    >>> [round(float(schedule(step)), 3) for step in (0, 50, 100)]
    [0.0, 0.7, 0.8]
    >>> masks = gp.global_unstructured([torch.randn(20, 30)], sparsity=schedule(50))

A step is a Python int or a 0-dim tensor. Inside a compiled function use a tensor, so that one
compilation serves all steps. Pass the result as `sparsity=` to `global_unstructured` or
`layerwise`, which prune to it and never restore weights, or pass the schedule to a pruner, such as
`gprune.pruners.gradual`.

    constant     the same sparsity at every step
    one_shot     0 before a step, a sparsity from it on
    linear       rises in a straight line
    polynomial   rises fast, then slower; with power 3 that of Zhu & Gupta
    exponential  prunes the same fraction of the remaining weights at every step
    cosine       follows half a cosine wave
    every        whether to prune at a step, for `due=` of a pruner

The functions return instances of the frozen dataclasses at the end of this file. So two schedules
with the same numbers are equal, and a schedule survives `pickle` and `copy.deepcopy`.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

__all__ = ["constant", "cosine", "every", "exponential", "linear", "one_shot", "polynomial"]

Schedule: TypeAlias = Callable[[int | Tensor], Tensor]
"""A function of a step, an int or a 0-dim tensor, to a sparsity, a 0-dim float64 tensor."""


def constant(sparsity: float) -> Schedule:
    """Return the schedule with the same sparsity at every step.

    Args:
        sparsity: fraction pruned, 0 to 1.

    Returns:
        The schedule: a function of a step, an int or a 0-dim integer tensor. It returns the
        sparsity, a 0-dim float64 tensor on the CPU.

    Raises:
        TypeError: if the sparsity is not a number.
        ValueError: if the sparsity is out of range.

    Example:
        >>> import gprune as gp
        >>> gp.schedules.constant(0.5)(0)
        tensor(0.5000, dtype=torch.float64)
    """
    return Constant(_sparsity(sparsity, "sparsity"))


def one_shot(sparsity: float, *, step: int) -> Schedule:
    """Return the schedule that is 0 before a step and the given sparsity from that step on.

    Args:
        sparsity: fraction pruned from `step` on, 0 to 1.
        step: the first step with the given sparsity.

    Returns:
        The schedule: a function of a step, an int or a 0-dim integer tensor. It returns the
        sparsity, a 0-dim float64 tensor on the CPU.

    Raises:
        TypeError: if the sparsity is not a number.
        ValueError: if the sparsity is out of range.

    Example:
        >>> import gprune as gp
        >>> schedule = gp.schedules.one_shot(0.5, step=100)
        >>> float(schedule(99)), float(schedule(100))
        (0.0, 0.5)
    """
    return OneShot(_sparsity(sparsity, "sparsity"), _number(step, "step"))


def linear(sparsity: float, *, begin: int, end: int, initial: float = 0.0) -> Schedule:
    """Return the schedule that is linear between two steps: s_i + (s_f - s_i) t.

    t rises from 0 at `begin` to 1 at `end`, and is constant before and after.

    Args:
        sparsity: fraction pruned from `end` on, s_f, 0 to 1.
        begin: the last step at the initial sparsity.
        end: the first step at the final one.
        initial: fraction pruned up to `begin`, s_i, 0 to 1.

    Returns:
        The schedule: a function of a step, an int or a 0-dim integer tensor. It returns the
        sparsity, a 0-dim float64 tensor on the CPU.

    Raises:
        TypeError: if a sparsity is not a number.
        ValueError: if a sparsity is out of range, or `begin` is not before `end`.

    Example:
        >>> import gprune as gp
        >>> float(gp.schedules.linear(0.8, begin=100, end=200)(150))
        0.4
    """
    return polynomial(sparsity, begin=begin, end=end, initial=initial, power=1)


def polynomial(
    sparsity: float, *, begin: int, end: int, initial: float = 0.0, power: float = 3
) -> Schedule:
    """Return the schedule of a power of the time left: s_f + (s_i - s_f) (1 - t)^power.

    t rises from 0 at `begin` to 1 at `end`, and is constant before and after. With a power above 1
    the sparsity changes fast at first, then slower.

    Args:
        sparsity: fraction pruned from `end` on, s_f, 0 to 1.
        begin: the last step at the initial sparsity.
        end: the first step at the final one.
        initial: fraction pruned up to `begin`, s_i, 0 to 1.
        power: the exponent, above 0.

    Returns:
        The schedule: a function of a step, an int or a 0-dim integer tensor. It returns the
        sparsity, a 0-dim float64 tensor on the CPU.

    Raises:
        TypeError: if a sparsity is not a number.
        ValueError: if a sparsity is out of range, `begin` is not before `end`, or the power is not
            above 0.

    Example:
        >>> import gprune as gp
        >>> gp.schedules.polynomial(0.8, begin=0, end=100)(50)
        tensor(0.7000, dtype=torch.float64)

    References:
        Zhu & Gupta, 2017, arXiv:1710.01878, eq. 1 (power 3).
    """
    sparsity, initial = _check_ramp(sparsity, begin, end, initial)
    power = _number(power, "power")
    if not power > 0:
        raise ValueError(f"power must be above 0, got {power}")
    return Polynomial(sparsity, begin, end, initial, power)


def exponential(sparsity: float, *, begin: int, end: int, initial: float = 0.0) -> Schedule:
    """Return the schedule of equal fractions of what remains: 1 - (1 - s_i)^(1-t) (1 - s_f)^t.

    t rises from 0 at `begin` to 1 at `end`, and is constant before and after. Every step prunes the
    same fraction of the remaining weights. With s_i = 0 and n pruning steps at equal distances it
    is the schedule of iterative pruning, which keeps the fraction (1 - s_f)^(1/n) of the remaining
    weights in each of n rounds.

    Args:
        sparsity: fraction pruned from `end` on, s_f, 0 to below 1.
        begin: the last step at the initial sparsity.
        end: the first step at the final one.
        initial: fraction pruned up to `begin`, s_i, 0 to below 1.

    Returns:
        The schedule: a function of a step, an int or a 0-dim integer tensor. It returns the
        sparsity, a 0-dim float64 tensor on the CPU.

    Raises:
        TypeError: if a sparsity is not a number.
        ValueError: if a sparsity is out of range, or `begin` is not before `end`.

    Example:
        >>> import gprune as gp
        >>> schedule = gp.schedules.exponential(0.75, begin=0, end=100)
        >>> float(schedule(50)), float(schedule(100))
        (0.5, 0.75)

    References:
        Frankle & Carbin, 2019, arXiv:1803.03635, section 1.
    """
    sparsity, initial = _check_ramp(sparsity, begin, end, initial)
    if sparsity == 1 or initial == 1:
        raise ValueError("the sparsities of an exponential schedule must be below 1, got 1")
    return Exponential(sparsity, begin, end, initial)


def cosine(sparsity: float, *, begin: int, end: int, initial: float = 0.0) -> Schedule:
    """Return the schedule of half a cosine wave: s_f + (s_i - s_f) (1 + cos πt) / 2.

    t rises from 0 at `begin` to 1 at `end`, and is constant before and after. With a final value of
    0 it is the schedule of the fraction of weights that `rigl` exchanges.

    Args:
        sparsity: fraction pruned from `end` on, s_f, 0 to 1.
        begin: the last step at the initial sparsity.
        end: the first step at the final one.
        initial: fraction pruned up to `begin`, s_i, 0 to 1.

    Returns:
        The schedule: a function of a step, an int or a 0-dim integer tensor. It returns the
        sparsity, a 0-dim float64 tensor on the CPU.

    Raises:
        TypeError: if a sparsity is not a number.
        ValueError: if a sparsity is out of range, or `begin` is not before `end`.

    Example:
        >>> import gprune as gp
        >>> drop = gp.schedules.cosine(0.0, begin=0, end=100, initial=0.3)
        >>> round(float(drop(50)), 6), float(drop(100))
        (0.15, 0.0)

    References:
        Evci et al., 2020, arXiv:1911.11134, eq. 1 (the fraction that RigL exchanges).
    """
    sparsity, initial = _check_ramp(sparsity, begin, end, initial)
    return Cosine(sparsity, begin, end, initial)


def every(step: int | Tensor, *, begin: int, end: int, freq: int) -> Tensor:
    """Return whether a step is one of `begin`, `begin + freq`, `begin + 2 freq`, ... up to `end`.

    Bind the other arguments to get the `due=` of a pruner:
    `functools.partial(every, begin=0, end=1000, freq=100)`.

    Args:
        step: the step, an int or a 0-dim integer tensor.
        begin: the first of these steps.
        end: the last step that may be one of them.
        freq: the number of steps from one to the next, at least 1.

    Returns:
        0-dim bool tensor.

    Raises:
        TypeError: if `begin`, `end` or `freq` is not an int.
        ValueError: if `freq` is below 1, or `end` before `begin`.

    Example:
        >>> import gprune as gp
        >>> [step for step in range(10) if gp.schedules.every(step, begin=2, end=8, freq=3)]
        [2, 5, 8]
    """
    for name, number in (("begin", begin), ("end", end), ("freq", freq)):
        if isinstance(number, bool) or not isinstance(number, int):
            raise TypeError(f"{name} must be an int, got {number!r}")
    if freq < 1:
        raise ValueError(f"freq must be at least 1, got {freq}")
    if end < begin:
        raise ValueError(f"end must not be before begin, got begin={begin}, end={end}")
    at = _float64(step)
    return (at >= begin) & (at <= end) & (torch.remainder(at - begin, freq) == 0)


# --- what the builders return -------------------------------------------------------------------


@dataclass(frozen=True)
class Constant:
    """The schedule of `constant`, whose argument is its attribute."""

    sparsity: float

    def __call__(self, step: int | Tensor) -> Tensor:
        """Return the sparsity at a step."""
        return torch.full_like(_float64(step), self.sparsity)


@dataclass(frozen=True)
class OneShot:
    """The schedule of `one_shot`. `end` is the first step with the sparsity."""

    sparsity: float
    end: float

    def __call__(self, step: int | Tensor) -> Tensor:
        """Return the sparsity at a step."""
        return (_float64(step) >= self.end).to(torch.float64) * self.sparsity


@dataclass(frozen=True)
class Polynomial:
    """The schedule of `polynomial` and `linear`, whose arguments are its attributes."""

    sparsity: float
    begin: float
    end: float
    initial: float
    power: float

    def __call__(self, step: int | Tensor) -> Tensor:
        """Return the sparsity at a step."""
        t = _progress(step, self.begin, self.end)
        return self.sparsity + (self.initial - self.sparsity) * (1 - t) ** self.power


@dataclass(frozen=True)
class Exponential:
    """The schedule of `exponential`, whose arguments are its attributes."""

    sparsity: float
    begin: float
    end: float
    initial: float

    def __call__(self, step: int | Tensor) -> Tensor:
        """Return the sparsity at a step."""
        t = _progress(step, self.begin, self.end)
        left = ((1 - self.initial) / (1 - self.sparsity)) ** (1 - t)
        low, high = sorted((self.initial, self.sparsity))
        return (self.sparsity + (1 - self.sparsity) * (1 - left)).clamp(low, high)  # exact at `end`


@dataclass(frozen=True)
class Cosine:
    """The schedule of `cosine`, whose arguments are its attributes."""

    sparsity: float
    begin: float
    end: float
    initial: float

    def __call__(self, step: int | Tensor) -> Tensor:
        """Return the sparsity at a step."""
        wave = torch.cos(math.pi * _progress(step, self.begin, self.end))
        return self.sparsity + (self.initial - self.sparsity) * (1 + wave) / 2


# --- helpers ------------------------------------------------------------------------------------


def _progress(step: int | Tensor, begin: float, end: float) -> Tensor:
    """Return t: 0 until `begin`, then rising to 1 at `end`."""
    return ((_float64(step) - float(begin)) / float(end - begin)).clamp(0, 1)


def _float64(step: int | Tensor) -> Tensor:
    # A multiplication, because Dynamo compiles it at most twice for Python numbers. It compiles
    # torch.full once for every value; see select/counts.py.
    return torch.ones((), dtype=torch.float64, device="cpu") * step


def _check_ramp(sparsity: float, begin: float, end: float, initial: float) -> tuple[float, float]:
    """Check the arguments of a schedule between two steps, and return its two sparsities."""
    fractions = _sparsity(sparsity, "sparsity"), _sparsity(initial, "initial")
    if not _number(begin, "begin") < _number(end, "end"):
        raise ValueError(f"begin must be before end, got begin={begin}, end={end}")
    return fractions


def _number(number: float, name: str) -> float:
    if isinstance(number, bool) or not isinstance(number, numbers.Real):
        raise TypeError(f"{name} must be a number, got {number!r}")
    if not math.isfinite(number):
        raise ValueError(f"{name} must be finite, got {number}")
    return float(number)


def _sparsity(sparsity: float, name: str) -> float:
    fraction = _number(sparsity, name)
    if not 0 <= fraction <= 1:
        raise ValueError(f"{name} must be from 0 to 1, got {sparsity}")
    return fraction
