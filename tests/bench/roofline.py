"""What gprune costs on an accelerator, and the times that follow: `python -m tests.bench.roofline`.

Calls, bytes and waits are counted on the simulated accelerator of the tests. They are exact. The
predicted time is a model: bytes over the bandwidth of the memory, plus a fixed time for each call
and each wait. With `--device cuda` the same calls are measured on a GPU. Both go into RESULTS.md.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch
from rich.progress import track
from torch import Tensor
from torch.nn.utils import prune

import gprune as gp
from gprune.select.blocks import ACCELERATOR_BLOCK
from tests.bench.measure import replace
from tests.support.accelerator import DEVICE, measured

FOLDER = Path(__file__).parent
RESULTS, MEASURED = FOLDER / "RESULTS.md", FOLDER / "measured.json"

BANDWIDTH = 3.35e12
"""Bytes per second that the memory of an H100 SXM reads and writes."""

CALL, WAIT = 5e-6, 20e-6
"""Seconds that the launch of an operator takes, and that the host waits for a value."""

LIMIT = 5
"""Bytes per float32 weight at the least: the weight is read, and its mask is written."""

NUM_LEAVES, COUNTED_SHAPE = 24, (1024, 2048)
SIZES = {"50 M": 50_331_648, "1 G": 10**9, "7 G": 7 * 10**9}

Leaves = dict[str, Tensor]


def always(step: Tensor) -> Tensor:
    return step >= 0


def pruner_step(pruner: Any) -> Callable[[Leaves], Callable[[], Any]]:
    """Return a function of leaves that returns a due step of a pruner."""

    def prepare(tree: Leaves) -> Callable[[], Any]:
        grads = {name: torch.randn_like(leaf) for name, leaf in tree.items()}
        _, state = pruner.update(tree, pruner.init(tree), grads)
        return lambda: pruner.update(tree, state, grads)

    return prepare


def joined(tree: Leaves) -> Tensor:
    return torch.cat([leaf.view(-1) for leaf in tree.values()]).abs_()


def by_kthvalue(tree: Leaves) -> list[Tensor]:
    threshold = joined(tree).kthvalue(sum(x.numel() for x in tree.values()) // 2).values
    return [leaf.abs() > threshold for leaf in tree.values()]


def by_sort(tree: Leaves) -> list[Tensor]:
    scores = joined(tree)
    threshold = scores.sort().values[scores.numel() // 2 - 1]
    return [leaf.abs() > threshold for leaf in tree.values()]


def by_topk(tree: Leaves) -> list[Tensor]:
    scores = joined(tree)
    threshold = scores.topk(scores.numel() // 2, sorted=False).values.min()
    return [leaf.abs() >= threshold for leaf in tree.values()]


def by_torch(tree: Leaves) -> Any:
    modules = [torch.nn.Module() for _ in tree]
    for module, leaf in zip(modules, tree.values(), strict=True):
        module.weight = torch.nn.Parameter(leaf)
    weights = [(module, "weight") for module in modules]
    prune.global_unstructured(weights, pruning_method=prune.L1Unstructured, amount=0.5)


THIRD = gp.schedules.constant(0.3)
Prepare = Callable[[Leaves], Callable[[], Any]]

OURS: dict[str, Prepare] = {
    "`global_unstructured`": lambda t: lambda: gp.global_unstructured(t, amount=0.5),
    "`layerwise`": lambda t: lambda: gp.layerwise(t, amount=0.5),
    "`n_of_m` 2:4": lambda t: lambda: gp.layerwise(t, pruning_method=gp.n_of_m, n=2, m=4),
    "`layerwise`, `dim=-1`": lambda t: lambda: gp.layerwise(t, amount=0.5, dim=-1),
    "`gradual`, due": pruner_step(
        gp.pruners.gradual(lambda step: 0.5 + 0.01 * step, due=always, where="*")
    ),
    "`rigl`, due": pruner_step(gp.pruners.rigl(0.5, fraction=THIRD, due=always, seed=0, where="*")),
}
PEERS: dict[str, Prepare] = {
    "by hand: `cat`, `kthvalue`, `>`": lambda t: lambda: by_kthvalue(t),
    "by hand: `cat`, `sort`, `>`": lambda t: lambda: by_sort(t),
    "by hand: `cat`, `topk`, `>=`": lambda t: lambda: by_topk(t),
    "`torch.nn.utils.prune`": lambda t: lambda: by_torch(t),
}
CALLS = OURS | PEERS


class Cost(NamedTuple):
    """What a call costs on NUM_LEAVES leaves of COUNTED_SHAPE.

    Attributes:
        bytes: the bytes that are read and written for each weight.
        calls: how many operators are called.
        waits: how often the host waits.
    """

    bytes: float
    calls: int
    waits: int


def count(name: str) -> Cost:
    torch.manual_seed(0)
    tree = {str(i): torch.randn(COUNTED_SHAPE, device=DEVICE) for i in range(NUM_LEAVES)}
    call = CALLS[name](tree)
    with measured() as cost:
        call()
    return Cost(cost.bytes / (NUM_LEAVES * math.prod(COUNTED_SHAPE)), cost.calls, cost.waits)


def predict(name: str, cost: Cost, num_weights: int) -> float:
    """Predict the seconds for NUM_LEAVES equal leaves. gprune calls operators once per block."""
    num_blocks = math.ceil(num_weights / NUM_LEAVES / ACCELERATOR_BLOCK) if name in OURS else 1
    seconds = cost.bytes * num_weights / BANDWIDTH + cost.waits * WAIT
    return seconds + cost.calls * num_blocks * CALL


def measure(device: str) -> dict[str, Any]:
    """Time every call on a GPU, at every size that its memory holds."""
    found: dict[str, dict[str, float]] = {}
    for name in track(CALLS, "measuring"):
        found[name] = {}
        for size, num_weights in SIZES.items():
            try:
                found[name][size] = _seconds(name, num_weights, device)
            except torch.OutOfMemoryError:
                torch.cuda.empty_cache()
    return {"device": torch.cuda.get_device_name(device), "seconds": found}


def _seconds(name: str, num_weights: int, device: str) -> float:
    rows = num_weights // NUM_LEAVES // 2048
    tree = {str(i): torch.randn(rows, 2048, device=device) for i in range(NUM_LEAVES)}
    call, times = CALLS[name](tree), list[float]()
    call()
    for _ in range(9):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        call()
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end) / 1e3)
    return median(times)


def page(costs: dict[str, Cost], timed: dict[str, Any] | None) -> str:
    rows = [
        "## Accelerators: costs and times",
        "",
        f"Written by `python -m tests.bench.roofline`, with torch {torch.__version__}.",
        "",
        f"Torch operators are counted on the simulated accelerator: {NUM_LEAVES} float32 leaves "
        f"of {COUNTED_SHAPE[0]} x {COUNTED_SHAPE[1]}, amount 0.5. Each operator reads each tensor "
        "argument once and writes each result once. At a wait, the host reads a value.",
        "",
        f"The predicted times assume an H100: {BANDWIDTH / 1e12:g} TB/s, {CALL * 1e6:g} µs for a "
        f"call and {WAIT * 1e6:g} µs for a wait, with {NUM_LEAVES} equal leaves. The model counts "
        "every byte once, even if an operator such as `sort` reads it several times. "
        f"The limit is {LIMIT} bytes per weight, without calls and waits.",
        "",
        "| call | bytes per weight | calls | waits | "
        + " | ".join(f"{size}, predicted ms | {size}, measured ms" for size in SIZES)
        + " |",
        "|---" * (4 + 2 * len(SIZES)) + "|",
    ]
    for name, cost in costs.items():
        cells = []
        for size, num_weights in SIZES.items():
            seconds = (timed or {}).get("seconds", {}).get(name, {}).get(size)
            cells.append(f"{predict(name, cost, num_weights) * 1e3:.2f}")
            cells.append("" if seconds is None else f"{seconds * 1e3:.2f}")
        rows.append(
            f"| {name} | {cost.bytes:.1f} | {cost.calls} | {cost.waits} | {' | '.join(cells)} |"
        )
    limits = (f"{LIMIT * n / BANDWIDTH * 1e3:.2f} | " for n in SIZES.values())
    rows.append(f"| the limit | {LIMIT} | | | {' | '.join(limits)} |")
    device = "No GPU has run this code yet." if timed is None else f"Measured: {timed['device']}."
    return "\n".join([*rows, "", device, ""])


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.roofline", description=__doc__)
    parser.add_argument("--device", help="a GPU to measure on, such as cuda")
    arguments = parser.parse_args()
    if arguments.device:
        MEASURED.write_text(json.dumps(measure(arguments.device), indent=1) + "\n")
    timed = json.loads(MEASURED.read_text()) if MEASURED.exists() else None
    costs = {name: count(name) for name in track(CALLS, "counting")}
    text = replace(RESULTS.read_text(), "accelerators", page(costs, timed))
    RESULTS.write_text(text)


if __name__ == "__main__":
    main()
