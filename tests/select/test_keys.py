"""Keys are integers in the order of the scores, for every dtype and every bit pattern."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gprune.select import keys
from gprune.select.keys import BFLOAT16, FLOAT16, FLOAT32, FLOAT64, FORMATS, INT64, Format

NARROW = {torch.float16: FLOAT16, torch.bfloat16: BFLOAT16}
FLOATS = {**NARROW, torch.float32: FLOAT32, torch.float64: FLOAT64}
INTEGERS = [dtype for dtype in FORMATS if not dtype.is_floating_point]


def every(dtype: torch.dtype) -> torch.Tensor:
    """All bit patterns of a float of 16 bits."""
    return torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)


def samples(dtype: torch.dtype) -> torch.Tensor:
    """The ends of all kinds of values, and some of each."""
    if not dtype.is_floating_point:
        info = torch.iinfo(dtype)
        low, high = max(info.min, -(2**53)), min(info.max, 2**53)
        middle = [x for x in range(-300, 301) if low <= x <= high]
        return torch.tensor([low, low + 1, *middle, high - 1, high], dtype=dtype)
    if dtype in NARROW:
        return every(dtype)
    form = FLOATS[dtype]
    one = 1 << form.mantissa
    magnitudes = [0, 1, 2, one - 1, one, one + 1, form.infinity - 1, form.infinity, form.nan]
    magnitudes += [form.infinity + one - 1, *(i << form.mantissa for i in range(1, 2048, 113))]
    bits = torch.tensor([m for m in magnitudes if m <= form.largest]).to(form.integer)
    return torch.cat([bits.view(dtype), -bits.view(dtype)])


def assert_ordered(key: torch.Tensor, exact: torch.Tensor) -> None:
    """The keys are in the order of the values, and equal where these are equal or NaN."""
    order = exact.sort(stable=True).indices
    assert key.sort(stable=True).indices.equal(order)
    rising = exact[order]
    same = (rising[1:] == rising[:-1]) | rising[:-1].isnan()
    assert (key[order][1:] == key[order][:-1]).equal(same)


@pytest.mark.parametrize("dtype", FORMATS, ids=str)
@pytest.mark.parametrize("absolute", [False, True])
def test_keys_are_in_the_order_of_the_scores(dtype: torch.dtype, absolute: bool) -> None:
    scores, form = samples(dtype), FORMATS[dtype]
    exact = scores.double().abs() if absolute else scores.double()
    bits = keys.to_bits(scores, form)
    assert bits.dtype == form.integer
    key = keys.keys_of(bits, form, absolute=absolute)
    assert_ordered(key, exact)
    low, high = form.key_range(absolute)
    assert low <= int(key.min())
    assert int(key.max()) <= high
    if form.is_float or dtype == torch.int8:
        assert int(key.max()) == high
    wide = keys.to_float64_keys(key, form)
    assert wide.dtype == torch.int64
    assert wide.equal(keys.keys_of(exact.view(torch.int64), FLOAT64, absolute=False))
    values = keys.values_of(key.to(torch.int64), form)
    assert values.dtype == torch.float64
    assert torch.equal(values.nan_to_num(nan=7.5), exact.nan_to_num(nan=7.5))
    assert values.isnan().equal(exact.isnan())


def test_keys_are_fresh() -> None:
    """Also of integers, whose keys are the integers themselves."""
    for scores, form in ((torch.arange(3), INT64), (torch.arange(3.0), FLOAT32)):
        for absolute in (False, True):
            bits = keys.to_bits(scores, form)
            before = bits.clone()
            keys.keys_of(bits, form, absolute=absolute).fill_(9)
            assert bits.equal(before)


@pytest.mark.parametrize("dtype", INTEGERS, ids=str)
def test_integers_among_floats_are_read_as_float64(dtype: torch.dtype) -> None:
    scores = samples(dtype)
    bits = keys.to_bits(scores, FLOAT64)
    assert bits.dtype == torch.int64
    assert bits.view(torch.float64).equal(scores.double())


@pytest.mark.parametrize("dtype", [torch.int8, torch.int16, torch.int32], ids=str)
def test_the_lowest_integer_has_a_magnitude(dtype: torch.dtype) -> None:
    lowest = torch.tensor([torch.iinfo(dtype).min], dtype=dtype)
    form = FORMATS[dtype]
    key = keys.keys_of(keys.to_bits(lowest, form), form, absolute=True)
    assert key.item() == -torch.iinfo(dtype).min == form.key_range(True)[1]


# --- raw keys -------------------------------------------------------------------------------


def assert_divided(
    scores: torch.Tensor, form: Format, common: Format, absolute: bool, ends: list[int]
) -> None:
    """Raw keys are below, inside and above every bracket exactly where the keys are."""
    bits = keys.to_bits(scores, form)
    key = keys.keys_of(bits, form, absolute=absolute)
    key = key.long() if form == common else keys.to_float64_keys(key, form)
    raw = torch.empty_like(bits)
    got = keys.raw_keys(bits, form, absolute=absolute, out=raw)
    assert got is raw
    for low, high in itertools.combinations_with_replacement(sorted(set(ends)), 2):
        least, greatest = keys.raw_bounds(low, high, form, common, absolute=absolute)
        below, above = raw.long() < least, raw.long() > greatest
        assert below.equal(key < low), (low, high)
        assert above.equal(key > high), (low, high)


@pytest.mark.parametrize("dtype", FORMATS, ids=str)
@pytest.mark.parametrize("absolute", [False, True])
def test_raw_keys_are_divided_as_the_scores_are(dtype: torch.dtype, absolute: bool) -> None:
    scores, form = samples(dtype), FORMATS[dtype]
    low, high = form.key_range(absolute)
    near = [low, low + 1, -2, -1, 0, 1, 2, 1000, -1000, high - 1, high]
    if form.is_float:
        one = 1 << form.mantissa
        near += [one - 1, one, -one, 1 - one, form.infinity, form.infinity - 1, -form.infinity]
    ends = [x for x in near if low <= x <= min(high, 2**63 - 1)]
    assert_divided(scores, form, form, absolute, ends)


@pytest.mark.parametrize("dtype", [*FLOATS, torch.int16], ids=str)
@pytest.mark.parametrize("absolute", [False, True])
def test_raw_keys_are_divided_at_float64_keys(dtype: torch.dtype, absolute: bool) -> None:
    """Between the scores of a narrow dtype are many of float64."""
    form = FORMATS[dtype] if dtype.is_floating_point else FLOAT64
    scores = samples(dtype)[:: 1 if dtype.itemsize > 2 else 7]
    ends = [-math.inf, -1.001, -1.0, -1e-45, -0.0, 5e-324, 1e-45, 2.0**-24, 1.0, 1.001, 65504]
    ends += [65520, 1e300, math.inf, math.nan, -(2.0**-133), 2.0**-150, 3e38]
    wide = keys.keys_of(
        torch.tensor(ends, dtype=torch.float64).view(torch.int64), FLOAT64, absolute=absolute
    )
    assert_divided(scores, form, FLOAT64, absolute, wide.tolist())


@pytest.mark.parametrize("form", [FLOAT16, BFLOAT16, FLOAT32], ids=["16", "b16", "32"])
@given(key=st.integers(-FLOAT64.infinity, FLOAT64.nan) | st.integers(-(2**40), 2**40))
def test_a_float64_key_is_rounded_down(form: Format, key: int) -> None:
    narrow, is_exact = keys.round_down(key, form)

    def wide(narrow: int) -> int:
        return int(keys.to_float64_keys(torch.tensor(narrow), form))

    assert wide(narrow) <= key
    assert is_exact == (wide(narrow) == key)
    if narrow < form.nan:
        assert wide(narrow + 1) > key


@pytest.mark.parametrize("form", [FLOAT16, BFLOAT16, FLOAT32], ids=["16", "b16", "32"])
def test_keys_beside_those_of_a_narrow_format_are_rounded_down(form: Format) -> None:
    one = 1 << form.mantissa
    for narrow in (0, 1, 2, 3, one - 1, one, one + 1, form.infinity - 1, form.infinity, form.nan):
        for own in {narrow, -narrow} - {-form.nan}:
            exact = int(keys.to_float64_keys(torch.tensor(own), form))
            assert keys.round_down(exact, form) == (own, True)
            if own < form.infinity:
                assert keys.round_down(exact + 1, form) == (own, False)
            if -form.infinity < own < form.nan:
                assert keys.round_down(exact - 1, form) == (own - 1, False)


def test_keys_and_values_of_numpy_floats() -> None:
    """The order is that of numpy's sort, which knows nothing of keys."""
    rng = np.random.default_rng(0)
    bits = rng.integers(0, 2**32, 4000, dtype=np.uint64).astype(np.uint32)
    scores = bits.view(np.float32)
    order = np.argsort(scores, kind="stable")
    tensor = torch.from_numpy(scores.copy())
    key = keys.keys_of(tensor.view(torch.int32), FLOAT32, absolute=False)
    assert key.sort(stable=True).indices.numpy().tolist() == order.tolist()


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_values_are_the_scores_of_their_keys(dtype: torch.dtype) -> None:
    scores = torch.tensor([-math.inf, -1.5, 0.0, 1.5, math.inf], dtype=dtype)
    form = FORMATS[dtype]
    key = keys.keys_of(keys.to_bits(scores, form), form, absolute=False)
    assert keys.values_of(key.to(torch.int64), form).tolist() == scores.tolist()
