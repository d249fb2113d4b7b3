"""Radix select against `sorted`, in one process and in several."""

from bisect import bisect_left, bisect_right
from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gprune.select.refine import (
    Digit,
    Found,
    Integers,
    OneProcess,
    Reduce,
    Remaining,
    find_digit,
    narrow,
    pick,
    refine,
    split_digits,
)
from tests.support.limits import Limits, limits, patched
from tests.support.ranked import Processes


class Asked(NamedTuple):
    """Integers of some queries, where they are, and which is wanted.

    Attributes:
        num_bits: their width.
        values: the integers of each query, from 0.
        owners: the process of each.
        nth: which is wanted of each query, from 1.
        dtype: holds the bits of an integer.
    """

    num_bits: int
    values: list[list[int]]
    owners: list[list[int]]
    nth: list[int]
    dtype: torch.dtype


NUM_PROCESSES = 3


@st.composite
def asked(draw: st.DrawFn) -> Asked:
    num_bits = draw(st.sampled_from([0, 1, 3, 8, 20, 31, 32, 33, 63, 64]))
    largest = min(2**num_bits - 1, 2**64 - 2)  # one more could not be sent
    near = draw(st.integers(0, max(0, largest - 8)))
    value = st.one_of(
        st.integers(0, largest),
        st.integers(near, min(near + 8, largest)),  # ties, and few digits that differ
        st.sampled_from([0, largest]),
    )
    rows = st.lists(st.tuples(value, st.integers(0, NUM_PROCESSES - 1)), min_size=1, max_size=40)
    drawn = draw(st.lists(rows, min_size=1, max_size=4))
    dtype = torch.int32 if num_bits <= 32 and draw(st.booleans()) else torch.int64
    return Asked(
        num_bits,
        [[value for value, _ in row] for row in drawn],
        [[owner for _, owner in row] for row in drawn],
        [draw(st.integers(1, len(row))) for row in drawn],
        dtype,
    )


def integers(given: Asked, process: int | None = None) -> Integers:
    """The integers of one process, or of all, in an order that mixes the queries."""
    found = [
        (value, query)
        for query, row in enumerate(given.values)
        for value, owner in zip(row, given.owners[query], strict=True)
        if process is None or owner == process
    ]
    found = [found[i] for i in np.random.default_rng(len(found)).permutation(len(found))]
    values = np.array([value for value, _ in found], np.uint64).view(np.int64)
    tensor = torch.from_numpy(values.copy()).to(given.dtype)
    if len(given.values) == 1:
        return Integers(tensor, None)
    return Integers(tensor, torch.tensor([query for _, query in found], dtype=torch.int64))


def expected(given: Asked) -> list[Found]:
    """What `sorted` says; the counts below include those that are known before."""
    results = []
    for row, n in zip(given.values, given.nth, strict=True):
        rising = sorted(row)
        value = rising[n - 1]
        below = bisect_left(rising, value)
        results.append(Found(value, below, bisect_right(rising, value) - below))
    return results


@given(asked(), limits(), st.integers(0, 5))
def test_refine_finds_what_sorted_finds(given: Asked, small: Limits, before: int) -> None:
    """Also where so many are known to be below all of these integers."""
    known = [Found(0, before, len(row)) for row in given.values]
    nth = [n + before for n in given.nth]
    with patched(small):
        found = refine(
            OneProcess(), "", Remaining(lambda: integers(given)), given.num_bits, nth, known
        )
    assert found == [x._replace(num_below=x.num_below + before) for x in expected(given)]


@given(asked(), limits())
def test_refine_finds_the_same_in_several_processes(given: Asked, small: Limits) -> None:
    known = [Found(0, 0, len(row)) for row in given.values]

    def run(reduce: Reduce) -> list[Found]:
        remaining = Remaining(lambda: integers(given, reduce.process))
        return refine(reduce, "", remaining, given.num_bits, given.nth, known)

    with patched(small):
        processes = Processes(NUM_PROCESSES)
        results = processes.run(run)
    assert results == [expected(given)] * NUM_PROCESSES
    most = max(small.max_counts, 2 * len(given.nth))  # a digit has one bit at least
    if small.max_counts >= len(given.nth) * NUM_PROCESSES:
        assert all(size <= most for _, size in processes.messages)


@given(asked())
def test_what_remains_are_the_integers_that_were_found(given: Asked) -> None:
    """And `place` says where they were in the tensor from which they were taken."""
    remaining = Remaining(lambda: integers(given))
    known = [Found(0, 0, len(row)) for row in given.values]
    with patched(Limits(max_bits=3, max_sent=0)):
        found = refine(OneProcess(), "", remaining, given.num_bits, given.nth, known)
    left, every = remaining.get(), integers(given)
    if given.num_bits:
        unsigned = left.values.long() & (2**32 - 1 if given.dtype == torch.int32 else -1)
        query = torch.zeros_like(unsigned) if left.query is None else left.query
        prefixes = torch.tensor([x.prefix for x in found], dtype=torch.uint64).view(torch.int64)
        assert unsigned.equal(prefixes[query])
        assert left.place is not None
        assert every.values[left.place].equal(left.values)
        assert len(left.values) == sum(x.num_inside for x in found)


@given(st.integers(0, 64), limits(), st.integers(0, 300))
def test_digits_cover_the_bits(num_bits: int, small: Limits, num_queries: int) -> None:
    with patched(small):
        reduce = OneProcess()
        digits = split_digits(num_bits, reduce, num_queries)
    ends = [num_bits, *(digit.shift for digit in digits)]
    assert ends[-1] == 0
    assert [digit.shift + digit.width for digit in digits] == ends[:-1]
    for digit in digits:
        assert 1 <= digit.width <= small.max_bits
        assert digit.width == 1 or num_queries << digit.width <= small.max_counts
    if digits:  # as wide as they may be, but for the last
        widest = digits[0].width
        assert all(digit.width == widest for digit in digits[:-1])
        wider = max(1, num_queries) << (widest + 1)
        assert widest in (small.max_bits, num_bits) or wider > small.max_counts


@given(st.lists(st.lists(st.integers(0, 3), min_size=5, max_size=5), min_size=1), st.data())
def test_pick(rows: list[list[int]], data: st.DataObject) -> None:
    nth = [data.draw(st.integers(1, max(1, sum(row)))) for row in rows]
    chosen, before, inside = (x.tolist() for x in pick(torch.tensor(rows), nth))
    for row, n, at, below, own in zip(rows, nth, chosen, before, inside, strict=True):
        assert (below, own) == (sum(row[:at]), row[at])
        if sum(row) >= n:
            assert below < n <= below + own
        else:
            assert at == len(row) - 1


def test_narrow_appends_the_digit() -> None:
    found = [Found(0b101 << 4, 10, 9), Found(0, 0, 6)]
    counts = torch.tensor([[2, 0, 7, 0], [0, 5, 0, 1]])
    chosen, narrowed = narrow(found, Digit(2, 2), counts, [13, 6])
    assert chosen.tolist() == [2, 3]
    assert narrowed == [Found((0b101 << 4) + (2 << 2), 12, 7), Found(3 << 2, 5, 1)]


def test_integers_are_made_when_they_are_counted() -> None:
    """What fails then is raised by every process; before, it would be raised by one alone."""
    made = []

    def make() -> Integers:
        made.append(True)
        return Integers(torch.tensor([5, 6, 5]), None)

    remaining = Remaining(make)
    assert not made
    [found] = find_digit(OneProcess(), "", remaining, Digit(0, 3), [3], [Found(0, 0, 3)])
    assert found == Found(6, 2, 1)
    assert remaining.get().values.tolist() == [6]
    assert made == [True]


@pytest.mark.parametrize("size", [1, 7, 16, 17])
def test_a_handful_is_sent_at_once(size: int) -> None:
    """And more are counted first, here by two digits of 12 bits."""
    processes = Processes(2)

    def run(reduce: Reduce) -> list[Found]:
        own = Integers(torch.arange(size)[reduce.process :: 2] << 40, None)
        return refine(reduce, "", Remaining(lambda: own), 64, [1], [Found(0, 0, size)])

    assert processes.run(run)[0] == [Found(0, 0, 1)]
    assert len(processes.messages) == (1 if size <= 16 else 3)
    assert processes.messages[-1] == ("", 32)


def test_one_process_sums_nothing() -> None:
    counts = torch.arange(3)
    assert OneProcess().sum("", 3, lambda: counts) is counts
