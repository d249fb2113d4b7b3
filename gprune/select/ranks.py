"""The processes that hold the shards: summing counts, and raising errors on every rank.

There is one kind of message: a few integers that all ranks sum, or take the largest of, along one
axis of the mesh after another. Whatever a rank computes between two messages, it computes while it
makes the second. If that fails, it sends the failure in place of the counts, so no rank waits for
another that will not come.
"""

from __future__ import annotations

import builtins
import hashlib
import json
import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import distributed_c10d

from gprune.inputs import LeafError

TEXT = 2**12
"""Bytes of an error that is sent; more are cut off."""


class Mesh(NamedTuple):
    """A mesh of ranks, described alike on all of them.

    Nothing here belongs to one rank, so a compiled graph may hold it and be loaded by any rank.

    Attributes:
        shape: how many ranks there are along each axis.
        ranks: the global ranks, in row-major order.
        device: the type of the device on which messages travel.
    """

    shape: tuple[int, ...]
    ranks: tuple[int, ...]
    device: str

    @property
    def coordinate(self) -> tuple[int, ...]:
        """Where this rank is in the mesh.

        Raises:
            ValueError: if this rank is not in the mesh.
        """
        rank = dist.get_rank()
        if rank not in self.ranks:
            raise ValueError(f"rank {rank} holds no shard: it is not in the mesh {self.ranks}")
        place, coordinate = self.ranks.index(rank), list[int]()
        for size in reversed(self.shape):
            coordinate.insert(0, place % size)
            place //= size
        return tuple(coordinate)

    def groups(self) -> list[dist.ProcessGroup]:
        """Give the process group of this rank along each axis."""
        return [_find_group(ranks, self.device) for ranks in self._neighbours()]

    def _neighbours(self) -> list[list[int]]:
        """Give, for each axis, the ranks that differ from this one along it alone."""
        place, stride, found = self.ranks.index(dist.get_rank()), 1, list[list[int]]()
        for size, at in zip(reversed(self.shape), reversed(self.coordinate), strict=True):
            first = place - at * stride
            found.insert(0, [self.ranks[first + i * stride] for i in range(size)])
            stride *= size
        return found


def _find_group(ranks: list[int], device: str) -> dist.ProcessGroup:
    """Find the first process group of these ranks; all of them have made it in the same order."""
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
        self.process = mesh.ranks.index(dist.get_rank())

    def check_same_on_all_ranks(self, describe: Callable[[], dict[str, str]]) -> None:
        """Start a call: no rank has failed so far, and all have been called alike.

        Args:
            describe: checks what this rank was given, and describes it, by aspects that must be
                the same on all ranks: `structure`, `leaves` and `arguments`.

        Raises:
            ValueError: if a description differs between ranks.
            RuntimeError: if a rank is lost.
        """
        aspects = "structure", "leaves", "arguments"
        failure, digests = None, [0] * len(aspects)
        try:
            described = describe()
            digests = [_digest(described[aspect]) for aspect in aspects]
        except Exception as error:
            failure = error
        numbers = [int(failure is not None), *digests, *(-digest for digest in digests)]
        message = torch.tensor(numbers, device=self._device)
        phase = "checking that all ranks are called alike"
        found = self._all_reduce(phase, message, dist.ReduceOp.MAX).tolist()
        if found[0]:
            raise self._shared_error(failure)
        highest, lowest = found[1 : 1 + len(aspects)], found[1 + len(aspects) :]
        differ = [a for a, high, low in zip(aspects, highest, lowest, strict=True) if high != -low]
        if differ:
            raise ValueError(
                f"all ranks must be called alike, got different {' and '.join(differ)}; paths, "
                "shapes, dtypes, placements, amounts and seeds must be equal on all ranks"
            )

    def sum(self, phase: str, size: int, count: Callable[[], Tensor]) -> Tensor:
        """Sum counts over the ranks.

        Args:
            phase: what is going on, to be named if a rank is lost.
            size: how many counts there are.
            count: counts on this rank, int64, 1-D.

        Returns:
            The sums, on the CPU.

        Raises:
            RuntimeError: if a rank is lost. What `count` raises on one rank is raised on all.
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
        return found[1:].clone()  # what a compiled graph gets must be aligned

    def raise_error(self, error: Exception) -> None:
        """Raise an error on all ranks, which start a call or will.

        Raises:
            Exception: `error`, or that of a lower rank.
        """

        def describe() -> dict[str, str]:
            raise error

        self.check_same_on_all_ranks(describe)

    def _shared_error(self, own: Exception | None) -> Exception:
        """Give the error of the lowest rank that has one; every rank is here."""
        rank, phase = dist.get_rank(), "sending an error"
        claim = 0 if own is None else dist.get_world_size() - rank
        claims = torch.tensor([claim], device=self._device)
        [first] = self._all_reduce(phase, claims, dist.ReduceOp.MAX).tolist()
        is_mine = own is not None and claim == first
        text = _encode(own, rank) if own is not None and is_mine else bytes(TEXT)
        letters = torch.tensor(list(text), device=self._device)
        sent = bytes(self._all_reduce(phase, letters, dist.ReduceOp.SUM).tolist())
        return own if own is not None and is_mine else _decode(sent)

    def _all_reduce(self, phase: str, message: Tensor, op: dist.ReduceOp.RedOpType) -> Tensor:
        try:
            for group in self._groups:
                dist.all_reduce(message, op, group=group)
            return message.cpu()
        except RuntimeError as error:
            raise RuntimeError(f"gprune lost another rank while {phase}") from error


def _digest(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=7).digest(), "big")


def _encode(error: Exception, rank: int) -> bytes:
    known = {"kind": type(error).__name__, "message": str(error), "rank": rank, **vars(error)}
    size = TEXT
    while len(text := json.dumps(known, default=str).encode()) > TEXT:
        size //= 2
        known["message"] = known["message"][:size]
    return text.ljust(TEXT, b"\0")


def _decode(text: bytes) -> Exception:
    known = json.loads(text.rstrip(b"\0"))
    kind = getattr(builtins, known["kind"], RuntimeError)
    if "leaf" in known:
        error: Exception = LeafError(known["leaf"], known["tree"], known["message"])
    elif isinstance(kind, type) and issubclass(kind, Exception):
        error = kind(known["message"])
    else:
        error = RuntimeError(f"{known['kind']}: {known['message']}")
    error.add_note(f"on rank {known['rank']}")
    return error
