"""Random tests take every path of a selection: a path that no random tree takes is not tested.

A path is a line of gprune/select that runs, or a line that runs under a condition. The tests are
the fuzzer and the random tests of the search in tests/select. There are threads for the
processes of a sharded selection, so what needs a process group is no path here.
"""

from __future__ import annotations

import sys
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import CodeType, FrameType
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

import gprune.select
from tests.select import test_finish, test_search
from tests.support import fuzz, ranked, ways
from tests.support.limits import limits, small_limits

pytestmark = pytest.mark.long

SELECT = Path(gprune.select.__file__).parent


class Line(NamedTuple):
    """A line of a file in gprune/select.

    Attributes:
        file: the name of the file.
        text: a text that is in the file once, at the line.
        when: a condition in the variables of the function, just before the line runs.
    """

    file: str
    text: str
    when: str = "True"


def lines(file: str, text: str, **conditions: str) -> dict[str, Line]:
    """Make a path for each of several conditions of one line, which are named by keywords."""
    return {name.replace("_", " "): Line(file, text, when) for name, when in conditions.items()}


OF_A_QUERY = "queries.append(Query(leaves"
SHARING = "share = limit * reduce.num_processes"
SAMPLED = "between = up_to - before"
SETTLED = "settled.append(number)"
BINNED = "low, high = known.low, known.high"
KEPT = "for group, (start, end) in zip(groups, ends"
WIDTH = "width = min(shift, max_width)"

PATHS: dict[str, Line] = {
    # --- how it is asked ------------------------------------------------------------------------
    **lines(
        "search.py",
        OF_A_QUERY,
        all_leaves_together="len(amounts) == 1",
        each_leaf_alone="len(amounts) > 1",
        each_leaf_alone_in_several_processes="len(amounts) > 1 and reduce.num_processes > 1",
    ),
    "nothing to prune": Line("search.py", "copy_priors(ranked, leaves, masks)"),
    "several amounts": Line("search.py", "values = values_of(torch.tensor(keys", "len(wanted) > 1"),
    "masks from a threshold": Line("search.py", "exact = replace(ranked, exact=True)"),
    "a process searches query after query": Line(
        "search.py",
        "alone = [[query] for query in queries]",
        "is_one_cpu_process and len(queries) > 1",
    ),
    "queries are searched in batches": Line("search.py", "run, held = [], 0"),
    "processes search several queries in a batch": Line(
        "search.py", "    if run:", "len(run) > 1 and reduce.num_processes > 1"
    ),
    "rows": Line("rows.py", "return torch.kthvalue(keys, ks, dim=1", "ks"),
    "rows of different counts": Line("rows.py", "ordered = torch.cat([lowest"),
    "rows with ties": Line("rows.py", "ties = keys[some] == threshold[some]"),
    "rows with prior masks": Line("rows.py", "keys = keys.where(prior"),
    "rows in blocks": Line("rows.py", "rows = slice(start,", "start > 0"),
    "models side by side": Line("operators.py", "parts = torch.split(kept, sizes, dim=1)"),
    "models in turn": Line("operators.py", "calls = [operator(*_element("),
    "many amounts of one model": Line("operators.py", "many = amounts[0].movedim("),
    "random draws": Line("blocks.py", "bits = draw_integers("),
    # --- without a search -----------------------------------------------------------------------
    "small leaves together": Line("search.py", "prune_directly(ranked, leaves,", "len(leaves) > 1"),
    "a small leaf": Line("search.py", "prune_directly(ranked, leaves,", "len(leaves) == 1"),
    **lines(
        "finish.py",
        "candidates = keys if prior is None",
        small_leaves_with_prior_masks="prior is not None",
        small_leaves_in_several_blocks="len(blocks) > 1",
        small_leaves_of_several_dtypes="len({block.form for block in blocks}) > 1",
    ),
    **lines(
        "finish.py",
        "if num_pruned_ties < found.num_inside",
        small_leaves_whose_ties_are_all_pruned="num_pruned_ties == found.num_inside > 1",
        small_leaves_whose_later_ties_are_kept="num_pruned_ties < found.num_inside",
    ),
    # --- queries --------------------------------------------------------------------------------
    **lines(
        "search.py",
        SHARING,
        one_query="len(queries) == 1",
        several_queries_of_the_same_leaves="[*self._num_sharing.values()] == [len(queries)] != [1]",
        queries_of_single_leaves="max(self._num_sharing.values()) == 1 < len(queries)",
        queries_of_the_same_leaves_and_of_others="1 < len(self._num_sharing) < len(queries)",
        nothing_may_be_collected="limit == 0",
    ),
    # --- the sample -----------------------------------------------------------------------------
    "no sample": Line("search.py", "if not many:", "not many"),
    "no sample of queries of the same leaves": Line(
        "search.py",
        "if not many:",
        "any(q.num_candidates > FEW and self._num_sharing[q.leaves] > 1 for q in self._queries)",
    ),
    **lines(
        "search.py",
        "queries = [self._queries[i] for i in many]",
        a_sample_for_some_queries="len(many) < len(self._queries)",
        samples_of_several_queries="len(many) > 1",
    ),
    "all that is sampled is pruned": Line("sampling.py", "return Guess(low, high, 0, 0,"),
    "a sample of random draws": Line("sampling.py", "return even.to(torch.int64)"),
    "a process without entries has no sample": Line("sampling.py", "return torch.empty(0, dtype"),
    "a sample of several dtypes": Line(
        "sampling.py", "return torch.cat([ranked.keys(", "len(taken) > 1"
    ),
    "a sample of joined leaves with prior masks": Line(
        "sampling.py", "chosen = index if prior is None else", "prior is not None"
    ),
    "a sample of a lone leaf with prior masks": Line("sampling.py", "index = index[_at("),
    "a sample of another layout": Line("sampling.py", "return tensor[torch.unravel_index("),
    **lines(
        "sampling.py",
        SAMPLED,
        both_ends_of_a_bracket_are_single_keys="at_low > 0 and at_high > 0",
        both_ends_of_a_bracket_are_the_same_key="at_low > 0 and low == high",
        the_lower_end_of_a_bracket_is_coarse="places[0] >= 1 and at_low == 0",
        the_upper_end_of_a_bracket_is_coarse="places[1] <= size and upper.low < upper.high",
        no_end_below_the_threshold="places[0] < 1",
        no_end_above_the_threshold="places[1] > size",
    ),
    # --- brackets -------------------------------------------------------------------------------
    "a guess that is known to be wrong": Line(
        "search.py", "return interval.low, interval.high, interval.num_inside", "guess is not None"
    ),
    **lines(
        "search.py",
        "low, high = (low, low) if",
        one_heavy_key_at_the_low_end="at_low >= at_high and low < high",
        one_heavy_key_at_the_high_end="at_low < at_high and low < high",
    ),
    "the sample is no longer asked": Line(
        "search.py", "brackets, too_full = self._choose_brackets(", "guesses and not sampled"
    ),
    "a guess guides a later pass": Line(
        "search.py",
        "brackets, too_full = self._choose_brackets(",
        "num_passes > 1 and any(i in sampled for i in pending)",
    ),
    "the bracket misses above the threshold": Line("search.py", "Interval(known.low, low - 1,"),
    "the bracket misses below the threshold": Line("search.py", "Interval(high + 1, known.high,"),
    "the bracket has the threshold": Line("search.py", "Interval(low, high, below, inside)"),
    # --- what a pass settles --------------------------------------------------------------------
    **lines(
        "search.py",
        SETTLED,
        a_single_key_is_settled="low == high",
        a_bracket_is_settled="low < high",
        a_single_key_is_settled_beside_an_overflow="low == high and any(counts[2 * size :])",
        an_empty_side_is_settled="below == 0 and self._num_sharing[self._queries[i].leaves] == 1",
    ),
    **lines(
        "search.py",
        "share = limit // len(pending)",
        a_pass_of_one_query_overflows="limit > 0 and len(pending) == 1",
        a_pass_of_several_queries_overflows="limit > 0 and len(pending) > 1",
    ),
    **lines(
        "search.py",
        "pending = [i for i in pending if",
        some_queries_are_collected_and_others_counted=(
            "0 < sum(pass_.collects(pending.index(i)) for i in pending if i in found)"
            " < sum(i in found for i in pending)"
        ),
        nothing_is_settled="not any(i in found for i in pending)",
    ),
    "a query is left for a later pass": Line("search.py", "num_passes += 1", "found"),
    # --- bins -----------------------------------------------------------------------------------
    **lines(
        "search.py",
        "self._count_in_bins(too_full)",
        a_too_full_bracket_of_the_sample="any(i in sampled for i in too_full)",
        too_full_brackets_and_others="len(brackets) > 0",
    ),
    **lines(
        "search.py",
        BINNED,
        below_all_bins="number == 0",
        above_all_bins="number > num_bins",
        bins_of_one_query="len(brackets) == 1",
        bins_of_several_queries="len(brackets) > 1",
        bins_wider_than_the_interval="query_bins.first < known.low and number == 1",
        fewer_bins_than_a_pass_may_have="num_bins < 1 << self._reduce.max_pass_bits",
    ),
    "bins with prior masks": Line("partition.py", "numbers.masked_fill_("),
    **lines(
        "partition.py",
        "totals = {bins[query]",
        queries_of_the_same_leaves_and_bins="len({bins[q] for q in members}) < len(members)",
        queries_of_the_same_leaves_and_other_bins="len({bins[q] for q in members}) > 1",
    ),
    "keys of 16 bits": Line(
        "blocks.py", "return keys if keys.element_size() > 2", "keys.element_size() <= 2"
    ),
    # --- the pass, one query of its leaves ------------------------------------------------------
    "a bracket is collected": Line("partition.py", "found = find_packed(inside)"),
    "a bracket is too full": Line(
        "partition.py",
        "if self.collects(query) and self._reserve(num_inside):",
        "self.collects(query) and self._num_collected + num_inside > self._limit",
    ),
    "the mask is the buffer": Line("partition.py", "above = masks[block"),
    **lines(
        "partition.py",
        "write_block(block, above[:size]",
        the_mask_is_a_copy="len(block.leaves) == 1",
        the_masks_of_joined_leaves_are_copies="len(block.leaves) > 1",
    ),
    "a packed tail": Line("partition.py", "not_below[size:] = False"),
    "a packed tail with prior masks": Line("partition.py", "prior[size:] = False", "size < padded"),
    "several blocks with a tail": Line(
        "partition.py", "above.copy_(torch.gt(", "size < padded and block.offset > 0"
    ),
    # --- the pass, several queries of the same leaves -------------------------------------------
    **lines(
        "partition.py",
        "bins = Bins.covering(lowest",
        several_brackets_of_the_same_leaves="len({*brackets}) == len(brackets)",
        the_same_bracket_several_times="len({*brackets}) < len(brackets)",
    ),
    "a table with prior masks": Line("partition.py", "near = near[block"),
    "a bracket of the same leaves is collected": Line(
        "partition.py", "positions = near.index_select(", "found.numel() > 0"
    ),
    "a single key of the same leaves": Line(
        "partition.py", "num_inside[query] += found.numel()", "low == high"
    ),
    "a bracket of the same leaves is too full": Line(
        "partition.py",
        "if self.collects(query) and self._reserve(found.numel()):",
        "self.collects(query) and self._num_collected + found.numel() > self._limit",
    ),
    # --- candidates -----------------------------------------------------------------------------
    **lines(
        "partition.py",
        "if len(parts) == len(",
        all_that_is_collected="len(self.queries) > 1 and len(parts) == len(self._parts) > 0",
        a_part_of_what_is_collected="0 < len(parts) < len(self._parts)",
    ),
    "candidates of one query of several": Line(
        "partition.py", "return Candidates(keys, positions, None)", "len(self.queries) > 1"
    ),
    **lines(
        "partition.py",
        "order, sizes = torch.tensor(table",
        candidates_of_several_queries="len(table) > 0",
        a_process_without_candidates="not table",
    ),
    # --- radix select ---------------------------------------------------------------------------
    **lines(
        "refine.py",
        WIDTH,
        digits_of_one_query="len(intervals) == 1",
        digits_of_several_queries="len(intervals) > 1",
        digits_of_a_query_with_few=(
            "any(i.num_inside <= n for i, n in zip(intervals, enough)) and len(wanted) > 0"
        ),
        digits_as_narrow_as_a_message="max_width < max_bits",
        the_last_digit_is_narrower="shift < max_width",
    ),
    "single integers": Line(
        "refine.py",
        "if all(interval.low == interval.high",
        "all(i.low == i.high for i in intervals)",
    ),
    **lines(
        "refine.py",
        "slots = reduce.sum(phase, size * few",
        a_handful_is_sent="len(nth) == 1",
        handfuls_of_several_queries_are_sent="len(nth) > 1",
        several_processes_send="reduce.num_processes > 1",
    ),
    "32 bits are sent": Line("refine.py", "offsets = offsets.to(torch.int64).bit"),
    "32 unsigned bits are sent": Line(
        "refine.py", "offsets = offsets.to(torch.int64).bit", "bool((offsets < 0).any())"
    ),
    # --- the end, with candidates ---------------------------------------------------------------
    **lines(
        "finish.py",
        "collected = Once(lambda",
        all_queries_of_a_pass_are_collected="len(numbers) == len(pass_.queries) > 1",
        some_queries_of_a_pass_are_collected="len(numbers) < len(pass_.queries)",
    ),
    **lines(
        "finish.py",
        "kept = rest.keep((rest",
        candidates_above_the_threshold_are_kept="bool((rest.keys > rest.look_up(keys)).any())",
        ties_after_the_threshold_are_kept=(
            "bool(((rest.keys == rest.look_up(keys)) & (rest.positions > ends)).any())"
        ),
        masks_of_several_queries="rest.query is not None",
    ),
    **lines(
        "partition.py",
        KEPT,
        joined_leaves_only="min(map(len, groups), default=0) > 1",
        lone_leaves_only="max(map(len, groups), default=0) == 1",
        joined_and_lone_leaves="len({len(group) > 1 for group in groups}) > 1",
    ),
    "nothing comes back": Line("partition.py", "if start == end:", "start == end"),
    "entries of joined leaves come back": Line(
        "partition.py", "torch.split_with_sizes_copy(kept, ["
    ),
    # --- the end, without candidates ------------------------------------------------------------
    **lines(
        "finish.py",
        "index = int(found[nth",
        a_tie_of_the_first_block="number == 0",
        a_tie_of_a_later_block="number > 0",
        a_tie_after_others="below > 0 and nth - below > 1",
    ),
    "ties are counted in bins": Line("finish.py", "low = max(known.low, bins.first"),
    **lines(
        "finish.py",
        "parts.append((concatenate(found)",
        ties_are_streamed="tie.low < tie.high",
        counted_ties_are_streamed="tie.num_inside < key.num_inside",
        a_process_without_ties="not found",
        ties_of_several_blocks="len(found) > 1",
    ),
    "ties of several queries": Line("finish.py", "query_numbers = torch.arange(", "len(parts) > 1"),
    "ties of a range within a block": Line("partition.py", "positions = positions[(positions >="),
    "ties after the last one come back": Line("finish.py", "write_masks(ranked, ranked.blocks(que"),
    # --- masks at a threshold -------------------------------------------------------------------
    "a threshold within a block": Line("partition.py", "torch.gt(raw[:split]", "0 < split < size"),
    "masks of joined leaves": Line(
        "partition.py", "torch.split_with_sizes_copy(kept.to(torch.bool"
    ),
    "masks with prior masks": Line("partition.py", "kept.mul_(block.prior)"),
    # --- several processes ----------------------------------------------------------------------
    "shards": Line("blocks.py", "ascending, order = positions.sort()"),
    "replicas": Line("finish.py", "end = replicas.last_position(tree_index)"),
    # --- formats --------------------------------------------------------------------------------
    "a narrow format between its keys": Line(
        "keys.py", "return least + (not is_exact)", "not is_exact"
    ),
    "a narrow format at its keys": Line("keys.py", "return least + (not is_exact)", "is_exact"),
    "a denormal of a narrow format": Line("keys.py", "significand = magnitude % one"),
    "below the denormals of a narrow format": Line(
        "keys.py",
        "narrow = significand >>",
        "significand > 0 and significand >> (shift + 1 - (rebiased >> 52)) == 0",
    ),
    "beyond a narrow format": Line(
        "keys.py", "narrow = min(rebiased >> shift", "rebiased >> shift >= form.infinity"
    ),
    "rounded down below zero": Line("keys.py", "narrow -= 1"),
    "infinity in a narrow format": Line("keys.py", "narrow = magnitude - FLOAT64.infinity"),
    "NaN at the end of a bracket": Line(
        "keys.py", "return low, raw_format.largest if is_nan", "is_nan"
    ),
    "denormals in a float64 tree": Line(
        "keys.py",
        "denormal = (magnitude",
        "bool(((magnitude > 0) & (magnitude < (1 << form.mantissa))).any())",
    ),
    "magnitudes of integers": Line("keys.py", "return bits.abs_() if absolute", "absolute"),
    "integers among floats": Line("keys.py", "scores = scores.to(torch.float64)"),
    # --- layouts --------------------------------------------------------------------------------
    "rows of another layout": Line("blocks.py", "for group in zip(*(torch.split(tensor, rows)"),
    "long rows of another layout": Line("blocks.py", "for group in zip(*(tensor.unbind(0)"),
    "a small leaf of another layout": Line("blocks.py", "yield tuple(tensor.reshape(-1) for"),
    "blocks before the first are left out": Line(
        "blocks.py", "if self.starts[group[-1] + 1] <= first", "self.starts[group[-1] + 1] <= first"
    ),
    "blocks after the last are left out": Line(
        "blocks.py", "if self.starts[group[-1] + 1] <= first", "self.starts[group[0]] >= end"
    ),
}

LEAST = 5
"""How often each path must be taken."""

PART = 300
"""How many examples of a random test are run at a time."""

ENOUGH = 10
"""A path that is taken so often is no longer watched."""

WAYS = [*ways.WAYS, *["one threshold"] * 4, *["vmap over models"] * 4]
"""The ways to ask. Those that are here several times have paths that few of their cases take."""

same_every_time = settings(
    derandomize=True,
    database=None,
    phases=[Phase.generate],
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],  # as in conftest.py
)


def places() -> dict[tuple[str, int], list[tuple[str, CodeType]]]:
    """Look up the lines: for each file and number the paths, and their conditions."""
    found: dict[tuple[str, int], list[tuple[str, CodeType]]] = {}
    for name, (file, text, when) in PATHS.items():
        source = (SELECT / file).read_text()
        assert source.count(text) == 1, f"{name}: {text!r} is in {file} {source.count(text)} times"
        number = source[: source.index(text)].count("\n") + 1
        condition = compile(when, name, "eval")
        found.setdefault((str(SELECT / file), number), []).append((name, condition))
    return found


class Watch:
    """Counts how often each path is taken, up to `ENOUGH`; a function is then no longer traced."""

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()
        self._lines = places()
        self._files = {file for file, _ in self._lines}
        self._open: dict[CodeType, list[str]] = {}

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Watch this thread, and those that it starts."""
        before = sys.gettrace(), threading.gettrace()
        sys.settrace(self._call)
        threading.settrace(self._call)
        try:
            yield
        finally:
            sys.settrace(before[0])
            threading.settrace(before[1])  # type: ignore[arg-type]  # it may be None

    def _call(self, frame: FrameType, event: str, arg: Any) -> Any:
        code = frame.f_code
        if code.co_filename not in self._files:
            return None
        if code not in self._open:
            self._open[code] = self._paths(code)
        if self._open[code] and all(self.calls[name] >= ENOUGH for name in self._open[code]):
            self._open[code] = []
        return self._line if self._open[code] else None

    def _paths(self, code: CodeType) -> list[str]:
        """Return the paths in a function. Comprehensions have frames of their own, and no paths."""
        if code.co_name[0] == "<":
            return []
        numbers = {number for _, _, number in code.co_lines()}
        return [
            name
            for (file, number), paths in self._lines.items()
            if file == code.co_filename and number in numbers
            for name, _ in paths
        ]

    def _line(self, frame: FrameType, event: str, arg: Any) -> Any:
        if event == "line":
            for name, when in self._lines.get((frame.f_code.co_filename, frame.f_lineno), ()):
                if self.calls[name] < ENOUGH:
                    # in one dict, because a generator in the condition sees no other locals
                    self.calls[name] += bool(eval(when, {**frame.f_globals, **frame.f_locals}))
        return self._line


TREES = ranked.trees
KINDS = st.sampled_from(["all", "single", "single", "both"])
SEEDS = st.none() | st.integers(0, 9)
DATA = st.data()

TESTS: dict[Any, tuple[int, Sequence[st.SearchStrategy[Any]]]] = {
    test_search.test_thresholds: (180, (TREES, limits(), KINDS, SEEDS, DATA)),
    test_search.test_thresholds_with_masks: (60, (TREES, limits(), st.booleans(), SEEDS, DATA)),
    test_finish.test_few_candidates_are_pruned_in_order: (120, (TREES, limits(), SEEDS, DATA)),
    test_search.test_masks_of_any_amounts: (500, (TREES, limits(), st.booleans(), SEEDS, DATA)),
    test_search.test_several_processes_find_the_same: (900, (TREES, limits(), KINDS, DATA)),
    test_search.test_several_processes_write_the_same_masks: (
        600,
        (TREES, limits(), st.booleans(), DATA),
    ),
    test_search.test_samples_that_mislead: (6000, (test_search.guiding, KINDS, DATA)),
}
"""Random tests of the search, how many examples of each are watched, and their arguments.

The rest is left out if all paths have been taken often enough before.
"""


def run_watched(
    watch: Watch, test: Any, number: int, strategies: Sequence[st.SearchStrategy[Any]]
) -> None:
    """Run some examples of a random test in parts, until all paths are taken often enough."""
    for part in range(0, number, PART):
        if min(watch.calls[path] for path in PATHS) >= LEAST:
            return

        @seed(part)
        @settings(same_every_time, max_examples=min(PART, number - part))
        @given(st.tuples(*strategies))
        def run(arguments: tuple[Any, ...]) -> None:
            with watch.watched():
                test(*arguments)

        run()


def test_random_tests_take_every_path() -> None:
    """On the same trees in every run."""
    watch = Watch()

    @settings(same_every_time, max_examples=1200)
    @given(fuzz.trees(large=False), st.integers(0, 2**32 - 1), st.sampled_from(WAYS))
    def ask(tree: fuzz.Tree, limit_seed: int, name: str) -> None:
        case, rng = fuzz.build(tree), np.random.default_rng(tree.seed)
        with small_limits(np.random.default_rng(limit_seed)), watch.watched():
            for _ in ways.WAYS[name].ask(case, rng):
                pass

    ask()
    for test, (number, strategies) in TESTS.items():
        run_watched(watch, test.hypothesis.inner_test, number, strategies)
    times = {path: watch.calls[path] for path in PATHS}
    print(times)
    assert not {path: number for path, number in times.items() if number < LEAST}
