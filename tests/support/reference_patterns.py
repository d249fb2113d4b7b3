"""Slow, obvious oracles for patterns, budgets and pruners: naive Python, nothing from gprune."""

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from tests.support import reference

Index = tuple[int, ...]


def indices(shape: Sequence[int]) -> Iterator[Index]:
    return itertools.product(*map(range, shape))


def as_mask(shape: Sequence[int], keep: dict[Index, bool]) -> list[bool]:
    return [keep[index] for index in indices(shape)]


# --- whole channels -------------------------------------------------------------------------


def norm(entries: list[float], n: float) -> float:
    """The vector norm of order n; NaN if there is one, which order 0 counts as not zero."""
    sizes = [abs(entry) for entry in entries]
    if n == 0:
        return float(sum(size != 0 for size in sizes))
    if any(math.isnan(size) for size in sizes):
        return math.nan
    if n == math.inf:
        return max(sizes, default=0.0)
    if n == -math.inf:
        return min(sizes, default=0.0)
    return sum(size**n for size in sizes) ** (1 / n)


def prune_groups(
    groups: list[list[Index]],
    scores: list[float],
    prior: dict[Index, bool],
    *,
    amount: object = None,
    sparsity: object = None,
) -> dict[Index, bool]:
    """Prune whole groups, the lowest first; one that is pruned already is no candidate."""
    alive = [i for i, group in enumerate(groups) if any(prior[index] for index in group)]
    if sparsity is None:
        k = reference.num_to_prune(amount, len(alive))
    else:
        k = reference.num_to_reach(sparsity, len(groups), len(groups) - len(alive))
    keep = dict(prior)
    for i in sorted(alive, key=lambda i: reference.rank(scores[i]))[:k]:
        keep.update(dict.fromkeys(groups[i], False))
    return keep


def prior_of(scores: torch.Tensor, mask: torch.Tensor | None) -> dict[Index, bool]:
    if mask is None:
        return dict.fromkeys(indices(scores.shape), True)
    return {index: bool(mask[index]) for index in indices(scores.shape)}


def channels(shape: Sequence[int], dim: int) -> list[list[Index]]:
    dim %= len(shape)
    return [[index for index in indices(shape) if index[dim] == c] for c in range(shape[dim])]


def ln_structured(
    scores: torch.Tensor, mask: torch.Tensor | None, n: float, dim: int, **budget: object
) -> list[bool]:
    groups = channels(scores.shape, dim)
    norms = [norm([float(scores[index]) for index in group], n) for group in groups]
    return as_mask(scores.shape, prune_groups(groups, norms, prior_of(scores, mask), **budget))


# --- n of m, and blocks -----------------------------------------------------------------------


def groups_of(shape: Sequence[int], m: int, dim: int) -> list[list[Index]]:
    """Every m entries along a dim."""
    dim %= len(shape)
    found: dict[Index, list[Index]] = {}
    for index in indices(shape):
        group = (*index[:dim], index[dim] // m, *index[dim + 1 :])
        found.setdefault(group, []).append(index)
    return list(found.values())


def n_of_m(scores: torch.Tensor, mask: torch.Tensor | None, n: int, m: int, dim: int) -> list[bool]:
    """Of each group, the candidates that come last in the order of pruning."""
    keep = dict.fromkeys(indices(scores.shape), False)
    prior = prior_of(scores, mask)
    for group in groups_of(scores.shape, m, dim):
        candidates = [index for index in group if prior[index]]
        candidates.sort(key=lambda index: reference.rank(scores[index].item()))
        keep.update(dict.fromkeys(candidates[max(0, len(candidates) - n) :], True))
    return as_mask(scores.shape, keep)


def tiles_of(shape: Sequence[int], block: Sequence[int]) -> list[list[Index]]:
    """The entries of each block, the blocks in row-major order."""
    whole = [1] * (len(shape) - len(block)) + list(block)
    found: dict[Index, list[Index]] = {}
    for index in indices(shape):
        place = tuple(i // b for i, b in zip(index, whole, strict=True))
        found.setdefault(place, []).append(index)
    return [found[place] for place in sorted(found)]


def blocks(
    scores: torch.Tensor, mask: torch.Tensor | None, block: Sequence[int], **budget: object
) -> list[bool]:
    groups = tiles_of(scores.shape, block)
    means = [sum(float(scores[index]) for index in group) / len(group) for group in groups]
    return as_mask(scores.shape, prune_groups(groups, means, prior_of(scores, mask), **budget))


# --- allocation -------------------------------------------------------------------------------


def erdos_renyi(
    shapes: Sequence[Sequence[int]], density: float, *, kernel: bool = True
) -> list[float]:
    """Evci et al., 2020, arXiv:1911.11134, section 3: densities, capped ones set to 1 in turn."""
    sizes = [math.prod(shape) for shape in shapes]
    counted = [list(shape) if kernel else list(shape)[:2] for shape in shapes]
    raw = [sum(shape) / math.prod(shape) for shape in counted]
    dense: set[int] = set()
    while True:
        rest = [i for i in range(len(shapes)) if i not in dense]
        kept = density * sum(sizes) - sum(sizes[i] for i in dense)
        epsilon = kept / sum(sizes[i] * raw[i] for i in rest) if rest else 0.0
        above = [i for i in rest if epsilon * raw[i] > 1]
        if not above:
            return [1.0 if i in dense else epsilon * raw[i] for i in range(len(shapes))]
        dense.add(max(above, key=lambda i: raw[i]))


def seats(
    total: int,
    weights: list[float],
    low: list[int],
    high: list[int],
    shifts: Sequence[float] | None = None,
) -> list[int]:
    """The method of Webster, seat by seat: the whole queue, sorted; a shift counts as seats."""
    shifts = shifts or [0.0] * len(weights)
    queue = [
        ((seat - 0.5 - shifts[i]) / weights[i], i)
        for i in range(len(weights))
        for seat in range(low[i] + 1, high[i] + 1)
    ]
    counts = list(low)
    for _, i in sorted(queue)[: total - sum(low)]:
        counts[i] += 1
    return counts


def outlier_share(scores: list[float], outlier: float) -> float:
    """How many of the scores are above a multiple of their mean."""
    mean = math.fsum(scores) / len(scores)
    return sum(score > outlier * mean for score in scores) / len(scores)


def owl(
    scores: dict[Any, list[float]], sparsity: float, outlier: float, width: float
) -> dict[Any, float]:
    """The kept fraction of each group, from its scores; what is cut off at 0 or 1 goes to others.

    Yin et al., 2024: D, moved to 0 and stretched to 2 λ, and then moved until the total is right.
    """
    shares = {group: outlier_share(own, outlier) for group, own in scores.items()}
    low, high = min(shares.values()), max(shares.values())
    above = {
        g: 2 * width * (d - low) / (high - low) if high > low else 0 for g, d in shares.items()
    }
    total = sum(len(own) for own in scores.values())
    start, stop = -1.0, 1.0

    def fractions(at: float) -> dict[Any, float]:
        return {group: min(max(at + more, 0.0), 1.0) for group, more in above.items()}

    for _ in range(100):
        middle = (start + stop) / 2
        kept = sum(len(scores[group]) * f for group, f in fractions(middle).items())
        start, stop = (middle, stop) if kept < (1 - sparsity) * total else (start, middle)
    return fractions(stop)


def resnet50() -> list[tuple[tuple[int, ...], int]]:
    """The kernels of ResNet-50 (He et al., 2016) and how many places each is applied at."""
    kernels: list[tuple[tuple[int, ...], int]] = [((64, 3, 7, 7), 112**2)]
    width, size = 64, 56
    for stage, repeats in enumerate((3, 4, 6, 3)):
        inner = 64 * 2**stage
        for block in range(repeats):
            stride = 2 if stage > 0 and block == 0 else 1
            before, size = size, size // stride
            kernels.append(((inner, width, 1, 1), before**2))
            kernels.append(((inner, inner, 3, 3), size**2))
            kernels.append(((4 * inner, inner, 1, 1), size**2))
            if block == 0:
                kernels.append(((4 * inner, width, 1, 1), size**2))
            width = 4 * inner
    return [*kernels, ((1000, 2048), 1)]


# --- pruners, leaf by leaf --------------------------------------------------------------------


def lowest(scores: list[float], candidates: list[bool], k: int) -> list[int]:
    """The places of the k lowest candidates, the first among equals first."""
    places = [i for i, candidate in enumerate(candidates) if candidate]
    return sorted(places, key=lambda i: reference.rank(scores[i]))[:k]


def sparse_evolution(
    weights: list[float], mask: list[bool], draws: list[float], fraction: float
) -> list[bool]:
    """Mocanu et al., 2018: drop the closest to zero; grow, at random, where there was nothing."""
    k = min(round(fraction * sum(mask)), len(mask) - sum(mask))
    dropped = lowest([abs(weight) for weight in weights], mask, k)
    grown = lowest(draws, [not keep for keep in mask], k)
    return [(keep and i not in dropped) or i in grown for i, keep in enumerate(mask)]


def rigl(weights: list[float], mask: list[bool], grads: list[float], fraction: float) -> list[bool]:
    """Evci et al., 2020, algorithm 1: grow the steepest of all but the survivors."""
    k = round(fraction * sum(mask))
    dropped = lowest([abs(weight) for weight in weights], mask, k)
    survives = [keep and i not in dropped for i, keep in enumerate(mask)]
    grown = lowest([-abs(grad) for grad in grads], [not keep for keep in survives], k)
    return [keep or i in grown for i, keep in enumerate(survives)]
