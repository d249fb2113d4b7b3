"""Benchmarks: `pytest tests/bench -m bench -n 0 -s`. Writes results.json, the figures of README."""

import json
import os
import platform
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import optree
import pytest
import torch

RESULTS = Path(__file__).parent / "results.json"
THREADS = 2

Report = Callable[..., None]


def processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(x.split(":")[1].strip() for x in lines if x.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()


def machine() -> dict[str, Any]:
    return {
        "processor": processor(),
        "cores": os.cpu_count(),
        "threads": THREADS,
        "torch": torch.__version__,
        "optree": optree.__version__,
        "python": platform.python_version(),
    }


@pytest.fixture(scope="session")
def figures() -> Iterator[dict[str, dict[str, Any]]]:
    found: dict[str, dict[str, Any]] = {}
    if RESULTS.exists():
        found = json.loads(RESULTS.read_text())["figures"]
    torch.set_num_threads(THREADS)
    yield found
    text = json.dumps({"machine": machine(), "figures": dict(sorted(found.items()))}, indent=1)
    RESULTS.write_text(text + "\n")
    print(f"\n{machine()}\nwritten to {RESULTS.name}")


@pytest.fixture
def report(figures: dict[str, dict[str, Any]]) -> Report:
    """Record a figure with its bound, and fail beyond the bound."""

    def record(name: str, value: float, *, at_most: float | None = None, at_least: float = 0.0):
        bound = {"at_most": at_most} if at_most is not None else {"at_least": at_least}
        figures[name] = {"value": float(f"{value:.3g}"), **bound, "processor": processor()}
        print(f"\n{name}: {value:.3g} ({bound})")
        assert at_least <= value
        assert at_most is None or value <= at_most

    return record
