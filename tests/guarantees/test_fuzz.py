"""Every way to ask, on random trees, against the sort in tests/support/fuzz.py.

One check is one mask of a leaf that is ranked alone, the masks of one global ranking, or one
threshold. The nightly profile makes 200,000 checks, `ci` 20,000 and the quick one 2,000.
"""

import math
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support import fuzz
from tests.support.assertions import fail_if
from tests.support.limits import small_limits

CHECKS = {25: 2_000, 100: 20_000, 2_500: 200_000}.get(settings().max_examples, 2_000)
"""How many checks all ways make in all, by the examples of the profile."""


@pytest.mark.parametrize("name", fuzz.WAYS)
def test_every_way_to_ask(name: str) -> None:
    way = fuzz.WAYS[name]
    target = math.ceil(CHECKS / len(fuzz.WAYS))
    made = 0

    @settings(max_examples=math.ceil(target / way.checks))
    @given(fuzz.trees(), st.none() | st.integers(0, 2**32 - 1))
    def check(tree: fuzz.Tree, limits: int | None) -> None:
        nonlocal made
        case = fuzz.build(tree)
        inputs = [x for x in [*case.values, *(case.masks or [])] if x is not None]
        before = [bits(x) for x in inputs]
        small = nullcontext() if limits is None else small_limits(np.random.default_rng(limits))
        with small:
            checks = list(way.ask(case, np.random.default_rng(tree.seed)))
        made += len(checks)
        problems = [problem for one in checks if (problem := fuzz.verdict(case, one))]
        fail_if(problems + ["an input is modified"] * (before != [bits(x) for x in inputs]))

    check()
    print(f"{name}: {made} checks")
    assert made >= target


def bits(tensor: torch.Tensor) -> bytes:
    whole = tensor.clone(memory_format=torch.contiguous_format).view(-1)
    return whole.view(torch.uint8).numpy().tobytes() if len(whole) else b""
