"""Mixed dtypes: scores compare by their exact values, whatever holds them."""

from collections.abc import Callable
from typing import Any

import optree
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import gprune as gp
from gprune.testing import SCORE_DTYPES, param_trees, tensors
from tests.support import reference
from tests.support.assertions import (
    assert_entries,
    assert_masks,
    assert_same_structure,
    assert_threshold,
)
from tests.support.limits import Limits, patched


@pytest.mark.parametrize("dtype", SCORE_DTYPES, ids=str)
def test_every_dtype_alone(dtype: torch.dtype) -> None:
    @given(tensors(dtypes=[dtype]), st.data())
    def check(scores: torch.Tensor, data: st.DataObject) -> None:
        k = data.draw(st.integers(0, scores.numel()))
        expected = reference.global_masks([scores], [scores], k)
        assert_masks(gp.global_unstructured([scores], [scores], amount=k), expected, [scores])

    check()


# some dtype rounds the second of each pair to the first
NEIGHBOURS = [
    1.0,
    1 + 2**-7,
    1 + 2**-10,
    1 + 2**-23,
    1 + 2**-52,
    256,
    257,
    2048,
    2049,
    65504,
    65505,
]
NEIGHBOURS += [2**24, 2**24 + 1, 2**31 - 1, 2**31, 2**53 - 1, 2**53, 2.0**-24, 2.0**-25, 127, 128]


@pytest.mark.parametrize("one", SCORE_DTYPES, ids=str)
def test_every_pair_of_dtypes(one: torch.dtype) -> None:
    """Neighbours in falling order: where they are compared in too narrow a dtype, they tie."""

    def held(dtype: torch.dtype) -> torch.Tensor:
        both = sorted({*NEIGHBOURS, *(-x for x in NEIGHBOURS)}, reverse=True)
        if not dtype.is_floating_point:
            info = torch.iinfo(dtype)
            both = [int(x) for x in both if x == int(x) and info.min <= x <= info.max]
        exact = torch.tensor(both, dtype=torch.float64)
        return exact[exact.to(dtype).double() == exact].to(dtype)

    for other in SCORE_DTYPES:
        scores = [held(one), held(other)]
        entries = reference.num_entries(scores)
        for k in range(0, entries + 1, 3):
            expected = reference.global_masks(scores, scores, k)
            assert_masks(gp.global_unstructured(scores, scores, amount=k), expected, scores)
        with patched(Limits(block=8, limit=5, few=0, power=0.5)):
            found = gp.find_threshold(scores, scores, amount=entries // 2)
        assert_threshold(found, reference.threshold(scores, scores, entries // 2))


@pytest.mark.parametrize("dtype", [torch.int8, torch.int16, torch.int32], ids=str)
def test_the_magnitude_of_the_lowest_integer_does_not_wrap(dtype: torch.dtype) -> None:
    low, high = torch.iinfo(dtype).min, torch.iinfo(dtype).max
    params = [torch.tensor([low, high, -high], dtype=dtype)]
    assert gp.scores.magnitude(params)[0].tolist() == [-low, high, high]
    assert gp.global_unstructured(params, amount=2)[0].tolist() == [True, False, False]


@given(param_trees())
def test_magnitudes_are_exact(params: Any) -> None:
    magnitudes = gp.scores.magnitude(params)
    assert_same_structure(magnitudes, params)
    assert_entries(magnitudes, reference.magnitude(params), magnitudes)
    for magnitude, leaf in zip(
        optree.tree_leaves(magnitudes), optree.tree_leaves(params), strict=True
    ):
        assert (magnitude.shape, magnitude.requires_grad) == (leaf.shape, False)


@pytest.mark.parametrize(
    "dtype", [torch.bool, torch.complex64, torch.float8_e4m3fn, torch.uint16, torch.uint64], ids=str
)
def test_other_dtypes_are_refused(dtype: torch.dtype) -> None:
    params = {"fc": {"weight": torch.ones(2, 3)}}
    scores = {"fc": {"weight": torch.ones(2, 3).to(dtype)}}
    for prune in (gp.global_unstructured, gp.layerwise, gp.find_threshold):
        with pytest.raises(TypeError, match=r"fc.*weight.*cast"):
            prune(params, scores, amount=1)
    with pytest.raises(TypeError, match="cast"):
        gp.lowest_unstructured(scores["fc"]["weight"], amount=1)


@pytest.mark.parametrize("score", [2**53 + 1, -(2**53) - 1, 2**63 - 1, -(2**63)])
def test_int64_beyond_float64_is_refused(score: int) -> None:
    scores = torch.tensor([1, score, 2])
    params, masks = [torch.ones(3)], [torch.tensor([True, True, False])]
    calls: list[Callable[[int], Any]] = [
        lambda k: gp.global_unstructured([scores], amount=k),
        lambda k: gp.global_unstructured(params, [scores], amount=k),
        lambda k: gp.global_unstructured(params, [scores], masks=masks, amount=k),
        lambda k: gp.layerwise(params, [scores], masks=masks, amount=k),
        lambda k: gp.find_threshold(params, [scores], amount=k),
        lambda k: gp.lowest_unstructured(scores, amount=k),
        lambda k: gp.lowest_unstructured(scores, mask=masks[0], amount=k),
    ]
    for call in calls:
        for k in (0, 1):
            with pytest.raises(ValueError, match="53"):
                call(k)


def test_the_magnitude_that_no_int64_holds_is_refused_when_ranked() -> None:
    """`|-2^63|` wraps in `magnitude`, which looks at no values; no mask comes of it."""
    params = [torch.tensor([1, -(2**63)])]
    with pytest.raises(ValueError, match="int64"):
        gp.global_unstructured(params, gp.scores.magnitude(params), amount=1)
