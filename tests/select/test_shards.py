"""Where local shards lie in their leaves, on meshes of any shape, against counting by hand."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributed.tensor import Shard, distribute_tensor
from torch.distributed.tensor.placement_types import _StridedShard

from gprune.select.shards import layout_of
from tests.support import sharded_cases
from tests.support.sharded_cases import Sharding, all_well, indices, is_box, mesh_of, meshes, place

pytestmark = pytest.mark.slow

WORLDS = [1, 2, 3, 4]


@st.composite
def leaves(draw: st.DrawFn, world: int) -> tuple[tuple[int, ...], Sharding]:
    """A leaf of a shape and a place for it, also a strided one whose shards are not slices."""
    shape = torch.Size(draw(st.lists(st.integers(0, 9), min_size=1, max_size=3)))
    mesh = draw(meshes(world))
    dims = st.integers(0, len(shape) - 1)
    strided = st.builds(lambda d, f: _StridedShard(d, split_factor=f), dims, st.integers(1, 4))
    loose = st.tuples(*[strided | dims.map(Shard)] * len(mesh))
    where = draw(sharded_cases.placements(shape, mesh) | loose)
    return tuple(shape), Sharding(mesh, [where])


def check_slices(shape: tuple[int, ...], sharding: Sharding) -> list[str]:
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
    in_slices = all(is_box(indices(shape, sharding.mesh, at, where)) for at in coordinates)
    try:
        [own_slice] = layout_of([leaf]).slices()
    except ValueError as error:
        return [*problems, *([f"refused: {error}"] if in_slices else [])]
    if not in_slices:
        return [*problems, f"{where} of {shape} is taken for a slice"]
    own = leaf.to_local().reshape(-1)
    got = own_slice.leaf_index(torch.arange(own.numel()))
    problems += [] if got.equal(own) else [f"places are {got}, expected {own}"]
    for place_ in range(math.prod(shape) + 1):
        if own_slice.num_before(place_) != int((own < place_).sum()):
            problems.append(f"{own_slice.num_before(place_)} before {place_} in {own}")
    return problems


@pytest.mark.parametrize("world", WORLDS)
def test_slices(world: int) -> None:
    @settings(max_examples=2 * settings().max_examples)
    @given(leaves(world))
    def check(drawn: tuple[tuple[int, ...], Sharding]) -> None:
        all_well(world, check_slices, *drawn)

    check()
