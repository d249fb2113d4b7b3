"""Order: ascending by score, and among equal scores by the flat index."""

from typing import Any

import torch
from hypothesis import given
from hypothesis import strategies as st

import gprune as gp
from gprune.testing import param_trees
from tests.support import reference
from tests.support.cases import map_tensors
from tests.support.limits import Limits, limits, patched


@given(param_trees(), st.data(), st.none() | limits())
def test_order_of_equal_scores_is_the_flat_index(
    params: Any, data: st.DataObject, small: Limits | None
) -> None:
    k = data.draw(st.integers(0, reference.num_entries(params)))
    with patched(small or Limits()):
        masks = gp.global_unstructured(params, map_tensors(torch.zeros_like, params), amount=k)
    flat = [keep for mask in reference.lists(masks) if mask is not None for keep in mask]
    assert flat == [False] * k + [True] * (len(flat) - k)
