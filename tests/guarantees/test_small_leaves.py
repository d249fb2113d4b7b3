"""Many small leaves are pruned together, and each gets the mask that the reference gives it."""

import functools
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest
import torch

import gprune as gp
from gprune.select.search import DIRECT, SMALL
from tests.support import reference, reference_patterns

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.int16, torch.int64]


def num_calls(call: Callable[[], Any]) -> int:
    """Count the calls of functions, of Python and of torch."""
    count = 0

    def add(frame: FrameType, event: str, arg: Any) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(add)
    try:
        call()
    finally:
        sys.setprofile(None)
    return count


def small_leaves(count: int, *dtypes: torch.dtype) -> list[torch.Tensor]:
    """Leaves of several shapes, with ties; of float dtypes also NaN."""
    torch.manual_seed(count)
    leaves = []
    for i in range(count):
        leaf = torch.randint(-4, 5, (2 + i % 3, 2 + i // 5 % 5)).to(dtypes[i % len(dtypes)])
        if leaf.is_floating_point():
            leaf[0, 0] = torch.nan
        leaves.append(leaf)
    return leaves


METHODS: dict[str, dict[str, Any]] = {
    "lowest": {"amount": 0.4},
    "n_of_m": {"pruning_method": gp.n_of_m, "n": 2, "m": 4},
}


def expected_mask(name: str, param: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """What the reference makes of one leaf, ranked by magnitude."""
    if name == "n_of_m":
        kept = reference_patterns.n_of_m(param.abs(), mask, 2, 4, 1)
    else:
        prior = None if mask is None else [mask]
        k = reference.count([param], prior, amount=0.4)
        [kept] = reference.layerwise_masks([param], None, [k], prior)
    return torch.tensor(kept).view(param.shape)


@pytest.mark.parametrize("has_masks", [False, True])
@pytest.mark.parametrize("name", METHODS)
def test_the_masks_of_small_leaves(name: str, has_masks: bool) -> None:
    params = small_leaves(60, *DTYPES)
    masks = [torch.rand(leaf.shape) < 0.7 for leaf in params] if has_masks else None
    got = gp.layerwise(params, masks=masks, **METHODS[name])
    for i, param in enumerate(params):
        assert got[i].equal(expected_mask(name, param, None if masks is None else masks[i]))
    assert len({mask.untyped_storage().data_ptr() for mask in got}) == len(got)


def test_more_leaves_than_one_sort_takes() -> None:
    params = small_leaves(DIRECT // SMALL + 90, torch.float32)
    got = gp.layerwise(params, amount=0.4)
    for mask, param in zip(got, params, strict=True):
        assert mask.equal(expected_mask("lowest", param, None))


@pytest.mark.parametrize("prune", [gp.global_unstructured, gp.layerwise])
def test_random_draws_are_those_of_the_scores(prune: Callable[..., Any]) -> None:
    params = small_leaves(60, *DTYPES)
    got = prune(params, pruning_method=gp.random_unstructured, seed=5, amount=0.4)
    expected = prune(params, gp.scores.random(params, seed=5), amount=0.4)
    assert all(a.equal(b) for a, b in zip(got, expected, strict=True))


CALLS_PER_LEAF: dict[str, tuple[int, Callable[[Any], Any]]] = {
    "layerwise": (60, lambda params: gp.layerwise(params, amount=0.4)),
    "n_of_m": (90, lambda params: gp.layerwise(params, **METHODS["n_of_m"])),
    "random_unstructured": (
        40,
        lambda params: gp.global_unstructured(
            params, pruning_method=gp.random_unstructured, seed=1, amount=0.4
        ),
    ),
}


@pytest.mark.parametrize("name", CALLS_PER_LEAF)
def test_a_small_leaf_takes_few_calls(name: str) -> None:
    most, prune = CALLS_PER_LEAF[name]
    prune(small_leaves(1, torch.float32))  # what is done once in a process is not counted
    counts = []
    for num_leaves in (100, 200):
        params = small_leaves(num_leaves, torch.float32)
        counts.append(num_calls(functools.partial(prune, params)))
    assert counts[1] - counts[0] <= 100 * most, (counts[1] - counts[0]) / 100
