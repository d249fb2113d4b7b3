"""The search: the threshold up to which there are exactly k candidates, and the masks at it.

A sample gives a bracket for each threshold: two keys that it probably is between. One pass over the
scores counts the candidates below the bracket, writes "above the bracket" into the masks, and
collects the few candidates inside. The threshold is one of those. Radix select finds its key, and
then, among the candidates with that key, its flat index.

Two things can go wrong. If the threshold is not in the bracket, the counts say on which side it is,
and another pass follows. If the bracket holds too many candidates to collect them, there are two
cases. Many of them may have the same key: then the bracket becomes this key, and its candidates are
only counted. Otherwise a pass counts the keys in bins, and the bracket becomes the bin that has the
threshold.

After `GUESSES` passes the sample is not used any more. Each pass over bins then finds
`max_pass_bits` bits of the key, until the bracket is a single key, or its candidates can be
collected. So a search takes at most `GUESSES + ceil(bits / max_pass_bits) + 3` passes to find its
key, whatever the scores are. Nearly always it takes one. It holds one block, the sample, and at
most `LIMIT` candidates in memory.

Counts are summed over the processes that hold the leaves, so every process finds the same
thresholds. With one process the sum is the count itself.
"""

from __future__ import annotations

import functools
import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from gprune.inputs import LeafError
from gprune.select.blocks import Query, RankedLeaves
from gprune.select.counting import concatenate
from gprune.select.counts import resolve
from gprune.select.keys import FORMATS, keys_of, to_bits, to_float64_keys, values_of
from gprune.select.partition import (
    Bins,
    PartitionPass,
    by_leaves,
    copy_priors,
    count_keys,
    count_ties,
    tied_indices,
    write_masks,
)
from gprune.select.refine import Found, Integers, Reduce, Remaining, pick, refine
from gprune.select.sampling import Guess, expected_inside, guess_brackets

LIMIT = 2**20
"""The most candidates that a process collects; each takes some 32 bytes."""

BATCH = 2**21
"""The most candidates that a process collects for several queries of different leaves."""

FEW = 2**16
"""If a query has no more candidates, all of them are collected, without a sample."""

GUESSES = 3
"""How many passes use the brackets of the sample."""


class Threshold(NamedTuple):
    """The last pruned candidate of a query, in the order by (key, tree index).

    Attributes:
        key: the key of the last pruned candidate, in the common format.
        tree_index: the tree index of that candidate.
    """

    key: int
    tree_index: int


class Interval(NamedTuple):
    """What is known of the key or the tree index of a threshold.

    Attributes:
        low: its lowest possible value.
        high: its highest possible value.
        num_below: how many candidates are below `low`.
        num_inside: how many candidates are from `low` to `high`.
    """

    low: int
    high: int
    num_below: int
    num_inside: int


class Settled(NamedTuple):
    """A pass, and the queries that it has settled.

    A query is settled if its threshold is in the bracket, and the candidates in the bracket are
    collected or have one key.

    Attributes:
        made: the pass.
        queries: for each query of the pass its number in the search, or -1 if it is not settled.
        is_full: whether some process has found too many candidates in the brackets to collect them.
    """

    made: PartitionPass
    queries: list[int]
    is_full: bool

    def numbers(self, *, collected: bool) -> list[tuple[int, int]]:
        """Return the settled queries whose candidates in the bracket were, or were not, collected.

        Args:
            collected: which of the two.

        Returns:
            Pairs of the number of a query in the pass and its number in the search.
        """
        return [
            (number, i)
            for number, i in enumerate(self.queries)
            if i >= 0 and collected == (self.made.collects(number) and not self.is_full)
        ]


class Collected(NamedTuple):
    """The candidates that the passes have collected in this process, for the settled queries.

    Attributes:
        keys: int64 or narrower, 1-D.
        query: the number of the query of each candidate, or `None` if the search has one query.
        passes: the passes, in the order of the candidates.
        kept: the indices of these candidates among all that the passes have collected, or `None` if
            they are all of them.
    """

    keys: Tensor
    query: Tensor | None
    passes: list[PartitionPass]
    kept: Tensor | None

    def look_up(self, numbers: list[int], index: Tensor | None = None) -> Tensor | int:
        """Look up `numbers` by the query of each candidate, or of the candidates at `index`."""
        if self.query is None:
            return numbers[0]
        query = self.query if index is None else self.query.index_select(0, index)
        return torch.tensor(numbers, device="cpu").index_select(0, query)

    def positions(self, index: Tensor) -> Tensor:
        """Return the positions of the candidates at some indices."""
        if self.kept is not None:
            index = self.kept.index_select(0, index)
        if len(self.passes) == 1:
            return self.passes[0].positions(index)
        every = [
            made.positions(torch.arange(made.keys.numel(), device="cpu")) for made in self.passes
        ]
        return concatenate(every).index_select(0, index)


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
        lowest, highest = ranked.key_range
        self._intervals = [Interval(lowest, highest, 0, q.num_candidates) for q in queries]
        self._passes: list[Settled] = []

    def run(self) -> list[Threshold]:
        """Find the threshold of every query, and write the masks."""
        ranked, queries, reduce = self._ranked, self._queries, self._reduce
        leaves = [query.leaves for query in queries]
        # collecting on an accelerator would make the host wait after every block
        can_collect = all(leaf.device.type == "cpu" for leaf in ranked.scores)
        limit = (LIMIT if len(set(leaves)) == 1 else BATCH) if can_collect else 0
        guesses = self._guess() if can_collect else [None] * len(queries)
        pending, has_overflowed = list(range(len(queries))), False
        for attempt in itertools.count():
            most = max(Counter(leaves[i] for i in pending).values())
            share = limit * reduce.num_processes // most
            if has_overflowed:  # the candidates may all be in one process
                share = limit // len(pending)
            brackets, crowded = dict[int, tuple[int, int]](), dict[int, tuple[int, int]]()
            for i in pending:
                guess = guesses[i] if attempt < GUESSES else None
                low, high, expected = choose_bracket(self._intervals[i], guess, share)
                (crowded if expected > share and low < high else brackets)[i] = low, high
            if crowded:
                self._count_in_bins(crowded)
                continue
            chosen = [queries[i] for i in pending]
            made = PartitionPass(ranked, chosen, list(brackets.values()), self._masks, limit)
            counts = reduce.sum("counting around the brackets", made.num_counts, made.run)
            settled = self._settle(made, pending, counts.tolist())
            has_overflowed = has_overflowed or self._passes[-1].is_full
            pending = [i for i, number in zip(pending, settled, strict=True) if number < 0]
            if not pending:
                break
        thresholds = self._find_indices(*self._find_keys())
        if self._masks is not None:
            write = functools.partial(self._write_rest, thresholds, self._masks)
            reduce.sum("writing the masks", 0, write)
        return thresholds

    def _guess(self) -> list[Guess | None]:
        """Guess from a sample where the thresholds of queries with many candidates are."""
        many = [i for i, query in enumerate(self._queries) if query.num_candidates > FEW]
        guesses: list[Guess | None] = [None] * len(self._queries)
        if many:
            queries = [self._queries[i] for i in many]
            found = guess_brackets(self._ranked, queries, self._reduce)
            for i, guess in zip(many, found, strict=True):
                guesses[i] = guess
        return guesses

    def _count_in_bins(self, brackets: dict[int, tuple[int, int]]) -> None:
        """Make a pass that counts keys in bins, and narrow each query's interval to one bin."""
        chosen = [self._queries[i] for i in brackets]
        num_bins = min(
            1 << self._reduce.max_pass_bits, max(2, self._reduce.max_counts // len(chosen))
        )
        bins = shared_bins(chosen, list(brackets.values()), num_bins)
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

    def _settle(self, made: PartitionPass, pending: list[int], counts: list[int]) -> list[int]:
        """Narrow the intervals by the counts of a pass, and note which queries it has settled."""
        size, is_full, settled = len(pending), counts[-1] > 0, []
        rows = zip(pending, made.brackets, counts[:size], counts[size:-1], strict=True)
        for i, (low, high), below, inside in rows:
            known, k = self._intervals[i], self._queries[i].k
            if k <= below:
                new = Interval(known.low, low - 1, known.num_below, below - known.num_below)
            elif k > below + inside:
                rest = known.num_below + known.num_inside - below - inside
                new = Interval(high + 1, known.high, below + inside, rest)
            else:
                new = Interval(low, high, below, inside)
            self._intervals[i] = new
            is_inside = below < k <= below + inside
            settled.append(i if is_inside and (low == high or not is_full) else -1)
        self._passes.append(Settled(made, settled, is_full))
        return settled

    @functools.cached_property
    def _collected(self) -> Collected:
        passes = [one for one in self._passes if one.numbers(collected=True)]
        made = [one.made for one in passes]
        if len(self._queries) == 1:
            return Collected(concatenate([one.keys for one in made]), None, made, None)
        parts = []
        for one in passes:
            numbers = [-1] * len(one.queries)
            for number, i in one.numbers(collected=True):
                numbers[number] = i
            query = torch.tensor(numbers, device="cpu")
            is_single = len(numbers) == 1
            part = query.expand(one.made.keys.numel()) if is_single else query[one.made.query]
            parts.append(part)
        keys, query = concatenate([one.keys for one in made]), concatenate(parts)
        kept = (query >= 0).nonzero().view(-1) if bool((query < 0).any()) else None
        if kept is not None:
            keys, query = keys.index_select(0, kept), query.index_select(0, kept)
        return Collected(keys, query, made, kept)

    def _find_keys(self) -> tuple[list[Found], Remaining]:
        """Find the key of every query: its interval is one key, or its candidates are collected.

        Returns:
            For each query its key, how many candidates are below it, and how many have it. Then the
            candidates that this process has collected and that remain, as offsets from the lower
            ends of the intervals.
        """
        intervals = self._intervals
        some = [i for one in self._passes for _, i in one.numbers(collected=True)]
        place = {i: number for number, i in enumerate(some)}
        numbers = [place.get(i, -1) for i in range(len(intervals))]
        low = [interval.low for interval in intervals]

        def offsets() -> Integers:
            collected = self._collected
            values = collected.keys if low == [0] else collected.keys - collected.look_up(low)
            query = collected.look_up(numbers)
            return Integers(values, query if isinstance(query, Tensor) else None)

        remaining = Remaining(offsets)
        found = [
            Found(interval.low, interval.num_below, interval.num_inside) for interval in intervals
        ]
        if some:
            num_bits = max(intervals[i].high - low[i] for i in some).bit_length()
            known = [found[i]._replace(prefix=0) for i in some]
            nth, phase = [self._queries[i].k for i in some], "finding the keys of the thresholds"
            new = refine(self._reduce, phase, remaining, num_bits, nth, known)
            for i, result in zip(some, new, strict=True):
                found[i] = result._replace(prefix=low[i] + result.prefix)
        return found, remaining

    def _find_indices(self, keys: list[Found], remaining: Remaining) -> list[Threshold]:
        """Find the last pruned entry of every query among those that have its key.

        Args:
            keys: the keys of the thresholds.
            remaining: collected candidates, among them all that have these keys.

        Returns:
            The thresholds.
        """
        queries, ranked = self._queries, self._ranked
        nth = [query.k - key.num_below for query, key in zip(queries, keys, strict=True)]
        starts = ranked.tree_starts
        ties = [
            Interval(starts[query.leaves.start], starts[query.leaves.stop] - 1, 0, key.num_inside)
            for query, key in zip(queries, keys, strict=True)
        ]
        streamed = []
        for one in self._passes:
            for number, i in one.numbers(collected=False):
                streamed.append(i)
                ties[i] = self._narrow_ties(one.made, number, i, keys[i].prefix, nth[i], ties[i])
        low, key = [tie.low for tie in ties], [found.prefix for found in keys]

        def offsets() -> Integers:
            collected, index = self._collected, remaining.get().place
            index = torch.arange(collected.keys.numel(), device="cpu") if index is None else index
            index = index[collected.keys.index_select(0, index) == collected.look_up(key, index)]
            found = ranked.tree_index(collected.positions(index)) - collected.look_up(low, index)
            values = [found]
            query = [] if collected.query is None else [collected.query.index_select(0, index)]
            for i in streamed:
                for found in tied_indices(ranked, queries[i].leaves, key[i], low[i], ties[i].high):
                    values.append((found - low[i]).cpu())
                    query.append(torch.full_like(values[-1], i))
            return Integers(concatenate(values), concatenate(query) if len(queries) > 1 else None)

        num_bits = max(tie.high - tie.low for tie in ties).bit_length()
        known = [Found(0, tie.num_below, tie.num_inside) for tie in ties]
        phase = "finding the flat indices of the thresholds"
        last = refine(self._reduce, phase, Remaining(offsets), num_bits, nth, known)
        pairs = zip(key, low, last, strict=True)
        return [Threshold(value, first + found.prefix) for value, first, found in pairs]

    def _narrow_ties(
        self, made: PartitionPass, number: int, i: int, key: int, nth: int, interval: Interval
    ) -> Interval:
        """Narrow the interval of the tree index of the n-th tie, until it has few ties.

        A single process knows from the pass how many ties each block has. Several processes have
        different blocks, so they count the ties in bins of tree indices.

        Args:
            made: the pass that has settled the query.
            number: the number of the query in the pass.
            i: its number in the search.
            key: the key of its threshold.
            nth: how many of the entries with that key are pruned.
            interval: the interval of the tree index of the last one.

        Returns:
            A narrower interval.
        """
        reduce, ranked, leaves = self._reduce, self._ranked, self._queries[i].leaves
        if reduce.num_processes == 1:
            blocks = [block for block in made.counted if block.query == number]
            counts = torch.stack([block.num_inside.cpu() for block in blocks]).view(1, -1)
            chosen, below, _ = (int(x) for x in pick(counts, [nth]))
            ends = blocks[chosen].start, blocks[chosen].stop - 1
            [found] = tied_indices(ranked, leaves, key, *ends)
            index = int(found[nth - below - 1])
            return Interval(index, index, nth - 1, 1)
        while interval.low < interval.high and interval.num_inside > LIMIT:
            bins = Bins.covering(interval.low, interval.high, 1 << reduce.max_bits)
            ends = interval.low, interval.high
            count = functools.partial(count_ties, ranked, leaves, key, *ends, bins)
            counts = reduce.sum("counting the ties", bins.num_bins, count).view(1, -1)
            chosen, below, inside = (int(x) for x in pick(counts, [nth - interval.num_below]))
            low = max(interval.low, bins.first + (chosen << bins.shift))
            high = min(interval.high, bins.first + ((chosen + 1) << bins.shift) - 1)
            interval = Interval(low, high, interval.num_below + below, inside)
        return interval

    def _write_rest(self, thresholds: list[Threshold], masks: list[Tensor]) -> Tensor:
        """Write what the passes have not written: joined leaves, collected candidates, replicas."""
        ranked, alone = self._ranked, list[int]()
        lasts = [ranked.last_position(threshold.tree_index) for threshold in thresholds]
        for one in self._passes:
            for number, i in one.numbers(collected=True):
                leaves = self._queries[i].leaves
                if one.made.is_whole(number):
                    blocks = ranked.blocks(leaves)
                else:
                    blocks = ranked.joined_blocks(leaves)
                    alone += [group[0] for group in ranked.groups(leaves) if len(group) == 1]
                write_masks(ranked, blocks, thresholds[i].key, lasts[i], masks)
            for _, i in one.numbers(collected=False):
                # so far the masks keep what is above the key; ties after the threshold are kept too
                later = ranked.blocks(self._queries[i].leaves, lasts[i] + 1)
                blocks = itertools.chain(ranked.joined_blocks(self._queries[i].leaves), later)
                write_masks(ranked, blocks, thresholds[i].key, lasts[i], masks)
        if alone:
            self._write_collected(thresholds, lasts, sorted(alone), masks)
        replicas = ranked.not_counted()
        if replicas is not None:
            for query, (key, tree_index) in zip(self._queries, thresholds, strict=True):
                end = replicas.last_position(tree_index)
                write_masks(replicas, replicas.blocks(query.leaves), key, end, masks)
        return torch.empty(0, dtype=torch.int64, device="cpu")

    def _write_collected(
        self,
        thresholds: list[Threshold],
        lasts: list[int],
        alone: list[int],
        masks: list[Tensor],
    ) -> None:
        """Keep those collected candidates that come after the threshold of their query.

        Args:
            thresholds: the thresholds.
            lasts: the position of the last pruned entry of each.
            alone: the leaves that were not joined with others, ascending.
            masks: the masks, in which all collected candidates are pruned so far.
        """
        collected, starts = self._collected, self._ranked.starts
        key = collected.look_up([threshold.key for threshold in thresholds])
        index = (collected.keys >= key).nonzero().view(-1)
        keys, positions = collected.keys.index_select(0, index), collected.positions(index)
        is_above = keys > (key if isinstance(key, int) else key[index])
        is_later = positions > collected.look_up(lasts, index)
        positions = positions[is_above | is_later].sort().values
        bounds = torch.tensor([(starts[leaf], starts[leaf + 1]) for leaf in alone], device="cpu")
        ends = torch.searchsorted(positions, bounds).tolist()
        for leaf, (start, end) in zip(alone, ends, strict=True):
            if start < end:
                index = positions[start:end] - starts[leaf]
                masks[leaf].view(-1).index_fill_(0, index, True)


def choose_bracket(interval: Interval, guess: Guess | None, share: int) -> tuple[int, int, int]:
    """Choose the bracket of a query for the next pass.

    Args:
        interval: what is known of the key of the threshold.
        guess: the guess from the sample, or `None`.
        share: how many candidates may be collected for the query.

    Returns:
        The lowest and the highest key of the bracket, and how many candidates it probably holds.
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


def shared_bins(
    queries: Sequence[Query], brackets: Sequence[tuple[int, int]], num_bins: int
) -> list[Bins]:
    """Choose the bins of every query. Queries of the same leaves share bins that narrow them all.

    Args:
        queries: the thresholds to find.
        brackets: the lowest and the highest key of each query's bracket.
        num_bins: how many bins each query has.

    Returns:
        The bins of each query.
    """
    bins = [Bins.covering(low, high, num_bins) for low, high in brackets]
    for _, members in by_leaves(queries):
        low, high = min(brackets[i][0] for i in members), max(brackets[i][1] for i in members)
        hull = Bins.covering(low, high, num_bins)
        if all(2 << hull.shift <= brackets[i][1] - brackets[i][0] for i in members):
            for i in members:
                bins[i] = hull
    return bins


def batches(queries: Sequence[Query], reduce: Reduce) -> Iterator[list[Query]]:
    """Split queries into groups whose collected candidates fit into memory.

    Args:
        queries: the thresholds to find.
        reduce: how many processes hold the candidates.

    Yields:
        The queries of each group.
    """
    run, held = list[Query](), 0
    for query in queries:
        total = query.num_candidates
        expected = total if total <= FEW else expected_inside(total)
        if run and held + expected > BATCH * reduce.num_processes:
            yield run
            run, held = [], 0
        run.append(query)
        held += expected
    if run:
        yield run


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
    queries = []
    pairs = zip(amounts, scopes, count_candidates(ranked, scopes, reduce), strict=True)
    for number, (amount, leaves, num_candidates) in enumerate(pairs):
        entries = ranked.tree_starts[leaves.stop] - ranked.tree_starts[leaves.start]
        try:
            k = resolve(amount, entries, num_candidates, is_sparsity)
        except ValueError as error:
            if len(amounts) == 1:
                raise
            raise LeafError(number, "sparsity" if is_sparsity else "amount", str(error)) from None
        if k == 0:
            copy_priors(ranked, leaves, masks)
        else:
            queries.append(Query(leaves, k, num_candidates))
    for some in batches(queries, reduce):
        Search(ranked, some, reduce, masks).run()


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
        keys, indices = zip(*Search(ranked, queries, reduce).run(), strict=True)
        values = values_of(torch.tensor(keys, device="cpu"), ranked.common).tolist()
        found |= dict(zip(wanted, zip(values, indices, strict=True), strict=True))
    value = torch.tensor([found[k][0] for k in ks], dtype=torch.float64, device="cpu")
    index = torch.tensor([found[k][1] for k in ks], dtype=torch.int64, device="cpu")
    return value.view(amount.shape), index.view(amount.shape)


def write_at(
    masks: list[Tensor], ranked: RankedLeaves, value: Tensor, index: Tensor, reduce: Reduce
) -> None:
    """Write the masks at a threshold: the score and the tree index of the last pruned entry."""
    form, tree_index = FORMATS[value.dtype], int(index.item())
    key = int(to_float64_keys(keys_of(to_bits(value, form), form, absolute=False), form))
    exact = replace(ranked, exact=True)  # any threshold has a float64 key

    def write() -> Tensor:
        for part in (exact, exact.not_counted()):
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
        return torch.stack([ranked.num_candidates(leaves) for leaves in scopes])

    found: list[int] = reduce.sum("counting the candidates", len(scopes), count).tolist()
    return found
