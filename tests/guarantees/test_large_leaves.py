"""Exactness where the search has work to do: leaves of many blocks, hard distributions."""

import math
import operator
from collections.abc import Callable
from typing import Any

import pytest
import torch

import gprune as gp
from gprune.select import blocks
from tests.bench.measure import peak, python
from tests.support import reference
from tests.support.assertions import fail_if

pytestmark = pytest.mark.slow

ENTRIES = 2**19 + 12_345


@pytest.fixture(autouse=True)
def _blocks_smaller_than_a_leaf(monkeypatch: pytest.MonkeyPatch) -> None:
    """An oracle in Python is slow, so the blocks shrink and not the leaves grow."""
    monkeypatch.setattr(blocks, "BLOCK", 2**18)


def normal(generator: torch.Generator, size: int) -> torch.Tensor:
    return torch.randn(size, generator=generator)


def with_nans(generator: torch.Generator, size: int) -> torch.Tensor:
    scores = normal(generator, size)
    scores[torch.rand(size, generator=generator) < 0.6] = math.nan
    return scores


def one_tail(generator: torch.Generator, size: int) -> torch.Tensor:
    """All in one ulp of another but for a few enormous ones."""
    scores = torch.where(torch.rand(size, generator=generator) < 0.5, 1.0, 1.0 + 2**-23)
    scores[::100_003] = 3e38
    return scores


def every(dtype: torch.dtype) -> Callable[[torch.Generator, int], torch.Tensor]:
    """All the bits that a dtype of 16 has: every NaN, of either sign, and every denormal."""

    def scores(generator: torch.Generator, size: int) -> torch.Tensor:
        return torch.randperm(size, generator=generator).to(torch.int16).view(dtype)

    return scores


DISTRIBUTIONS: dict[str, Callable[[torch.Generator, int], torch.Tensor]] = {
    "normal": normal,
    "float64": lambda g, n: torch.randn(n, generator=g, dtype=torch.float64),
    "close in float64": lambda g, n: 1 + torch.rand(n, generator=g, dtype=torch.float64) * 1e-14,
    "all equal": lambda g, n: torch.ones(n),
    "sorted": lambda g, n: torch.arange(n, dtype=torch.float32),
    "sorted down": lambda g, n: -torch.arange(n, dtype=torch.float32),
    "few values": lambda g, n: torch.randint(-2, 3, (n,), generator=g).float(),
    "sixty percent NaN": with_nans,
    "one tail": one_tail,
    "every magnitude": lambda g, n: torch.exp2(torch.rand(n, generator=g) * 270 - 149),
    "bfloat16": lambda g, n: torch.randn(n, generator=g).bfloat16(),
    "float16": lambda g, n: torch.randn(n, generator=g).half(),
    "every bfloat16": every(torch.bfloat16),
    "every float16": every(torch.float16),
    "int8": lambda g, n: torch.randint(-128, 128, (n,), generator=g, dtype=torch.int8),
    "close in int32": lambda g, n: torch.randint(
        2**30, 2**30 + 10**4, (n,), generator=g, dtype=torch.int32
    ),
    "int64": lambda g, n: torch.randint(-(2**53), 2**53, (n,), generator=g),
    "zeros of either sign": lambda g, n: torch.tensor([-1.0, -0.0, 0.0, 0.0, 0.0, 0.0, 1.0])[
        torch.randint(7, (n,), generator=g)
    ],
    "mostly zero": lambda g, n: normal(g, n) * (torch.rand(n, generator=g) < 0.01),
}


def check(tree: Any, masks: Any, ks: list[int]) -> None:
    scores, prior = reference.lists(tree), reference.priors(tree, masks)
    order = [index for index, _ in reference.ranking(scores, prior)]
    flat = [keep for leaf in prior for keep in leaf or []]
    wrong = []
    for start, k in zip([0, *ks], ks, strict=False):
        for index in order[start:k]:
            flat[index] = False
        got = reference.lists(gp.global_unstructured(tree, tree, masks=masks, amount=k))
        wrong += [
            f"k = {k}, {path}: {sum(map(operator.ne, mine, theirs))} entries differ"
            for path, mine, theirs in zip(
                reference.paths(tree), got, reference.unflatten(flat, prior), strict=True
            )
            if mine != theirs
        ]
    fail_if(wrong)


LONG = [
    "float64",
    "every magnitude",
    "bfloat16",
    "float16",
    "every float16",
    "close in int32",
    "int64",
]


@pytest.mark.parametrize(
    "distribution",
    [
        pytest.param(draw, id=name, marks=pytest.mark.long if name in LONG else [])
        for name, draw in DISTRIBUTIONS.items()
    ],
)
def test_a_large_leaf_beside_small_ones(
    distribution: Callable[[torch.Generator, int], torch.Tensor],
) -> None:
    generator = torch.Generator().manual_seed(0)
    large = distribution(generator, ENTRIES)
    tree = {"a": distribution(generator, 5), "b": large, "c": torch.tensor(0.5), "none": None}
    check(tree, None, [1, ENTRIES // 3, ENTRIES // 2, ENTRIES - 1_000, ENTRIES + 5])


def test_large_leaves_of_different_dtypes_with_priors() -> None:
    generator = torch.Generator().manual_seed(1)
    size = ENTRIES // 4
    tree = [
        torch.randn(size, generator=generator),
        torch.randn(size, generator=generator).bfloat16(),
        torch.randint(-3, 4, (size,), generator=generator, dtype=torch.int8),
        torch.randn(size, generator=generator).half(),
    ]
    masks = [torch.rand(size, generator=generator) < 0.8 for _ in tree]
    check(tree, masks, [7, size, 3 * size])


def test_a_large_leaf_in_another_layout() -> None:
    """Its blocks hold whole rows, so they start anywhere, and the last one fills whole words."""
    rows = 2**19 // 3 + 8_000
    scores = torch.randn(3, rows, generator=torch.Generator().manual_seed(3)).t()
    check([scores], None, [1, rows, 2 * rows])


@pytest.mark.parametrize(
    "dtype",
    [
        torch.float32,
        *(
            pytest.param(dtype, marks=pytest.mark.long)
            for dtype in (torch.float64, torch.bfloat16, torch.int32)
        ),
    ],
)
@pytest.mark.parametrize("pruned", [False, True])
def test_several_thresholds_are_each_what_it_is_alone(dtype: torch.dtype, pruned: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    weights = (torch.randn(3 * 2**20 + 5, generator=generator) * 1000).to(dtype)
    weights[7] = 2**30  # far above all thresholds
    params = [weights[: 2**21].view(2**10, -1), weights[2**21 :]]
    masks = gp.global_unstructured(params, amount=0.3) if pruned else None
    amounts = torch.linspace(0.05, 0.95, 10, dtype=torch.float64)
    together = gp.find_threshold(params, masks=masks, amount=amounts)
    alone = [gp.find_threshold(params, masks=masks, amount=amount) for amount in amounts]
    assert together.value.equal(torch.stack([one.value for one in alone]))
    assert together.flat_index.equal(torch.stack([one.flat_index for one in alone]))


HUGE = """
import torch, gprune as gp
gp.global_unstructured([torch.ones(9)], amount=1)  # loads what a first call loads
torch.manual_seed(0)
size, part = 2**31 + 8, torch.randn(2**20).bfloat16()
leaf = torch.empty(size, dtype=torch.bfloat16)
for start in range(0, size, 2**20):
    leaf[start : start + 2**20] = part[: size - start]
"""


@pytest.mark.long
def test_a_leaf_of_more_entries_than_an_int32_counts() -> None:
    """The count is exact, and what is needed beyond the leaf and its mask is small."""
    amount = 2**30 + 12_345
    call = f"gp.global_unstructured([leaf], amount={amount})"
    assert int(python(f"{HUGE}\nprint(int(gp.num_pruned({call})))")) == amount
    assert peak(HUGE, call) - 2**31 / 2**20 <= 64
