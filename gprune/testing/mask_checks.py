"""Checks of masks: whether they fit the parameters, and which entries a stable argsort prunes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gprune.prune import num_to_prune
from gprune.select.counts import as_scalar, resolve_sparsity
from gprune.trees import Tree, flatten, leaf_names


class Ranking(NamedTuple):
    """Leaves that are ranked together, and the arguments that say how many entries are pruned.

    Attributes:
        names: the name of each leaf's mask in errors.
        masks: the masks under test.
        priors: the prior masks.
        scores: the exact scores of each leaf's entries, flat float64.
        kwargs: the keyword arguments of the call, with `amount` or `sparsity` among them.
    """

    names: list[str]
    masks: list[Tensor]
    priors: list[Tensor]
    scores: list[Tensor]
    kwargs: dict[str, Any]


def global_ranking(
    masks: Tree, params: Tree, scores: Tree, prior: Tree, kwargs: dict[str, Any]
) -> Iterator[Ranking]:
    """Yield the one ranking of `global_unstructured`: all leaves together."""
    leaves, treedef = flatten(params)
    tested = _tensors(masks)
    priors = [torch.ones_like(mask) for mask in tested] if prior is None else _tensors(prior)
    pairs = zip(leaf_names(treedef, "masks"), leaves, strict=True)
    names = [name for name, leaf in pairs if leaf is not None]
    yield Ranking(names, tested, priors, exact_scores(params, scores), kwargs)


def layerwise_rankings(
    masks: Tree, params: Tree, scores: Tree, prior: Tree, kwargs: dict[str, Any]
) -> Iterator[Ranking]:
    """Yield the rankings of `layerwise`: one for each leaf."""
    leaves, _ = flatten(params)
    [all_leaves] = global_ranking(masks, params, scores, prior, kwargs)
    for i, parts in enumerate(zip(*all_leaves[:4], strict=True)):
        name, mask, before, score = parts
        kwargs_of_leaf = {key: _value_of_leaf(value, leaves, i) for key, value in kwargs.items()}
        yield Ranking([name], [mask], [before], [score], kwargs_of_leaf)


def selection_errors(ranked: Ranking, k: int | None) -> list[str]:
    """Compare the masks of one ranking with a stable argsort of its candidates.

    Args:
        ranked: the leaves, their masks and their scores.
        k: how many candidates must be pruned. If `None`, it is computed from the `amount` or the
            `sparsity` of the call. If the call has neither, only the order is checked.

    Returns:
        The errors, one line each.
    """
    names, masks, priors, scores, kwargs = ranked
    prior = torch.cat([mask.reshape(-1) for mask in priors])
    tested = torch.cat([mask.reshape(-1) for mask in masks])
    pruned = int((prior & ~tested).sum())
    candidates = prior.nonzero().reshape(-1)
    if k is None:
        k = _count(prior, kwargs)
    errors = []
    if k is not None and pruned != k:
        errors.append(f"{pruned} of {len(candidates)} candidates are pruned, must be {k}")
    order = torch.cat(scores)[candidates].argsort(stable=True)
    expected = prior.clone()
    expected[candidates[order[: pruned if k is None else k]]] = False
    expected_flat = torch.split(expected, [mask.numel() for mask in masks])
    for name, mask, before, flat in zip(names, masks, priors, expected_flat, strict=True):
        errors += [
            f"{entry_name(name, index)} is kept, the prior mask had pruned it"
            for index in (mask & ~before).nonzero().tolist()
        ]
        if not torch.equal(mask.reshape(-1), flat):
            must = flat.reshape(mask.shape)
            errors.append(f"{name} is {mask.tolist()}, must be {must.tolist()}")
    return errors


def structure_errors(masks: Tree, params: Tree) -> list[str]:
    """Return why a tree does not hold the masks of the parameters, one line for each error."""
    (leaves, treedef), (found, other) = flatten(params), flatten(masks)
    if other != treedef:
        return [f"the masks have the structure {other}, params has {treedef}"]
    errors = []
    for name, leaf, mask in zip(leaf_names(treedef, "masks"), leaves, found, strict=True):
        if leaf is None or not isinstance(mask, Tensor):
            if mask is not leaf:
                wanted = "None, its parameter is" if leaf is None else "a tensor, its parameter is"
                errors.append(f"{name} is {type(mask).__name__}, must be {wanted}")
            continue
        want = (torch.bool, tuple(leaf.shape), leaf.device, False)
        have = (mask.dtype, tuple(mask.shape), mask.device, mask.requires_grad)
        for word, was, must in zip(
            ("dtype", "shape", "device", "requires_grad"), have, want, strict=True
        ):
            if was != must:
                errors.append(f"{name} has {word} {was}, must be {must}")
    return errors


def exact_scores(params: Tree, scores: Tree) -> list[Tensor]:
    """Return the scores that decide, flat, in float64, which holds all of them exactly."""
    leaves = flatten(params)[0]
    if scores is None:
        return [leaf.detach().double().abs().reshape(-1) for leaf in leaves if leaf is not None]
    pairs = zip(leaves, flatten(scores)[0], strict=True)
    return [score.detach().double().reshape(-1) for leaf, score in pairs if leaf is not None]


def difference_errors(got: Tree, expected: Tree, condition: str) -> list[str]:
    """Return which masks differ from the expected ones under a condition, one line for each."""
    (have, other), (want, treedef) = flatten(got), flatten(expected)
    if other != treedef:
        return [f"the masks have the structure {other} {condition}, must have {treedef}"]
    return [
        f"{name} is {a.tolist()} {condition}, must be {b.tolist()}"
        for name, a, b in zip(leaf_names(treedef, "masks"), have, want, strict=True)
        if a is not None and not torch.equal(a, b)
    ]


def entry_name(name: str, index: list[int]) -> str:
    """Return the name of one entry of a leaf, as Python source."""
    return f"{name}[{', '.join(map(str, index))}]" if index else name


def _tensors(tree: Tree) -> list[Tensor]:
    return [leaf for leaf in flatten(tree)[0] if leaf is not None]


def _count(prior: Tensor, kwargs: dict[str, Any]) -> int | None:
    """Return how many candidates must be pruned; `None` if neither number is given."""
    candidates, entries = int(prior.sum()), prior.numel()
    if kwargs.get("amount") is not None:
        return int(num_to_prune(kwargs["amount"], candidates))
    if kwargs.get("sparsity") is not None:
        return resolve_sparsity(as_scalar(kwargs["sparsity"], "sparsity"), entries, candidates)
    return None


def _value_of_leaf(value: Any, leaves: list[Any], i: int) -> Any:
    """Return the value of the i-th prunable leaf in a tree of values, or the one value of all."""
    values, _ = flatten(value)
    if len(values) != len(leaves) or (len(values) == 1 and values[0] is value):
        return value
    return [v for v, leaf in zip(values, leaves, strict=True) if leaf is not None][i]
