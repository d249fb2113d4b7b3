"""Inside a compiled step: what a prune call costs the compiler, and what masks cost the step."""

from __future__ import annotations

import functools
import tempfile
from typing import Any

import pytest
import torch

import gprune as gp
from tests.bench.conftest import THREADS, Report
from tests.bench.measure import medians, python, ratio

pytestmark = pytest.mark.bench

RESNET = f"""
import time, torch, gprune as gp
torch.set_num_threads({THREADS})
shapes = []
for width, blocks in ((64, 3), (128, 4), (256, 6), (512, 3)):
    for _ in range(blocks):
        for shape in ((width, 4 * width, 1, 1), (width, width, 3, 3), (4 * width, width, 1, 1)):
            shapes += [shape, (shape[0],), (shape[0],), (shape[0],), (shape[0],)]
shapes += [(64, 3, 7, 7), (1000, 2048)] + [(256,)] * (300 - len(shapes) - 2)
params = {{f"p{{i:03}}": torch.randn(shape) for i, shape in enumerate(shapes)}}
assert len(params) == 300, len(params)
prune = torch.compile(lambda p, a: gp.global_unstructured(p, amount=a), fullgraph=True)
start = time.perf_counter()
prune(params, torch.tensor(0.5))
print(time.perf_counter() - start)
"""


WEIGHTS = 784 * 1024 + 1024 * 1024 + 1024 * 10


def mlp() -> torch.nn.Module:
    linear, relu = torch.nn.Linear, torch.nn.ReLU
    return torch.nn.Sequential(
        linear(784, 1024), relu(), linear(1024, 1024), relu(), linear(1024, 10)
    )


def test_compile_time_of_a_300_leaf_tree(report: Report) -> None:
    with tempfile.TemporaryDirectory() as cache:
        seconds = float(python(RESNET, TORCHINDUCTOR_CACHE_DIR=cache))
    report("compile time of a 300-leaf prune call, s", seconds, at_most=25)


def test_projected_masks_in_a_training_step(report: Report) -> None:
    """`where(mask, p - lr * g, 0)` against the dense step: 784-1024-1024-10, batch 256."""
    model = mlp()
    params = {name: p.detach() for name, p in model.named_parameters()}
    masks = gp.global_unstructured(gp.prunable(params), sparsity=0.9)
    x, y = torch.randn(256, 784), torch.randint(10, (256,))

    def loss_fn(params: Any) -> torch.Tensor:
        output = torch.func.functional_call(model, params, (x,))
        return torch.nn.functional.cross_entropy(output, y)

    def update(params: Any) -> Any:
        grads = torch.func.grad(loss_fn)(params)
        return {name: p - 0.1 * grads[name] for name, p in params.items()}

    dense = torch.compile(update, fullgraph=True)
    sparse = torch.compile(lambda params: gp.apply_masks(update(params), masks), fullgraph=True)

    def many(step: Any) -> Any:
        return lambda: [step(params) for _ in range(20)]

    value = ratio(many(sparse), many(dense), rounds=15)
    report("training step with projected masks over dense", value, at_most=1.12)


def test_gradual_in_a_training_step(report: Report) -> None:
    """Averaged over a run that prunes every 100 steps: 99 that are not due, and one that is.

    The pruner goes first, so that Inductor fuses the masks into the update of the weights.
    """
    model = mlp()
    start = {name: p.detach() for name, p in model.named_parameters()}
    x, y = torch.randn(256, 784), torch.randint(10, (256,))
    due = functools.partial(gp.schedules.every, begin=0, end=1000, freq=100)
    pruner = gp.pruners.gradual(gp.schedules.polynomial(0.9, begin=0, end=1000), due=due)

    def loss_fn(params: Any) -> torch.Tensor:
        output = torch.func.functional_call(model, params, (x,))
        return torch.nn.functional.cross_entropy(output, y)

    def train(params: Any) -> Any:
        grads = torch.func.grad(loss_fn)(params)
        return {name: p - 0.1 * grads[name] for name, p in params.items()}

    dense = torch.compile(lambda params, state: (train(params), state), fullgraph=True)
    sparse = torch.compile(
        lambda params, state: pruner.update(train(params), state), fullgraph=True
    )
    begun = pruner.init(start)
    not_due, pruning = begun._replace(step=begun.step + 50), begun._replace(step=begun.step + 500)
    assert gp.num_pruned(sparse(start, not_due)[1].masks) == 0
    assert gp.num_pruned(sparse(start, pruning)[1].masks) == round(0.7875 * WEIGHTS)

    without, between, at_update = medians(
        lambda: dense(start, begun),
        lambda: sparse(start, not_due),
        lambda: sparse(start, pruning),
        rounds=25,
    )
    value = (0.99 * between + 0.01 * at_update) / without
    print(f"\ndense {without:.4f} s, not due {between:.4f} s, pruning {at_update:.4f} s")
    report("training step with gradual over dense, averaged over a run", value, at_most=1.15)
