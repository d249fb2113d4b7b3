"""Counts: from an amount or a sparsity to how many are pruned, in all and of each leaf."""

import fractions
import math
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gprune.select import counts
from gprune.select.counts import share_out
from tests.support import reference, reference_patterns


@pytest.mark.parametrize(
    ("amount", "sparsity", "expected"),
    [(0, None, (0, False)), (None, 0.0, (0.0, True)), (0.5, None, (0.5, False))],
)
def test_amount_or_sparsity(amount: Any, sparsity: Any, expected: Any) -> None:
    assert counts.amount_or_sparsity(amount, sparsity, "prune") == expected


@pytest.mark.parametrize(("number", "got"), [(None, "neither"), (1, "both")])
def test_both_or_neither_are_refused(number: Any, got: str) -> None:
    with pytest.raises(TypeError, match=rf"prune\(\) takes exactly one .* got {got}"):
        counts.amount_or_sparsity(number, number, "prune")


@pytest.mark.parametrize(
    ("number", "floors"),
    [
        (0, [0, 0, 0, 0]),
        (2, [0, 1, 2, 2]),
        (2**40, [0, 1, 5, 14]),
        (0.0, [0, 0, 0, 0]),
        (0.01, [0, 1, 1, 1]),
        (0.25, [0, 1, 1, 4]),  # 3.5, half to even
        (0.5, [0, 1, 2, 7]),
        (1.0, [0, 1, 5, 14]),
    ],
)
def test_floors(number: float, floors: list[int]) -> None:
    scalar = counts.as_scalar(number, "min_per_leaf")
    assert counts.resolve_floors(scalar, [0, 1, 5, 14]) == floors


@pytest.mark.parametrize("number", [0, 1, -3, 2**53 + 1, 2**63 - 1, True + 1])
def test_integers_are_exact(number: int) -> None:
    scalar = counts.as_scalar(number, "amount")
    assert (scalar.dtype, scalar.shape, scalar.item()) == (torch.int64, (), number)


@pytest.mark.parametrize("number", [0.1, 1e300, math.inf, fractions.Fraction(1, 10)])
def test_other_numbers_are_float64(number: Any) -> None:
    with torch.device("meta"):
        scalar = counts.as_scalar(number, "amount")
    assert (scalar.dtype, scalar.shape, scalar.item()) == (torch.float64, (), float(number))


def test_tensors_stay_as_they_are() -> None:
    for dtype in (torch.float16, torch.float64, torch.int8, torch.int64):
        scalar = counts.as_scalar(torch.ones((), dtype=dtype), "amount")
        assert scalar.dtype == dtype
    assert not counts.as_scalar(torch.ones((), requires_grad=True), "amount").requires_grad
    assert counts.as_scalar(torch.ones(2), "amount", several=True).shape == (2,)
    assert counts.as_scalar(torch.ones((), device="meta"), "amount", meta=True).is_meta


@pytest.mark.parametrize(
    ("number", "error", "words"),
    [
        ("half", TypeError, "amount must be an int or a float, got 'half'"),
        (True, TypeError, "got True"),
        (None, TypeError, "got None"),
        (1j, TypeError, "got 1j"),
        (torch.tensor(True), TypeError, "got a tensor of torch.bool"),
        (torch.tensor(1j), TypeError, "got a tensor of torch.complex64"),
        (torch.ones(1), ValueError, r"0-dim, got a tensor of shape \(1,\)"),
        (torch.ones((), device="meta"), ValueError, "must have a value"),
        (torch.ones(2).to_sparse(), TypeError, "dense"),
        (2**63, ValueError, f"fit in 64 bits, got {2**63}"),
        (-(2**63), ValueError, "fit in 64 bits"),
        (fractions.Fraction(10**400), ValueError, "within the range of a float"),
    ],
)
def test_what_is_no_number_is_refused(number: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        counts.as_scalar(number, "amount")


def test_several_numbers_are_at_most_one_dim() -> None:
    with pytest.raises(ValueError, match=r"0-dim or 1-D, got a tensor of shape \(1, 1\)"):
        counts.as_scalar(torch.ones(1, 1), "amount", several=True)


@pytest.mark.parametrize("seed", [0, -1, 2**63 - 1, torch.tensor(3, dtype=torch.int32)])
def test_seeds(seed: Any) -> None:
    assert counts.as_seed(seed).item() == int(seed)


@pytest.mark.parametrize("seed", [0.0, True, None, "x", torch.tensor(1.0)])
def test_what_is_no_seed_is_refused(seed: Any) -> None:
    with pytest.raises(TypeError, match="seed must be an int or a 0-dim integer tensor"):
        counts.as_seed(seed)


@given(st.integers(0, 10**12), st.integers(0, 10**12), st.floats(0, 1) | st.integers(0, 1))
def test_counts_are_those_of_the_oracle(a: int, b: int, number: float) -> None:
    entries, candidates = max(a, b), min(a, b)
    scalar = counts.as_scalar(float(number), "sparsity")
    assert counts.resolve(scalar, entries, candidates, True) == (
        reference.num_to_reach(float(number), entries, entries - candidates)
    )
    assert counts.resolve(scalar, entries, candidates, False) == (
        reference.num_to_prune(float(number), candidates)
    )
    k = min(a, candidates)
    assert counts.resolve(torch.tensor(k), entries, candidates, False) == k


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_a_narrow_tensor_counts_at_its_exact_value(dtype: torch.dtype) -> None:
    number = torch.tensor(0.3, dtype=dtype)
    assert counts.resolve_amount(number, 10**9) == round(number.item() * 10**9)


@pytest.mark.parametrize(
    ("number", "candidates", "words"),
    [
        (-1, 5, "amount must not be negative, got -1"),
        (6, 5, "at most the number of candidates, 5 .* got 6"),
        (-0.1, 5, "amount must not be negative, got -0.1"),
        (1.5, 5, "amount must be at most 1 when it is a float, got 1.5$"),
        (80.0, 5, r"got 80\.0; did you mean 0\.8\?"),
        (2.0, 5, r"did you mean 0\.02\?"),
        (101.0, 5, "got 101.0$"),
        (math.nan, 5, "amount must be a number, got nan"),
        (math.inf, 5, "at most 1"),
    ],
)
def test_amounts_out_of_range(number: float, candidates: int, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        counts.resolve_amount(torch.tensor(number, dtype=_dtype(number)), candidates)


def _dtype(number: float) -> torch.dtype:
    return torch.int64 if isinstance(number, int) else torch.float64


@pytest.mark.parametrize("number", [-0.1, 1.01, 2, -1, math.nan, 50])
def test_sparsities_out_of_range(number: float) -> None:
    with pytest.raises(ValueError, match=r"^sparsity must"):
        counts.resolve_sparsity(torch.tensor(number, dtype=_dtype(number)), 5, 5)
    assert counts.resolve_sparsity(torch.tensor(1), 5, 3) == 3
    assert counts.resolve_sparsity(torch.tensor(0.0), 5, 3) == 0


@given(
    st.integers(1, 60),
    st.lists(st.integers(0, 60), max_size=9),
    st.floats(0, 1) | st.integers(0, 9),
    st.booleans(),
)
def test_groups_are_resolved_as_one_is(
    entries: int, found: list[int], number: float, is_sparsity: bool
) -> None:
    candidates = [min(n, entries) for n in found]
    if is_sparsity:
        number = min(number, 1)
    elif isinstance(number, int):
        number = min([number, entries, *candidates])
    one = torch.tensor(number, dtype=_dtype(number))
    each = counts.resolve_each(one, entries, torch.tensor(candidates).long(), is_sparsity)
    assert each.dtype == torch.int64
    assert each.tolist() == [counts.resolve(one, entries, n, is_sparsity) for n in candidates]


def test_the_smallest_group_bounds_an_amount() -> None:
    with pytest.raises(ValueError, match=r"number of candidates, 2 .*, got 3"):
        counts.resolve_each(torch.tensor(3), 9, torch.tensor([5, 2, 7]), False)
    with pytest.raises(ValueError, match="number of candidates, 9 "):
        counts.resolve_each(torch.tensor(10), 9, torch.empty(0, dtype=torch.int64), False)


# --- apportioning --------------------------------------------------------------------------------


class Shares(NamedTuple):
    total: int
    weights: list[float]
    low: list[int]
    high: list[int]
    shifts: list[float] | None = None


@st.composite
def shares(draw: st.DrawFn) -> Shares:
    parties = draw(st.integers(1, 6))
    weight = st.one_of(st.floats(1e-3, 1e3), st.integers(1, 4).map(float))
    weights = draw(st.lists(weight, min_size=parties, max_size=parties))
    high = draw(st.lists(st.integers(0, 30), min_size=parties, max_size=parties))
    low = [draw(st.integers(0, most)) for most in high]
    shift = st.integers(0, 20).map(float) | st.floats(0, 20)
    shifts = draw(st.none() | st.lists(shift, min_size=parties, max_size=parties))
    return Shares(draw(st.integers(sum(low), sum(high))), weights, low, high, shifts)


@given(shares())
def test_apportioning_is_the_queue_of_webster(given: Shares) -> None:
    assert share_out(*given) == reference_patterns.seats(*given)


@given(shares())
def test_nobody_loses_when_there_is_more_to_share_out(given: Shares) -> None:
    if given.total < sum(given.high):
        more = share_out(*given._replace(total=given.total + 1))
        gains = [b - a for a, b in zip(share_out(*given), more, strict=True)]
        assert sorted(gains) == [0] * (len(gains) - 1) + [1]


def test_equal_rates_go_to_the_first() -> None:
    """The second seat of the party of 3 votes has the rate of the only seat of the party of 1."""
    assert share_out(2, [1.0, 3.0], [0, 0], [9, 9]) == [1, 1]


def test_seats_that_bisection_does_not_tell_apart() -> None:
    """A tiny party makes the range of rates so wide that many seats are handed out one by one."""
    for total in range(63):
        given = Shares(total, [1e-9, 1e6, 3e6], [0, 0, 0], [2, 30, 30])
        assert share_out(*given) == reference_patterns.seats(*given)


def test_largest_remainders_would_not_be_monotone() -> None:
    """The paradox of Alabama: by largest remainders [4, 4, 2] of 10 becomes [5, 5, 1] of 11."""
    weights, free = [6.0, 6.0, 2.0], ([0] * 3, [99] * 3)
    assert [share_out(total, weights, *free) for total in (10, 11)] == [[5, 4, 1], [5, 5, 1]]


def test_large_parties_are_not_favoured() -> None:
    """Quotas 9.5 and ten of 0.5 each, of 14.5: rounded down first, the large one would get 13."""
    counts = share_out(15, [19.0] + [1.0] * 10, [0] * 11, [99] * 11)
    assert counts == reference_patterns.seats(15, [19.0] + [1.0] * 10, [0] * 11, [99] * 11)
    assert counts[0] == 10


def test_a_billion_entries() -> None:
    counts = share_out(123_456_789, [3.0, 7e6, 1.0], [0, 0, 1], [99, 2**30, 2**30])
    assert sum(counts) == 123_456_789
    assert counts[0] == round(3 * 123_456_789 / 7e6)
