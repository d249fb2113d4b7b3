"""The combinators: thresholds of several amounts, numbers for each leaf, and fresh masks."""

import io
import traceback
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import gprune as gp
from gprune.select.partition import PartitionPass
from gprune.testing import param_trees, prior_masks
from tests.support import reference
from tests.support.assertions import assert_equal_masks, assert_masks, assert_same


@given(param_trees(), st.data(), st.sampled_from([0, 0.5]))
def test_masks_are_fresh(params: Any, data: st.DataObject, amount: float) -> None:
    """What is written into one mask reaches neither the prior nor another mask."""
    masks = data.draw(prior_masks(params))
    prior = reference.lists(masks)
    calls = [
        lambda: gp.global_unstructured(params, masks=masks, amount=amount),
        lambda: gp.layerwise(params, masks=masks, amount=amount),
        lambda: gp.global_unstructured(params, masks=masks, pruning_method=gp.identity),
    ]
    for call in calls:
        before = call()
        for mask in reference.leaves(before):
            if mask is not None:
                mask.logical_not_()
        assert reference.lists(masks) == prior
        flipped = [None if m is None else [not k for k in m] for m in reference.lists(before)]
        assert_masks(call(), flipped, params)


@given(param_trees(), st.lists(st.floats(0, 1), max_size=4), st.data())
def test_a_threshold_of_several_amounts_gives_a_list_of_trees(
    params: Any, amounts: list[float], data: st.DataObject
) -> None:
    masks = data.draw(st.none() | prior_masks(params))
    several = torch.tensor(amounts, dtype=torch.float64)
    threshold = gp.find_threshold(params, masks=masks, amount=several)
    trees = gp.masks_from_threshold(threshold, params, masks=masks)
    assert isinstance(trees, list)
    for tree, amount in zip(trees, amounts, strict=True):
        expected = gp.global_unstructured(params, masks=masks, amount=amount)
        assert_equal_masks(tree, expected, params)


def test_several_thresholds_compile() -> None:
    params = [torch.arange(6.0)]

    def masks(amounts: torch.Tensor) -> Any:
        return gp.masks_from_threshold(gp.find_threshold(params, amount=amounts), params)

    compiled = torch.compile(masks, backend="eager", fullgraph=True)
    kept = [[int(mask.sum()) for mask in tree] for tree in compiled(torch.tensor([1, 4]))]
    assert kept == [[5], [2]]


def test_a_threshold_is_defined_here_and_is_a_pair() -> None:
    threshold = gp.find_threshold([torch.arange(4.0)], amount=2)
    assert (threshold.value.item(), threshold.flat_index.item()) == (1.0, 1)
    assert type(threshold).__module__ == "gprune.prune"


def test_an_amount_for_each_leaf_may_be_a_tree_or_one_number() -> None:
    params = {"a": torch.arange(4.0), "b": torch.arange(3.0)}
    for amount in (1, {"a": 1, "b": 1}, torch.tensor(1), {"a": torch.tensor(1), "b": 1}):
        masks = gp.layerwise(params, amount=amount)
        assert [int(mask.sum()) for mask in reference.leaves(masks)] == [3, 2]


def test_eight_functions_lead_to_the_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """From `global_unstructured` to the first pass over the weights, which is the ninth."""
    frames: list[str] = []

    def look(self: PartitionPass) -> torch.Tensor:
        package = str(Path(gp.__file__).parent)
        stack = traceback.extract_stack()
        frames.extend(f.name for f in stack if f.filename.startswith(package))
        return run(self)

    run = PartitionPass.run
    monkeypatch.setattr(PartitionPass, "run", look)
    gp.global_unstructured([torch.randn(600, 500)], amount=3)  # too large for `prune_directly`
    assert 1 < len(frames) <= 8, frames


def test_a_threshold_is_loaded_with_the_default_of_torch_load() -> None:
    found, file = gp.find_threshold([torch.arange(5.0)], amount=2), io.BytesIO()
    torch.save(found, file)
    file.seek(0)
    loaded = torch.load(file)
    assert type(loaded) is gp.Threshold
    assert_same(loaded, found)
