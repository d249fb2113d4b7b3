"""Costs of operators on the simulated accelerator: calls, bytes and waits.

The rules, for one operator that reads and writes memory once:

1. It reads each tensor argument once and writes each result once. An `out=` argument is only
   written. An in-place operator reads and writes its tensor, unless it overwrites it unread.
2. A gather or a scatter moves elements. Only those count, and the index, not the whole source.
3. Views, allocations and changes of shape cost nothing and are no call.
4. An expanded tensor is as large as the memory behind it. A number is part of the call.
5. The host waits when it needs a value, or a shape that depends on values.
"""

from __future__ import annotations

import math
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Cost:
    """What the device did while it was measured.

    Attributes:
        calls_of: the calls of each operator, by its name.
        bytes_of: the bytes that each operator read and wrote.
        waits_of: how often the host waited for each operator.
        waits_at: how often the host waited at each line, by `file:line`, outside torch.
    """

    def __init__(self) -> None:
        self.calls_of: Counter[str] = Counter()
        self.bytes_of: Counter[str] = Counter()
        self.waits_of: Counter[str] = Counter()
        self.waits_at: Counter[str] = Counter()

    @property
    def calls(self) -> int:
        return self.calls_of.total()

    @property
    def bytes(self) -> int:
        return self.bytes_of.total()

    @property
    def waits(self) -> int:
        return self.waits_of.total()

    def table(self) -> str:
        """Return a line for each operator, those that move the most bytes first."""
        names = sorted(self.calls_of | self.waits_of, key=lambda name: -self.bytes_of[name])
        rows = [(n, self.calls_of[n], self.bytes_of[n], self.waits_of[n]) for n in names]
        lines = [("operator", "calls", "bytes", "waits"), *rows]
        lines.append(("total", self.calls, self.bytes, self.waits))
        return "\n".join(f"{a:<36}{b:>8}{c:>16}{d:>7}" for a, b, c, d in lines)


_measuring: list[Cost] = []


@contextmanager
def measured() -> Iterator[Cost]:
    """Count what the device does inside the `with` block. Blocks may be nested."""
    cost = Cost()
    _measuring.append(cost)
    try:
        yield cost
    finally:
        _measuring.remove(cost)


def count_call(name: str, num_bytes: int) -> None:
    for cost in _measuring:
        cost.calls_of[name] += 1
        cost.bytes_of[name] += num_bytes


def count_wait(name: str) -> None:
    for cost in _measuring:
        cost.waits_of[name] += 1
        cost.waits_at[calling_line()] += 1


def calling_line() -> str:
    """Return the line that called an operator, as `file:line`, or nothing in autograd's threads."""
    frame: FrameType | None = sys._getframe(1)
    while frame and any(part in frame.f_code.co_filename for part in NOT_CALLERS):
        frame = frame.f_back
    return f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}" if frame else ""


NOT_CALLERS = (str(Path(torch.__file__).parent), __file__, "support/accelerator.py")
"""Files whose functions only hand an operator on."""


def count_operator(op: torch._ops.OpOverload, given: dict[str, Any], results: list[Tensor]) -> None:
    """Count a call of an operator, and a wait if it is one of those that wait.

    Args:
        op: the operator.
        given: its arguments by name, on the device; numbers on the CPU are left out.
        results: the tensors that it has made.
    """
    if not _measuring:
        return
    name = op._schema.name.removeprefix("aten::")
    if name in FREE:
        return
    if name in WAITS and given.get("output_size") is None:
        count_wait(name)
    if name == "_local_scalar_dense":
        return  # a wait, and no work for the device
    rule = MOVES.get(name.removesuffix("_"))
    if rule is None:
        num_bytes = argument_bytes(op, given) + sum(map(memory_of, results))
    else:
        num_bytes = rule(Moving(given, results))
    count_call(name, num_bytes)


def memory_of(tensor: Tensor) -> int:
    """Return the bytes of memory behind a tensor: a dimension of stride 0 has none of its own."""
    if tensor.numel() == 0:
        return 0
    dims = [(n, stride) for n, stride in zip(tensor.shape, tensor.stride(), strict=True) if stride]
    extent = 1 + sum((n - 1) * stride for n, stride in dims)
    return min(math.prod(n for n, _ in dims), extent) * tensor.element_size()


def tensors_in(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    return [x for x in value if isinstance(x, Tensor)] if isinstance(value, (list, tuple)) else []


def argument_bytes(op: torch._ops.OpOverload, given: dict[str, Any]) -> int:
    """Return the bytes that an operator reads from its arguments and writes to them."""
    total = 0
    for argument in op._schema.arguments:
        size = sum(map(memory_of, tensors_in(given.get(argument.name))))
        is_written = argument.alias_info is not None and argument.alias_info.is_write
        is_out = argument.kwarg_only or op._schema.name in OVERWRITES
        total += size * (2 if is_written and not is_out else 1)
    return total


# --- gathers and scatters ---------------------------------------------------------------------


class Moving(NamedTuple):
    """The arguments of a gather or a scatter, and what it has made."""

    given: dict[str, Any]
    results: list[Tensor]

    @property
    def index_bytes(self) -> int:
        """The bytes of the index; of a bool mask, those of the int64 indices it has become."""
        index = self.given["index"] if "index" in self.given else self.given["indices"]
        return sum(
            self.size_of_mask(x) if x.dtype == torch.bool else memory_of(x)
            for x in tensors_in(index)
        )

    def size_of_mask(self, mask: Tensor) -> int:
        each = max(1, self.given["self"].numel() // max(1, mask.numel()))
        moved = sum(x.numel() for x in [*self.results, *tensors_in(self.given.get("out"))])
        return 8 * mask.dim() * (moved // each)

    @property
    def result(self) -> int:
        return sum(map(memory_of, [*self.results, *tensors_in(self.given.get("out"))]))

    @property
    def copied(self) -> int:
        """The bytes of a result apart from `self`, which is copied before elements change."""
        out = [*self.results, *tensors_in(self.given.get("out"))]
        target = self.given["self"]
        is_in_place = not out or out[0].data_ptr() == target.data_ptr()
        return 0 if is_in_place else memory_of(target) + self.result


def gathered(moving: Moving) -> int:
    return moving.index_bytes + 2 * moving.result


def masked(moving: Moving) -> int:
    return memory_of(moving.given["mask"]) + 2 * moving.result


def slices(moving: Moving) -> int:
    """Bytes of the slices of `self`, along `dim`, that an index names."""
    target, dim = moving.given["self"], moving.given["dim"]
    each = target.numel() // max(1, target.shape[dim]) if target.dim() else 1
    return moving.given["index"].numel() * each * target.element_size()


def filled_slices(moving: Moving) -> int:
    return moving.copied + moving.index_bytes + slices(moving)


def copied_slices(moving: Moving) -> int:
    return filled_slices(moving) + memory_of(moving.given["source"])


def added_slices(moving: Moving) -> int:
    return copied_slices(moving) + slices(moving)


def elements(moving: Moving) -> int:
    return moving.given["index"].numel() * moving.given["self"].element_size()


def sources(moving: Moving) -> int:
    """Bytes that a scatter reads: one element of the source for each index, unless expanded."""
    return sum(min(elements(moving), memory_of(x)) for x in tensors_in(moving.given.get("src")))


def scattered(moving: Moving) -> int:
    reduces = "reduce" in moving.given
    return moving.copied + moving.index_bytes + sources(moving) + elements(moving) * (1 + reduces)


def scatter_added(moving: Moving) -> int:
    return moving.copied + moving.index_bytes + sources(moving) + 2 * elements(moving)


def put(moving: Moving) -> int:
    """`self[indices] = values`: the indices are broadcast, and dimensions without one are whole."""
    target, indices = moving.given["self"], moving.given["indices"]
    named = [index for index in indices if index is not None]
    whole = [n for dim, n in enumerate(target.shape) if dim >= len(indices) or indices[dim] is None]
    shape = torch.broadcast_shapes(*(index.shape for index in named))
    size = math.prod(shape) * math.prod(whole) * target.element_size()
    values = sum(map(memory_of, tensors_in(moving.given.get("values"))))
    return moving.index_bytes + values + size * (1 + bool(moving.given.get("accumulate")))


MOVES: dict[str, Callable[[Moving], int]] = {
    "index": gathered,
    "index_select": gathered,
    "gather": gathered,
    "take": gathered,
    "embedding": gathered,
    "masked_select": masked,
    "index_fill": filled_slices,
    "index_copy": copied_slices,
    "index_add": added_slices,
    "scatter": scattered,
    "scatter_add": scatter_added,
    "scatter_reduce": scatter_added,
    "_index_put_impl": put,
}
"""The bytes of operators that move elements, by the name without the underscore of in-place."""

OVERWRITES = {
    "aten::bernoulli_",
    "aten::cauchy_",
    "aten::exponential_",
    "aten::fill_",
    "aten::geometric_",
    "aten::log_normal_",
    "aten::normal_",
    "aten::random_",
    "aten::uniform_",
    "aten::zero_",
}
"""In-place operators that do not read what they write."""

FREE = {"resize_", "set_", "empty", "empty_strided", "is_set_to", "_resize_output_"}
"""Operators that allocate, or change a shape."""

WAITS = {
    "_local_scalar_dense",
    "bincount",
    "equal",
    "masked_select",
    "nonzero",
    "repeat_interleave",  # unless `output_size` is given
    "_unique",
    "_unique2",
    "unique_consecutive",
    "unique_dim",
    "unique_dim_consecutive",
}
"""Operators that give the host a value, or a tensor whose shape depends on values."""
