"""Every way to ask gprune for masks or thresholds, on the random trees of fuzz.py.

A *way* makes several calls on a case, and yields for each result what was asked, what came out, and
what must come out. `error_of` says what is wrong with a result.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

import gprune as gp
from tests.support.fuzz import (
    CORNERS,
    FLOATING,
    Array,
    Case,
    Last,
    Ranking,
    Rng,
    count,
    flat,
    pruned,
)

CALLS = 8
"""How many calls a way makes on one case, where it can choose."""


# --- how much to prune ----------------------------------------------------------------------


def number(rng: Rng, candidates: int) -> Any:
    """Draw an amount: an int, a float, or a 0-dim tensor of one."""
    k = int(rng.integers(0, candidates + 1))
    k = int(rng.choice([k, k, k, 0, min(1, candidates), max(0, candidates - 1), candidates]))
    kind = rng.integers(0, 4)
    if kind == 0:
        return k
    if kind == 1:
        return torch.tensor(k, dtype=[torch.int64, torch.int32][rng.integers(0, 2)])
    return fraction(rng, k / max(1, candidates))


def fraction(rng: Rng, near: float) -> Any:
    """Draw a number from 0 to 1: a float, or a 0-dim tensor of one."""
    dtype = [None, None, *FLOATING][rng.integers(0, 6)]
    return near if dtype is None else torch.tensor(near, dtype=dtype)


def asked(rng: Rng, candidates: int) -> dict[str, Any]:
    """Draw how much to prune, as a keyword argument."""
    if rng.random() < 0.3:
        return {"sparsity": fraction(rng, float(rng.choice([rng.random(), 0.0, 0.5, 1.0])))}
    return {"amount": number(rng, candidates)}


def several(rng: Rng, candidates: int) -> dict[str, Any]:
    """Draw several amounts or sparsities as a 1-D tensor, in any order and some of them equal."""
    size = int(rng.integers(1, CALLS + 1))
    ks = rng.integers(0, candidates + 1, size)
    if rng.random() < 0.5:
        return {"amount": torch.from_numpy(ks)}
    name = ["amount", "sparsity"][rng.integers(0, 2)]
    dtype = [torch.float64, torch.float32][rng.integers(0, 2)]
    return {name: torch.from_numpy(ks / max(1, candidates)).to(dtype)}


# --- every way to ask -----------------------------------------------------------------------

Check = tuple[str, Any, Any]
"""What was asked, what came out, and what must come out.

That is a `Last`, a list of one array for each prunable leaf, or a dict of the array of one of them.
"""


def one_amount(case: Case, rng: Rng) -> Iterator[Check]:
    ranking = Ranking(case.ranked, case.prior)
    for _ in range(CALLS):
        much = asked(rng, ranking.candidates)
        masks = gp.global_unstructured(
            case.params, case.scores, masks=case.masks, **case.method, **much
        )
        k = count(much, ranking.candidates, ranking.entries)
        yield f"global_unstructured {much}", masks, ranking.masks(k)


def one_threshold(case: Case, rng: Rng) -> Iterator[Check]:
    """Thresholds of one amount, masks from them, and masks from thresholds of nobody."""
    ranking = Ranking(case.ranked, case.prior)
    for _ in range(CALLS // 2):
        much = asked(rng, ranking.candidates)
        threshold = gp.find_threshold(*case.trees, masks=case.masks, **much)
        k = count(much, ranking.candidates, ranking.entries)
        yield f"find_threshold {much}", threshold, ranking.last(k)
        masks = gp.masks_from_threshold(threshold, *case.trees, masks=case.masks)
        yield f"masks_from_threshold {threshold}", masks, ranking.masks(k)
    for _ in range(CALLS // 2):
        threshold = gp.Threshold(*any_threshold(rng, ranking))
        masks = gp.masks_from_threshold(threshold, *case.trees, masks=case.masks)
        yield f"masks_from_threshold {threshold}", masks, ranking.masks_at(Last(*threshold))


def any_threshold(rng: Rng, ranking: Ranking) -> Last:
    """Draw a threshold at a score, beside one, or anywhere."""
    value = float(rng.choice(CORNERS))
    if ranking.entries and rng.random() < 0.7:
        value = float(rng.choice(ranking.scores))
        with np.errstate(all="ignore"):  # beyond the largest number, and from NaN
            value = float(np.nextafter(value, rng.choice([value, -math.inf, math.inf])))
    return Last(value, int(rng.integers(-1, ranking.entries + 1)))


def several_thresholds(case: Case, rng: Rng) -> Iterator[Check]:
    """Several amounts in one search, and the masks of each of them."""
    ranking = Ranking(case.ranked, case.prior)
    for _ in range(2):
        much = several(rng, ranking.candidates)
        [(name, numbers)] = much.items()
        found = gp.find_threshold(*case.trees, masks=case.masks, **much)
        for i, (value, flat_index) in enumerate(zip(*found, strict=True)):
            k = count({name: numbers[i]}, ranking.candidates, ranking.entries)
            yield f"find_threshold {much}, number {i}", (value, flat_index), ranking.last(k)
            threshold = gp.Threshold(value, flat_index)
            masks = gp.masks_from_threshold(threshold, *case.trees, masks=case.masks)
            yield f"masks_from_threshold {threshold}", masks, ranking.masks(k)


def vmap_over_amounts(case: Case, rng: Rng) -> Iterator[Check]:
    ranking = Ranking(case.ranked, case.prior)
    for _ in range(2):
        much = several(rng, ranking.candidates)
        [(name, numbers)] = much.items()

        def prune(number: Tensor, name: str = name) -> list[Tensor]:
            masks = gp.global_unstructured(
                case.params, case.scores, masks=case.masks, **case.method, **{name: number}
            )
            return [mask for mask in masks if mask is not None]

        batch = torch.vmap(prune)(numbers)
        for i in range(len(numbers)):
            k = count({name: numbers[i]}, ranking.candidates, ranking.entries)
            masks = refill(case, [mask[i] for mask in batch])
            yield f"vmap over {much}, number {i}", masks, ranking.masks(k)


def refill(case: Case, masks: list[Any]) -> list[Any]:
    """Put `None` where a leaf is not prunable."""
    rest = iter(masks)
    return [None if leaf is None else next(rest) for leaf in case.params]


MODELS = 3


def vmap_over_models(case: Case, rng: Rng) -> Iterator[Check]:
    """Models of the same shapes: the entries of every leaf, permuted."""
    models = [permuted(case, rng) for _ in range(MODELS)]
    for prune in (gp.global_unstructured, gp.layerwise):
        shared = case.masks is None or bool(rng.integers(0, 2))  # one prior for all models
        priors = [case.prior if shared else model.prior for model in models]
        each = prune is gp.layerwise
        least = min(int(keep.sum()) for prior in priors for keep in prior)
        several_numbers = bool(rng.integers(0, 2))
        if several_numbers:
            name, numbers = "amount", torch.from_numpy(rng.random(MODELS))
        else:
            candidates = least if each else min(int(flat(prior).sum()) for prior in priors)
            [(name, numbers)] = asked(rng, candidates).items()
        dims = int(rng.integers(-1, 1))

        def call(
            params: Any, scores: Any, masks: Any, n: Any, prune: Any = prune, name: str = name
        ):
            got = prune(params, scores, masks=masks, **case.method, **{name: n})
            return [mask for mask in got if mask is not None]

        ours, theirs = (
            (stacked([model.params for model in models], dims)),
            None if case.scores is None else stacked([model.scores for model in models], dims),
        )
        masks = case.masks if shared else stacked([model.masks for model in models], dims)
        along = [None if leaf is None else (dims if leaf.dim() else 0) for leaf in case.params]
        batch = torch.vmap(
            call,
            in_dims=(
                along,
                None if theirs is None else along,
                None if shared else along,
                0 if several_numbers else None,
            ),
        )(ours, theirs, masks, numbers)
        for i, model in enumerate(models):
            much = {name: numbers[i] if several_numbers else numbers}
            expected = expected_masks(model.ranked, priors[i], much, each)
            got = refill(case, [mask[i] for mask in batch])
            yield f"vmap of {prune.__name__} over models, {much}, model {i}", got, expected


def stacked(trees: Sequence[Any], dim: int) -> list[Any]:
    """Stack the leaves of several trees along a dim."""
    return [
        None if group[0] is None else torch.stack(group, dim if group[0].dim() else 0)
        for group in zip(*trees, strict=True)
    ]


def permuted(case: Case, rng: Rng) -> Case:
    """Give the case with the entries of every leaf in another order."""
    orders = [rng.permutation(array.size) for array in case.ranked]

    def of_arrays(arrays: list[Array]) -> list[Array]:
        pairs = zip(arrays, orders, strict=True)
        return [array.reshape(-1)[order].reshape(array.shape) for array, order in pairs]

    def of(tree: list[Any] | None) -> Any:
        if tree is None:
            return None
        rest = iter(orders)
        return [
            None if x is None else x.reshape(-1)[torch.from_numpy(next(rest))].reshape(x.shape)
            for x in tree
        ]

    values = of(case.values)
    return case._replace(
        params=values if case.scores is None else case.params,
        scores=None if case.scores is None else values,
        masks=of(case.masks),
        values=values,
        ranked=of_arrays(case.ranked),
        prior=of_arrays(case.prior),
    )


def expected_masks(
    ranked: list[Array], prior: list[Array], much: dict[str, Any], each: bool
) -> list[Array]:
    """Give the masks of one ranking, or of one for each leaf."""
    groups = [([x], [keep]) for x, keep in zip(ranked, prior, strict=True)]
    masks = []
    for group in groups if each else [(ranked, prior)]:
        ranking = Ranking(*group)
        masks += ranking.masks(count(much, ranking.candidates, ranking.entries))
    return masks


def layerwise(case: Case, rng: Rng) -> Iterator[Check]:
    """One amount for all leaves."""
    rankings = [Ranking([x], [keep]) for x, keep in zip(case.ranked, case.prior, strict=True)]
    for _ in range(CALLS // 2):
        much = asked(rng, min(ranking.candidates for ranking in rankings))
        masks = gp.layerwise(case.params, case.scores, masks=case.masks, **case.method, **much)
        yield from each_leaf(f"layerwise {much}", case, masks, rankings, [much] * len(rankings))


def layerwise_tree(case: Case, rng: Rng) -> Iterator[Check]:
    """A tree of amounts."""
    rankings = [Ranking([x], [keep]) for x, keep in zip(case.ranked, case.prior, strict=True)]
    for _ in range(CALLS // 2):
        name = ["amount", "sparsity"][rng.integers(0, 2)]
        numbers = [
            number(rng, ranking.candidates) if name == "amount" else fraction(rng, rng.random())
            for ranking in rankings
        ]
        much = {name: refill(case, numbers)}
        masks = gp.layerwise(case.params, case.scores, masks=case.masks, **case.method, **much)
        ones = [{name: one} for one in numbers]
        yield from each_leaf(f"layerwise {much}", case, masks, rankings, ones)


def each_leaf(
    what: str, case: Case, masks: list[Any], rankings: list[Ranking], much: list[dict[str, Any]]
) -> Iterator[Check]:
    """One check for each leaf, because each is a ranking of its own."""
    assert [i for i, mask in enumerate(masks) if mask is not None] == case.places
    for i, (place, ranking, one) in enumerate(zip(case.places, rankings, much, strict=True)):
        [expected] = ranking.masks(count(one, ranking.candidates, ranking.entries))
        yield f"{what}, leaf {place}", [masks[place]], {i: expected}


def rows(case: Case, rng: Rng) -> Iterator[Check]:
    """Comparison groups along dims, of all the leaves that have such groups of at least two."""
    for _ in range(CALLS // 2):
        dim = dims_of(case, rng)
        some = case.only([i for i, x in enumerate(case.ranked) if group_size(x.shape, dim) > 1])
        if not some.params:
            continue
        groups = [groups_along(x.shape, dim) for x in some.ranked]
        least = min(fewest(*one) for one in zip(some.prior, groups, strict=True))
        much = asked(rng, least)
        masks = gp.layerwise(
            some.params, some.scores, masks=some.masks, dim=dim, **some.method, **much
        )
        for i, index in enumerate(groups):
            expected = pruned_in(
                some.ranked[i],
                some.prior[i],
                index,
                partial(count, much),
            )
            yield f"layerwise dim={dim}, {much}, leaf {i} of those", [masks[i]], {i: expected}


def n_of_m(case: Case, rng: Rng) -> Iterator[Check]:
    for _ in range(CALLS // 2):
        dim = int(rng.choice([-1, -1, 0, 1]))
        m = int(rng.integers(1, 9))
        n = int(rng.integers(0, m + 1))
        some = case.only(
            [i for i, x in enumerate(case.ranked) if -x.ndim <= dim < x.ndim and x.shape[dim] != 1]
        )
        if not some.params:
            continue
        params, scores = some.trees
        masks = gp.layerwise(
            params, scores, masks=some.masks, pruning_method=gp.n_of_m, n=n, m=m, dim=dim
        )
        for i, (ranked, prior) in enumerate(zip(some.ranked, some.prior, strict=True)):
            index = in_groups_of(m, groups_along(ranked.shape, dim))
            expected = pruned_in(ranked, prior, index, lambda c, size, n=n: max(0, c - n))
            yield f"n_of_m n={n}, m={m}, dim={dim}, leaf {i} of those", [masks[i]], {i: expected}


def dims_of(case: Case, rng: Rng) -> int | tuple[int, ...]:
    """Draw one dim, or several of one of the leaves."""
    leaf = case.ranked[rng.integers(0, len(case.ranked))]
    if leaf.ndim == 0 or rng.random() < 0.6:
        return int(rng.choice([-1, 0]))
    chosen = [d for d in range(leaf.ndim) if rng.random() < 0.6] or [0]
    rng.shuffle(chosen)
    return tuple(int(d) - leaf.ndim * int(rng.integers(0, 2)) for d in chosen)


def group_size(shape: tuple[int, ...], dim: int | tuple[int, ...]) -> int:
    """How many entries a comparison group has; 0 where the leaf has no such dims."""
    dims = (dim,) if isinstance(dim, int) else dim
    if any(not -len(shape) <= d < len(shape) for d in dims):
        return 0
    if len({d % len(shape) for d in dims}) < len(dims):
        return 0
    return math.prod(shape[d] for d in dims)


def groups_along(shape: tuple[int, ...], dim: int | tuple[int, ...]) -> Array:
    """Give a row of flat indices, ascending, for each comparison group."""
    dims = sorted(d % len(shape) for d in ((dim,) if isinstance(dim, int) else dim))
    rest = [d for d in range(len(shape)) if d not in dims]
    index = np.arange(math.prod(shape)).reshape(shape).transpose(rest + dims)
    size = math.prod(shape[d] for d in dims)
    return index.reshape(math.prod(shape[d] for d in rest), size)


NOTHING = -1
"""The index of what fills up a group that is shorter than the others."""


def in_groups_of(m: int, rows: Array) -> Array:
    """Split every row in groups of m, the last of which may be shorter."""
    padded = np.pad(rows, ((0, 0), (0, -rows.shape[1] % m)), constant_values=NOTHING)
    return padded.reshape(-1, m)


def fewest(prior: Array, index: Array) -> int:
    """How few candidates a comparison group has; where there is no group, how many it would."""
    return int(prior.reshape(-1)[index].sum(1).min(initial=index.shape[1]))


def pruned_in(
    ranked: Array, prior: Array, index: Array, how_many: Callable[[int, int], int]
) -> Array:
    """Give the mask in which every comparison group has lost its lowest candidates.

    Args:
        ranked: what is ranked, of one leaf.
        prior: its candidates.
        index: the flat indices of each group in a row.
        how_many: how many a group loses, by the number of its candidates and of its entries.
    """
    candidate = np.append(prior, False)[index]
    order = np.lexsort((np.append(ranked, 0.0)[index], ~candidate), axis=-1)  # candidates first
    candidates, entries = candidate.sum(1), (index != NOTHING).sum(1)
    ks = [how_many(*map(int, pair)) for pair in zip(candidates, entries, strict=True)]
    first = np.arange(index.shape[1]) < np.array(ks, np.int64)[:, None]
    return pruned(prior, np.take_along_axis(index, order, 1)[first])


def random(case: Case, rng: Rng) -> Iterator[Check]:
    """A method of random draws, against the draws as scores."""
    for _ in range(CALLS // 4):
        seed = int(rng.choice([0, 1, -1, 2**63 - 1, 1 - 2**63, rng.integers(1 - 2**63, 2**63 - 1)]))
        given = seed if rng.random() < 0.7 else torch.tensor(seed)
        draws = gp.scores.random([torch.zeros(x.shape) for x in case.ranked], seed=seed)
        ranked = [x.numpy() for x in draws]
        method = {"pruning_method": gp.random_unstructured, "seed": given}
        for prune in (gp.global_unstructured, gp.layerwise):
            each = prune is gp.layerwise
            least = [int(keep.sum()) for keep in case.prior]
            much = asked(rng, min(least) if each else sum(least))
            masks = prune(case.params, masks=case.masks, **method, **much)
            expected = expected_masks(ranked, case.prior, much, each)
            yield f"{prune.__name__} random, seed={given}, {much}", masks, expected


def random_several(case: Case, rng: Rng) -> Iterator[Check]:
    """vmap over seeds and amounts."""
    seeds = torch.from_numpy(rng.integers(1 - 2**63, 2**63 - 1, CALLS))
    numbers = torch.from_numpy(rng.random(CALLS))

    def prune(seed: Tensor, amount: Tensor) -> list[Tensor]:
        method = {"pruning_method": gp.random_unstructured, "seed": seed, "amount": amount}
        masks = gp.global_unstructured(case.params, masks=case.masks, **method)
        return [mask for mask in masks if mask is not None]

    batch = torch.vmap(prune)(seeds, numbers)
    for i in range(CALLS):
        draws = [x for x in gp.scores.random(case.params, seed=seeds[i]) if x is not None]
        much = {"amount": numbers[i]}
        expected = expected_masks([x.numpy() for x in draws], case.prior, much, False)
        got = refill(case, [mask[i] for mask in batch])
        yield f"vmap over seeds, {seeds[i]}, {much}", got, expected


class Way(NamedTuple):
    """One way to ask, and about how many checks it makes on a case, at least."""

    ask: Callable[[Case, Rng], Iterator[Check]]
    checks: int


WAYS: dict[str, Way] = {
    "one amount": Way(one_amount, 8),
    "one threshold": Way(one_threshold, 12),
    "several thresholds": Way(several_thresholds, 14),
    "vmap over amounts": Way(vmap_over_amounts, 7),
    "vmap over models": Way(vmap_over_models, 6),
    "layerwise": Way(layerwise, 7),
    "layerwise with a tree of amounts": Way(layerwise_tree, 7),
    "rows": Way(rows, 4),
    "n of m": Way(n_of_m, 4),
    "random": Way(random, 4),
    "vmap over seeds": Way(random_several, 8),
}


# --- what is wrong --------------------------------------------------------------------------


def error_of(case: Case, check: Check, local: Callable[[int, Array], Array] | None = None) -> str:
    """Say what is wrong with one result, or nothing.

    Args:
        case: the case, whose leaves say where `None` belongs.
        check: what was asked, what came out, and what must come out.
        local: takes the part of this rank from the array of a prunable leaf.

    Returns:
        A sentence, or an empty string.
    """
    what, got, expected = check
    if isinstance(expected, Last):
        value, flat_index = (x.item() for x in got)
        same = value == expected.value or (math.isnan(value) and math.isnan(expected.value))
        right = same and flat_index == expected.flat_index
        return "" if right else f"{what}: got {value, flat_index}, expected {tuple(expected)}"
    if isinstance(expected, list):
        if [i for i, mask in enumerate(got) if mask is not None] != case.places:
            return f"{what}: got {got}, expected a mask where there is a prunable leaf"
        expected = dict(enumerate(expected))
    masks = [mask for mask in got if mask is not None]
    problems = [
        f"{i} {problem}"
        for mask, (i, array) in zip(masks, expected.items(), strict=True)
        if (problem := leaf_error(mask, array if local is None else local(i, array)))
    ]
    return f"{what}: mask {'; '.join(problems)}" if problems else ""


def leaf_error(mask: Tensor, expected: Array) -> str:
    mask = mask.to_local() if hasattr(mask, "to_local") else mask
    if mask.dtype != torch.bool or tuple(mask.shape) != expected.shape:
        return f"is {mask.dtype} of {tuple(mask.shape)}, expected bool of {expected.shape}"
    wrong = np.flatnonzero(mask.numpy().reshape(-1) != expected.reshape(-1))
    if not len(wrong):
        return ""
    kept = int(mask.sum()), int(expected.sum())
    return (
        f"keeps {kept[0]}, expected {kept[1]}; entry {wrong[0]} is the first of {len(wrong)} wrong"
    )
