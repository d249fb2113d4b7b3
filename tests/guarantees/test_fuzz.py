"""Every way to ask, on random trees, against the sort in tests/support/fuzz.py.

One check is one mask of a leaf that is ranked alone, the masks of one global ranking, or one
threshold. The nightly profile makes 200,000 checks, `ci` 20,000 and the quick one 500.
"""

from __future__ import annotations

import math
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import gprune as gp
from tests.support import fuzz, ways
from tests.support.assertions import fail_if
from tests.support.limits import small_limits

CHECKS = {25: 500, 100: 5_000, 2_500: 200_000}.get(settings().max_examples, 500)
"""How many checks all ways make in all, by the examples of the profile."""


@pytest.mark.parametrize("name", ways.WAYS)
def test_every_way_to_ask(name: str) -> None:
    way = ways.WAYS[name]
    target = math.ceil(CHECKS / len(ways.WAYS))
    made = 0
    has_failed = False

    # a tree gives `way.checks` on average, and in a short run sometimes far fewer
    @settings(max_examples=math.ceil((1.2 * target + 150) / way.checks))
    @given(fuzz.limited_trees())
    def check(drawn: tuple[fuzz.Tree, int | None]) -> None:
        nonlocal made, has_failed
        if made >= target and not has_failed:  # after a failure, hypothesis repeats examples
            return
        try:
            made += checks_of(way, *drawn)
        except Exception:
            has_failed = True
            raise

    check()
    print(f"{name}: {made} checks")
    assert made >= target


def checks_of(way: ways.Way, tree: fuzz.Tree, limits: int | None) -> int:
    """Ask in one way about one tree, and return how many checks were made.

    Raises:
        AssertionError: if something is wrong.
    """
    case = fuzz.build(tree)
    inputs = [x for x in [*case.values, *(case.masks or [])] if x is not None]
    before = [bits(x) for x in inputs]
    small = nullcontext() if limits is None else small_limits(np.random.default_rng(limits))
    with small:
        checks = list(way.ask(case, np.random.default_rng(tree.seed)))
    problems = [problem for one in checks if (problem := ways.error_of(case, one))]
    fail_if(problems + ["an input is modified"] * (before != [bits(x) for x in inputs]))
    return len(checks)


STRUCTURES: dict[str, list[tuple[torch.dtype, tuple[int, ...]] | None]] = {
    "small": [
        (torch.float32, (7,)),
        None,
        (torch.bfloat16, (0, 3)),
        (torch.float64, ()),
        (torch.int32, (3, 4)),
    ],
    "one large leaf": [(torch.float32, (200, 100)), (torch.float32, (5,))],
}


@pytest.mark.slow
@pytest.mark.parametrize("ranking", ["scores", pytest.param("magnitude", marks=pytest.mark.long)])
@pytest.mark.parametrize("name", STRUCTURES)
def test_compiled(name: str, ranking: str) -> None:
    """One graph for all values: trees of one structure, with any values, priors and amounts."""
    made = 0

    @torch.compile(fullgraph=True, backend="aot_eager")
    def step(params: Any, scores: Any, masks: Any, amount: Any) -> Any:
        kept = gp.global_unstructured(params, scores, masks=masks, amount=amount)
        each = gp.layerwise(params, scores, masks=masks, amount=amount)
        found = gp.find_threshold(params, scores, masks=masks, amount=amount)
        return kept, each, found, gp.masks_from_threshold(found, params, scores, masks=masks)

    values = st.tuples(*[st.sampled_from(fuzz.DISTRIBUTIONS)] * len(STRUCTURES[name]))
    priors = st.sampled_from([prior for prior, make in fuzz.PRIORS.items() if make])

    @settings(max_examples=max(10, CHECKS // 200))
    @given(values, priors, st.floats(0, 1), st.integers(0, 2**32 - 1))
    def check(values: tuple[str, ...], prior: str, amount: float, seed: int) -> None:
        nonlocal made
        leaves = tuple(
            None if leaf is None else fuzz.Leaf(*leaf, value, "contiguous")
            for leaf, value in zip(STRUCTURES[name], values, strict=True)
        )
        case = fuzz.build(fuzz.Tree(leaves, prior, ranking, seed))
        number = torch.tensor(amount, dtype=torch.float64)
        kept, each, found, again = step(case.params, case.scores, case.masks, number)
        whole = fuzz.Ranking(case.ranked, case.prior)
        much = {"amount": number}
        k = fuzz.count(much, whole.candidates, whole.entries)
        checks = [
            ("global_unstructured", kept, whole.masks(k)),
            ("layerwise", each, ways.expected_masks(case.ranked, case.prior, much, True)),
            ("find_threshold", found, whole.last(k)),
            ("masks_from_threshold", again, whole.masks(k)),
        ]
        made += len(checks)
        fail_if([problem for one in checks if (problem := ways.error_of(case, one))])

    check()
    print(f"compiled, {name}, by {ranking}: {made} checks")


def bits(tensor: torch.Tensor) -> bytes:
    whole = tensor.clone(memory_format=torch.contiguous_format).view(-1)
    return whole.view(torch.uint8).numpy().tobytes() if len(whole) else b""
