"""Wanda: the weight times the norm of what it multiplies, from activations alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812  torch's own name for it
from torch.overrides import TorchFunctionMode

from gprune.scores.edge import floating_leaves, score_leaves, wide
from gprune.scores.losses import over_tensors
from gprune.trees import Tree, leaf_names, map_leaves, match

LAYERS = (F.linear, F.conv1d, F.conv2d, F.conv3d)
"""The functions whose second argument is observed; all are linear in it."""


def wanda(params: Tree, input_norms: Tree) -> Tree:
    """Score each entry by the output it carries: |W_ij| ‖X_j‖₂.

    For a linear layer its square is exactly the squared error of the output, over all inputs, if
    that one weight is removed. The paper compares within each row of the output:
    `layerwise(weights, scores, amount=0.5, dim=-1)`.

    Args:
        params: pytree of floating point tensors of any shape; `None` stays `None`. What is not a
            weight of a linear or convolution layer must be a hole: pass `prunable(params)`.
        input_norms: the norms of the inputs, of that structure and those shapes.

    Returns:
        Detached scores of that structure, in float32 at least, in the unit of the layer's output.

    Raises:
        TypeError: if a leaf is not a floating point tensor.
        ValueError: if the norms of a leaf are missing, do not fit or are not finite.

    Example:
        >>> wanda([torch.tensor([[2.0, -1.0]])], [torch.tensor([[1.0, 3.0]])])
        [tensor([[2., 3.]])]

    References:
        Sun et al., 2024, arXiv:2306.11695, eq. 1.
    """
    leaves, treedef = floating_leaves(params, "params")
    norms = match(input_norms, treedef, "input_norms")
    unseen = [i for i, leaf in enumerate(leaves) if leaf is not None and norms[i] is None]
    if unseen:
        names = leaf_names(treedef, "params")
        wrong = ", ".join(names[i] for i in unseen)
        raise ValueError(f"no linear or convolution saw {wrong}; make it a hole with prunable()")
    return score_leaves(lambda w, norm: w.abs() * norm, params=params, input_norms=input_norms)


def input_norms(forward: Callable[[Tree, Any], Any], params: Tree, batches: Iterable[Any]) -> Tree:
    """Measure the norm of what each weight multiplies, ‖X_j‖₂, over all batches.

    `F.linear` and `F.conv1d` to `F.conv3d` are observed wherever `forward` calls them, on its own
    or through `functional_call`; a weight is known by its identity. So a weight that is transformed
    first, or used inside of one fused function such as `F.multi_head_attention_forward`, is not
    seen. No module is touched, and one batch at a time is in memory.

    Args:
        forward: `forward(params, batch)`, any pure function; what it returns does not matter.
        params: pytree of floating point tensors of any shape, and holes; all that `forward` needs.
        batches: the batches, of any type, read once.

    Returns:
        Detached norms, in float32 at least, each of the shape of its weight (rows of a linear layer
        are one row, repeated without memory), in the unit of the inputs; `None` for parameters that
        no linear or convolution saw.

    Raises:
        TypeError: if a leaf is not a floating point tensor.
        ValueError: if there is no batch, nothing was seen, or an input is not finite.

    Example:
        >>> params = {"bias": torch.zeros(2), "weight": torch.ones(2, 2)}
        >>> forward = lambda params, x: F.linear(x, params["weight"], params["bias"])
        >>> input_norms(forward, params, [torch.tensor([[3.0, 0.0], [4.0, 1.0]])])
        {'bias': None, 'weight': tensor([[5., 1.], [5., 1.]])}

    References:
        Sun et al., 2024, arXiv:2306.11695, section 3.
    """
    network, weights, tree_of = over_tensors(forward, params)
    observer = _Observer(weights)
    done = 0
    for batch in batches:
        with torch.no_grad(), observer:
            network(weights, batch)
        done += 1
    if done == 0:
        raise ValueError("batches is empty: there is nothing to observe")
    if not any(squares is not None for squares in observer.squares):
        raise ValueError("forward passed no tensor of params to a linear or convolution as weight")
    rows = score_leaves(torch.sqrt, squared_inputs=tree_of(observer.squares))
    return map_leaves(lambda row, leaf: None if row is None else _repeat(row, leaf), rows, params)


class _Observer(TorchFunctionMode):
    """Sums the squares of what weights multiply, wherever torch's functions are called."""

    def __init__(self, weights: list[Tensor]) -> None:
        super().__init__()
        self.places = {id(weight): i for i, weight in enumerate(weights) if weight.dim() > 1}
        self.squares: list[Any] = [None] * len(weights)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if func in LAYERS:
            self._add(func, *args, **kwargs)
        return result

    def _add(
        self, layer: Any, input: Tensor, weight: Tensor, bias: Any = None, *args: Any, **kwargs: Any
    ) -> None:
        place = self.places.get(id(weight))
        if place is not None:
            squares = _squared_inputs(layer, input, weight.shape, *args, **kwargs)
            before = self.squares[place]
            self.squares[place] = squares if before is None else before + squares


def _squared_inputs(
    layer: Callable[..., Tensor], x: Tensor, shape: torch.Size, *args: Any, **kwargs: Any
) -> Tensor:
    """Sum the squares of what each weight multiplies: Σ X_j² = ∂/∂W_ij Σ layer(x², W)."""
    # The layer is linear in W, so this holds wherever the derivative is taken, and for every
    # stride, padding and dilation. The rows of a group see the same inputs: one stands for all.
    groups = x.shape[1 - len(shape)] // shape[1] if shape[1] else 1
    squares = wide(x).square()
    row = squares.new_zeros(groups, *shape[1:])
    with torch.autocast(x.device.type, enabled=False):  # it would round the squares
        derivative = torch.func.grad(lambda row: layer(squares, row, None, *args, **kwargs).sum())
        sums: Tensor = derivative(row)
    return sums


def _repeat(row: Tensor, weight: Tensor) -> Tensor:
    """Give every row of a group the norms of that group; without a copy if there is one group."""
    rows = row.unsqueeze(1).expand(-1, weight.shape[0] // row.shape[0], *row.shape[1:])
    return rows.reshape(weight.shape)
