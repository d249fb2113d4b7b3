"""Bad input never yields a mask: a TypeError or ValueError with the fact, and the leaf's path."""

import functools
import math
from typing import Any

import pytest
import torch

import gprune as gp

PARAMS = {"fc": {"weight": torch.arange(6.0).reshape(2, 3), "bias": None}, "out": torch.ones(4)}
ENTRIES = 10

LIFTED = {"global_unstructured": gp.global_unstructured, "find_cut": gp.find_cut}
lifted = pytest.mark.parametrize("prune", LIFTED.values(), ids=LIFTED)
WITH_TREES = {**LIFTED, "layerwise": gp.layerwise}
with_trees = pytest.mark.parametrize("prune", WITH_TREES.values(), ids=WITH_TREES)


def calls(*, layerwise: bool = True, **budget: Any) -> list[Any]:
    """Every function that takes an amount or a sparsity, called with ten candidates."""
    scores = torch.arange(10.0)
    alone = [lambda: gp.layerwise([scores], **budget)] if layerwise else []
    return [
        *alone,
        lambda: gp.global_unstructured(PARAMS, **budget),
        lambda: gp.find_cut(PARAMS, **budget),
        lambda: gp.lowest_unstructured(scores, **budget),
        lambda: gp.l1_unstructured(scores, **budget),
        lambda: gp.random_unstructured(scores, seed=0, **budget),
    ]


AMOUNTS = [
    ("3", TypeError),
    (True, TypeError),
    (torch.tensor(True), TypeError),
    (3 + 0j, TypeError),
    (torch.tensor(3 + 0j), TypeError),
    ({1, 2}, TypeError),
    (math.nan, ValueError),
    (torch.tensor(math.nan), ValueError),
    (math.inf, ValueError),
    (-math.inf, ValueError),
    (-1, ValueError),
    (-0.25, ValueError),
    (torch.tensor(-1), ValueError),
    (torch.tensor(-0.25), ValueError),
    (math.nextafter(1.0, 2.0), ValueError),
    (80.0, ValueError),
    (torch.tensor(1.5, dtype=torch.bfloat16), ValueError),
    (ENTRIES + 1, ValueError),
    (torch.tensor(ENTRIES + 1), ValueError),
    (2**70, ValueError),
    (torch.tensor([0.5]), (TypeError, ValueError)),
    (torch.tensor([]), (TypeError, ValueError)),
]


@pytest.mark.parametrize(("amount", "error"), AMOUNTS, ids=lambda value: repr(value)[:40])
def test_amounts(amount: Any, error: Any) -> None:
    for call in calls(amount=amount):
        with pytest.raises(error, match="amount"):
            call()
    with pytest.raises(error, match="amount"):
        gp.num_to_prune(amount, ENTRIES)


SPARSITIES = [*AMOUNTS, (2, ValueError), (torch.tensor(2), ValueError)]


@pytest.mark.parametrize(
    ("sparsity", "error"),
    SPARSITIES,
    ids=lambda value: repr(value)[:40],
)
def test_sparsities(sparsity: Any, error: Any) -> None:
    for call in calls(sparsity=sparsity):
        with pytest.raises(error, match="sparsity"):
            call()


@pytest.mark.parametrize("amount", [[3], [1, 2], [], (3,), {"fc": 3}], ids=repr)
def test_only_layerwise_takes_a_tree_of_amounts(amount: Any) -> None:
    for name in ("amount", "sparsity"):
        for call in calls(**{name: amount}, layerwise=False):
            with pytest.raises(TypeError, match=name):
                call()


@pytest.mark.parametrize(
    "budget", [{}, {"amount": None}, {"amount": 1, "sparsity": 0.5}, {"amount": 0, "sparsity": 0}]
)
def test_exactly_one_of_amount_and_sparsity(budget: dict[str, Any]) -> None:
    for call in calls(**budget):
        with pytest.raises((TypeError, ValueError), match=r"amount.*sparsity"):
            call()


def test_an_int_is_compared_with_the_candidates_that_are_left() -> None:
    scores = torch.arange(4.0)
    mask = torch.tensor([False, False, True, True])
    assert gp.lowest_unstructured(scores, mask, amount=2).tolist() == [False] * 4
    with pytest.raises(ValueError, match=r"2.*3"):
        gp.lowest_unstructured(scores, mask, amount=3)
    with pytest.raises(ValueError, match=r"2.*3"):
        gp.global_unstructured([scores], masks=[mask], amount=3)


def test_layerwise_compares_with_the_candidates_of_each_leaf() -> None:
    with pytest.raises(ValueError, match="5"):
        gp.layerwise(PARAMS, amount=5)
    with pytest.raises(ValueError, match=r"amount.*weight"):
        gp.layerwise(PARAMS, amount={"fc": {"bias": None}, "out": 1})
    with pytest.raises(ValueError, match=r"amount.*weight"):
        gp.layerwise(PARAMS, amount={"fc": {"weight": None, "bias": None}, "out": 1})


def tree(weight: Any, bias: Any, out: Any) -> Any:
    return {"fc": {"weight": weight, "bias": bias}, "out": out}


WEIGHT, OUT = torch.ones(2, 3), torch.ones(4)


@with_trees
@pytest.mark.parametrize(
    ("scores", "error", "words"),
    [
        ({"fc": {"weight": WEIGHT}, "out": OUT}, ValueError, "bias"),
        (tree(WEIGHT, None, [OUT]), ValueError, "out"),
        ({**tree(WEIGHT, None, OUT), "more": OUT}, ValueError, "more"),
        ([WEIGHT, None, OUT], ValueError, "structure"),
        (tree(WEIGHT.t(), None, OUT), ValueError, r"fc.*weight.*\(3, 2\).*\(2, 3\)"),
        (tree(WEIGHT, None, torch.ones(1)), ValueError, r"out.*\(1,\).*\(4,\)"),
        (tree(WEIGHT, None, torch.tensor(1.0)), ValueError, r"out.*\(\).*\(4,\)"),
        (tree(torch.ones(6), None, torch.ones(3)), ValueError, r"(?s)fc.*weight.*out"),
        (tree(None, None, OUT), ValueError, r"fc.*weight"),
        (tree(WEIGHT.bool(), None, OUT), TypeError, r"fc.*weight.*bool"),
        (tree(WEIGHT.bool(), None, OUT.cfloat()), TypeError, r"(?s)fc.*weight.*out"),
        (tree([1.0] * 6, None, OUT), ValueError, r"fc.*weight"),
        (tree(WEIGHT, None, 1.0), TypeError, "out"),
        (tree(WEIGHT, None, "1"), TypeError, "out"),
    ],
)
def test_scores(prune: Any, scores: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        prune(PARAMS, scores, amount=1)


KEEP, KEEP_OUT = WEIGHT.bool(), OUT.bool()


@with_trees
@pytest.mark.parametrize(
    ("masks", "error", "words"),
    [
        ({"fc": {"weight": KEEP}, "out": KEEP_OUT}, ValueError, "bias"),
        (tree(KEEP, torch.ones(2).bool(), KEEP_OUT), ValueError, r"fc.*bias"),
        (tree(None, None, KEEP_OUT), ValueError, r"fc.*weight"),
        (tree(KEEP.t(), None, KEEP_OUT), ValueError, r"fc.*weight.*\(3, 2\).*\(2, 3\)"),
        (tree(KEEP, None, KEEP_OUT[:1]), ValueError, r"out.*\(1,\).*\(4,\)"),
        (tree(KEEP.float(), None, KEEP_OUT), TypeError, r"fc.*weight.*float32.*bool"),
        (tree(KEEP.byte(), None, KEEP_OUT.int()), TypeError, r"(?s)fc.*weight.*out"),
        (tree(KEEP, None, True), TypeError, "out"),
    ],
)
def test_masks(prune: Any, masks: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        prune(PARAMS, masks=masks, amount=1)
    with pytest.raises(error, match=words):
        gp.masks_at(gp.Cut(torch.tensor(0.0), torch.tensor(0)), PARAMS, masks=masks)


@with_trees
@pytest.mark.parametrize("params", [None, {}, [], {"a": None}, [None, (None, {})]])
def test_a_tree_without_a_prunable_leaf(prune: Any, params: Any) -> None:
    with pytest.raises(ValueError, match="prunable"):
        prune(params, amount=0.5)


@with_trees
@pytest.mark.parametrize(
    ("params", "words"),
    [
        ({"a": {"b": 1.0}}, r"a.*b"),
        ([torch.ones(2), "x"], "1"),
        ({"a": torch.ones(2).bool()}, r"a.*bool"),
        ({"a": torch.ones(2).cfloat()}, r"a.*complex"),
    ],
)
def test_params(prune: Any, params: Any, words: str) -> None:
    with pytest.raises(TypeError, match=words):
        prune(params, amount=1)


@with_trees
def test_only_empty_or_fully_pruned_leaves_are_fine(prune: Any) -> None:
    empty = {"a": torch.ones(0), "b": torch.ones(2, 0)}
    gone = [torch.ones(3), torch.tensor(1.0)]
    masks = [torch.zeros(3).bool(), torch.tensor(False)]
    for amount in (0, 0.0, 0.5, 1.0):
        prune(empty, amount=amount)
        prune(gone, masks=masks, amount=amount)
    for sparsity in (0, 0.5, 1):
        prune(empty, sparsity=sparsity)
        prune(gone, masks=masks, sparsity=sparsity)
    with pytest.raises(ValueError, match="amount"):
        prune(empty, amount=1)


def unmarked(scores: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return mask


def returns(answer: Any) -> Any:
    @gp.pruning_method("unstructured")
    def method(scores: torch.Tensor, mask: torch.Tensor) -> Any:
        return answer

    return method


@gp.pruning_method("structured")
def structured(scores: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return mask


@pytest.mark.parametrize(
    ("method", "kwargs", "error", "words"),
    [
        (unmarked, {}, TypeError, "unmarked.*pruning_method"),
        ("lowest", {}, TypeError, "pruning_method"),
        (None, {}, TypeError, "pruning_method"),
        (structured, {}, TypeError, "structured"),
        (functools.partial(structured), {}, TypeError, "structured"),
        (gp.lowest_unstructured, {"amount": 1, "colour": 3}, TypeError, "lowest.*colour"),
        (gp.lowest_unstructured, {"amount": 1, "seed": 3}, TypeError, "lowest.*seed"),
        (gp.random_unstructured, {"amount": 1}, TypeError, "random.*seed"),
        (gp.random_unstructured, {"amount": 1, "seed": 0.5}, TypeError, "seed"),
        (gp.random_unstructured, {"amount": 1, "seed": True}, TypeError, "seed"),
        (gp.random_unstructured, {"amount": 1, "seed": "x"}, TypeError, "seed"),
        (gp.identity, {"amount": 1}, TypeError, "identity.*amount"),
        (returns(torch.ones(10).bool()), {"amount": 1}, TypeError, "method.*amount"),
        (returns(torch.ones(9).bool()), {}, ValueError, r"\(10,\).*\(9,\)"),
        (returns(torch.ones(2, 5).bool()), {}, ValueError, r"\(10,\).*\(2, 5\)"),
        (returns(torch.ones(10)), {}, ValueError, "bool.*float32"),
        (returns([True] * 10), {}, ValueError, "bool"),
        (returns(None), {}, ValueError, "None"),
    ],
)
def test_methods(method: Any, kwargs: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        gp.global_unstructured(PARAMS, pruning_method=method, **kwargs)


def test_a_partial_keeps_its_type() -> None:
    method = functools.partial(gp.lowest_unstructured, amount=3)
    assert int(gp.num_pruned(gp.global_unstructured(PARAMS, pruning_method=method))) == 3


@pytest.mark.parametrize(
    ("scores", "mask", "error", "words"),
    [
        (torch.ones(3), torch.ones(4).bool(), ValueError, r"\(4,\).*\(3,\)"),
        (torch.ones(3), torch.ones(3), TypeError, "bool"),
        (torch.ones(3), [True] * 3, TypeError, "mask"),
        ([1.0, 2.0], None, TypeError, "scores"),
        (torch.ones(3).bool(), None, TypeError, "bool"),
    ],
)
@pytest.mark.parametrize("method", [gp.lowest_unstructured, gp.l1_unstructured])
def test_methods_of_one_tensor(
    method: Any, scores: Any, mask: Any, error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        method(scores, mask, amount=1)


@pytest.mark.parametrize(
    ("masks", "error", "words"),
    [
        ({"fc": {"weight": KEEP}, "out": KEEP_OUT}, ValueError, "bias"),
        (tree(KEEP.t(), None, KEEP_OUT), ValueError, r"fc.*weight.*\(3, 2\).*\(2, 3\)"),
        (tree(KEEP, None, KEEP_OUT[:1]), ValueError, r"out.*\(1,\).*\(4,\)"),
        (tree(KEEP, KEEP, KEEP_OUT), ValueError, r"fc.*bias"),
        (tree(KEEP.float(), None, KEEP_OUT), TypeError, r"fc.*weight.*float32.*bool"),
    ],
)
@pytest.mark.parametrize("function", [gp.apply_masks, gp.straight_through, gp.summary])
def test_application(function: Any, masks: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        function(PARAMS, masks)


@pytest.mark.parametrize("where", [3, ["a", 3], torch.ones(2)])
def test_where(where: Any) -> None:
    with pytest.raises(TypeError, match="where"):
        gp.prunable(PARAMS, where)
