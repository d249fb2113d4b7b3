"""How masks are judged: whether they are masks at all, and what a stable argsort says must go."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gprune.prune import num_to_prune
from gprune.select.amounts import as_scalar, resolve_sparsity
from gprune.trees import Tree, flatten, leaf_names


class Ranking(NamedTuple):
    """The leaves that are ranked together, and how much of them must go.

    Attributes:
        names: what to call the mask of each leaf.
        kept: the masks under test.
        priors: the prior masks.
        keys: what ranks each leaf's entries, flat.
        budget: `amount` or `sparsity`, among others.
    """

    names: list[str]
    kept: list[Tensor]
    priors: list[Tensor]
    keys: list[Tensor]
    budget: dict[str, Any]


def all_together(
    masks: Tree, params: Tree, scores: Tree, prior: Tree, budget: dict[str, Any]
) -> Iterator[Ranking]:
    """Give the one ranking of `global_unstructured`."""
    leaves, treedef = flatten(params)
    kept = _tensors(masks)
    priors = [torch.ones_like(mask) for mask in kept] if prior is None else _tensors(prior)
    pairs = zip(leaf_names(treedef, "masks"), leaves, strict=True)
    names = [name for name, leaf in pairs if leaf is not None]
    yield Ranking(names, kept, priors, keys(params, scores), budget)


def one_by_one(
    masks: Tree, params: Tree, scores: Tree, prior: Tree, budget: dict[str, Any]
) -> Iterator[Ranking]:
    """Give the rankings of `layerwise`, one for each leaf."""
    leaves, _ = flatten(params)
    for together in all_together(masks, params, scores, prior, budget):
        for place, parts in enumerate(zip(*together[:4], strict=True)):
            name, mask, before, key = parts
            own = {word: _own(value, leaves, place) for word, value in budget.items()}
            yield Ranking([name], [mask], [before], [key], own)


def wrong_masks(ranking: Ranking, k: int | None) -> list[str]:
    """Compare one ranking's masks with a stable argsort of its candidates.

    Args:
        ranking: what to compare.
        k: how many candidates must go, or `None` for what the ranking's budget means.

    Returns:
        What is wrong, one line each.
    """
    names, kept, priors, scores, budget = ranking
    prior = torch.cat([mask.reshape(-1) for mask in priors])
    mine = torch.cat([mask.reshape(-1) for mask in kept])
    pruned = int((prior & ~mine).sum())
    candidates = prior.nonzero().reshape(-1)
    if k is None:
        k = _count(prior, budget)
    problems = []
    if k is not None and pruned != k:
        problems.append(f"{pruned} of {len(candidates)} candidates are pruned, must be {k}")
    order = torch.cat(scores)[candidates].argsort(stable=True)
    expected = prior.clone()
    expected[candidates[order[: pruned if k is None else k]]] = False
    wanted = torch.split(expected, [mask.numel() for mask in kept])
    for name, mask, before, after in zip(names, kept, priors, wanted, strict=True):
        problems += [
            f"{entry_name(name, place)} is kept, the prior mask had pruned it"
            for place in (mask & ~before).nonzero().tolist()
        ]
        if not torch.equal(mask.reshape(-1), after):
            must = after.reshape(mask.shape)
            problems.append(f"{name} is {mask.tolist()}, must be {must.tolist()}")
    return problems


def unfit(masks: Tree, params: Tree) -> list[str]:
    """Say how a tree is not one of masks for the parameters."""
    (leaves, treedef), (kept, other) = flatten(params), flatten(masks)
    if other != treedef:
        return [f"the masks have the structure {other}, params has {treedef}"]
    problems = []
    for name, leaf, mask in zip(leaf_names(treedef, "masks"), leaves, kept, strict=True):
        if leaf is None or not isinstance(mask, Tensor):
            if mask is not leaf:
                wanted = "None, its parameter is" if leaf is None else "a tensor, its parameter is"
                problems.append(f"{name} is {type(mask).__name__}, must be {wanted}")
            continue
        want = (torch.bool, tuple(leaf.shape), leaf.device, False)
        have = (mask.dtype, tuple(mask.shape), mask.device, mask.requires_grad)
        for word, was, must in zip(
            ("dtype", "shape", "device", "requires_grad"), have, want, strict=True
        ):
            if was != must:
                problems.append(f"{name} has {word} {was}, must be {must}")
    return problems


def keys(params: Tree, scores: Tree) -> list[Tensor]:
    """Give what ranks, flat, in float64, which holds every score that there may be."""
    leaves = flatten(params)[0]
    if scores is None:
        return [leaf.detach().double().abs().reshape(-1) for leaf in leaves if leaf is not None]
    pairs = zip(leaves, flatten(scores)[0], strict=True)
    return [score.detach().double().reshape(-1) for leaf, score in pairs if leaf is not None]


def differences(got: Tree, expected: Tree, which: str) -> list[str]:
    """Name the masks that are not the expected ones."""
    (have, other), (want, treedef) = flatten(got), flatten(expected)
    if other != treedef:
        return [f"the masks {which}have the structure {other}, must have {treedef}"]
    return [
        f"{name} {which}is {a.tolist()}, must be {b.tolist()}"
        for name, a, b in zip(leaf_names(treedef, "masks"), have, want, strict=True)
        if a is not None and not torch.equal(a, b)
    ]


def _tensors(tree: Tree) -> list[Tensor]:
    return [leaf for leaf in flatten(tree)[0] if leaf is not None]


def entry_name(name: str, place: list[int]) -> str:
    """Name one entry of a leaf, as Python source."""
    return f"{name}[{', '.join(map(str, place))}]" if place else name


def _count(prior: Tensor, budget: dict[str, Any]) -> int | None:
    """Give how many candidates must go, by the law of counts, if there is a budget."""
    candidates, entries = int(prior.sum()), prior.numel()
    if budget.get("amount") is not None:
        return int(num_to_prune(budget["amount"], candidates))
    if budget.get("sparsity") is not None:
        return resolve_sparsity(as_scalar(budget["sparsity"], "sparsity"), entries, candidates)
    return None


def _own(value: Any, leaves: list[Any], place: int) -> Any:
    """Give the value for one prunable leaf of a tree of values, or the one value for all."""
    values, _ = flatten(value)
    if len(values) != len(leaves) or (len(values) == 1 and values[0] is value):
        return value
    return [v for v, leaf in zip(values, leaves, strict=True) if leaf is not None][place]
