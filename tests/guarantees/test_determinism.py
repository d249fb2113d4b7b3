"""Determinism: the same scores, prior masks and count give the same masks, bit for bit.

Whatever the block size, the internal limits, the layout in memory, the dtypes that hold the scores,
the number of threads, and the settings of the process are.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import optree
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import gprune as gp
from gprune.select import blocks
from tests.support.assertions import assert_equal_masks
from tests.support.cases import METHODS, Case, cases, map_tensors
from tests.support.limits import Limits, limits, patched


@given(cases())
def test_determinism(case: Case) -> None:
    """Again, on contiguous copies, on wider dtypes and on more threads: the same masks."""
    masks = case.masks_for(gp.global_unstructured)
    assert_equal_masks(case.masks_for(gp.global_unstructured), masks, case.params)

    def copy(leaf: torch.Tensor) -> torch.Tensor:
        return leaf.clone(memory_format=torch.contiguous_format)

    params = map_tensors(copy, case.params)
    scores = None if case.scores is None else map_tensors(copy, case.scores)
    priors = None if case.masks is None else map_tensors(copy, case.masks)
    copied = Case(params, scores, priors, case.budget)
    assert_equal_masks(copied.masks_for(gp.global_unstructured), masks, case.params)

    magnitudes = gp.scores.magnitude(params) if scores is None else scores
    wider = Case(params, map_tensors(lambda x: x.double(), magnitudes), priors, case.budget)
    assert_equal_masks(wider.masks_for(gp.global_unstructured), masks, case.params)

    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        assert_equal_masks(case.masks_for(gp.global_unstructured), masks, case.params)
    finally:
        torch.set_num_threads(threads)


@given(cases(), limits())
def test_masks_do_not_depend_on_the_limits_of_the_search(case: Case, small: Limits) -> None:
    def masks() -> list[Any]:
        return [
            gp.global_unstructured(
                case.params, case.scores, masks=case.masks, **case.budget, **method
            )
            for method in METHODS
        ]

    in_one_block = masks()
    with patched(small):
        for got, expected in zip(masks(), in_one_block, strict=True):
            assert_equal_masks(got, expected, case.params)


@given(cases(), st.integers(0, 12))
def test_masks_do_not_depend_on_how_the_entries_are_split_into_leaves(case: Case, at: int) -> None:
    def split(tree: Any) -> Any:
        flat = [leaf.flatten() for leaf in optree.tree_leaves(tree)]
        return [part for leaf in flat for part in (leaf[:at], leaf[at:])]

    scores = None if case.scores is None else split(case.scores)
    priors = None if case.masks is None else split(case.masks)
    expected = split(case.masks_for(gp.global_unstructured))
    parts = Case(split(case.params), scores, priors, case.budget)
    assert_equal_masks(parts.masks_for(gp.global_unstructured), expected, parts.params)


@given(cases())
def test_no_scores_are_magnitudes(case: Case) -> None:
    magnitudes = gp.scores.magnitude(case.params)
    without = Case(case.params, None, case.masks, case.budget)
    given_them = Case(case.params, magnitudes, case.masks, case.budget)
    masks = without.masks_for(gp.global_unstructured)
    assert_equal_masks(given_them.masks_for(gp.global_unstructured), masks, case.params)
    threshold = without.masks_for(gp.find_threshold)
    assert_equal_masks(
        gp.masks_from_threshold(threshold, case.params, masks=case.masks), masks, case.params
    )


@pytest.mark.slow
@pytest.mark.parametrize("exponent", [10, 13, 16, 19, 22])
def test_masks_do_not_depend_on_the_block_size(
    exponent: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = torch.Generator().manual_seed(4)
    tree = [torch.randn(size, generator=generator).half() for size in (300_001, 7, 50_000)]
    before = gp.global_unstructured(tree, tree, sparsity=0.37), gp.find_threshold(tree, amount=0.37)
    monkeypatch.setattr(blocks, "BLOCK", 2**exponent)
    after = gp.global_unstructured(tree, tree, sparsity=0.37), gp.find_threshold(tree, amount=0.37)
    assert all(a.equal(b) for a, b in zip(before[0], after[0], strict=True))
    assert before[1] == after[1]


@pytest.mark.slow
def test_masks_do_not_depend_on_the_number_of_threads() -> None:
    scores = {"a": torch.randn(2**20, generator=torch.Generator().manual_seed(2)).bfloat16()}
    threads = torch.get_num_threads()
    masks = []
    for number in (1, 2, 3):
        torch.set_num_threads(number)
        masks.append(gp.global_unstructured(scores, scores, sparsity=0.37)["a"])
    torch.set_num_threads(threads)
    assert masks[0].equal(masks[1])
    assert masks[0].equal(masks[2])


# --- settings of the process ----------------------------------------------------------------


@contextmanager
def flushed() -> Iterator[None]:
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)


DENORMALS = torch.tensor([3, 1, 2, 5, 4], dtype=torch.int32).view(torch.float32)


@pytest.mark.parametrize(
    "leaves",
    [
        [DENORMALS],
        [DENORMALS, torch.zeros(1, dtype=torch.float64) + 1],
        [torch.tensor([3, 1, 2, 5, 4], dtype=torch.int16).view(torch.bfloat16)],
        [torch.tensor([3, 1, 2, 5, 4], dtype=torch.int64).view(torch.float64)],
    ],
    ids=["float32", "mixed", "bfloat16", "float64"],
)
def test_denormals_count_also_where_arithmetic_flushes_them(leaves: list[torch.Tensor]) -> None:
    with flushed():
        masks = gp.global_unstructured(leaves, amount=3)
        threshold = gp.find_threshold(leaves, amount=3)
        again = gp.masks_from_threshold(threshold, leaves)
        still = DENORMALS.sum().item() == 0
    assert masks[0].tolist() == [False, False, False, True, True]
    assert again[0].tolist() == masks[0].tolist()
    assert still, "the setting was not left as it was"


@given(cases(), st.none() | limits(), st.sampled_from([torch.float16, torch.bfloat16]))
def test_masks_do_not_depend_on_autocast_and_flushed_denormals(
    case: Case, small: Limits | None, dtype: torch.dtype
) -> None:
    masks = case.masks_for(gp.global_unstructured)
    with patched(small or Limits()), flushed(), torch.autocast("cpu", dtype):
        got = case.masks_for(gp.global_unstructured)
    assert_equal_masks(got, masks, case.params)


@pytest.mark.parametrize("device", ["meta", "cpu"])
def test_a_default_device_changes_nothing(device: str) -> None:
    params = [torch.arange(1.0, 13).reshape(3, 4), torch.arange(5.0)]
    several = torch.tensor([1, 3], device="cpu")
    with torch.device(device):
        masks = gp.global_unstructured(params, amount=3)
        threshold = gp.find_threshold(params, amount=0.5)
        both = gp.find_threshold(params, amount=several)
        sparsity = gp.schedules.polynomial(0.5, begin=0, end=10)(10)
        masked = gp.global_unstructured(params, sparsity=sparsity)
        drawn = gp.scores.random(params, seed=0)
        rows = gp.layerwise(params[:1], amount=1, dim=-1)
        large = gp.global_unstructured([torch.arange(80_000.0, device="cpu")], amount=10_000)
    assert int(gp.num_pruned(masks)) == 3
    assert (float(threshold.value), int(threshold.flat_index)) == (4.0, 3)
    assert both.value.tolist() == [0, 1]
    assert int(gp.num_pruned(masked)) == 8
    assert drawn[0].device.type == "cpu"
    assert rows[0].sum().item() == 9
    assert large[0].sum() == 70_000


@given(cases(), limits())
def test_a_default_device_changes_nothing_under_small_limits(case: Case, small: Limits) -> None:
    masks = case.masks_for(gp.global_unstructured)
    with patched(small), torch.device("meta"):
        got = case.masks_for(gp.global_unstructured)
    assert_equal_masks(got, masks, case.params)
