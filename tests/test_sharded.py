"""Sharded selection: bit for bit what the same call does on the whole tensors.

Each property is checked on all ranks of a process group: the workers do it, here is what they do.
"""

from __future__ import annotations

import functools
import itertools
import math
import os
import re
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest import mock

import optree
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._dynamo.backends.common import aot_autograd
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.placement_types import _StridedShard

import gprune as gp
from gprune.selection.sharded.layouts import layout_of
from tests import reference, sharded_cases
from tests.assertions import fail_if
from tests.cases import Case, layerwise_cases
from tests.sharded_cases import Sharding, indices, is_box, mesh_of, meshes, place, shard, shardings
from tests.test_laws import METHODS, Sizes, sizes, streaming
from tests.workers import Workers, started

WORLDS = [1, 2, 3, 4]
# 60 cases in the quick profile, 500 in ci, shared by two properties and four world sizes
EXAMPLES = 8 if settings().max_examples < 100 else 5 * settings().max_examples // 8
few = settings(max_examples=EXAMPLES)


def all_well(world: int, check: Any, *args: Any) -> None:
    """Run a check on every rank; it returns what is wrong."""
    answers = started(world).run(check, *args)
    problems = [
        f"rank {rank}: {problem}"
        for rank, answer in enumerate(answers)
        for problem in (answer if isinstance(answer, list) else [_told(answer)])
    ]
    fail_if(problems)


def _told(answer: Any) -> str:
    return "\n".join([repr(answer), *getattr(answer, "__notes__", [])])


def placed(tree: Any, sharding: Sharding) -> Any:
    """Shard a tree on this rank."""
    if tree is None:
        return None
    leaves = reference.leaves(tree)
    mesh = mesh_of(sharding.mesh)
    pairs = zip(leaves, sharding.placements, strict=True)
    return optree.tree_unflatten(
        reference.structure(tree), [place(leaf, mesh, where) for leaf, where in pairs]
    )


def differences(what: str, got: Any, expected: Any, sharding: Sharding) -> list[str]:
    """Name the leaves that are not this rank's part of what is expected, placed as it should be."""
    mesh, problems = mesh_of(sharding.mesh), []
    for path, mine, whole, where in zip(
        reference.paths(expected),
        reference.leaves(got),
        reference.leaves(expected),
        sharding.placements,
        strict=True,
    ):
        if whole is None or mine is None:
            problems += [] if mine is whole else [f"{what}{path}: is {mine}, expected {whole}"]
            continue
        if (where is None) != (not hasattr(mine, "placements")):
            problems.append(f"{what}{path}: is a {type(mine).__name__}, placed as {where}")
            continue
        if where is not None and (mine.placements, mine.device_mesh) != (where, mesh):
            problems.append(f"{what}{path}: is placed as {mine.placements}, expected {where}")
        local, part = mine if where is None else mine.to_local(), shard(whole, mesh, where)
        if repr(local) != repr(part.contiguous()):
            problems.append(f"{what}{path}: is {local}, expected {part}")
    return problems


# --- the laws -------------------------------------------------------------------------------


def check_global(case: Case, sharding: Sharding, small: Sizes, slots: int) -> list[str]:
    sharded = Case(*(placed(tree, sharding) for tree in case[:3]), case.budget)
    problems = []
    with streaming(small), mock.patch("gprune.selection.sharded.descent.SLOTS", slots):
        cut, expected_cut = sharded.masks_for(gp.find_cut), case.masks_for(gp.find_cut)
        if repr(cut) != repr(expected_cut):
            problems.append(f"cut is {cut}, expected {expected_cut}")
        for method in METHODS:
            prune = functools.partial(gp.global_unstructured, **method)
            got, expected = sharded.masks_for(prune), case.masks_for(prune)
            problems += differences("masks", got, expected, sharding)
        at = gp.masks_at(expected_cut, sharded.params, sharded.scores, masks=sharded.masks)
        expected = gp.masks_at(expected_cut, case.params, case.scores, masks=case.masks)
        problems += differences("masks_at", at, expected, sharding)
    for count in (gp.num_pruned, gp.sparsity):
        if not count(at).equal(count(expected)):
            problems.append(f"{count.__name__} is {count(at)}, expected {count(expected)}")
    applied = gp.apply_masks(sharded.params, at)
    problems += differences("params", applied, gp.apply_masks(case.params, expected), sharding)
    for name in (gp.keep_all, lambda params: gp.scores.random(params, seed=5)):
        problems += differences("made", name(sharded.params), name(case.params), sharding)
    return problems


@pytest.mark.parametrize("world", WORLDS)
def test_global(world: int) -> None:
    @few
    @given(sharded_cases.sharded_cases(world), sizes, st.sampled_from([32, 2**10]))
    def check(drawn: tuple[Case, Sharding], small: Sizes, slots: int) -> None:
        all_well(world, check_global, *drawn, small, slots)

    check()


def check_layerwise(case: Case, sharding: Sharding, small: Sizes, slots: int) -> list[str]:
    sharded = Case(*(placed(tree, sharding) for tree in case[:3]), case.budget)
    problems = []
    with streaming(small), mock.patch("gprune.selection.sharded.descent.SLOTS", slots):
        for method in METHODS:
            prune = functools.partial(gp.layerwise, **method)
            got, expected = sharded.masks_for(prune), case.masks_for(prune)
            problems += differences("masks", got, expected, sharding)
    return problems


@st.composite
def sharded_layerwise_cases(draw: st.DrawFn, world: int) -> tuple[Case, Sharding]:
    case, _ = draw(layerwise_cases())
    return case, draw(shardings(case.params, world))


@pytest.mark.parametrize("world", WORLDS)
def test_layerwise(world: int) -> None:
    @few
    @given(sharded_layerwise_cases(world), sizes, st.sampled_from([32, 2**10]))
    def check(drawn: tuple[Case, Sharding], small: Sizes, slots: int) -> None:
        all_well(world, check_layerwise, *drawn, small, slots)

    check()


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
    "amount out of range": ("ValueError", "got different arguments", {"amount": constant(10**6)}),
    "another amount": ("ValueError", "got different arguments", {"amount": constant(4)}),
    "no amount": ("TypeError", "exactly one of", {"amount": constant(None)}),
    "an unknown argument": ("TypeError", "unexpected keyword", {"temperature": constant(1)}),
    "another method": (
        "ValueError",
        "different structure",
        {"pruning_method": constant(gp.l1_unstructured)},
    ),
    "another shape": ("ValueError", "different leaves", {"params": tree(a=leaf(6, 2), b=leaf(6))}),
    "another dtype": (
        "ValueError",
        "different leaves",
        {"params": tree(a=leaf(6, 2), b=leaf(5, dtype=torch.float64))},
    ),
    "another structure": (
        "ValueError",
        "different structure",
        {"params": tree(a=leaf(6, 2), c=leaf(5))},
    ),
    "another hole": (
        "ValueError",
        "different structure",
        {"params": tree(a=leaf(6, 2), b=constant(None))},
    ),
    "a missing leaf": ("ValueError", "different structure", {"params": tree(a=leaf(6, 2))}),
    "scores": ("ValueError", "different structure", {"scores": tree(a=leaf(6, 2), b=leaf(5))}),
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
        raise_in_a_shard, [gp.global_unstructured, gp.layerwise, gp.find_cut]
    )
    assert first == second
    assert {kind for kind, _ in first} == {"ValueError"}
    assert all(text.startswith("scores['a']: int64 scores must") for _, text in first)


def fail_within(phase: str) -> tuple[str, str]:
    """Rank 1 runs out of memory in the middle of the search."""
    failing = mock.patch(phase, side_effect=MemoryError("no room on rank 1"))
    with failing if torch.distributed.get_rank() else mock.MagicMock():
        return outcome(lambda: gp.global_unstructured(**pair(0)))


PHASES = [
    "gprune.selection.sharded.shards.Ranking",
    "gprune.selection.sharded.search._sample",
    "gprune.selection.sharded.search.divide",
    "gprune.selection.sharded.descent._count",
    "gprune.selection.sharded.parts.Part.places",
]


@pytest.mark.parametrize("phase", PHASES)
def test_a_rank_that_fails_within_the_search_fails_on_all(phase: str) -> None:
    assert started(2).run(fail_within, phase) == [("MemoryError", "no room on rank 1")] * 2


def refusals() -> list[tuple[str, str]]:
    mesh, other = mesh_of((2,)), mesh_of((1, 2))
    one, sharded = torch.ones(4), place(torch.ones(4), mesh, (Shard(0),))
    partial = DTensor.from_local(one, mesh, (Partial(),))
    pieces = (_StridedShard(0, split_factor=2),)
    in_pieces = DTensor.from_local(one[:2], mesh, pieces, shape=one.shape, stride=(1,))
    short = DTensor.from_local(one[:1], mesh, (Shard(0),), shape=one.shape, stride=(1,))
    method = gp.pruning_method("unstructured")(lambda scores, mask: scores > 0)
    return [
        outcome(lambda: gp.global_unstructured([sharded, partial], amount=1)),
        outcome(lambda: gp.global_unstructured([sharded, in_pieces], amount=1)),
        outcome(lambda: gp.global_unstructured([sharded, short], amount=1)),
        outcome(lambda: gp.layerwise([sharded, place(one, other, (Shard(0),) * 2)], amount=1)),
        outcome(lambda: gp.find_cut([sharded], [one], amount=1)),
        outcome(lambda: gp.find_cut([one, sharded], [sharded, sharded], amount=1)),
        outcome(lambda: gp.masks_at(gp.Cut(1.0, 0), [sharded], masks=[one > 0])),
        outcome(lambda: gp.apply_masks([sharded], [one > 0])),
        outcome(lambda: gp.global_unstructured([sharded], pruning_method=method)),
        outcome(lambda: gp.layerwise([sharded], amount=0.5, dim=0)),
        outcome(lambda: gp.layerwise([sharded, one], amount=[1, 5])),
        outcome(lambda: gp.global_unstructured([sharded, one], amount=9)),
    ]


REFUSALS = [
    "params[1]: is placed as P(sum); redistribute it to Shard or Replicate",
    "params[1]: has local shards in several pieces",
    "params[1]: has a local shard of shape (1,)",
    "params[1]: is on DeviceMesh",
    "scores[0] is placed as None, its parameter as ((Shard(dim=0),)",
    "scores[0] is placed as ((Shard(dim=0),)",
    "masks[0] is placed as None",
    "masks[0] is placed as None",
    "would need all shards on one machine",
    "dim compares within whole leaves",
    "amount[1]: amount must be at most the number of candidates, 4",
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


@pytest.mark.parametrize(
    ("phase", "name"),
    [
        ("gprune.selection.sharded.shards.Ranking", "agreeing on the call"),
        ("gprune.selection.sharded.search.divide", "counting what the bracket divides"),
        ("gprune.selection.sharded.parts.Part.places", "finding the index of the cut"),
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


def messages(size: int, kind: str, dtype: torch.dtype) -> tuple[int, int, set[str], bool]:
    """Prune half of `size` weights; give the number of messages, their bytes and their kinds."""
    mesh, rank = mesh_of((2,)), torch.distributed.get_rank()
    shape = (100, size // 100)
    local = torch.ones(50, size // 100, dtype=dtype)
    if kind == "normal":
        torch.manual_seed(rank)
        local.normal_()
    tensor = DTensor.from_local(local, mesh, (Shard(0),), shape=shape, stride=(shape[1], 1))
    sent: list[tuple[str, int]] = []
    with ExitStack() as stack:
        for name in COLLECTIVES:
            collective = getattr(torch.distributed, name)

            def counting(
                tensor: Any, *args: Any, name: Any = name, run: Any = collective, **kwargs: Any
            ) -> Any:
                sent.append((name, tensor.nbytes))
                return run(tensor, *args, **kwargs)

            stack.enter_context(mock.patch.object(torch.distributed, name, counting))
        masks = gp.global_unstructured([tensor], amount=0.5)
    exact = int(gp.num_pruned(masks)) == size // 2
    return len(sent), sum(size for _, size in sent), {name for name, _ in sent}, exact


@pytest.mark.parametrize("kind", ["normal", "all tied"])
@pytest.mark.parametrize("size", [10**4, 10**6, 10**8])
def test_messages_do_not_grow_with_the_model(size: int, kind: str) -> None:
    for dtype in [torch.float16] if size > 10**6 else [torch.float32, torch.float64]:
        for number, payload, names, exact in started(2).run(messages, size, kind, dtype):
            print(f"{size} {kind} {dtype}: {number} messages, {payload} bytes")
            assert exact
            assert names == {"all_reduce"}
            assert 5 <= number <= 36
            assert payload <= 2**18  # of 2**20, which a mesh of four axes would take


# --- where shards lie -----------------------------------------------------------------------


@st.composite
def leaves(draw: st.DrawFn, world: int) -> tuple[tuple[int, ...], Sharding]:
    """A leaf of a shape and a place for it, strided ones that are no box included."""
    shape = torch.Size(draw(st.lists(st.integers(0, 9), min_size=1, max_size=3)))
    mesh = draw(meshes(world))
    dims = st.integers(0, len(shape) - 1)
    strided = st.builds(lambda d, f: _StridedShard(d, split_factor=f), dims, st.integers(1, 4))
    loose = st.tuples(*[strided | dims.map(Shard)] * len(mesh))
    where = draw(sharded_cases.placements(shape, mesh) | loose)
    return tuple(shape), Sharding(mesh, [where])


def check_boxes(shape: tuple[int, ...], sharding: Sharding) -> list[str]:
    """Compare with the indices counted by hand, and those with torch's own shards."""
    mesh, [where] = mesh_of(sharding.mesh), sharding.placements
    if where is None:
        return []
    whole = torch.arange(math.prod(shape)).view(shape)
    leaf, problems = place(whole, mesh, where), []
    if not any(isinstance(placement, _StridedShard) for placement in where):
        theirs = distribute_tensor(whole, mesh, where).to_local()
        problems += [] if theirs.equal(leaf.to_local()) else [f"torch has {theirs}, not {leaf}"]
    coordinates = itertools.product(*map(range, sharding.mesh))
    in_boxes = all(is_box(indices(shape, sharding.mesh, at, where)) for at in coordinates)
    try:
        [box], _ = layout_of([leaf]).shards()
    except ValueError as error:
        return [*problems, *([f"refused: {error}"] if in_boxes else [])]
    if not in_boxes:
        return [*problems, f"{where} of {shape} is taken for a box"]
    own = leaf.to_local().reshape(-1)
    got = box.places(torch.arange(own.numel()))
    problems += [] if got.equal(own) else [f"places are {got}, expected {own}"]
    for place_ in range(math.prod(shape) + 1):
        if box.before(place_) != int((own < place_).sum()):
            problems.append(f"{box.before(place_)} before {place_} in {own}")
    return problems


@pytest.mark.parametrize("world", WORLDS)
def test_boxes(world: int) -> None:
    @settings(max_examples=2 * settings().max_examples)
    @given(leaves(world))
    def check(drawn: tuple[tuple[int, ...], Sharding]) -> None:
        all_well(world, check_boxes, *drawn)

    check()


# --- in use ---------------------------------------------------------------------------------


def check_compiled() -> list[str]:
    """One graph, in which nothing is sent but within the operator."""
    mesh, placements = mesh_of((2,)), [(Shard(0),), (Shard(1),), (Replicate(),), None]
    sharding = Sharding((2,), placements)
    torch.manual_seed(0)
    whole = [torch.randn(5, 4), torch.randn(3, 7), torch.randn(6), torch.randn(2, 2)]
    params = [place(leaf, mesh, where) for leaf, where in zip(whole, placements, strict=True)]
    graphs: list[str] = []

    def look(graph: Any, inputs: Any) -> Any:
        graphs.append(graph.code)
        return graph

    def step(params: Any, masks: Any, sparsity: Any) -> Any:
        masks = gp.global_unstructured(params, masks=masks, sparsity=sparsity)
        return gp.apply_masks(params, masks), masks, gp.num_pruned(masks)

    compiled = torch.compile(step, fullgraph=True, backend=aot_autograd(fw_compiler=look))
    problems, kept, expected = [], gp.keep_all(params), gp.keep_all(whole)
    for sparsity in (0.0, 0.3, 0.6, 0.9):
        at = torch.tensor(sparsity, dtype=torch.float64)
        pruned, kept, number = compiled(params, kept, at)
        dense, expected, total = step(whole, expected, at)
        problems += differences("masks", kept, expected, sharding)
        problems += differences("params", pruned, dense, sharding)
        problems += [] if number == total else [f"{number} pruned, expected {total}"]
    sent = [line for code in graphs for line in code.splitlines() if "c10d" in line]
    number = sum(code.count("torch.ops.gprune.select_shards") for code in graphs)
    return problems + sent + ([] if number == len(graphs) == 1 else [f"{number} in {len(graphs)}"])


def test_compiled() -> None:
    all_well(2, check_compiled)


class Transformer(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = torch.nn.Embedding(11, 8)
        self.layer = torch.nn.TransformerEncoderLayer(8, 2, 17, batch_first=True)
        self.head = torch.nn.Linear(8, 11)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.head(self.layer(self.embed(tokens)))


def check_fully_sharded() -> list[str]:
    """Five steps of gradual pruning; at each the masks are those of the whole parameters."""
    torch.manual_seed(0)
    model = Transformer()
    fully_shard(model.layer, mesh=mesh_of((2,)))
    fully_shard(model, mesh=mesh_of((2,)))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    schedule = gp.schedules.polynomial(0.9, begin=0, end=4)
    masks = gp.keep_all(gp.prunable(dict(model.named_parameters())))
    problems = []
    for step in range(5):
        tokens = torch.randint(11, (4, 6))
        optimizer.zero_grad()
        model(tokens).logsumexp(-1).mean().backward()
        optimizer.step()
        weights = gp.prunable(dict(model.named_parameters()))
        whole = {name: None if x is None else x.full_tensor() for name, x in weights.items()}
        before = {name: None if x is None else x.full_tensor() for name, x in masks.items()}
        masks = gp.global_unstructured(weights, masks=masks, sparsity=schedule(step))
        expected = gp.global_unstructured(whole, masks=before, sparsity=schedule(step))
        with torch.no_grad():
            for name, pruned in gp.apply_masks(weights, masks).items():
                if pruned is not None:
                    weights[name].to_local().copy_(pruned.to_local())
        for name, mask in masks.items():
            if mask is not None and not mask.full_tensor().equal(expected[name]):
                problems.append(f"step {step}: the mask of {name} differs")
            if mask is not None and weights[name].full_tensor()[~expected[name]].any():
                problems.append(f"step {step}: {name} is not masked")
    target = round(0.9 * sum(x.numel() for x in masks.values() if x is not None))
    return problems + ([] if gp.num_pruned(masks) == target else [f"{gp.num_pruned(masks)} pruned"])


def test_fully_sharded() -> None:
    all_well(2, check_fully_sharded)


# --- its room -------------------------------------------------------------------------------


def test_importing_gprune_does_not_enter_the_room() -> None:
    code = (
        "import sys, torch, optree; before = set(sys.modules); import gprune;"
        "new = [x for x in set(sys.modules) - before if x.startswith('torch.distributed')];"
        "assert not new, new; gprune.global_unstructured([torch.ones(3)], amount=1);"
        "assert 'gprune.selection.sharded' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_gprune_works_where_torch_has_no_distributed() -> None:
    code = (
        "import sys, torch; sys.modules['torch.distributed.tensor'] = None;"
        "import gprune as gp;"
        "assert gp.num_pruned(gp.global_unstructured([torch.ones(3)], amount=1)) == 1"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_only_this_room_knows_torch_distributed() -> None:
    package = Path(gp.__file__).parent
    knows = {
        str(file.relative_to(package).parent)
        for file in package.rglob("*.py")
        if re.search(
            r"^\s*(import|from) torch(\.distributed|\._C\._distributed)", file.read_text(), re.M
        )
    }
    assert knows == {"selection/sharded"}
    helper = "_compute_local_shape_and_global_offset("
    assert sum(file.read_text().count(helper) for file in package.rglob("*.py")) == 1
