"""The pair of functions that a pruner is, and what several of them share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, NamedTuple, Protocol, TypeAlias, TypeVar

import torch
from torch import Tensor

from gprune.inputs import mismatch, score_problem
from gprune.methods import random_unstructured
from gprune.prune import layerwise
from gprune.select.amounts import as_scalar
from gprune.trees import (
    Tree,
    Where,
    flatten,
    leaf_names,
    map_leaves,
    match,
    prunable,
    unflatten,
)

Due: TypeAlias = Callable[[Tensor], Tensor | bool]
"""Says whether something is to be done at a step: `step -> 0-dim bool tensor`."""

ScoreFn: TypeAlias = Callable[[Tree, Tree], Tree]
"""Scores the parameters: `(params, grads) -> scores`, or `None` for magnitudes."""

Allocation: TypeAlias = Callable[..., Tree]
"""Shares a sparsity out: `(params, *, sparsity) -> sparsity`, a number or a tree of them."""


State = TypeVar("State")


class Update(Protocol[State]):
    """What is called once in every training step."""

    def __call__(
        self, params: Tree, state: State, grads: Tree = None, scores: Tree = None
    ) -> tuple[Tree, State]:
        """Give the masked parameters and the next state."""
        ...


class Pruner(NamedTuple, Generic[State]):
    """A pair of pure functions.

    Attributes:
        init: `init(params) -> state`. The state is a named tuple of tensors; its `masks` may be
            replaced by others: `state._replace(masks=masks)`.
        update: `update(params, state, grads=None, scores=None) -> (params, state)`. The parameters
            come back masked; `scores` take the place of the pruner's own.

    Example:
        >>> import gprune as gp
        >>> pruner = gp.pruners.static_sparse(0.5, seed=0)
        >>> state = pruner.init({"weight": torch.ones(2, 4)})
        >>> params, state = pruner.update({"weight": torch.ones(2, 4)}, state)
        >>> float(params["weight"].sum())
        4.0
    """

    init: Callable[[Tree], State]
    update: Update[State]


def by_magnitude(params: Tree, grads: Tree) -> None:
    """Give no scores, which methods read as magnitudes and compute while they stream."""


def shared(params: Tree, *, sparsity: Tensor) -> Tensor:
    """Allocate nothing: one sparsity for all leaves together."""
    return sparsity


def first_step() -> Tensor:
    """Count steps from 0, on the CPU, where counts and schedules live."""
    return torch.zeros((), dtype=torch.int64, device="cpu")


def gradients_of(weights: Tree, grads: Tree) -> Tree:
    """Give the gradients of the weights, with their holes, with every check."""
    leaves, treedef = flatten(weights)
    found = match(grads, treedef, "grads")
    names = leaf_names(treedef, "grads")
    trios = [
        (name, leaf, grad)
        for name, leaf, grad in zip(names, leaves, found, strict=True)
        if leaf is not None
    ]
    problems = [(name, score_problem(grad) or _no_slope(grad)) for name, _, grad in trios]
    if any(problem for _, problem in problems):
        raise TypeError(_joined(problems))
    problems = [(name, mismatch(grad, leaf)) for name, leaf, grad in trios]
    if any(problem for _, problem in problems):
        raise ValueError(_joined(problems))
    pairs = zip(leaves, found, strict=True)
    return unflatten(treedef, [None if leaf is None else grad for leaf, grad in pairs])


def is_due(due: Due, step: Tensor) -> Tensor:
    """Ask whether a step is due; amounts are multiplied by the answer, so it must be 0 or 1."""
    answer = due(step)
    if isinstance(answer, bool):
        return torch.full((), answer, device="cpu")
    if not isinstance(answer, Tensor) or answer.dtype != torch.bool:
        got = answer.dtype if isinstance(answer, Tensor) else repr(answer)
        raise TypeError(
            f"due must give a 0-dim bool tensor, got {got}; did you mean step % freq == 0?"
        )
    if answer.dim():
        raise ValueError(f"due must give a 0-dim bool tensor, got shape {tuple(answer.shape)}")
    return answer


def only_when(due: Tensor, numbers: Tree) -> Tree:
    """Give a number or a tree of them, zeros at a step that is not due."""
    return map_leaves(
        lambda number: None if number is None else as_scalar(number, "the schedule") * due, numbers
    )


def kept_and_share(mask: Tensor, share: Tensor) -> tuple[Tensor, Tensor]:
    """Count the weights of a leaf, and a share of them in float64; counts meet on the CPU."""
    num_kept = mask.sum().to(share.device)
    return num_kept, (share.to(torch.float64) * num_kept).round().to(torch.int64)


def regrown(survivors: Tree, free: Tree, still_free: Tree) -> Tree:
    """Give the survivors of an exchange with what was free before it and is no longer."""
    return map_leaves(
        lambda old, before, after: None if old is None else old | (before ^ after),
        survivors,
        free,
        still_free,
    )


def sparse_from_the_start(
    params: Tree, sparsity: float | Tensor, seed: Tensor, allocation: Allocation, where: Where
) -> Tree:
    """Draw the masks that training starts from."""
    weights = prunable(params, where)
    return layerwise(
        weights,
        pruning_method=random_unstructured,
        seed=seed,
        sparsity=allocation(weights, sparsity=sparsity),
    )


def check_functions(**functions: Any) -> None:
    """Refuse what cannot be called.

    Args:
        **functions: what was given, by name.

    Raises:
        TypeError: if one is not callable.
    """
    for name, function in functions.items():
        if not callable(function):
            raise TypeError(f"{name} must be a function, got {function!r}")


def _no_slope(grad: Tensor) -> str | None:
    if grad.is_floating_point():
        return None
    return f"has dtype {grad.dtype}, a gradient has a floating one"


def _joined(problems: list[tuple[str, str | None]]) -> str:
    return "; ".join(f"{name} {problem}" for name, problem in problems if problem)
