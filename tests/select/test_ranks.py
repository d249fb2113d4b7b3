"""Sharded selection: how ranks fail together, and how little they tell each other."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any
from unittest import mock

import pytest
import torch
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Partial, Shard, distribute_tensor
from torch.distributed.tensor.placement_types import _StridedShard

import gprune as gp
from gprune.select.ranks import MAX_TEXT
from tests.support.assertions import fail_if
from tests.support.sharded_cases import mesh_of, place
from tests.support.workers import Workers, started

pytestmark = pytest.mark.slow

# --- what is refused, by all ranks at once --------------------------------------------------


def outcome(call: Any) -> tuple[str, str]:
    """Say what a call raises."""
    try:
        call()
    except Exception as error:
        return type(error).__name__, str(error)
    return "nothing", ""


def pair(rank: int, **changes: Any) -> dict[str, Any]:
    """Arguments for two leaves on two ranks, changed on rank 1."""
    mesh = mesh_of((2,))
    tree = {"a": torch.arange(12.0).view(6, 2), "b": torch.ones(5)}
    arguments: dict[str, Any] = {
        "params": {name: place(leaf, mesh, (Shard(0),)) for name, leaf in tree.items()},
        "amount": 3,
    }
    return arguments | ({name: make(mesh) for name, make in changes.items()} if rank else {})


def leaf(*shape: int, dtype: torch.dtype = torch.float32) -> Any:
    return lambda mesh: place(torch.ones(shape, dtype=dtype), mesh, (Shard(0),))


def tree(**leaves: Any) -> Any:
    return lambda mesh: {name: make(mesh) for name, make in leaves.items()}


def constant(value: Any) -> Any:
    return lambda mesh: value


def too_large(mesh: Any) -> Any:
    scores = {"a": torch.full((6, 2), 2**53 + 1), "b": torch.ones(5)}
    return {name: place(leaf, mesh, (Shard(0),)) for name, leaf in scores.items()}


ONE_RANK: dict[str, tuple[str, str, dict[str, Any]]] = {
    "amount of a wrong type": ("TypeError", "amount must be", {"amount": constant("many")}),
    "amount out of range": (
        "ValueError",
        "other arguments differ",
        {"amount": constant(10**6)},
    ),
    "another amount": (
        "ValueError",
        "other arguments differ",
        {"amount": constant(4)},
    ),
    "no amount": ("TypeError", "exactly one of", {"amount": constant(None)}),
    "an unknown argument": ("TypeError", "unexpected keyword", {"temperature": constant(1)}),
    "another method": (
        "ValueError",
        "the function or the paths",
        {"pruning_method": constant(gp.l1_unstructured)},
    ),
    "another shape": (
        "ValueError",
        "the shapes, dtypes",
        {"params": tree(a=leaf(6, 2), b=leaf(6))},
    ),
    "another dtype": (
        "ValueError",
        "the shapes, dtypes",
        {"params": tree(a=leaf(6, 2), b=leaf(5, dtype=torch.float64))},
    ),
    "another structure": (
        "ValueError",
        "the function or the paths",
        {"params": tree(a=leaf(6, 2), c=leaf(5))},
    ),
    "another hole": (
        "ValueError",
        "the function or the paths",
        {"params": tree(a=leaf(6, 2), b=constant(None))},
    ),
    "a missing leaf": (
        "ValueError",
        "the function or the paths",
        {"params": tree(a=leaf(6, 2))},
    ),
    "scores": (
        "ValueError",
        "other arguments differ",
        {"scores": tree(a=leaf(6, 2), b=leaf(5))},
    ),
    "a mask of a wrong dtype": (
        "TypeError",
        r"masks['a'] has dtype",
        {"masks": tree(a=leaf(6, 2), b=leaf(5))},
    ),
    "scores of a wrong structure": ("ValueError", "scores must", {"scores": tree(a=leaf(6, 2))}),
    "a module": ("TypeError", "got a module", {"params": lambda mesh: _module(mesh)}),
}


def _module(mesh: Any) -> Any:
    module = torch.nn.Linear(2, 2)
    module.weight = torch.nn.Parameter(place(module.weight.detach(), mesh, (Shard(0),)))
    return [module, module.weight]


def raise_on_one_rank(name: str) -> tuple[str, str]:
    rank = torch.distributed.get_rank()
    return outcome(lambda: gp.global_unstructured(**pair(rank, **ONE_RANK[name][2])))


@pytest.mark.parametrize("name", ONE_RANK)
def test_what_is_wrong_on_one_rank_is_raised_on_all(name: str) -> None:
    first, second = started(2).run(raise_on_one_rank, name)
    assert first == second
    kind, text, _ = ONE_RANK[name]
    assert first[0] == kind
    assert text in first[1]


def raise_in_a_shard(calls: list[Any]) -> list[tuple[str, str]]:
    """Only rank 1 has an integer that float64 cannot hold."""
    mesh = mesh_of((2,))
    whole = {"a": torch.arange(8), "b": torch.ones(5)}
    whole["a"][7] = 2**53 + 1
    scores = {name: place(leaf, mesh, (Shard(0),)) for name, leaf in whole.items()}
    params = {
        name: place(torch.ones(leaf.shape), mesh, (Shard(0),)) for name, leaf in whole.items()
    }
    return [outcome(lambda call=call: call(params, scores, amount=1)) for call in calls]


def test_a_value_that_is_wrong_on_one_rank_is_raised_on_all() -> None:
    first, second = started(2).run(
        raise_in_a_shard, [gp.global_unstructured, gp.layerwise, gp.find_threshold]
    )
    assert first == second
    assert {kind for kind, _ in first} == {"ValueError"}
    assert all(text.startswith("scores['a']: int64 scores must") for _, text in first)


def raise_in_a_score() -> list[tuple[str, str]]:
    """Only rank 1 has a gradient that is not finite, or scores what is no floating point."""
    mesh, rank = mesh_of((2,)), torch.distributed.get_rank()
    params = {"a": place(torch.ones(4), mesh, (Shard(0),)), "b": torch.ones(2)}
    grad = place(torch.tensor([1.0, 2, 3, torch.nan]), mesh, (Shard(0),))
    grads = {"a": grad, "b": torch.ones(2)}
    integers = {**grads, "b": torch.ones(2, dtype=torch.int64 if rank else torch.float32)}
    return [
        outcome(lambda: gp.scores.taylor(params, grads)),
        outcome(lambda: gp.scores.taylor(params, integers)),
    ]


def test_a_score_that_is_wrong_on_one_rank_is_raised_on_all() -> None:
    first, second = started(2).run(raise_in_a_score)
    assert first == second
    [(nan, text), (integer, other)] = first
    assert (nan, integer) == ("ValueError", "TypeError")
    assert text.startswith("grads['a'] contains NaN or infinity, which cannot be scored")
    assert other.startswith("grads['b'] has dtype torch.int64")


def raise_in_a_count() -> tuple[str, str]:
    return outcome(lambda: gp.sparsity(masks_of_ranks()))


def masks_of_ranks() -> Any:
    """A mask on rank 0, and something that is none on rank 1."""
    mask = torch.ones(4) > 0 if torch.distributed.get_rank() == 0 else torch.ones(4)
    return [place(mask, mesh_of((2,)), (Shard(0),))]


def test_a_mask_that_is_none_on_one_rank_is_raised_on_all() -> None:
    first, second = started(2).run(raise_in_a_count)
    assert first == second
    assert first[0] == "TypeError"


def fail_within(phase: str) -> tuple[str, str]:
    """Rank 1 runs out of memory in the middle of the search."""
    failing = mock.patch(phase, side_effect=MemoryError("no room on rank 1"))
    few = mock.patch("gprune.select.search.FEW", 0)
    with few, failing if torch.distributed.get_rank() else mock.MagicMock():
        return outcome(lambda: gp.global_unstructured(**pair(0)))


PHASES = [
    "gprune.select.shards.RankedLeaves",
    "gprune.select.sampling.draw_sample",
    "gprune.select.partition.find_packed",
    "gprune.select.refine.histogram",
    "gprune.select.partition.PartitionPass.run",
    "gprune.select.refine.Integers.slots",
    "gprune.select.finish.keep_positions",
    "gprune.select.shards.empty_masks",
]


@pytest.mark.parametrize("phase", PHASES)
def test_a_rank_that_fails_within_the_search_fails_on_all(phase: str) -> None:
    assert started(2).run(fail_within, phase) == [("MemoryError", "no room on rank 1")] * 2


def refusals() -> list[tuple[str, str]]:
    mesh, other = mesh_of((2,)), DeviceMesh("cpu", [1, 0])
    one, sharded = torch.ones(4), place(torch.ones(4), mesh, (Shard(0),))
    partial = DTensor.from_local(one, mesh, (Partial(),))
    pieces = (_StridedShard(0, split_factor=2),)
    in_pieces = DTensor.from_local(one[:2], mesh, pieces, shape=one.shape, stride=(1,))
    short = DTensor.from_local(one[:1], mesh, (Shard(0),), shape=one.shape, stride=(1,))
    method = gp.pruning_method("unstructured")(lambda param, scores, mask: param > 0)
    return [
        outcome(lambda: gp.global_unstructured([sharded, partial], amount=1)),
        outcome(lambda: gp.global_unstructured([sharded, in_pieces], amount=1)),
        outcome(lambda: gp.global_unstructured([sharded, short], amount=1)),
        outcome(lambda: gp.layerwise([sharded, place(one, other, (Shard(0),))], amount=1)),
        outcome(lambda: gp.find_threshold([sharded], [one], amount=1)),
        outcome(lambda: gp.find_threshold([one, sharded], [sharded, sharded], amount=1)),
        outcome(lambda: gp.masks_from_threshold(gp.Threshold(1.0, 0), [sharded], masks=[one > 0])),
        outcome(lambda: gp.apply_masks([sharded], [one > 0])),
        outcome(lambda: gp.global_unstructured([sharded], pruning_method=method)),
        outcome(lambda: gp.layerwise([sharded], pruning_method=method)),
        outcome(lambda: gp.layerwise([sharded], amount=0.5, dim=0)),
        outcome(lambda: gp.layerwise([sharded], pruning_method=gp.n_of_m, n=1, m=2)),
        outcome(lambda: gp.layerwise([sharded], pruning_method=gp.blocks, shape=[2], amount=1)),
        outcome(lambda: gp.ln_structured(place(torch.ones(2, 2), mesh, (Shard(0),)), n=1, dim=0)),
        outcome(lambda: gp.scores.lamp([sharded])),
        outcome(lambda: gp.check_n_of_m([place(one > 0, mesh, (Shard(0),))], n=2, m=4)),
        outcome(lambda: gp.layerwise([sharded, one], amount=[1, 5])),
        outcome(lambda: gp.global_unstructured([sharded, one], amount=9)),
        outcome(lambda: gp.find_threshold([sharded, one], amount=torch.tensor([0, 4, 9]))),
    ]


REFUSALS = [
    "params[1]: this leaf is placed as P(sum); redistribute it to Shard or Replicate",
    "params[1]: the shards of this leaf are not contiguous slices",
    "params[1]: this leaf has a local shard of shape (1,)",
    "params[1]: this leaf is on DeviceMesh",
    "scores[0] is placed as None, its parameter as ((Shard(dim=0),)",
    "scores[0] is placed as ((Shard(dim=0),)",
    "masks[0] is placed as None",
    "masks[0] is placed as None",
    "<lambda> needs whole leaves, got DTensors",
    "<lambda> needs whole leaves, got DTensors",
    "lowest_unstructured with dim= needs whole leaves, got DTensors",
    "n_of_m needs whole leaves, got DTensors",
    "blocks needs whole leaves, got DTensors",
    "ln_structured needs whole leaves, got DTensors",
    "lamp needs whole leaves, got DTensors",
    "masks[0] keeps more than 2 of 4 along dim 0 in 1 of 1 groups",
    "amount[1]: amount must be at most the number of candidates, 4",
    "amount must be at most the number of candidates, 8",
    "amount must be at most the number of candidates, 8",
]


def test_what_cannot_be_sharded_is_refused() -> None:
    first, second = started(2).run(refusals)
    assert first == second
    assert {kind for kind, _ in first} == {"ValueError"}
    fail_if(
        [
            f"says {text!r}, must say {expected!r}"
            for (_, text), expected in zip(first, REFUSALS, strict=True)
            if expected not in text
        ]
    )


# --- lost ranks -----------------------------------------------------------------------------


def lose_a_rank(phase: str) -> tuple[str, str, str, float] | None:
    """Rank 1 is gone before its next count; the other sees how that ends."""
    leaving = mock.patch(phase, side_effect=lambda *args, **kwargs: os._exit(1))
    start = time.perf_counter()
    with leaving if torch.distributed.get_rank() else mock.MagicMock():
        try:
            gp.global_unstructured(**pair(0))
        except RuntimeError as error:
            cause = type(error.__cause__).__module__
            return str(error), cause, str(error.__cause__), time.perf_counter() - start
    return None


@pytest.mark.slow
@pytest.mark.parametrize(
    ("phase", "name"),
    [
        ("gprune.select.shards.RankedLeaves", "checking that all ranks make the same call"),
        ("gprune.select.partition.PartitionPass.run", "counting around the brackets"),
        (
            "gprune.select.blocks.RankedLeaves.tree_index",
            "finding the flat indices of the thresholds",
        ),
    ],
)
def test_a_lost_rank_is_noticed(phase: str, name: str) -> None:
    workers = Workers(2)
    try:
        answer, gone = workers.run(lose_a_rank, phase)
    finally:
        workers.stop()
    assert gone is None
    assert isinstance(answer, tuple), answer
    text, module, cause, seconds = answer
    assert text == f"gprune lost another rank while {name}"
    assert module.startswith(("torch", "builtins"))
    assert cause
    assert seconds < 30


# --- messages -------------------------------------------------------------------------------

COLLECTIVES = [
    name
    for name in dir(torch.distributed)
    if name.startswith(
        ("all_", "broadcast", "gather", "scatter", "reduce", "send", "recv", "isend")
    )
    and callable(getattr(torch.distributed, name))
]


def sent_by(call: Callable[[], Any]) -> tuple[Any, list[tuple[str, int]]]:
    """Make a call; give what it returns, and the name and the bytes of each message."""
    sent: list[tuple[str, int]] = []

    def counting(name: str, collective: Any) -> Any:
        def count(tensor: Any, *args: Any, **kwargs: Any) -> Any:
            sent.append((name, tensor.nbytes))
            return collective(tensor, *args, **kwargs)

        return count

    with ExitStack() as stack:
        for name in COLLECTIVES:
            wrapped = counting(name, getattr(torch.distributed, name))
            stack.enter_context(mock.patch.object(torch.distributed, name, wrapped))
        return call(), sent


def weights(kind: str, dtype: torch.dtype, *shape: int) -> DTensor:
    """Make one leaf, of which this rank has half."""
    local = torch.ones(shape[0] // 2, *shape[1:], dtype=dtype)
    if kind == "normal":
        local.normal_(generator=torch.Generator().manual_seed(torch.distributed.get_rank()))
    stride = torch.empty(shape, device="meta").stride()
    return DTensor.from_local(local, mesh_of((2,)), (Shard(0),), shape=shape, stride=stride)


def messages(size: int, kind: str, dtype: torch.dtype) -> tuple[int, int, set[str], bool]:
    """Prune half; give the number of messages, their bytes, their kinds, and if half has gone."""
    leaf = weights(kind, dtype, 100, size // 100)
    masks, sent = sent_by(lambda: gp.global_unstructured([leaf], amount=0.5))
    exact = int(gp.num_pruned(masks)) == size // 2
    return len(sent), sum(size for _, size in sent), {name for name, _ in sent}, exact


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["normal", "all tied"])
@pytest.mark.parametrize("size", [10**4, 10**6, pytest.param(10**8, marks=pytest.mark.long)])
def test_messages_do_not_grow_with_the_model(size: int, kind: str) -> None:
    dtypes = [torch.float32] if size > 10**6 else [torch.float16, torch.float32, torch.float64]
    for dtype in dtypes:
        for number, payload, names, exact in started(2).run(messages, size, kind, dtype):
            print(f"{size} {kind} {dtype}: {number} messages, {payload} bytes")
            assert exact
            assert names == {"all_reduce"}
            if kind == "normal" and dtype == torch.float32:
                assert number <= 8
                assert payload <= 2**16
            assert number <= 24
            assert payload <= 100_000  # for the one axis of this mesh


def messages_of_layers(leaves: int) -> tuple[int, int]:
    tree = [weights("normal", torch.float32, 10, 3) for _ in range(leaves)]
    tree += [weights("normal", torch.float32, 200, 100 + i % 7) for i in range(leaves)]
    masks, sent = sent_by(lambda: gp.layerwise(tree, amount=0.5))
    assert all(int(gp.num_pruned(mask)) == mask.numel() // 2 for mask in masks[::20])
    return len(sent), sum(size for _, size in sent)


def messages_of_a_crowd(leaves: int, kind: str) -> tuple[int, int]:
    tree = [weights(kind, torch.float64, 200, 100) for _ in range(leaves)]
    with mock.patch("gprune.select.ranks.Ranks.max_counts", leaves):
        masks, sent = sent_by(lambda: gp.layerwise(tree, amount=0.5))
    assert all(int(gp.num_pruned(mask)) == 10_000 for mask in masks)
    return len(sent), sum(size for _, size in sent)


@pytest.mark.parametrize("kind", ["normal", "all tied"])
def test_a_crowd_of_layers_is_terse(kind: str) -> None:
    """Something must cross for every layer: so little that 800 in float64 stay in the bound."""
    for number, payload in started(2).run(messages_of_a_crowd, 40, kind):
        print(f"{kind}: {number} messages, {payload} bytes")
        assert number <= 100
        assert payload <= 40 * 2**20 / 800


def test_layers_share_their_messages() -> None:
    """A model of 300 leaves has hardly more messages than one of one."""
    for number, payload in started(2).run(messages_of_layers, 150):
        print(f"{number} messages, {payload} bytes")
        assert number <= 12
        assert payload <= 4 * 2**20


# --- errors that are hard to send -----------------------------------------------------------------


class Unprintable(Exception):  # noqa: N818  its name is what the test looks for
    def __str__(self) -> str:
        raise ValueError("no text")


class OfTwoArguments(ValueError):  # noqa: N818  as above
    def __init__(self, leaf: str, size: int) -> None:
        super().__init__(f"{leaf} of {size}")


def with_long_notes() -> Exception:
    error = ValueError("with notes")
    for line in range(1000):
        error.add_note("x" * 10_000 + str(line))
    error.tensor, error.itself = torch.ones(3), error  # type: ignore[attr-defined]  # new attributes
    return error


ERRORS: dict[str, tuple[Callable[[], Exception], str, str]] = {
    "notes, and attributes that are no JSON": (with_long_notes, "ValueError", "with notes"),
    "a long text": (lambda: ValueError("y" * 10**6), "ValueError", "y" * 100),
    "a key": (lambda: KeyError("weight"), "KeyError", "'weight'"),
    "a number of the system": (
        lambda: FileNotFoundError(2, "No such file", "scores.pt"),
        "FileNotFoundError",
        "No such file",
    ),
    "five arguments": (
        lambda: UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid"),
        "RuntimeError",
        "UnicodeDecodeError: 'utf-8' codec",
    ),
    "other arguments than its text": (lambda: OfTwoArguments("a", 2), "RuntimeError", "a of 2"),
    "tensors as arguments": (lambda: ValueError(torch.ones(2)), "ValueError", "tensor([1., 1.])"),
    "out of memory": (lambda: torch.OutOfMemoryError("no room"), "OutOfMemoryError", "no room"),
    "no text": (Unprintable, "RuntimeError", "Unprintable: its text cannot be shown"),
}
"""What one rank raises, and the class and a part of the text that the other rank gets."""


def raise_from_a_score(name: str) -> tuple[str, str]:
    def score_fn(params: Any, grads: Any) -> Any:
        if torch.distributed.get_rank():
            raise ERRORS[name][0]()
        return params

    params = pair(0)["params"]
    pruner = gp.pruners.gradual(
        gp.schedules.constant(0.5), due=lambda step: True, where="*", score_fn=score_fn
    )
    state = pruner.init(params)
    try:
        pruner.update(params, state)
    except Unprintable:
        return "Unprintable", ""
    except Exception as error:
        return type(error).__name__, str(error)
    return "nothing", ""


@pytest.mark.parametrize("name", ERRORS)
def test_any_error_reaches_the_other_rank(name: str) -> None:
    make, kind, text = ERRORS[name]
    received, raised = started(2).run(raise_from_a_score, name)
    assert raised[0] == type(make()).__name__
    assert received[0] == kind
    assert text in received[1]
    assert len(received[1]) < 2 * MAX_TEXT


# --- ranks that do not make the same call ---------------------------------------------------------


def call_outside_the_mesh() -> list[tuple[str, str]]:
    """Ranks 0 and 1 hold shards; rank 2 makes the same calls."""
    leaf = distribute_tensor(torch.arange(8.0).view(4, 2), DeviceMesh("cpu", [0, 1]), [Shard(0)])
    rigl = gp.pruners.rigl(0.5, fraction=gp.schedules.constant(0.5), due=lambda step: True, seed=0)
    return [
        outcome(lambda: gp.global_unstructured([leaf], amount=3)),
        outcome(lambda: gp.global_unstructured([leaf], amount="three")),
        outcome(lambda: gp.num_pruned([leaf > 3])),
        outcome(lambda: gp.scores.taylor([leaf], [leaf])),
        outcome(lambda: gp.scores.random([leaf], seed=0)),
        outcome(lambda: rigl.init([leaf])),
    ]


def test_a_rank_outside_the_mesh_is_told_so() -> None:
    """And the ranks of the mesh do not wait for it."""
    first, second, outside = started(3).run(call_outside_the_mesh)
    assert first == second
    wrong = ("TypeError", "amount must be an int or a float, got 'three'")
    assert first == [("nothing", ""), wrong, *[("nothing", "")] * 4]
    assert {kind for kind, _ in outside} == {"ValueError"}
    assert all("rank 2 holds no shard: it is not in the mesh" in text for _, text in outside)


def average_other_batches() -> tuple[str, str]:
    """Rank 1 has one batch less."""
    batches = [pair(0)["params"]] * (3 - torch.distributed.get_rank())
    return outcome(lambda: gp.scores.accumulate(lambda batch: batch, batches))


def test_another_number_of_batches_is_noticed() -> None:
    first, second = started(2).run(average_other_batches)
    assert first == second
    assert first[0] == "ValueError"
    assert "all ranks must make the same call" in first[1]
