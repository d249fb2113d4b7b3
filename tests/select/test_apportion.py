"""Apportioning: whole numbers in proportion to weights, and monotone in the total."""

from typing import NamedTuple

from gprune.select.apportion import apportion
from hypothesis import given
from hypothesis import strategies as st

from tests.support import reference_patterns


class Shares(NamedTuple):
    total: int
    weights: list[float]
    low: list[int]
    high: list[int]


@st.composite
def shares(draw: st.DrawFn) -> Shares:
    parties = draw(st.integers(1, 6))
    weight = st.one_of(st.floats(1e-3, 1e3), st.integers(1, 4).map(float))
    weights = draw(st.lists(weight, min_size=parties, max_size=parties))
    high = draw(st.lists(st.integers(0, 30), min_size=parties, max_size=parties))
    low = [draw(st.integers(0, most)) for most in high]
    return Shares(draw(st.integers(sum(low), sum(high))), weights, low, high)


@given(shares())
def test_apportioning_is_the_queue_of_webster(given: Shares) -> None:
    assert apportion(*given) == reference_patterns.seats(*given)


@given(shares())
def test_nobody_loses_when_there_is_more_to_share_out(given: Shares) -> None:
    if given.total < sum(given.high):
        more = apportion(*given._replace(total=given.total + 1))
        gains = [b - a for a, b in zip(apportion(*given), more, strict=True)]
        assert sorted(gains) == [0] * (len(gains) - 1) + [1]


def test_largest_remainders_would_not_be_monotone() -> None:
    """The paradox of Alabama: by largest remainders [4, 4, 2] of 10 becomes [5, 5, 1] of 11."""
    weights, free = [6.0, 6.0, 2.0], ([0] * 3, [99] * 3)
    assert [apportion(total, weights, *free) for total in (10, 11)] == [[5, 4, 1], [5, 5, 1]]


def test_large_parties_are_not_favoured() -> None:
    """Quotas 9.5 and ten of 0.5 each, of 14.5: rounded down first, the large one would get 13."""
    counts = apportion(15, [19.0] + [1.0] * 10, [0] * 11, [99] * 11)
    assert counts == reference_patterns.seats(15, [19.0] + [1.0] * 10, [0] * 11, [99] * 11)
    assert counts[0] == 10


def test_a_billion_entries() -> None:
    counts = apportion(123_456_789, [3.0, 7e6, 1.0], [0, 0, 1], [99, 2**30, 2**30])
    assert sum(counts) == 123_456_789
    assert counts[0] == round(3 * 123_456_789 / 7e6)
