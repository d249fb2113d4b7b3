"""Compilation beyond the contract that test_contracts.py runs on every row."""

import warnings
from collections import OrderedDict, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

import gprune as gp
from gprune.testing.strategies import Box
from tests.support.assertions import assert_equal_masks, assert_same
from tests.support.transforms import assert_compiles


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


def prune(amount: Any) -> Any:
    return gp.global_unstructured(WEIGHTS, amount=amount)


@pytest.mark.long
def test_fifty_numbers_compile_at_most_twice() -> None:
    """As many as would reach the limit at which Dynamo gives up compiling for each value."""
    assert_compiles(prune, FRACTIONS, "eager", max_graphs=2)
    assert_compiles(prune, COUNTS, "eager", max_graphs=2)
    assert_compiles(
        lambda seed: gp.scores.random(PARAMS, seed=seed), range(50), "eager", max_graphs=2
    )


@pytest.mark.slow
@pytest.mark.parametrize("numbers", [FRACTIONS, COUNTS], ids=["fractions", "counts"])
def test_fifty_tensors_compile_once(numbers: list[Any]) -> None:
    assert_compiles(prune, [torch.tensor(number) for number in numbers], "eager")


@pytest.mark.parametrize(
    "schedule",
    [
        gp.schedules.constant(0.5),
        gp.schedules.one_shot(0.5, step=20),
        gp.schedules.linear(0.9, begin=5, end=40),
    ],
    ids=["constant", "one_shot", "linear"],
)
def test_fifty_steps_compile_at_most_twice(schedule: gp.schedules.Schedule) -> None:
    assert_compiles(schedule, range(50), "eager", max_graphs=2)


@pytest.mark.slow
def test_every_container_traces() -> None:
    """Also those without a tensor, through which Dynamo does not trace optree."""
    weight = torch.arange(6.0).reshape(2, 3)
    tree = {
        "z": OrderedDict(b=weight, a=None),
        "default": defaultdict(list, {"only": None}),
        "box": Box(Layer(weight, None), {"none": None}),
        "empty": ([], {}, ()),
        3: weight,
    }
    tree = {str(key): value for key, value in tree.items()}

    tree_of_scores = gp.scores.magnitude(tree)
    assert_compiles(
        lambda amount: gp.global_unstructured(gp.prunable(tree), tree_of_scores, amount=amount),
        [torch.tensor(5)],
    )


@pytest.mark.long
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


@pytest.mark.slow
@pytest.mark.parametrize(
    ("amount", "words"),
    [
        (80.0, "did you mean 0.8"),
        (float("nan"), "nan"),
        pytest.param(-1, "negative", marks=pytest.mark.long),
        pytest.param(27, "candidates, 26", marks=pytest.mark.long),
    ],
)
def test_wrong_values_raise_the_same_error_compiled(amount: float, words: str) -> None:
    for run in (prune, torch.compile(prune, backend="eager", fullgraph=True)):
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


class Selections(torch.nn.Module):
    """Every operator that takes prior masks, without them."""

    def forward(self, weight: torch.Tensor, other: torch.Tensor) -> Any:
        params = {"weight": weight, "other": other}
        threshold = gp.find_threshold(params, amount=7)
        return (
            gp.global_unstructured(params, sparsity=0.5),
            gp.global_unstructured(params, amount=20, min_per_leaf=2),
            gp.layerwise(params, amount=0.3, pruning_method=gp.random_unstructured, seed=3),
            gp.layerwise(params, amount=0.5, dim=-1),
            gp.masks_from_threshold(threshold, params),
        )


@pytest.mark.long
def test_a_selection_is_compiled_ahead_of_time(tmp_path: Path) -> None:
    """By AOTInductor, which passes `None` where a program has an empty list of masks."""
    module, inputs = Selections(), (torch.randn(4, 5), torch.randn(7))
    program = torch.export.export(module, inputs)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch's own packaging
        path = torch._inductor.aoti_compile_and_package(
            program, package_path=str(tmp_path / "selections.pt2")
        )
        compiled = torch._inductor.aoti_load_package(path)
    for seed in range(3):
        torch.manual_seed(seed)
        inputs = (torch.randn(4, 5), torch.randn(7))
        assert_same(compiled(*inputs), module(*inputs))
