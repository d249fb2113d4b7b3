"""The ranks: adding up what each has counted, and raising on all of them what is wrong on one.

There is one kind of message, a few integers that all ranks add up, or of which all learn the
largest, one mesh axis after another. What a rank computes between two messages it computes while it
makes the second: if that fails, it sends the failure in place of the counts, and nobody waits for
one who will not come.
"""

from __future__ import annotations

import builtins
import hashlib
import json
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import _resolve_process_group

from gprune.select.errors import LeafError

TEXT = 2**12
"""Bytes of an error message; more are cut off."""

ASPECTS = ("structure", "leaves", "arguments")
"""What must be the same on all ranks."""


class Ranks(NamedTuple):
    """Those who hold the shards.

    Attributes:
        groups: the names of this rank's process groups, one for each axis of the mesh.
        device: the type of the device on which messages travel.
    """

    groups: tuple[str, ...]
    device: str

    def agree(self, describe: Callable[[], dict[str, str]]) -> None:
        """Open a call: nobody has failed so far, and all have been called with the same.

        Args:
            describe: checks what this rank was given, and describes each of `ASPECTS`.

        Raises:
            ValueError: if a description differs between ranks.
            RuntimeError: if a rank is lost.
        """
        failure, digests = None, [0] * len(ASPECTS)
        try:
            descriptions = describe()
            digests = [_digest(descriptions[aspect]) for aspect in ASPECTS]
        except Exception as error:
            failure = error
        message = [int(failure is not None), *digests, *(-digest for digest in digests)]
        found = self._meet("agreeing on the call", message, dist.ReduceOp.MAX).tolist()
        if found[0]:
            raise self._failure(failure)
        highest, lowest = found[1 : 1 + len(ASPECTS)], found[1 + len(ASPECTS) :]
        differ = [a for a, high, low in zip(ASPECTS, highest, lowest, strict=True) if high != -low]
        if differ:
            raise ValueError(
                f"all ranks must be called with the same, got different {' and '.join(differ)}; "
                "paths, shapes, dtypes, placements, amounts and seeds must be equal on all ranks"
            )

    def total(self, phase: str, size: int, count: Callable[[], Tensor]) -> Tensor:
        """Add up what all ranks count.

        Args:
            phase: what is going on, to be named if a rank is lost.
            size: how many counts there are.
            count: counts on this rank, int64.

        Returns:
            The sums, on the CPU.

        Raises:
            RuntimeError: if a rank is lost; what counting raises on one rank is raised on all.
        """
        failure, counts = None, [0] * size
        try:
            counts = count().tolist()
        except Exception as error:
            failure = error
        found = self._meet(phase, [int(failure is not None), *counts], dist.ReduceOp.SUM)
        if found[0]:
            raise self._failure(failure)
        return found[1:]

    def all_do(self, phase: str, act: Callable[[], None]) -> None:
        """Do something on all ranks, which fails on all or on none."""

        def do() -> Tensor:
            act()
            return torch.empty(0, dtype=torch.int64)

        self.total(phase, 0, do)

    def _failure(self, own: Exception | None) -> Exception:
        """Give the error of the lowest rank that has one; every rank is here."""
        rank, phase = dist.get_rank(), "telling what went wrong"
        claim = 0 if own is None else dist.get_world_size() - rank
        [first] = self._meet(phase, [claim], dist.ReduceOp.MAX).tolist()
        text = _encode(own, rank) if own is not None and claim == first else bytes(TEXT)
        error = _decode(bytes(self._meet(phase, list(text), dist.ReduceOp.SUM).tolist()))
        return own if own is not None and claim == first else error

    def _meet(self, phase: str, numbers: list[int], op: dist.ReduceOp.RedOpType) -> Tensor:
        message = torch.tensor(numbers, dtype=torch.int64, device=self.device)
        try:
            for name in self.groups:
                group = _resolve_process_group(name)  # type: ignore[arg-type]  # a NewType of str
                dist.all_reduce(message, op, group=group)
            return message.cpu()
        except RuntimeError as error:
            raise RuntimeError(f"gprune lost another rank while {phase}") from error


def _digest(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=7).digest(), "big")


def _encode(error: Exception, rank: int) -> bytes:
    known = {"kind": type(error).__name__, "message": str(error), "rank": rank, **vars(error)}
    room = TEXT
    while len(text := json.dumps(known, default=str).encode()) > TEXT:
        room //= 2
        known["message"] = known["message"][:room]
    return text.ljust(TEXT, b"\0")


def _decode(text: bytes) -> Exception:
    known = json.loads(text.rstrip(b"\0"))
    kind = getattr(builtins, known["kind"], RuntimeError)
    if "leaf" in known:
        error: Exception = LeafError(known["leaf"], known["what"], known["message"])
    elif isinstance(kind, type) and issubclass(kind, Exception):
        error = kind(known["message"])
    else:
        error = RuntimeError(f"{known['kind']}: {known['message']}")
    error.add_note(f"on rank {known['rank']}")
    return error
