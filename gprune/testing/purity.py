"""The contract of purity: inputs and global state do not change, and results share no memory."""

from __future__ import annotations

import inspect
import random
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from gprune.testing.reports import fail_if
from gprune.trees import Tree, TreeDef, flatten, leaf_names, unflatten


def assert_pure(function: Callable[..., Any], *args: Any, may_return_inputs: bool = False) -> Any:
    """Assert that a call changes nothing and returns new tensors.

    These must not change: the trees themselves; the entries, version, memory, shape, strides and
    `requires_grad` of every tensor, and its `.grad`; the random states of torch, Python and numpy;
    the default dtype and device; the number of threads; grad mode and deterministic mode.

    Args:
        function: any function of trees of tensors.
        *args: its arguments.
        may_return_inputs: whether results may be the input tensors themselves, as those of
            `prunable` are. Views of them are never allowed.

    Returns:
        The result of the function.

    Raises:
        AssertionError: if something changed, or a result shares memory with an input or with
            another result.

    Example:
        >>> assert_pure(torch.neg, torch.tensor([1.0, 2.0]))
        tensor([-1., -2.])
        >>> assert_pure(torch.Tensor.neg_, torch.tensor([1.0, 2.0]))
        Traceback (most recent call last):
        AssertionError: neg_ breaks assert_pure:
          args[0] held [1.0, 2.0], holds [-1.0, -2.0]
          args[0] version was 0, is 1
          result shares memory with args[0]
        to reproduce:
          import torch
          from gprune.testing import assert_pure
        <BLANKLINE>
          args = (torch.tensor([1.0, 2.0], dtype=torch.float32),)
          assert_pure(neg_, *args)
    """
    before = Snapshot.of(**_named(function, args))
    result = function(*args)
    problems = before.changes() + _shared_memory(result, before, may_return_inputs)
    if problems:
        call = "*args" + (", may_return_inputs=True" if may_return_inputs else "")
        fail_if(problems, "assert_pure", function, call, args=tuple(before.inputs()))
    return result


class TensorState(NamedTuple):
    """Everything about a tensor that a pure function must not change.

    Attributes:
        tensor: the tensor itself.
        entries: a copy of its entries.
        properties: everything else, by name.
    """

    tensor: Tensor
    entries: Tensor
    properties: dict[str, Any]

    @classmethod
    def of(cls, tensor: Tensor) -> TensorState:
        """Record a tensor; of a sparse, nested or uninitialised one only its version."""
        if not _is_plain(tensor):
            return cls(tensor, tensor, {"version": tensor._version})
        return cls(tensor, tensor.detach().clone(), _properties(tensor))

    def changes(self, name: str) -> list[str]:
        """Return what has changed since it was recorded, one line for each change."""
        if self.entries is self.tensor:
            was, version = self.properties["version"], self.tensor._version
            return [] if version == was else [f"{name} version was {was}, is {version}"]
        found = []
        now, then = self.tensor.detach(), self.entries
        if (now.shape, now.dtype) == (then.shape, then.dtype) and _bits(now) != _bits(then):
            found.append(f"{name} held {then.tolist()}, holds {now.tolist()}")
        properties = _properties(self.tensor)
        for what, was in self.properties.items():
            if properties[what] != was:
                found.append(f"{name} {what} was {was}, is {properties[what]}")
        return found


class Snapshot(NamedTuple):
    """The inputs of a call and the global state, recorded before the call.

    Attributes:
        names: the name of each input.
        trees: the inputs themselves.
        leaves: the leaves of each input before the call.
        treedefs: their structures before the call.
        states: the tensors among the leaves, by path.
        global_state: the global state before the call.
    """

    names: list[str]
    trees: list[Tree]
    leaves: list[list[Any]]
    treedefs: list[TreeDef]
    states: dict[str, TensorState]
    global_state: dict[str, Any]

    @classmethod
    def of(cls, **inputs: Tree) -> Snapshot:
        """Record the inputs, by name, and the global state."""
        flat = [flatten(tree) for tree in inputs.values()]
        by_path = [
            (path, leaf)
            for name, (leaves, treedef) in zip(inputs, flat, strict=True)
            for path, leaf in zip(leaf_names(treedef, name), leaves, strict=True)
        ]
        return cls(
            list(inputs),
            list(inputs.values()),
            [leaves for leaves, _ in flat],
            [treedef for _, treedef in flat],
            {path: TensorState.of(leaf) for path, leaf in by_path if isinstance(leaf, Tensor)},
            _global_state(),
        )

    def changes(self) -> list[str]:
        """Return what has changed since the recording, one line for each change."""
        now = _global_state()
        return [
            *self._tree_changes(),
            *(line for path, state in self.states.items() for line in state.changes(path)),
            *(f"{what} changed" for what, was in self.global_state.items() if now[what] != was),
        ]

    def inputs(self) -> list[Tree]:
        """Rebuild the inputs as they were before the call, from copies."""
        copies = {id(state.tensor): state for state in self.states.values()}
        return [
            unflatten(treedef, [_restored(copies.get(id(leaf)), leaf) for leaf in leaves])
            for treedef, leaves in zip(self.treedefs, self.leaves, strict=True)
        ]

    def _tree_changes(self) -> list[str]:
        found = []
        for name, tree, leaves, treedef in zip(
            self.names, self.trees, self.leaves, self.treedefs, strict=True
        ):
            now, other = flatten(tree)
            if other != treedef:
                found.append(f"{name} has another structure: {treedef} before, {other} after")
            else:
                rows = zip(leaf_names(treedef, name), leaves, now, strict=True)
                found += [f"{path} is another object" for path, a, b in rows if a is not b]
        return found


def _named(function: Callable[..., Any], args: tuple[Any, ...]) -> dict[str, Any]:
    """Return the arguments by the names of the function's signature, or as `args[i]`."""
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):
        parameters = []
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    names = [parameter.name for parameter in parameters if parameter.kind in positional]
    if len(names) < len(args):
        names = [f"args[{i}]" for i in range(len(args))]
    return dict(zip(names, args, strict=False))


def _shared_memory(result: Any, before: Snapshot, may_return_inputs: bool) -> list[str]:
    """Return which results share memory with an input or with each other, one line each."""
    leaves, treedef = flatten(result)
    owners = {
        _storage(state.tensor): path
        for path, state in before.states.items()
        if _is_plain(state.tensor)
    }
    inputs = {id(state.tensor) for state in before.states.values()}
    found = []
    for path, leaf in zip(leaf_names(treedef, "result"), leaves, strict=True):
        if not isinstance(leaf, Tensor) or (may_return_inputs and id(leaf) in inputs):
            continue
        if not _is_plain(leaf) or leaf.is_meta or leaf.numel() == 0:
            continue
        storage = _storage(leaf)
        if storage in owners:
            found.append(f"{path} shares memory with {owners[storage]}")
        else:
            owners[storage] = path
    return found


def _restored(state: TensorState | None, leaf: Any) -> Any:
    if state is None or state.entries is leaf:
        return leaf
    return state.entries.clone().requires_grad_(state.properties["requires_grad"])


def _is_plain(tensor: Tensor) -> bool:
    lazy: bool = torch.nn.parameter.is_lazy(tensor)
    return not lazy and tensor.layout == torch.strided and not tensor.is_nested


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _bits(tensor: Tensor) -> bytes | None:
    """Return the bits of the entries, so that NaN equals itself and -0.0 differs from 0.0."""
    if tensor.is_meta:
        return None
    flat = torch.empty(tensor.numel(), dtype=tensor.dtype, device="cpu").copy_(tensor.reshape(-1))
    return bytes(flat.view(torch.uint8).numpy().tobytes())


def _properties(tensor: Tensor) -> dict[str, Any]:
    grad = tensor.grad if tensor.is_leaf else None
    return {
        "shape": tuple(tensor.shape),
        "dtype": tensor.dtype,
        "strides": tensor.stride(),
        "memory": tensor.data_ptr(),
        "version": tensor._version,
        "requires_grad": tensor.requires_grad,
        "grad": None if grad is None else (id(grad), grad._version, grad.tolist()),
    }


def _global_state() -> dict[str, Any]:
    state: dict[str, Any] = {
        "the random state of torch": _bits(torch.get_rng_state()),
        "the random state of Python": random.getstate(),
        "the random state of numpy": _numpy_state(),
        "the default dtype": torch.get_default_dtype(),
        "the default device": torch.get_default_device(),
        "the number of threads": torch.get_num_threads(),
        "grad mode": torch.is_grad_enabled(),
        "deterministic mode": torch.are_deterministic_algorithms_enabled(),
    }
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]  # torch's
        state["the random state of CUDA"] = _bits(torch.cuda.get_rng_state())
    return state


def _numpy_state() -> tuple[Any, ...]:
    kind, keys, *rest = np.random.get_state(legacy=True)  # noqa: NPY002  the function under test may use it
    return (kind, np.asarray(keys).tobytes(), *rest)
