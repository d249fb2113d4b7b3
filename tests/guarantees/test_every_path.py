"""The fuzzer reaches every path of the search: a path that no random tree takes is not tested."""

from __future__ import annotations

import importlib
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any
from unittest import mock

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support import fuzz
from tests.support.limits import small_limits

pytestmark = pytest.mark.slow

PATHS: dict[str, tuple[str, str]] = {
    "selection": ("gprune.select.operators", "select"),
    "selection of rows": ("gprune.select.operators", "select_rows"),
    "threshold": ("gprune.select.operators", "find_threshold"),
    "masks from a threshold": ("gprune.select.operators", "masks_from_threshold"),
}
"""What is a path: the module and the name of a function that is called on it alone."""

EXAMPLES = 200
"""Trees for all paths together, each asked in one way."""


def counting(function: Callable[..., Any], calls: Counter[str], name: str) -> Callable[..., Any]:
    def count(*args: Any, **kwargs: Any) -> Any:
        calls[name] += 1
        return function(*args, **kwargs)

    return count


@pytest.fixture(scope="module")
def calls() -> Counter[str]:
    """How often the fuzzer takes each path, on the same trees in every run."""
    calls: Counter[str] = Counter()

    @settings(
        max_examples=EXAMPLES,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow],  # as in conftest.py
    )
    @given(fuzz.trees(large=False), st.integers(0, 2**32 - 1), st.sampled_from(list(fuzz.WAYS)))
    def ask(tree: fuzz.Tree, limits: int, name: str) -> None:
        with small_limits(np.random.default_rng(limits)):
            for _ in fuzz.WAYS[name].ask(fuzz.build(tree), np.random.default_rng(tree.seed)):
                pass

    with ExitStack() as stack:
        for name, (module, function) in PATHS.items():
            original = getattr(importlib.import_module(module), function)
            replacement = counting(original, calls, name)
            stack.enter_context(mock.patch(f"{module}.{function}", replacement))
        ask()
    return calls


@pytest.mark.parametrize("path", PATHS)
def test_the_fuzzer_takes_the_path(path: str, calls: Counter[str]) -> None:
    print(f"{path}: {calls[path]} times")
    assert calls[path] >= 5
