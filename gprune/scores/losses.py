"""Functions of a parameter tree as functions of a list of tensors, which torch.func differentiates.

`torch.func.grad` refuses a tree with `None`s. So the tensors are taken out of the tree, in pytree
order, and put back before the user's function is called, which always sees the whole tree.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from gprune.scores.score_map import floating_leaves
from gprune.sharding import check_same_leaves
from gprune.trees import Tree, tensor_paths, unflatten_like


def flatten_function(
    function: Callable[..., Any], params: Tree, name: str
) -> tuple[Callable[..., Any], list[Tensor], Callable[[list[Tensor]], Tree]]:
    """Turn a function of a tree into a function of the list of its tensors.

    Args:
        function: a function of the tree and of other arguments.
        params: pytree of floating point tensors and `None`s.
        name: what errors call the function.

    Returns:
        Three things: the function of the list and of the other arguments; the list of the tensors,
        detached; and a function that makes a tree of such a list.

    Raises:
        TypeError: if a leaf is not a floating point tensor, or it is a module or no function.
        ValueError: if the tree has no tensor.
    """
    require_function(function, name)
    leaves, treedef = floating_leaves(params, "params")
    tensors = [leaf.detach() for leaf in leaves if leaf is not None]
    check_same_leaves("function of", tensors, lambda: tensor_paths(treedef, leaves))
    if not tensors:
        raise ValueError("params has no tensor to score: it is empty, or every leaf is None")

    def tree_of(tensors: list[Tensor]) -> Tree:
        return unflatten_like(treedef, leaves, tensors)

    def flat_function(tensors: list[Tensor], *args: Any) -> Any:
        return function(tree_of(tensors), *args)

    return flat_function, tensors, tree_of


def gradient_function(
    loss_fn: Callable[..., Any], params: Tree
) -> tuple[Callable[..., list[Tensor]], list[Tensor], Callable[[list[Tensor]], Tree]]:
    """Build the gradient of a loss with respect to every tensor of a tree.

    Args:
        loss_fn: a function of the tree and of other arguments, to a 0-dim floating point tensor.
        params: pytree of floating point tensors and `None`s.

    Returns:
        The gradient, a function of the list of tensors and of the other arguments; then the list
        and the function that makes a tree of it, as in `flatten_function`.
    """
    require_function(loss_fn, "loss_fn")
    loss, tensors, tree_of = flatten_function(_scalar(loss_fn), params, "loss_fn")
    return torch.func.grad(loss), tensors, tree_of


def hessian_product(
    gradient: Callable[..., list[Tensor]], tensors: list[Tensor], v: list[Tensor], *args: Any
) -> list[Tensor]:
    """Multiply the Hessian with a vector: Hv is the derivative of the gradient in direction v.

    It is computed forward over reverse, so neither H nor the graph of the gradient is stored.

    Args:
        gradient: from `gradient_function`.
        tensors: the point at which to take the Hessian.
        v: the vector, tensors of the same shapes and dtypes.
        *args: the other arguments of the gradient.

    Returns:
        The product, tensors of the same shapes and dtypes.
    """
    # forward mode refuses expanded tensors
    theta, direction = ([x.contiguous() for x in side] for side in (tensors, v))
    products: list[Tensor] = torch.func.jvp(lambda at: gradient(at, *args), (theta,), (direction,))[
        1
    ]
    return products


def require_function(function: Any, name: str) -> None:
    """Raise a TypeError if an argument is not a function of the parameters.

    Args:
        function: the argument.
        name: what errors call it.

    Raises:
        TypeError: if it cannot be called, or is a module, which has parameters of its own.
    """
    if isinstance(function, torch.nn.Module):
        raise TypeError(
            f"{name} must be a function {name}(params, ...), got a module, "
            f"{type(function).__name__}; pass lambda params, *args: "
            "torch.func.functional_call(module, params, args)"
            + ".mean(), or another loss of the output"
            * (name == "loss_fn")
        )
    if not callable(function):
        raise TypeError(f"{name} must be a function, got {type(function).__name__}")


def require_floating(result: Any, name: str) -> None:
    """Raise a TypeError if a function's result cannot be differentiated.

    Args:
        result: the result.
        name: what errors call the function.

    Raises:
        TypeError: if it is not a floating point tensor.
    """
    if not isinstance(result, Tensor):
        raise TypeError(f"{name} must return a tensor, got {type(result).__name__}")
    if not result.is_floating_point():
        raise TypeError(f"{name} must return floating point numbers, got {result.dtype}")


def _scalar(loss_fn: Callable[..., Any]) -> Callable[..., Tensor]:
    """Make a loss raise an error if its result is not a 0-dim floating point tensor."""

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
