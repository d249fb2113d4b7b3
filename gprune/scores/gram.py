"""Gram matrices of the inputs of weights, from which `gprune.reconstruct` rebuilds weights."""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._C import _functorch
from torch._subclasses.fake_tensor import is_fake
from torch.nn import functional as F  # noqa: N812  torch's own name for it

from gprune.scores.losses import flatten_function
from gprune.scores.observer import TRANSPOSED, Region
from gprune.scores.score_map import score_leaves, upcast, upcast_dtype
from gprune.scores.wanda import NormObserver, require_observed
from gprune.sharding import is_sharded, raise_on_all_ranks
from gprune.trees import (
    Tree,
    Where,
    describe_first,
    flatten,
    leaf_names,
    predicate,
    tensor_paths,
)

MAX_UNFOLDED = 2**24
"""The most numbers in the unfolded inputs of a convolution that are in memory at once."""


@raise_on_all_ranks
def input_gram(
    forward: Callable[[Tree, Any], Any],
    params: Tree,
    batches: Iterable[Any],
    *,
    where: Where = None,
) -> Tree:
    """Measure the Gram matrix of the inputs that each weight multiplies, XᵀX, over all batches.

    A weight is seen as a matrix with one row per output and one column per input of that output.
    X has one row per example and position, and the same columns. So an error E of the weight
    changes the outputs by X Eᵀ, and the sum of the squared changes is tr(E XᵀX Eᵀ). The columns of
    a convolution weight of shape (outputs, inputs, *kernel) are its dims 1 and above, flattened.
    Those of a transposed convolution, (inputs, outputs, *kernel), are all dims but dim 1.

    The same layers and products are observed as by `input_norms`, in the same way. The diagonal
    holds the squares of the norms. For n rows of d inputs it takes n d² multiplications besides
    `forward`. A Gram matrix takes 4 d² bytes in float32, so use `where` to observe only the leaves
    that you need. Gram matrices are sums over examples: add those of several calls, or of
    data-parallel ranks, to get those of all examples.

    Args:
        forward: `forward(params, batch)`, any pure function. Its result is not used.
        params: pytree of floating point tensors of any shape and `None`s, as `forward` needs it.
        batches: the batches, of any type, read once.
        where: which leaves to observe: globs of dotted paths, or a predicate `(path, leaf)`, as in
            `prunable`. By default all are.

    Returns:
        A tree of the structure of `params`, with the Gram matrix of each leaf in float32, or in
        float64 for a float64 leaf, in the squared unit of the inputs. Its shape is (d, d) if all
        rows of the weight have the same inputs. It is (g, d, d) if the rows are g consecutive parts
        with inputs of their own, as in a convolution with g groups or in g packed experts. A
        parameter that was not observed has `None`. In float32, products below about 1e-38 are 0.

    Raises:
        TypeError: if a leaf is not a floating point tensor, `forward` is a module, or `batches` is
            one batch.
        ValueError: if there is no batch, no weight was observed, `where` matches no leaf, a squared
            input is not finite, a sum overflows its dtype, or a weight is used in parts that are
            not equal groups of consecutive rows, each with all of its inputs.

    Warns:
        UserWarning: if X has fewer rows than columns. Then the matrix is singular, and weights that
            are rebuilt with it fit only these few inputs.

    Example:
        >>> import torch, gprune as gp
        >>> params = {"bias": torch.zeros(2), "weight": torch.ones(2, 2)}
        >>> forward = lambda params, x: x @ params["weight"].mT + params["bias"]
        >>> gp.scores.input_gram(forward, params, [torch.tensor([[3.0, 0.0], [4.0, 1.0]])])
        {'bias': None, 'weight': tensor([[25.,  4.],
                [ 4.,  1.]])}

    References:
        Frantar & Alistarh, 2023, arXiv:2301.00774, section 3 (H = X Xᵀ, with inputs as columns).
    """
    network, weights, tree_of = flatten_function(forward, params, "forward")
    leaves, treedef = flatten(params)
    is_wanted = (lambda path, leaf: True) if where is None else predicate(where)
    paths = tensor_paths(treedef, leaves)
    is_observed = [is_wanted(path, leaf) for path, leaf in zip(paths, weights, strict=True)]
    if not any(is_observed):
        known = describe_first(paths, repr, ", ")
        raise ValueError(f"where={where!r} matches no leaf of params; the leaves are {known}")
    observer = GramObserver(weights, is_observed)
    observer.watch(network, batches)
    pairs = zip(leaf_names(treedef, "params"), leaves, strict=True)
    names = [name for name, leaf in pairs if leaf is not None]
    if observer.problems:
        wrong = list(observer.problems)
        found = describe_first(wrong, lambda i: f"{names[i]} {observer.problems[i]}")
        raise ValueError(f"{found}; there is no Gram matrix for it: leave it out with where=")
    require_observed(observer.grams)
    score_leaves(torch.sqrt, squared_inputs=tree_of(observer.squares))  # finite, or an error
    _warn_of_few_rows(observer, names)
    grams: list[Any] = [observer.gram_of(i) for i in range(len(weights))]
    return score_leaves(lambda gram: gram, grams=tree_of(grams))  # finite, or an error


class Parts(NamedTuple):
    """Which parts of a weight a product uses. A part is some rows that have the same inputs.

    The parts of a weight form a grid, with one dim for each dim of the rows.

    Attributes:
        grid: how many parts the weight has along each dim of the grid.
        place: the slice of the grid that the product uses, along each dim.
    """

    grid: list[int]
    place: list[slice]


class GramObserver(NormObserver):
    """Sums the products of the inputs of each weight, and their squares in float64.

    Attributes:
        grams: for each weight the sums, of the shape (*grid, columns, columns), with the grid of
            its `Parts`; `None` if it was not observed.
        num_rows: for each weight how many rows of inputs each part has got.
        columns: for each weight the dims of its columns.
        problems: why some weights have no Gram matrix, by the number of the weight.
    """

    def __init__(self, weights: list[Tensor], is_observed: list[bool]) -> None:
        super().__init__(weights, is_observed)
        self.grams: list[Any] = [None] * len(weights)
        self.num_rows: list[Any] = [None] * len(weights)
        self.columns: list[Any] = [None] * len(weights)
        self.problems: dict[int, str] = {}

    def _add_layer(
        self, region: Region, layer: Any, x: Tensor, weight: Tensor, *args: Any, **kwargs: Any
    ) -> None:
        super()._add_layer(region, layer, x, weight, *args, **kwargs)
        if layer is F.linear:
            outputs, inputs = region.dims
            self._add_product_gram(region._replace(dims=[inputs, outputs]), x, weight.mT.shape)
        else:
            self._add_convolution_gram(region, layer, x, weight, *args, **kwargs)

    def _add_convolution_gram(
        self, region: Region, layer: Any, x: Tensor, weight: Tensor, *args: Any, **kwargs: Any
    ) -> None:
        """Add the Gram matrices of the inputs of a convolution, one for each group."""
        shape = self.weights[region.leaf].shape
        if region.dims != list(range(len(shape))) or region.sizes != list(shape):
            self.problems[region.leaf] = "is a convolution weight of which only a part is used"
            return
        examples = x.unsqueeze(0) if x.dim() < weight.dim() else x
        examples = self._merge_vmaps(upcast(examples)).flatten(0, -weight.dim())
        unfold = _unfold_transposed if layer in TRANSPOSED else _unfold
        per_example = x.numel() // max(1, len(examples)) * math.prod(weight.shape[2:])
        gram: Any = 0
        num_rows = 0
        for chunk in torch.split(examples, max(1, MAX_UNFOLDED // max(1, per_example))):
            unfolded = unfold(chunk, weight.shape, *args, **kwargs)
            gram = gram + _products(unfolded)
            num_rows += unfolded.shape[-2]
        columns = [d for d in range(len(shape)) if d != (1 if layer in TRANSPOSED else 0)]
        groups = Parts([len(gram)], [slice(None)])
        self._add_gram(region.leaf, columns, gram, groups, num_rows)

    def _add_product(self, region: Region, x: Tensor, shape: torch.Size) -> None:
        super()._add_product(region, x, shape)
        self._add_product_gram(region, x, shape)

    def _add_grouped_product(self, region: Region, x: Tensor, ends: Tensor) -> None:
        super()._add_grouped_product(region, x, ends)
        starts = [0, *ends.tolist()]
        for group, (start, end) in enumerate(itertools.pairwise(starts)):
            experts, inputs, outputs = region.dims
            expert = region._replace(
                dims=[inputs, outputs],
                starts=[n + group * (d == experts) for d, n in enumerate(region.starts)],
                sizes=[1 if d == experts else n for d, n in enumerate(region.sizes)],
            )
            shape = torch.Size(region.sizes[d] for d in expert.dims)
            self._add_product_gram(expert, x[start:end], shape)

    def gram_of(self, leaf: int) -> Tensor | None:
        """Return the Gram matrices of a weight, `None` if it was not observed.

        The squares of the norms replace the diagonal, because they were summed in float64.
        """
        if self.grams[leaf] is None:
            return None
        weight, columns = self.weights[leaf], self.columns[leaf]
        gram: Tensor = self.grams[leaf].flatten(0, -3).to(upcast_dtype(weight))
        num_parts, num_columns, _ = gram.shape
        if not num_parts:  # the weight has no outputs
            return gram.new_zeros(num_columns, num_columns)
        rows = [d for d in range(weight.dim()) if d not in columns]
        squares = self.squares[leaf]
        squares = squares.full_tensor() if is_sharded([squares]) else squares
        squares = squares.expand(weight.shape).permute(*rows, *columns)
        squares = squares.flatten(len(rows)).flatten(0, len(rows) - 1)
        if squares.shape[1] > num_columns:  # a transposed convolution: its columns are in groups
            diagonal = squares[0].view(num_parts, num_columns)
        else:
            diagonal = squares[:: max(1, len(squares) // num_parts)][:num_parts]
        gram.diagonal(dim1=-2, dim2=-1).copy_(diagonal)
        return gram if num_parts > 1 else gram.squeeze(0)

    def _add_product_gram(self, region: Region, x: Tensor, shape: torch.Size) -> None:
        """Add the Gram matrices of the inputs of a product; see `_add_product`."""
        *batch, inputs, _ = region.dims
        weight = self.weights[region.leaf]
        if inputs is None or region.sizes[inputs] != weight.shape[inputs]:
            self.problems[region.leaf] = "is used in parts, each with only some of its inputs"
            return
        parts = _parts_of(region, weight.shape)
        if parts is None:
            self.problems[region.leaf] = "is used in parts that are not equal, consecutive rows"
            return
        x = upcast(x)
        while x.dim() < len(shape):  # a vector is one row
            x = x.unsqueeze(0)
        gram, num_rows = _grams_of_product(self._merge_vmaps(x), shape)
        # from the batch dims of the product to the dims of the grid
        order = sorted(range(len(batch)), key=lambda i: (batch[i] is None, batch[i] or 0))
        sizes = [place.stop - place.start for place in parts.place]
        gram = gram.permute(*order, -2, -1).reshape(*sizes, *gram.shape[-2:])
        self._add_gram(region.leaf, [inputs], gram, parts, num_rows)

    def _add_gram(
        self, leaf: int, columns: list[int], gram: Tensor, parts: Parts, num_rows: int
    ) -> None:
        """Add a Gram matrix for each of some parts of a weight.

        Args:
            leaf: the number of the weight.
            columns: the dims of its columns.
            gram: the sums, (*sizes of the slices in `parts`, columns, columns).
            parts: the parts.
            num_rows: how many rows of inputs each of them has got.
        """
        shape = torch.Size([*parts.grid, *gram.shape[-2:]])
        if self.grams[leaf] is None:
            self.grams[leaf] = gram.new_zeros(shape)
            self.num_rows[leaf] = torch.zeros(parts.grid, dtype=torch.int64, device="cpu")
            self.columns[leaf] = columns
        if self.grams[leaf].shape != shape or self.columns[leaf] != columns:
            self.problems[leaf] = "is used both as a whole and in parts"
            return
        self.grams[leaf][tuple(parts.place)] += gram
        self.num_rows[leaf][tuple(parts.place)] += num_rows

    def _merge_vmaps(self, x: Tensor) -> Tensor:
        """Return the inputs with the batch dims of the `vmap`s in `forward` as ordinary dims."""
        if torch.compiler.is_compiling():
            return x
        while _functorch.maybe_get_level(x) > self.level:
            dim = _functorch.maybe_get_bdim(x)
            x = _functorch.get_unwrapped(x)
            x = x if dim < 0 else x.movedim(dim, 0)
        return x


def _parts_of(region: Region, shape: torch.Size) -> Parts | None:
    """Return which parts of a weight a product uses.

    Each matrix of a batch has inputs of its own, so it is a part. Without batch dims the region is
    one part.

    Args:
        region: the part of the weight that is a factor, as in `_add_product`.
        shape: the shape of the weight.

    Returns:
        The parts; `None` if the region is not made of equal parts of consecutive rows.
    """
    *batch, inputs, _ = region.dims
    rows = [d for d in range(len(shape)) if d != inputs]
    part = [1 if d in batch else region.sizes[d] for d in rows]
    grid = [shape[d] // max(1, size) for d, size in zip(rows, part, strict=True)]
    starts = [region.starts[d] // max(1, size) for d, size in zip(rows, part, strict=True)]
    is_divided = all(
        size * n == shape[d] and start * size == region.starts[d]
        for d, size, n, start in zip(rows, part, grid, starts, strict=True)
    )
    last = max((i for i, n in enumerate(grid) if n > 1), default=0)  # the last divided dim
    if not is_divided or any(size > 1 for size in part[:last]):
        return None
    counts = [region.sizes[d] if d in batch else 1 for d in rows]
    return Parts(grid, [slice(start, start + n) for start, n in zip(starts, counts, strict=True)])


def _grams_of_product(x: Tensor, shape: torch.Size) -> tuple[Tensor, int]:
    """Return the Gram matrix of the inputs of each matrix in a product with a weight.

    Args:
        x: the left factor, (*examples, *batch, rows, inputs), with the batch dims of the weight, or
            with size 1 in them.
        shape: the shape of the right factor, (*batch, inputs, outputs).

    Returns:
        The Gram matrices, (*batch, inputs, inputs), and how many rows each of them sums.
    """
    num_leading = x.dim() - len(shape)  # the dims of examples, which the weight does not have
    leading, batched = range(num_leading), range(num_leading, x.dim() - 2)
    x = x.permute(*batched, *leading, -2, -1).flatten(len(batched), -2)
    pairs = list(zip(x.shape[:-2], shape[:-2], strict=True))
    num_rows = x.shape[-2] * math.prod([n for n, size in pairs if size == 1])
    gram = _products(x)
    # sum over a batch dim that only the inputs have; repeat along one that only the weight has
    sizes = [*shape[:-2], x.shape[-1], x.shape[-1]]
    gram = gram.sum_to_size([min(n, size) for n, size in zip(gram.shape, sizes, strict=True)])
    return gram.expand(sizes), num_rows


def _warn_of_few_rows(observer: GramObserver, names: list[str]) -> None:
    """Warn of the weights whose Gram matrix sums fewer rows than it has columns."""
    if torch.compiler.is_compiling():
        return
    few = {}
    for i, num_rows in enumerate(observer.num_rows):
        if num_rows is not None and not is_fake(num_rows) and num_rows.numel():
            least = int(num_rows.min())
            if least < (num_columns := observer.grams[i].shape[-1]):
                few[i] = f"{names[i]} has {num_columns} inputs and got {least} rows of them"
    if few:
        warnings.warn(
            f"{describe_first(list(few), few.__getitem__)}: the Gram matrix is singular; pass more "
            "batches, because weights that are rebuilt with it fit only these few inputs",
            stacklevel=4,
        )


def _products(x: Tensor) -> Tensor:
    """Return XᵀX in the dtype of X, also under autocast."""
    with _without_autocast(x.device):
        gram: Any = x.mT @ x
    whole: Tensor = gram.full_tensor() if is_sharded([gram]) else gram
    return whole


def _without_autocast(device: torch.device) -> AbstractContextManager[Any]:
    is_enabled = torch._C._is_any_autocast_enabled()
    return torch.autocast(device.type, enabled=False) if is_enabled else nullcontext()


def _unfold(
    x: Tensor,
    shape: torch.Size,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor:
    """Return the inputs of a convolution as a matrix for each group.

    Args:
        x: the inputs, (examples, channels, *positions).
        shape: the shape of the weight, (outputs, channels / groups, *kernel).
        stride: as in `torch.nn.functional.conv2d`, and so the next three.
        padding: also "valid" and "same".
        dilation: the distance of the entries of the kernel.
        groups: the number of groups.

    Returns:
        The inputs, (groups, examples * positions of the output, channels / groups * kernel).
    """
    kernel = shape[2:]
    dilations = _per_dim(dilation, len(kernel))
    spans = [d * (k - 1) for k, d in zip(kernel, dilations, strict=True)]
    if padding == "same":
        pads = [(span // 2, span - span // 2) for span in spans]
    else:
        sizes = _per_dim(0 if padding == "valid" else padding, len(kernel))
        pads = [(n, n) for n in sizes]
    x = F.pad(x, [n for pair in reversed(pads) for n in pair])
    return _windows(x, spans, _per_dim(stride, len(kernel)), dilations, groups)


def _unfold_transposed(
    x: Tensor,
    shape: torch.Size,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: int = 1,
    dilation: Any = 1,
) -> Tensor:
    """Return the inputs of a transposed convolution as a matrix for each group; see `_unfold`.

    A transposed convolution is a convolution of the inputs, with zeros between them, and the
    flipped kernel.
    """
    kernel = shape[2:]
    dilations = _per_dim(dilation, len(kernel))
    spans = [d * (k - 1) for k, d in zip(kernel, dilations, strict=True)]
    strides = _per_dim(stride, len(kernel))
    sizes = [(n - 1) * step + 1 for n, step in zip(x.shape[2:], strides, strict=True)]
    spread = x.new_zeros(*x.shape[:2], *sizes)
    steps = [slice(None, None, step) for step in strides]
    spread[:, :, *steps] = x
    pads = [
        (span - n, span - n + extra)
        for span, n, extra in zip(
            spans,
            _per_dim(padding, len(kernel)),
            _per_dim(output_padding, len(kernel)),
            strict=True,
        )
    ]
    spread = F.pad(spread, [n for pair in reversed(pads) for n in pair])
    return _windows(spread, spans, [1] * len(kernel), dilations, groups, flip=True)


def _windows(
    x: Tensor,
    spans: list[int],
    strides: list[int],
    dilations: list[int],
    groups: int,
    flip: bool = False,
) -> Tensor:
    """Return the windows of a kernel over padded inputs as the rows of a matrix for each group."""
    dims = range(2, x.dim())
    for dim, span, stride, dilation in zip(dims, spans, strides, dilations, strict=True):
        x = x.unfold(dim, span + 1, stride)[..., ::dilation]
    if flip:
        x = x.flip(list(range(-len(spans), 0)))
    x = torch.unflatten(x, 1, (groups, -1))
    examples, positions = 0, [d + 1 for d in dims]
    kernel = range(x.dim() - len(spans), x.dim())
    x = x.permute(1, examples, *positions, 2, *kernel)
    return x.flatten(2 + len(spans)).flatten(1, -2)


def _per_dim(value: Any, num_dims: int) -> list[int]:
    """Return a number for each dim of a kernel, from one number or from several."""
    numbers = [value] if isinstance(value, int) else list(value)
    return numbers * num_dims if len(numbers) == 1 else numbers
