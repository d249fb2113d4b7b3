"""Every way to ask that takes DTensors, on random trees and meshes, against the same sort.

The nightly profile makes 10,000 checks, the quick one 100.
"""

from __future__ import annotations

import math
from contextlib import nullcontext

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support import fuzz, sharded_cases, ways
from tests.support.assertions import fail_if
from tests.support.limits import small_limits
from tests.support.sharded_cases import Sharding, indices, mesh_of, placed
from tests.support.workers import started

CHECKS = {25: 100, 100: 1_000, 2_500: 10_000}.get(settings().max_examples, 100)
"""How many checks all ways make in all, by the examples of the profile."""

WORLDS = [2, pytest.param(4, marks=pytest.mark.long)]
WAYS = [
    "one amount",
    "one threshold",
    "several thresholds",
    "layerwise",
    "layerwise with a tree of amounts",
    "random",
]


@st.composite
def shardings(draw: st.DrawFn, tree: fuzz.Tree, world: int) -> Sharding:
    """Draw a mesh, and a place on it for each leaf: some are replicated, some plain."""
    mesh = draw(sharded_cases.meshes(world))
    places = [
        None if leaf is None else draw(sharded_cases.placements(leaf.shape, mesh))
        for leaf in tree.leaves
    ]
    return Sharding(mesh, places)


@st.composite
def sharded_trees(draw: st.DrawFn, world: int) -> tuple[fuzz.Tree, Sharding, int | None]:
    tree, limits = draw(fuzz.limited_trees())
    return tree, draw(shardings(tree, world)), limits


def check_sharded(
    name: str, tree: fuzz.Tree, sharding: Sharding, limits: int | None
) -> tuple[int, list[str]]:
    """On one rank: ask, and compare with its part of what must come out."""
    case = fuzz.build(tree)
    mesh = mesh_of(sharding.mesh)
    where = [sharding.placements[i] for i in case.places]

    def local(leaf: int, array: fuzz.Array) -> fuzz.Array:
        at = tuple(mesh.get_coordinate())
        for dim, held in enumerate(indices(array.shape, sharding.mesh, at, where[leaf])):
            array = array.take(held, dim)
        return array

    sharded = case._replace(
        params=placed(case.params, sharding),
        scores=placed(case.scores, sharding),
        masks=placed(case.masks, sharding),
        values=placed(case.values, sharding),
    )
    small = nullcontext() if limits is None else small_limits(np.random.default_rng(limits))
    with small:
        checks = list(ways.WAYS[name].ask(sharded, np.random.default_rng(tree.seed)))
    return len(checks), [x for one in checks if (x := ways.error_of(sharded, one, local))]


@pytest.mark.slow
@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("name", WAYS)
def test_every_way_to_ask(name: str, world: int) -> None:
    target = math.ceil(CHECKS / len(WAYS) / len(WORLDS))
    made = 0

    @settings(max_examples=math.ceil(target / ways.WAYS[name].checks) + 1)
    @given(sharded_trees(world))
    def check(drawn: tuple[fuzz.Tree, Sharding, int | None]) -> None:
        nonlocal made
        problems = []
        for rank, answer in enumerate(started(world).run(check_sharded, name, *drawn)):
            if isinstance(answer, Exception):
                problems.append(f"rank {rank}: {answer!r}")
                continue
            number, wrong = answer
            problems += [f"rank {rank}: {problem}" for problem in wrong]
        fail_if(problems)
        made += number

    check()
    print(f"{name} on {world} ranks: {made} checks")
    assert made >= target
