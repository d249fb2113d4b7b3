"""Ranked leaves for tests of gprune/select: whole, or in shards of several processes.

The processes are threads, and their `Reduce` sums counts in memory. What they find is what the
ranks of a process group would find, without the cost of starting one.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from hypothesis import strategies as st
from torch import Tensor

from gprune.select.blocks import RankedLeaves, ShardSlice
from gprune.select.keys import FORMATS, keys_of, to_bits, to_float64_keys
from gprune.select.refine import OneProcess, Reduce
from tests.support import fuzz

T = TypeVar("T")
Array = np.ndarray


class Ranked(NamedTuple):
    """Ranked leaves, and what is true of them.

    Attributes:
        leaves: the leaves.
        keys: the key of every entry, 1-D of the whole tree.
        prior: whether each entry is a candidate.
        starts: the flat index of each leaf's first entry, then the number of entries.
    """

    leaves: RankedLeaves
    keys: Array
    prior: Array
    starts: list[int]

    def span(self, leaves: range) -> slice:
        """The flat indices of some leaves."""
        return slice(self.starts[leaves.start], self.starts[leaves.stop])

    def candidates(self, leaves: range) -> Array:
        """The flat indices of the candidates of some leaves, ascending."""
        own = self.span(leaves)
        return np.flatnonzero(self.prior[own]) + own.start

    def order(self, leaves: range) -> Array:
        """The flat indices of these candidates, in the order in which they are pruned."""
        found = self.candidates(leaves)
        return found[np.argsort(self.keys[found], kind="stable")]


def rank(tree: fuzz.Tree, seed: int | None = None) -> Ranked:
    """Rank the prunable leaves of a random tree, by value or magnitude, or by random draws."""
    case = fuzz.build(tree)
    values = [x for x in case.values if x is not None]
    priors = [] if case.masks is None else [x for x in case.masks if x is not None]
    leaves = RankedLeaves(values, priors, tree.ranking != "scores", seed)
    return of(leaves, case.prior)


def of(leaves: RankedLeaves, prior: list[Array] | None = None) -> Ranked:
    if prior is None:
        kept = [np.ones(tuple(x.shape), bool) for x in leaves.scores]
        prior = [x.numpy() for x in leaves.priors] if leaves.priors else kept
    sizes = [x.numel() for x in leaves.scores]
    starts = [0, *np.cumsum(sizes, dtype=np.int64).tolist()]
    return Ranked(leaves, np.concatenate(true_keys(leaves)), fuzz.flat(prior), starts)


def true_keys(leaves: RankedLeaves) -> list[Array]:
    """The keys of each leaf, made one leaf at a time."""
    if leaves.seed is not None:
        from gprune.select.counter_rng import draw_integers

        return [
            draw_integers(leaves.seed, i, torch.arange(x.numel())).numpy()
            for i, x in enumerate(leaves.scores)
        ]
    keys = []
    for x in leaves.scores:
        form = FORMATS[x.dtype]
        own = keys_of(to_bits(x.reshape(-1), form), form, absolute=leaves.absolute)
        keys.append((own if form == leaves.common else to_float64_keys(own, form)).long().numpy())
    return keys


def scopes(num_leaves: int) -> list[range]:
    """All leaves, and each of them."""
    return [range(num_leaves), *(range(i, i + 1) for i in range(num_leaves))]


trees = fuzz.trees(large=False)


# --- several processes ----------------------------------------------------------------------


class Shards(NamedTuple):
    """How leaves are split over processes.

    Attributes:
        num_processes: how many processes there are.
        dims: for each leaf the dim that is split, or `None` if every process has the whole leaf.
        ends: for each leaf where the parts begin and end.
        owners: the process that counts a leaf that is not split.
    """

    num_processes: int
    dims: list[int | None]
    ends: list[list[int]]
    owners: list[int]


@st.composite
def shards(draw: st.DrawFn, scores: list[Tensor]) -> Shards:
    num = draw(st.integers(2, 3))
    dims: list[int | None] = []
    ends, owners = [], []
    for leaf in scores:
        dim = draw(st.none() | st.integers(0, leaf.dim() - 1)) if leaf.dim() else None
        size = 0 if dim is None else leaf.shape[dim]
        inner = sorted(draw(st.lists(st.integers(0, size), min_size=num - 1, max_size=num - 1)))
        dims.append(dim)
        ends.append([0, *inner, size])
        owners.append(draw(st.integers(0, num - 1)))
    return Shards(num, dims, ends, owners)


def local(leaves: RankedLeaves, split: Shards, process: int) -> RankedLeaves:
    """The leaves of one process."""

    def own(leaf: int, tensor: Tensor) -> Tensor:
        dim = split.dims[leaf]
        if dim is None:
            return tensor
        first, last = split.ends[leaf][process : process + 2]
        return tensor.narrow(dim, first, last - first)

    scores = [own(i, x) for i, x in enumerate(leaves.scores)]
    slices = []
    for i, (whole, part) in enumerate(zip(leaves.scores, scores, strict=True)):
        start = [0] * whole.dim()
        if (dim := split.dims[i]) is not None:
            start[dim] = split.ends[i][process]
        slices.append(ShardSlice(tuple(whole.shape), tuple(start), tuple(part.shape)))
    counted = [
        dim is not None or owner == process
        for dim, owner in zip(split.dims, split.owners, strict=True)
    ]
    priors = [own(i, x) for i, x in enumerate(leaves.priors)]
    return RankedLeaves(scores, priors, leaves.absolute, leaves.seed, slices, counted, leaves.exact)


class ThreadReduce:
    """The reduction of one of several threads, each of which stands for a process."""

    def __init__(self, process: int, shared: Processes) -> None:
        self.process, self.num_processes = process, shared.num_processes
        self.max_bits = OneProcess.max_bits
        self.max_pass_bits = OneProcess.max_pass_bits
        self.max_counts = OneProcess.max_counts
        self._shared = shared

    def sum(self, phase: str, size: int, count: Callable[[], Tensor]) -> Tensor:
        return self._shared.sum(self.process, phase, size, count())


class Processes:
    """Threads that sum their counts.

    Attributes:
        messages: the phase and the size of every message so far.
    """

    def __init__(self, num_processes: int) -> None:
        self.num_processes = num_processes
        self.messages: list[tuple[str, int]] = []
        self._barrier = threading.Barrier(num_processes, timeout=60)
        self._given: list[Any] = [None] * num_processes

    def sum(self, process: int, phase: str, size: int, counts: Tensor) -> Tensor:
        assert (counts.dtype, counts.shape) == (torch.int64, (size,)), phase
        self._given[process] = phase, counts
        self._barrier.wait()
        phases = {own for own, _ in self._given}
        assert len(phases) == 1, phases
        total = torch.stack([own for _, own in self._given]).sum(0)
        if self._barrier.wait() == 0:
            self.messages.append((phase, size))
        return total

    def run(self, function: Callable[[Reduce], T]) -> list[T]:
        """Call a function in every thread, with the reduction of that thread."""

        def call(process: int) -> T:
            try:
                return function(ThreadReduce(process, self))
            except BaseException:
                self._barrier.abort()
                raise

        with ThreadPoolExecutor(self.num_processes) as pool:
            futures = [pool.submit(call, process) for process in range(self.num_processes)]
        errors = [error for future in futures if (error := future.exception())]
        for error in sorted(errors, key=lambda e: isinstance(e, threading.BrokenBarrierError)):
            raise error
        return [future.result() for future in futures]
