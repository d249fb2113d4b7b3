"""What a pruner is, and the steps that several pruners share."""

from __future__ import annotations

import numbers
from collections.abc import Callable
from functools import partial, wraps
from typing import Any, Generic, NamedTuple, Protocol, TypeAlias, TypeVar

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import is_fake

from gprune.inputs import mismatch, score_problem
from gprune.masks import count_pruned, mask_leaves
from gprune.methods import random_unstructured
from gprune.prune import layerwise
from gprune.select.counts import as_scalar, as_seed, resolve_sparsity
from gprune.sharding import (
    check_same_call,
    check_same_leaves,
    is_sharded,
    raise_on_all_ranks,
)
from gprune.trees import (
    Tree,
    TreeDef,
    Where,
    describe_first,
    flatten,
    leaf_names,
    leaves_like,
    map_leaves,
    prunable,
    require_tensors,
    tensor_paths,
    unflatten,
    unflatten_like,
)

Due: TypeAlias = Callable[[Tensor], Tensor | bool]
"""Whether the masks change at a step: `step -> 0-dim bool tensor`, the same on all ranks."""

ScoreFn: TypeAlias = Callable[[Tree, Tree], Tree]
"""Scores the parameters: `(params, grads) -> scores`, or `None` for magnitudes."""

Allocation: TypeAlias = Callable[..., Tree]
"""Gives each leaf its sparsity: `(params, *, sparsity) -> sparsity`, one number or a tree."""

State = TypeVar("State")


class Update(Protocol[State]):
    """The function that a training loop calls once in every step."""

    def __call__(
        self, params: Tree, state: State, grads: Tree = None, scores: Tree = None
    ) -> tuple[Tree, State]:
        """Return the masked parameters and the next state."""
        ...


class Pruner(NamedTuple, Generic[State]):
    """A pair of pure functions, `init` and `update`: masks that change while a model trains.

    A state survives `pickle`, `copy.deepcopy` and `torch.save`. A program that has imported gprune
    reads it with `torch.load`, also with `weights_only=True`, which is the default. A pruner
    survives `pickle` and `copy.deepcopy` if its functions can be imported: pass functions of a
    module, or partials of them, and no lambdas.

    If leaves are DTensors, all ranks call both, and `due` must give the same answer on all of them.
    At a due step an error of one rank is raised on all ranks, also an error of a function that you
    have passed. A step that is not due, and `update` of a pruner without `due`, send no messages,
    so only the rank with the error raises it. If `due` itself raises an error, that rank counts the
    step as due, and waits for the other ranks.

    Attributes:
        init: `init(params) -> state`. The state is a named tuple of tensors and trees of tensors.
            You may replace its masks: `state._replace(masks=masks)`.
        update: `update(params, state, grads=None, scores=None) -> (params, state)`. Call it once in
            every training step. It returns the parameters with the masks applied, and the next
            state. `scores` replace those of the pruner's `score_fn`.

    Example:
        >>> import torch, gprune as gp
        >>> pruner = gp.pruners.static_sparse(0.5, seed=0)
        >>> state = pruner.init({"weight": torch.ones(2, 4)})
        >>> params, state = pruner.update({"weight": torch.ones(2, 4)}, state)
        >>> float(params["weight"].sum())
        4.0
    """

    init: Callable[[Tree], State]
    update: Update[State]


# --- defaults of the builders -------------------------------------------------------------------


def by_magnitude(params: Tree, grads: Tree) -> None:
    """Return `None` as scores: pruning methods then rank by magnitude, without storing scores."""


def no_allocation(params: Tree, *, sparsity: Tensor) -> Tensor:
    """Return the sparsity as it is: one number for all leaves, which are then ranked together."""
    return sparsity


# --- the first state ----------------------------------------------------------------------------


def first_step() -> Tensor:
    """Return the step counter at 0: a 0-dim int64 tensor on the CPU."""
    return torch.zeros((), dtype=torch.int64, device="cpu")


@raise_on_all_ranks
def random_masks(
    params: Tree,
    *,
    sparsity: float | Tensor,
    seed: int | Tensor,
    allocation: Allocation,
    where: Where,
) -> Tree:
    """Draw random masks in which every leaf has the sparsity that the allocation gives it."""
    weights = prunable(params, where)
    return layerwise(
        weights,
        pruning_method=random_unstructured,
        seed=seed,
        sparsity=allocation(weights, sparsity=as_scalar(sparsity, "sparsity")),
    )


def bind_random_masks(
    sparsity: float | Tensor, seed: int | Tensor, allocation: Allocation, where: Where
) -> Callable[[Tree], Tree]:
    """Check the arguments of `random_masks`, and return it as a function of the parameters alone.

    Args:
        sparsity: the fraction of all prunable entries that is pruned, 0 to 1.
        seed: a 64-bit int or a 0-dim integer tensor.
        allocation: gives each leaf its sparsity.
        where: which leaves are prunable, as in `gprune.prunable`.

    Returns:
        The function that draws the masks.

    Raises:
        TypeError: if the allocation is not a function, or a number has the wrong type.
        ValueError: if the sparsity is not from 0 to 1.
    """
    check_functions(allocation=allocation)
    number = as_scalar(sparsity, "sparsity")
    if is_known(number):
        resolve_sparsity(number, 0, 0)  # so that a wrong number raises now, not in `init`
    as_seed(seed)
    return partial(random_masks, sparsity=sparsity, seed=seed, allocation=allocation, where=where)


# --- steps of an update -------------------------------------------------------------------------


def is_due(due: Due, step: Tensor) -> Tensor:
    """Return whether a step is due, as a 0-dim bool tensor.

    Amounts are multiplied by the result, so a result other than a bool is an error.

    Args:
        due: the user's function.
        step: the step, a 0-dim int64 tensor.

    Returns:
        0-dim bool tensor.

    Raises:
        TypeError: if the result is neither a bool nor a bool tensor.
        ValueError: if the result is a tensor with dimensions.
    """
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


def can_skip(step_is_due: Tensor) -> bool:
    """Return whether a step only applies the masks, because it is not due.

    While compiling, under `vmap` and under FakeTensorMode the answer is not known. A step that is
    not due is then taken, but prunes nothing.

    Args:
        step_is_due: 0-dim bool tensor.

    Returns:
        Whether the step is known not to be due.
    """
    return is_known(step_is_due) and not bool(step_is_due)


def is_known(number: Tensor) -> bool:
    """Return whether a 0-dim tensor has a single value that can be read now.

    It has none while compiling, under `vmap` and under FakeTensorMode.
    """
    if torch.compiler.is_compiling() or torch._C._functorch.is_batchedtensor(number):
        return False
    return not is_fake(number)


def raise_on_all_ranks_when_due(
    update: Callable[..., tuple[Tree, State]],
) -> Callable[..., tuple[Tree, State]]:
    """Make a pruner's `update` raise an error on every rank if one rank raises it at a due step.

    With DTensors a due step sends two messages besides those of the functions that it calls. The
    first one says that the step is due, and the last one that it has succeeded. A step that is not
    due sends no messages.

    Args:
        update: the `update` of a pruner, which takes `due`.

    Returns:
        A function with the arguments and results of `update`.
    """

    @wraps(update)
    def run(
        params: Tree,
        state: Any,
        grads: Tree = None,
        scores: Tree = None,
        *,
        due: Due,
        **options: Any,
    ) -> tuple[Tree, State]:
        if torch.compiler.is_compiling():  # no messages are sent while tracing
            return update(params, state, grads, scores, due=due, **options)
        answer = _ask_on_all_ranks(due, params, state, grads, scores)
        take_step = update if can_skip(answer) else partial(_update_on_all_ranks, update)
        return take_step(params, state, grads, scores, due=lambda step: answer, **options)

    return run


@raise_on_all_ranks
def _ask_on_all_ranks(due: Due, params: Tree, state: Any, *others: Tree) -> Tensor:
    """Return whether a step is due; if it is, check that all ranks take the same step."""
    answer = is_due(due, state.step)
    if not can_skip(answer) and is_sharded(leaves := flatten((params, state, others))[0]):
        check_same_call(leaves, {"step": f"step {state.step!r}"})
    return answer


@raise_on_all_ranks
def _update_on_all_ranks(
    update: Callable[..., tuple[Tree, State]],
    params: Tree,
    state: Any,
    *others: Tree,
    **options: Any,
) -> tuple[Tree, State]:
    """Take a due step, and check that no rank has failed, and that all had the same leaves."""
    result = update(params, state, *others, **options)
    leaves, treedef = flatten((params, state, others))
    if is_sharded(leaves):
        tensors = [leaf for leaf in leaves if leaf is not None]
        call = f"end of step {state.step!r}"
        check_same_leaves(call, tensors, lambda: tensor_paths(treedef, leaves))
    return result


def zero_unless(step_is_due: Tensor, numbers: Tree, name: str) -> Tree:
    """Return numbers as tensors, unchanged if the step is due and 0 otherwise.

    Args:
        step_is_due: 0-dim bool tensor.
        numbers: a number or a tree of numbers, `None` where a leaf is not prunable.
        name: what errors call a number.

    Returns:
        0-dim tensors, of that structure.

    Raises:
        TypeError: if one of them is not a number.
        ValueError: if one of them is a tensor with dimensions.
    """
    return map_leaves(
        lambda number: None if number is None else as_scalar(number, name) * step_is_due, numbers
    )


def gradients_of(weights: Tree, grads: Tree) -> Tree:
    """Return the gradients of the prunable weights, checked.

    Args:
        weights: pytree of tensors; `None` where a leaf is not prunable.
        grads: gradients, a pytree of the same structure; ignored where a weight is `None`.

    Returns:
        The gradients, `None` where the weight is `None`.

    Raises:
        TypeError: if a gradient is not a floating point tensor.
        ValueError: if the structure, a shape or a device differs.
    """
    leaves, treedef = flatten(weights)
    require_tensors(leaves, treedef, "params")
    found = leaves_like(grads, treedef, "grads")
    ranked = [i for i, leaf in enumerate(leaves) if leaf is not None]
    problems = {i: score_problem(found[i]) or _grad_dtype_problem(found[i]) for i in ranked}
    if any(problems.values()):
        raise TypeError(_describe(problems, treedef))
    problems = {i: mismatch(found[i], leaves[i]) for i in ranked}
    if any(problems.values()):
        raise ValueError(_describe(problems, treedef))
    pairs = zip(leaves, found, strict=True)
    return unflatten(treedef, [None if leaf is None else grad for leaf, grad in pairs])


def count_kept(masks: Tree) -> Tree:
    """Count the weights that each mask keeps: a 0-dim int64 tensor on the CPU for each leaf."""
    leaves, treedef = flatten(masks)
    found = mask_leaves(masks, "state.masks")
    counts = count_pruned(found, masks).cpu()  # all counts are copied together
    kept = [mask.numel() - n for mask, n in zip(found, counts.unbind(), strict=True)]
    return unflatten_like(treedef, leaves, kept)


def fraction_at(fraction: Callable[[Tensor], Any], step: Tensor, step_is_due: Tensor) -> Tensor:
    """Return the fraction of the weights that a step exchanges: `fraction(step)`, or 0 if not due.

    Args:
        fraction: the user's function.
        step: the step, a 0-dim int64 tensor.
        step_is_due: 0-dim bool tensor.

    Returns:
        0-dim tensor.

    Raises:
        TypeError: if it is not a number.
        ValueError: if it is a tensor with dimensions, or not from 0 to 1. While compiling, under
            `vmap` and under FakeTensorMode the value is not known, and is not checked.
    """
    now = as_scalar(fraction(step), "fraction(step)") * step_is_due
    number = float(now) if is_known(now) else 0.0
    if not 0 <= number <= 1:
        hint = f"; did you mean {number / 100:g}?" if 2 <= number <= 100 else ""
        raise ValueError(f"fraction(step) must be from 0 to 1, got {number:g}{hint}")
    return now


def round_fraction(counts: Tree, fraction: Tensor) -> Tree:
    """Return round(fraction * count) for each count: float64, half to even, on the CPU."""
    exact = fraction.cpu().to(torch.float64)
    return map_leaves(lambda n: None if n is None else (exact * n).round().to(torch.int64), counts)


def add_grown(survivors: Tree, free: Tree, still_free: Tree) -> Tree:
    """Add the grown weights to the survivors: survivors | (free & ~still_free).

    Args:
        survivors: masks of the weights that were not dropped.
        free: masks of the entries that could be grown.
        still_free: masks of the entries that could be grown and were not, a subset of `free`.

    Returns:
        Masks of the survivors and the grown weights.
    """
    return map_leaves(
        lambda kept, before, after: None if kept is None else kept | (before ^ after),
        survivors,
        free,
        still_free,
    )


def check_functions(**functions: Any) -> None:
    """Raise a TypeError if an argument that must be a function cannot be called.

    Args:
        **functions: the arguments, by name.

    Raises:
        TypeError: if one is not callable.
    """
    for name, function in functions.items():
        if not callable(function):
            raise TypeError(
                f"{name} must be a function, got {function!r}{_instead(name, function)}"
            )


def _instead(name: str, given: Any) -> str:
    """Return the remedy where a number is given instead of a function of the step."""
    if isinstance(given, bool) or not isinstance(given, numbers.Real):
        return ""
    if name == "due":
        every = f"gprune.schedules.every, begin=0, end=..., freq={given}"
        return f"; for every {given} steps pass functools.partial({every})"
    if name in ("schedule", "fraction"):
        return f"; pass gprune.schedules.constant({given}), or another schedule"
    return ""


def _grad_dtype_problem(grad: Tensor) -> str | None:
    if grad.is_floating_point():
        return None
    return f"has dtype {grad.dtype}, a gradient must have a floating point dtype"


def _describe(problems: dict[int, str | None], treedef: TreeDef) -> str:
    """Describe the gradients that have a problem; `problems` has `None` for the others."""
    names, wrong = leaf_names(treedef, "grads"), [i for i, problem in problems.items() if problem]
    return describe_first(wrong, lambda i: f"{names[i]} {problems[i]}")
