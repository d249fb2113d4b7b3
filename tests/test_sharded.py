"""Sharded selection: bit for bit what the same call does on the whole tensors.

Each property is checked on all ranks of a process group: the workers do it, here is what they do.
"""

from __future__ import annotations

from typing import Any
from unittest import mock

import optree
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import gprune as gp
from tests import reference, sharded_cases
from tests.assertions import fail_if
from tests.cases import Case, layerwise_cases
from tests.sharded_cases import Sharding, mesh_of, place, shard, shardings
from tests.test_laws import METHODS, Sizes, sizes, streaming
from tests.workers import started

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
            prune = lambda *args, **kwargs: gp.global_unstructured(*args, **kwargs, **method)
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
    @given(sharded_cases.sharded_cases(world), sizes, st.sampled_from([4, 32, 2**10]))
    def check(drawn: tuple[Case, Sharding], small: Sizes, slots: int) -> None:
        all_well(world, check_global, *drawn, small, slots)

    check()


def check_layerwise(case: Case, sharding: Sharding, small: Sizes, slots: int) -> list[str]:
    sharded = Case(*(placed(tree, sharding) for tree in case[:3]), case.budget)
    problems = []
    with streaming(small), mock.patch("gprune.selection.sharded.descent.SLOTS", slots):
        for method in METHODS:
            prune = lambda *args, **kwargs: gp.layerwise(*args, **kwargs, **method)
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
    @given(sharded_layerwise_cases(world), sizes, st.sampled_from([4, 32, 2**10]))
    def check(drawn: tuple[Case, Sharding], small: Sizes, slots: int) -> None:
        all_well(world, check_layerwise, *drawn, small, slots)

    check()
