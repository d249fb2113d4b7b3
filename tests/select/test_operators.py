"""Operators: what torch.library asks of them, their checks, and what they are made of."""

from typing import Any

import pytest
import torch

import gprune as gp
from gprune.select import operators

TENSORS = [torch.randn(3, 4), torch.randn(5).requires_grad_(False)]
MASKS = [torch.ones(3, 4, dtype=torch.bool), torch.tensor([True, False, True, True, False])]
HALF = torch.tensor(0.5, dtype=torch.float64)
SEED = torch.tensor(7)
CALL = "prune"


@pytest.mark.parametrize(
    ("operator", "args"),
    [
        (operators.select, (TENSORS, [], [HALF], None, True, False, CALL)),
        (operators.select, (TENSORS, MASKS, [HALF], SEED, False, True, CALL)),
        (operators.select, (TENSORS, MASKS, [HALF, HALF], None, False, False, CALL)),
        (operators.select_rows, (TENSORS[0], [], HALF, True, False)),
        (operators.select_rows, (TENSORS[0], MASKS[:1], HALF, False, True)),
        (operators.find_threshold, (TENSORS, MASKS, HALF, True, False, CALL)),
        (operators.find_threshold, (TENSORS, [], torch.stack([HALF, HALF]), True, False, CALL)),
        (operators.masks_from_threshold, (HALF, SEED, TENSORS, MASKS, False, CALL)),
        (operators.num_to_prune, (HALF, 9)),
        (operators.random_scores, (TENSORS, SEED, CALL)),
        (operators.all_finite, (TENSORS, CALL)),
        (operators.count_pruned, (MASKS, CALL)),
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
    [a, b] = operators.select(scores, [], [torch.tensor(2)], None, False, False, CALL)
    assert (a.tolist(), b.tolist()) == ([False, True], [False, True, True])
    both = [torch.tensor(0), torch.tensor(2)]
    [a, b] = operators.select(scores, [], both, None, False, False, CALL)
    assert (a.tolist(), b.tolist()) == ([True, True], [False, True, False])


def test_the_results_of_the_operators_are_contiguous_and_fresh() -> None:
    scores = [torch.randn(3, 4).t()]
    prior = [torch.ones(3, 4, dtype=torch.bool).t()]
    for k in (0, 5):
        [mask] = operators.select(scores, prior, [torch.tensor(k)], None, False, False, CALL)
        assert mask.is_contiguous()
        assert mask.data_ptr() != prior[0].data_ptr()


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
    assert operators.all_finite(leaves, CALL).tolist() == [True, False, True, False]
    assert operators.all_finite([torch.tensor([float("inf"), 1])], CALL).tolist() == [False]


def test_pruned_entries_are_counted() -> None:
    masks = [*MASKS, torch.zeros(2, 3, dtype=torch.bool), torch.ones(0, dtype=torch.bool)]
    assert operators.count_pruned(masks, CALL).tolist() == [0, 2, 6, 0]


def test_random_scores_are_the_draws_of_each_leaf() -> None:
    leaves = [torch.empty(2, 3), torch.empty(6)]
    first, second = operators.random_scores(leaves, SEED, CALL)
    assert first.shape == (2, 3)
    assert first.dtype == torch.float64
    assert not first.view(-1).equal(second)
    assert second.equal(operators.random_scores(leaves[::-1][:1] * 2, SEED, CALL)[1])


def test_apportion_names_the_bounds() -> None:
    found = operators.apportion(HALF, [10, 4, 0], [1.0, 1.0, 1.0], [0, 1, 0], [10, 4, 0])
    assert [float(x) for x in found] == [0.6, 0.25, 0.0]
    with pytest.raises(ValueError, match=r"sparsity 0.5 keeps 7 of 14 .* from 8 to 14"):
        operators.apportion(HALF, [10, 4], [1.0, 1.0], [4, 4], [10, 4])
