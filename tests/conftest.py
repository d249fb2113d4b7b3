"""Hypothesis profiles, chosen by the environment: HYPOTHESIS_PROFILE, or `ci` where CI is set.

A property test draws `max_examples` examples. The exactness tests draw twenty times as many, and
eight times as many in `quick`.
"""

import os
import sys

import pytest
import torch
from hypothesis import HealthCheck, settings

# drawing random trees is slow on a busy machine; only this health check is switched off
COMMON = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}

settings.register_profile("quick", max_examples=25, **COMMON)
settings.register_profile("ci", max_examples=100, print_blob=True, **COMMON)
settings.register_profile("nightly", max_examples=2_500, print_blob=True, **COMMON)

in_ci = os.environ.get("CI", "").lower() in ("1", "true")
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci" if in_ci else "quick"))

# one thread per process, because the processes of pytest-xdist fill the cores already
torch.set_num_threads(1)
# nor does Inductor start processes that compile: each would import torch, which takes two seconds
os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out benchmarks and long tests unless `-m` names them, whatever else it asks for."""
    asked = config.getoption("markexpr")
    left_out = [marker for marker in ("bench", "long") if marker not in asked]
    items[:] = [item for item in items if not any(map(item.get_closest_marker, left_out))]


def pytest_sessionfinish() -> None:
    if "tests.support.workers" in sys.modules:
        sys.modules["tests.support.workers"].stop_all()
