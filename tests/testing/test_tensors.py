"""Drawn tensors reach every hard case: `hypothesis.find` must find one."""

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gprune.testing import SCORE_DTYPES, layouts, tensors
from tests.support import reference
from tests.support.reaching import Condition, reaches


def any_entry(condition: Callable[[float], bool]) -> Condition:
    return lambda tensor: any(map(condition, reference.entries(tensor)))


def smallest_normal(tensor: torch.Tensor) -> float:
    return torch.finfo(tensor.dtype).smallest_normal


def has_denormal(tensor: torch.Tensor) -> bool:
    entries = reference.entries(tensor)
    return tensor.is_floating_point() and any(0 < abs(x) < smallest_normal(tensor) for x in entries)


def has_both_zeros(tensor: torch.Tensor) -> bool:
    return tensor.is_floating_point() and {
        math.copysign(1, x) for x in reference.entries(tensor) if x == 0
    } == {-1.0, 1.0}


TENSORS: dict[str, Condition] = {
    "empty": lambda t: t.numel() == 0,
    "0-dim": lambda t: t.dim() == 0,
    "4-dim": lambda t: t.dim() == 4,
    "all equal": lambda t: t.numel() > 2 and len(set(reference.entries(t))) == 1,
    "all different": lambda t: t.numel() > 4 and len(set(reference.entries(t))) == t.numel(),
    "NaN": any_entry(math.isnan),
    "all NaN": lambda t: t.numel() > 1 and all(map(math.isnan, reference.entries(t))),
    "NaN and numbers": lambda t: len(set(map(math.isnan, reference.entries(t)))) == 2,
    "inf": any_entry(lambda x: x == math.inf),
    "-inf": any_entry(lambda x: x == -math.inf),
    "-0.0 beside 0.0": has_both_zeros,
    "denormal": has_denormal,
    "expanded": lambda t: 0 in t.stride() and t.numel() > 1,
    "not contiguous": lambda t: not t.is_contiguous() and 0 not in t.stride(),
    "strided, with an offset": lambda t: t.storage_offset() > 0 and t.numel() > 1,
    "transposed": lambda t: t.dim() == 2 and t.t().is_contiguous() and not t.is_contiguous(),
    "channels-last": lambda t: (
        t.dim() == 4
        and t.is_contiguous(memory_format=torch.channels_last)
        and not t.is_contiguous()
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("condition", TENSORS.values(), ids=TENSORS)
def test_tensors_reach(condition: Condition) -> None:
    reaches(tensors(), condition)


EXTREMES: dict[torch.dtype, tuple[float, float]] = {
    torch.float32: (2.0**-149, torch.finfo(torch.float32).max),
    torch.float64: (2.0**-1074, torch.finfo(torch.float64).max),
    torch.float16: (2.0**-24, 65504),
    torch.bfloat16: (2.0**-133, torch.finfo(torch.bfloat16).max),
    torch.int64: (-(2**53), 2**53),
    torch.int32: (-(2**31), 2**31 - 1),
    torch.int16: (-(2**15), 2**15 - 1),
    torch.int8: (-128, 127),
    torch.uint8: (0, 255),
}


LONG = (torch.float64, torch.float16, torch.bfloat16)


@pytest.mark.slow
@pytest.mark.parametrize(
    "dtype",
    [
        pytest.param(dtype, marks=pytest.mark.long if dtype in LONG else [])
        for dtype in SCORE_DTYPES
    ],
    ids=str,
)
def test_tensors_reach_the_ends_of_each_dtype(dtype: torch.dtype) -> None:
    for extreme in EXTREMES[dtype]:
        found = reaches(tensors(dtypes=[dtype]), any_entry(lambda x, at=extreme: x == at))
        assert found.dtype == dtype


@given(tensors(), st.data())
def test_layouts_keep_the_entries(tensor: torch.Tensor, data: st.DataObject) -> None:
    other = data.draw(layouts(tensor))
    assert (other.dtype, other.shape) == (tensor.dtype, tensor.shape)
    assert repr(reference.entries(other)) == repr(reference.entries(tensor))
