"""Guarantee: selection of DTensors gives bit for bit the masks of the whole tensors.

Each property is checked on all ranks of a process group: the workers do it, here is what they do.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._dynamo.backends.common import aot_autograd
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Replicate, Shard
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    parallelize_module,
)

import gprune as gp
from gprune.select import sampling
from tests.support import sharded_cases
from tests.support.cases import METHODS, Case, layerwise_cases
from tests.support.limits import Limits, limits, patched
from tests.support.sharded_cases import (
    Sharding,
    all_well,
    differences,
    mesh_of,
    place,
    placed,
    shardings,
)
from tests.support.workers import started

pytestmark = pytest.mark.slow

WORLDS = [1, 2, 3, pytest.param(4, marks=pytest.mark.long)]
# 60 cases in the quick profile, 500 in ci, shared by two properties and four world sizes
EXAMPLES = 8 if settings().max_examples < 100 else 64 * settings().max_examples // 100
few = settings(max_examples=EXAMPLES)


@contextmanager
def narrow_digits(width: int) -> Iterator[None]:
    """Count few bits at once."""
    from gprune.select.ranks import Ranks

    values = {"max_bits": width, "max_pass_bits": width, "max_counts": 2 << width}
    with mock.patch.multiple(Ranks, **values):
        yield


# --- the guarantees -------------------------------------------------------------------------------


def check_global(case: Case, sharding: Sharding, small: Limits, width: int) -> list[str]:
    sharded = Case(*(placed(tree, sharding) for tree in case[:3]), case.budget)
    problems = []
    with patched(small), narrow_digits(width):
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
    @given(sharded_cases.sharded_cases(world), limits(), st.sampled_from([1, 3, 10]))
    def check(drawn: tuple[Case, Sharding], small: Limits, width: int) -> None:
        all_well(world, check_global, *drawn, small, width)

    check()


def check_layerwise(case: Case, sharding: Sharding, small: Limits, width: int) -> list[str]:
    sharded = Case(*(placed(tree, sharding) for tree in case[:3]), case.budget)
    problems = []
    with patched(small), narrow_digits(width):
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
    @given(sharded_layerwise_cases(world), limits(), st.sampled_from([1, 3, 10]))
    def check(drawn: tuple[Case, Sharding], small: Limits, width: int) -> None:
        all_well(world, check_layerwise, *drawn, small, width)

    check()


def check_every_count(ranks: tuple[int, int] | None, limit: int) -> list[str]:
    """Ties, every third entry pruned before, and a bracket that holds the threshold or misses."""
    sharding = Sharding((2,), [(Shard(1),), None])
    scores = [(torch.arange(40) * 7 % 10 / 2**20).view(2, 20), torch.ones(3)]
    masks = [(torch.arange(40) % 3 > 0).view(2, 20), torch.ones(3) > 0]
    small = Limits(block=7, few=0, limit=limit, guesses=1, power=1.0, coarse=1)
    mine, prior = placed(scores, sharding), placed(masks, sharding)
    guess = {"return_value": ranks} if ranks else {"wraps": sampling.bracket_places}
    problems = []
    with patched(small), mock.patch("gprune.select.sampling.bracket_places", **guess):
        for k in range(1 + sum(int(mask.sum()) for mask in masks)):
            expected = gp.global_unstructured(scores, scores, masks=masks, amount=k)
            got = gp.global_unstructured(mine, mine, masks=prior, amount=k)
            problems += differences(f"{k} of masks", got, expected, sharding)
    return problems


BRACKETS = [None, (0, 4), (4, 5), (21, 22), (21, 28)]
LIMITS = [0, 1, 100]
BY_DEFAULT = [(None, 0), ((4, 5), 1), ((21, 28), 100)]


@pytest.mark.parametrize(
    ("ranks", "limit"),
    [
        pytest.param(*case, marks=[] if case in BY_DEFAULT else pytest.mark.long)
        for case in itertools.product(BRACKETS, LIMITS)
    ],
)
def test_every_count(ranks: tuple[int, int] | None, limit: int) -> None:
    all_well(2, check_every_count, ranks, limit)


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
        lambda params, grads: gp.scores.normalize_l2(gp.scores.magnitude(params)),
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
    number = sum(code.count("torch.ops.gprune.select.default") for code in graphs)
    return problems + sent + ([] if number == len(graphs) == 1 else [f"{number} in {len(graphs)}"])


@pytest.mark.long
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


class Feedforward(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = torch.nn.Embedding(11, 8)
        self.up = torch.nn.Linear(8, 13)
        self.down = torch.nn.Linear(13, 8)


def check_two_meshes() -> list[str]:
    """torch's recipe for FSDP beside tensor parallelism: the embedding is on one axis only."""
    torch.manual_seed(0)
    model, mesh = Feedforward(), mesh_of((2, 2))
    whole = {
        name: p.detach().clone() for name, p in gp.prunable(named(model)).items() if p is not None
    }
    parallelize_module(model, mesh["tp"], {"up": ColwiseParallel(), "down": RowwiseParallel()})
    fully_shard(model, mesh=mesh["dp"])
    params = {name: p for name, p in gp.prunable(named(model)).items() if p is not None}
    problems = [] if len({p.device_mesh for p in params.values()}) == 2 else ["one mesh only"]
    masks = gp.global_unstructured(params, sparsity=0.5)
    expected = gp.global_unstructured(whole, sparsity=0.5)
    problems += [n for n, mask in masks.items() if not mask.full_tensor().equal(expected[n])]
    problems += [n for n, mask in masks.items() if mask.placements != params[n].placements]
    if gp.num_pruned(masks) != gp.num_pruned(expected):
        problems.append(f"{gp.num_pruned(masks)} pruned")
    scores = gp.scores.random(params, seed=0)
    drawn = gp.scores.random(whole, seed=0)
    return problems + [n for n in scores if not scores[n].full_tensor().equal(drawn[n])]


def named(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return dict(model.named_parameters())


def test_leaves_on_two_meshes() -> None:
    all_well(4, check_two_meshes)


def masks_of_ties() -> list[list[bool]]:
    leaf = place(torch.ones(8), mesh_of((2,)), (Shard(0),))
    masks = [gp.masks_from_threshold(gp.Threshold(1.0, index), [leaf])[0] for index in range(8)]
    return [mask.full_tensor().tolist() for mask in masks]


def test_ties_at_a_threshold_are_cut_by_the_index_in_the_leaf() -> None:
    """Which is not the index in the shard."""
    expected = [[i > index for i in range(8)] for index in range(8)]
    assert started(2).run(masks_of_ties) == [expected] * 2
