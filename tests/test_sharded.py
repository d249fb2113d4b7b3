"""Sharded selection: bit for bit what the same call does on the whole tensors.

Each property is checked on all ranks of a process group: the workers do it, here is what they do.
"""

from __future__ import annotations

import functools
import itertools
import math
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._dynamo.backends.common import aot_autograd
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Replicate, Shard, distribute_tensor
from torch.distributed.tensor.placement_types import _StridedShard

import gprune as gp
from gprune.select import sample
from gprune.select.sharded.layouts import layout_of
from tests.support import sharded_cases
from tests.support.cases import Case, layerwise_cases
from tests.support.sharded_cases import (
    Sharding,
    all_well,
    differences,
    indices,
    is_box,
    mesh_of,
    meshes,
    place,
    placed,
    shardings,
)
from tests.test_laws import METHODS, Sizes, sizes, streaming

pytestmark = pytest.mark.slow

WORLDS = [1, 2, 3, 4]
# 60 cases in the quick profile, 500 in ci, shared by two properties and four world sizes
EXAMPLES = 8 if settings().max_examples < 100 else 64 * settings().max_examples // 100
few = settings(max_examples=EXAMPLES)


# --- the laws -------------------------------------------------------------------------------


def check_global(case: Case, sharding: Sharding, small: Sizes, slots: int) -> list[str]:
    sharded = Case(*(placed(tree, sharding) for tree in case[:3]), case.budget)
    problems = []
    with streaming(small), mock.patch("gprune.select.sharded.descent.SLOTS", slots):
        cut, expected_cut = sharded.masks_for(gp.find_threshold), case.masks_for(gp.find_threshold)
        if repr(cut) != repr(expected_cut):
            problems.append(f"cut is {cut}, expected {expected_cut}")
        for method in METHODS:
            prune = functools.partial(gp.global_unstructured, **method)
            got, expected = sharded.masks_for(prune), case.masks_for(prune)
            problems += differences("masks", got, expected, sharding)
        at = gp.masks_from_threshold(
            expected_cut, sharded.params, sharded.scores, masks=sharded.masks
        )
        expected = gp.masks_from_threshold(expected_cut, case.params, case.scores, masks=case.masks)
        problems += differences("masks_from_threshold", at, expected, sharding)
    if str(gp.summary(sharded.params, at)) != str(gp.summary(case.params, expected)):
        problems.append(f"summary is {gp.summary(sharded.params, at)}")
    whole = gp.agreement(expected, gp.keep_all(expected))
    if repr(gp.agreement(at, gp.keep_all(at))) != repr(whole):
        problems.append(f"agreement is {gp.agreement(at, gp.keep_all(at))}")
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
    with streaming(small), mock.patch("gprune.select.sharded.descent.SLOTS", slots):
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


def check_every_count(bracket: tuple[int, int] | None, limit: int) -> list[str]:
    """Ties, every third entry pruned before, and a bracket that holds the cut or misses it."""
    sharding = Sharding((2,), [(Shard(1),), None])
    scores = [(torch.arange(40) * 7 % 10 / 2**20).view(2, 20), torch.ones(3)]
    masks = [(torch.arange(40) % 3 > 0).view(2, 20), torch.ones(3) > 0]
    small = Sizes(block=7, few=0, limit=limit, guesses=0, power=1.0)
    mine, prior = placed(scores, sharding), placed(masks, sharding)
    guess = {"return_value": bracket} if bracket else {"wraps": sample.spread}
    problems = []
    with streaming(small), mock.patch("gprune.select.sharded.search.spread", **guess):
        for k in range(1 + sum(int(mask.sum()) for mask in masks)):
            expected = gp.global_unstructured(scores, scores, masks=masks, amount=k)
            got = gp.global_unstructured(mine, mine, masks=prior, amount=k)
            problems += differences(f"{k} of masks", got, expected, sharding)
    return problems


@pytest.mark.parametrize("limit", [0, 100])
@pytest.mark.parametrize("bracket", [None, (-1, 3), (3, 4), (20, 21), (20, 99)])
def test_every_count(bracket: tuple[int, int] | None, limit: int) -> None:
    all_well(2, check_every_count, bracket, limit)


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


def check_scores(sharding: Sharding) -> list[str]:
    """Scores of an entry by itself, of a leaf by its norm, and of a loss."""
    torch.manual_seed(0)
    whole, slopes = ([torch.randn(7, 5), torch.randn(4, 3).half()] for _ in range(2))
    params, grads = placed(whole, sharding), placed(slopes, sharding)
    score_fns: list[Callable[[Any, Any], Any]] = [
        gp.scores.taylor,
        gp.scores.obd,
        lambda params, grads: gp.scores.movement(gp.scores.magnitude(grads), params, grads),
        lambda params, grads: gp.scores.normalize_l2(params),
        lambda params, grads: gp.scores.snip(lambda tree: tree[1].float().square().mean(), params),
    ]
    problems = []
    for score_fn in score_fns:
        got, expected = score_fn(params, grads), score_fn(whole, slopes)
        problems += differences("scores", got, expected, sharding)
    return problems


@pytest.mark.parametrize("first", [(Shard(0),), (Shard(1),), (Replicate(),), None])
def test_scores(first: tuple[Any, ...] | None) -> None:
    all_well(2, check_scores, Sharding((2,), [first, (Shard(0),)]))


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
        "assert 'gprune.select.sharded' not in sys.modules"
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
    assert knows == {"select/sharded"}
    helper = "_compute_local_shape_and_global_offset("
    assert sum(file.read_text().count(helper) for file in package.rglob("*.py")) == 1
