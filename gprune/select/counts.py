"""Counts: how many candidates an amount or a sparsity prunes, and a total divided among leaves.

`amount` has torch's meaning: an integer is a number of candidates, a float is a fraction of the
candidates. `sparsity` is the fraction of all prunable entries that is pruned afterwards. Products
are computed in float64 and rounded half to even.

A Python number becomes a 0-dim tensor by a multiplication. Dynamo compiles that at most twice,
however many different numbers it sees.
"""

from __future__ import annotations

import heapq
import math
import numbers
from collections import Counter
from typing import Any

import torch
from torch import Tensor

from gprune.inputs import float64_device


def amount_or_sparsity(amount: Any, sparsity: Any, caller: str) -> tuple[Any, bool]:
    """Return the one of amount and sparsity that is given.

    Args:
        amount: an amount or `None`.
        sparsity: a sparsity or `None`.
        caller: the public function to name in an error.

    Returns:
        The one that is given, and whether it is the sparsity.

    Raises:
        TypeError: if both or neither are given.
    """
    if (amount is None) == (sparsity is None):
        got = "neither" if amount is None else "both"
        raise TypeError(f"{caller}() takes exactly one of amount and sparsity, got {got}")
    return (amount, False) if sparsity is None else (sparsity, True)


def as_scalar(number: Any, name: str, *, meta: bool = False, several: bool = False) -> Tensor:
    """Turn an amount, a sparsity or a seed into a 0-dim tensor; its value is checked later.

    Args:
        number: a Python number, or a 0-dim tensor of an integer or floating dtype.
        name: what to call it in an error.
        meta: whether a tensor may be on the meta device, without a value.
        several: whether a tensor may be 1-D.

    Returns:
        A 0-dim tensor, or a 1-D tensor if one was given. A Python integer becomes int64, and any
        other Python number becomes float64, both on the CPU. A tensor keeps its dtype and its
        device, and is detached.

    Raises:
        TypeError: if it is not a number (a bool is not).
        ValueError: if it is a tensor with too many dimensions or without a value, an integer beyond
            64 bits, or another number beyond the range of a float.
    """
    if isinstance(number, Tensor):
        if number.layout != torch.strided or number.is_nested:
            raise TypeError(f"{name} must be a dense 0-dim tensor, got one of {number.layout}")
        if number.dim() > int(several):
            dims = "0-dim or 1-D" if several else "0-dim"
            raise ValueError(f"{name} must be {dims}, got a tensor of shape {tuple(number.shape)}")
        if number.is_meta and not meta:
            raise ValueError(f"{name} must have a value, got a tensor on the meta device")
        if number.dtype == torch.bool or number.is_complex():
            raise TypeError(f"{name} must be an int or a float, got a tensor of {number.dtype}")
        return number.detach()
    if isinstance(number, bool) or not isinstance(number, int | float | numbers.Real):
        raise TypeError(f"{name} must be an int or a float, got {number!r}")
    if isinstance(number, int | numbers.Integral):
        number = int(number)
        if not torch.compiler.is_compiling() and abs(number) >= 2**63:
            raise ValueError(f"{name} must fit in 64 bits, got {number}")
        return torch.ones((), dtype=torch.int64, device="cpu").mul(number)
    return torch.ones((), dtype=torch.float64, device="cpu").mul(as_float(number, name))


def as_float(number: Any, name: str) -> float:
    """Turn a real number into a float.

    Args:
        number: the number.
        name: what to call it in an error.

    Returns:
        The nearest float.

    Raises:
        ValueError: if it is beyond the range of a float.
    """
    try:
        return float(number)
    except OverflowError:  # a fraction of large integers
        raise ValueError(f"{name} must be within the range of a float, got {number}") from None


def as_nonnegative(number: Any, name: str, most: float = math.inf) -> float:
    """Turn a real number that must not be negative into a finite float.

    Args:
        number: the number.
        name: what to call it in an error.
        most: the highest value that is allowed.

    Returns:
        The nearest float.

    Raises:
        TypeError: if it is not a number (a bool or a tensor is not).
        ValueError: if it is negative, above `most`, NaN or infinite.
    """
    if isinstance(number, bool) or not isinstance(number, int | float | numbers.Real):
        raise TypeError(f"{name} must be a number, got {number!r}")
    value = as_float(number, name)
    if not 0 <= value <= most or math.isinf(value):
        bounds = "finite and not negative" if math.isinf(most) else f"from 0 to {most}"
        raise ValueError(f"{name} must be {bounds}, got {number}")
    return value


def as_seed(seed: Any) -> Tensor:
    """Turn a seed into a 0-dim integer tensor.

    Args:
        seed: a Python int, signed and of 64 bits, or a 0-dim integer tensor.

    Returns:
        A 0-dim integer tensor.

    Raises:
        TypeError: if it is not an integer.
        ValueError: if it is a tensor with dimensions, or beyond 64 bits.
    """
    integer = isinstance(seed, numbers.Integral) and not isinstance(seed, bool)
    if not integer and (not isinstance(seed, Tensor) or seed.is_floating_point()):
        raise TypeError(f"seed must be an int or a 0-dim integer tensor, got {seed!r}")
    return as_scalar(seed, "seed")


def resolve(number: Tensor, entries: int, candidates: int, is_sparsity: bool) -> int:
    """Return how many candidates an amount or a sparsity prunes.

    Args:
        number: 0-dim tensor.
        entries: how many prunable entries there are.
        candidates: how many of them are not pruned yet.
        is_sparsity: whether the number is a sparsity.

    Returns:
        How many candidates to prune.
    """
    if is_sparsity:
        return resolve_sparsity(number, entries, candidates)
    return resolve_amount(number, candidates)


def resolve_amount(amount: Tensor, candidates: int) -> int:
    """Return `amount` if it is an integer, else `round(amount * candidates)`.

    Args:
        amount: 0-dim tensor.
        candidates: how many entries there are to choose from.

    Returns:
        How many of them to prune.

    Raises:
        ValueError: if the value is out of range.
    """
    number = amount.item()
    if isinstance(number, float):
        _check_fraction(number, "amount", " when it is a float")
        return round(number * candidates)
    if number < 0:
        raise ValueError(f"amount must not be negative, got {number}")
    if number > candidates:
        raise ValueError(
            f"amount must be at most the number of candidates, {candidates} (the prunable entries "
            f"that are not pruned yet), got {number}"
        )
    return int(number)


def resolve_sparsity(sparsity: Tensor, entries: int, candidates: int) -> int:
    """Return `max(0, round(sparsity * entries) - already pruned)`.

    Args:
        sparsity: 0-dim tensor, 0 to 1.
        entries: how many prunable entries there are.
        candidates: how many of them are not pruned yet.

    Returns:
        How many candidates to prune.

    Raises:
        ValueError: if the value is out of range.
    """
    number = float(sparsity.item())
    _check_fraction(number, "sparsity", "")
    return max(0, round(number * entries) - (entries - candidates))


def resolve_floors(min_per_leaf: Tensor, sizes: list[int]) -> list[int]:
    """Return how many entries each leaf must keep at least.

    An integer is that many, or all entries of a smaller leaf. A fraction f of n entries is
    round(f * n), but at least one entry if f is above 0.

    Args:
        min_per_leaf: 0-dim tensor.
        sizes: how many entries each leaf has.

    Returns:
        A number for each leaf.

    Raises:
        ValueError: if the value is out of range.
    """
    number = min_per_leaf.item()
    if isinstance(number, float):
        _check_fraction(number, "min_per_leaf", " when it is a float")
        wanted = [max(round(number * size), int(number > 0)) for size in sizes]
    else:
        if number < 0:
            raise ValueError(f"min_per_leaf must not be negative, got {number}")
        wanted = [int(number)] * len(sizes)
    return [min(pair) for pair in zip(wanted, sizes, strict=True)]


def resolve_each(number: Tensor, entries: int, candidates: Tensor, is_sparsity: bool) -> Tensor:
    """Return how many candidates of each of many groups an amount or a sparsity prunes.

    Args:
        number: 0-dim tensor.
        entries: how many prunable entries each group has.
        candidates: how many of them are not pruned yet, int64 of any shape.
        is_sparsity: whether the number is a sparsity.

    Returns:
        int64 of the shape and on the device of `candidates`.

    Raises:
        ValueError: if the value is out of range.
    """
    if is_sparsity:
        num_kept = entries - resolve_sparsity(number, entries, entries)
        return candidates.sub(num_kept).clamp_(min=0)
    if number.is_floating_point():
        fraction = number.item()
        _check_fraction(fraction, "amount", " when it is a float")
        exact = candidates.to(float64_device(candidates.device)).to(torch.float64)
        return exact.mul_(fraction).round_().to(torch.int64).to(candidates.device)
    fewest = int(candidates.min()) if candidates.numel() else entries
    return torch.full_like(candidates, resolve_amount(number, fewest))


def _check_fraction(number: float, name: str, when: str) -> None:
    if math.isnan(number):
        raise ValueError(f"{name} must be a number, got nan")
    if number < 0:
        raise ValueError(f"{name} must not be negative, got {number}")
    if number > 1:
        hint = f"; did you mean {number / 100:g}?" if 2 <= number <= 100 else ""
        raise ValueError(f"{name} must be at most 1{when}, got {number}{hint}")


HALVINGS = 50
"""How often the bisection halves the interval of the rate. Counts have fewer bits than this, so the
rate becomes exact enough to tell neighbouring counts apart."""


def share_out(
    total: int,
    weights: list[float],
    low: list[int],
    high: list[int],
    shifts: list[float] | None = None,
) -> list[int]:
    """Divide a total into integer counts that are linear in one rate, within bounds.

    The count of i is `rate * weights[i] + shifts[i]`, rounded and clamped to the bounds of i. The
    rate is the same for all, and chosen so that the sum is the total. If no rate gives exactly the
    total, the rest is handed out one by one, each to the count that would round up first if the
    rate grew.

    Args:
        total: the sum of the counts, from `sum(low)` to `sum(high)`.
        weights: one for each count, above 0 where the bounds differ.
        low: the lower bound of each count.
        high: the upper bound of each count.
        shifts: one for each count, not negative. By default 0, for counts in proportion to the
            weights.

    Returns:
        The counts.
    """
    shifts = shifts or [0.0] * len(weights)
    counts = _counts_at_one_rate(total, weights, low, high, shifts)

    def next_rate(i: int) -> float:
        return (counts[i] + 0.5 - shifts[i]) / weights[i]

    queue = [(next_rate(i), i) for i in range(len(counts)) if counts[i] < high[i]]
    heapq.heapify(queue)
    for _ in range(total - sum(counts)):
        _, first = heapq.heappop(queue)
        counts[first] += 1
        if counts[first] < high[first]:
            heapq.heappush(queue, (next_rate(first), first))
    return counts


def _counts_at_one_rate(
    total: int, weights: list[float], low: list[int], high: list[int], shifts: list[float]
) -> list[int]:
    """Return the counts at the highest rate at which their sum does not exceed the total.

    The rate is found by bisection. If several counts round up at the same rate, the sum may be less
    than the total.
    """
    bounds = list(zip(weights, low, high, shifts, strict=True))
    kinds = Counter(bounds)  # a model has many layers of few shapes

    def counts_at(rate: float) -> dict[tuple[float, int, int, float], int]:
        return {
            (w, least, most, shift): min(max(math.floor(rate * w + shift + 0.5), least), most)
            for w, least, most, shift in kinds
        }

    def sum_at(rate: float) -> int:
        return sum(kinds[kind] * count for kind, count in counts_at(rate).items())

    lower = -max([shift / w for w, _, _, shift in kinds if w], default=0.0)
    upper = max([(most + 1) / w for w, _, most, _ in kinds if w], default=0.0)
    if sum_at(upper) <= total:
        lower = upper
    for _ in range(HALVINGS):
        rate = (lower + upper) / 2
        lower, upper = (rate, upper) if sum_at(rate) <= total else (lower, rate)
    counts = counts_at(lower)
    return [counts[kind] for kind in bounds]
