"""Ranks that wait for work: started once for each world size, joined by gloo, fed many cases."""

from __future__ import annotations

import functools
import multiprocessing
import os
import pickle
import tempfile
import traceback
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import Connection
from typing import Any

import torch
import torch.distributed as dist

PATIENCE = 60
"""Seconds until a rank that does not answer counts as hanging, and those of its process group."""

CONTEXT = multiprocessing.get_context("forkserver")
PRELOADED = ["tests.support.workers", "tests.support.sharded_cases", "torch._dynamo"]
"""Modules that the server imports once. Every rank is forked from it and needs nearly all of them.

Together they take about three seconds of CPU time to import, and a session starts dozens of ranks.
"""
RUNNING: list[Workers] = []


class Workers:
    """The ranks of one process group."""

    def __init__(self, world: int, patience: int = PATIENCE) -> None:
        CONTEXT.set_forkserver_preload(PRELOADED)
        self.patience = patience
        self.processes, self.pipes = [], []
        meeting = os.path.join(tempfile.mkdtemp(), "meeting")
        for rank in range(world):
            here, there = CONTEXT.Pipe()
            process = CONTEXT.Process(
                target=_work, args=(rank, world, meeting, patience, there), daemon=True
            )
            process.start()
            there.close()
            self.processes.append(process)
            self.pipes.append(here)

    def run(self, function: Callable[..., Any], *args: Any) -> list[Any]:
        """Call a function of a module on every rank; give what each returns or raises."""
        text = pickle.dumps((function, args))
        for pipe in self.pipes:
            pipe.send_bytes(text)
        return [self._answer(rank, pipe) for rank, pipe in enumerate(self.pipes)]

    def _answer(self, rank: int, pipe: Connection) -> Any:
        if not pipe.poll(2 * self.patience):
            self.stop()
            raise TimeoutError(f"rank {rank} does not answer")
        try:
            return pickle.loads(pipe.recv_bytes())
        except EOFError:
            return None  # it has exited

    def stop(self) -> None:
        """Let them go, so that what they have covered is written down; kill those who hang."""
        for pipe in self.pipes:
            pipe.close()
        for process in self.processes:
            process.join(10)
            process.kill()
        started.cache_clear()


@functools.cache
def started(world: int, patience: int = PATIENCE) -> Workers:
    """Give the workers of a world size, started at first use."""
    RUNNING.append(Workers(world, patience))
    return RUNNING[-1]


def stop_all() -> None:
    """Stop the workers of every world size; at the end of a session."""
    while RUNNING:
        RUNNING.pop().stop()


def _work(rank: int, world: int, meeting: str, patience: int, pipe: Connection) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{meeting}",
        rank=rank,
        world_size=world,
        timeout=timedelta(seconds=patience),
    )
    while True:
        try:
            function, args = pickle.loads(pipe.recv_bytes())
        except EOFError:
            return
        try:
            answer = function(*args)
        except Exception as error:
            error.add_note(traceback.format_exc())
            answer = error
        pipe.send_bytes(pickle.dumps(answer))
