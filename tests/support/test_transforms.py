"""Contracts of transforms: each is broken by a faulty function, and the message says how."""

from typing import Any

import torch

import gprune as gp
from tests.support.faulty import breaks
from tests.support.transforms import assert_compiles, assert_meta, assert_vmaps


def other_when_compiled(x: Any) -> Any:
    more = 1e-3 if torch.compiler.is_compiling() else 0.0
    return {"mask": x > 1 + more, "score": x + more}


def dtype_when_compiled(x: torch.Tensor) -> torch.Tensor:
    return x.double() if torch.compiler.is_compiling() else x * 1


def structure_when_compiled(x: torch.Tensor) -> Any:
    return [x * 1] if torch.compiler.is_compiling() else (x * 1,)


def other_when_batched(x: Any) -> Any:
    batched = torch._C._functorch.is_batchedtensor(x["w"])
    return {"mask": x["w"] > (1 if batched else 0), "none": None}


def with_a_break(x: torch.Tensor) -> torch.Tensor:
    torch._dynamo.graph_break()
    return x + 1


def test_compilation() -> None:
    number = [torch.tensor(1.0001)]
    message = breaks(assert_compiles, other_when_compiled, number)
    assert "result['mask'] is False, must be True" in message
    assert "result['score'] is" in message
    # masks to the bit, whatever the tolerance of scores
    message = breaks(assert_compiles, other_when_compiled, number, atol=0.1)
    assert "result['mask'] is False" in message
    assert "result['score']" not in message
    assert_compiles(other_when_compiled, [torch.tensor(3.0)], atol=0.1)
    message = breaks(assert_compiles, dtype_when_compiled, number)
    assert "has dtype torch.float64, must be torch.float32" in message
    assert "has the structure" in breaks(assert_compiles, structure_when_compiled, number)


def test_compilation_in_one_graph_and_one_time() -> None:
    assert "does not compile to one graph" in breaks(assert_compiles, with_a_break, [torch.ones(2)])
    many = [torch.ones(n) for n in (3, 4, 5)]
    message = breaks(assert_compiles, lambda x: x * x.shape[0], many)  # a shape becomes dynamic
    assert "it compiles 2 times for 3 inputs" in message
    assert_compiles(lambda x: x * x.shape[0], many, max_graphs=2)
    numbers = [1.0, 2.0, 3.0]
    assert "it compiles 2 times" in breaks(assert_compiles, lambda x: torch.ones(2) * x, numbers)


def test_batching() -> None:
    batch = {"w": torch.tensor([[1.0], [2.0], [0.5]]), "none": None}
    message = breaks(assert_vmaps, other_when_batched, batch)
    assert "in element 0 of the batch, result['mask'] is [False], must be [True]" in message
    assert "in element 2 of the batch" in message
    assert "element 1" not in message
    assert "vmap of it fails" in breaks(assert_vmaps, lambda x: x["w"].item(), batch)
    assert_vmaps(lambda x: gp.global_unstructured(x, amount=1), batch)


def test_without_data() -> None:
    x = [torch.ones(2)]
    assert "it fails without data" in breaks(assert_meta, lambda x: x[0] * x[0][0].item(), x)
    message = breaks(assert_meta, lambda x: [x[0].double() if x[0].is_meta else x[0]], x)
    assert "result[0] has dtype torch.float64, must be torch.float32" in message
    message = breaks(assert_meta, lambda x: [torch.ones(3 if x[0].is_meta else 2)], x)
    assert "result[0] has shape (3,), must be (2,)" in message
    assert "result[0] is on cpu, must be on meta" in message
    assert "structure" in breaks(assert_meta, lambda x: [None] if x[0].is_meta else x + x, x)
