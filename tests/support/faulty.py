"""Trees of weights, and faulty functions that break the contracts."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from tests.support.cases import map_tensors

nan, inf = float("nan"), float("inf")


def weights() -> dict[str, Any]:
    return {"a": torch.tensor([2.0, 1.0, 2.0]), "b": [torch.tensor([[2.0, 5.0]]), None]}


def scores_with_nan() -> dict[str, Any]:
    return {"a": torch.tensor([2.0, nan, -inf]), "b": [torch.tensor([[-0.0, 0.0]]), None]}


def prior() -> dict[str, Any]:
    return {"a": torch.tensor([True, False, True]), "b": [torch.tensor([[True, True]]), None]}


def breaks(contract: Callable[..., Any], *args: Any, **kwargs: Any) -> str:
    with pytest.raises(AssertionError) as caught:
        contract(*args, **kwargs)
    return str(caught.value)


def exactly(masks: Any) -> Callable[..., Any]:
    def prune(params: Any, scores: Any, masks: Any, amount: Any) -> Any:
        return answer

    answer = masks
    return prune


def without_amount(answer: Any) -> Callable[..., Any]:
    return lambda params, scores, masks: answer


T, F = True, False


def tree(a: list[bool], b: list[bool]) -> Any:
    return {"a": torch.tensor(a), "b": [torch.tensor([b]), None]}


def leaf(x: Any) -> torch.Tensor:
    return x["w"]


def rounded(params: Any, scores: Any, masks: Any, amount: Any) -> Any:
    """Keeps what the amount's parity says."""
    return map_tensors(lambda x: (x > 1) == (amount % 2 == 0), params)


def by_place(params: Any, scores: Any, masks: Any, amount: Any) -> Any:
    return map_tensors(lambda x: torch.arange(x.numel()).reshape(x.shape) >= amount, params)


def ladder() -> dict[str, Any]:
    return {"a": torch.tensor([3.0, -1.0, 2.0]), "b": [torch.tensor([[-4.0, 5.0]]), None]}


def below_two(params: Any, scores: Any, masks: Any, amount: Any) -> Any:
    return map_tensors(lambda x: x.abs() >= 2, params if scores is None else scores)
