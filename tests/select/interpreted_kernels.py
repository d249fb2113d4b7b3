"""The kernels in Triton's interpreter, on CPU tensors: tests that test_kernels.py runs.

The interpreter must be chosen before Triton is imported, so pytest runs this file in a process of
its own, with TRITON_INTERPRET=1.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import gprune as gp
from gprune.select import accelerator, partition
from gprune.select.accelerator import AcceleratorPass
from gprune.select.blocks import Query, RankedLeaves
from gprune.select.keys import FORMATS
from gprune.select.partition import empty_masks
from gprune.select.refine import OneProcess
from gprune.select.search import Search, select_into
from tests.select.test_search import asked, masks_at, threshold
from tests.support import fuzz, ranked
from tests.support.limits import Limits, limits, patched


@contextmanager
def kernels_used(tile: int = 64, num_copied: int = 100) -> Iterator[Counter[str]]:
    """Let the kernels rank leaves on the CPU, in small tiles, and count the launches.

    The programs of a launch come in reverse order, since on a GPU they come in any order.
    """
    from triton.runtime.interpreter import interpreter_builder

    from gprune.select import kernels

    launches: Counter[str] = Counter()
    launch, set_index = kernels._launch, interpreter_builder.set_grid_idx

    def noted(kernel: Any, leaves: Any, own: Any, rows: Any, *args: Any) -> None:
        launches[kernel.fn.__name__] += 1
        for row in rows:
            numbers = [row.scores, row.prior, getattr(row, "mask", 0), row.num_entries]
            assert own.is_aligned == all(number % 16 == 0 for number in numbers)
        launch(kernel, leaves, own, rows, *args)

    def reverse(x: int, y: int, z: int) -> None:
        set_index(interpreter_builder.grid_dim[0] - 1 - x, y, z)

    with ExitStack() as stack:
        for target, name, value in [
            (accelerator, "has_kernels", lambda device: True),
            (kernels, "TILE", tile),
            (kernels, "NUM_TILES", 3),
            (kernels, "ACCELERATOR_BLOCK", num_copied),
            (kernels, "_launch", noted),
            (interpreter_builder, "set_grid_idx", reverse),
        ]:
            stack.enter_context(mock.patch.object(target, name, value))
        yield launches


tiles = st.sampled_from([16, 64, 1024])
large_tiles = st.sampled_from([256, 1024])


# --- the pass -----------------------------------------------------------------------------------


def slots_for(leaves: RankedLeaves, queries: list[Query]) -> list[dict[int, int]]:
    """As many slots for each block as it has entries."""
    found = []
    for query in queries:
        sizes: Counter[int] = Counter()
        for start, _, first, stop in leaves.spans(query.leaves):
            sizes[start] += stop - first
        found.append(dict(sizes))
    return found


@st.composite
def brackets(draw: st.DrawFn, own: ranked.Ranked, num: int) -> list[tuple[int, int]]:
    """Brackets that begin and end at keys of entries, or next to them, or anywhere."""
    low, high = own.leaves.key_range
    near = st.sampled_from(own.keys.tolist()) if len(own.keys) else st.nothing()
    ends = near | near.map(lambda key: key + 1) | near.map(lambda key: key - 1)
    keys = (ends | st.integers(low, high)).filter(lambda key: low <= key <= high)
    pairs = st.tuples(keys, keys).map(lambda pair: (min(pair), max(pair)))
    return draw(st.lists(pairs, min_size=num, max_size=num))


@given(
    ranked.trees,
    limits(),
    st.sampled_from(["all", "single", "both"]),
    tiles,
    st.none() | st.integers(0, 9),
    st.data(),
)
def test_the_pass_is_that_of_the_operators(
    tree: fuzz.Tree, small: Limits, kind: str, tile: int, seed: int | None, data: st.DataObject
) -> None:
    """The counts, the masks, and the collected candidates in the order of their positions."""
    own = ranked.rank(tree, seed)
    queries = data.draw(asked(own, kind))
    chosen = data.draw(brackets(own, len(queries)))
    has_masks = kind == "single" or (kind == "all" and len(queries) == 1)
    results = []
    with patched(small._replace(on_accelerator=True)):
        num_slots = slots_for(own.leaves, queries)
        for uses_kernels in (False, True):
            masks = [torch.zeros_like(mask) for mask in empty_masks(own.leaves.scores)]
            given_masks = masks if has_masks else None
            made = AcceleratorPass(own.leaves, queries, chosen, given_masks, num_slots)
            with ExitStack() as stack:
                if uses_kernels:
                    stack.enter_context(kernels_used(tile))
                counts = made.run().tolist()
            found = [made.candidates([i]) for i in range(len(queries)) if made.collects(i)]
            results.append(
                (
                    counts,
                    [mask.tolist() for mask in masks],
                    [(x.keys.tolist(), x.positions.tolist()) for x in found],
                    [sum(x.num_inside for x in made.counted(i)) for i in range(len(queries))],
                )
            )
    assert results[0] == results[1]


SPECIAL = {
    torch.float16: torch.tensor([0x7E01, -1, 0x7C00, -0x400, 0, -0x8000, 1, -0x7FFF, 0x7BFF]),
    torch.bfloat16: torch.tensor([0x7FC1, -1, 0x7F80, -0x80, 0, -0x8000, 1, -0x7FFF, 0x7F7F]),
    torch.float32: torch.tensor([0x7FC00001, -1, 0x7F800000, 0, -(2**31), 1, -(2**31) + 1]),
    torch.float64: torch.tensor([2**63 - 1, -1, 0x7FF << 52, 0, -(2**63), 1, -(2**63) + 1]),
    torch.int8: torch.tensor([-128, -127, -1, 0, 1, 127]),
    torch.uint8: torch.tensor([0, 1, 127, 128, 255]),
    torch.int16: torch.tensor([-(2**15), -1, 0, 2**15 - 1]),
    torch.int32: torch.tensor([-(2**31), -1, 0, 2**31 - 1]),
    torch.int64: torch.tensor([-(2**53), -1, 0, 2**53]),
}
"""NaNs of both signs, infinities, zeros and denormals of both signs, as bits; lowest integers."""


@pytest.mark.parametrize("absolute", [False, True])
@pytest.mark.parametrize("dtype", SPECIAL)
def test_special_values(dtype: torch.dtype, absolute: bool) -> None:
    """Around every key that they have."""
    bits = SPECIAL[dtype]
    form = FORMATS[dtype]
    scores = bits.to(form.integer).view(dtype) if form.is_float else bits.to(dtype)
    own = ranked.of(RankedLeaves([scores], [], absolute))
    query, size = Query(range(1), 1, len(bits)), len(bits)
    for key in own.keys.tolist():
        masks = [torch.empty(size, dtype=torch.bool)]
        with kernels_used():
            made = AcceleratorPass(own.leaves, [query], [(key, key)], masks, [{0: size}])
            not_below, inside, _ = made.run().tolist()
        assert not_below == (own.keys >= key).sum()
        assert inside == (own.keys == key).sum()
        assert masks[0].tolist() == (own.keys > key).tolist()


@pytest.mark.parametrize("num", [0, 1, 80, 100])
def test_too_few_slots(num: int) -> None:
    """Nothing is written behind the slots of a query, and the masks and counts are right."""
    from gprune.select import kernels

    leaves = RankedLeaves([torch.arange(200.0), torch.arange(50.0, 250.0)], [])
    queries = [Query(range(i, i + 1), 50, 200) for i in range(2)]
    low, middle, high = torch.tensor([50.0, 59.0, 149.0]).view(torch.int32).tolist()
    masks, held = empty_masks(leaves.scores), list[Any]()
    allocate = kernels._slots

    def noting(*args: Any) -> Any:
        [(home, slots)] = allocate(*args).items()
        slots.labels.fill_(-1)
        held.append(slots)
        return {home: slots}

    num_slots = [{0: num}, {200: 100}]
    with kernels_used(16), mock.patch.object(kernels, "_slots", noting):
        chosen = [(low, high), (low, middle)]
        made = AcceleratorPass(leaves, queries, chosen, masks, num_slots)
        counts = made.run().view(3, 2).tolist()
    assert counts == [[150, 200], [100, 10], [int(num < 100), 0]]
    expected = [*(x > 149 for x in range(200)), *(x > 59 for x in range(50, 250))]
    assert torch.cat(masks).tolist() == expected
    assert made.candidates([1]).positions.tolist() == list(range(200, 210))
    assert made.candidates([0]).positions.tolist() == (list(range(50, 150)) if num == 100 else [])
    assert held[0].labels[num + 10 :].tolist() == [-1] * 90


def test_queries_of_the_same_leaves() -> None:
    """Their brackets overlap, and each collects its own candidates, ascending by position."""
    leaves = RankedLeaves([torch.arange(60.0), torch.arange(30.0, 90.0)], [])
    queries = [Query(range(2), k, 120) for k in (50, 60)]
    ends = [(20.0, 39.0), (35.0, 44.0)]
    chosen = [tuple(torch.tensor(pair).view(torch.int32).tolist()) for pair in ends]
    with kernels_used(16):
        made = AcceleratorPass(leaves, queries, chosen, None, [{0: 120}] * 2)
        made.run()
    assert made.candidates([0]).positions.tolist() == [*range(20, 40), *range(60, 70)]
    assert made.candidates([1]).positions.tolist() == [*range(35, 45), *range(65, 75)]


def test_leaves_of_one_dtype_share_a_launch() -> None:
    scores = [torch.randn(16 * n) for n in range(1, 40)]
    leaves = RankedLeaves(scores, [])
    queries = [Query(range(39), 5, leaves.starts[-1])]
    with kernels_used() as launches:
        AcceleratorPass(leaves, queries, [(0, 10)], empty_masks(scores), [{0: 9}]).run()
    assert launches == {"divide_tile": 1}


def test_copies_of_leaves_are_few_at_a_time() -> None:
    """Leaves that are not contiguous are copied, and launched before the next are copied."""
    scores = [torch.randn(5, 20).t() for _ in range(4)]
    leaves = RankedLeaves(scores, [])
    queries = [Query(range(4), 5, 400)]
    with kernels_used(num_copied=200) as launches:
        AcceleratorPass(leaves, queries, [(0, 10)], empty_masks(scores), [{0: 9}]).run()
    assert launches == {"divide_tile": 2}


# --- counting in bins ---------------------------------------------------------------------------


@given(
    ranked.trees,
    limits(),
    st.sampled_from(["all", "single", "both"]),
    tiles,
    st.none() | st.integers(0, 9),
    st.integers(1, 70),
    st.data(),
)
def test_counts_in_bins_are_those_of_the_operators(
    tree: fuzz.Tree,
    small: Limits,
    kind: str,
    tile: int,
    seed: int | None,
    num_bins: int,
    data: st.DataObject,
) -> None:
    own = ranked.rank(tree, seed)
    queries = data.draw(asked(own, kind))
    if not queries:
        return
    chosen = data.draw(brackets(own, len(queries)))
    bins = [partition.Bins.covering(low, high, num_bins) for low, high in chosen]
    expected = partition.count_keys(own.leaves, queries, bins)
    with patched(small._replace(on_accelerator=True)), kernels_used(tile) as launches:
        found = accelerator.count_keys(own.leaves, queries, bins)
    assert found.tolist() == expected.tolist()
    formats = {own.leaves.form(leaf) for leaf in range(len(own.leaves.scores))}
    assert launches["count_tiles"] > 0 or formats != {own.leaves.common}


def test_counting_is_one_launch_for_queries_of_the_same_bins() -> None:
    """And the weights are read once."""
    leaves = RankedLeaves([torch.arange(4096.0), torch.arange(160.0)], [])
    queries = [Query(range(2), k, 4256) for k in (7, 9, 11)]
    low, high = torch.tensor([100.0, 1000.0]).view(torch.int32).tolist()
    bins = [partition.Bins.covering(low, high, 2**11)] * 3
    with kernels_used(1024) as launches, counted_bytes() as moved:
        found = accelerator.count_keys(leaves, queries, bins)
    assert found.tolist() == partition.count_keys(leaves, queries, bins).tolist()
    assert min(found[0], found[2**11 + 1]) > 0
    assert launches == {"count_tiles": 1}
    assert moved["load"] <= 4.1 * 4256


def test_keys_further_apart_than_int64_can_say() -> None:
    leaves = RankedLeaves([torch.tensor([-1e9, 1e9, -2e9], dtype=torch.float64)], [])
    key = int(torch.tensor(-1e9, dtype=torch.float64).view(torch.int64)) ^ (2**63 - 1)
    query, bins = [Query(range(1), 1, 3)], [partition.Bins.covering(key, key, 16)]
    with kernels_used():
        found = accelerator.count_keys(leaves, query, bins)
    assert found.tolist() == partition.count_keys(leaves, query, bins).tolist()
    assert (found[0], found[-1], found.sum()) == (1, 1, 3)


# --- searches -----------------------------------------------------------------------------------


def few_passes(small: Limits) -> Limits:
    """Let every pass find some bits of a key in few tiles, since each is slow to interpret."""
    return small._replace(
        on_accelerator=True,
        block=max(256, small.block),
        max_pass_bits=max(10, small.max_pass_bits),
        max_counts=2**20,
    )


@settings(max_examples=settings().max_examples // 2)
@given(
    ranked.trees,
    limits(),
    st.sampled_from(["all", "single", "both"]),
    large_tiles,
    st.none() | st.integers(0, 9),
    st.data(),
)
def test_thresholds(
    tree: fuzz.Tree, small: Limits, kind: str, tile: int, seed: int | None, data: st.DataObject
) -> None:
    own = ranked.rank(tree, seed)
    queries = data.draw(asked(own, kind))
    if queries:
        with patched(few_passes(small)), kernels_used(tile):
            found = Search(own.leaves, queries, OneProcess()).run()
        assert found == [threshold(own, query) for query in queries]


@given(ranked.trees, limits(), st.booleans(), large_tiles, st.none() | st.integers(0, 9), st.data())
def test_masks(
    tree: fuzz.Tree, small: Limits, alone: bool, tile: int, seed: int | None, data: st.DataObject
) -> None:
    """Of all leaves by one amount, or of each by its own."""
    own = ranked.rank(tree, seed)
    scopes = ranked.scopes(len(own.leaves.scores))
    scopes = scopes[1:] if alone and len(scopes) > 2 else scopes[:1]
    ks = [data.draw(st.integers(0, len(own.candidates(leaves)))) for leaves in scopes]
    masks = empty_masks(own.leaves.scores)
    with patched(few_passes(small)), kernels_used(tile):
        select_into(masks, own.leaves, [torch.tensor(k) for k in ks], False, OneProcess())
    for leaves, k in zip(scopes, ks, strict=True):
        got = torch.cat([masks[leaf].view(-1) for leaf in leaves]) if leaves else torch.empty(0)
        assert got.tolist() == masks_at(own, Query(leaves, k, 0)).tolist()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_public_functions(dtype: torch.dtype) -> None:
    """Leaves that are aligned and that are not, a transposed one, and ties."""
    generator = torch.Generator().manual_seed(0)
    params = {
        "aligned": torch.randn(64, 80, generator=generator).to(dtype),
        "odd": torch.randn(501, generator=generator).to(dtype)[1:],
        "strided": torch.randn(400, generator=generator).to(dtype)[::2],
        "transposed": torch.randn(30, 70, generator=generator).to(dtype).t(),
        "tied": torch.randint(-3, 4, (999,), generator=generator).to(dtype),
        "empty": torch.empty(0, 3, dtype=dtype),
    }

    def select() -> list[Tensor]:
        once = gp.global_unstructured(params, amount=0.4)
        twice = gp.global_unstructured(params, masks=once, sparsity=0.7)
        each = gp.layerwise(params, sparsity=0.6)
        found = gp.find_threshold(params, sparsity=torch.tensor([0.1, 0.5, 0.9]))
        return [*once.values(), *twice.values(), *each.values(), *found]

    expected = select()
    small = Limits(on_accelerator=True, few=0)
    with patched(small), kernels_used(512) as launches:
        found = select()
    assert launches["divide_tile"] >= 4
    assert all(a.equal(b) for a, b in zip(expected, found, strict=True))


# --- memory -------------------------------------------------------------------------------------


@contextmanager
def counted_bytes() -> Iterator[Counter[str]]:
    """Count the bytes that kernels load, store, and add to, without those of masked lanes."""
    from triton.runtime.interpreter import _interpreter as memory

    moved: Counter[str] = Counter()
    load, store, add = memory.load, memory.store, memory.atomic_rmw

    def counted_load(pointers: Any, mask: Any, other: Any, dtype: Any) -> Any:
        moved["load"] += int(mask.sum()) * np.dtype(dtype).itemsize
        return load(pointers, mask, other, dtype)

    def counted_store(pointers: Any, values: Any, mask: Any) -> Any:
        moved["store"] += int(mask.sum()) * values.itemsize
        return store(pointers, values, mask)

    def counted_add(operation: Any, pointers: Any, values: Any, mask: Any, order: Any) -> Any:
        moved["add"] += 2 * int(mask.sum()) * values.itemsize
        return add(operation, pointers, values, mask, order)

    counting = {"load": counted_load, "store": counted_store, "atomic_rmw": counted_add}
    with mock.patch.multiple(memory, **counting):
        yield moved


def test_a_float32_weight_costs_at_most_6_bytes() -> None:
    """One read of the weights, one write of the mask, and the collected candidates."""
    from gprune.select import kernels

    params = torch.randn(2**18, generator=torch.Generator().manual_seed(0))
    expected = gp.global_unstructured([params], amount=0.5)
    small = Limits(on_accelerator=True)
    with patched(small), kernels_used(kernels.TILE) as launches, counted_bytes() as moved:
        found = gp.global_unstructured([params], amount=0.5)
    assert found[0].equal(expected[0])
    assert launches["divide_tile"] == 1
    print(f"{moved.total() / params.numel():.3f} bytes per weight: {dict(moved)}")
    assert 5 <= moved.total() / params.numel() <= 6


def divide_16_entries(
    row: Any, counts: Tensor, cursors: Tensor, labels: Tensor, bits: Tensor
) -> None:
    """Launch the kernel for one tile of signed integers."""
    from gprune.select import kernels

    kernels.divide_tile[(1,)](
        torch.tensor([row]),
        torch.zeros(1, dtype=torch.int64),
        counts,
        cursors,
        labels,
        bits,
        BITS=kernels.DTYPES[bits.dtype],
        LARGEST=torch.iinfo(bits.dtype).max,
        NAN=0,
        ABSOLUTE=False,
        HAS_PRIOR=row.prior != 0,
        HAS_MASK=True,
        IS_ALIGNED=False,
        TILE=16,
    )


@pytest.mark.parametrize("first", [2**31, 2**33 + 64])
def test_entries_beyond_2_to_the_31(first: int) -> None:
    """The addresses of a row are moved down, so that the tile of 16 entries lies far behind them.

    Their slots begin as far behind the address of all slots.
    """
    from gprune.select import kernels

    scores = torch.arange(16, dtype=torch.int16)
    prior = torch.tensor([i not in (9, 12) for i in range(16)])
    mask = torch.zeros(16, dtype=torch.bool)
    row = kernels.Row(
        scores=scores.data_ptr() - 2 * first,
        prior=prior.data_ptr() - first,
        mask=mask.data_ptr() - first,
        num_entries=first + 14,
        first_program=-first // 16,
        low=7,
        high=10,
        label=2**40,
        cursor=0,
        first_slot=-first,
        end_slot=2,
    )
    labels, bits = torch.full((4,), -1), torch.full((4,), -1, dtype=torch.int16)
    counts, cursors = torch.zeros(1, 2, dtype=torch.int64), torch.tensor([first])
    divide_16_entries(row, counts, cursors, labels, bits)
    assert counts.tolist() == [[2, 3]]
    assert cursors.tolist() == [first + 3]
    assert mask.tolist() == [i in (11, 13) for i in range(16)]
    assert labels.tolist() == [2**40 + first + 7, 2**40 + first + 8, -1, -1]
    assert bits.tolist() == [7, 8, -1, -1]


def test_no_slots_are_left_after_2_to_the_31_too_many() -> None:
    """So many fewer than none are left: as 32-bit integers, they would be many."""
    from gprune.select import kernels

    scores, mask = torch.arange(16, dtype=torch.int32), torch.zeros(16, dtype=torch.bool)
    address = scores.data_ptr(), 0, mask.data_ptr()
    row = kernels.Row(*address, 16, 0, 0, 15, 0, 0, first_slot=0, end_slot=-(2**31) - 8)
    labels, bits = torch.full((16,), -1), torch.full((16,), -1, dtype=torch.int32)
    counts, cursors = torch.zeros(1, 2, dtype=torch.int64), torch.zeros(1, dtype=torch.int64)
    divide_16_entries(row, counts, cursors, labels, bits)
    assert counts.tolist() == [[0, 16]]
    assert set(labels.tolist()) == set(bits.tolist()) == {-1}
