"""Inside a compiled step: what a prune call costs the compiler, and what masks cost the step."""

from __future__ import annotations

import tempfile
from typing import Any

import pytest
import torch

import gprune as gp
from tests.bench.conftest import THREADS, Report
from tests.bench.measure import python, ratio

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


def test_compile_time_of_a_300_leaf_tree(report: Report) -> None:
    with tempfile.TemporaryDirectory() as cache:
        seconds = float(python(RESNET, TORCHINDUCTOR_CACHE_DIR=cache))
    report("compile time of a 300-leaf prune call, s", seconds, at_most=25)


def test_projected_masks_in_a_training_step(report: Report) -> None:
    """`where(mask, p - lr * g, 0)` against the dense step: 784-1024-1024-10, batch 256."""
    model = torch.nn.Sequential(
        torch.nn.Linear(784, 1024),
        torch.nn.ReLU(),
        torch.nn.Linear(1024, 1024),
        torch.nn.ReLU(),
        torch.nn.Linear(1024, 10),
    )
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
