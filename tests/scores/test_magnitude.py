"""Magnitudes: the absolute values of the oracle, in a dtype that holds them."""

from typing import Any

import torch
from hypothesis import given

import gprune as gp
from gprune.testing import param_trees
from tests.support import reference
from tests.support.assertions import assert_same_structure


@given(param_trees())
def test_magnitude(params: Any) -> None:
    scores = gp.scores.magnitude(params)
    assert_same_structure(scores, params)
    assert repr(reference.lists(scores)) == repr(reference.magnitude(params))


def test_the_magnitude_of_the_lowest_integer_does_not_wrap() -> None:
    lowest = [torch.tensor([-128], dtype=torch.int8), torch.tensor([-(2**31)], dtype=torch.int32)]
    assert [score.item() for score in gp.scores.magnitude(lowest)] == [2**7, 2**31]
