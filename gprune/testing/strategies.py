"""Hypothesis strategies for parameter trees, scores and prior masks.

They often draw the cases that break a selection: ties at the threshold, NaN, infinities, -0.0,
denormals, values that are equal in a narrower dtype; `None` leaves, leaves of different dtypes,
empty and 0-dim leaves, any memory layout; and prior masks that leave nothing to prune. A failing
tree shrinks to a single small float32 leaf, if that fails too.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple, TypeAlias

import optree
import torch
from torch import Tensor

from gprune.trees import Tree, flatten, map_leaves

try:
    from hypothesis import strategies as st
    from hypothesis.strategies import DrawFn, SearchStrategy
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        'gprune.testing needs hypothesis: pip install "gprune[testing]"', name=error.name
    ) from None

Shape: TypeAlias = tuple[int, ...]

SCORE_DTYPES: tuple[torch.dtype, ...] = (
    *(torch.float32, torch.float64, torch.float16, torch.bfloat16),
    *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8),
)
"""The dtypes that scores may have, simplest first."""

_MAX_ENTRIES = 12
_EXACT_INT = 2**53  # the largest magnitude an int64 score may have

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
_FEW = _CORNERS[:5]  # with many ties
_SPECIAL = ((1.0, math.nan), (1.0, math.nan, math.inf, -math.inf), (0.0, -0.0))


class Pair(NamedTuple):
    """A named tuple, one kind of node of the drawn trees."""

    first: Tree
    second: Tree


# "" is the global namespace; mypy takes the decorator for the standard library's
@optree.dataclasses.dataclass(namespace="", eq=False)  # type: ignore[call-overload]
class Box:
    """A custom node of the drawn trees, registered in optree's global namespace."""

    inside: Tree
    beside: Tree


@st.composite
def param_trees(draw: DrawFn, *, dtypes: Sequence[torch.dtype] = SCORE_DTYPES) -> Tree:
    """Draw a parameter tree.

    Args:
        draw: passed by hypothesis.
        dtypes: the dtypes to draw from, a subset of `SCORE_DTYPES`. In about half of the trees all
            leaves have the same dtype.

    Returns:
        A tree of at least one tensor: a bare tensor, or dicts, lists, tuples, `OrderedDict`s,
        named tuples (`Pair`) and custom nodes (`Box`), nested up to three deep. Some nodes are
        empty, and some leaves are `None`.

    Example:
        >>> from hypothesis import given, settings, strategies as st
        >>> import gprune as gp
        >>> from gprune.testing import param_trees, prior_masks, scores_for
        >>> @settings(deadline=None)  # the first call of an operator is slow
        ... @given(st.data())
        ... def test_nothing_comes_back(data):
        ...     params = data.draw(param_trees())
        ...     scores, masks = data.draw(scores_for(params)), data.draw(prior_masks(params))
        ...     more = gp.global_unstructured(params, scores, masks=masks, amount=0.5)
        ...     assert gp.num_pruned(more) >= gp.num_pruned(masks)
        >>> test_nothing_comes_back()
    """
    return draw(_trees(draw(_pools(tuple(dtypes)))))


@st.composite
def scores_for(draw: DrawFn, params: Tree, *, dtypes: Sequence[torch.dtype] = SCORE_DTYPES) -> Tree:
    """Draw scores for a parameter tree.

    Args:
        draw: passed by hypothesis.
        params: pytree of tensors and `None`s.
        dtypes: the dtypes to draw from, a subset of `SCORE_DTYPES`. They need not be those of the
            parameters.

    Returns:
        A tree of the same structure and shapes, `None` where `params` has `None`.

    Example:
        >>> import torch
        >>> from hypothesis import given
        >>> from gprune.testing import scores_for
        >>> @given(scores_for({"weight": torch.ones(2, 3), "bias": None}))
        ... def test_shapes(scores):
        ...     assert scores["weight"].shape == (2, 3) and scores["bias"] is None
        >>> test_shapes()
    """

    def score(leaf: Tensor | None) -> Tensor | None:
        return None if leaf is None else draw(tensors(dtypes=pool, shapes=st.just(leaf.shape)))

    pool = draw(_pools(tuple(dtypes)))
    return map_leaves(score, params)


@st.composite
def prior_masks(draw: DrawFn, params: Tree) -> Tree:
    """Draw the masks of an earlier pruning.

    Args:
        draw: passed by hypothesis.
        params: pytree of tensors and `None`s.

    Returns:
        A tree of bool tensors (True = keep) of the same structure and shapes, in any memory layout,
        `None` where `params` has `None`. Often they keep everything, or nothing.

    Example:
        >>> import torch, gprune as gp
        >>> from hypothesis import given
        >>> from gprune.testing import prior_masks
        >>> @given(prior_masks({"weight": torch.ones(2, 3)}))
        ... def test_all_that_is_kept_is_pruned(masks):
        ...     new = gp.global_unstructured({"weight": torch.ones(2, 3)}, masks=masks, amount=1.0)
        ...     assert gp.num_pruned(new) == 6
        >>> test_all_that_is_kept_is_pruned()
    """
    some = _among(True, False)
    keeps = draw(_among(_among(True), some, some, some, _among(False)))

    def mask(leaf: Tensor | None) -> Tensor | None:
        if leaf is None:
            return None
        entries = draw(_lists(keeps, leaf.numel()))
        return draw(layouts(torch.tensor(entries, dtype=torch.bool).reshape(leaf.shape)))

    return map_leaves(mask, params)


@st.composite
def tensors(
    draw: DrawFn,
    *,
    dtypes: Sequence[torch.dtype] = SCORE_DTYPES,
    shapes: SearchStrategy[Shape] | None = None,
) -> Tensor:
    """Draw one tensor, in any memory layout.

    Args:
        draw: passed by hypothesis.
        dtypes: the dtypes to draw from, a subset of `SCORE_DTYPES`, simplest first.
        shapes: strategy for the shape. By default 0 to 4 dimensions and at most 12 entries, often
            no entries.

    Returns:
        A tensor whose entries are a few different values, all equal, equal along one dimension,
        corner cases of its dtype, or any values of its dtype (int64 within 2^53).

    Example:
        >>> import torch
        >>> from hypothesis import given
        >>> from gprune.testing import tensors
        >>> @given(tensors(dtypes=[torch.bfloat16]))
        ... def test_bfloat16_is_exact_in_float32(tensor):
        ...     assert tensor.float().bfloat16().equal(tensor) or tensor.isnan().any()
        >>> test_bfloat16_is_exact_in_float32()
    """
    dtype = draw(_among(*dtypes))
    shape = tuple(draw(_small_shapes() if shapes is None else shapes))
    elements = draw(_among(*_element_strategies(dtype)))
    dims = [dim for dim, size in enumerate(shape) if size > 1]
    repeated = draw(_among((), (), (), tuple(dims), *((dim,) for dim in dims)))
    base = tuple(1 if dim in repeated else size for dim, size in enumerate(shape))
    entries = torch.tensor(draw(_lists(elements, math.prod(base))), dtype=dtype)
    return draw(layouts(entries.reshape(base).expand(shape).contiguous()))


@st.composite
def layouts(draw: DrawFn, tensor: Tensor) -> Tensor:
    """Draw a tensor with the same entries in some memory layout, the given one among them."""
    repeated = [dim for dim in range(tensor.dim()) if _is_repeated(tensor, dim)]
    choices = ["as it is"]
    choices += ["strided"] if tensor.dim() >= 1 else []
    choices += ["transposed"] if tensor.dim() >= 2 else []
    choices += ["channels-last"] if tensor.dim() == 4 else []
    choices += ["expanded"] if repeated else []
    layout = draw(_among(*choices))
    if layout == "strided":
        storage = tensor.new_zeros((*tensor.shape[:-1], 2 * tensor.shape[-1] + 1))
        return storage[..., 1::2].copy_(tensor)
    if layout == "transposed":
        return tensor.transpose(0, -1).contiguous().transpose(0, -1)
    if layout == "channels-last":
        return tensor.contiguous(memory_format=torch.channels_last)
    if layout == "expanded":
        for dim in repeated:
            tensor = tensor.narrow(dim, 0, 1).expand_as(tensor)
    return tensor


def _is_repeated(tensor: Tensor, dim: int) -> bool:
    """Return whether all entries along a dimension have the same bits (so NaN equals itself)."""
    if tensor.numel() == 0 or tensor.size(dim) == 1:
        return False
    rows = tensor.movedim(dim, 0).clone(memory_format=torch.contiguous_format)
    rows = rows.view(rows.size(0), -1).view(torch.uint8)
    return bool((rows == rows[:1]).all())


# Building a strategy takes hypothesis longer than drawing from it, so each is built once.


@cache
def _among(*options: Any) -> SearchStrategy[Any]:
    return st.sampled_from(options)


@cache
def _lists(elements: SearchStrategy[Any], size: int) -> SearchStrategy[list[Any]]:
    return st.lists(elements, min_size=size, max_size=size)


@cache
def _pools(dtypes: tuple[torch.dtype, ...]) -> SearchStrategy[tuple[torch.dtype, ...]]:
    """Return a strategy for the dtypes of one tree: a single dtype, or all of them."""
    return st.sampled_from([(dtype,) for dtype in dtypes]) | st.just(dtypes)


@cache
def _trees(dtypes: tuple[torch.dtype, ...]) -> SearchStrategy[Tree]:
    return tensors(dtypes=dtypes) | _containers(dtypes, 2).filter(_has_tensor)


def _has_tensor(tree: Tree) -> bool:
    return any(leaf is not None for leaf in flatten(tree)[0])


@cache
def _containers(dtypes: tuple[torch.dtype, ...], depth: int) -> SearchStrategy[Tree]:
    children = _subtrees(dtypes, depth)
    dicts = st.dictionaries(
        st.sampled_from(["a", "b", "bias", "weight", "fc.weight"]), children, max_size=4
    )
    lists = st.lists(children, max_size=4)
    return st.one_of(
        dicts,
        lists,
        lists.map(tuple),
        st.builds(Pair, children, children),
        dicts.map(lambda tree: OrderedDict(sorted(tree.items(), reverse=True))),
        st.builds(Box, children, children),
    )


@st.composite
def _subtrees(draw: DrawFn, dtypes: tuple[torch.dtype, ...], depth: int) -> Tree:
    """Draw a container in a third of the cases, otherwise a leaf; one leaf in four is `None`."""
    if depth > 0 and draw(_among(False, False, True)):
        return draw(_containers(dtypes, depth - 1))
    if draw(_among(False, False, False, True)):
        return None
    return draw(tensors(dtypes=dtypes))


@cache
def _small_shapes() -> SearchStrategy[Shape]:
    """Return a strategy for shapes of 0 to 4 dimensions with at most 12 entries."""
    vectors = st.lists(st.integers(1, _MAX_ENTRIES), min_size=1, max_size=1)
    blocks = st.lists(st.integers(1, 3), max_size=3)
    images = st.lists(st.integers(1, 2), min_size=4, max_size=4)
    empty = st.lists(st.integers(0, 2), min_size=1, max_size=3)
    shapes = st.one_of(vectors, blocks, images, empty).map(tuple)
    return shapes.filter(lambda shape: math.prod(shape) <= _MAX_ENTRIES)


@cache
def _element_strategies(dtype: torch.dtype) -> tuple[SearchStrategy[Any], ...]:
    """Return strategies for a few values with many ties, for corner cases, and for any value."""
    pools = (_FEW, _CORNERS, *(_SPECIAL if dtype.is_floating_point else ()))
    held = [st.sampled_from([x for x in pool if _holds(dtype, x)]) for pool in pools]
    if dtype.is_floating_point:
        # bfloat16 is drawn as float32, and rounded where the tensor is made
        width: Any = 32 if dtype == torch.bfloat16 else torch.finfo(dtype).bits
        return (*held, st.floats(width=width))
    info = torch.iinfo(dtype)
    return (*held, st.integers(max(info.min, -_EXACT_INT), min(info.max, _EXACT_INT)))


def _holds(dtype: torch.dtype, value: float) -> bool:
    """Return whether the dtype holds the value exactly."""
    if dtype.is_floating_point:
        back = torch.tensor(value, dtype=torch.float64).to(dtype).item()
        return back == value or math.isnan(value)
    info = torch.iinfo(dtype)
    return isinstance(value, int) and info.min <= value <= info.max
