"""The search: the threshold up to which there are exactly k candidates, and the masks at it.

A sample gives a bracket for each threshold: two keys that probably enclose it. One pass over the
scores counts the candidates below the bracket, writes "above the bracket" into the masks, and
collects the few candidates inside. The threshold is one of those. Radix select finds its key, and
then, among the candidates with that key, its tree index. If a single accelerator has all leaves, it
sorts the collected candidates instead.

Two things can go wrong. First, the threshold may not be in the bracket. The counts then say on
which side it is, and another pass follows. Second, the bracket may hold too many candidates to
collect. If many of them have the same key, the bracket becomes this key, and its candidates are
only counted. Otherwise the next pass divides the bracket into bins of keys and counts each bin, and
the bracket becomes the bin that has the threshold.

After `GUESSES` passes the sample is not used any more. Each pass over bins then finds
`max_pass_bits` bits of the key, until the bracket is a single key, or its candidates can be
collected. So for any scores a search finds its key in at most
`GUESSES + ceil(bits / max_pass_bits) + 3` passes. If its queries are sampled, it nearly always
takes one. Queries that share their leaves are not sampled. If the brackets of several leaves
together hold more candidates than may be collected, each bracket is narrowed again. That takes up
to `ceil(bits / max_pass_bits) + 1` more passes.

A search holds one block, the sample and the collected candidates in memory. On the CPU these are at
most `LIMIT` candidates, or `BATCH` if it has several queries. On an accelerator they are about
`MAX_SLOTS`.

Counts are summed over the processes that hold the leaves, so every process finds the same
thresholds. With one process the sum is the count itself.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn.functional import pad

from gprune.inputs import LeafError
from gprune.select.accelerator import MAX_SLOTS, AcceleratorPass, AcceleratorSample, count_keys
from gprune.select.blocks import Query, RankedLeaves
from gprune.select.counts import resolve, resolve_floors
from gprune.select.finish import (
    KeyThreshold,
    finish_collected,
    finish_counted,
    prune_directly,
    prune_small,
)
from gprune.select.keys import (
    FORMATS,
    MAX_INT64_SCORE,
    keys_of,
    to_bits,
    to_float64_keys,
    values_of,
)
from gprune.select.partition import (
    Bins,
    PartitionPass,
    copy_priors,
    write_masks,
)
from gprune.select.refine import Interval, Reduce, pick
from gprune.select.sampling import Guess, expected_inside, guess_brackets

LIMIT = 2**20
"""The most candidates that a process collects; each takes some 32 bytes."""

BATCH = 2**21
"""The most candidates that a process collects for several queries."""

FEW = 2**16
"""If a query has at most this many candidates, all are collected, without a sample."""

MIN_FEW = 2**10
"""On an accelerator FEW is divided among the queries of a search. Each gets at least this many."""

DIRECT = 2**18
"""If leaves on the CPU have at most this many entries, one process ranks all of them at once."""

MAX_ACCELERATOR_BITS = 11
"""The most bits of a digit that a pass on an accelerator finds. A histogram with
2**MAX_ACCELERATOR_BITS bins fits into the shared memory of a program."""

SMALL = 2**9
"""Leaves with at most this many entries are sorted together, if each is ranked alone."""

GUESSES = 3
"""In how many passes, the first ones, the brackets of the sample are used."""


def select_into(
    masks: list[Tensor],
    ranked: RankedLeaves,
    amounts: Sequence[Tensor],
    is_sparsity: bool,
    reduce: Reduce,
) -> None:
    """Write the masks that prune all leaves by one amount, or each leaf by its own.

    Args:
        masks: one contiguous bool mask per leaf, to be written.
        ranked: the leaves that are ranked.
        amounts: one, or one per leaf.
        is_sparsity: whether the amounts are sparsities.
        reduce: sums counts over the processes.

    Raises:
        ValueError: if the amount is out of range.
        LeafError: if the amount of one leaf is out of range.
    """
    all_leaves = range(len(ranked.scores))
    scopes = [all_leaves] if len(amounts) == 1 else [range(leaf, leaf + 1) for leaf in all_leaves]
    is_one_cpu_process = reduce.num_processes == 1 and ranked.is_on_cpu
    queries, small = [], dict[torch.dtype, list[tuple[int, int]]]()
    rows = zip(amounts, scopes, count_candidates(ranked, scopes, reduce), strict=True)
    for number, (amount, leaves, num_candidates) in enumerate(rows):
        entries = ranked.tree_starts[leaves.stop] - ranked.tree_starts[leaves.start]
        try:
            k = resolve(amount, entries, num_candidates, is_sparsity)
        except ValueError as error:
            if len(amounts) == 1:
                raise
            raise LeafError(number, "sparsity" if is_sparsity else "amount", str(error)) from None
        if k == 0:
            copy_priors(ranked, leaves, masks)
        elif is_one_cpu_process and entries <= min(SMALL, DIRECT) and len(leaves) == 1:
            small.setdefault(ranked.scores[number].dtype, []).append((number, k))
        elif is_one_cpu_process and entries <= DIRECT:
            prune_directly(ranked, leaves, k, masks)
        else:
            queries.append(Query(leaves, k, num_candidates))
    for pairs in small.values():  # leaves of one dtype are sorted together
        step = max(1, DIRECT // SMALL)
        for start in range(0, len(pairs), step):
            some = pairs[start : start + step]
            prune_small(ranked, [leaf for leaf, _ in some], [k for _, k in some], masks)
    # One CPU process sends no messages, so nothing is gained by searching several queries at once,
    # and one query at a time takes less memory.
    most, few = (BATCH, FEW) if ranked.is_on_cpu else (MAX_SLOTS, 0)
    alone = [[query] for query in queries]
    for group in alone if is_one_cpu_process else batches(queries, most, few, reduce):
        Search(ranked, group, reduce, masks).run()


def select_above_floors(
    masks: list[Tensor],
    ranked: RankedLeaves,
    amount: Tensor,
    is_sparsity: bool,
    min_per_leaf: Tensor,
    reduce: Reduce,
) -> None:
    """Write the masks that prune all leaves by one amount and leave each leaf a least number.

    A first selection ranks each leaf alone and finds the entries that it must keep: its last ones
    in the order of pruning. A second selection ranks all the others together.

    Args:
        masks: one contiguous bool mask per leaf, to be written.
        ranked: the leaves that are ranked.
        amount: how much to prune.
        is_sparsity: whether the amount is a sparsity.
        min_per_leaf: how many entries each leaf must keep, or which fraction of them.
        reduce: sums counts over the processes.

    Raises:
        ValueError: if a number is out of range, or the leaves must keep more than the amount does.
    """
    starts = ranked.tree_starts
    scopes = [range(leaf, leaf + 1) for leaf in range(len(ranked.scores))]
    candidates = count_candidates(ranked, scopes, reduce)
    k = resolve(amount, starts[-1], sum(candidates), is_sparsity)
    floors = resolve_floors(min_per_leaf, [stop - start for start, stop in pairwise(starts)])
    most = [max(0, n - floor) for n, floor in zip(candidates, floors, strict=True)]
    if k > sum(most):
        name = "sparsity" if is_sparsity else "amount"
        raise ValueError(
            f"{name} {amount.item()} prunes {k} of {sum(candidates)} candidates, but min_per_leaf "
            f"{min_per_leaf.item()} allows at most {sum(most)}; lower one of the two"
        )
    if k == 0:
        copy_priors(ranked, range(len(masks)), masks)
        return
    counts = [torch.tensor(n, dtype=torch.int64, device="cpu") for n in (*most, k)]
    protected = [torch.empty_like(mask) for mask in masks]
    select_into(protected, ranked, counts[:-1], False, reduce)
    free = [mask.logical_not() for mask in protected]
    if ranked.priors:
        free = [mask & prior for mask, prior in zip(free, ranked.priors, strict=True)]
    select_into(masks, replace(ranked, priors=free), counts[-1:], False, reduce)
    for mask, must_stay in zip(masks, protected, strict=True):
        mask.logical_or_(must_stay)


def find_thresholds(
    ranked: RankedLeaves, amount: Tensor, is_sparsity: bool, reduce: Reduce
) -> tuple[Tensor, Tensor]:
    """Find the threshold of all leaves at every amount of a tensor.

    Returns:
        The values, float64, and the tree indices, int64, on the CPU, in the shape of `amount`.
    """
    leaves = range(len(ranked.scores))
    [num_candidates] = count_candidates(ranked, [leaves], reduce)
    entries = ranked.tree_starts[-1]
    ks = [resolve(one, entries, num_candidates, is_sparsity) for one in amount.view(-1)]
    wanted = sorted(set(ks) - {0})
    found = {0: (-torch.inf, -1)}
    if wanted:
        queries = [Query(leaves, k, num_candidates) for k in wanted]
        keys, indices = zip(*filter(None, Search(ranked, queries, reduce).run()), strict=True)
        values = values_of(torch.tensor(keys, device="cpu"), ranked.common).tolist()
        found |= dict(zip(wanted, zip(values, indices, strict=True), strict=True))
    value = torch.tensor([found[k][0] for k in ks], dtype=torch.float64, device="cpu")
    index = torch.tensor([found[k][1] for k in ks], dtype=torch.int64, device="cpu")
    return value.view(amount.shape), index.view(amount.shape)


def write_at(
    masks: list[Tensor], ranked: RankedLeaves, value: Tensor, index: Tensor, reduce: Reduce
) -> None:
    """Write the masks at a threshold: the score and the tree index of the last pruned entry.

    Raises:
        ValueError: if the score is an integer that float64 may not hold exactly.
    """
    if not value.is_floating_point() and abs(int(value)) > MAX_INT64_SCORE:
        raise ValueError(
            f"threshold.value must be at most 2**53 in magnitude if it is an integer, got {value}"
        )
    form, tree_index = FORMATS[value.dtype], int(index.item())
    key = int(to_float64_keys(keys_of(to_bits(value, form), form, absolute=False), form))
    exact = replace(ranked, exact=True)  # any threshold has a float64 key

    def write() -> Tensor:
        for part in (exact, exact.counted_elsewhere()):
            if part is not None:
                blocks = part.blocks(range(len(part.scores)))
                write_masks(part, blocks, key, part.last_position(tree_index), masks)
        return torch.empty(0, dtype=torch.int64, device="cpu")

    reduce.sum("writing the masks", 0, write)


def count_candidates(ranked: RankedLeaves, scopes: list[range], reduce: Reduce) -> list[int]:
    """Count the candidates of each scope, over all processes."""
    if not ranked.priors:
        starts = ranked.tree_starts
        return [starts[leaves.stop] - starts[leaves.start] for leaves in scopes]

    def count() -> Tensor:
        before = pad(ranked.num_candidates().cumsum(0), (1, 0))
        ends = torch.tensor([(leaves.start, leaves.stop) for leaves in scopes], device="cpu")
        return before[ends.to(before.device)].diff(dim=1).view(-1)

    found: list[int] = reduce.sum("counting the candidates", len(scopes), count).tolist()
    return found


def batches(queries: Sequence[Query], most: int, few: int, reduce: Reduce) -> Iterator[list[Query]]:
    """Split queries into groups whose collected candidates fit into memory.

    Args:
        queries: the thresholds to find.
        most: the most candidates that a process should collect for a group.
        few: if a query has at most this many candidates, all are collected.
        reduce: knows how many processes there are.

    Yields:
        The queries of each group.
    """
    run, held = list[Query](), 0
    for query in queries:
        total = query.num_candidates
        expected = total if total <= few else expected_inside(total)
        if run and held + expected > most * reduce.num_processes:
            yield run
            run, held = [], 0
        run.append(query)
        held += expected
    if run:
        yield run


class Search:
    """A search for the thresholds of some queries, which share their passes and messages."""

    def __init__(
        self,
        ranked: RankedLeaves,
        queries: Sequence[Query],
        reduce: Reduce,
        masks: list[Tensor] | None = None,
    ) -> None:
        """Prepare a search.

        Args:
            ranked: the leaves that are ranked.
            queries: the thresholds to find. If there are masks, no two queries share a leaf.
            reduce: sums counts over the processes.
            masks: one contiguous bool mask per leaf, to be written; or `None`.
        """
        self._ranked, self._queries, self._reduce, self._masks = ranked, queries, reduce, masks
        self._intervals = [Interval(*ranked.key_range, 0, q.num_candidates) for q in queries]
        self._num_sharing = Counter(query.leaves for query in queries)
        # on an accelerator the slots of all queries are in memory together
        self._few = FEW if ranked.is_on_cpu else max(FEW // max(1, len(queries)), MIN_FEW)
        self._sample = AcceleratorSample(ranked)
        self._number_in_sample: dict[int, int] = {}

    def run(self) -> list[KeyThreshold | None]:
        """Find the threshold of every query, and write the masks.

        Returns:
            The thresholds. If there are masks, those that were found on an accelerator are `None`.
        """
        queries, reduce = self._queries, self._reduce
        found: dict[int, KeyThreshold | None] = {}
        limit = LIMIT if len(queries) == 1 else BATCH
        share = limit * reduce.num_processes // max(self._num_sharing.values())
        guesses = self._guess()
        pending, num_passes = list(range(len(queries))), 0
        while pending:
            num_passes += 1
            sampled = guesses if num_passes <= GUESSES else {}
            brackets, too_full = self._choose_brackets(pending, sampled, share)
            if too_full:
                self._count_in_bins(too_full)
                continue
            pass_ = self._prepare_pass(brackets, limit)
            phase = "counting around the brackets"
            counts = reduce.sum(phase, pass_.num_counts, pass_.run).tolist()
            if any(counts[2 * len(pending) :]):  # one process may have all of the candidates
                share = limit // len(pending)
            found |= self._finish(pass_, pending, self._settle(pass_, pending, counts))
            pending = [i for i in pending if i not in found]
        return [found[i] for i in range(len(queries))]

    def _prepare_pass(
        self, brackets: dict[int, tuple[int, int]], limit: int
    ) -> PartitionPass | AcceleratorPass:
        """Prepare a pass that divides the candidates of some queries by their brackets."""
        chosen, bounds = [self._queries[i] for i in brackets], list(brackets.values())
        if self._ranked.is_on_cpu:
            return PartitionPass(self._ranked, chosen, bounds, self._masks, limit)
        num_slots = [self._num_slots(i, *bracket) for i, bracket in brackets.items()]
        return AcceleratorPass(self._ranked, chosen, bounds, self._masks, num_slots)

    def _num_slots(self, query: int, low: int, high: int) -> dict[int, int]:
        """Return how many slots each block has, by the position of its first entry."""
        known, sizes = self._intervals[query], Counter[int]()
        for start, _, first, stop in self._ranked.spans(self._queries[query].leaves):
            sizes[start] += stop - first
        if (low, high) == known[:2]:
            return {start: min(size, known.num_inside) for start, size in sizes.items()}
        predicted = self._sample.num_slots(self._number_in_sample[query], low, high)
        return {start: min(size, predicted[start]) for start, size in sizes.items()}

    def _choose_brackets(
        self, pending: list[int], guesses: dict[int, Guess], share: int
    ) -> tuple[dict[int, tuple[int, int]], dict[int, tuple[int, int]]]:
        """Choose the brackets of the pending queries.

        Args:
            pending: the numbers of the queries.
            guesses: what the sample says, by the numbers of the queries.
            share: how many candidates may be collected for a query.

        Returns:
            Two dicts by the numbers of the queries: the brackets whose candidates are collected or
            counted, and the brackets that probably hold too many candidates, and must be narrowed
            first.
        """
        brackets, too_full = dict[int, tuple[int, int]](), dict[int, tuple[int, int]]()
        for i in pending:
            most = share if self._ranked.is_on_cpu else self._most_on_accelerator(i)
            low, high, expected = choose_bracket(self._intervals[i], guesses.get(i), most)
            if not self._ranked.is_on_cpu and (low, high) == self._intervals[i][:2]:
                most = self._few  # the sample does not say how many slots each block needs
            group = too_full if expected > most and low < high else brackets
            group[i] = low, high
        return brackets, too_full

    def _most_on_accelerator(self, query: int) -> int:
        """Return how many candidates of a query may be collected on accelerators."""
        if len(self._queries) == 1:
            return MAX_SLOTS * self._reduce.num_processes
        total = self._queries[query].num_candidates
        return total if total <= self._few else 2 * expected_inside(total)

    def _finish(
        self, pass_: PartitionPass | AcceleratorPass, pending: list[int], settled: list[int]
    ) -> dict[int, KeyThreshold | None]:
        """Find the thresholds of the queries that a pass has settled, by their numbers."""
        ranked, reduce, masks = self._ranked, self._reduce, self._masks
        found: dict[int, KeyThreshold | None] = {}
        collected = [n for n in settled if pass_.collects(n)]
        counted = [n for n in settled if not pass_.collects(n)]
        for numbers in filter(None, (collected, counted)):
            keys = [self._intervals[pending[n]] for n in numbers]
            new: Sequence[KeyThreshold | None]
            if numbers is counted:
                new = finish_counted(ranked, reduce, pass_, numbers, keys, masks)
            elif isinstance(pass_, AcceleratorPass) and pass_.can_finish(reduce):
                new = pass_.finish(numbers, keys, masks)
            else:
                new = finish_collected(ranked, reduce, pass_, numbers, keys, masks)
            found |= zip((pending[n] for n in numbers), new, strict=True)
        return found

    def _guess(self) -> dict[int, Guess]:
        """Guess from a sample where the thresholds of queries with many candidates are.

        Queries that share their leaves are not sampled. One pass that counts keys in bins narrows
        the intervals of all of them.

        Returns:
            The guesses by the numbers of the queries.
        """
        many = [
            i
            for i, query in enumerate(self._queries)
            if query.num_candidates > self._few and self._num_sharing[query.leaves] == 1
        ]
        if not many:
            return {}
        queries = [self._queries[i] for i in many]
        self._number_in_sample = {query: number for number, query in enumerate(many)}
        draw_samples = None if self._ranked.is_on_cpu else self._sample.draw
        found = guess_brackets(self._ranked, queries, self._reduce, draw_samples)
        return dict(zip(many, found, strict=True))

    def _count_in_bins(self, brackets: dict[int, tuple[int, int]]) -> None:
        """Make a pass that counts keys in bins, and narrow each query's interval to one bin."""
        chosen = [self._queries[i] for i in brackets]
        max_bins = max(2, self._reduce.max_counts // len(chosen))
        max_bits = self._reduce.max_pass_bits
        if not self._ranked.is_on_cpu:
            max_bits = min(max_bits, MAX_ACCELERATOR_BITS)
        num_bins = min(1 << max_bits, max_bins)
        bins = [Bins.covering(low, high, num_bins) for low, high in brackets.values()]
        count = functools.partial(count_keys, self._ranked, chosen, bins)
        counts = self._reduce.sum("counting keys in bins", len(chosen) * (num_bins + 2), count)
        picked = pick(counts.view(len(chosen), -1), [query.k for query in chosen])
        rows = zip(*(column.tolist() for column in picked), strict=True)
        for i, query_bins, (number, below, inside) in zip(brackets, bins, rows, strict=True):
            known = self._intervals[i]
            low, high = known.low, known.high
            if number > 0:
                low = max(low, query_bins.first + ((number - 1) << query_bins.shift))
            if number <= num_bins:
                high = min(high, query_bins.first + (number << query_bins.shift) - 1)
            end = min(below + inside, known.num_below + known.num_inside)
            below = max(below, known.num_below)  # the bins may be wider than the interval
            self._intervals[i] = Interval(low, high, below, end - below)

    def _settle(
        self, pass_: PartitionPass | AcceleratorPass, pending: list[int], counts: list[int]
    ) -> list[int]:
        """Narrow the intervals by the counts of a pass.

        Args:
            pass_: the pass.
            pending: for each query of the pass its number in the search.
            counts: what the pass has counted, summed over the processes.

        Returns:
            The numbers, in the pass, of the queries that it has settled: the threshold is in the
            bracket, and the candidates in the bracket are collected or have one key.
        """
        size, settled = len(pending), list[int]()
        columns = (counts[first : first + size] for first in (0, size, 2 * size))
        rows = zip(pending, pass_.brackets, *columns, strict=True)
        for number, (i, (low, high), not_below, inside, is_full) in enumerate(rows):
            known, query = self._intervals[i], self._queries[i]
            k, below = query.k, query.num_candidates - not_below
            end = known.num_below + known.num_inside
            if (low, high) != known[:2]:  # if equal, the counts say nothing new
                if k <= below:
                    known = Interval(known.low, low - 1, known.num_below, below - known.num_below)
                elif k > below + inside:
                    known = Interval(high + 1, known.high, below + inside, end - below - inside)
                else:
                    known = Interval(low, high, below, inside)
                self._intervals[i] = known
            if (low, high) == known[:2] and (low == high or not is_full):
                settled.append(number)
        return settled


def choose_bracket(interval: Interval, guess: Guess | None, share: int) -> tuple[int, int, int]:
    """Choose the bracket of a query for the next pass.

    Args:
        interval: what is known of the key of the threshold.
        guess: the guess from the sample, or `None`.
        share: how many candidates may be collected for the query.

    Returns:
        The lowest and the highest key of the bracket, and how many candidates it probably holds. If
        the bracket was narrowed to a single key, the number is that of the wider bracket: the
        candidates of a single key are not collected, so it is not used.
    """
    if guess is None or guess.high < interval.low or guess.low > interval.high:
        return interval.low, interval.high, interval.num_inside
    low, high = max(interval.low, guess.low), min(interval.high, guess.high)
    at_low = guess.at_low if low == guess.low else 0
    at_high = guess.at_high if high == guess.high else 0
    expected = guess.between + at_low + at_high
    if (low, high) == (interval.low, interval.high):
        expected = interval.num_inside
    if expected > share and 4 * max(at_low, at_high) > share:
        # many candidates share one key: a bracket of that key alone need not be collected
        low, high = (low, low) if at_low >= at_high else (high, high)
    return low, high, expected
