"""Allocation: exact totals, the published densities, and counts that follow a schedule."""

import functools
import itertools
import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.distributed.tensor import Replicate, Shard

import gprune as gp
from gprune.testing import param_trees, scores_for
from tests.support import reference, reference_patterns
from tests.support.cases import fractions, map_tensors
from tests.support.pruning import every
from tests.support.sharded_cases import Sharding, all_well, placed

ALLOCATIONS = [gp.allocation.uniform, gp.allocation.erdos_renyi]


def num_pruned(sparsities: Any, params: Any) -> list[int]:
    """The number of pruned entries of each leaf: round(sparsity * entries)."""
    pairs = zip(reference.leaves(sparsities), reference.leaves(params), strict=True)
    return [round(s.item() * leaf.numel()) for s, leaf in pairs if leaf is not None]


def by_outliers(params: Any, *, sparsity: Any, width: float = 0.08) -> Any:
    """OWL by magnitude; paths that end in the same letter are one group."""
    scores = map_tensors(lambda leaf: leaf.double().abs().clamp(max=8).nan_to_num(), params)
    return gp.allocation.owl(
        params, scores, sparsity=sparsity, group=lambda path: path[-1:], outlier=1, width=width
    )


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


@given(
    param_trees(),
    st.lists(st.floats(0, 1), min_size=2),
    st.sampled_from([*ALLOCATIONS, functools.partial(by_outliers, width=0.3)]),
)
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


# --- OWL ------------------------------------------------------------------------------------------


@st.composite
def blocks(draw: st.DrawFn) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Parameters and scores of two to four blocks with one to three leaves, and some outliers."""
    scores = {}
    for block in range(draw(st.integers(2, 4))):
        for leaf in range(draw(st.integers(1, 3))):
            size = draw(st.integers(0 if leaf else 1, 60))
            rows = torch.rand(size, generator=torch.Generator().manual_seed(size))
            for _ in range(draw(st.integers(0, 3))):
                rows[draw(st.integers(0, 60)) % max(1, size) : size : 20] = 100
            scores[f"layers.{block}.{leaf}"] = rows
    return {path: torch.ones_like(leaf) for path, leaf in scores.items()}, scores


def block_of(path: str) -> str:
    return path.split(".")[1]


def by_block(scores: dict[str, torch.Tensor]) -> dict[str, list[float]]:
    grouped: dict[str, list[float]] = {}
    for path, leaf in scores.items():
        grouped.setdefault(block_of(path), []).extend(leaf.flatten().tolist())
    return grouped


@given(blocks(), st.floats(0, 1), st.sampled_from([0, 1.0, 5.0]), st.sampled_from([0, 0.08, 0.5]))
def test_owl(drawn: Any, sparsity: float, outlier: float, width: float) -> None:
    """Exact totals; every leaf has the sparsity of its block, rounded to a whole entry."""
    params, scores = drawn
    tree = gp.allocation.owl(
        params, scores, sparsity=sparsity, group=block_of, outlier=outlier, width=width
    )
    want = reference_patterns.owl(by_block(scores), sparsity, outlier, width)
    counts = num_pruned(tree, params)
    assert sum(counts) == round(sparsity * sum(leaf.numel() for leaf in params.values()))
    for (path, leaf), pruned in zip(sorted(params.items()), counts, strict=True):
        kept = leaf.numel() - pruned
        # the rounding of each leaf, which is made up for by all
        assert abs(kept - want[block_of(path)] * leaf.numel()) < 1.01 + len(params) / 2
    masks = gp.layerwise(params, scores, sparsity=tree)
    assert [int((~masks[path]).sum()) for path in sorted(params)] == counts


def test_owl_is_that_of_the_paper_for_blocks_of_one_size() -> None:
    """If no density is limited: D is rescaled to a range of 2 λ around the total density."""
    torch.manual_seed(0)
    scores = {f"layers.{i}.{j}": torch.rand(100, 50) for i in range(4) for j in range(2)}
    for i, path in enumerate(scores):
        scores[path].view(-1)[: 10 * i**2] += 100
    tree = gp.allocation.owl(scores, scores, sparsity=0.7, group=block_of)
    shares = [reference_patterns.outlier_share(own, 5) for own in by_block(scores).values()]
    above = [0.16 * (d - min(shares)) / (max(shares) - min(shares)) for d in shares]
    for path, sparsity in tree.items():
        kept = 0.3 + above[int(block_of(path))] - sum(above) / 4
        assert 1 - float(sparsity) == pytest.approx(kept, abs=1 / 5000)
    assert max(tree.values()) - min(tree.values()) == pytest.approx(0.16, abs=1 / 2500)


def test_groups_are_what_the_function_says() -> None:
    """One group of all paths, a group for each leaf, or leaves of different blocks."""
    scores = {f"layers.{i}.{name}": torch.ones(10, 10) for i in (0, 1) for name in ("up", "down")}
    scores["layers.1.up"] = scores["layers.1.up"].clone()
    scores["layers.1.up"][0, :3] = 1000
    groups: dict[Any, list[int]] = {
        (lambda path: 0): [50, 50, 50, 50],
        (lambda path: path): [54, 54, 54, 38],
        block_of: [58, 58, 42, 42],
        (lambda path: path.split(".")[2]): [58, 42, 58, 42],
    }
    for group, counts in groups.items():
        tree = gp.allocation.owl(scores, scores, sparsity=0.5, group=group)
        assert num_pruned(tree, scores) == counts


@given(param_trees(), fractions(), st.sampled_from([0.0, 0.3]))
def test_groups_with_as_many_outliers_are_pruned_uniformly(
    params: Any, sparsity: Any, width: float
) -> None:
    """Scores that are all the same have no outliers."""
    scores = map_tensors(lambda leaf: torch.ones(leaf.shape), params)
    tree = gp.allocation.owl(
        params, scores, sparsity=sparsity, group=lambda path: path, outlier=1, width=width
    )
    uniform = gp.allocation.uniform(params, sparsity=sparsity)
    assert num_pruned(tree, params) == num_pruned(uniform, params)


@given(blocks(), st.floats(0, 1), st.integers(-20, 20))
def test_the_scale_of_scores_does_not_matter(drawn: Any, sparsity: float, exponent: int) -> None:
    """The scale of one block and the order of its entries do not matter either."""
    params, scores = drawn
    tree = gp.allocation.owl(params, scores, sparsity=sparsity, group=block_of)
    scores = {
        path: leaf.flip(0) * 2.0 ** (exponent * int(block_of(path)))
        for path, leaf in scores.items()
    }
    assert gp.allocation.owl(params, scores, sparsity=sparsity, group=block_of) == tree


def test_owl_in_a_gradual_pruner() -> None:
    """With fixed scores it follows a schedule; scores of leaves that are not pruned are ignored."""
    params = {f"{i}.weight": torch.rand(10, 10) for i in range(2)} | {"bias": torch.ones(3)}
    scores = {path: leaf.clone() for path, leaf in params.items()}
    scores["1.weight"][0] = 100
    allocation = functools.partial(
        gp.allocation.owl, scores=scores, group=lambda path: path[0], width=0.1
    )
    schedule = gp.schedules.constant(0.5)
    with pytest.raises(TypeError, match="owl"):
        gp.pruners.gradual(schedule, due=every(1), allocation=allocation)
    pruner = gp.pruners.gradual(schedule, due=every(1), allocation=allocation, prune=gp.layerwise)
    _, state = pruner.update(params, pruner.init(params), params)
    assert [int((~state.masks[path]).sum()) for path in ("0.weight", "1.weight")] == [60, 40]


SHAPES = [(70, (14, 5)), (9, (9,)), (40, (10, 4)), (2, (1, 2))]
"""Of DTensors: the numbers of their entries, and their shapes."""


def check_owl(placements: list[Any]) -> list[str]:
    """The same numbers on every rank, and in one process."""
    # the last rank has the largest scores, so a rank alone finds other means
    whole = [torch.arange(float(n)).pow(3).view(shape) for n, shape in SHAPES]
    sharding = Sharding((2,), placements)
    group = {"0": "a", "1": "a", "2": "b", "3": "c"}.__getitem__
    mine = placed(whole, sharding)
    got = gp.allocation.owl(mine, mine, sparsity=0.4, group=group, outlier=2.5)
    expected = gp.allocation.owl(whole, whole, sparsity=0.4, group=group, outlier=2.5)
    assert len({float(x) for x in expected}) > 2
    masks = gp.layerwise(mine, mine, sparsity=got)
    problems = [] if got == expected else [f"sparsities are {got}, expected {expected}"]
    if int(gp.num_pruned(masks)) != round(0.4 * sum(n for n, _ in SHAPES)):
        problems.append(f"{gp.num_pruned(masks)} are pruned")
    return problems


@pytest.mark.slow
@pytest.mark.parametrize(
    "placements",
    [
        [(Shard(0),)] * 4,
        [(Shard(0),), (Replicate(),), None, (Shard(1),)],
    ],
)
def test_owl_of_dtensors(placements: list[Any]) -> None:
    all_well(2, check_owl, placements)
