"""Search for an example that meets a condition."""

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, find, settings
from hypothesis import strategies as st
from hypothesis.errors import NoSuchExample

Condition = Callable[[Any], bool]


def reaches(strategy: st.SearchStrategy[Any], condition: Condition, *more: Phase) -> Any:
    """An example that meets the condition, within 5,000 draws of a fixed sequence."""
    limits = settings(
        max_examples=5_000,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.generate, *more],
        suppress_health_check=[HealthCheck.too_slow],  # as in conftest.py
    )
    try:
        return find(strategy, condition, settings=limits)
    except NoSuchExample:
        pytest.fail("not reached in 5,000 draws")
