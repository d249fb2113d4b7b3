"""The schedules, against the formulas of tests/support/reference.py."""

import copy
import dataclasses
import itertools
import pickle
from fractions import Fraction
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

import gprune as gp
from tests.support import reference


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
                _scheduled("cosine", flat, sparsity, **ramp),
                _below_one("exponential", sparsity, ramp),
            ]
        )
    )


def _below_one(name: str, sparsity: float, ramp: dict[str, Any]) -> Scheduled:
    sparsity, ramp = sparsity * 0.999, {**ramp, "initial": ramp["initial"] * 0.999}
    ends = {ramp["begin"]: ramp["initial"], ramp["end"]: sparsity, ramp["end"] + 1: sparsity}
    return _scheduled(name, ends, sparsity, **ramp)


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


def test_schedules_are_values() -> None:
    """They are equal where their numbers are, and survive pickle and deepcopy."""
    ramp: dict[str, Any] = {"begin": 0, "end": 4}
    made = [
        (gp.schedules.constant, {}),
        (gp.schedules.one_shot, {"step": 3}),
        (gp.schedules.linear, ramp),
        (gp.schedules.polynomial, ramp),
        (gp.schedules.exponential, ramp),
        (gp.schedules.cosine, ramp),
    ]
    for build, arguments in made:
        schedule = build(0.5, **arguments)
        assert schedule != build(0.75, **arguments)
        for other in (pickle.loads(pickle.dumps(schedule)), copy.deepcopy(schedule)):
            assert other == schedule == build(0.5, **arguments)
            assert [other(step) for step in range(6)] == [schedule(step) for step in range(6)]
        with pytest.raises(dataclasses.FrozenInstanceError):
            schedule.sparsity = 0.1


GOLDEN = [  # worked out by hand from the formulas
    (gp.schedules.constant(0.25), {-1: 0.25, 7: 0.25}),
    (gp.schedules.one_shot(0.5, step=3), {2: 0.0, 3: 0.5, 4: 0.5}),
    (gp.schedules.linear(0.75, begin=4, end=8, initial=0.25), {4: 0.25, 5: 0.375, 7: 0.625}),
    (gp.schedules.polynomial(0.8, begin=0, end=4), {1: 0.4625, 2: 0.7, 3: 0.7875, 4: 0.8}),
    (gp.schedules.polynomial(0.8, begin=0, end=4, power=2), {1: 0.35, 2: 0.6, 3: 0.75}),
    (gp.schedules.linear(0.9, begin=0, end=3), {1: 0.3, 2: 0.6}),  # thirds, which float32 rounds
    (gp.schedules.exponential(0.875, begin=0, end=3), {1: 0.5, 2: 0.75, 3: 0.875, 4: 0.875}),
    (gp.schedules.cosine(0.0, begin=0, end=6, initial=0.4), {0: 0.4, 2: 0.3, 3: 0.2, 6: 0.0}),
    (gp.schedules.polynomial(0.5, begin=2, end=4, initial=0.1, power=1), {1: 0.1, 3: 0.3, 9: 0.5}),
]


@pytest.mark.parametrize(("schedule", "values"), GOLDEN)
def test_golden_values(schedule: gp.schedules.Schedule, values: dict[int, float]) -> None:
    got = {step: schedule(step).item() for step in values}
    assert got == pytest.approx(values, rel=0, abs=1e-15)


def test_arguments_may_be_any_real_numbers() -> None:
    half = Fraction(1, 2)
    for name in ("linear", "polynomial", "exponential", "cosine"):
        schedule = getattr(gp.schedules, name)(half, begin=Fraction(0), end=4, initial=half / 2)
        same = getattr(gp.schedules, name)(0.5, begin=0, end=4, initial=0.25)
        assert [schedule(step) for step in range(6)] == [same(step) for step in range(6)]
    assert gp.schedules.constant(half)(0) == gp.schedules.one_shot(half, step=0)(0) == 0.5


# --- against others -----------------------------------------------------------------------------


def of_jaxpruner(step: int, sparsity: float, start: int, end: int) -> float:
    """JaxPruner's PolynomialSchedule, 2024, which counts a step after it is done."""
    progress = min(max(step + 1 - start, 0), end - start) / (end - start)
    return sparsity * (1 - (1 - progress) ** 3)


def test_polynomial_is_that_of_jaxpruner_one_step_earlier() -> None:
    ours = gp.schedules.polynomial(0.9, begin=99, end=899)
    theirs = [of_jaxpruner(step, 0.9, start=100, end=900) for step in range(1000)]
    assert [ours(step).item() for step in range(1000)] == pytest.approx(theirs, rel=0, abs=1e-15)


def test_updates_are_those_of_jaxpruner() -> None:
    """Its PeriodicSchedule counts from step 0; ours from `begin`, here a multiple of `freq`."""
    theirs = [step % 50 == 0 and 100 <= step <= 900 for step in range(1000)]
    at = [torch.tensor(step) for step in range(1000)]
    assert [bool(gp.schedules.every(t, begin=100, end=900, freq=50)) for t in at] == theirs


@pytest.mark.parametrize("initial", [0.0, 0.3])
def test_polynomial_is_cubic_sl_of_torch(initial: float) -> None:
    from torch.ao.pruning.scheduler.cubic_scheduler import CubicSL

    settings = {"s_0": initial, "s_f": 0.9, "t_0": 20, "dt": 10, "n": 5}
    ours = gp.schedules.polynomial(0.9, begin=20, end=70, initial=initial)
    # before t_0, CubicSL extrapolates and clamps to s_0, because the cube only decreases
    for step in range(100):
        theirs = CubicSL.sparsity_compute_fn(t=min(step, 70), **settings)
        assert ours(step).item() == pytest.approx(theirs, rel=0, abs=1e-15)


@given(st.integers(0, 60), st.integers(0, 40), st.integers(1, 20), st.integers(-5, 120))
@example(1, 4, 2, 3)
def test_every(begin: int, length: int, freq: int, step: int) -> None:
    due = step in range(begin, begin + length + 1, freq)
    for at in (step, torch.tensor(step), torch.tensor(step, dtype=torch.int32)):
        got = gp.schedules.every(at, begin=begin, end=begin + length, freq=freq)
        assert (got.dtype, got.shape, got.item()) == (torch.bool, (), due)


@given(st.lists(st.integers(0, 120), min_size=2), st.floats(0, 0.99), st.floats(0, 0.99))
def test_ramps_are_monotone(steps: list[int], one: float, other: float) -> None:
    low, high = sorted((one, other))
    ramp: dict[str, Any] = {"begin": 10, "end": 100, "initial": low}
    for name in ("linear", "polynomial", "exponential", "cosine"):
        schedule = getattr(gp.schedules, name)(high, **ramp)
        values = [schedule(step).item() for step in sorted(steps)]
        assert all(a <= b + 1e-15 for a, b in itertools.pairwise(values))
