"""Layouts: where the local shards of a list of leaves lie, and who counts them.

An operator takes plain values, so a layout goes to the operators on shards as a text, in which the
boxes are worked out once they are needed: offsets cannot be computed while a graph is traced.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import lru_cache
from itertools import product
from typing import Any, NamedTuple

from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Placement, Replicate, Shard
from torch.distributed.tensor._utils import _compute_local_shape_and_global_offset
from torch.distributed.tensor.placement_types import _StridedShard

from gprune.select.boxes import Box
from gprune.select.errors import LeafError
from gprune.select.sharded.ranks import Ranks


class Placed(NamedTuple):
    """A leaf: its shape, and for each axis of the mesh how it is placed.

    A placement is the dim that is split and the split factor of a `_StridedShard`, or `None`.
    """

    shape: tuple[int, ...]
    placements: tuple[tuple[int, int | None] | None, ...]


class Layout(NamedTuple):
    """The leaves of a call, seen from one rank.

    Attributes:
        groups: the names of this rank's process groups, one for each axis of the mesh.
        device: the type of the device on which the mesh communicates.
        mesh: the shape of the mesh.
        coordinate: of this rank in it.
        leaves: what is the same on all ranks.
    """

    groups: tuple[str, ...]
    device: str
    mesh: tuple[int, ...]
    coordinate: tuple[int, ...]
    leaves: tuple[Placed, ...]

    @property
    def ranks(self) -> Ranks:
        """Those who hold the shards."""
        return Ranks(self.groups, self.device)

    def shards(self) -> tuple[list[Box], list[bool]]:
        """Work out the shards of this rank.

        Returns:
            The box of each in its leaf, and whether it is this rank that counts its entries.

        Raises:
            LeafError: if the shards of a leaf are not boxes.
        """
        boxes, owned = [], []
        for i, leaf in enumerate(self.leaves):
            try:
                boxes.append(_box(leaf, self.mesh, self.coordinate))
            except (ValueError, RuntimeError, NotImplementedError) as error:
                raise LeafError(i, "params", str(error)) from None
            axes = zip(leaf.placements, self.coordinate, strict=True)
            owned.append(all(placed is not None or at == 0 for placed, at in axes))
        return boxes, owned


@lru_cache(maxsize=2**14)
def _box(leaf: Placed, mesh: tuple[int, ...], coordinate: tuple[int, ...]) -> Box:
    """Work out where the shard of a rank lies; the one place that asks torch for offsets.

    torch tells where a shard begins and how large it is, and not whether it is in one piece. Those
    of a `Shard` are. Else all are where, laid out in order, they cover each dim without a gap.

    Args:
        leaf: the leaf.
        mesh: the shape of the mesh.
        coordinate: of the rank in it.

    Returns:
        The box of the shard.

    Raises:
        ValueError: if the shards are not boxes.
    """
    placements = [_placement(placed) for placed in leaf.placements]
    strided = any(isinstance(placement, _StridedShard) for placement in placements)
    boxes = {}
    for at in product(*map(range, mesh)) if strided else [coordinate]:
        size, start = _compute_local_shape_and_global_offset(leaf.shape, mesh, list(at), placements)
        boxes[at] = Box(leaf.shape, tuple(start), tuple(size))
    for dim in range(len(leaf.shape)) if strided else ():
        reached = 0
        for first, length in sorted({(box.start[dim], box.size[dim]) for box in boxes.values()}):
            if length and first != reached:
                raise ValueError(
                    f"has local shards in several pieces, placed as {placements} on a mesh of "
                    f"shape {mesh}; redistribute it so that each is one contiguous box"
                )
            reached += length
    return boxes[coordinate]


def _placement(placed: tuple[int, int | None] | None) -> Placement:
    if placed is None:
        return Replicate()
    dim, factor = placed
    return Shard(dim) if factor is None else _StridedShard(dim, split_factor=factor)


def mesh_of(leaves: Sequence[Any]) -> DeviceMesh:
    """Give the mesh of the first DTensor."""
    return next(leaf.device_mesh for leaf in leaves if isinstance(leaf, DTensor))


def ranks_of(mesh: DeviceMesh) -> Ranks:
    """Give the ranks of a mesh."""
    groups = tuple(group.group_name for group in mesh.get_all_groups())
    return Ranks(groups, mesh.device_type)


def layout_of(leaves: Sequence[Tensor]) -> Layout:
    """Describe the leaves of a call.

    Args:
        leaves: tensors, at least one of them a DTensor; a plain one is a replica.

    Returns:
        The layout.

    Raises:
        LeafError: if a leaf has another mesh than the first, or is neither sharded nor replicated.
        ValueError: if this rank is not in the mesh.
    """
    mesh = mesh_of(leaves)
    coordinate = mesh.get_coordinate()
    if coordinate is None:
        raise ValueError(f"this rank holds no shard: it is not part of {mesh}")
    placed = tuple(
        Placed(tuple(leaf.shape), _placed(i, leaf, mesh)) for i, leaf in enumerate(leaves)
    )
    return Layout(*ranks_of(mesh), tuple(mesh.shape), tuple(coordinate), placed)


def _placed(i: int, leaf: Tensor, mesh: DeviceMesh) -> tuple[tuple[int, int | None] | None, ...]:
    if not isinstance(leaf, DTensor):
        return (None,) * mesh.ndim
    if leaf.device_mesh != mesh:
        raise LeafError(i, "params", f"is on {leaf.device_mesh}, another leaf is on {mesh}")
    found: list[tuple[int, int | None] | None] = []
    for placement in leaf.placements:
        if isinstance(placement, Replicate):
            found.append(None)
        elif isinstance(placement, _StridedShard):  # before Shard: it may be a kind of it
            found.append((placement.dim, int(placement.split_factor)))
        elif isinstance(placement, Shard):
            found.append((placement.dim, None))
        else:
            raise LeafError(
                i, "params", f"is placed as {placement}; redistribute it to Shard or Replicate"
            )
    return tuple(found)


def to_text(layout: Layout) -> str:
    """Write a layout down."""
    return json.dumps(layout)


@lru_cache(maxsize=2**8)
def from_text(text: str) -> Layout:
    """Read what `to_text` has written."""
    groups, device, mesh, coordinate, leaves = json.loads(text)
    placed = [
        Placed(tuple(shape), tuple(None if p is None else tuple(p) for p in placements))
        for shape, placements in leaves
    ]
    return Layout(tuple(groups), device, tuple(mesh), tuple(coordinate), tuple(placed))
