"""Purity: whatever a function changes or shares is noticed and named."""

import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch

from gprune.testing import assert_pure
from tests.support.faulty import breaks, leaf


def set_grad(x: Any) -> None:
    leaf(x).grad = torch.zeros(2)


def write_grad(x: Any) -> None:
    leaf(x).grad.zero_()


def on_data(x: Any) -> None:
    leaf(x).data.mul_(2)


def reshape(x: Any) -> None:
    leaf(x).data = torch.tensor([[1.0, 2.0]])


def swap(x: Any) -> None:
    leaf(x).data = torch.tensor([1.0, 2.0])


def pop(x: Any) -> None:
    del x["none"]


def replace(x: Any) -> None:
    x["w"] = leaf(x).clone()


def twice(x: Any) -> Any:
    fresh = torch.ones(2)
    return [fresh, fresh[1:]]


def set_threads(x: Any) -> None:
    torch.set_num_threads(torch.get_num_threads() + 1)


DOUBLED = "from [1.0, 2.0] to [2.0, 4.0]"
IMPURE: dict[str, tuple[Callable[[Any], Any], str]] = {
    "values": (lambda x: leaf(x).detach().mul_(2) * 0, f"entries changed {DOUBLED}"),
    "values behind the version": (on_data, f"args[0]['w'] entries changed {DOUBLED}"),
    "version": (lambda x: leaf(x).detach().add_(0) * 0, "args[0]['w'] version changed from"),
    "requires_grad": (lambda x: leaf(x).requires_grad_(False) * 0, "requires_grad changed from"),
    "grad": (set_grad, "args[0]['w'] grad changed from"),
    "grad's values": (write_grad, "args[0]['w'] grad changed from"),
    "shape": (reshape, "args[0]['w'] shape changed from (2,) to (1, 2)"),
    "memory": (swap, "args[0]['w'] memory changed from"),
    "structure": (pop, "the structure of args changed from"),
    "leaf": (replace, "args[0]['w'] identity changed from"),
    "torch's random state": (lambda x: torch.rand(1), "the random state of torch changed"),
    "Python's random state": (lambda x: random.random(), "the random state of Python changed"),
    "numpy's random state": (lambda x: np.random.rand(), "the random state of numpy"),  # noqa: NPY002 it is the fault
    "default dtype": (lambda x: torch.set_default_dtype(torch.float64), "the default dtype"),
    "default device": (lambda x: torch.set_default_device("meta"), "the default device changed"),
    "threads": (set_threads, "the number of threads changed"),
    "grad mode": (lambda x: torch.set_grad_enabled(False) and None, "grad mode changed"),
    "deterministic mode": (
        lambda x: torch.use_deterministic_algorithms(True),
        "deterministic mode changed",
    ),
    "returns an input": (leaf, "result shares memory with args[0]['w']"),
    "returns a view": (lambda x: {"v": leaf(x).detach()[1:]}, "result['v'] shares memory with arg"),
    "shares among results": (twice, "result[1] shares memory with result[0]"),
}


@pytest.fixture
def _global_state() -> Iterator[None]:
    threads, dtype, grad = torch.get_num_threads(), torch.get_default_dtype(), True
    yield
    torch.set_default_device(None)
    torch.set_num_threads(threads)
    torch.set_default_dtype(dtype)
    torch.set_grad_enabled(grad)
    torch.use_deterministic_algorithms(False)


@pytest.mark.usefixtures("_global_state")
@pytest.mark.parametrize("name", IMPURE)
def test_purity(name: str) -> None:
    function, words = IMPURE[name]
    w = torch.tensor([1.0, 2.0]).requires_grad_()
    w.grad = torch.ones(2)
    message = breaks(assert_pure, function, {"w": w, "none": None})
    assert words in message
    # as it was before the call
    was = "torch.tensor([1.0, 2.0], dtype=torch.float32).requires_grad_()"
    assert f"args = ({{'w': {was}, 'none': None}},)" in message


def test_purity_of_what_passes_its_inputs_through() -> None:
    x = {"w": torch.ones(2)}
    assert assert_pure(leaf, x, may_return_inputs=True) is x["w"]
    message = breaks(assert_pure, lambda x: leaf(x)[:1], x, may_return_inputs=True)
    assert "assert_pure(function, *args, may_return_inputs=True)" in message


def test_purity_gives_the_result() -> None:
    assert assert_pure(torch.add, torch.ones(1), torch.ones(1)).tolist() == [2]


def test_nan_is_no_change_and_the_sign_of_zero_is() -> None:
    nan, zero = torch.tensor([float("nan")]), torch.tensor([0.0])
    assert_pure(torch.neg, nan)
    message = breaks(assert_pure, lambda x: x.data.neg_() * 1, zero)
    assert "args[0] entries changed from [0.0] to [-0.0]" in message


def test_long_values_are_not_printed() -> None:
    message = breaks(assert_pure, lambda x: x.neg_() * 1, torch.ones(2_000))
    assert "\n  args[0] entries changed\n" in message
    assert "torch.empty((2000,), dtype=torch.float32)" in message
