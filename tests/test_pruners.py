"""Pruners: exact counts at every step, the papers' rules, whole runs in one compiled step."""

import functools
import io
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch._dynamo.testing import CompileCounterWithBackend

import gprune as gp
from gprune.testing import tensors
from tests.support import reference, reference_patterns
from tests.support.assertions import assert_same

FLOATS = [torch.float32, torch.float64, torch.bfloat16]
SHAPES = st.sampled_from([(3, 4), (8, 2), (2, 3, 2), (1, 5)])


def every(freq: int, begin: int = 0, end: int = 10**6) -> Any:
    return functools.partial(gp.schedules.every, begin=begin, end=end, freq=freq)


def always(step: torch.Tensor) -> torch.Tensor:
    return step >= 0


@st.composite
def models(draw: st.DrawFn) -> dict[str, Any]:
    """Two or three weights with ties, NaN and infinities, and a bias that is not pruned."""
    leaves = tensors(dtypes=FLOATS, shapes=SHAPES)
    weights = draw(st.lists(leaves, min_size=2, max_size=3))
    return {"bias": torch.ones(3)} | {f"w{i}": weight for i, weight in enumerate(weights)}


def like(draw: Any, params: Any) -> Any:
    """Gradients, or the parameters some steps later."""
    return {
        name: draw(tensors(dtypes=[leaf.dtype], shapes=st.just(tuple(leaf.shape))))
        for name, leaf in params.items()
    }


def pruned_in_each(masks: Any) -> dict[str, int]:
    return {name: int((~mask).sum()) for name, mask in masks.items() if mask is not None}


def assert_masked(params: Any, masks: Any) -> None:
    assert masks["bias"] is None
    assert all((params[n][~mask] == 0).all() for n, mask in masks.items() if mask is not None)


# --- gradual ------------------------------------------------------------------------------------


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


# --- iterative ----------------------------------------------------------------------------------


@given(models(), st.data(), st.floats(0, 1), st.integers(0, 5))
def test_iterative_prunes_a_fraction_of_the_rest_and_rewinds(
    params: Any, data: st.DataObject, amount: float, rewind_to: int
) -> None:
    pruner = gp.pruners.iterative(amount, due=every(3, begin=2), rewind_to=rewind_to)
    state, early = pruner.init(params), params
    left = reference.num_entries(gp.prunable(params))
    for step in range(9):
        trained = like(data.draw, params)
        early = trained if step + 1 == rewind_to else early
        params, state = pruner.update(trained, state)
        at_end = step % 3 == 2
        left -= reference.num_to_prune(amount, left) if at_end else 0
        assert sum(int(m.sum()) for m in state.masks.values() if m is not None) == left
        assert_same(params, gp.apply_masks(early if at_end else trained, state.masks))


def test_what_is_rewound_to_is_no_view_of_the_parameters() -> None:
    params = {"w": torch.ones(2, 2)}
    pruner = gp.pruners.iterative(1, due=always)
    state = pruner.init(params)
    params["w"].mul_(5)  # as optimizers do
    params, _ = pruner.update(params, state)
    assert params["w"].sum() == 3


# --- the same number of weights -----------------------------------------------------------------


@given(models(), st.data(), st.floats(0, 1), st.integers(0, 2**40))
def test_static_sparse(params: Any, data: st.DataObject, sparsity: float, seed: int) -> None:
    pruner = gp.pruners.static_sparse(sparsity, seed=seed)
    state = pruner.init(params)
    total = reference.num_entries(gp.prunable(params))
    assert int(gp.num_pruned(state.masks)) == round(sparsity * total)
    for step in range(3):
        params, after = pruner.update(like(data.draw, params), state)
        assert_same(after.masks, state.masks)
        assert_masked(params, after.masks)
        assert after.step == step + 1
        state = after


def assert_exchanged(
    before: Any, state: Any, trained: Any, params: Any, grown_by: Any, rule: Callable[..., Any]
) -> None:
    """Every leaf has the masks of the paper's rule, as many as before, and new weights at zero."""
    assert pruned_in_each(state.masks) == pruned_in_each(before.masks)
    for name, mask in state.masks.items():
        if mask is not None:
            lists = [tree[name].flatten().tolist() for tree in (trained, before.masks, grown_by)]
            assert mask.flatten().tolist() == rule(*lists)
    kept = {n: m if m is None else m & before.masks[n] for n, m in state.masks.items()}
    assert_same(params, gp.apply_masks(trained, kept))


@given(models(), st.data(), st.floats(0, 1), st.floats(0, 1), st.integers(0, 2**31))
def test_sparse_evolution(
    params: Any, data: st.DataObject, sparsity: float, fraction: float, seed: int
) -> None:
    pruner = gp.pruners.sparse_evolution(
        sparsity, fraction=gp.schedules.constant(fraction), due=every(2), seed=seed
    )
    state = pruner.init(params)
    for step in range(4):
        before, trained = state, like(data.draw, params)
        params, state = pruner.update(trained, before)
        seed_now = torch.tensor(seed) + (step + 1) * 2**32
        draws = gp.scores.random(gp.prunable(params), seed=seed_now)

        now = fraction if step % 2 == 0 else 0.0
        rule = functools.partial(reference_patterns.sparse_evolution, fraction=now)
        assert_exchanged(before, state, trained, params, draws, rule)


@given(models(), st.data(), st.floats(0, 1), st.floats(0, 1), st.integers(0, 2**31))
def test_rigl(
    params: Any, data: st.DataObject, sparsity: float, fraction: float, seed: int
) -> None:
    pruner = gp.pruners.rigl(
        sparsity, fraction=gp.schedules.constant(fraction), due=every(2), seed=seed
    )
    state = pruner.init(params)
    for step in range(4):
        before, trained, grads = state, like(data.draw, params), like(data.draw, params)
        params, state = pruner.update(trained, before, grads)

        now = fraction if step % 2 == 0 else 0.0
        rule = functools.partial(reference_patterns.rigl, fraction=now)
        assert_exchanged(before, state, trained, params, grads, rule)


def test_golden_exchanges() -> None:
    """By hand: of 4 weights 2 go, the lowest; RigL takes one of them back, SET never does."""
    weight = torch.tensor([[5.0, -1.0, 2.0, -4.0, 0.0, 0.0, 0.0, 0.0]])
    mask = weight != 0
    grad = torch.tensor([[0.0, 8.0, 1.0, 9.0, 3.0, -9.0, 2.0, 0.0]])
    half: dict[str, Any] = {"fraction": gp.schedules.constant(0.5), "due": always, "seed": 0}

    pruner = gp.pruners.rigl(0.5, **half)
    state = pruner.init({"w": weight})._replace(masks={"w": mask})
    params, state = pruner.update({"w": weight}, state, {"w": grad})
    assert state.masks["w"].tolist() == [[True, True, False, True, False, True, False, False]]
    assert params["w"].tolist() == [[5, -1, 0, -4, 0, 0, 0, 0]]  # what came back was never gone

    pruner = gp.pruners.sparse_evolution(0.5, **half)
    state = pruner.init({"w": weight})._replace(masks={"w": mask})
    params, state = pruner.update({"w": weight}, state)
    assert state.masks["w"][0, :4].tolist() == [True, False, False, True]
    assert int(state.masks["w"][0, 4:].sum()) == 2
    assert params["w"].tolist() == [[5, 0, 0, -4, 0, 0, 0, 0]]


def test_growth_is_random_and_differs_between_steps_and_seeds() -> None:
    params = {"w": torch.ones(40, 50)}

    def masks(seed: int) -> Iterator[torch.Tensor]:
        pruner = gp.pruners.sparse_evolution(
            0.5, fraction=gp.schedules.constant(0.5), due=always, seed=seed
        )
        state = pruner.init(params)
        for _ in range(3):
            before = state.masks["w"]
            _, state = pruner.update(params, state)
            yield state.masks["w"] & ~before

    grown = [*masks(0), *masks(1)]
    for i, one in enumerate(grown):
        for other in grown[:i]:
            assert (one & other).sum() < one.sum()
        assert 0.4 < one.nonzero().float().mean(0)[0] / 20 < 1.6  # rows from everywhere


def test_rigl_needs_gradients() -> None:
    pruner = gp.pruners.rigl(0.5, fraction=gp.schedules.constant(0.5), due=always, seed=0)
    params = {"w": torch.ones(2, 2)}
    with pytest.raises(TypeError, match="grads"):
        pruner.update(params, pruner.init(params))


def test_masks_of_another_structure_are_named() -> None:
    pruner = gp.pruners.gradual(gp.schedules.constant(0.5), due=always)
    state = pruner.init({"w": torch.ones(2, 2)})
    with pytest.raises(ValueError, match=r"state.masks must have the structure of params"):
        pruner.update({"v": torch.ones(2, 2)}, state)


# --- whole runs ---------------------------------------------------------------------------------

STEPS = 500
PRUNERS = {
    "gradual": gp.pruners.gradual(
        gp.schedules.polynomial(0.9, begin=0, end=400), due=every(10, end=400)
    ),
    "gradual, ERK": gp.pruners.gradual(
        gp.schedules.exponential(0.9, begin=0, end=400),
        due=every(25, end=400),
        allocation=gp.allocation.erdos_renyi,
        prune=gp.layerwise,
    ),
    "iterative": gp.pruners.iterative(0.2, due=every(100, begin=99), rewind_to=10),
    "sparse_evolution": gp.pruners.sparse_evolution(
        0.8, fraction=gp.schedules.constant(0.3), due=every(20, begin=20), seed=1
    ),
    "rigl": gp.pruners.rigl(
        0.8,
        fraction=gp.schedules.cosine(0.0, begin=0, end=400, initial=0.3),
        due=every(20, begin=20, end=400),
        seed=1,
    ),
}
COMPILED_BY_INDUCTOR = ("gradual", "rigl")


class Recorded:
    """A model of three layers and a train step that says what it hands to the pruner."""

    def __init__(self, pruner: gp.pruners.Pruner) -> None:
        torch.manual_seed(0)
        linear, relu = torch.nn.Linear, torch.nn.ReLU
        self.pruner = pruner
        self.model = torch.nn.Sequential(
            linear(8, 16), relu(), linear(16, 16), relu(), linear(16, 4)
        )
        self.params = {name: p.detach().clone() for name, p in self.model.named_parameters()}
        self.x = torch.randn(32, 8)
        self.y = self.x[:, :4].argmax(1)

    def loss(self, params: Any) -> torch.Tensor:
        output = torch.func.functional_call(self.model, params, (self.x,))
        return torch.nn.functional.cross_entropy(output, self.y)

    def step(self, params: Any, state: Any) -> Any:
        grads = torch.func.grad(self.loss)(params)
        trained = {name: p - 0.1 * grads[name] for name, p in params.items()}
        params, state = self.pruner.update(trained, state, grads)
        return params, state, trained, grads


@pytest.mark.slow
@pytest.mark.parametrize("name", PRUNERS)
def test_a_whole_run_compiles_once_and_its_masks_are_those_of_eager_code(name: str) -> None:
    """Bit by bit at every step, on what the compiled run hands to its pruner; resumed too."""
    torch._dynamo.reset()
    run = Recorded(PRUNERS[name])
    backend = "inductor" if name in COMPILED_BY_INDUCTOR else "aot_eager"
    counter = CompileCounterWithBackend(backend)
    step = torch.compile(run.step, backend=counter, fullgraph=True)
    state = eager = run.pruner.init(run.params)
    params = gp.apply_masks(run.params, state.masks)
    changes, saved = 0, io.BytesIO()
    for number in range(STEPS):
        before = state
        params, state, trained, grads = step(params, state)
        masked, eager = run.pruner.update(trained, eager, grads)
        assert_same(state.masks, eager.masks)
        assert_same(params, masked)
        changes += any(
            not torch.equal(m, before.masks[n]) for n, m in state.masks.items() if m is not None
        )
        if number + 1 == STEPS // 2:
            torch.save((params, tuple(state)), saved)
    assert counter.frame_count == 1
    assert changes > 4
    saved.seek(0)
    resumed, fields = torch.load(saved)
    again = type(state)(*fields)
    for _ in range(STEPS // 2):
        resumed, again, _, _ = step(resumed, again)
    assert counter.frame_count == 1
    assert_same(again.masks, state.masks)
    assert_same(resumed, params)
    torch._dynamo.reset()
