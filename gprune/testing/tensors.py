"""Hypothesis strategies for single tensors, of every dtype that scores may have, in any layout.

Their entries are often those that break a selection: ties, NaN, infinities, -0.0, denormals, and
neighbours that are equal in a narrower dtype.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, TypeAlias

import numpy as np
import torch
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from hypothesis.strategies import DrawFn, SearchStrategy
from torch import Tensor

Shape: TypeAlias = tuple[int, ...]

SCORE_DTYPES: tuple[torch.dtype, ...] = (
    torch.float32,
    torch.float64,
    torch.float16,
    torch.bfloat16,
    torch.int64,
    torch.int32,
    torch.int16,
    torch.int8,
    torch.uint8,
)
"""The dtypes that scores may have, simplest first."""

_MAX_ENTRIES = 12
_EXACT_INT = 2**53  # the largest magnitude an int64 score may have

# numpy has no bfloat16, so bfloat16 is drawn as float32 and rounded by the cast
_CARRIERS = {torch.bfloat16: np.float32} | {
    dtype: getattr(np, str(dtype).removeprefix("torch."))
    for dtype in SCORE_DTYPES
    if dtype is not torch.bfloat16
}

# values that differ in one dtype and are equal in another, and the ends of every dtype's range
_CORNERS: tuple[float, ...] = (
    *(0, 1, 2, 3, -1, 0.5, -0.0, math.nan, math.inf, -math.inf),
    *(1 + 2**-7, 1 + 2**-10, 1 + 2**-23, 1 + 2**-52),
    *(127, 128, -127, -128, 255, 256, 257, 2048, 2049, 32767, -32768, 65504),
    *(2**24, 2**24 + 1, 2**31 - 1, -(2**31), _EXACT_INT - 1, _EXACT_INT, -_EXACT_INT),
    *(2.0**-24, 2.0**-133, 2.0**-149, 2.0**-1074, -(2.0**-1074)),  # the smallest denormals
    *(torch.finfo(torch.float32).max, torch.finfo(torch.bfloat16).max),
    *(torch.finfo(torch.float64).max, -torch.finfo(torch.float64).max),
)
_FEW = _CORNERS[:5]
_INFINITE = (1.0, math.nan, math.inf, -math.inf)
_UNORDERED = (1.0, math.nan)
_ZEROS = (0.0, -0.0)


@st.composite
def tensors(
    draw: DrawFn,
    *,
    dtypes: Sequence[torch.dtype] = SCORE_DTYPES,
    shapes: SearchStrategy[Shape] | None = None,
) -> Tensor:
    """Draw one tensor, in any layout.

    Args:
        draw: passed by hypothesis.
        dtypes: the dtypes to draw from, a subset of `SCORE_DTYPES`, simplest first.
        shapes: strategy for the shape. By default 0 to 4 dimensions and at most 12 entries, often
            no entries.

    Returns:
        A tensor whose entries are a few different values, all equal, equal along one dimension,
        corner cases of its dtype, or any values of its dtype (int64 within 2^53).

    Example:
        >>> from hypothesis import given
        >>> @given(tensors(dtypes=[torch.bfloat16]))
        ... def test_bfloat16_is_exact_in_float32(tensor):
        ...     assert tensor.float().bfloat16().equal(tensor) or tensor.isnan().any()
        >>> test_bfloat16_is_exact_in_float32()
    """
    dtype = draw(among(*dtypes))
    shape = tuple(draw(_small_shapes() if shapes is None else shapes))
    elements = draw(among(*_element_strategies(dtype)))
    dims = [dim for dim, size in enumerate(shape) if size > 1]
    repeated = draw(among((), (), (), tuple(dims), *((dim,) for dim in dims)))
    base = tuple(1 if dim in repeated else size for dim, size in enumerate(shape))
    array = draw(arrays(_CARRIERS[dtype], base, elements))
    tensor = torch.from_numpy(np.broadcast_to(array, shape).copy()).to(dtype)
    return draw(layouts(tensor))


@st.composite
def layouts(draw: DrawFn, tensor: Tensor) -> Tensor:
    """Draw a tensor with the same entries in some memory layout.

    Args:
        draw: passed by hypothesis.
        tensor: any shape and dtype.

    Returns:
        The tensor unchanged; transposed in memory; strided, inside a larger storage; channels-last,
        if it has four dimensions; or expanded (stride 0), if its entries are equal along a
        dimension of size two or more.

    Example:
        >>> from hypothesis import given
        >>> @given(layouts(torch.eye(3)))
        ... def test_the_layout_does_not_matter(tensor):
        ...     assert tensor.equal(torch.eye(3))
        >>> test_the_layout_does_not_matter()
    """
    choices: list[Callable[[Tensor], Tensor]] = [_as_it_is]
    if tensor.dim() >= 1:
        choices.append(_strided)
    if tensor.dim() >= 2:
        choices.append(_transposed)
    if tensor.dim() == 4:
        choices.append(_channels_last)
    if any(_is_repeated(tensor, dim) for dim in range(tensor.dim())):
        choices.append(_expanded)
    lay_out: Callable[[Tensor], Tensor] = draw(among(*choices))
    return lay_out(tensor)


# Building a strategy takes hypothesis longer than drawing from it, so each is built once.


@cache
def among(*options: Any) -> SearchStrategy[Any]:
    """Return `sampled_from(options)`, cached."""
    return st.sampled_from(options)


@cache
def arrays(
    dtype: type[np.generic], shape: Shape, elements: SearchStrategy[Any]
) -> SearchStrategy[Any]:
    """Return `hnp.arrays` that draws every entry, cached."""
    return hnp.arrays(dtype, shape, elements=elements, fill=st.nothing())


@cache
def _small_shapes() -> SearchStrategy[Shape]:
    """Return a strategy for shapes of 0 to 4 dimensions with at most 12 entries."""
    vectors = st.integers(1, _MAX_ENTRIES).map(lambda size: (size,))
    blocks = hnp.array_shapes(min_dims=0, max_dims=3, min_side=1, max_side=3)
    images = hnp.array_shapes(min_dims=4, max_dims=4, min_side=1, max_side=2)
    empty = hnp.array_shapes(min_dims=1, max_dims=3, min_side=0, max_side=2)
    return st.one_of(vectors, blocks, images, empty).filter(
        lambda shape: math.prod(shape) <= _MAX_ENTRIES
    )


@cache
def _element_strategies(dtype: torch.dtype) -> tuple[SearchStrategy[Any], ...]:
    """Return strategies for a few values with many ties, for corner cases, and for any value."""
    pools = [_FEW, _CORNERS]
    if dtype.is_floating_point:
        pools += [_UNORDERED, _INFINITE, _ZEROS]
    held = [[value for value in pool if _holds(dtype, value)] for pool in pools]
    return (*map(st.sampled_from, held), _anything(dtype))


@cache
def _anything(dtype: torch.dtype) -> SearchStrategy[Any]:
    if dtype.is_floating_point:
        return hnp.from_dtype(np.dtype(_CARRIERS[dtype]))
    info = torch.iinfo(dtype)
    return st.integers(max(info.min, -_EXACT_INT), min(info.max, _EXACT_INT))


def _holds(dtype: torch.dtype, value: float) -> bool:
    """Return whether the dtype holds the value exactly."""
    if dtype.is_floating_point:
        back = torch.tensor(value, dtype=torch.float64).to(dtype).item()
        return back == value or math.isnan(value)
    info = torch.iinfo(dtype)
    return isinstance(value, int) and info.min <= value <= info.max


def _as_it_is(tensor: Tensor) -> Tensor:
    return tensor


def _strided(tensor: Tensor) -> Tensor:
    storage = tensor.new_zeros((*tensor.shape[:-1], 2 * tensor.shape[-1] + 1))
    return storage[..., 1::2].copy_(tensor)


def _transposed(tensor: Tensor) -> Tensor:
    return tensor.transpose(0, -1).contiguous().transpose(0, -1)


def _channels_last(tensor: Tensor) -> Tensor:
    return tensor.contiguous(memory_format=torch.channels_last)


def _expanded(tensor: Tensor) -> Tensor:
    for dim in range(tensor.dim()):
        if _is_repeated(tensor, dim):
            tensor = tensor.narrow(dim, 0, 1).expand_as(tensor)
    return tensor


def _is_repeated(tensor: Tensor, dim: int) -> bool:
    """Return whether all entries along a dimension have the same bits (so NaN equals itself)."""
    if tensor.numel() == 0 or tensor.size(dim) == 1:
        return False
    rows = tensor.movedim(dim, 0).clone(memory_format=torch.contiguous_format)
    rows = rows.view(rows.size(0), -1).view(torch.uint8)
    return bool((rows == rows[:1]).all())
