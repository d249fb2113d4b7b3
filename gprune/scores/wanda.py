"""Wanda: the weight times the norm of its inputs, from activations without gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch._C import _functorch
from torch.nn import functional as F  # noqa: N812  torch's own name for it
from torch.overrides import TorchFunctionMode

from gprune.inputs import float64_device
from gprune.scores.losses import flatten_function
from gprune.scores.score_map import (
    floating_leaves,
    require_batches,
    score_leaves,
    upcast,
    upcast_dtype,
)
from gprune.trees import Tree, describe_first, leaf_names, leaves_like, map_leaves

LAYERS = (F.linear, F.conv1d, F.conv2d, F.conv3d)
"""The observed functions. Each is linear in its second argument, the weight."""


def wanda(params: Tree, input_norms: Tree) -> Tree:
    """Score each entry by the norm of its contribution to the output: |W_ij| ‖X_j‖₂.

    For a linear layer the square of the score is exactly the squared error of the output, summed
    over all inputs, if that one weight is removed. The paper compares the weights of each output:
    `layerwise(weights, scores, amount=0.5, dim=gprune.input_dims)`.

    Args:
        params: pytree of floating point tensors of any shape; `None` stays `None`. Parameters that
            are not weights of a linear or convolution layer must be `None`: pass
            `prunable(params)`.
        input_norms: the norms of the inputs, from the function of that name: of that structure and
            those shapes, and not negative.

    Returns:
        Detached scores of that structure, in float32 at least, in the unit of the layer's output.

    Raises:
        TypeError: if a leaf is not a floating point tensor.
        ValueError: if the norms of a leaf are missing, have another shape, are not finite or are
            negative.

    Example:
        >>> wanda([torch.tensor([[2.0, -1.0]])], [torch.tensor([[1.0, 3.0]])])
        [tensor([[2., 3.]])]

    References:
        Sun et al., 2024, arXiv:2306.11695, eq. 1.
    """
    leaves, treedef = floating_leaves(params, "params")
    norms = leaves_like(input_norms, treedef, "input_norms")
    unseen = [i for i, leaf in enumerate(leaves) if leaf is not None and norms[i] is None]
    if unseen:
        wrong = describe_first(unseen, leaf_names(treedef, "params").__getitem__, ", ")
        raise ValueError(
            f"{wrong} was not the weight of a linear or convolution layer, so there are no "
            "input_norms for it; put None in its place with prunable()"
        )
    return score_leaves(
        lambda w, norm: w.abs() * norm,
        magnitudes={"input_norms": "pass params first, then what input_norms() returned"},
        params=params,
        input_norms=input_norms,
    )


def input_norms(forward: Callable[[Tree, Any], Any], params: Tree, batches: Iterable[Any]) -> Tree:
    """Measure the norm of the inputs that each weight multiplies, ‖X_j‖₂, over all batches.

    All calls of `F.linear` and `F.conv1d` to `F.conv3d` inside `forward` are observed, also those
    through `functional_call` and under `vmap`, but not those inside a compiled function. A weight
    is recognised by identity. So a weight that is transformed before the call, or passed to a fused
    function such as `F.multi_head_attention_forward`, is not observed. No module is changed, and
    only one batch at a time is in memory. The norms are added up in float64, on the CPU if the
    device has no float64.

    Args:
        forward: `forward(params, batch)`, any pure function. Its result is not used.
        params: pytree of floating point tensors of any shape and `None`s, as `forward` needs it.
        batches: the batches, of any type, read once.

    Returns:
        Detached norms, in float32 at least, in the unit of the inputs. Each has the shape of its
        weight; that of a linear layer is one row, expanded without a copy. `None` for parameters
        that were not observed.

    Raises:
        TypeError: if a leaf is not a floating point tensor, `forward` is a module, or `batches` is
            one batch.
        ValueError: if there is no batch, no weight was observed, or a squared input is not finite.

    Example:
        >>> params = {"bias": torch.zeros(2), "weight": torch.ones(2, 2)}
        >>> forward = lambda params, x: F.linear(x, params["weight"], params["bias"])
        >>> input_norms(forward, params, [torch.tensor([[3.0, 0.0], [4.0, 1.0]])])
        {'bias': None, 'weight': tensor([[5., 1.], [5., 1.]])}

    References:
        Sun et al., 2024, arXiv:2306.11695, section 3.
    """
    require_batches(batches)
    network, weights, tree_of = flatten_function(forward, params, "forward")
    observer = _Observer(weights)
    done = 0
    for batch in batches:
        with torch.no_grad(), observer:
            network(weights, batch)
        done += 1
    if done == 0:
        raise ValueError("batches is empty: there are no inputs to measure")
    if not any(squares is not None for squares in observer.squares):
        raise ValueError(
            "forward passed no tensor of params as the weight of a linear or convolution function"
        )
    rows = score_leaves(torch.sqrt, squared_inputs=tree_of(observer.squares))
    return map_leaves(_repeat, rows, params)


class _Observer(TorchFunctionMode):
    """Sums the squared inputs of each weight while torch's functions are called."""

    def __init__(self, weights: list[Tensor]) -> None:
        super().__init__()
        self.index_of = {id(weight): i for i, weight in enumerate(weights) if weight.dim() > 1}
        self.squares: list[Any] = [None] * len(weights)
        self.level = _transform_level()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if func in LAYERS:
            self._add(func, *args, **kwargs)
        return result

    def _add(
        self, layer: Any, input: Tensor, weight: Tensor, bias: Any = None, *args: Any, **kwargs: Any
    ) -> None:
        index = self.index_of.get(id(weight))
        if index is not None:
            squares = _squared_inputs(layer, input, weight.shape, *args, **kwargs)
            squares = _sum_over_vmaps(squares, self.level)
            before = self.squares[index]
            self.squares[index] = squares if before is None else before + squares


def _squared_inputs(
    layer: Callable[..., Tensor], x: Tensor, shape: torch.Size, *args: Any, **kwargs: Any
) -> Tensor:
    """Sum the squared inputs of each weight: Σ X_j² = ∂/∂W_ij Σ layer(x², W)."""
    # The layer is linear in W, so this holds at every W, for every stride, padding and dilation.
    # It is linear in x² too, so the examples are summed first; torch sums them pairwise, which is
    # exact enough in float32. The derivative then adds up to millions of positions one by one. So
    # it is computed in float64, which autocast does not change. All rows of a group have the same
    # inputs, so one row is enough.
    groups = x.shape[1 - len(shape)] // shape[1] if shape[1] else 1
    squares = upcast(x).square().unsqueeze(0)  # layers take a single example without a batch, too
    squares = squares.sum(tuple(range(squares.dim() + 1 - len(shape))))
    squares = squares.to(float64_device(x.device)).to(torch.float64).unsqueeze(0)
    row = squares.new_zeros(groups, *shape[1:])
    derivative = torch.func.grad(lambda row: layer(squares, row, None, *args, **kwargs).sum())
    sums: Tensor = derivative(row)
    return sums


def _transform_level() -> int:
    """Return how many `torch.func` transforms are active, or 0 while tracing."""
    return 0 if torch.compiler.is_compiling() else _functorch.maybe_current_level() or 0


def _sum_over_vmaps(squares: Tensor, level: int) -> Tensor:
    """Sum over the batch dims of the `vmap`s that `forward` has started."""
    # A batched tensor cannot be used after its `vmap`. torch has no public function for this.
    if torch.compiler.is_compiling():
        return squares
    while _functorch.maybe_get_level(squares) > level:
        dim = _functorch.maybe_get_bdim(squares)
        squares = _functorch.get_unwrapped(squares)
        squares = squares if dim < 0 else squares.sum(dim)
    return squares


def _repeat(row: Tensor | None, weight: Tensor) -> Tensor | None:
    """Expand the norms of each group to all of its rows; without a copy if there is one group."""
    if row is None:
        return None
    row = row.to(weight.device, upcast_dtype(weight)).unsqueeze(1)
    rows = row.expand(-1, weight.shape[0] // row.shape[0], *row.shape[2:])
    return rows.reshape(weight.shape)
