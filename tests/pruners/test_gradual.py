"""Gradual pruning: its schedule exactly, scores, channels and allocations."""

import functools
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import gprune as gp
from tests.support import reference
from tests.support.assertions import assert_same
from tests.support.pruning import HALF, always, assert_masked, every, like, models, pruned_in_each


@pytest.mark.slow
@given(models(), st.data(), st.floats(0, 0.99), st.integers(1, 3))
def test_gradual_follows_its_schedule_exactly(
    params: Any, data: st.DataObject, sparsity: float, freq: int
) -> None:
    """By every method of counting: all together, and in each leaf by its allocation."""
    schedule = gp.schedules.polynomial(sparsity, begin=0, end=5)
    allocate = data.draw(st.sampled_from([None, gp.allocation.uniform, gp.allocation.erdos_renyi]))
    by_leaf = {"allocation": allocate, "prune": gp.layerwise} if allocate else {}
    pruner = gp.pruners.gradual(schedule, due=every(freq), **by_leaf)
    state = pruner.init(params)
    weights = gp.prunable(params)
    for step in range(7):
        before = state
        params, state = pruner.update(like(data.draw, params), before)
        assert_masked(params, state.masks)
        if step % freq:
            assert_same(state.masks, before.masks)
            continue
        target = schedule(step)
        total = reference.num_to_reach(target, reference.num_entries(weights), 0)
        assert int(gp.num_pruned(state.masks)) == total
        if allocate:
            shares = allocate(weights, sparsity=target)
            counts = {
                n: round(s.item() * weights[n].numel()) for n, s in shares.items() if n != "bias"
            }
            assert pruned_in_each(state.masks) == counts
        assert all((before.masks[n] | ~m).all() for n, m in state.masks.items() if n != "bias")


def test_gradual_with_channels_scores_and_globs_is_one_expression() -> None:
    pruner = gp.pruners.gradual(
        gp.schedules.linear(0.75, begin=0, end=3),
        due=always,
        where="conv*",
        score_fn=lambda params, grads: {n: params[n] * g for n, g in grads.items()},
        prune=functools.partial(gp.layerwise, pruning_method=gp.ln_structured, n=1, dim=0),
    )
    params = {"conv1": torch.ones(4, 2, 3, 3), "conv2": torch.ones(8, 4, 1, 1), "fc": torch.ones(2)}
    grads = {
        name: torch.arange(1.0, 1 + len(leaf)).view(-1, *[1] * (leaf.dim() - 1)).expand_as(leaf)
        for name, leaf in params.items()
    }
    state = pruner.init(params)
    for step in range(4):
        params, state = pruner.update(params, state, grads)
        kept = [int(state.masks[name].flatten(1).any(1).sum()) for name in ("conv1", "conv2")]
        assert kept == [4 - step, 8 - 2 * step]
        assert state.masks["conv1"][step:].all()
    assert state.masks["fc"] is None


def test_given_scores_take_the_place_of_its_own() -> None:
    pruner = gp.pruners.gradual(gp.schedules.constant(0.5), due=always, where="*")
    params, scores = {"w": torch.tensor([1.0, 2.0])}, {"w": torch.tensor([2.0, 1.0])}
    _, state = pruner.update(params, pruner.init(params), scores=scores)
    assert state.masks["w"].tolist() == [True, False]


def test_straight_through_chooses_afresh_when_it_is_due_and_only_then() -> None:
    """Where a weight that was pruned has grown, it comes back; between, and after, nothing does."""

    def afresh(weights: Any, scores: Any, *, masks: Any, sparsity: torch.Tensor) -> Any:
        fresh = gp.global_unstructured(weights, scores, sparsity=sparsity)
        return {name: torch.where(sparsity > 0, new, masks[name]) for name, new in fresh.items()}

    due = every(2, end=2)
    pruner = gp.pruners.gradual(gp.schedules.constant(0.5), due=due, where="*", prune=afresh)
    rising, falling = torch.arange(4.0), torch.arange(4.0).flip(0)
    state = pruner.init({"w": rising})
    seen = []
    for weight in (rising, falling, falling, rising, rising):
        _, state = pruner.update({"w": weight}, state)
        seen.append(state.masks["w"].tolist())
    last, first = [False, False, True, True], [True, True, False, False]
    assert seen == [last, last, first, first, first]


def test_masks_of_another_structure_are_named() -> None:
    pruner = gp.pruners.gradual(gp.schedules.constant(0.5), due=always)
    state = pruner.init({"w": torch.ones(2, 2)})
    with pytest.raises(ValueError, match=r"state.masks must have the structure of params"):
        pruner.update({"v": torch.ones(2, 2)}, state)


@pytest.mark.parametrize("allocation", [gp.allocation.uniform, gp.allocation.erdos_renyi])
def test_an_allocation_is_for_layerwise(allocation: Any) -> None:
    for allocate in (allocation, functools.partial(allocation, min_kept=1)):
        with pytest.raises(TypeError, match=r"pass prune=gprune\.layerwise"):
            gp.pruners.gradual(HALF, due=always, allocation=allocate)
        method = functools.partial(gp.global_unstructured, pruning_method=gp.l1_unstructured)
        with pytest.raises(TypeError, match=f"{allocation.__name__} with prune=global"):
            gp.pruners.gradual(HALF, due=always, allocation=allocate, prune=method)


def test_an_allocation_of_a_user_may_give_one_number_for_all() -> None:
    params = {"w": torch.ones(2, 3)}
    for allocation, error in [(halve, None), (lambda w, *, sparsity: {"w": sparsity}, TypeError)]:
        pruner = gp.pruners.gradual(HALF, due=always, allocation=allocation)
        if error:
            with pytest.raises(error, match="takes one sparsity for all leaves"):
                pruner.update(params, pruner.init(params))
        else:
            _, state = pruner.update(params, pruner.init(params))
            assert int(gp.num_pruned(state.masks)) == 2  # half of a half of 6 is 1.5


def halve(weights: Any, *, sparsity: torch.Tensor) -> torch.Tensor:
    return sparsity / 2


RAMP = {"begin": 0, "end": 100}


@pytest.mark.parametrize(
    "schedule",
    [
        gp.schedules.one_shot(0.9, step=100),
        gp.schedules.linear(0.9, **RAMP),
        gp.schedules.polynomial(0.9, **RAMP),
        gp.schedules.exponential(0.9, **RAMP),
        gp.schedules.cosine(0.9, **RAMP),
    ],
    ids=lambda schedule: type(schedule).__name__,
)
def test_due_steps_that_miss_the_end_of_the_schedule_are_refused(schedule: Any) -> None:
    """The message says which end of `every` is enough; a due of the user's own is not checked."""
    for begin, end, freq, needed in [(0, 100, 30, 120), (0, 20, 10, 100), (7, 99, 1, 100)]:
        with pytest.raises(ValueError, match=rf"step 100.*pass end={needed} to every\(\)"):
            gp.pruners.gradual(schedule, due=every(freq, begin=begin, end=end))
        enough = every(freq, begin=begin, end=needed)
        params, pruner = {"w": torch.rand(5, 4)}, gp.pruners.gradual(schedule, due=enough)
        state = pruner.init(params)._replace(step=torch.tensor(needed))
        _, state = pruner.update(params, state)
        assert int(gp.num_pruned(state.masks)) == 18
    gp.pruners.gradual(schedule, due=lambda step: every(30, end=100)(step))
    with pytest.raises(ValueError, match="freq must be at least 1"):
        gp.pruners.gradual(schedule, due=every(0))


def test_a_state_knows_the_sparsity_that_it_has_reached() -> None:
    """Also where the last due step never came, and for counts of channels or of few entries."""
    schedule = gp.schedules.polynomial(0.9, begin=0, end=8)
    by_channel = functools.partial(gp.layerwise, pruning_method=gp.ln_structured, n=1, dim=0)
    for prune in (gp.global_unstructured, by_channel):
        params, pruner = (
            {"w": torch.rand(3, 2)},
            gp.pruners.gradual(schedule, due=every(4), prune=prune),
        )
        state, seen = pruner.init(params), []
        for _ in range(10):
            params, state = pruner.update(params, state)
            seen.append(state.target)
        half = float(schedule(4))
        assert torch.stack(seen).equal(torch.tensor([0.0] * 4 + [half] * 4 + [0.9] * 2))
        assert state.target == 0.9
