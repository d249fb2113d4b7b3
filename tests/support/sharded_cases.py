"""What the laws are tested on where leaves are sharded: a case, a mesh, and a place for each leaf.

The oracle shards by hand: a rank holds those indices of a dim that remain after each axis of the
mesh has taken its part. Its masks are cut out of the unsharded ones.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import optree
import torch
from hypothesis import strategies as st
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Placement, Replicate, Shard
from torch.distributed.tensor.placement_types import _StridedShard

from tests.support import reference
from tests.support.assertions import fail_if
from tests.support.cases import Case, cases
from tests.support.workers import started


class OnPart(NamedTuple):
    """A leaf on a mesh of one axis: the axis of that name, or of all ranks if there is no name."""

    axis: str | None
    placement: Placement


Placements = tuple[Placement, ...] | OnPart | None
"""How a leaf is placed on each axis of the mesh; `None` leaves it plain."""


class Sharding(NamedTuple):
    mesh: tuple[int, ...]
    placements: list[Placements]


def meshes(world: int) -> st.SearchStrategy[tuple[int, ...]]:
    two = [(a, world // a) for a in range(1, world + 1) if world % a == 0]
    return st.sampled_from([(world,), *two])


def placements(shape: torch.Size, mesh: tuple[int, ...]) -> st.SearchStrategy[Placements]:
    """Any place but a strided one alone, which need not be a box."""
    one: st.SearchStrategy[Placement] = st.just(Replicate())
    if shape:
        one = st.sampled_from([Shard(dim) for dim in range(len(shape))] + [Replicate()])
    each = st.none() | st.tuples(*[one] * len(mesh))
    if len(mesh) == 1 or not shape:
        return each
    # what FSDP makes of a leaf that tensor parallelism has split along the same dim
    dims = st.integers(0, len(shape) - 1)
    return each | dims.map(lambda dim: (_StridedShard(dim, split_factor=mesh[1]), Shard(dim)))


@st.composite
def shardings(draw: st.DrawFn, params: Any, world: int) -> Sharding:
    mesh = draw(meshes(world))
    leaves = reference.leaves(params)
    where = [None if x is None else draw(placements(x.shape, mesh)) for x in leaves]
    on_whole_mesh = [i for i, placed in enumerate(where) if placed is not None]
    if len(mesh) == 2 and on_whole_mesh:
        # the first one stays there, because a part is only found in the mesh of another leaf
        axes = st.sampled_from(["dp", "tp", None])
        for i, x in enumerate(leaves):
            if x is not None and i != on_whole_mesh[0]:
                one = st.sampled_from([Replicate(), *map(Shard, range(x.dim()))])
                where[i] = draw(st.just(where[i]) | st.builds(OnPart, axes, one))
    return Sharding(mesh, where)


@st.composite
def sharded_cases(draw: st.DrawFn, world: int) -> tuple[Case, Sharding]:
    case = draw(cases())
    return case, draw(shardings(case.params, world))


def indices(
    shape: tuple[int, ...], mesh: tuple[int, ...], at: tuple[int, ...], placed: Placements
) -> list[list[int]]:
    """Give the indices of each dim that a rank holds."""
    held = [list(range(size)) for size in shape]
    for size, coordinate, placement in zip(mesh, at, placed or (), strict=False):
        if isinstance(placement, _StridedShard):
            parts = chunks(held[placement.dim], placement.split_factor)
            held[placement.dim] = [i for part in parts for i in chunks(part, size)[coordinate]]
        elif isinstance(placement, Shard):
            held[placement.dim] = chunks(held[placement.dim], size)[coordinate]
    return held


def chunks(items: list[int], number: int) -> list[list[int]]:
    """Split as `torch.chunk` does, and with empty parts where it gives fewer."""
    step = -(-len(items) // number)
    return [items[i * step : (i + 1) * step] for i in range(number)]


def is_box(held: list[list[int]]) -> bool:
    return all(not dim or dim[-1] - dim[0] + 1 == len(dim) for dim in held)


def shard(tensor: torch.Tensor, mesh: DeviceMesh, placed: Placements) -> torch.Tensor:
    """Cut out this rank's part."""
    mesh, placed = own_mesh(mesh, placed)
    for dim, held in enumerate(
        indices(tuple(tensor.shape), tuple(mesh.shape), tuple(mesh.get_coordinate()), placed)
    ):
        tensor = tensor.index_select(dim, torch.tensor(held, dtype=torch.int64))
    return tensor


def place(tensor: Any, mesh: DeviceMesh, placed: Placements) -> Any:
    """Make the DTensor."""
    if tensor is None or placed is None:
        return tensor
    local = shard(tensor, mesh, placed)
    mesh, placed = own_mesh(mesh, placed)
    return DTensor.from_local(
        local,
        mesh,
        placed,
        run_check=False,
        shape=tensor.shape,
        stride=torch.empty(tensor.shape, device="meta").stride(),
    )


def own_mesh(mesh: DeviceMesh, placed: Placements) -> tuple[DeviceMesh, Any]:
    """Give the mesh that a leaf is on, and how it is placed on each of its axes."""
    if not isinstance(placed, OnPart):
        return mesh, placed
    own = mesh_of((mesh.size(),)) if placed.axis is None else mesh[placed.axis]
    return own, (placed.placement,)


_meshes: dict[tuple[int, ...], DeviceMesh] = {}


def mesh_of(shape: tuple[int, ...]) -> DeviceMesh:
    """Give a mesh of all ranks, made once; making it is a collective."""
    if shape not in _meshes:
        names = ("dp", "tp")[: len(shape)]
        _meshes[shape] = init_device_mesh("cpu", shape, mesh_dim_names=names)
    return _meshes[shape]


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
        own, placements_there = own_mesh(mesh, where)
        if where is not None and (mine.placements, mine.device_mesh) != (placements_there, own):
            problems.append(f"{what}{path}: is placed as {mine.placements}, expected {where}")
        local, part = mine if where is None else mine.to_local(), shard(whole, mesh, where)
        if repr(local) != repr(part.contiguous()):
            problems.append(f"{what}{path}: is {local}, expected {part}")
    return problems
