"""Compiled is eager: no graph break, no recompile over amounts, the same masks bit for bit."""

import functools
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

import gprune as gp
from gprune.testing.strategies import Box
from tests.assertions import assert_equal_masks


class Layer(NamedTuple):
    weight: Any
    bias: Any


PARAMS = {
    "fc": Layer(torch.linspace(-1, 1, 20).reshape(4, 5), torch.ones(4)),
    "norm": {"weight": torch.ones(4), "bias": torch.zeros(4)},
    "head": [torch.arange(6.0).reshape(2, 3), None],
}
WEIGHTS = gp.prunable(PARAMS)
PRIOR = gp.global_unstructured(WEIGHTS, amount=3)
TOTAL = 26

FRACTIONS = [i / 50 for i in range(50)]
COUNTS = list(range(TOTAL)) + [0] * 24


@pytest.fixture(autouse=True)
def _fresh_dynamo() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def tensors_of(tree: Any) -> list[Any]:
    return gp.trees.flatten(tree)[0]


def compiles(function: Callable[[Any], Any], inputs: Iterable[Any], backend: str = "eager") -> int:
    """Compare compiled with eager on every input; return how often it was compiled."""
    counter = CompileCounterWithBackend(backend)
    compiled = torch.compile(function, backend=counter, fullgraph=True)
    for value in inputs:
        expected, got = function(value), compiled(value)
        assert_same(got, expected)
    return counter.frame_count


def assert_same(got: Any, expected: Any) -> None:
    left, right = gp.trees.flatten(got), gp.trees.flatten(expected)
    assert left[1] == right[1]
    for a, b in zip(left[0], right[0], strict=True):
        if isinstance(b, torch.Tensor):
            torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)
        else:
            assert a == b


AMOUNT_TAKERS = {
    "global_unstructured": lambda a: gp.global_unstructured(WEIGHTS, amount=a),
    "with masks": lambda a: gp.global_unstructured(WEIGHTS, masks=PRIOR, amount=a / 2),
    "l1": lambda a: gp.global_unstructured(WEIGHTS, pruning_method=gp.l1_unstructured, amount=a),
    "random": lambda a: gp.global_unstructured(
        WEIGHTS, pruning_method=gp.random_unstructured, seed=1, amount=a
    ),
    "layerwise": lambda a: gp.layerwise(WEIGHTS, amount=a),
    "find_cut": lambda a: gp.find_cut(WEIGHTS, amount=a),
    "masks_at": lambda a: gp.masks_at(gp.find_cut(WEIGHTS, amount=a), WEIGHTS),
    "num_to_prune": lambda a: gp.num_to_prune(a, 20),
    "one tensor": lambda a: gp.lowest_unstructured(PARAMS["fc"].weight, amount=a),
    "sparsity": lambda a: gp.global_unstructured(WEIGHTS, sparsity=a),
}


@pytest.mark.parametrize("name", AMOUNT_TAKERS)
def test_fifty_python_floats_compile_at_most_twice(name: str) -> None:
    assert compiles(AMOUNT_TAKERS[name], FRACTIONS) <= 2


@pytest.mark.parametrize("name", AMOUNT_TAKERS)
def test_fifty_tensors_compile_once(name: str) -> None:
    assert compiles(AMOUNT_TAKERS[name], map(torch.tensor, FRACTIONS)) == 1


def test_fifty_python_ints_compile_at_most_twice() -> None:
    assert compiles(lambda a: gp.global_unstructured(WEIGHTS, amount=a), COUNTS) <= 2


def test_fifty_int_tensors_compile_once() -> None:
    prune = AMOUNT_TAKERS["global_unstructured"]
    assert compiles(prune, map(torch.tensor, COUNTS)) == 1


def test_fifty_python_seeds_compile_at_most_twice() -> None:
    assert compiles(lambda seed: gp.scores.random(PARAMS, seed=seed), range(50)) <= 2


@pytest.mark.parametrize(
    "schedule",
    [
        gp.schedules.constant(0.5),
        gp.schedules.one_shot(0.5, step=20),
        gp.schedules.linear(0.9, begin=5, end=40),
        gp.schedules.polynomial(0.9, begin=5, end=40, initial=0.1),
    ],
    ids=["constant", "one_shot", "linear", "polynomial"],
)
def test_schedules(schedule: gp.schedules.Schedule) -> None:
    assert compiles(schedule, map(torch.tensor, range(50))) == 1
    torch._dynamo.reset()
    assert compiles(schedule, range(50)) <= 2


@gp.pruning_method("unstructured")
def below(scores: torch.Tensor, mask: torch.Tensor, *, threshold: float) -> torch.Tensor:
    return scores.abs() >= threshold


OTHERS = {
    "prunable": lambda _: gp.prunable(PARAMS),
    "prunable by glob": lambda _: gp.prunable(PARAMS, ["fc.*", "head*"]),
    "prunable by predicate": lambda _: gp.prunable(PARAMS, lambda path, leaf: "norm" in path),
    "vmap_dims": lambda _: gp.vmap_dims(WEIGHTS),
    "magnitude": lambda _: gp.scores.magnitude(PARAMS),
    "random": lambda _: gp.scores.random(PARAMS, seed=3),
    "keep_all": lambda _: gp.keep_all(WEIGHTS),
    "apply_masks": lambda _: gp.apply_masks(PARAMS, PRIOR),
    "straight_through": lambda _: gp.straight_through(PARAMS, PRIOR),
    "num_pruned": lambda _: gp.num_pruned(PRIOR),
    "sparsity": lambda _: gp.sparsity(PRIOR),
    "intersect": lambda _: gp.intersect(PRIOR, gp.keep_all(WEIGHTS)),
    "identity": lambda _: gp.global_unstructured(WEIGHTS, pruning_method=gp.identity),
    "partial": lambda _: gp.global_unstructured(
        WEIGHTS, pruning_method=functools.partial(gp.l1_unstructured, amount=0.5)
    ),
    "user's method": lambda _: gp.global_unstructured(WEIGHTS, pruning_method=below, threshold=0.5),
    "layerwise user's method": lambda _: gp.layerwise(WEIGHTS, pruning_method=below, threshold=0.5),
    "layerwise tree": lambda a: gp.layerwise(
        WEIGHTS,
        amount={"fc": Layer(a, None), "norm": dict.fromkeys(["weight", "bias"]), "head": [1, None]},
    ),
}


@pytest.mark.parametrize("name", OTHERS)
def test_everything_else_traces_whole(name: str) -> None:
    assert compiles(OTHERS[name], [0.5]) <= 1  # 0: nothing but Python, no graph at all


def test_every_container_traces() -> None:
    """Also those without a tensor, through which Dynamo does not trace optree."""
    weight = torch.arange(6.0).reshape(2, 3)
    tree = {
        "z": OrderedDict(b=weight, a=None),
        "default": defaultdict(list, {"only": None}),
        "box": Box(Layer(weight, None), {"hole": None}),
        "empty": ([], {}, ()),
        3: weight,
    }
    tree = {str(key): value for key, value in tree.items()}

    def prune(amount: torch.Tensor) -> Any:
        return gp.global_unstructured(gp.prunable(tree), tree_of_scores, amount=amount)

    tree_of_scores = gp.scores.magnitude(tree)
    assert compiles(prune, [torch.tensor(5)]) == 1


def test_a_training_step_with_inductor() -> None:
    """Fifty different sparsities, masks and update in one graph, compiled once by Inductor."""
    model = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
    params = {name: p.detach().clone() for name, p in model.named_parameters()}
    x, y = torch.linspace(-1, 1, 60).reshape(10, 6), torch.arange(10) % 3
    schedule = gp.schedules.polynomial(0.9, begin=0, end=40)

    def loss_fn(params: Any) -> torch.Tensor:
        return torch.nn.functional.cross_entropy(torch.func.functional_call(model, params, (x,)), y)

    def train_step(params: Any, masks: Any, step: torch.Tensor) -> Any:
        masks = gp.global_unstructured(gp.prunable(params), masks=masks, sparsity=schedule(step))
        grads, loss = torch.func.grad_and_value(loss_fn)(gp.apply_masks(params, masks))
        params = {name: p - 0.1 * grads[name] for name, p in params.items()}
        return gp.apply_masks(params, masks), masks, loss

    counter = CompileCounterWithBackend("inductor")
    compiled = torch.compile(train_step, backend=counter, fullgraph=True)
    masks = gp.keep_all(gp.prunable(params))
    for step in range(50):
        before, prior = params, masks
        params, masks, _ = compiled(params, masks, torch.tensor(step))
        eager = gp.global_unstructured(
            gp.prunable(before), masks=prior, sparsity=float(schedule(step))
        )
        assert_equal_masks(masks, eager, gp.prunable(params))
        assert int(gp.num_pruned(masks)) == round(float(schedule(step)) * 72)
    assert counter.frame_count == 1
    assert all((params[name][~mask] == 0).all() for name, mask in masks.items() if mask is not None)


@pytest.mark.parametrize(
    ("amount", "words"),
    [(80.0, "did you mean 0.8"), (-1, "negative"), (27, "candidates, 26"), (float("nan"), "nan")],
)
def test_wrong_values_raise_the_same_error_compiled(amount: float, words: str) -> None:
    compiled = torch.compile(AMOUNT_TAKERS["global_unstructured"], backend="eager", fullgraph=True)
    for run in (AMOUNT_TAKERS["global_unstructured"], compiled):
        with pytest.raises(ValueError, match=words):
            run(amount)
        with pytest.raises(ValueError, match=words):
            run(torch.tensor(amount))


def test_wrong_structure_stops_the_trace_with_our_words() -> None:
    bad = {**WEIGHTS, "fc": Layer(torch.ones(5, 4), None)}
    compiled = torch.compile(
        lambda a: gp.global_unstructured(WEIGHTS, bad, amount=a), backend="eager", fullgraph=True
    )
    with pytest.raises(torch._dynamo.exc.Unsupported, match=r"scores\['fc'\].weight has shape"):
        compiled(0.5)
