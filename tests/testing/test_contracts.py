"""Contracts of masks: each is broken by a faulty function, and the message says how."""

import re
from typing import Any

import pytest
import torch

import gprune as gp
from gprune import testing
from gprune.testing import (
    assert_equivariant,
    assert_mask_contract,
    assert_nested,
    assert_scale_invariant,
)
from tests.support.faulty import (
    F,
    T,
    below_two,
    breaks,
    by_place,
    exactly,
    inf,
    ladder,
    nan,
    prior,
    rounded,
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
    assert "must be 3" in breaks(assert_mask_contract, wrong, weights(), k=3)


def test_mask_contract_sees_what_comes_back() -> None:
    message = breaks(
        assert_mask_contract, exactly(tree([F, T, T], [T, T])), weights(), None, prior(), amount=1
    )
    assert "masks['a'][1] is kept, the prior mask had pruned it" in message


def test_nesting() -> None:
    message = breaks(assert_nested, rounded, weights(), amounts=[1, 2])
    for place in ("masks['a'][0]", "masks['a'][2]", "masks['b'][0][0, 0]", "masks['b'][0][0, 1]"):
        assert f"{place} is pruned at amount 1 and kept at 2" in message
    assert "masks['a'][1]" not in message
    assert_nested(rounded, weights(), amounts=[2, 2])


def test_equivariance() -> None:
    message = breaks(assert_equivariant, by_place, ladder(), amount=1)
    for name in ("masks['a']", "masks['b'][0]"):
        for word in ("reversed", "rotated"):
            assert re.search(rf"{re.escape(name)} is .* if the leaves are {word}, must be", message)
    assert_equivariant(gp.global_unstructured, ladder(), amount=2)


@pytest.mark.parametrize("scores", [[1.0, 2.0, 1.0], [nan, 1.0, nan], [0.0, -0.0, 1.0]])
def test_equivariance_needs_distinct_scores(scores: list[float]) -> None:
    params = [torch.ones(3)]
    with pytest.raises(ValueError, match="distinct scores"):
        assert_equivariant(gp.global_unstructured, params, [torch.tensor(scores)], amount=1)
    with pytest.raises(ValueError, match="distinct scores"):
        assert_equivariant(gp.global_unstructured, params, amount=1)


def test_scale_invariance() -> None:
    message = breaks(assert_scale_invariant, below_two, weights())
    got = "masks['a'] is [True, True, True]"
    assert f"{got} if the scores are multiplied by 2.0, must be" in message
    assert "masks['b'][0]" not in message  # it keeps all of that leaf at either scale
    message = breaks(assert_scale_invariant, below_two, weights(), weights(), factor=0.5)
    for name in ("masks['a']", "masks['b'][0]"):
        assert re.search(rf"{re.escape(name)} is .* if the scores are multiplied by 0.5", message)
    assert "scores=scores, factor=factor)" in message


@pytest.mark.parametrize(
    ("leaf", "factor"),
    [
        (torch.tensor([65504.0], dtype=torch.float16), 2.0),
        (torch.tensor([2.0**-149]), 0.5),
        (torch.tensor([1.0]), -2.0),
    ],
)
def test_scale_invariance_needs_exact_multiples(leaf: torch.Tensor, factor: float) -> None:
    with pytest.raises(ValueError, match=r"factor must be|not exact"):
        assert_scale_invariant(below_two, [leaf], factor=factor)


def test_scale_invariance_of_integers_and_nan() -> None:
    params = [torch.tensor([-128, 127], dtype=torch.int8), torch.tensor([nan, inf])]
    assert_scale_invariant(gp.global_unstructured, params, amount=1)


@pytest.mark.parametrize("name", [name for name in testing.__all__ if name[0] == "a"])
def test_contracts_are_documented(name: str) -> None:
    doc = getattr(testing, name).__doc__
    sections = ["Args:", "Example:", *(["Raises:"] if name.startswith("assert") else [])]
    assert [section for section in sections if section not in doc] == []
