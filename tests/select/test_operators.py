"""Operators: what torch.library asks of them, their checks, and what they are made of."""

from typing import Any

import pytest
import torch

import gprune as gp
from gprune.inputs import LeafError
from gprune.select import operators
from gprune.select.blocks import RankedLeaves
from gprune.select.refine import OneProcess
from tests.support import ranked
from tests.support.limits import Limits, patched

TENSORS = [torch.randn(3, 4), torch.randn(5).requires_grad_(False)]
MASKS = [torch.ones(3, 4, dtype=torch.bool), torch.tensor([True, False, True, True, False])]
HALF = torch.tensor(0.5, dtype=torch.float64)
SEED = torch.tensor(7)


@pytest.mark.parametrize(
    ("operator", "args"),
    [
        (operators.select, (TENSORS, [], [HALF], None, True, False)),
        (operators.select, (TENSORS, MASKS, [HALF], SEED, False, True)),
        (operators.select, (TENSORS, MASKS, [HALF, HALF], None, False, False)),
        (operators.select_rows, (TENSORS[0], [], HALF, True, False)),
        (operators.select_rows, (TENSORS[0], MASKS[:1], HALF, False, True)),
        (operators.find_threshold, (TENSORS, MASKS, HALF, True, False)),
        (operators.find_threshold, (TENSORS, [], torch.stack([HALF, HALF]), True, False)),
        (operators.masks_from_threshold, (HALF, SEED, TENSORS, MASKS, False)),
        (operators.num_to_prune, (HALF, 9)),
        (operators.random_scores, (TENSORS, SEED)),
        (operators.all_finite, (TENSORS,)),
        (operators.apportion, (HALF, [10, 4], [3.0, 1.0], [0, 1], [10, 4])),
    ],
    ids=lambda value: getattr(value, "_name", ""),
)
def test_opcheck(operator: Any, args: tuple[Any, ...]) -> None:
    torch.library.opcheck(operator, args)


def test_operators_are_unsafe_in_cuda_graphs() -> None:
    """The host reads counts."""
    for operator in (operators.select, operators.select_rows, operators.find_threshold):
        assert torch.Tag.cudagraph_unsafe in operator._opoverload.tags


def test_one_amount_is_for_all_leaves_and_one_per_leaf_for_each() -> None:
    scores = [torch.tensor([1.0, 2.0]), torch.tensor([0.0, 9.0, 8.0])]
    [a, b] = operators.select(scores, [], [torch.tensor(2)], None, False, False)
    assert (a.tolist(), b.tolist()) == ([False, True], [False, True, True])
    both = [torch.tensor(0), torch.tensor(2)]
    [a, b] = operators.select(scores, [], both, None, False, False)
    assert (a.tolist(), b.tolist()) == ([True, True], [False, True, False])


def test_the_results_of_the_operators_are_contiguous_and_fresh() -> None:
    scores = [torch.randn(3, 4).t()]
    prior = [torch.ones(3, 4, dtype=torch.bool).t()]
    for k in (0, 5):
        [mask] = operators.select(scores, prior, [torch.tensor(k)], None, False, False)
        assert mask.is_contiguous()
        assert mask.data_ptr() != prior[0].data_ptr()


@pytest.mark.parametrize(
    ("amounts", "is_sparsity", "expected"),
    [
        ([0, 2, 5], False, ([-torch.inf, 1.0, 4.0], [-1, 1, 3])),
        ([5, 0, 2, 2], False, ([4.0, -torch.inf, 1.0, 1.0], [3, -1, 1, 1])),
        ([0.4, 1.0], True, ([1.0, 4.0], [1, 3])),
        ([], False, ([], [])),
    ],
)
def test_find_thresholds(amounts: list[float], is_sparsity: bool, expected: Any) -> None:
    leaves = RankedLeaves([torch.tensor([0.0, 1.0, 3.0]), torch.tensor([4.0, 2.0])], [])
    dtype = torch.float64 if is_sparsity else torch.int64
    value, index = operators.find_thresholds(
        leaves, torch.tensor(amounts, dtype=dtype), is_sparsity, OneProcess()
    )
    assert (value.tolist(), index.tolist()) == expected
    assert (value.dtype, index.dtype) == (torch.float64, torch.int64)


def test_find_thresholds_keeps_the_shape_of_the_amounts() -> None:
    leaves = RankedLeaves([torch.arange(6.0)], [])
    for shape in ((), (1,), (2, 3)):
        amounts = torch.arange(6)[: torch.Size(shape).numel()].view(shape)
        value, index = operators.find_thresholds(leaves, amounts, False, OneProcess())
        assert value.shape == index.shape == shape


@pytest.mark.parametrize("sign", [1, -1])
def test_int64_scores_that_float64_cannot_hold(sign: int) -> None:
    good, bad = torch.tensor([sign * 2**53]), torch.tensor([0, sign * (2**53 + 1)])
    operators.check_exact(RankedLeaves([good, torch.empty(0, dtype=torch.int64)], []))
    operators.check_exact(RankedLeaves([bad], [], seed=3))
    with pytest.raises(LeafError, match=rf"at most 2\*\*53 .*got {sign * (2**53 + 1)}; cast"):
        operators.check_exact(RankedLeaves([torch.ones(2), bad], []))


def test_errors_of_values_name_the_leaf() -> None:
    params = {"a": torch.ones(2), "b": {"c": torch.ones(3), "none": None}}
    with pytest.raises(ValueError, match=r"amount\['b'\]\['c'\]: amount must be at most 1"):
        gp.layerwise(params, amount={"a": 0.5, "b": {"c": 80.0, "none": None}})
    with pytest.raises(ValueError, match=r"amount\['a'\]: .*candidates, 2"):
        gp.layerwise(params, amount=3)
    with pytest.raises(ValueError, match=r"sparsity\['a'\]: sparsity must be at most 1"):
        gp.layerwise(params, sparsity=1.5)
    integers = {"a": torch.ones(2, dtype=torch.int64), "b": torch.tensor([2**60])}
    for prune in (gp.global_unstructured, gp.layerwise, gp.find_threshold):
        with pytest.raises(
            ValueError, match=r"scores\['b'\]: int64 scores must be at most 2\*\*53"
        ):
            prune(integers, amount=1)


def test_leaves_without_values_beside_others_are_refused() -> None:
    meta = torch.empty(2, 2, device="meta")
    with pytest.raises(ValueError, match=r"params\['a'\] is on the meta device"):
        gp.global_unstructured({"a": meta, "b": torch.ones(2)}, amount=1)
    with pytest.raises(ValueError, match="amount must have a value"):
        gp.global_unstructured([torch.ones(3)], amount=torch.tensor(1, device="meta"))
    assert gp.find_threshold([meta], amount=1).value.is_meta
    with pytest.raises(ValueError, match=r"masks\[0\] is on meta, its parameter is on cpu"):
        gp.global_unstructured(
            [torch.ones(2)], masks=[torch.empty(2, dtype=torch.bool, device="meta")], amount=1
        )


def test_all_finite() -> None:
    leaves = [torch.ones(3), torch.tensor([1, float("nan")]), torch.ones(0), -torch.ones(1) / 0]
    assert operators.all_finite(leaves).tolist() == [True, False, True, False]
    assert operators.all_finite([torch.tensor([float("inf"), 1])]).tolist() == [False]


def test_random_scores_are_the_draws_of_each_leaf() -> None:
    leaves = [torch.empty(2, 3), torch.empty(6)]
    first, second = operators.random_scores(leaves, SEED)
    assert first.shape == (2, 3)
    assert first.dtype == torch.float64
    assert not first.view(-1).equal(second)
    assert second.equal(operators.random_scores(leaves[::-1][:1] * 2, SEED)[1])


def test_apportion_names_the_bounds() -> None:
    found = operators.apportion(HALF, [10, 4, 0], [1.0, 1.0, 1.0], [0, 1, 0], [10, 4, 0])
    assert [float(x) for x in found] == [0.6, 0.25, 0.0]
    with pytest.raises(ValueError, match="sparsity 0.5 keeps 7 of 14 .* from 8 to 14"):
        operators.apportion(HALF, [10, 4], [1.0, 1.0], [4, 4], [10, 4])


@pytest.mark.parametrize("counted", [True, False])
def test_masks_from_a_threshold_are_written_also_for_replicas(counted: bool) -> None:
    """A leaf that another process counts has its own positions."""
    scores = [torch.tensor([1.0, 2.0, 1.0]), torch.tensor([1.0, 0.0])]
    whole = RankedLeaves(scores, [], exact=True)
    split = ranked.Shards(2, [None, 0], [[0, 0, 0], [0, 1, 2]], [0 if counted else 1, 0])
    own = ranked.local(whole, split, 0)
    masks = [torch.empty(3, dtype=torch.bool), torch.empty(1, dtype=torch.bool)]
    for index, expected in ((1, [0, 1, 1, 1]), (2, [0, 1, 0, 1]), (3, [0, 1, 0, 0])):
        value = torch.tensor(1.0, dtype=torch.float64)
        operators.write_at(masks, own, value, torch.tensor(index))
        assert torch.cat(masks).int().tolist() == expected


def test_candidates_of_several_processes_are_counted_once() -> None:
    """A replicated leaf is counted by one of them."""
    priors = [torch.tensor([True, False, True]), torch.tensor([True, True])]
    whole = RankedLeaves([torch.zeros(3), torch.zeros(2)], priors)
    split = ranked.Shards(2, [None, 0], [[0, 0, 0], [0, 1, 2]], [1, 0])
    scopes = ranked.scopes(2)
    processes = ranked.Processes(2)
    for given in (whole, RankedLeaves(whole.scores, [])):

        def run(reduce: Any, given: RankedLeaves = given) -> list[int]:
            part = ranked.local(given, split, reduce.process)
            return operators.count_candidates(part, scopes, reduce)

        expected = [4, 2, 2] if given.priors else [5, 3, 2]
        assert processes.run(run) == [expected, expected]
    assert processes.messages == [("counting the candidates", 3)]


@pytest.mark.parametrize("alone", [True, False])
def test_selections_of_several_processes(alone: bool) -> None:
    """Counts, thresholds and masks, with priors and a replicated leaf."""
    generator = torch.Generator().manual_seed(0)
    scores = [torch.randn(6, 5, generator=generator), torch.randn(7, generator=generator)]
    priors = [torch.rand(6, 5, generator=generator) < 0.7, torch.arange(7) > 2]
    split = ranked.Shards(2, [1, None], [[0, 2, 5], [0, 0, 0]], [1, 1])
    whole = RankedLeaves(scores, priors)
    amounts = [torch.tensor(0.5, dtype=torch.float64)] * (2 if alone else 1)
    expected = operators.select(scores, priors, amounts, None, False, True)
    found = operators.find_thresholds(whole, amounts[0], True, OneProcess())

    def run(reduce: Any) -> Any:
        part = ranked.local(whole, split, reduce.process)
        masks = [torch.empty(x.shape, dtype=torch.bool) for x in part.scores]
        operators.select_into(masks, part, amounts, True, reduce)
        return masks, operators.find_thresholds(part, amounts[0], True, reduce)

    with patched(Limits(block=8, limit=9, few=3, power=0.5)):
        results = ranked.Processes(2).run(run)
    for process, (masks, threshold) in enumerate(results):
        first, last = split.ends[0][process : process + 2]
        assert masks[0].equal(expected[0][:, first:last])
        assert masks[1].equal(expected[1])
        assert threshold == found
