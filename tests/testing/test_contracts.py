"""The contract of masks: faulty functions break it, and the message says how."""

from typing import Any

import pytest
import torch

from gprune import testing
from gprune.testing import assert_mask_contract
from tests.support.faulty import (
    F,
    T,
    breaks,
    exactly,
    prior,
    scores_with_nan,
    tree,
    weights,
    without_amount,
)

FAULTY_MASKS: dict[str, tuple[Any, list[str]]] = {
    "structure": ([torch.tensor([T, F, F])], ["the masks have the structure", "params has"]),
    "`None` leaf": (
        {"a": torch.tensor([F, F, T]), "b": [torch.tensor([[T, T]]), torch.ones(2).bool()]},
        ["masks['b'][1] is Tensor, must be None"],
    ),
    "missing": (
        {"a": None, "b": [torch.tensor([[T, T]]), None]},
        ["masks['a'] is NoneType, must be a tensor"],
    ),
    "dtype of two leaves": (
        {"a": torch.tensor([0.0, 0, 1]), "b": [torch.tensor([[1, 1]]), None]},
        [
            "masks['a'] has dtype torch.float32, must be torch.bool",
            "masks['b'][0] has dtype torch.int64, must be torch.bool",
        ],
    ),
    "shape": (
        {"a": torch.tensor([F, F, T]), "b": [torch.tensor([T, T]), None]},
        ["masks['b'][0] has shape (2,), must be (1, 2)"],
    ),
    "device": (
        {"a": torch.tensor([F, F, T]).to("meta"), "b": [torch.tensor([[T, T]]), None]},
        ["masks['a'] has device meta, must be cpu"],
    ),
    "one too few": (
        tree([T, F, T], [T, T]),
        ["1 of 5 candidates are pruned, must be 2", "masks['a'] is [True, False, True], must be"],
    ),
    "one too many": (tree([F, F, F], [T, T]), ["3 of 5 candidates are pruned, must be 2"]),
    "the last of the equal ones": (
        tree([T, F, T], [F, T]),
        [
            "masks['a'] is [True, False, True], must be [False, False, True]",
            "masks['b'][0] is [[False, True]], must be [[True, True]]",
        ],
    ),
    "the largest": (tree([T, F, T], [T, F]), ["masks['b'][0] is [[True, False]]"]),
}


@pytest.mark.parametrize("name", FAULTY_MASKS)
def test_mask_contract(name: str) -> None:
    masks, words = FAULTY_MASKS[name]
    message = breaks(assert_mask_contract, exactly(masks), weights(), amount=2)
    assert message.startswith("prune breaks assert_mask_contract:\n  ")
    assert [word for word in words if word not in message] == []
    assert "assert_mask_contract(prune, params, amount=amount)" in message


def test_mask_contract_takes_what_is_right() -> None:
    assert_mask_contract(exactly(tree([F, F, T], [T, T])), weights(), amount=2)
    assert_mask_contract(exactly(tree([F, F, T], [T, T])), weights(), amount=0.4)
    assert_mask_contract(exactly(tree([F, F, T], [T, T])), weights(), None, prior(), amount=1)


def test_mask_contract_without_an_amount_takes_any_count_in_order() -> None:
    for a in ([T, T, T], [T, F, T], [F, F, T], [F, F, F]):
        assert_mask_contract(without_amount(tree(a, [T, T])), weights())
    wrong = without_amount(tree([T, F, F], [T, T]))
    assert "must be [False, False, True]" in breaks(assert_mask_contract, wrong, weights())


def test_mask_contract_sees_what_comes_back() -> None:
    message = breaks(
        assert_mask_contract, exactly(tree([F, T, T], [T, T])), weights(), None, prior(), amount=1
    )
    assert "masks['a'] keeps what the prior mask had pruned, at [[1]]" in message


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


def test_mask_contract_of_each_leaf() -> None:
    prune = exactly(tree([T, F, T], [F, T]))
    assert_mask_contract(prune, weights(), separately=True, amount=1)
    assert_mask_contract(prune, weights(), separately=True, amount=0.4)  # 1 of 3, and 1 of 2
    message = breaks(assert_mask_contract, prune, weights(), separately=True, amount=0)
    assert "1 of 3 candidates are pruned, must be 0" in message
    assert "1 of 2 candidates are pruned, must be 0" in message
    breaks(assert_mask_contract, prune, weights(), amount=2)


def test_mask_contract_of_a_sparsity() -> None:
    def prune(params: Any, scores: Any, masks: Any, sparsity: Any) -> Any:
        return tree([F, F, T], [T, T])

    assert_mask_contract(prune, weights(), None, prior(), sparsity=0.4)
    assert "must be 2" in breaks(
        assert_mask_contract, prune, weights(), None, prior(), sparsity=0.6
    )


@pytest.mark.parametrize("name", [name for name in testing.__all__ if name[0] == "a"])
def test_contracts_are_documented(name: str) -> None:
    doc = getattr(testing, name).__doc__
    sections = ["Args:", "Example:", *(["Raises:"] if name.startswith("assert") else [])]
    assert [section for section in sections if section not in doc] == []
