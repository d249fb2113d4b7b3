"""The ranks that hold the shards: summing their counts, and raising errors on all of them.

Every message is an all-reduce (sum or maximum) of a few integers, first along one axis of the mesh,
then along the next. Only the text of an error is sent by an all-gather.

All work between two messages is done by the function that computes the second one, such as `count`
of `Ranks.sum`. If this function raises an error on one rank, that rank still sends a message, which
says that it has failed. So no rank waits for a message that never comes.
"""

from __future__ import annotations

import hashlib
import math
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import distributed_c10d

from gprune.inputs import LeafError

ASPECTS = {
    "step": "the due steps of a pruner (due must give the same answer on all ranks)",
    "call": "the function or the paths of the leaves",
    "leaves": "the shapes, dtypes or placements of the tensors",
    "arguments": "the amounts, seeds or other arguments",
}
"""What must be the same on all ranks, and how errors name it."""

MAX_TEXT = 10_000
"""The most characters of an error's text that are sent."""


class Mesh(NamedTuple):
    """A mesh of ranks, as values that are the same on all of them.

    So a graph that was compiled on one rank can be loaded by another.

    Attributes:
        shape: the number of ranks along each axis.
        ranks: the global ranks, in row-major order.
        device: the device type of the messages.
    """

    shape: tuple[int, ...]
    ranks: tuple[int, ...]
    device: str

    @property
    def place(self) -> int:
        """The place of this rank in `ranks`.

        Raises:
            ValueError: if this rank is not in the mesh.
        """
        rank = dist.get_rank()
        if rank not in self.ranks:
            raise ValueError(
                f"rank {rank} holds no shard: it is not in the mesh of the ranks {self.ranks}; "
                "make this call on the ranks of the mesh only"
            )
        return self.ranks.index(rank)

    @property
    def coordinate(self) -> tuple[int, ...]:
        """The index of this rank along each axis."""
        rest, coordinate = self.place, list[int]()
        for size in reversed(self.shape):
            coordinate.insert(0, rest % size)
            rest //= size
        return tuple(coordinate)

    def groups(self) -> list[dist.ProcessGroup]:
        """Return the process group of this rank along each axis."""
        axes = range(len(self.shape))
        return [_find_group(self.ranks_along(axis, axis + 1), self.device) for axis in axes]

    def ranks_along(self, start: int, stop: int) -> list[int]:
        """Return this rank and those that differ from it along the axes `start` to `stop - 1` only.

        Args:
            start: the first of consecutive axes.
            stop: the axis after the last.

        Returns:
            The global ranks, in row-major order.
        """
        stride, count = math.prod(self.shape[stop:]), math.prod(self.shape[start:stop])
        first = self.place - self.place // stride % count * stride
        return [self.ranks[first + i * stride] for i in range(count)]


def _find_group(ranks: list[int], device: str) -> dist.ProcessGroup:
    """Return the first process group of these ranks.

    All ranks create groups in the same order, so all of them find the same group.

    Args:
        ranks: the global ranks of the group.
        device: the device type of its messages.

    Returns:
        The group.

    Raises:
        RuntimeError: if there is no such group.
    """
    for group in distributed_c10d._world.pg_map:
        if sorted(dist.get_process_group_ranks(group)) == sorted(ranks) and any(
            kind.type == device for kind in group._device_types
        ):
            return group
    raise RuntimeError(f"there is no process group of the ranks {ranks} for {device}")


class Ranks:
    """Sums counts over the ranks of a mesh; a `gprune.select.refine.Reduce`."""

    max_bits = 10
    max_pass_bits = 10
    max_counts = 2**16

    def __init__(self, mesh: Mesh) -> None:
        self._groups, self._device = mesh.groups(), mesh.device
        self.num_processes = math.prod(mesh.shape)
        self.process = mesh.place

    def check_same_on_all_ranks(self, describe: Callable[[], dict[str, str]]) -> None:
        """Check that all ranks make the same call, and that none has an error in its arguments.

        Args:
            describe: checks the arguments of this rank, and returns a text for each of the
                `ASPECTS`. An aspect that it leaves out counts as an empty text.

        Raises:
            ValueError: if a description differs between ranks.
            RuntimeError: if a rank is lost.
            Exception: if `describe` raises it on some rank.
        """
        failure, digests = None, [0] * len(ASPECTS)
        try:
            described = describe()
            digests = [_digest(described.get(aspect, "")) for aspect in ASPECTS]
        except Exception as error:
            failure = error
        numbers = [int(failure is not None), *digests, *(-digest for digest in digests)]
        message = torch.tensor(numbers, device=self._device)
        phase = "checking that all ranks make the same call"
        found = self._all_reduce(phase, message, dist.ReduceOp.MAX).tolist()
        if found[0]:
            raise self._shared_error(failure)
        highest, lowest = found[1 : 1 + len(ASPECTS)], found[1 + len(ASPECTS) :]
        rows = zip(ASPECTS.values(), highest, lowest, strict=True)
        differ = [aspect for aspect, high, low in rows if high != -low]
        if differ:
            raise ValueError(
                f"all ranks must make the same call, but {' and '.join(differ)} differ "
                "between ranks"
            )

    def sum(self, phase: str, size: int, count: Callable[[], Tensor]) -> Tensor:
        """Sum counts over the ranks.

        Args:
            phase: what the search is doing, for the error if a rank is lost.
            size: how many counts there are.
            count: returns the counts of this rank, int64, 1-D.

        Returns:
            The sums, on the CPU.

        Raises:
            RuntimeError: if a rank is lost.
            Exception: if `count` raises it on some rank.
        """
        failure, message = None, torch.zeros(size + 1, dtype=torch.int64, device=self._device)
        try:
            message[1:] = count()
        except Exception as error:
            failure = error
        message[0] = int(failure is not None)
        found = self._all_reduce(phase, message, dist.ReduceOp.SUM)
        if found[0]:
            raise self._shared_error(failure)
        return found[1:].clone()  # a copy, because a compiled graph needs aligned memory

    def _shared_error(self, error: Exception | None) -> Exception:
        """Return the error of the lowest rank that has one. All ranks must call this."""
        rank = dist.get_rank()
        first = None if error is None else _describe(error, rank)
        try:
            for group in self._groups:
                found: list[Any] = [None] * dist.get_world_size(group)
                dist.all_gather_object(found, first, group)
                first = min(filter(None, found), key=lambda known: known["rank"], default=None)
        except RuntimeError as lost:
            raise RuntimeError("gprune lost another rank while sending an error") from lost
        if first is None:
            raise AssertionError("no rank has an error to send")
        return error if error is not None and first["rank"] == rank else _rebuild(first)

    def _all_reduce(self, phase: str, message: Tensor, op: dist.ReduceOp.RedOpType) -> Tensor:
        try:
            for group in self._groups:
                dist.all_reduce(message, op, group=group)
            return message.cpu()
        except RuntimeError as error:
            raise RuntimeError(f"gprune lost another rank while {phase}") from error


def _digest(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=7).digest(), "big")


def _describe(error: Exception, rank: int) -> dict[str, Any]:
    """Describe an error by plain values, which every rank can unpickle."""
    known = {"rank": rank, "module": type(error).__module__, "kind": type(error).__qualname__}
    if isinstance(error, LeafError):
        kind = error.kind
        known |= {"message": error.message, "module": kind.__module__, "kind": kind.__qualname__}
        return known | {"leaf": error.leaf, "tree": error.tree}
    try:
        known["message"] = str(error)[:MAX_TEXT]
    except Exception:
        known["message"] = "its text cannot be shown"
    are_plain = all(type(arg) in (str, int, float, bool, type(None)) for arg in error.args)
    known["args"] = error.args if are_plain and len(repr(error.args)) <= MAX_TEXT else []
    return known


def _rebuild(known: dict[str, Any]) -> Exception:
    """Return the error that another rank has described: of the same class, with the same text.

    If the class cannot be made from plain values, the error is a RuntimeError that names the class.
    """
    kind: Any = getattr(sys.modules.get(known["module"]), known["kind"], None)
    if "leaf" in known:
        error: Exception = LeafError(known["leaf"], known["tree"], known["message"], kind)
    else:
        error = _remake(kind, known) or RuntimeError(f"{known['kind']}: {known['message']}")
    error.add_note(f"on rank {known['rank']}")
    return error


def _remake(kind: Any, known: dict[str, Any]) -> Exception | None:
    """Make an error of a class with the described text, or return `None` if that fails."""
    if not isinstance(kind, type) or not issubclass(kind, Exception):
        return None
    for args in (known["args"], [known["message"]]):
        try:
            error = kind(*args)
            if str(error) == known["message"]:
                return error
        except Exception:  # it takes other arguments
            continue
    return None
