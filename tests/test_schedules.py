"""The schedules, against the formulas of tests/reference.py."""

from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import gprune as gp
from tests import reference


class Scheduled(NamedTuple):
    ours: Any
    theirs: Any
    exact: dict[int, float]


@st.composite
def schedules(draw: st.DrawFn) -> Scheduled:
    sparsity, initial = draw(st.floats(0, 1)), draw(st.floats(0, 1))
    begin = draw(st.integers(0, 50))
    end = begin + draw(st.integers(1, 50))
    power = draw(st.sampled_from([1, 2, 3, 0.5]))
    ramp = {"begin": begin, "end": end, "initial": initial}
    flat = {begin - 1: initial, begin: initial, end: sparsity, end + 1: sparsity}
    return draw(
        st.sampled_from(
            [
                _scheduled("constant", {0: sparsity, end: sparsity}, sparsity),
                _scheduled("one_shot", {begin - 1: 0.0, begin: sparsity}, sparsity, step=begin),
                _scheduled("linear", flat, sparsity, **ramp),
                _scheduled("polynomial", flat, sparsity, **ramp, power=power),
            ]
        )
    )


def _scheduled(name: str, exact: dict[int, float], *args: Any, **kwargs: Any) -> Scheduled:
    ours = getattr(gp.schedules, name)(*args, **kwargs)
    return Scheduled(ours, getattr(reference, name)(*args, **kwargs), exact)


@given(schedules(), st.integers(0, 110))
def test_schedules(schedule: Scheduled, step: int) -> None:
    for at in (step, torch.tensor(step), torch.tensor(step, dtype=torch.int32)):
        sparsity = schedule.ours(at)
        assert (sparsity.dtype, sparsity.shape) == (torch.float64, ())
        assert sparsity.item() == pytest.approx(schedule.theirs(step), rel=0, abs=1e-12)
        assert 0 <= sparsity.item() <= 1
    for at, value in schedule.exact.items():
        assert schedule.ours(at).item() == pytest.approx(value, rel=0, abs=1e-15)
