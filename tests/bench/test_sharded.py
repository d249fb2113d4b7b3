"""Two processes of one thread, each with half of the weights, against one process with all."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor, Shard

import gprune as gp
from tests.bench.conftest import Report
from tests.support.sharded_cases import mesh_of
from tests.support.workers import Workers

pytestmark = pytest.mark.bench

LEAVES, SHAPE = 24, (1024, 2048)


def seconds(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def sharded_and_whole(rounds: int) -> tuple[float, float]:
    """Run both sides in turn; the first rank alone has the whole, while the other waits idly."""
    rank, mesh = dist.get_rank(), mesh_of((2,))
    torch.manual_seed(0)
    whole = [torch.randn(SHAPE) for _ in range(LEAVES)]
    shards = [DTensor.from_local(leaf.chunk(2)[rank].clone(), mesh, [Shard(0)]) for leaf in whole]
    together, alone = [], []
    for _ in range(rounds + 1):
        dist.barrier()
        together.append(seconds(lambda: gp.global_unstructured(shards, amount=0.5)))
        dist.barrier()
        if rank == 0:
            alone.append(seconds(lambda: gp.global_unstructured(whole, amount=0.5)))
    masks = gp.global_unstructured(shards, amount=0.5)
    assert gp.num_pruned(masks) == sum(leaf.numel() for leaf in whole) // 2
    return median(together[1:]), median(alone[1:] or [0.0])


def test_two_processes(report: Report) -> None:
    workers = Workers(2)
    try:
        answers = workers.run(sharded_and_whole, 9)
    finally:
        workers.stop()
    assert not [answer for answer in answers if isinstance(answer, Exception)]
    slower, whole = max(sharded for sharded, _ in answers), answers[0][1]
    report("two processes with half each over one with all", slower / whole, at_most=0.7)
