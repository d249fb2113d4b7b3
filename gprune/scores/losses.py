"""Losses as functions of a list of tensors, which is what `torch.func` can differentiate.

A tree with holes cannot be differentiated. So the tensors are taken out of it, in pytree order, and
the loss puts them back before it is evaluated: it always sees the whole tree, holes and all.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import Tensor

from gprune.scores.edge import floating_leaves
from gprune.trees import Tree, fill

Tensors: TypeAlias = list[Tensor]


def over_tensors(
    function: Callable[..., Any], params: Tree
) -> tuple[Callable[..., Any], Tensors, Callable[[Tensors], Tree]]:
    """Turn a function of a tree into one of its tensors.

    Args:
        function: of the tree, and of other arguments.
        params: pytree of floating point tensors and holes.

    Returns:
        The function of a list of tensors, and of the other arguments; the tensors, detached; and
        what makes a tree of such a list again.

    Raises:
        TypeError: if a leaf is not a floating point tensor.
        ValueError: if the tree has no tensor.
    """
    leaves, treedef = floating_leaves(params, "params")
    tensors = [leaf.detach() for leaf in leaves if leaf is not None]
    if not tensors:
        raise ValueError("params has no tensor to score: it is empty, or every leaf is None")

    def tree_of(tensors: Tensors) -> Tree:
        return fill(treedef, leaves, tensors)

    def of_tensors(tensors: Tensors, *args: Any) -> Any:
        return function(tree_of(tensors), *args)

    return of_tensors, tensors, tree_of


def gradient_over_tensors(
    loss_fn: Callable[..., Any], params: Tree
) -> tuple[Callable[..., Tensors], Tensors, Callable[[Tensors], Tree]]:
    """Differentiate a loss with respect to every tensor of a tree.

    Args:
        loss_fn: of the tree, and of other arguments, to a 0-dim floating point tensor.
        params: pytree of floating point tensors and holes.

    Returns:
        The gradient, a function of a list of tensors and of the other arguments; and the rest as in
        `over_tensors`.
    """
    loss, tensors, tree_of = over_tensors(_scalar(loss_fn), params)
    return torch.func.grad(loss), tensors, tree_of


def hessian_product(
    gradient: Callable[..., Tensors], tensors: Tensors, v: Tensors, *args: Any
) -> Tensors:
    """Multiply the Hessian with a vector: Hv, the derivative of the gradient in its direction.

    Forward over reverse: neither H nor the graph of the gradient is kept.

    Args:
        gradient: from `gradient_over_tensors`.
        tensors: where to take it.
        v: the vector, tensors of the same shapes and dtypes.
        *args: what else the gradient takes.

    Returns:
        The product, likewise.
    """
    products: Tensors = torch.func.jvp(lambda at: gradient(at, *args), (tensors,), (v,))[1]
    return products


def require_floating(result: Any, name: str) -> None:
    """Refuse a result that has no gradient.

    Args:
        result: what a function returned.
        name: what to call the function in an error.

    Raises:
        TypeError: if it is not a floating point tensor.
    """
    if not isinstance(result, Tensor):
        raise TypeError(f"{name} must return a tensor, got {type(result).__name__}")
    if not result.is_floating_point():
        raise TypeError(f"{name} must return floating point numbers, got {result.dtype}")


def _scalar(loss_fn: Callable[..., Any]) -> Callable[..., Tensor]:
    """Make a loss raise where it is not one floating point number."""

    def checked(*args: Any) -> Tensor:
        loss: Tensor = loss_fn(*args)
        require_floating(loss, "loss_fn")
        if loss.dim() != 0:
            raise ValueError(
                f"loss_fn must return a 0-dim tensor, got shape {tuple(loss.shape)}; "
                "did you forget .mean()?"
            )
        return loss

    return checked
