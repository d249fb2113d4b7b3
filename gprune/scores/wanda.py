"""Wanda: the weight times the norm of its inputs, from activations without gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._C import _functorch
from torch.nn import functional as F  # noqa: N812  torch's own name for it
from torch.overrides import TorchFunctionMode

from gprune.inputs import PLAIN, float64_device, unwrap
from gprune.scores.losses import flatten_function
from gprune.scores.score_map import (
    NORMS_ARE_MAGNITUDES,
    floating_leaves,
    require_batches,
    require_norms,
    score_leaves,
    upcast,
    upcast_dtype,
)
from gprune.sharding import raise_on_all_ranks
from gprune.trees import Tree, leaves_like, map_leaves

LAYERS = (F.linear, F.conv1d, F.conv2d, F.conv3d)
"""The observed layers. Each is linear in its second argument, the weight."""

PRODUCTS = {
    torch.matmul: 0,
    torch.mm: 0,
    torch.bmm: 0,
    torch.addmm: 1,
    torch.baddbmm: 1,
    Tensor.matmul: 0,
    Tensor.mm: 0,
    Tensor.bmm: 0,
    Tensor.addmm: 1,
    Tensor.baddbmm: 1,
    Tensor.__matmul__: 0,
}
"""The observed matrix products, and the place of the first factor among their arguments."""

FACTOR_NAMES = ("mat1", "batch1", "other", "mat2", "batch2")
"""The keyword arguments that are factors of a product, in their order."""


@raise_on_all_ranks
def wanda(params: Tree, input_norms: Tree) -> Tree:
    """Score each entry by the norm of its contribution to the output: |W_ij| ‖X_j‖₂.

    For a linear layer the square of the score is exactly the squared error of the output, summed
    over all inputs, if that one weight is removed. The paper compares the weights of each output:
    `layerwise(weights, scores, amount=0.5, dim=gprune.input_dims)`. `input_dims` takes the first
    dim for the outputs. For weights of other layouts pass a function `(path, leaf) -> dim` that
    returns the dim of the inputs: 0 for the `Conv1D` of GPT-2, and for packed experts 1 or 2.

    Args:
        params: pytree of floating point tensors of any shape; `None` stays `None`. Parameters that
            `input_norms` has not observed must be `None`: pass `prunable(params)`, and leave out
            with `exclude` what the error names.
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

    Observed are `F.linear`, `F.conv1d` to `F.conv3d`, and the matrix products `@`, `matmul`, `mm`,
    `bmm`, `addmm`, `baddbmm` and `F.grouped_mm` inside `forward`, also through `functional_call`
    and under `vmap`, but not inside a compiled function. A weight is recognised by its memory, so
    it may be transposed, split or indexed by a number, as in `experts[i]`. So the weights of GPT-2
    (`Conv1D`, of shape (inputs, outputs)) and the packed experts of a mixture are observed. A
    weight that is copied first, as in `experts[indices]`, or passed to a fused function, such as
    those of LSTM, GRU and multi-head attention, is not observed, and neither are parts of a
    DTensor. No module is changed, and only one batch at a time is in memory. The norms are added up
    in float64, on the CPU if the device has no float64.

    Args:
        forward: `forward(params, batch)`, any pure function. Its result is not used.
        params: pytree of floating point tensors of any shape and `None`s, as `forward` needs it.
        batches: the batches, of any type, read once.

    Returns:
        Detached norms, in float32 at least, in the unit of the inputs. Each has the shape of its
        weight, expanded without a copy along the outputs. `None` for parameters that were not
        observed, and 0 for experts that got no input.

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
            "forward passed no tensor of params as the weight of a linear or convolution function, "
            "or as a factor of a matrix product"
        )
    rows = score_leaves(torch.sqrt, squared_inputs=tree_of(observer.squares))
    return map_leaves(_repeat, rows, params)


class _Observer(TorchFunctionMode):
    """Sums the squared inputs of each weight while torch's functions are called."""

    def __init__(self, weights: list[Tensor]) -> None:
        super().__init__()
        self.weights = weights
        self.index_of = {id(weight): i for i, weight in enumerate(weights) if weight.dim() > 1}
        self.with_storage: dict[int | None, list[int]] = {}
        for i in self.index_of.values():
            self.with_storage.setdefault(_storage_of(weights[i]), []).append(i)
        self.squares: list[Any] = [None] * len(weights)
        self.level = _transform_level()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if func in LAYERS:
            self._observe_layer(func, *args, **kwargs)
        elif func in PRODUCTS:
            factors = [*args, *(kwargs[name] for name in FACTOR_NAMES if name in kwargs)]
            self._observe_product(*factors[PRODUCTS[func] :][:2])
        elif func is torch._grouped_mm:  # which F.grouped_mm calls
            self._observe_grouped_product(*args, **kwargs)
        return result

    def _observe_layer(
        self, layer: Any, input: Tensor, weight: Tensor, bias: Any = None, *args: Any, **kwargs: Any
    ) -> None:
        region = self._find(weight)
        if region is not None:
            self._add(region, _squared_inputs(layer, input, weight.shape, *args, **kwargs))

    def _observe_product(self, left: Tensor, right: Tensor) -> None:
        """Observe left @ right: the weight is the right factor, or the left one if that is none."""
        if (region := self._find(right)) is not None:
            self._add(region, _squared_rows(left, right.shape))
        elif (region := self._find(left)) is not None:
            columns = right.unsqueeze(-1) if right.dim() == 1 else right
            self._add(region, _squared_rows(columns.mT, left.mT.shape).mT)

    def _observe_grouped_product(
        self, rows: Tensor, weight: Tensor, offs: Tensor | None = None, *args: Any, **kwargs: Any
    ) -> None:
        """Observe the products of consecutive groups of rows, each with its own matrix."""
        region = self._find(weight)
        if region is None or offs is None or rows.dim() != 2 or weight.dim() != 3:
            return
        group = torch.searchsorted(offs, torch.arange(len(rows), device=offs.device), right=True)
        squares = _to_float64(upcast(rows).square())
        sums = squares.new_zeros(len(offs) + 1, rows.shape[1])  # the last: rows of no group
        sums.index_add_(0, group.to(sums.device), squares)
        self._add(region, sums[:-1].unsqueeze(-1))

    def _find(self, tensor: Any) -> _Region | None:
        """Find the weight that a tensor is, or is a view of."""
        index = self.index_of.get(id(tensor))
        if index is not None:
            dims = list(range(tensor.dim()))
            return _Region(index, dims, [0] * len(dims), list(tensor.shape))
        storage = _storage_of(tensor)
        if storage is None or tensor.dim() < 2:
            return None
        [tensor] = unwrap([tensor])
        regions = (
            _region_of_view(i, self.weights[i], tensor) for i in self.with_storage.get(storage, [])
        )
        return next((region for region in regions if region is not None), None)

    def _add(self, region: _Region, squares: Tensor) -> None:
        """Add the squares of a part of a weight, which have size 1 in dims where all are equal."""
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


class _Region(NamedTuple):
    """The part of a weight that a view of it shows.

    Attributes:
        leaf: the number of the weight.
        dims: for each dim of the view the dim of the weight that it runs along; `None` for a dim of
            size 1 that runs along none.
        starts: the first index of the part in each dim of the weight.
        sizes: how many indices it has in each dim of the weight.
    """

    leaf: int
    dims: list[Any]
    starts: list[int]
    sizes: list[int]


def _storage_of(tensor: Tensor) -> int | None:
    """Return what identifies the memory of a tensor, or `None` if that is not known."""
    if torch.compiler.is_compiling() or not isinstance(tensor, Tensor):
        return None
    while _functorch.is_functorch_wrapped_tensor(tensor):
        if _functorch.is_batchedtensor(tensor):
            return None  # another matrix for each element of the batch
        tensor = _functorch.get_unwrapped(tensor)
    # other types, such as DTensor, do not say where in their memory a view begins
    is_plain = type(tensor) in PLAIN and tensor.layout == torch.strided and not tensor.is_nested
    return tensor.untyped_storage()._cdata if is_plain and tensor.numel() else None


def _region_of_view(index: int, weight: Tensor, view: Tensor) -> _Region | None:
    """Return the part of a weight that a tensor of the same memory shows, if it is a view of it."""
    offset = view.storage_offset() - weight.storage_offset()
    starts = [0] * weight.dim()
    for dim in sorted(range(weight.dim()), key=weight.stride, reverse=True):
        if weight.shape[dim] > 1 and weight.stride(dim):
            starts[dim] = int(offset // weight.stride(dim))
            offset %= weight.stride(dim)
    dims, sizes = [], [1] * weight.dim()
    for size, stride in zip(view.shape, view.stride(), strict=True):
        fitting = [
            dim
            for dim in range(weight.dim())
            if weight.stride(dim) == stride and dim not in dims and weight.shape[dim] > 1
        ]
        if size > 1 and not fitting:
            return None
        dims.append(fitting[0] if size > 1 else None)
        if size > 1:
            sizes[fitting[0]] = size
    is_inside = all(
        start >= 0 and start + size <= full
        for start, size, full in zip(starts, sizes, weight.shape, strict=True)
    )
    return _Region(index, dims, starts, sizes) if is_inside and offset == 0 else None


def _in_order_of_weight(squares: Tensor, dims: list[Any], num_dims: int) -> Tensor:
    """Bring the dims of the squares of a view into the order of its weight."""
    places = [at for at, dim in enumerate(dims) if dim is not None]
    others = [at for at, dim in enumerate(dims) if dim is None]
    shape = [1] * num_dims
    for at in places:
        shape[dims[at]] = squares.shape[at]
    return squares.permute([*sorted(places, key=dims.__getitem__), *others]).reshape(shape)


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
    squares = _to_float64(squares.sum(tuple(range(squares.dim() + 1 - len(shape))))).unsqueeze(0)
    row = squares.new_zeros(groups, *shape[1:])
    derivative = torch.func.grad(lambda row: layer(squares, row, None, *args, **kwargs).sum())
    sums: Tensor = derivative(row)
    return sums if groups == 1 else sums.repeat_interleave(shape[0] // groups, 0)


def _squared_rows(x: Tensor, shape: torch.Size) -> Tensor:
    """Sum the squared inputs of each weight of the product of x with a weight of a shape.

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
    """Expand norms to the shape of their weight, without a copy."""
    return None if row is None else row.to(weight.device, upcast_dtype(weight)).expand(weight.shape)
