"""Static sparse training: random masks of the exact count, which stay."""

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

import gprune as gp
from tests.support import reference
from tests.support.assertions import assert_same
from tests.support.pruning import assert_masked, like, models


@given(models(), st.data(), st.floats(0, 1), st.integers(0, 2**40))
def test_static_sparse(params: Any, data: st.DataObject, sparsity: float, seed: int) -> None:
    pruner = gp.pruners.static_sparse(sparsity, seed=seed)
    state = pruner.init(params)
    total = reference.num_entries(gp.prunable(params))
    assert int(gp.num_pruned(state.masks)) == round(sparsity * total)
    for step in range(3):
        params, after = pruner.update(like(data.draw, params), state)
        assert_same(after.masks, state.masks)
        assert_masked(params, after.masks)
        assert after.step == step + 1
        state = after
