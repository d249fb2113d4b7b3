"""Taylor scores: against an oracle, and what the papers prove."""

from typing import Any

import torch
from hypothesis import given

import gprune as gp
from tests.support import reference
from tests.support.cases import map_tensors
from tests.support.scoring import assert_close, draw, each_dtype, each_model, finite_trees, setting


@each_model
@each_dtype
def test_taylor(name: str, dtype: torch.dtype) -> None:
    _, params, _ = setting(name, dtype)
    grads = draw(params, 3, dtype)
    for squared in (False, True):
        got = gp.scores.taylor(params, grads, squared=squared)
        assert_close(got, reference.taylor(params, grads, squared), dtype)


@given(finite_trees)
def test_taylor_does_not_see_signs_and_its_square_ranks_alike(params: Any) -> None:
    grads = map_tensors(lambda leaf: leaf.flip(tuple(range(leaf.dim()))).contiguous(), params)
    scores = gp.scores.taylor(params, grads)
    negated = gp.scores.taylor(map_tensors(torch.neg, params), grads)
    assert reference.lists(scores) == reference.lists(negated)
    squared = gp.scores.taylor(params, grads, squared=True)
    assert reference.lists(squared) == reference.lists(map_tensors(torch.square, scores))
