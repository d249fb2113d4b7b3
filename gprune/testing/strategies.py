"""Hypothesis strategies for parameter trees, scores, prior masks and amounts.

They often draw the cases that break a selection: ties at the threshold, `None` leaves, leaves of
different dtypes, empty and 0-dim leaves, and prior masks that leave nothing to prune. A failing
tree shrinks to a single small float32 leaf, if that fails too.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import numpy as np
import optree
import torch
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn, SearchStrategy
from torch import Tensor

from gprune.testing.tensors import (
    SCORE_DTYPES,
    Shape,
    among,
    arrays,
    layouts,
    tensors,
)
from gprune.trees import Tree, flatten, map_leaves


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
        >>> from hypothesis import given, settings
        >>> import gprune as gp
        >>> @settings(deadline=None)  # the first call of an operator is slow
        ... @given(param_trees())
        ... def test_nothing_is_pruned_at_first(params):
        ...     assert gp.num_pruned(gp.keep_all(params)) == 0
        >>> test_nothing_is_pruned_at_first()
    """
    pool = draw(_pools(tuple(dtypes)))
    return draw(_trees(pool))


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
        >>> from hypothesis import given, settings
        >>> import gprune as gp
        >>> params = {"weight": torch.ones(2, 3), "bias": None}
        >>> @settings(deadline=None)  # the first call of an operator is slow
        ... @given(scores_for(params))
        ... def test_two_weights_go_whatever_the_scores(scores):
        ...     assert gp.num_pruned(gp.global_unstructured(params, scores, amount=2)) == 2
        >>> test_two_weights_go_whatever_the_scores()
    """

    def score(leaf: Tensor | None) -> Tensor | None:
        return None if leaf is None else draw(_tensors_of(pool, leaf.shape))

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
        >>> from hypothesis import given, settings
        >>> import gprune as gp
        >>> params = {"weight": torch.ones(2, 3), "bias": None}
        >>> @settings(deadline=None)  # the first call of an operator is slow
        ... @given(prior_masks(params))
        ... def test_nothing_comes_back(masks):
        ...     more = gp.global_unstructured(params, masks=masks, amount=0.5)
        ...     assert gp.num_pruned(more) >= gp.num_pruned(masks)
        >>> test_nothing_comes_back()
    """
    some = among(True, False)
    keeps = draw(among(among(True), some, some, some, among(False)))

    def mask(leaf: Tensor | None) -> Tensor | None:
        if leaf is None:
            return None
        array = draw(arrays(np.bool_, leaf.shape, keeps))
        return draw(layouts(torch.from_numpy(array)))

    return map_leaves(mask, params)


def amounts(candidates: int) -> SearchStrategy[int | float | Tensor]:
    """Build the strategy for valid amounts.

    Args:
        candidates: how many weights may be pruned, at least 0.

    Returns:
        A strategy for ints in [0, candidates] and floats in [0, 1], as Python numbers and as 0-dim
        tensors of every dtype that can hold them. It often draws 0, all candidates, and fractions
        halfway between two counts.

    Example:
        >>> from hypothesis import given, settings
        >>> import gprune as gp
        >>> @settings(deadline=None)  # the first call of an operator is slow
        ... @given(amounts(10))
        ... def test_no_more_than_there_are(amount):
        ...     assert 0 <= gp.num_to_prune(amount, 10) <= 10
        >>> test_no_more_than_there_are()
    """
    counts = st.integers(0, candidates)
    fractions = st.one_of(
        counts.map(lambda k: k / max(candidates, 1)),
        counts.map(lambda k: min((k + 0.5) / max(candidates, 1), 1.0)),
        st.floats(0.0, 1.0),
    )
    return st.one_of(
        counts,
        fractions,
        st.builds(torch.tensor, counts, dtype=st.sampled_from(_int_dtypes(candidates))),
        st.builds(torch.tensor, fractions, dtype=st.sampled_from(_FLOAT_DTYPES)),
    )


_FLOAT_DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]


def _int_dtypes(largest: int) -> list[torch.dtype]:
    integers = [dtype for dtype in SCORE_DTYPES if not dtype.is_floating_point]
    return [dtype for dtype in integers if torch.iinfo(dtype).max >= largest]


@cache
def _tensors_of(dtypes: tuple[torch.dtype, ...], shape: Shape) -> SearchStrategy[Tensor]:
    return tensors(dtypes=dtypes, shapes=st.just(shape))


@cache
def _trees(dtypes: tuple[torch.dtype, ...]) -> SearchStrategy[Tree]:
    return tensors(dtypes=dtypes) | _containers(dtypes, 2).filter(_has_tensor)


@cache
def _pools(dtypes: tuple[torch.dtype, ...]) -> SearchStrategy[tuple[torch.dtype, ...]]:
    """Return a strategy for the dtypes of one tree: a single dtype, or all of them."""
    return st.sampled_from([(dtype,) for dtype in dtypes]) | st.just(dtypes)


@cache
def _containers(dtypes: tuple[torch.dtype, ...], depth: int) -> SearchStrategy[Tree]:
    children = _subtrees(dtypes, depth)
    names = st.sampled_from(["a", "b", "bias", "weight", "fc.weight"])
    return st.one_of(
        st.dictionaries(names, children, max_size=4),
        st.lists(children, max_size=4),
        st.lists(children, max_size=4).map(tuple),
        st.builds(Pair, children, children),
        st.dictionaries(names, children, max_size=4).map(_reversed_dict),
        st.builds(Box, children, children),
    )


@st.composite
def _subtrees(draw: DrawFn, dtypes: tuple[torch.dtype, ...], depth: int) -> Tree:
    """Draw a container in a third of the cases, otherwise a leaf; one leaf in four is `None`."""
    if depth > 0 and draw(among(False, False, True)):
        return draw(_containers(dtypes, depth - 1))
    if draw(among(False, False, False, True)):
        return None
    return draw(tensors(dtypes=dtypes))


def _reversed_dict(tree: dict[str, Tree]) -> OrderedDict[str, Tree]:
    """Return an `OrderedDict` whose keys are in descending order."""
    return OrderedDict(sorted(tree.items(), key=lambda item: item[0], reverse=True))


def _has_tensor(tree: Tree) -> bool:
    return any(leaf is not None for leaf in flatten(tree)[0])
