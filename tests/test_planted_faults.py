"""The contracts of gprune.testing catch what they are for: a planted fault for every clause."""

import functools
import random
import re
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import gprune as gp
from gprune import testing
from gprune.testing import (
    amounts,
    assert_compiles,
    assert_equivariant,
    assert_mask_contract,
    assert_meta,
    assert_nested,
    assert_pure,
    assert_scale_invariant,
    assert_vmaps,
    param_trees,
    prior_masks,
    scores_for,
)
from gprune.testing.reports import source
from tests.support.assertions import assert_same
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


# --- masks ------------------------------------------------------------------------------------

T, F = True, False


def tree(a: list[bool], b: list[bool]) -> Any:
    return {"a": torch.tensor(a), "b": [torch.tensor([b]), None]}


FAULTY_MASKS: dict[str, tuple[Any, list[str]]] = {
    "structure": ([torch.tensor([T, F, F])], ["the masks have the structure", "params has"]),
    "hole": (
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


# --- purity -----------------------------------------------------------------------------------


def leaf(x: Any) -> torch.Tensor:
    return x["w"]


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
    del x["hole"]


def replace(x: Any) -> None:
    x["w"] = leaf(x).clone()


def twice(x: Any) -> Any:
    fresh = torch.ones(2)
    return [fresh, fresh[1:]]


def set_threads(x: Any) -> None:
    torch.set_num_threads(torch.get_num_threads() + 1)


IMPURE: dict[str, tuple[Callable[[Any], Any], str]] = {
    "values": (lambda x: leaf(x).detach().mul_(2) * 0, "x['w'] held [1.0, 2.0], holds [2.0, 4.0]"),
    "values behind the version": (on_data, "x['w'] held [1.0, 2.0], holds [2.0, 4.0]"),
    "version": (lambda x: leaf(x).detach().add_(0) * 0, "x['w'] version was"),
    "requires_grad": (lambda x: leaf(x).requires_grad_(False) * 0, "requires_grad was True"),
    "grad": (set_grad, "x['w'] grad was"),
    "grad's values": (write_grad, "x['w'] grad was"),
    "shape": (reshape, "x['w'] shape was (2,), is (1, 2)"),
    "memory": (swap, "x['w'] memory was"),
    "structure": (pop, "x has another structure"),
    "leaf": (replace, "x['w'] is another object"),
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
    "returns an input": (leaf, "result shares memory with x['w']"),
    "returns a view": (lambda x: {"v": leaf(x).detach()[1:]}, "result['v'] shares memory with x"),
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
    message = breaks(assert_pure, function, {"w": w, "hole": None})
    assert words in message
    # as it was before the call
    was = "torch.tensor([1.0, 2.0], dtype=torch.float32).requires_grad_()"
    assert f"args = ({{'w': {was}, 'hole': None}},)" in message


def test_purity_of_what_passes_its_inputs_through() -> None:
    x = {"w": torch.ones(2)}
    assert assert_pure(leaf, x, may_return_inputs=True) is x["w"]
    message = breaks(assert_pure, lambda x: leaf(x)[:1], x, may_return_inputs=True)
    assert "assert_pure(function, *args, may_return_inputs=True)" in message


def test_purity_gives_the_result_and_names_unnamed_arguments() -> None:
    assert assert_pure(torch.add, torch.ones(1), torch.ones(1)).tolist() == [2]
    message = breaks(assert_pure, lambda *trees: trees[1][0].neg_() * 1, 3, [torch.ones(1)])
    assert "args[1][0] held [1.0], holds [-1.0]" in message


# --- nesting, permutations, scales ------------------------------------------------------------


def rounded(params: Any, scores: Any, masks: Any, amount: Any) -> Any:
    """Keeps what the amount's parity says."""
    return map_tensors(lambda x: (x > 1) == (amount % 2 == 0), params)


def test_nesting() -> None:
    message = breaks(assert_nested, rounded, weights(), amounts=[1, 2])
    for place in ("masks['a'][0]", "masks['a'][2]", "masks['b'][0][0, 0]", "masks['b'][0][0, 1]"):
        assert f"{place} is pruned at amount 1 and kept at 2" in message
    assert "masks['a'][1]" not in message
    assert_nested(rounded, weights(), amounts=[2, 2])


def by_place(params: Any, scores: Any, masks: Any, amount: Any) -> Any:
    return map_tensors(lambda x: torch.arange(x.numel()).reshape(x.shape) >= amount, params)


def ladder() -> dict[str, Any]:
    return {"a": torch.tensor([3.0, -1.0, 2.0]), "b": [torch.tensor([[-4.0, 5.0]]), None]}


def test_equivariance() -> None:
    message = breaks(assert_equivariant, by_place, ladder(), amount=1)
    for name in ("masks['a']", "masks['b'][0]"):
        assert f"{name} of the leaves reversed is" in message
        assert f"{name} of the leaves rotated is" in message
    assert_equivariant(gp.global_unstructured, ladder(), amount=2)


@pytest.mark.parametrize("scores", [[1.0, 2.0, 1.0], [nan, 1.0, nan], [0.0, -0.0, 1.0]])
def test_equivariance_needs_distinct_scores(scores: list[float]) -> None:
    params = [torch.ones(3)]
    with pytest.raises(ValueError, match="distinct scores"):
        assert_equivariant(gp.global_unstructured, params, [torch.tensor(scores)], amount=1)
    with pytest.raises(ValueError, match="distinct scores"):
        assert_equivariant(gp.global_unstructured, params, amount=1)


def below_two(params: Any, scores: Any, masks: Any) -> Any:
    return map_tensors(lambda x: x.abs() >= 2, params if scores is None else scores)


def test_scale_invariance() -> None:
    message = breaks(assert_scale_invariant, below_two, weights())
    assert "masks['a'] of the scores times 2.0 is [True, True, True], must be" in message
    assert "masks['b'][0]" not in message  # it keeps all of that leaf at either scale
    message = breaks(assert_scale_invariant, below_two, weights(), weights(), factor=0.5)
    assert "masks['a'] of the scores times 0.5" in message
    assert "masks['b'][0] of the scores times 0.5" in message
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


# --- transforms -------------------------------------------------------------------------------


def other_when_compiled(x: Any) -> Any:
    more = 1e-3 if torch.compiler.is_compiling() else 0.0
    return {"mask": x > 1 + more, "score": x + more}


def dtype_when_compiled(x: torch.Tensor) -> torch.Tensor:
    return x.double() if torch.compiler.is_compiling() else x * 1


def structure_when_compiled(x: torch.Tensor) -> Any:
    return [x * 1] if torch.compiler.is_compiling() else (x * 1,)


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
    assert "it compiles 2 times for 3 inputs, must be 1 at most" in message
    assert_compiles(lambda x: x * x.shape[0], many, max_graphs=2)
    numbers = [1.0, 2.0, 3.0]
    assert "it compiles 2 times" in breaks(assert_compiles, lambda x: torch.ones(2) * x, numbers)


def other_when_batched(x: Any) -> Any:
    batched = torch._C._functorch.is_batchedtensor(x["w"])
    return {"mask": x["w"] > (1 if batched else 0), "hole": None}


def test_batching() -> None:
    batch = {"w": torch.tensor([[1.0], [2.0], [0.5]]), "hole": None}
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


# --- the repro --------------------------------------------------------------------------------


@given(param_trees(), st.data())
def test_the_source_of_inputs_rebuilds_them(params: Any, data: st.DataObject) -> None:
    drawn = (params, data.draw(scores_for(params)), data.draw(prior_masks(params)))
    drawn += (data.draw(amounts(3)), [nan, -inf, 3, "x"])
    imports = {"import torch"}
    expression = source(drawn, imports)
    scope: dict[str, Any] = {}
    exec("\n".join([*imports, f"rebuilt = {expression}"]), scope)
    assert_same(scope["rebuilt"][:4], drawn[:4])
    assert repr(scope["rebuilt"][4]) == repr(drawn[4])
    for got, was in zip(*(gp.trees.flatten(x)[0] for x in (scope["rebuilt"], drawn)), strict=True):
        if isinstance(was, torch.Tensor) and was.numel() > 1:
            same = [i for i in range(was.dim()) if was.shape[i] > 1]
            assert was.is_contiguous() == got.is_contiguous()
            assert [got.stride(i) == 0 for i in same] == [was.stride(i) == 0 for i in same]


def test_the_source_of_what_is_too_large_or_empty() -> None:
    assert source(torch.ones(2_000), set()).startswith("torch.zeros((2000,), dtype=torch.float32)")
    assert "too large" in source(torch.ones(2_000), set())
    assert source(torch.ones(0, 3), set()) == "torch.empty((0, 3), dtype=torch.float32)"
    assert source(torch.ones(2, device="meta"), set()).endswith("device='meta')")


def run_repro(message: str, **scope: Any) -> dict[str, Any]:
    """Run what stands under "to reproduce", which must raise the same message."""
    lines = message.split("to reproduce:\n")[1].splitlines()
    with pytest.raises(AssertionError) as again:
        exec("\n".join(line.removeprefix("  ") for line in lines), scope)
    assert str(again.value) == message
    return scope


def test_the_repro_can_be_pasted() -> None:
    faulty = exactly(tree([F, F, T], [T, T]))
    run_repro(
        breaks(assert_mask_contract, faulty, weights(), scores_with_nan(), prior(), amount=3),
        prune=faulty,
    )
    run_repro(breaks(assert_nested, rounded, weights(), amounts=[1, 2]), rounded=rounded)
    run_repro(breaks(assert_equivariant, by_place, ladder(), amount=1), by_place=by_place)
    run_repro(breaks(assert_scale_invariant, below_two, weights()), below_two=below_two)
    run_repro(breaks(assert_pure, leaf, weights() | {"w": torch.ones(1)}), leaf=leaf)
    run_repro(
        breaks(assert_vmaps, other_when_batched, {"w": torch.ones(1, 1), "hole": None}),
        other_when_batched=other_when_batched,
    )


@pytest.mark.parametrize("name", [name for name in testing.__all__ if name[0] == "a"])
def test_contracts_are_documented(name: str) -> None:
    doc = getattr(testing, name).__doc__
    sections = ["Args:", "Example:", *(["Raises:"] if name.startswith("assert") else [])]
    assert [section for section in sections if section not in doc] == []


def test_functions_without_a_name() -> None:
    partial = functools.partial(exactly(tree([F, F, F], [T, T])))
    message = breaks(assert_mask_contract, partial, weights(), amount=2)
    assert re.search(r"^  assert_mask_contract\(function, params", message, re.M)
