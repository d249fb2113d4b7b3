"""Observing the inputs of weights: which tensors a forward function multiplies with each weight.

`InputObserver` watches torch's functions while a forward function runs. For each layer and matrix
product it finds the weight, or the part of a weight, that is a factor, and passes on the inputs of
this weight. A subclass sums them up: `input_norms` their squares, `input_gram` their products.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._C import _functorch
from torch.nn import functional as F  # noqa: N812  torch's own name for it
from torch.overrides import TorchFunctionMode

from gprune.inputs import PLAIN, unwrap
from gprune.scores.score_map import require_batches

CONVOLUTIONS = (F.conv1d, F.conv2d, F.conv3d)

TRANSPOSED = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)
"""Transposed convolutions, whose weights have the shape (inputs, outputs / groups, *kernel)."""

LAYERS = (F.linear, *CONVOLUTIONS, *TRANSPOSED)
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
"""The keyword arguments that are factors of a product, in the order of the factors."""


class Region(NamedTuple):
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


class InputObserver(TorchFunctionMode, ABC):
    """Passes on the inputs of each weight while torch's functions are called.

    Args:
        weights: the tensors that the forward function gets.
        is_observed: for each of them whether to observe its inputs. Those of vectors never are.
    """

    def __init__(self, weights: list[Tensor], is_observed: list[bool]) -> None:
        super().__init__()
        self.weights = weights
        pairs = enumerate(zip(weights, is_observed, strict=True))
        self.index_of = {
            id(weight): i for i, (weight, wanted) in pairs if wanted and weight.dim() > 1
        }
        self.indices_by_storage: dict[int | None, list[int]] = {}
        for i in self.index_of.values():
            self.indices_by_storage.setdefault(_storage_of(weights[i]), []).append(i)
        self.level = _transform_level()  # tensors of a higher level are of a `vmap` in `forward`

    @abstractmethod
    def _add_layer(
        self, region: Region, layer: Any, x: Tensor, weight: Tensor, *args: Any, **kwargs: Any
    ) -> None:
        """Add the inputs of `layer(x, weight, bias, *args, **kwargs)`."""

    @abstractmethod
    def _add_product(self, region: Region, x: Tensor, shape: torch.Size) -> None:
        """Add the inputs x, (..., rows, inputs), of a weight of a shape (..., inputs, outputs)."""

    @abstractmethod
    def _add_grouped_product(self, region: Region, x: Tensor, ends: Tensor) -> None:
        """Add the inputs x, (rows, inputs), of a weight of the shape (groups, inputs, outputs).

        The rows of group g end before row `ends[g]`. The rows after the last group have no weight.
        """

    def watch(self, network: Callable[[list[Tensor], Any], Any], batches: Iterable[Any]) -> None:
        """Call a network on batches, and pass on the inputs.

        Args:
            network: a function of the weights and a batch.
            batches: the batches, read once.

        Raises:
            TypeError: if `batches` is one batch.
            ValueError: if there is no batch.
        """
        require_batches(batches)
        done = 0
        for batch in batches:
            with torch.no_grad(), self:
                network(self.weights, batch)
            done += 1
        if done == 0:
            raise ValueError("batches is empty: there are no inputs to measure")

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
        region = self._region_of(weight)
        if region is not None:
            self._add_layer(region, layer, input, weight, *args, **kwargs)

    def _observe_product(self, left: Tensor, right: Tensor) -> None:
        """Observe left @ right. The weight is the right factor, or else the left one."""
        if (region := self._region_of(right)) is not None:
            self._add_product(region, left, right.shape)
        elif (region := self._region_of(left)) is not None:
            columns = right.unsqueeze(-1) if right.dim() == 1 else right
            *batch, outputs, inputs = region.dims
            region = region._replace(dims=[*batch, inputs, outputs])
            self._add_product(region, columns.mT, left.mT.shape)

    def _observe_grouped_product(
        self, rows: Tensor, weight: Tensor, offs: Tensor | None = None, *args: Any, **kwargs: Any
    ) -> None:
        """Observe the products of consecutive groups of rows, each with its own matrix."""
        region = self._region_of(weight)
        if region is not None and offs is not None and rows.dim() == 2 and weight.dim() == 3:
            self._add_grouped_product(region, rows, offs)

    def _region_of(self, tensor: Any) -> Region | None:
        """Return the part of a weight that a tensor shows; `None` if it shows no weight."""
        index = self.index_of.get(id(tensor))
        if index is not None:
            dims = list(range(tensor.dim()))
            return Region(index, dims, [0] * len(dims), list(tensor.shape))
        storage = _storage_of(tensor)
        if storage is None or tensor.dim() < 2:
            return None
        [tensor] = unwrap([tensor])
        regions = (
            _region_of_view(i, self.weights[i], tensor)
            for i in self.indices_by_storage.get(storage, [])
        )
        return next((region for region in regions if region is not None), None)


def _storage_of(tensor: Tensor) -> int | None:
    """Return an identifier of the memory of a tensor, or `None` if it is not known."""
    if torch.compiler.is_compiling() or not isinstance(tensor, Tensor):
        return None
    while _functorch.is_functorch_wrapped_tensor(tensor):
        if _functorch.is_batchedtensor(tensor):
            return None  # each element of the batch has another matrix
        tensor = _functorch.get_unwrapped(tensor)
    # other types, such as DTensor, do not say where in their memory a view begins
    is_plain = type(tensor) in PLAIN and tensor.layout == torch.strided and not tensor.is_nested
    return tensor.untyped_storage()._cdata if is_plain and tensor.numel() else None


def _region_of_view(index: int, weight: Tensor, view: Tensor) -> Region | None:
    """Return the part of a weight that a tensor shows, `None` if it is no view of the weight.

    The two share their memory, so their offsets and strides are compared.
    """
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
    return Region(index, dims, starts, sizes) if is_inside and offset == 0 else None


def _transform_level() -> int:
    """Return how many `torch.func` transforms are active, or 0 while tracing."""
    return 0 if torch.compiler.is_compiling() else _functorch.maybe_current_level() or 0
