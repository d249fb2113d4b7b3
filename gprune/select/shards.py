"""DTensors as local shards: which slice of a leaf a rank holds, and whether the rank counts it.

An operator takes only tensors, numbers and strings, so it gets the layout of the leaves as a
string. The layout is the same on all ranks. When the operator runs, it computes the slices that
this rank holds from the layout.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from itertools import combinations, product
from typing import Any, NamedTuple

from torch import Tensor
from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Placement, Replicate, Shard
from torch.distributed.tensor._utils import _compute_local_shape_and_global_offset
from torch.distributed.tensor.placement_types import _StridedShard
from torch.utils._python_dispatch import _disable_current_modes

from gprune.inputs import LeafError, unwrap
from gprune.select.blocks import RankedLeaves, ShardSlice
from gprune.select.partition import empty_masks
from gprune.select.ranks import Mesh, Ranks

AxisPlacement = tuple[int, int | None] | None
"""How a leaf is placed along one axis of the mesh. `None` if it is replicated. Otherwise it is two
values: the dim that is split, and the split factor of a `_StridedShard` (`None` for a `Shard`)."""


class LeafLayout(NamedTuple):
    """How the mesh holds one leaf.

    Attributes:
        shape: its shape.
        axes: for each axis of the leaf's own mesh, the range of axes of the call's mesh that this
            axis consists of. Along the other axes of the call's mesh the leaf is replicated.
        placements: how it is placed along each axis of its own mesh.
    """

    shape: tuple[int, ...]
    axes: tuple[tuple[int, int], ...]
    placements: tuple[AxisPlacement, ...]


class Layout(NamedTuple):
    """The mesh and the leaves of a call, as values that are the same on all ranks."""

    mesh: Mesh
    leaves: tuple[LeafLayout, ...]

    def own_mesh(self, leaf: LeafLayout) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Return the shape of a leaf's own mesh, and the coordinate of this rank in it."""
        shape, coordinate, place = [], [], self.mesh.place
        for start, stop in leaf.axes:
            shape.append(math.prod(self.mesh.shape[start:stop]))
            coordinate.append(place // math.prod(self.mesh.shape[stop:]) % shape[-1])
        return tuple(shape), tuple(coordinate)

    def slices(self) -> list[ShardSlice]:
        """Return the slice of each leaf that this rank holds.

        Returns:
            One slice per leaf.

        Raises:
            LeafError: if the shards of a leaf are not contiguous slices.
            ValueError: if this rank is not in the mesh.
        """
        found = []
        for i, leaf in enumerate(self.leaves):
            mesh, coordinate = self.own_mesh(leaf)
            try:
                found.append(_slice(leaf, mesh, coordinate))
            except (ValueError, RuntimeError, NotImplementedError) as error:
                raise LeafError(i, "params", str(error)) from None
        return found

    def is_counted(self) -> list[bool]:
        """Return, for each leaf, whether this rank is the one of its replicas that counts it."""
        return [self._is_first_replica(leaf) for leaf in self.leaves]

    def _is_first_replica(self, leaf: LeafLayout) -> bool:
        pairs = zip(leaf.axes, leaf.placements, strict=True)
        sharded = [axes for axes, placed in pairs if placed is not None]
        return all(
            at == 0 or any(start <= axis < stop for start, stop in sharded)
            for axis, at in enumerate(self.mesh.coordinate)
        )


@lru_cache(maxsize=2**14)
def _slice(leaf: LeafLayout, mesh: tuple[int, ...], coordinate: tuple[int, ...]) -> ShardSlice:
    """Compute the slice of a leaf that a rank holds.

    torch computes the offset and the size of a shard, but does not say whether the shard is one
    contiguous slice. A `Shard` always is. The shards of a `_StridedShard` are, if they cover each
    dim without a gap when sorted by their offsets.

    Args:
        leaf: the leaf.
        mesh: the shape of the leaf's own mesh.
        coordinate: the coordinate of the rank in it.

    Returns:
        The slice.

    Raises:
        ValueError: if the shards are not contiguous slices.
    """
    placements = [_torch_placement(placed) for placed in leaf.placements]
    is_strided = any(isinstance(placement, _StridedShard) for placement in placements)
    slices = {}
    for at in product(*map(range, mesh)) if is_strided else [coordinate]:
        size, start = _compute_local_shape_and_global_offset(leaf.shape, mesh, list(at), placements)
        slices[at] = ShardSlice(leaf.shape, tuple(start), tuple(size))
    for dim in range(len(leaf.shape)) if is_strided else ():
        covered = 0
        for first, length in sorted(
            {(piece.start[dim], piece.size[dim]) for piece in slices.values()}
        ):
            if length and first != covered:
                raise ValueError(
                    f"the shards of this leaf are not contiguous slices: it is placed as "
                    f"{placements} on a mesh of shape {mesh}; redistribute the leaf to Shard or "
                    "Replicate"
                )
            covered += length
    return slices[coordinate]


def _torch_placement(placed: AxisPlacement) -> Placement:
    if placed is None:
        return Replicate()
    dim, factor = placed
    return Shard(dim) if factor is None else _StridedShard(dim, split_factor=factor)


def mesh_of(mesh: DeviceMesh) -> Mesh:
    """Return a `DeviceMesh` as plain values."""
    with _disable_current_modes():  # the ranks are a real tensor, also while tracing
        ranks = mesh.mesh.flatten().tolist()
    return Mesh(tuple(mesh.shape), tuple(ranks), mesh.device_type)


def largest_mesh(leaves: Sequence[Any]) -> DeviceMesh:
    """Return the mesh of a call: the one with most ranks, and among these with most axes."""
    dtensors = [leaf for leaf in unwrap(leaves) if isinstance(leaf, DTensor)]
    meshes = dict.fromkeys(leaf.device_mesh for leaf in dtensors)  # in the same order on all ranks
    return max(meshes, key=lambda mesh: (mesh.size(), mesh.ndim))


def layout_of(leaves: Sequence[Tensor]) -> Layout:
    """Return the layout of the leaves of a call.

    Args:
        leaves: tensors, at least one of them a DTensor; a plain one counts as replicated.

    Returns:
        The layout.

    Raises:
        LeafError: if the mesh of a leaf does not consist of axes of the largest mesh, or a leaf is
            neither sharded nor replicated.
        ValueError: if this rank is not in a mesh.
    """
    largest = largest_mesh(leaves)
    mesh = mesh_of(largest)
    layouts, axes_of = [], dict[DeviceMesh, list[tuple[int, int]] | None]()
    for i, leaf in enumerate(leaves):
        if not isinstance(leaf, DTensor):
            layouts.append(LeafLayout(tuple(leaf.shape), (), ()))
            continue
        if leaf.device_mesh not in axes_of:
            axes_of[leaf.device_mesh] = axes_within(mesh_of(leaf.device_mesh), mesh)
        axes = axes_of[leaf.device_mesh]
        if axes is None:
            raise LeafError(
                i,
                "params",
                f"this leaf is on {leaf.device_mesh}, which does not consist of axes of {largest}, "
                "the mesh of another leaf; distribute both leaves over one mesh",
            )
        layouts.append(LeafLayout(tuple(leaf.shape), tuple(axes), _axis_placements(i, leaf)))
    return Layout(mesh, tuple(layouts))


def axes_within(part: Mesh, whole: Mesh) -> list[tuple[int, int]] | None:
    """Find the axes of one mesh in another.

    FSDP beside tensor parallelism has some leaves on both axes of a mesh, and others on one of them
    only. An axis may also be several neighbouring axes of the other mesh, flattened.

    Args:
        part: the mesh of a leaf.
        whole: the mesh of the call.

    Returns:
        For each axis of `part` the range of axes of `whole` that it consists of, an empty range for
        an axis of one rank. `None` if an axis does not consist of axes of `whole`, or the axes are
        in another order.

    Raises:
        ValueError: if this rank is not in both meshes.
    """
    found: list[tuple[int, int]] = []
    after, num_axes = 0, len(whole.shape)
    for axis, size in enumerate(part.shape):
        ranks = part.ranks_along(axis, axis + 1)
        ranges = [(after, after)] if size == 1 else combinations(range(after, num_axes + 1), 2)
        match = next((r for r in ranges if size == 1 or whole.ranks_along(*r) == ranks), None)
        if match is None:
            return None
        found.append(match)
        after = match[1]
    return found


def _axis_placements(i: int, leaf: DTensor) -> tuple[AxisPlacement, ...]:
    """Return how a leaf is placed along each axis of its own mesh."""
    found: list[AxisPlacement] = []
    for placement in leaf.placements:
        if isinstance(placement, Replicate):
            found.append(None)
        elif isinstance(placement, _StridedShard):  # before Shard, of which it may be a subclass
            found.append((placement.dim, int(placement.split_factor)))
        elif isinstance(placement, Shard):
            found.append((placement.dim, None))
        else:
            message = f"this leaf is placed as {placement}; redistribute it to Shard or Replicate"
            raise LeafError(i, "params", message)
    return tuple(found)


def to_text(layout: Layout) -> str:
    """Return a layout as JSON text."""
    return json.dumps(layout)


@lru_cache(maxsize=2**8)
def from_text(text: str) -> Layout:
    """Return the layout that `to_text` has turned into text."""
    (shape, ranks, device), leaves = json.loads(text)
    placed = [
        LeafLayout(
            tuple(size),
            tuple((start, stop) for start, stop in axes),
            tuple(None if p is None else tuple(p) for p in placements),
        )
        for size, axes, placements in leaves
    ]
    return Layout(Mesh(tuple(shape), tuple(ranks), device), tuple(placed))


@contextmanager
def open_shards(
    scores: list[Tensor],
    masks: list[Tensor],
    absolute: bool,
    seed: Tensor | None,
    call: str,
    layout_text: str,
    arguments: tuple[object, ...],
    needs_masks: bool,
) -> Iterator[tuple[RankedLeaves, Ranks, list[Tensor]]]:
    """Prepare a call on local shards.

    For the arguments see `gprune.select.operators.prepare`; `layout_text` is its `layout`.

    Yields:
        The leaves that are ranked, the ranks, and new masks to be written.

    Raises:
        Exception: the error of any rank, raised on all of them. Its attribute `is_on_all_ranks`
            tells `raise_on_all_ranks` that no rank waits for a message about it.
    """
    layout = from_text(layout_text)
    ready: list[tuple[RankedLeaves, list[Tensor]]] = []

    def describe() -> dict[str, str]:
        number = None if seed is None else int(seed.item())
        slices = layout.slices()
        for i, (leaf, piece, local) in enumerate(zip(layout.leaves, slices, scores, strict=True)):
            if tuple(local.shape) != piece.size:
                raise LeafError(
                    i,
                    "params",
                    f"this leaf has a local shard of shape {tuple(local.shape)}, which must be "
                    f"{piece.size} by the placements of a leaf of shape {leaf.shape}",
                )
        ranked = RankedLeaves(scores, masks, absolute, number, slices, layout.is_counted())
        ranked.check_int64_range()
        ready.append((ranked, empty_masks(scores) if needs_masks else []))
        values = [(x.dtype, x.tolist()) if isinstance(x, Tensor) else x for x in arguments]
        return {
            "call": call,
            "leaves": repr((layout, [x.dtype for x in scores], len(masks))),
            "arguments": repr((absolute, number, values)),
        }

    try:
        ranks = Ranks(layout.mesh)
        ranks.check_same_on_all_ranks(describe)
        [(ranked, kept)] = ready
        yield ranked, ranks, kept
    except Exception as error:
        error.is_on_all_ranks = True  # type: ignore[attr-defined]  # read by gprune.sharding
        raise


def check_same_call(leaves: Sequence[Any], aspects: dict[str, str]) -> None:
    """Check that all ranks of the DTensors' mesh are at the same step of the same call.

    Args:
        leaves: the leaves of the call, at least one of them a DTensor.
        aspects: see `Ranks.check_same_on_all_ranks`.

    Raises:
        Exception: the error of any rank, raised on all of them. Its attribute `is_on_all_ranks`
            tells `raise_on_all_ranks` that no rank waits for a message about it.
    """
    _exchange(leaves, lambda: aspects)


def raise_error(error: Exception, leaves: Sequence[Any]) -> None:
    """Raise an error of this rank on all ranks of the DTensors' mesh.

    The other ranks receive it in the `check_same_on_all_ranks` of their next call.

    Args:
        error: the error.
        leaves: the leaves of the call, at least one of them a DTensor.

    Raises:
        Exception: `error`, or the error of a lower rank.
    """

    def describe() -> dict[str, str]:
        raise error

    _exchange(leaves, describe)


def _exchange(leaves: Sequence[Any], describe: Callable[[], dict[str, str]]) -> None:
    try:
        mesh = mesh_of(largest_mesh(leaves))
        with temporarily_clear_interpreter_stack():  # `torch.func.grad` would wrap the messages
            Ranks(mesh).check_same_on_all_ranks(describe)
    except Exception as shared:
        shared.is_on_all_ranks = True  # type: ignore[attr-defined]  # read by gprune.sharding
        raise
