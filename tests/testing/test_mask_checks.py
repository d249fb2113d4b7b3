"""The order of candidates in `assert_mask_contract`: NaN, zeros, leaves and sparsities."""

from typing import Any

from gprune.testing import assert_mask_contract
from tests.support.faulty import F, T, breaks, exactly, prior, scores_with_nan, tree, weights


def test_mask_contract_ranks_nan_last_and_minus_zero_with_zero() -> None:
    order = [("a", 2), ("b", 0), ("b", 1), ("a", 0), ("a", 1)]
    for k in range(6):
        gone = order[:k]
        a = [("a", i) not in gone for i in range(3)]
        b = [("b", i) not in gone for i in range(2)]
        prune = exactly(tree(a, b))
        assert_mask_contract(prune, weights(), scores_with_nan(), amount=k)
        if 0 < k < 5:  # by magnitude it is another order
            breaks(assert_mask_contract, prune, weights(), amount=k)
            ranked_by = scores_with_nan()
            assert_mask_contract(prune, weights(), amount=k, ranked_by=ranked_by)


def test_mask_contract_of_each_leaf() -> None:
    prune = exactly(tree([T, F, T], [F, T]))
    assert_mask_contract(prune, weights(), separately=True, amount=1)
    assert_mask_contract(prune, weights(), separately=True, amount={"a": 1, "b": [1, None]})
    for wrong in ({"a": 1, "b": [0, None]}, {"a": 0.7, "b": [0.5, None]}):
        breaks(assert_mask_contract, prune, weights(), separately=True, amount=wrong)
    breaks(assert_mask_contract, prune, weights(), amount=2)


def test_mask_contract_of_a_sparsity() -> None:
    def prune(params: Any, scores: Any, masks: Any, sparsity: Any) -> Any:
        return tree([F, F, T], [T, T])

    assert_mask_contract(prune, weights(), None, prior(), sparsity=0.4)
    assert "must be 2" in breaks(
        assert_mask_contract, prune, weights(), None, prior(), sparsity=0.6
    )
