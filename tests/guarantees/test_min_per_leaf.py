"""`min_per_leaf`: every leaf keeps so many, and the others are pruned in the order of one ranking.

The oracle is `masks_above_floors` of tests/support/reference.py.
"""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributed.tensor import Replicate, Shard

import gprune as gp
from gprune.testing import param_trees, prior_masks, scores_for
from tests.support import reference
from tests.support.assertions import assert_masks, assert_subset
from tests.support.limits import Limits, limits, patched
from tests.support.sharded_cases import Sharding, all_well, differences, placed, shardings

FLOORS = st.integers(0, 6) | st.floats(0, 1) | st.sampled_from([0.1, 0.25, 0.5, 1, 1.0])


@st.composite
def floored(draw: st.DrawFn) -> tuple[Any, Any, Any, Any, int]:
    """Parameters, scores, prior masks, a floor, and how many go of those that the floor allows."""
    params = draw(param_trees())
    scores = draw(st.none() | scores_for(params))
    masks = draw(st.none() | prior_masks(params))
    floor = draw(FLOORS)
    most = reference.most_to_prune(params, floor, masks)
    return params, scores, masks, floor, draw(st.integers(0, most) | st.just(most))


@settings(max_examples=4 * settings().max_examples)
@given(floored(), st.booleans())
def test_exactly_so_many_go_and_every_leaf_keeps_its_floor(
    case: tuple[Any, Any, Any, Any, int], is_tensor: bool
) -> None:
    params, scores, masks, floor, k = case
    given_floor = torch.tensor(floor, dtype=torch.float64) if is_tensor else floor
    if isinstance(floor, int) and is_tensor:
        given_floor = torch.tensor(floor)
    got = gp.global_unstructured(params, scores, masks=masks, amount=k, min_per_leaf=given_floor)
    assert_masks(got, reference.masks_above_floors(params, scores, k, floor, masks), params)


@pytest.mark.slow
@settings(max_examples=2 * settings().max_examples)
@given(floored(), limits(), st.data())
def test_under_small_limits_and_nested(
    case: tuple[Any, Any, Any, Any, int], small: Limits, data: st.DataObject
) -> None:
    """As large leaves are searched; what a larger amount keeps is also kept by a smaller one."""
    params, scores, masks, floor, k = case
    fewer = data.draw(st.integers(0, k))
    with patched(small):
        got = [
            gp.global_unstructured(params, scores, masks=masks, amount=n, min_per_leaf=floor)
            for n in (k, fewer)
        ]
    assert_masks(got[0], reference.masks_above_floors(params, scores, k, floor, masks), params)
    assert_subset(*got)


def test_a_leaf_of_low_scores_is_not_emptied() -> None:
    """The leaf whose scores are a thousandth of the others' would lose all of its entries."""
    generator = torch.Generator().manual_seed(0)
    params = {name: torch.randn(100, 100, generator=generator) for name in ("a", "b", "c")}
    params["b"] *= 1e-3
    kept = {n: int(m.sum()) for n, m in gp.global_unstructured(params, sparsity=0.6).items()}
    assert kept["b"] == 0
    for floor, least in [(500, 500), (0.05, 500), (1, 1)]:
        masks = gp.global_unstructured(params, sparsity=0.6, min_per_leaf=floor)
        assert int(gp.num_pruned(masks)) == 18_000
        assert int(masks["b"].sum()) == least
        largest = params["b"].abs().view(-1).topk(least).indices
        assert masks["b"].view(-1)[largest].all()


@pytest.mark.parametrize("seed", [0, 1])
def test_it_holds_for_every_built_in_method(seed: int) -> None:
    """Ranked by what each of them ranks by; the random draws do not depend on the floor."""
    params = [torch.arange(-9.0, 11.0), torch.arange(6.0).view(2, 3)]
    for method, more, ranked_by in [
        (gp.lowest_unstructured, {}, gp.scores.magnitude(params)),
        (gp.l1_unstructured, {}, gp.scores.magnitude(params)),
        (gp.random_unstructured, {"seed": seed}, gp.scores.random(params, seed=seed)),
    ]:
        got = gp.global_unstructured(
            params, pruning_method=method, amount=21, min_per_leaf=2, **more
        )
        assert_masks(got, reference.masks_above_floors(params, ranked_by, 21, 2), params)
    kept = gp.global_unstructured(params, pruning_method=gp.identity, min_per_leaf=2)
    assert gp.num_pruned(kept) == 0


def test_the_priors_count_towards_the_floor() -> None:
    """A leaf that has fewer left keeps those; nothing that was pruned comes back."""
    params = [torch.arange(1.0, 6.0), torch.arange(10.0, 15.0)]
    masks = [torch.tensor([False] * 4 + [True]), torch.ones(5).bool()]
    got = gp.global_unstructured(params, masks=masks, amount=3, min_per_leaf=2)
    assert [mask.tolist() for mask in got] == [[False] * 4 + [True], [False] * 3 + [True] * 2]
    with pytest.raises(ValueError, match="4 of 6 candidates, but min_per_leaf 2 allows at most 3"):
        gp.global_unstructured(params, masks=masks, amount=4, min_per_leaf=2)
    with pytest.raises(ValueError, match=r"sparsity 0\.9 .* min_per_leaf 0\.4 allows at most 3"):
        gp.global_unstructured(params, masks=masks, sparsity=0.9, min_per_leaf=0.4)


def test_a_schedule_with_a_floor() -> None:
    """A pruner takes a partial with a floor; a total that it cannot reach is an error when due."""
    params = {"a": torch.rand(5, 4) / 1000, "b": torch.rand(4, 5)}

    def prune(weights: Any, scores: Any, **kwargs: Any) -> Any:
        return gp.global_unstructured(weights, scores, min_per_leaf=0.2, **kwargs)

    for target, is_reached in [(0.8, True), (0.9, False)]:
        schedule = gp.schedules.one_shot(target, step=2)
        pruner = gp.pruners.gradual(schedule, due=lambda step: step % 2 == 0, prune=prune)
        state = pruner.init(params)
        for _ in range(2):
            _, state = pruner.update(params, state)
        if is_reached:
            _, state = pruner.update(params, state)
            assert [int(mask.sum()) for mask in state.masks.values()] == [4, 4]
        else:
            with pytest.raises(ValueError, match="allows at most 32"):
                pruner.update(params, state)


def test_under_vmap() -> None:
    """Over models, over their priors and over floors."""
    models = torch.randn(3, 12, generator=torch.Generator().manual_seed(2))
    priors = models > -1
    floors = torch.tensor([0.1, 0.25, 0.5], dtype=torch.float64)

    def prune(model: Any, prior: Any, floor: Any) -> Any:
        params, masks = [model[:4], model[4:]], [prior[:4], prior[4:]]
        return gp.global_unstructured(params, masks=masks, amount=2, min_per_leaf=floor)

    batch = torch.vmap(prune)(models, priors, floors)
    for i in range(3):
        expected = prune(models[i], priors[i], floors[i])
        assert all(mask[i].equal(alone) for mask, alone in zip(batch, expected, strict=True))


@pytest.mark.slow
def test_compiled_with_other_floors_and_the_same_errors() -> None:
    params = {"a": torch.randn(4, 5) / 100, "b": torch.randn(20)}

    def prune(floor: Any) -> Any:
        return gp.global_unstructured(params, sparsity=0.75, min_per_leaf=floor)

    compiled = torch.compile(prune, fullgraph=True, backend="aot_eager")
    for floor in (1, 3, 0.1, 0.25, torch.tensor(2)):
        expected = reference.masks_above_floors(params, None, 30, floor)
        assert_masks(compiled(floor), expected, params)
    with pytest.raises(ValueError, match="min_per_leaf 6 allows at most 28"):
        compiled(6)
    torch._dynamo.reset()


def check_sharded(
    case: tuple[Any, Any, Any, Any, int], sharding: Sharding, small: Limits
) -> list[str]:
    params, scores, masks, floor, k = case
    mine = [placed(tree, sharding) for tree in (params, scores, masks)]
    with patched(small):
        got = gp.global_unstructured(mine[0], mine[1], masks=mine[2], amount=k, min_per_leaf=floor)
        expected = gp.global_unstructured(params, scores, masks=masks, amount=k, min_per_leaf=floor)
    return differences("masks", got, expected, sharding)


@pytest.mark.slow
@pytest.mark.parametrize("world", [2, 3])
def test_sharded(world: int) -> None:
    """Bit for bit the masks of the whole tensors."""

    @st.composite
    def sharded(draw: st.DrawFn) -> Any:
        case = draw(floored())
        return case, draw(shardings(case[0], world))

    @settings(max_examples=max(10, settings().max_examples // 4))
    @given(sharded(), limits())
    def check(drawn: Any, small: Limits) -> None:
        all_well(world, check_sharded, *drawn, small)

    check()


def check_sharded_errors() -> list[str]:
    sharding = Sharding((2,), [(Shard(0),), (Replicate(),)])
    params = placed([torch.arange(1.0, 6.0), torch.arange(10.0, 15.0)], sharding)
    rank = torch.distributed.get_rank()
    problems = []
    for floor, words in [
        (3, "amount 7 prunes 7 of 10 candidates, but min_per_leaf 3 allows at most 4"),
        (-1, "min_per_leaf must not be negative, got -1"),
        (rank, "differ"),
    ]:
        try:
            gp.global_unstructured(params, amount=7, min_per_leaf=floor)
            problems.append(f"no error with {floor}")
        except ValueError as error:
            problems += [] if words in str(error) else [str(error)]
    return problems


@pytest.mark.slow
def test_sharded_errors() -> None:
    """A floor that does not allow the total, or is not the same on all ranks."""
    all_well(2, check_sharded_errors)


@pytest.mark.slow
def test_on_meta_it_gives_shapes() -> None:
    params = {"a": torch.empty(3, 4, device="meta"), "b": None}
    masks = gp.global_unstructured(params, amount=3, min_per_leaf=2)
    assert (masks["a"].device.type, masks["a"].shape, masks["b"]) == ("meta", (3, 4), None)
