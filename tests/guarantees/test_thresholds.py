"""Thresholds: the two numbers from which the masks of a whole tree follow."""

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import gprune as gp
from tests.support import reference
from tests.support.assertions import assert_equal_masks, assert_masks, assert_threshold
from tests.support.cases import Case, cases


@given(cases())
def test_threshold_and_masks_from_it_are_the_two_halves(case: Case) -> None:
    threshold = case.masks_for(gp.find_threshold)
    assert isinstance(threshold, gp.Threshold)
    expected = reference.threshold(case.params, case.scores, case.k, case.masks)
    assert_threshold(threshold, expected)
    masks = gp.masks_from_threshold(threshold, case.params, case.scores, masks=case.masks)
    assert_equal_masks(masks, case.masks_for(gp.global_unstructured), case.params)


@st.composite
def thresholds(draw: st.DrawFn, case: Case) -> reference.Threshold:
    """Any threshold: at a score, right beside one, or anywhere."""
    scores = [
        score for leaf in reference.scores_of(case.params, case.scores) for score in leaf or []
    ]
    near = st.sampled_from([float(score) for score in scores] or [0.0])
    value = st.one_of(
        near,
        st.builds(math.nextafter, near, st.sampled_from([-math.inf, math.inf])),
        near.map(lambda score: score + 0.5),
        st.floats(),
    )
    return reference.Threshold(draw(value), draw(st.integers(-1, len(scores))))


@given(st.data(), cases())
def test_masks_from_any_threshold(data: st.DataObject, case: Case) -> None:
    at = data.draw(thresholds(case))
    threshold = gp.Threshold(torch.tensor(at.value, dtype=torch.float64), torch.tensor(at.index))
    masks = gp.masks_from_threshold(threshold, case.params, case.scores, masks=case.masks)
    expected = reference.masks_from_threshold(at, case.params, case.scores, case.masks)
    assert_masks(masks, expected, case.params)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_a_threshold_between_neighbours_is_rounded_down(dtype: torch.dtype) -> None:
    integer = torch.int16 if dtype.itemsize == 2 else torch.int32
    one = torch.ones((), dtype=dtype).view(integer)
    bits = torch.cat([torch.arange(3, dtype=integer), one + torch.arange(-2, 3, dtype=integer)])
    values = bits.view(dtype)
    scores = [torch.cat([values, -values])]
    rising = sorted(set(reference.entries(scores[0])))
    for low, high in itertools.pairwise(rising):
        for part in (0.25, 0.5, 0.75):
            at = reference.Threshold(low + part * (high - low), 5)
            value = torch.tensor(at.value, dtype=torch.float64)
            masks = gp.masks_from_threshold(
                gp.Threshold(value, torch.tensor(at.index)), scores, scores
            )
            expected = reference.masks_from_threshold(at, scores, scores, None)
            assert_masks(masks, expected, scores)


def test_what_is_no_threshold_is_refused() -> None:
    for threshold in (3, (1, 2, 3), None):
        with pytest.raises(TypeError, match="must be a Threshold"):
            gp.masks_from_threshold(threshold, [torch.ones(2)])
    with pytest.raises(TypeError, match="index must be an integer"):
        gp.masks_from_threshold((1.0, 2.0), [torch.ones(2)])


@pytest.mark.parametrize("dtype", [torch.uint16, torch.float8_e4m3fn], ids=str)
def test_a_threshold_of_another_dtype_is_refused(dtype: torch.dtype) -> None:
    threshold = gp.Threshold(torch.zeros((), dtype=dtype), -1)
    with pytest.raises(TypeError, match=r"threshold\.value has dtype .*; cast it to float64"):
        gp.masks_from_threshold(threshold, [torch.ones(3)])


def test_an_integer_threshold_that_float64_may_not_hold_is_refused() -> None:
    scores = [torch.tensor([2**53 - 1, 2**53])]
    masks = gp.masks_from_threshold(gp.Threshold(torch.tensor(2**53), 1), scores, scores)
    assert masks[0].tolist() == [False, False]
    with pytest.raises(ValueError, match=r"must be at most 2\*\*53 in magnitude"):
        gp.masks_from_threshold(gp.Threshold(torch.tensor(2**53 + 1), -1), scores, scores)
