"""The contract of selection: which masks any score and any unstructured method must give.

The function under test has the form of `gprune.global_unstructured`: `prune(params, scores,
masks=masks, **kwargs) -> masks`. To test a method of one tensor, pass `functools.partial(
gprune.global_unstructured, pruning_method=method)`. To test a score, pass the scores that it has
computed, or compute them inside a function. The expected masks come from a stable argsort, which
shares no code with the search.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gprune.prune import num_to_prune
from gprune.select.counts import as_scalar, resolve_sparsity
from gprune.testing.reports import report, source
from gprune.trees import Tree, flatten, leaf_names


def assert_mask_contract(
    prune: Callable[..., Tree],
    params: Tree,
    scores: Tree = None,
    masks: Tree = None,
    *,
    separately: bool = False,
    **kwargs: Any,
) -> None:
    """Assert that the result is a tree of masks, and that exactly the right entries are pruned.

    The result of `prune(params, scores, masks=masks, **kwargs)` must have the structure of
    `params`, with bool tensors of the parameters' shapes and devices. Entries that the prior
    `masks` have pruned must stay pruned. The newly pruned entries must be the first k candidates in
    ascending order of score: among equal scores the lowest flat index first, NaN last.

    Args:
        prune: the function under test.
        params: pytree of tensors; `None` where a leaf is not prunable.
        scores: pytree of that structure; `None` stands for the magnitudes of `params`.
        masks: prior bool masks of that structure, or `None`.
        separately: whether each leaf is ranked alone, with its own k, as in `gprune.layerwise`.
        **kwargs: further arguments of `prune`. `amount` or `sparsity` among them says what k is, as
            a number. If there is neither, only the order is checked. What else changes which
            entries are ranked together, such as `dim` or `min_per_leaf`, is not known here.

    Raises:
        AssertionError: if a mask is wrong; it shows every such mask.

    Example:
        >>> import torch, gprune as gp
        >>> from gprune.testing import assert_mask_contract
        >>> params = {"weight": torch.tensor([1.0, 1.0, 3.0])}
        >>> assert_mask_contract(gp.global_unstructured, params, amount=1)
        >>> def not_above_the_lowest(params, scores, masks, amount):
        ...     return {"weight": params["weight"] > params["weight"].min()}
        >>> assert_mask_contract(not_above_the_lowest, params, amount=1)
        Traceback (most recent call last):
        AssertionError: not_above_the_lowest breaks assert_mask_contract:
          2 of 3 candidates are pruned, must be 1
          masks['weight'] is [False, False, True], must be [False, True, True]
        to reproduce:
          import torch
          from gprune.testing import assert_mask_contract
        <BLANKLINE>
          params = {'weight': torch.tensor([1.0, 1.0, 3.0], dtype=torch.float32)}
          amount = 1
          assert_mask_contract(not_above_the_lowest, params, amount=amount)
    """
    got = prune(params, scores, masks=masks, **kwargs)
    problems = _structure_problems(got, params)
    if not problems:
        ranked = _ranked_leaves(got, params, scores, masks)
        for leaves in [[leaf] for leaf in ranked] if separately else [ranked]:
            problems += _selection_problems(leaves, kwargs.get("amount"), kwargs.get("sparsity"))
    if problems:
        options = {"scores": scores, "masks": masks, "separately": separately or None} | kwargs
        options = {name: value for name, value in options.items() if value is not None}
        call = ", ".join(["params", *(f"{name}={name}" for name in options)])
        setup = source("assert_mask_contract", params=params, **options)
        raise AssertionError(report("assert_mask_contract", prune, call, problems, setup))


def _structure_problems(masks: Tree, params: Tree) -> list[str]:
    """Return why a tree does not hold masks of the parameters, one line for each problem."""
    (leaves, treedef), (found, other) = flatten(params), flatten(masks)
    if other != treedef:
        return [f"the masks have the structure {other}, params has {treedef}"]
    problems = []
    for name, leaf, mask in zip(leaf_names(treedef, "masks"), leaves, found, strict=True):
        if leaf is None or not isinstance(mask, Tensor):
            if mask is not leaf:
                wanted = "None, its parameter is" if leaf is None else "a tensor, its parameter is"
                problems.append(f"{name} is {type(mask).__name__}, must be {wanted}")
            continue
        want = (torch.bool, tuple(leaf.shape), leaf.device, False)
        have = (mask.dtype, tuple(mask.shape), mask.device, mask.requires_grad)
        words = ("dtype", "shape", "device", "requires_grad")
        for word, was, must in zip(words, have, want, strict=True):
            if was != must:
                problems.append(f"{name} has {word} {was}, must be {must}")
    return problems


class _Leaf(NamedTuple):
    """A leaf that is ranked."""

    name: str  # of its mask, in messages
    mask: Tensor
    prior: Tensor
    scores: Tensor  # flat, in float64, which holds all scores exactly


def _ranked_leaves(got: Tree, params: Tree, scores: Tree, masks: Tree) -> list[_Leaf]:
    """Return the prunable leaves in the flat order."""
    leaves, treedef = flatten(params)
    tested = flatten(got)[0]
    priors = [None] * len(leaves) if masks is None else flatten(masks)[0]
    deciding = leaves if scores is None else flatten(scores)[0]
    ranked = []
    for name, leaf, mask, prior, score in zip(
        leaf_names(treedef, "masks"), leaves, tested, priors, deciding, strict=True
    ):
        if leaf is not None:
            prior = torch.ones_like(mask) if masks is None else prior
            exact = score.detach().double().reshape(-1)
            ranked.append(_Leaf(name, mask, prior, exact.abs() if scores is None else exact))
    return ranked


def _selection_problems(ranking: list[_Leaf], amount: Any, sparsity: Any) -> list[str]:
    """Return where masks of leaves that are ranked together differ from those of an argsort."""
    prior = torch.cat([leaf.prior.reshape(-1) for leaf in ranking])
    candidates = prior.nonzero().reshape(-1)
    k = pruned = int((prior & ~torch.cat([leaf.mask.reshape(-1) for leaf in ranking])).sum())
    if amount is not None:
        k = int(num_to_prune(amount, len(candidates)))
    elif sparsity is not None:
        k = resolve_sparsity(as_scalar(sparsity, "sparsity"), prior.numel(), len(candidates))
    problems = []
    if pruned != k:
        problems.append(f"{pruned} of {len(candidates)} candidates are pruned, must be {k}")
    order = torch.cat([leaf.scores for leaf in ranking])[candidates].argsort(stable=True)
    expected = prior.clone()
    expected[candidates[order[:k]]] = False
    sizes = [leaf.mask.numel() for leaf in ranking]
    for leaf, flat in zip(ranking, torch.split(expected, sizes), strict=True):
        want, back = flat.reshape(leaf.mask.shape), leaf.mask & ~leaf.prior
        if back.any():
            where = back.nonzero().tolist()
            problems.append(f"{leaf.name} keeps what the prior mask had pruned, at {where}")
        if not torch.equal(leaf.mask, want):
            problems.append(f"{leaf.name} is {leaf.mask.tolist()}, must be {want.tolist()}")
    return problems
