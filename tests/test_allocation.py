"""Allocation: exact totals, the published densities, and counts that follow a schedule."""

import itertools
import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import gprune as gp
from gprune.testing import param_trees, scores_for
from tests.support import reference, reference_patterns
from tests.support.cases import fractions

ALLOCATIONS = [gp.allocation.uniform, gp.allocation.erdos_renyi]


def num_pruned(sparsities: Any, params: Any) -> list[int]:
    """What a tree of sparsities means, by the rule of counts."""
    pairs = zip(reference.leaves(sparsities), reference.leaves(params), strict=True)
    return [round(s.item() * leaf.numel()) for s, leaf in pairs if leaf is not None]


# --- trees ------------------------------------------------------------------------------------


@given(param_trees(), st.data(), fractions(), st.integers(0, 3), st.sampled_from(ALLOCATIONS))
def test_exact_totals(
    params: Any, data: st.DataObject, sparsity: Any, min_kept: int, allocate: Any
) -> None:
    """`layerwise` prunes exactly the apportioned counts, which sum to the total."""
    sizes = [leaf.numel() for leaf in reference.leaves(params) if leaf is not None]
    total = reference.num_to_reach(sparsity, sum(sizes), 0)
    least = sum(min(min_kept, size) for size in sizes)
    if sum(sizes) - total < least:
        with pytest.raises(ValueError, match="min_kept allow"):
            allocate(params, sparsity=sparsity, min_kept=min_kept)
        return
    sparsities = allocate(params, sparsity=sparsity, min_kept=min_kept)
    assert reference.structure(sparsities) == reference.structure(params)
    counts = num_pruned(sparsities, params)
    assert sum(counts) == total
    assert all(n - k >= min(min_kept, n) for n, k in zip(sizes, counts, strict=True))
    scores = data.draw(st.none() | scores_for(params))
    masks = gp.layerwise(params, scores, sparsity=sparsities)
    pruned = [int((~m).sum()) for m in reference.leaves(masks) if m is not None]
    assert pruned == counts


@given(param_trees(), st.lists(st.floats(0, 1), min_size=2), st.sampled_from(ALLOCATIONS))
def test_a_rising_sparsity_lowers_none(params: Any, sparsities: list[float], allocate: Any) -> None:
    counts = [num_pruned(allocate(params, sparsity=s), params) for s in sorted(sparsities)]
    for fewer, more in itertools.pairwise(counts):
        assert all(a <= b for a, b in zip(fewer, more, strict=True))


KERNELS = [torch.empty(shape, device="meta") for shape, _ in reference_patterns.resnet50()]
PLACES = [places for _, places in reference_patterns.resnet50()]


def test_the_shapes_are_those_of_resnet50() -> None:
    assert len(KERNELS) == 54
    assert sum(kernel.numel() for kernel in KERNELS) == 25_502_912  # 25,557,032 with norms and bias
    flops = sum(k.numel() * places for k, places in zip(KERNELS, PLACES, strict=True))
    assert flops == pytest.approx(4.09e9, rel=0.01)


@pytest.mark.parametrize("kernel", [True, False])
@pytest.mark.parametrize("sparsity", [0.0, 0.5, 0.8, 0.9, 0.95, 0.98, 0.999, 1.0])
def test_resnet50_has_the_published_densities(sparsity: float, kernel: bool) -> None:
    tree = gp.allocation.erdos_renyi(KERNELS, sparsity=sparsity, kernel=kernel)
    shapes = [leaf.shape for leaf in KERNELS]
    densities = reference_patterns.erdos_renyi(shapes, 1 - sparsity, kernel=kernel)
    for leaf, ours, density in zip(KERNELS, tree, densities, strict=True):
        assert abs((1 - ours.item()) * leaf.numel() - density * leaf.numel()) < 2  # entries
    assert sum(num_pruned(tree, KERNELS)) == round(sparsity * 25_502_912)


@pytest.mark.parametrize(("sparsity", "published"), [(0.8, 0.42), (0.9, 0.24)])
def test_resnet50_needs_the_published_operations(sparsity: float, published: float) -> None:
    """Evci et al., 2020, arXiv:1911.11134, figure 2 (left): FLOPs of RigL (ERK) at test time."""
    tree = gp.allocation.erdos_renyi(KERNELS, sparsity=sparsity)
    flops = [kernel.numel() * places for kernel, places in zip(KERNELS, PLACES, strict=True)]
    sparse = sum(f * (1 - s.item()) for f, s in zip(flops, tree, strict=True))
    assert sparse / sum(flops) == pytest.approx(published, abs=0.01)


def test_golden() -> None:
    """By hand: shares 40 and 22; of 176 kept they would get 113.5 and 62.5, more than 40."""
    params = {"wide": torch.ones(20, 20), "narrow": torch.ones(20, 2), "none": None}
    tree = gp.allocation.erdos_renyi(params, sparsity=0.6)
    assert tree["none"] is None
    assert (tree["narrow"].item(), tree["wide"].item()) == (0.0, 264 / 400)
    plain = gp.allocation.erdos_renyi([torch.ones(4, 2, 3, 3)] * 2, sparsity=0.5, kernel=False)
    assert [s.item() for s in plain] == [0.5, 0.5]
    uniform = gp.allocation.uniform([torch.ones(3)] * 3, sparsity=0.5)  # 5 kept of 9; half to even
    assert num_pruned(uniform, [torch.ones(3)] * 3) == [1, 1, 2]
    assert sum(num_pruned(uniform, [torch.ones(3)] * 3)) == round(4.5)


def test_overrides_and_floors() -> None:
    params = {f"l{i}": torch.ones(10, 10) for i in range(4)} | {"head": torch.ones(2, 10)}
    overrides = {"head": 0, "l[01]": 0.25, "l[012]": 1.0}  # the first that matches
    tree = gp.allocation.uniform(params, sparsity=0.5, overrides=overrides)
    assert num_pruned(tree, params) == [0, 25, 25, 100, 60]
    with pytest.raises(ValueError, match=r"keeps 42 of 420 entries, .* from 170 to 270"):
        gp.allocation.uniform(params, sparsity=0.9, overrides=overrides)


def test_layers_that_would_vanish_keep_their_floor() -> None:
    params = [torch.ones(1000, 100), torch.ones(10, 2), torch.ones(3)]
    tree = gp.allocation.uniform(params, sparsity=0.999, min_kept=5)
    assert num_pruned(tree, params) == [100_000 - (100_023 - round(99_922.977)) + 8, 15, 0]
    assert math.isclose(sum(num_pruned(tree, params)), 99_923)
