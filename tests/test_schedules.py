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


GOLDEN = [  # worked out by hand from the formulas
    (gp.schedules.constant(0.25), {-1: 0.25, 7: 0.25}),
    (gp.schedules.one_shot(0.5, step=3), {2: 0.0, 3: 0.5, 4: 0.5}),
    (gp.schedules.linear(0.75, begin=4, end=8, initial=0.25), {4: 0.25, 5: 0.375, 7: 0.625}),
    (gp.schedules.polynomial(0.8, begin=0, end=4), {1: 0.4625, 2: 0.7, 3: 0.7875, 4: 0.8}),
    (gp.schedules.polynomial(0.8, begin=0, end=4, power=2), {1: 0.35, 2: 0.6, 3: 0.75}),
    (gp.schedules.linear(0.9, begin=0, end=3), {1: 0.3, 2: 0.6}),  # thirds, which float32 rounds
    (gp.schedules.polynomial(0.5, begin=2, end=4, initial=0.1, power=1), {1: 0.1, 3: 0.3, 9: 0.5}),
]


@pytest.mark.parametrize(("schedule", "values"), GOLDEN)
def test_golden_values(schedule: gp.schedules.Schedule, values: dict[int, float]) -> None:
    got = {step: schedule(step).item() for step in values}
    assert got == pytest.approx(values, rel=0, abs=1e-15)
