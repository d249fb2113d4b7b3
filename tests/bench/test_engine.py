"""The engine: the reference work is 50,331,648 float32 normal weights, 24 leaves of 1024 x 2048."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from statistics import median
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.utils import prune as torch_prune

import gprune as gp
from tests.bench.conftest import THREADS, Report
from tests.bench.measure import medians, peak, python, ratio

pytestmark = pytest.mark.bench

SHAPE, LEAVES = (1024, 2048), 24
SETUP = f"""
import torch, gprune as gp, gprune.adapter, torch.nn.utils.prune
torch.set_num_threads({THREADS})
def modules(leaves, shape):
    made = [torch.nn.Linear(shape[1], shape[0], bias=False) for _ in range(leaves)]
    for module in made:
        torch.nn.init.normal_(module.weight)
    return [(module, "weight") for module in made]
gp.global_unstructured([torch.randn(700, 700)], amount=0.5)
for prune in (gprune.adapter, torch.nn.utils.prune):
    prune.global_unstructured(modules(1, (30, 30)), prune.L1Unstructured, amount=0.5)
"""


@cache
def weights() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(SHAPE, generator=generator) for _ in range(LEAVES)]


def modules() -> list[tuple[torch.nn.Module, str]]:
    made = [torch.nn.Linear(SHAPE[1], SHAPE[0], bias=False, device="meta") for _ in weights()]
    for module, weight in zip(made, weights(), strict=True):
        module.weight = torch.nn.Parameter(weight)
    return [(module, "weight") for module in made]


def ours(amount: float = 0.5, leaves: Any = None) -> Callable[[], Any]:
    tree = weights() if leaves is None else leaves
    return lambda: gp.global_unstructured(tree, amount=amount)


def floor() -> list[torch.Tensor]:
    """Write new masks for a known threshold, block by block: `abs(x) > t`."""
    scratch, masks = torch.empty(2**18), []
    for weight in weights():
        mask = torch.empty(SHAPE, dtype=torch.bool)
        for block, out in zip(
            weight.view(-1).split(2**18), mask.view(-1).split(2**18), strict=True
        ):
            torch.gt(torch.abs(block, out=scratch), 0.67, out=out)
        masks.append(mask)
    return masks


def by_hand_in_numpy() -> list[np.ndarray]:
    magnitudes = np.abs(np.concatenate([weight.numpy().reshape(-1) for weight in weights()]))
    k = magnitudes.size // 2
    threshold = np.partition(magnitudes, k - 1)[k - 1]
    return np.split(magnitudes > threshold, LEAVES)


@pytest.mark.parametrize(("amount", "must"), [(0.1, 30), (0.5, 50), (0.9, 70)])
def test_against_torch(report: Report, amount: float, must: float) -> None:
    def theirs() -> None:
        torch_prune.global_unstructured(modules(), torch_prune.L1Unstructured, amount=amount)

    value = ratio(theirs, ours(amount), rounds=3)
    report(f"torch.nn.utils.prune over gprune, amount {amount}", value, at_least=must)


def test_against_numpy(report: Report) -> None:
    report("numpy by hand over gprune", ratio(by_hand_in_numpy, ours()), at_least=1)


def test_against_the_floor(report: Report) -> None:
    report("gprune over the floor", ratio(ours(), floor, rounds=9), at_most=4)


def test_peak_memory(report: Report) -> None:
    setup = f"{SETUP}\nweights = [torch.randn({SHAPE}) for _ in range({LEAVES})]"
    masks = LEAVES * SHAPE[0] * SHAPE[1] / 2**20
    value = peak(setup, "gp.global_unstructured(weights, amount=0.5)") - masks
    report("peak memory beyond weights and masks, MiB", value, at_most=24)


def test_adapter_against_torch(report: Report) -> None:
    from gprune import adapter

    def drop_in() -> None:
        adapter.global_unstructured(modules(), adapter.L1Unstructured, amount=0.5)

    def theirs() -> None:
        torch_prune.global_unstructured(modules(), torch_prune.L1Unstructured, amount=0.5)

    report("torch over the adapter, whole call", ratio(theirs, drop_in, rounds=3), at_least=10)


def test_adapter_peak_memory(report: Report) -> None:
    setup = f"{SETUP}\npairs = modules({LEAVES}, {SHAPE})"
    call = "global_unstructured(pairs, torch.nn.utils.prune.L1Unstructured, amount=0.5)"
    mine = peak(setup, f"gprune.adapter.{call}")
    theirs = peak(setup, f"torch.nn.utils.prune.{call}")
    report("adapter's peak memory over torch's", mine / theirs, at_most=0.5)


def by_hand(leaves: list[torch.Tensor], k: int) -> list[torch.Tensor]:
    flat = torch.cat([leaf.view(-1) for leaf in leaves]).abs()
    threshold = torch.kthvalue(flat, k).values
    return [leaf.abs() > threshold for leaf in leaves]


@pytest.mark.parametrize(("size", "must"), [(30_000, 1.6), (60_000, 1.1), (200_000, 1.1)])
def test_small_trees_against_kthvalue(report: Report, size: int, must: float) -> None:
    leaves = list(torch.randn(6, size // 600, 100))
    value = ratio(ours(size // 2, leaves), lambda: by_hand(leaves, size // 2), rounds=99)
    report(f"{size:,} weights over cat, abs and kthvalue by hand", value, at_most=must)


def test_layerwise_against_kthvalue(report: Report) -> None:
    leaves = list(torch.randn(300, 80_000))
    value = ratio(
        lambda: gp.layerwise(leaves, amount=0.5),
        lambda: [by_hand([leaf], 40_000) for leaf in leaves],
    )
    report("layerwise of 300 leaves over kthvalue of each by hand", value, at_most=1.1)


def test_many_small_leaves(report: Report) -> None:
    flat = torch.cat([weight.view(-1) for weight in weights()])
    small = [leaf.clone() for leaf in flat[: 10_000 * 5_033].split(5_033)]
    report("10,000 leaves over 24 leaves", ratio(ours(leaves=small), ours()), at_most=6)


def test_time_per_weight(report: Report) -> None:
    few = [torch.randn(SHAPE) for _ in range(5)]
    many = [torch.randn(SHAPE) for _ in range(96)]
    value = ratio(ours(leaves=many), ours(leaves=few)) * len(few) / len(many)
    report("time per weight, 200 M over 10 M", value, at_most=1.5)
    report("time per weight, 10 M over 200 M", 1 / value, at_most=1.5)


def _sorted(descending: bool) -> list[torch.Tensor]:
    flat = torch.cat([weight.view(-1) for weight in weights()]).abs()
    return list(flat.sort(descending=descending).values.view(LEAVES, *SHAPE))


def _outlier() -> list[torch.Tensor]:
    leaves = [weight.clone() for weight in weights()]
    leaves[3][5, 5] = 3e38
    return leaves


def _periodic() -> list[torch.Tensor]:
    """Large entries at strides of 256, 384 and 512, which a strided sample would hit."""
    flat = torch.cat([weight.view(-1) for weight in weights()])
    for stride in (256, 384, 512):
        flat[::stride] *= 1e6
    return list(flat.view(LEAVES, *SHAPE))


def _each(function: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[], list[torch.Tensor]]:
    return lambda: [function(weight) for weight in weights()]


HARD: dict[str, Callable[[], list[torch.Tensor]]] = {
    "all equal": _each(torch.ones_like),
    "all zero": _each(torch.zeros_like),
    "two values": _each(lambda w: (w > 0).float() + 1),
    "sorted": lambda: _sorted(False),
    "reverse": lambda: _sorted(True),
    "one outlier": _outlier,
    "denormals": _each(lambda w: w * 1e-40),
    "int32": _each(lambda w: (w * 1000).to(torch.int32)),
    "int8": _each(lambda w: (w * 30).to(torch.int8)),
    "half NaN": _each(lambda w: torch.where(w > 0, w, float("nan"))),
    "coarse bfloat16": _each(lambda w: (w * 8).round().bfloat16()),
    "periodic": _periodic,
}


@pytest.mark.parametrize("name", HARD)
def test_hard_distributions(report: Report, name: str) -> None:
    leaves = HARD[name]()
    report(f"{name} over normal", ratio(ours(leaves=leaves), ours(), rounds=9), at_most=1.3)


def test_nearly_all_pruned(report: Report) -> None:
    masks = gp.global_unstructured(weights(), amount=0.99)

    def rest() -> None:
        gp.global_unstructured(weights(), masks=masks, amount=0.5)

    report("99 % already pruned over normal", ratio(rest, ours()), at_most=3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_dtypes(report: Report, dtype: torch.dtype) -> None:
    leaves = [weight.to(dtype) for weight in weights()]
    name = str(dtype).removeprefix("torch.")
    report(f"{name} over float32", ratio(ours(leaves=leaves), ours()), at_most=2.5)


def test_ten_amounts(report: Report) -> None:
    leaves, amounts = weights(), torch.linspace(0.05, 0.95, 10, dtype=torch.float64)

    def ten() -> None:
        torch.vmap(lambda amount: gp.find_threshold(leaves, amount=amount))(amounts)

    def one() -> None:
        gp.find_threshold(leaves, amount=0.5)

    report("ten amounts in one search over one", ratio(ten, one), at_most=3)


def test_rows(report: Report) -> None:
    scores = torch.randn(4096, 4096)

    def by_hand() -> torch.Tensor:
        lowest = torch.topk(scores.abs(), 2048, dim=-1, largest=False).indices
        return torch.ones_like(scores, dtype=torch.bool).scatter_(1, lowest, False)

    def rows() -> torch.Tensor:
        return gp.l1_unstructured(scores, amount=0.5, dim=-1)

    assert torch.equal(by_hand().sum(1), rows().sum(1))
    report("rows of 4096 x 4096 over topk and scatter", ratio(rows, by_hand, 3), at_most=1)


IMPORT = """
import time, torch, optree
start = time.process_time()
import gprune
print(1e3 * (time.process_time() - start))
"""


def test_import(report: Report) -> None:
    def milliseconds() -> float:
        return float(python(IMPORT, PYTHONDONTWRITEBYTECODE=""))  # the bytecode that pip writes

    milliseconds()
    value = median(milliseconds() for _ in range(9))
    report("import gprune after torch and optree, ms of processor time", value, at_most=50)


def test_medians_come_in_the_order_of_the_sides() -> None:
    import time

    short, long = medians(lambda: time.sleep(0.001), lambda: time.sleep(0.02), rounds=2)
    assert short < long
