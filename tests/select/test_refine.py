"""Radix select against `sorted`, in one process and in several."""

from bisect import bisect_left, bisect_right
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gprune.select.refine import (
    Integers,
    Interval,
    Once,
    OneProcess,
    Reduce,
    find_nth,
    pick,
    refine,
)
from tests.support.limits import Limits, limits, patched
from tests.support.ranked import Processes, ThreadReduce


class Asked(NamedTuple):
    """Integers of some queries, where they are, and which is wanted.

    Attributes:
        intervals: the lowest and the highest integer that each query may have.
        values: the offsets of the integers of each query from the lowest.
        owners: the process of each.
        nth: which is wanted of each query, from 1.
        dtype: holds the bits of an offset.
    """

    intervals: list[tuple[int, int]]
    values: list[list[int]]
    owners: list[list[int]]
    nth: list[int]
    dtype: torch.dtype

    @property
    def num_queries(self) -> int:
        return len(self.values)

    def known(self, before: int = 0) -> list[Interval]:
        """What is known at first, where so many integers are known to be below the interval."""
        pairs = zip(self.intervals, self.values, strict=True)
        return [Interval(low, high, before, len(row)) for (low, high), row in pairs]


NUM_PROCESSES = 3
WIDTHS = {
    torch.int16: [1, 3, 8, 15, 16],
    torch.int32: [0, 1, 3, 8, 20, 31, 32],
    torch.int64: [0, 1, 3, 8, 20, 31, 32, 33, 63, 64],
}


@st.composite
def asked(draw: st.DrawFn) -> Asked:
    """Queries whose intervals have different widths and different ends."""
    dtype = draw(st.sampled_from(list(WIDTHS)))
    intervals, drawn = [], []
    for _ in range(draw(st.integers(1, 4))):
        largest = 2 ** draw(st.sampled_from(WIDTHS[dtype])) - 1
        largest = min(largest, 2**64 - 2)  # one more could not be sent
        near = draw(st.integers(0, max(0, largest - 8)))
        value = st.one_of(
            st.integers(0, largest),
            st.integers(near, min(near + 8, largest)),  # ties, and few digits that differ
            st.sampled_from([0, largest]),
        )
        owner = st.integers(0, NUM_PROCESSES - 1)
        drawn.append(draw(st.lists(st.tuples(value, owner), min_size=1, max_size=40)))
        low = draw(st.sampled_from([0, -(2**63)]) | st.integers(-(2**63), 2**63 - largest - 1))
        intervals.append((low, low + largest))
    return Asked(
        intervals,
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
    if given.num_queries == 1:
        return Integers(tensor, None)
    return Integers(tensor, torch.tensor([query for _, query in found], dtype=torch.int64))


def expected(given: Asked, before: int = 0) -> list[Interval]:
    """What `sorted` says."""
    results = []
    for (low, _), row, n in zip(given.intervals, given.values, given.nth, strict=True):
        rising = sorted(row)
        value = rising[n - 1]
        below = bisect_left(rising, value)
        inside = bisect_right(rising, value) - below
        results.append(Interval(low + value, low + value, before + below, inside))
    return results


# --- the n-th integer ---------------------------------------------------------------------------


@given(asked(), limits(), st.integers(0, 5))
def test_find_nth_finds_what_sorted_finds(given: Asked, small: Limits, before: int) -> None:
    """Also where so many are known to be below all of these integers."""
    nth = [n + before for n in given.nth]
    with patched(small):
        found = find_nth(OneProcess(), "", lambda: integers(given), given.known(before), nth)
    assert found == expected(given, before)


@given(asked(), limits())
def test_find_nth_finds_the_same_in_several_processes(given: Asked, small: Limits) -> None:
    def run(reduce: Reduce) -> list[Interval]:
        own = integers(given, reduce.process)
        return find_nth(reduce, "", lambda: own, given.known(), given.nth)

    with patched(small):
        processes = Processes(NUM_PROCESSES)
        results = processes.run(run)
    assert results == [expected(given)] * NUM_PROCESSES
    most = max(small.max_counts, 2 * given.num_queries)  # a digit has one bit at least
    if small.max_counts >= given.num_queries * NUM_PROCESSES:
        assert all(size <= most for _, size in processes.messages)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize("max_sent", [0, 16])
def test_offsets_beyond_the_sign_bit_are_unsigned(dtype: torch.dtype, max_sent: int) -> None:
    """32 bits of an int32, or 64 bits of an int64: the keys of floats and of integers need both."""
    num_bits = torch.iinfo(dtype).bits
    largest = 2**num_bits - 2
    offsets = [largest, 2 ** (num_bits - 1), 2 ** (num_bits - 1) - 1, 0]
    tensor = torch.tensor([x - 2**num_bits * (x >> num_bits - 1) for x in offsets], dtype=dtype)
    low = -(2 ** (num_bits - 1))
    for n, offset in enumerate(sorted(offsets), 1):
        for query in (None, torch.zeros(4, dtype=torch.int64)):
            known, own = Interval(low, low + largest, 0, 4), Integers(tensor, query)
            with patched(Limits(max_sent=max_sent)):
                [found] = find_nth(OneProcess(), "", lambda own=own: own, [known], [n])
            assert found == Interval(low + offset, low + offset, n - 1, 1)


def test_a_single_integer_needs_no_message() -> None:
    """The interval of every query is one integer: nothing is counted, and nothing is made."""

    class Silent(OneProcess):
        def sum(self, phase: str, size: int, count: Any) -> torch.Tensor:
            raise AssertionError("a message was sent")

    known = [Interval(5, 5, 2, 100), Interval(-1, -1, 0, 3)]
    assert find_nth(Silent(), "", lambda: pytest.fail("made"), known, [7, 1]) == known


@pytest.mark.parametrize("size", [1, 7, 16, 17])
def test_a_handful_is_sent_at_once(size: int) -> None:
    """And more are counted first, here by two digits of 12 bits."""
    processes = Processes(2)

    def run(reduce: Reduce) -> list[Interval]:
        own = Integers(torch.arange(size)[reduce.process :: 2] << 40, None)
        return find_nth(reduce, "", lambda: own, [Interval(0, 2**64 - 2, 0, size)], [1])

    assert processes.run(run)[0] == [Interval(0, 0, 0, 1)]
    assert len(processes.messages) == (1 if size <= 16 else 3)
    assert processes.messages[-1] == ("", 32)


def test_integers_are_made_when_they_are_counted() -> None:
    """What fails then is raised by every process; before, it would be raised by one alone."""
    made = []

    class Watching(OneProcess):
        inside = False

        def sum(self, phase: str, size: int, count: Any) -> torch.Tensor:
            self.inside = True
            counts: torch.Tensor = count()
            self.inside = False
            return counts

    reduce = Watching()

    def make() -> Integers:
        made.append(reduce.inside)
        return Integers(torch.tensor([5, 6, 5] * 10), None)

    [found] = find_nth(reduce, "", make, [Interval(0, 7, 0, 30)], [21])
    assert found == Interval(6, 6, 20, 10)
    assert made == [True]


# --- digit by digit -----------------------------------------------------------------------------


@given(asked(), limits(), st.integers(0, 5), st.integers(0, 40))
def test_refine_narrows_until_few_are_left(
    given: Asked, small: Limits, before: int, enough: int
) -> None:
    """And what remains are the integers of the intervals."""
    nth = [n + before for n in given.nth]
    totals_given: list[list[int]] = []

    def ask(totals: list[int]) -> list[int]:
        totals_given.append(totals)
        return nth

    known = given.known(before)
    most = [enough] * given.num_queries
    with patched(small):
        found, totals, remaining = refine(
            OneProcess(), "", lambda: integers(given), known, ask, most, small.max_bits
        )
        left = remaining()
    has_counted = any(len(row) > enough for row in given.values) and any(
        low < high for low, high in given.intervals
    )
    assert totals == ([len(row) for row in given.values] if has_counted else [])
    assert totals_given == [totals] * has_counted
    unsigned = [x % 2 ** torch.iinfo(given.dtype).bits for x in left.offsets.tolist()]
    queries = [0] * len(unsigned) if left.query is None else left.query.tolist()
    is_narrow = all(len(row) <= enough for row in given.values) or all(
        new.low == new.high or new.num_inside <= enough for new in found
    )
    assert is_narrow
    rows = zip(given.intervals, given.values, given.nth, found, strict=True)
    for query, ((low, high), row, n, new) in enumerate(rows):
        wanted = low + sorted(row)[n - 1]
        assert low <= new.low <= wanted <= new.high <= high
        inside = sorted(x for x in row if new.low <= low + x <= new.high)
        assert new.num_below == before + sum(low + x < new.low for x in row)
        assert new.num_inside == len(inside)
        pairs = zip(unsigned, queries, strict=True)
        assert sorted(x for x, own in pairs if own == query) == inside


@given(st.integers(0, 64), limits(), st.integers(1, 300))
def test_digits_are_as_wide_as_a_message_allows(
    num_bits: int, small: Limits, num_queries: int
) -> None:
    """Together the digits have all bits, and only the last may be narrower than the others."""
    widths = []

    class Watching(OneProcess):
        def sum(self, phase: str, size: int, count: Any) -> torch.Tensor:
            assert size % num_queries == 0
            widths.append((size // num_queries).bit_length() - 1)
            counts: torch.Tensor = count()
            assert counts.numel() == size
            return counts

    known = [Interval(0, 2**num_bits - 1, 0, 1)] * num_queries
    nothing = Integers(*[torch.zeros(num_queries, dtype=torch.int64), torch.arange(num_queries)])
    nth = [1] * num_queries
    with patched(small):
        reduce, enough = Watching(), [0] * num_queries
        refine(reduce, "", lambda: nothing, known, lambda _: nth, enough, small.max_bits)
    assert sum(widths) == num_bits
    for width in widths:
        assert 1 <= width <= small.max_bits
        assert width == 1 or num_queries << width <= small.max_counts
    if widths:  # as wide as they may be, but for the last
        widest = widths[0]
        assert all(width == widest for width in widths[:-1])
        wider = num_queries << (widest + 1)
        assert widest in (small.max_bits, num_bits) or wider > small.max_counts


def test_a_narrow_interval_stays_narrow_beside_a_wide_one() -> None:
    """The first digit is that of the wide one. It has sixteen integers of either."""
    own = Integers(torch.tensor([7, 9, 200]), torch.tensor([0, 0, 1]))
    known = [Interval(0, 9, 0, 99), Interval(0, 255, 0, 99)]
    found, _, _ = refine(OneProcess(), "", lambda: own, known, lambda _: [2, 1], [2, 1], 4)
    assert found == [Interval(0, 9, 0, 2), Interval(192, 207, 0, 1)]


def test_a_query_without_integers_stays_at_its_lowest() -> None:
    """The sample of a query may be empty. The n-th of none is asked for as the 0th."""
    own = Integers(torch.tensor([3, 3, 9]), torch.tensor([1, 1, 1]))
    known = [Interval(0, 15, 0, 99)] * 2
    found, totals, _ = refine(OneProcess(), "", lambda: own, known, lambda n: [n[0], 3], [4, 4], 12)
    assert totals == [0, 3]
    assert found == [Interval(0, 0, 0, 0), Interval(9, 9, 2, 1)]


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


def test_integers_of_two_queries_keep_the_digits_of_each() -> None:
    """The second digit, of two bits: 2 of the first query, and 1 of the second."""
    offsets = torch.tensor([0b1000, 0b0100, 0b1011, 0b0110, 0b1010])
    query = torch.tensor([0, 1, 1, 1, 0])
    own = Integers(offsets, query)
    assert own.count_digits(2, 2, 2).tolist() == [0, 0, 2, 0, 0, 2, 1, 0]
    kept = own.keep(2, 2, torch.tensor([2, 1]))
    assert kept.query is not None
    assert kept.offsets.tolist() == [0b1000, 0b0100, 0b0110, 0b1010]
    assert kept.query.tolist() == [0, 1, 1, 0]
    alone = Integers(offsets, None).keep(2, 2, torch.tensor([2]))
    assert alone.query is None
    assert alone.offsets.tolist() == [0b1000, 0b1011, 0b1010]


@given(asked())
def test_the_sum_of_the_messages_has_the_integers_of_all(given: Asked) -> None:
    """Each process has slots of its own for each query; an empty slot is 0."""
    num_slots, total = 40, torch.zeros((), dtype=torch.int64)
    for process in range(NUM_PROCESSES):
        reduce = ThreadReduce(process, Processes(NUM_PROCESSES))
        total = total + integers(given, process).slots(given.num_queries, num_slots, reduce)
    rows = total.view(given.num_queries, NUM_PROCESSES, num_slots).tolist()
    for row, owners, slots in zip(given.values, given.owners, rows, strict=True):
        for process, sent in enumerate(slots):
            own = [x + 1 for x, owner in zip(row, owners, strict=True) if owner == process]
            assert sorted(x % 2**64 for x in sent if x) == sorted(own)


def test_a_message_has_places_for_every_process_and_query() -> None:
    """As many for each query as it may have integers, also if all together have more."""
    offsets, query = torch.tensor([5, 3, 9]), torch.tensor([1, 0, 1])
    for process in (0, 1):
        reduce = ThreadReduce(process, Processes(2))
        one = Integers(offsets, None).slots(1, 4, reduce).view(2, 4)
        assert one[process].tolist() == [6, 4, 10, 0]
        assert not one[1 - process].any()
        several = Integers(offsets, query).slots(3, 2, reduce).view(3, 2, 2)
        sent = several[:, process].sort(dim=1).values
        assert sent.tolist() == [[0, 4], [6, 10], [0, 0]]
        assert not several[:, 1 - process].any()


def test_equal_integers_that_are_sent_are_counted() -> None:
    own = Integers(torch.tensor([6, 9, 6, 4]), None)
    for n, expected in ((1, (4, 4, 0, 1)), (2, (6, 6, 1, 2)), (3, (6, 6, 1, 2)), (4, (9, 9, 3, 1))):
        [found] = find_nth(OneProcess(), "", lambda: own, [Interval(0, 15, 0, 4)], [n])
        assert found == expected


def test_what_is_computed_once_is_kept() -> None:
    made = []
    once = Once(lambda: made.append(True) or len(made))
    assert not made
    assert (once(), once()) == (1, 1)


def test_what_fails_is_computed_again() -> None:
    """An error is no result."""
    results = iter([ValueError("no"), 3])

    def compute() -> int:
        result = next(results)
        if isinstance(result, ValueError):
            raise result
        return result

    once = Once(compute)
    with pytest.raises(ValueError, match="no"):
        once()
    assert once() == 3


def test_one_process_sums_nothing() -> None:
    counts = torch.arange(3)
    assert OneProcess().sum("", 3, lambda: counts) is counts
