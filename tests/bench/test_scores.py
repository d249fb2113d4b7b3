"""What scores cost, in gradients: a 784-300-100-10 network, 512 examples."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

import gprune as gp
from tests.bench.conftest import THREADS, Report
from tests.bench.measure import peak, ratio

pytestmark = pytest.mark.bench

NETWORK = """
import torch, gprune as gp
model = torch.nn.Sequential(
    torch.nn.Linear(784, 300), torch.nn.ReLU(),
    torch.nn.Linear(300, 100), torch.nn.ReLU(),
    torch.nn.Linear(100, 10),
)
params = {name: p.detach() for name, p in model.named_parameters()}
x, y = torch.randn(512, 784), torch.randint(10, (512,))
def loss(params, x, y):
    return torch.nn.functional.cross_entropy(torch.func.functional_call(model, params, (x,)), y)
"""


def network() -> dict[str, Any]:
    scope: dict[str, Any] = {}
    exec(NETWORK, scope)
    return scope


def gradient(n: dict[str, Any]) -> Callable[[], Any]:
    return lambda: torch.func.grad(n["loss"])(n["params"], n["x"], n["y"])


def test_fisher_over_a_loop(report: Report) -> None:
    n = network()

    def loop() -> dict[str, torch.Tensor]:
        total = {name: torch.zeros_like(p) for name, p in n["params"].items()}
        for x, y in zip(n["x"].split(1), n["y"].split(1), strict=True):
            grads = torch.func.grad(n["loss"])(n["params"], x, y)
            for name, grad in grads.items():
                total[name] += grad.square() / 512
        return total

    def fisher() -> dict[str, torch.Tensor]:
        return gp.scores.fisher(n["loss"], n["params"], n["x"], n["y"])

    for name, diagonal in fisher().items():
        torch.testing.assert_close(diagonal, loop()[name])
    report("a loop of torch.func.grad over fisher", ratio(loop, fisher, rounds=9), at_least=2)


@pytest.mark.parametrize("chunk_size", [32, 256])
def test_peak_memory_of_fisher(report: Report, chunk_size: int) -> None:
    """The gradients of a chunk, and parameters a few times; not those of all examples."""
    setup = f"torch.set_num_threads({THREADS})\n{NETWORK}"
    setup = f"import torch\n{setup}\ngp.scores.fisher(loss, params, x[:2], y[:2])"
    call = f"gp.scores.fisher(loss, params, x, y, chunk_size={chunk_size})"
    size = sum(p.numel() * 4 for p in network()["params"].values()) / 2**20
    value = peak(setup, call) / (chunk_size * size)
    report(f"peak memory of fisher over {chunk_size} gradients", value, at_most=2)


def test_snip_over_a_gradient(report: Report) -> None:
    n = network()
    value = ratio(lambda: gp.scores.snip(n["loss"], n["params"], n["x"], n["y"]), gradient(n), 50)
    report("snip over a gradient", value, at_most=1.2)


def test_grasp_over_a_gradient(report: Report) -> None:
    n = network()
    value = ratio(lambda: gp.scores.grasp(n["loss"], n["params"], n["x"], n["y"]), gradient(n), 50)
    report("grasp over a gradient", value, at_most=6)
