"""Wanda: the weight times the norm of its inputs, from activations without gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch._C import _functorch
from torch.nn import functional as F  # noqa: N812  torch's own name for it

from gprune.inputs import float64_device
from gprune.scores.losses import flatten_function
from gprune.scores.observer import TRANSPOSED, InputObserver, Region
from gprune.scores.score_map import (
    NORMS_ARE_MAGNITUDES,
    floating_leaves,
    require_norms,
    score_leaves,
    upcast,
    upcast_dtype,
)
from gprune.sharding import raise_on_all_ranks
from gprune.trees import Tree, leaves_like, map_leaves


@raise_on_all_ranks
def wanda(params: Tree, input_norms: Tree) -> Tree:
    """Score each entry by the norm of its contribution to the output: |W_ij| ‖X_j‖₂.

    W_ij is the weight from input j to output i, and X_j has that input of all examples. For a
    linear layer, the square of a score is exactly the squared change of the outputs, summed over
    all examples, when that one weight is removed. The paper compares the weights of each output:
    `layerwise(weights, scores, amount=0.5, dim=gprune.input_dims)`. Weights of other layouts, such
    as the `Conv1D` of GPT-2 and packed experts, need another `dim`: see `gprune.input_dims`.

    Args:
        params: pytree of floating point tensors of any shape; `None` stays `None`. Parameters that
            `input_norms` has not observed must be `None`: pass `prunable(params)`, and leave out
            with `exclude` what the error names.
        input_norms: the norms of the inputs, from the function `input_norms`: of that structure
            and those shapes, not negative.

    Returns:
        Detached scores of that structure, in float32 at least, in the unit of the layer's output.

    Raises:
        TypeError: if a leaf is not a floating point tensor.
        ValueError: if the norms of a leaf are missing, have another shape, are not finite or are
            negative.

    Example:
        >>> import torch, gprune as gp
        >>> gp.scores.wanda([torch.tensor([[2.0, -1.0]])], [torch.tensor([[1.0, 3.0]])])
        [tensor([[2., 3.]])]

    References:
        Sun et al., 2024, arXiv:2306.11695, eq. 1.
    """
    leaves, treedef = floating_leaves(params, "params")
    require_norms(leaves, leaves_like(input_norms, treedef, "input_norms"), treedef)
    return score_leaves(
        lambda w, norm: w.abs() * norm,
        magnitudes=NORMS_ARE_MAGNITUDES,
        params=params,
        input_norms=input_norms,
    )


@raise_on_all_ranks
def input_norms(forward: Callable[[Tree, Any], Any], params: Tree, batches: Iterable[Any]) -> Tree:
    """Measure the norm of the inputs that each weight multiplies, ‖X_j‖₂, over all batches.

    The observed functions are `F.linear`, `F.conv1d` to `F.conv3d`, `F.conv_transpose1d` to
    `F.conv_transpose3d`, `F.grouped_mm`, and the matrix products `@`, `matmul`, `mm`, `bmm`,
    `addmm` and `baddbmm`. `forward` may call them through `functional_call` and under `vmap`, but
    not inside a compiled function.

    A weight is recognised by its memory. So it may be transposed, split or indexed by a number, as
    in `experts[i]`. The weights of GPT-2 (`Conv1D`, of shape (inputs, outputs)) and the packed
    experts of a mixture are observed. A weight is not observed if it is copied first, as in
    `experts[indices]`, or passed to a fused function, such as those of LSTM, GRU and multi-head
    attention. Parts of a DTensor are not observed.

    No module is changed, and only one batch at a time is in memory. The squares are summed in
    float64, on the CPU if the device has no float64.

    Args:
        forward: `forward(params, batch)`, any pure function. Its result is not used.
        params: pytree of floating point tensors of any shape and `None`s, as `forward` needs it.
        batches: the batches, of any type, read once.

    Returns:
        Detached norms, in float32 at least, in the unit of the inputs. Each has the shape of its
        weight, expanded without a copy along the outputs. A parameter that was not observed has
        `None`, and an expert that got no input has 0.

    Raises:
        TypeError: if a leaf is not a floating point tensor, `forward` is a module, or `batches` is
            one batch.
        ValueError: if there is no batch, no weight was observed, or a squared input is not finite.

    Example:
        >>> import torch, gprune as gp
        >>> params = {"bias": torch.zeros(2), "weight": torch.ones(2, 2)}
        >>> forward = lambda params, x: x @ params["weight"].mT + params["bias"]
        >>> gp.scores.input_norms(forward, params, [torch.tensor([[3.0, 0.0], [4.0, 1.0]])])
        {'bias': None, 'weight': tensor([[5., 1.], [5., 1.]])}

    References:
        Sun et al., 2024, arXiv:2306.11695, section 3.
    """
    network, weights, tree_of = flatten_function(forward, params, "forward")
    observer = NormObserver(weights, [True] * len(weights))
    observer.watch(network, batches)
    require_observed(observer.squares)
    rows = score_leaves(torch.sqrt, squared_inputs=tree_of(observer.squares))
    return map_leaves(_repeat, rows, params)


def require_observed(found: list[Any]) -> None:
    """Raise a ValueError if no weight was observed.

    Args:
        found: what was measured for each weight, or `None`.

    Raises:
        ValueError: if all are `None`.
    """
    if all(measured is None for measured in found):
        raise ValueError(
            "forward passed no tensor of params as the weight of a linear or convolution function, "
            "or as a factor of a matrix product; check that it computes with params, for example "
            "by torch.func.functional_call(module, params, (x,))"
        )


class NormObserver(InputObserver):
    """Sums the squared inputs of each weight.

    Attributes:
        squares: for each weight the sums in float64, which broadcast to its shape; `None` if it was
            not observed.
    """

    def __init__(self, weights: list[Tensor], is_observed: list[bool]) -> None:
        super().__init__(weights, is_observed)
        self.squares: list[Any] = [None] * len(weights)

    def _add_layer(
        self, region: Region, layer: Any, x: Tensor, weight: Tensor, *args: Any, **kwargs: Any
    ) -> None:
        self._add(region, _squared_inputs(layer, x, weight.shape, *args, **kwargs))

    def _add_product(self, region: Region, x: Tensor, shape: torch.Size) -> None:
        self._add(region, _squared_rows(x, shape))

    def _add_grouped_product(self, region: Region, x: Tensor, ends: Tensor) -> None:
        group = torch.searchsorted(ends, torch.arange(len(x), device=ends.device), right=True)
        squares = _to_float64(upcast(x).square())
        sums = squares.new_zeros(len(ends) + 1, x.shape[1])  # the last: rows of no group
        sums.index_add_(0, group.to(sums.device), squares)
        self._add(region, sums[:-1].unsqueeze(-1))

    def _add(self, region: Region, squares: Tensor) -> None:
        """Add the squares of a region. They have size 1 in a dim in which all of them are equal."""
        squares = _sum_over_vmaps(squares, self.level)
        weight, before = self.weights[region.leaf], self.squares[region.leaf]
        squares = _in_order_of_weight(squares, region.dims, weight.dim())
        if region.sizes != list(weight.shape):
            # a dim in which all squares are equal stays of size 1, if the part covers all of it
            rows = list(zip(squares.shape, region.starts, region.sizes, weight.shape, strict=True))
            squares = squares.expand(
                [1 if n == 1 and size == full else size for n, _, size, full in rows]
            )
            pads = [
                (0, 0) if n == 1 and size == full else (start, full - start - size)
                for n, start, size, full in rows
            ]
            squares = F.pad(squares, [n for pair in reversed(pads) for n in pair])
        self.squares[region.leaf] = squares if before is None else before + squares


def _in_order_of_weight(squares: Tensor, dims: list[Any], num_dims: int) -> Tensor:
    """Return the squares of a view with their dims in the order of the weight."""
    places = [at for at, dim in enumerate(dims) if dim is not None]
    others = [at for at, dim in enumerate(dims) if dim is None]
    shape = [1] * num_dims
    for at in places:
        shape[dims[at]] = squares.shape[at]
    return squares.permute([*sorted(places, key=dims.__getitem__), *others]).reshape(shape)


def _squared_inputs(
    layer: Callable[..., Tensor], x: Tensor, shape: torch.Size, *args: Any, **kwargs: Any
) -> Tensor:
    """Return the sum of the squared inputs of each weight: Σ X_j² = ∂/∂W_ij Σ layer(x², W)."""
    # The layer is linear in W, so this holds at every W, for every stride, padding and dilation.
    # It is linear in x² too, so the examples are summed first; torch sums them pairwise, which is
    # exact enough in float32. The derivative then adds up to millions of positions one by one. So
    # it is computed in float64, which autocast does not change. All outputs of a group have the
    # same inputs, so one output of each group is enough.
    squares = upcast(x).square().unsqueeze(0)  # layers take a single example without a batch, too
    squares = _to_float64(squares.sum(tuple(range(squares.dim() + 1 - len(shape))))).unsqueeze(0)
    groups = squares.shape[1] // shape[1] if layer not in TRANSPOSED and shape[1] else 1
    one = (shape[0], 1, *shape[2:]) if layer in TRANSPOSED else (groups, *shape[1:])
    derivative = torch.func.grad(lambda row: layer(squares, row, None, *args, **kwargs).sum())
    sums: Tensor = derivative(squares.new_zeros(one))
    return sums if groups == 1 else sums.repeat_interleave(shape[0] // groups, 0)


def _squared_rows(x: Tensor, shape: torch.Size) -> Tensor:
    """Return the sum of the squared inputs of each weight in a matrix product.

    Args:
        x: the left factor, (..., rows, inputs).
        shape: the shape of the right factor, (..., inputs, outputs).

    Returns:
        The sums over the rows, (..., inputs, 1), with the batch dims of the weight.
    """
    squares = upcast(x).square()
    squares = _to_float64(squares.unsqueeze(0).sum(-2) if x.dim() == 1 else squares.sum(-2))
    batch = torch.empty(squares.shape[:-1], device="meta") + torch.empty(shape[:-2], device="meta")
    return squares.expand(*batch.shape, shape[-2]).sum_to_size(*shape[:-1]).unsqueeze(-1)


def _to_float64(sums: Tensor) -> Tensor:
    """Return a tensor in float64, on the CPU if its device has no float64."""
    return sums.to(float64_device(sums.device)).to(torch.float64)


def _sum_over_vmaps(squares: Tensor, level: int) -> Tensor:
    """Sum over the batch dims of the `vmap`s that `forward` has started."""
    # A batched tensor cannot be used after its `vmap`, and torch has no public function that
    # returns the tensor inside.
    if torch.compiler.is_compiling():
        return squares
    while _functorch.maybe_get_level(squares) > level:
        dim = _functorch.maybe_get_bdim(squares)
        squares = _functorch.get_unwrapped(squares)
        squares = squares if dim < 0 else squares.sum(dim)
    return squares


def _repeat(row: Tensor | None, weight: Tensor) -> Tensor | None:
    """Expand norms to the shape of their weight, without a copy."""
    return None if row is None else row.to(weight.device, upcast_dtype(weight)).expand(weight.shape)
