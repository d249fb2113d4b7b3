"""What all pruners share: due steps, fractions, saving, and whole runs in one compiled step."""

import copy
import functools
import io
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import optree
import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed import all_reduce
from torch.distributed.tensor import Shard

import gprune as gp
from tests.support.assertions import assert_same
from tests.support.pruning import HALF, always, every
from tests.support.sharded_cases import mesh_of, place
from tests.support.workers import started

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
PICKLED = PRUNERS | {
    "static_sparse": gp.pruners.static_sparse(0.5, seed=2, where=["*.weight"]),
    "gradual, channels": gp.pruners.gradual(
        gp.schedules.one_shot(0.5, step=20),
        due=every(20),
        score_fn=gp.scores.taylor,
        allocation=functools.partial(gp.allocation.uniform, min_kept=1),
        prune=functools.partial(gp.layerwise, pruning_method=gp.ln_structured, n=1, dim=0),
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


@pytest.mark.long
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


def saved_and_loaded(thing: Any) -> Any:
    file = io.BytesIO()
    torch.save(thing, file)
    file.seek(0)
    return torch.load(file)  # with weights_only=True, its default


@pytest.mark.parametrize("name", PICKLED)
def test_states_survive_pickle_deepcopy_and_torch_load(name: str) -> None:
    """At the start and after updates; what comes back has its class and shares no memory."""
    run = Recorded(PICKLED[name])
    state = run.pruner.init(run.params)
    for _ in range(2):
        copies = [copy.deepcopy(state), saved_and_loaded(state), pickle.loads(pickle.dumps(state))]
        copies += [saved_and_loaded({"epoch": 1, "pruner": state, "params": run.params})["pruner"]]
        for other in copies:
            assert type(other) is type(state)
            assert_same(other, state)
            assert other.step.data_ptr() != state.step.data_ptr()
        _, state, _, _ = run.step(run.params, state)


@pytest.mark.parametrize("name", PICKLED)
def test_pruners_survive_pickle_and_deepcopy(name: str) -> None:
    run = Recorded(PICKLED[name])
    for pruner in (pickle.loads(pickle.dumps(run.pruner)), copy.deepcopy(run.pruner)):
        assert type(pruner) is gp.pruners.Pruner
        state = run.pruner.init(run.params)
        assert_same(pruner.init(run.params), state)
        due = state._replace(step=state.step + 100)
        assert_same(
            pruner.update(run.params, due, run.params),
            run.pruner.update(run.params, due, run.params),
        )


def train_on(pruner: gp.pruners.Pruner, before: Path, after: Path, steps: int) -> None:
    """Read parameters and state from a file, train for some steps, and write them to another."""
    run = Recorded(pruner)
    params, state = torch.load(before)
    for _ in range(steps):
        params, state, _, _ = run.step(params, state)
    torch.save((params, state), after)


def train_all_on(pruners: dict[str, gp.pruners.Pruner], folder: Path, steps: int) -> None:
    for number, pruner in enumerate(pruners.values()):
        train_on(pruner, folder / f"{number}.half", folder / f"{number}.resumed", steps)


@pytest.mark.long
def test_a_run_that_a_new_process_resumes_is_bit_identical(tmp_path: Path) -> None:
    """The process gets the pruners by pickle, and parameters and states from files."""
    steps = 25
    for number, pruner in enumerate(PICKLED.values()):
        params = Recorded(pruner).params
        start = pruner.init(params)._replace(step=torch.tensor(80))  # each is due in both halves
        names = [tmp_path / f"{number}.{name}" for name in ("start", "half", "whole")]
        torch.save((params, start), names[0])
        train_on(pruner, names[0], names[1], steps)
        train_on(pruner, names[1], names[2], steps)
    assert started(1).run(train_all_on, PICKLED, tmp_path, steps) == [None]
    for number in range(len(PICKLED)):
        here, there = (torch.load(tmp_path / f"{number}.{name}") for name in ("whole", "resumed"))
        assert_same(there, here)


@pytest.mark.parametrize("name", PICKLED)
def test_a_run_of_fake_tensors(name: str) -> None:
    """Of a pruner that was built before: only its functions, and no tensor, come from outside."""
    pruner = PICKLED[name]
    with FakeTensorMode():
        params = {"0.weight": torch.rand(8, 4), "1.weight": torch.rand(4, 8), "bias": torch.ones(8)}
        state = pruner.init(params)
        new, after = pruner.update(params, state, params)
    leaves = (optree.tree_leaves(tree) for tree in ((new, after), (params, state)))
    for got, wanted in zip(*leaves, strict=True):
        assert (got.shape, got.dtype) == (wanted.shape, wanted.dtype)


BY_DUE: list[Callable[[Any], gp.pruners.Pruner]] = [
    lambda due: gp.pruners.gradual(HALF, due=due),
    lambda due: gp.pruners.iterative(0.5, due=due),
    lambda due: gp.pruners.sparse_evolution(0.5, fraction=HALF, due=due, seed=0),
    lambda due: gp.pruners.rigl(0.5, fraction=HALF, due=due, seed=0),
]


@pytest.mark.parametrize("how", ["compiled", "vmap"])
@pytest.mark.parametrize("build", BY_DUE)
def test_due_and_not_due_steps_where_the_answer_is_not_known(
    build: Callable[[Any], gp.pruners.Pruner], how: str
) -> None:
    """While compiling and under `vmap` a step prunes 0 more; eager code skips it."""
    pruner = build(lambda step: step % 2 == 1)
    params = {"w": torch.arange(1.0, 13.0).view(3, 4)}
    grads = {"w": torch.arange(12.0, 0, -1).view(3, 4)}
    start = pruner.init(params)
    steps = torch.arange(4)
    states = [start._replace(step=step) for step in steps]
    expected = [pruner.update(params, state, grads) for state in states]
    if how == "compiled":
        torch.compiler.reset()
        update = torch.compile(pruner.update, fullgraph=True, backend="eager")
        got = [update(params, state, grads) for state in states]
    else:

        def at(step: torch.Tensor) -> Any:
            return pruner.update(params, start._replace(step=step), grads)

        stacked = torch.vmap(at)(steps)
        got = [optree.tree_map(lambda x, i=i: x[i], stacked) for i in range(len(steps))]
    for ours, wanted in zip(got, expected, strict=True):
        assert_same(ours, wanted)
    assert len({tuple(new.masks["w"].view(-1).tolist()) for _, new in expected}) > 1


def test_a_step_that_is_not_due_keeps_a_copy_to_rewind_to() -> None:
    """The optimizer may change the parameters in place afterwards."""
    pruner = gp.pruners.iterative(0.5, due=lambda step: step == 2, rewind_to=1)
    params = {"w": torch.arange(1.0, 5.0).view(2, 2)}
    _, state = pruner.update(params, pruner.init(params))
    early = params["w"].clone()
    params["w"].mul_(10)
    assert state.rewind_params["w"].equal(early)
    _, state = pruner.update(params, state)  # not due, and nothing to copy
    assert state.rewind_params["w"].equal(early)


@pytest.mark.parametrize("build", BY_DUE)
def test_what_is_due_is_true_or_false(build: Callable[[Any], gp.pruners.Pruner]) -> None:
    """`step % 5` says when it is not: as a factor it would prune five times as much, or so."""
    params = {"w": torch.arange(1.0, 13.0).view(3, 4)}
    bad: list[tuple[Any, type[Exception]]] = [
        (lambda step: step % 5, TypeError),
        (lambda step: 1, TypeError),
        (lambda step: None, TypeError),
        (lambda step: torch.tensor([True]), ValueError),
    ]
    for due, error in bad:
        pruner = build(due)
        with pytest.raises(error, match="due must give a 0-dim bool tensor"):
            pruner.update(params, pruner.init(params), params)
    for answer in (True, False):
        tensors = build(lambda step, answer=answer: (step >= 0) & answer)
        bools = build(lambda step, answer=answer: answer)
        start = tensors.init(params)
        assert_same(tensors.update(params, start, params), bools.update(params, start, params))


@pytest.mark.parametrize("build", [gp.pruners.sparse_evolution, gp.pruners.rigl])
def test_the_fraction_is_taken_at_its_exact_value_and_held_to_its_range(build: Any) -> None:
    """0.3 in float32 is above 0.3, so that of 15 weights 5 go: 4.5 in float32, which is even."""
    params = {"w": torch.arange(1.0, 31.0).view(5, 6)}
    mask = {"w": params["w"] > 15}
    grads = {"w": (~mask["w"]).float()}  # none of those that are dropped comes back

    def exchanged(fraction: float) -> int:
        share = torch.tensor(fraction, dtype=torch.float32)
        pruner = build(0.5, fraction=lambda step: share, due=always, seed=0)
        state = pruner.init(params)._replace(masks=mask)
        _, after = pruner.update(params, state, grads)
        return int((mask["w"] & ~after.masks["w"]).sum())

    assert exchanged(0.3) == 5
    with pytest.raises(ValueError, match=r"fraction\(step\) must be from 0 to 1, got 2; did"):
        exchanged(2.0)
    for wrong in (1.25, -0.5, float("nan")):
        with pytest.raises(ValueError, match=rf"fraction\(step\) must be .*, got {wrong}$"):
            exchanged(wrong)


def half_in_words(step: torch.Tensor) -> Any:
    return "half"


@pytest.mark.parametrize(
    ("build", "name"),
    [
        (
            lambda: gp.pruners.gradual(half_in_words, due=always),
            "the sparsity that schedule and allocation give",
        ),
        (
            lambda: gp.pruners.rigl(0.5, fraction=half_in_words, due=always, seed=0),
            "fraction(step)",
        ),
        (
            lambda: gp.pruners.sparse_evolution(0.5, fraction=half_in_words, due=always, seed=0),
            "fraction(step)",
        ),
    ],
    ids=["gradual", "rigl", "sparse_evolution"],
)
def test_an_error_about_a_schedule_names_it(build: Callable[[], Any], name: str) -> None:
    params, pruner = {"weight": torch.ones(2, 4)}, build()
    message = f"^{re.escape(name)} must be an int or a float, got 'half'"
    with pytest.raises(TypeError, match=message):
        pruner.update(params, pruner.init(params), params)


# --- on several ranks -----------------------------------------------------------------------------


def update_at_other_steps() -> list[str]:
    """At step 0 only rank 0 takes the step to be due, at step 1 both do."""
    rank, raised = torch.distributed.get_rank(), []
    params = {"w": place(torch.ones(4, 3), mesh_of((2,)), (Shard(0),))}
    for build in BY_DUE:
        pruner = build(lambda step: step >= rank)
        state = build(lambda step: False).init(params)
        try:
            for _ in range(2):
                _, state = pruner.update(params, state, params)
        except ValueError as error:
            raised.append(str(error))
    return raised


@pytest.mark.slow
def test_due_must_agree_on_all_ranks() -> None:
    """Otherwise the scores of one step would be ranked together with those of another."""
    first, second = started(2).run(update_at_other_steps)
    assert first == second
    assert len(first) == len(BY_DUE)
    assert all("due must give the same answer on all ranks" in text for text in first)


def messages_of_updates() -> list[int]:
    """Count the messages of a step that is not due, and of one that is."""
    params = {"w": place(torch.ones(4, 3), mesh_of((2,)), (Shard(0),))}
    found = []
    for due in (False, True):
        for build in BY_DUE:
            pruner = build(lambda step, due=due: due)
            state = pruner.init(params)
            with mock.patch("torch.distributed.all_reduce", wraps=all_reduce) as sent:
                pruner.update(params, state, params)
            found.append(sent.call_count)
    return found


@pytest.mark.slow
def test_a_step_that_is_not_due_sends_no_messages() -> None:
    for counts in started(2).run(messages_of_updates):
        assert counts[: len(BY_DUE)] == [0] * len(BY_DUE)
        assert all(3 <= count <= 40 for count in counts[len(BY_DUE) :])
