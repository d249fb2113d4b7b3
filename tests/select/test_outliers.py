"""Outliers: counted against loops, and what their scores must not be."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gprune.inputs import LeafError
from gprune.select.outliers import outlier_shares
from gprune.select.refine import OneProcess
from tests.support import reference_patterns

DTYPES = [torch.float16, torch.float32, torch.float64, torch.int32]
ALL = [True] * 9


@st.composite
def grouped(draw: st.DrawFn) -> tuple[list[torch.Tensor], list[int]]:
    """Leaves of several dtypes, most scores small and some large, in up to three groups."""
    score = st.sampled_from([0, 1, 2, 3, 10, 50, 1000])
    leaves = [
        torch.tensor(draw(st.lists(score, max_size=8)), dtype=draw(st.sampled_from(DTYPES)))
        for _ in range(draw(st.integers(1, 5)))
    ]
    numbers = draw(st.lists(st.integers(0, 2), min_size=len(leaves), max_size=len(leaves)))
    order = list(dict.fromkeys(numbers))
    return leaves, [order.index(number) for number in numbers]


@given(grouped(), st.sampled_from([0.0, 1.0, 1.5, 5.0, 1e308]))
def test_shares(drawn: tuple[list[torch.Tensor], list[int]], outlier: float) -> None:
    leaves, groups = drawn
    got = outlier_shares(leaves, groups, outlier, ALL, OneProcess())
    for number in range(max(groups) + 1):
        own = [
            x for leaf, g in zip(leaves, groups, strict=True) for x in leaf.tolist() if g == number
        ]
        if own:
            assert got[number] == reference_patterns.outlier_share(own, outlier)
        else:
            assert math.isnan(got[number])


def test_scores_are_compared_by_exact_value() -> None:
    """In float32 the bound would be rounded up to the outlier itself."""
    step = 2.0**-23
    leaf = torch.tensor([1 + step, 1.0, 1.0])  # 1 + step is above 1 + step / 3
    assert outlier_shares([leaf], [0], 1.0, ALL, OneProcess()) == [1 / 3]
    leaf = torch.tensor([1 + step] * 3 + [1.0])  # three are above 1 + 3 step / 4
    assert outlier_shares([leaf], [0], 1.0, ALL, OneProcess()) == [3 / 4]


@pytest.mark.parametrize(
    ("bad", "text"),
    [
        (math.nan, "contain NaN or infinity"),
        (math.inf, "contain NaN or infinity"),
        (-math.inf, "contain NaN or infinity"),
        (-1e-45, "have negative entries"),
    ],
)
def test_what_scores_must_not_be(bad: float, text: str) -> None:
    leaves = [torch.ones(3), torch.tensor([1.0, bad, 2.0])]
    with pytest.raises(LeafError, match=text) as raised:
        outlier_shares(leaves, [0, 1], 5.0, ALL, OneProcess())
    assert raised.value.leaf == 1


def test_a_sum_that_overflows() -> None:
    huge = torch.tensor([1.5e308], dtype=torch.float64)
    with pytest.raises(LeafError, match="the sum of the group overflows"):
        outlier_shares([torch.ones(1), huge, huge], [0, 1, 1], 5.0, ALL, OneProcess())
    with pytest.raises(LeafError, match="or their sum overflows"):
        outlier_shares([huge.expand(2)], [0], 5.0, ALL, OneProcess())
