"""The contracts of selection: what must hold for the masks of any score and unstructured method.

The function under test has the form of `gprune.global_unstructured`: `prune(params, scores,
masks=masks, **kwargs) -> masks`. To test a method of one tensor, pass `functools.partial(
gprune.global_unstructured, pruning_method=method)`. To test a score, pass the scores that it has
computed, or compute them inside a lambda. The expected masks come from a stable argsort, which
shares no code with the search.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from gprune.testing.mask_checks import (
    difference_errors,
    entry_name,
    exact_scores,
    global_ranking,
    layerwise_rankings,
    selection_errors,
    structure_errors,
)
from gprune.testing.reports import fail_if, keywords
from gprune.trees import Tree, flatten, leaf_names, map_leaves

Prune = Callable[..., Tree]


def assert_mask_contract(
    prune: Prune,
    params: Tree,
    scores: Tree = None,
    masks: Tree = None,
    *,
    k: int | None = None,
    ranked_by: Tree = None,
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
        scores: pytree of that structure, or `None`.
        masks: prior bool masks of that structure, or `None`.
        k: how many candidates must be pruned. By default it is computed from `amount` or `sparsity`
            among `kwargs`. If none of the three is given, only the order is checked.
        ranked_by: the scores that decide. By default `scores`, or the magnitudes of `params` if
            `scores` is `None`.
        separately: whether each leaf is ranked alone, with its own k, as in `gprune.layerwise`.
        **kwargs: further arguments of `prune`.

    Raises:
        AssertionError: if a mask is wrong; it shows every such mask.

    Example:
        >>> import gprune as gp
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
    problems = structure_errors(got, params)
    if not problems:
        deciding = scores if ranked_by is None else ranked_by
        rankings = layerwise_rankings if separately else global_ranking
        for ranked in rankings(got, params, deciding, masks, kwargs):
            problems += selection_errors(ranked, k)
    inputs = _given(params, scores, masks, k=k, ranked_by=ranked_by, separately=separately or None)
    call = _call(inputs, kwargs)
    fail_if(problems, "assert_mask_contract", prune, call, **inputs, **kwargs)


def assert_nested(
    prune: Prune,
    params: Tree,
    scores: Tree = None,
    masks: Tree = None,
    *,
    amounts: Sequence[float | Tensor],
    **kwargs: Any,
) -> None:
    """Assert that an entry that a larger amount keeps is also kept by a smaller one.

    Args:
        prune: the function under test, called with each `amount`.
        params: pytree of tensors; `None` where a leaf is not prunable.
        scores: pytree of that structure, or `None`.
        masks: prior bool masks of that structure, or `None`.
        amounts: two or more amounts, ascending.
        **kwargs: further arguments of `prune`.

    Raises:
        AssertionError: if a larger amount keeps an entry that a smaller one prunes; it names every
            such entry.

    Example:
        >>> import gprune as gp
        >>> params = [torch.tensor([3.0, 1.0, 2.0])]
        >>> assert_nested(gp.global_unstructured, params, amounts=[0, 1, 3])
        >>> def alternating(params, scores, masks, amount):
        ...     return [torch.arange(3) % 2 == amount % 2]
        >>> assert_nested(alternating, params, amounts=[1, 2])
        Traceback (most recent call last):
        AssertionError: alternating breaks assert_nested:
          masks[0][0] is pruned at amount 1 and kept at 2
          masks[0][2] is pruned at amount 1 and kept at 2
        ...
    """
    results = [prune(params, scores, masks=masks, amount=amount, **kwargs) for amount in amounts]
    names = leaf_names(flatten(params)[1], "masks")
    problems = []
    for i in range(len(amounts) - 1):
        trees = (flatten(results[i])[0], flatten(results[i + 1])[0])
        for name, fewer, more in zip(names, *trees, strict=True):
            if fewer is not None and more is not None:
                problems += [
                    f"{entry_name(name, index)} is pruned at amount {amounts[i]} "
                    f"and kept at {amounts[i + 1]}"
                    for index in (more & ~fewer).nonzero().tolist()
                ]
    inputs = _given(params, scores, masks, amounts=list(amounts))
    fail_if(problems, "assert_nested", prune, _call(inputs, kwargs), **inputs, **kwargs)


def assert_equivariant(
    prune: Prune,
    params: Tree,
    scores: Tree = None,
    masks: Tree = None,
    *,
    ranked_by: Tree = None,
    **kwargs: Any,
) -> None:
    """Assert that permuting the entries of every leaf permutes the masks in the same way.

    The permutations are a reversal and a rotation by one. The scores must be distinct, because the
    flat index decides among equal ones: draw distinct scores, or call `hypothesis.assume`.

    Args:
        prune: the function under test.
        params: pytree of tensors; `None` where a leaf is not prunable.
        scores: pytree of that structure, or `None`.
        masks: prior bool masks of that structure, or `None`.
        ranked_by: the scores that must be distinct. By default `scores`, or the magnitudes of
            `params` if `scores` is `None`.
        **kwargs: further arguments of `prune`.

    Raises:
        AssertionError: if a mask differs; it shows every such mask.
        ValueError: if two scores are equal.

    Example:
        >>> import gprune as gp
        >>> params = [torch.tensor([3.0, 1.0, 2.0])]
        >>> assert_equivariant(gp.global_unstructured, params, amount=1)
        >>> def first(params, scores, masks):
        ...     return [torch.tensor([False, True, True])]
        >>> assert_equivariant(first, params)
        Traceback (most recent call last):
        AssertionError: first breaks assert_equivariant:
          masks[0] is [False, True, True] if the leaves are reversed, must be [True, True, False]
          masks[0] is [False, True, True] if the leaves are rotated, must be [True, False, True]
        ...
    """
    deciding = scores if ranked_by is None else ranked_by
    flat = torch.cat(exact_scores(params, deciding)).sort().values
    if bool(((flat[1:] == flat[:-1]) | flat[:-1].isnan()).any()):
        raise ValueError("assert_equivariant needs distinct scores, but two of them are equal")
    expected = prune(params, scores, masks=masks, **kwargs)
    problems = []
    for word, permute in {"reversed": _reversed, "rotated": _rotated}.items():
        moved = [map_leaves(permute, tree) for tree in (params, scores, masks)]
        got = prune(moved[0], moved[1], masks=moved[2], **kwargs)
        condition = f"if the leaves are {word}"
        problems += difference_errors(got, map_leaves(permute, expected), condition)
    inputs = _given(params, scores, masks, ranked_by=ranked_by)
    fail_if(problems, "assert_equivariant", prune, _call(inputs, kwargs), **inputs, **kwargs)


def assert_scale_invariant(
    prune: Prune,
    params: Tree,
    scores: Tree = None,
    masks: Tree = None,
    *,
    factor: float = 2.0,
    **kwargs: Any,
) -> None:
    """Assert that multiplying all scores by one factor does not change the masks.

    Args:
        prune: the function under test.
        params: pytree of tensors; `None` where a leaf is not prunable.
        scores: pytree of that structure; if `None`, the parameters are scaled.
        masks: prior bool masks of that structure, or `None`.
        factor: the factor, above 0. The products must be exact, as those with a power of two are
            unless they leave the range of the dtype. Integer leaves are scaled in float64.
        **kwargs: further arguments of `prune`.

    Raises:
        AssertionError: if a mask differs; it shows every such mask.
        ValueError: if the factor is not above 0, or a product is not exact.

    Example:
        >>> import gprune as gp
        >>> params = [torch.tensor([0.3, 0.1])]
        >>> assert_scale_invariant(gp.global_unstructured, params, amount=1)
        >>> def below(params, scores, masks):
        ...     return [params[0].abs() >= 0.2]
        >>> assert_scale_invariant(below, params)
        Traceback (most recent call last):
        AssertionError: below breaks assert_scale_invariant:
          masks[0] is [True, True] if the scores are multiplied by 2.0, must be [True, False]
        ...
    """
    if not factor > 0:
        raise ValueError(f"factor must be above 0, got {factor}")

    def scale(leaf: Tensor | None) -> Tensor | None:
        if leaf is None:
            return None
        floating = leaf if leaf.is_floating_point() else leaf.double()
        scaled = floating * factor
        if not bool(((scaled / factor == floating) | floating.isnan()).all()):
            raise ValueError(f"the scores times {factor} are not exact in {floating.dtype}")
        return scaled

    expected = prune(params, scores, masks=masks, **kwargs)
    if scores is None:
        got = prune(map_leaves(scale, params), None, masks=masks, **kwargs)
    else:
        got = prune(params, map_leaves(scale, scores), masks=masks, **kwargs)
    problems = difference_errors(got, expected, f"if the scores are multiplied by {factor}")
    inputs = _given(params, scores, masks, factor=factor)
    fail_if(problems, "assert_scale_invariant", prune, _call(inputs, kwargs), **inputs, **kwargs)


def _reversed(leaf: Tensor | None) -> Tensor | None:
    return None if leaf is None else leaf.reshape(-1).flip(0).reshape(leaf.shape)


def _rotated(leaf: Tensor | None) -> Tensor | None:
    return None if leaf is None else leaf.reshape(-1).roll(1).reshape(leaf.shape)


def _given(params: Tree, scores: Tree, masks: Tree, **options: Any) -> dict[str, Any]:
    """Return the inputs that are not `None`, for the source that reproduces a failure."""
    inputs = {"params": params, "scores": scores, "masks": masks, **options}
    return {name: value for name, value in inputs.items() if name == "params" or value is not None}


def _call(inputs: dict[str, Any], kwargs: dict[str, Any]) -> str:
    named = {name: value for name, value in inputs.items() if name != "params"}
    return ", ".join(["params", *([keywords(**named, **kwargs)] if named or kwargs else [])])
