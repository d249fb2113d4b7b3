"""The contract of purity: nothing that goes in is changed, nothing that comes out is shared."""

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
    """Assert that a call changes nothing and returns tensors of its own.

    Unchanged must be: the trees themselves; every tensor's entries, version, memory, shape, strides
    and `requires_grad`; its `.grad`; the random states of torch, Python and numpy; the default
    dtype and device; the number of threads; grad mode and deterministic mode.

    Args:
        function: any function of trees of tensors.
        *args: what it is called with.
        may_return_inputs: allows results that are input tensors themselves, as `prunable` has them;
            a view of one is never allowed.

    Returns:
        What the function returned.

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
    problems = before.changes() + _shared(result, before, may_return_inputs)
    if problems:
        call = "*args" + (", may_return_inputs=True" if may_return_inputs else "")
        fail_if(problems, "assert_pure", function, call, args=tuple(before.inputs()))
    return result


class TensorState(NamedTuple):
    """Everything about a tensor that a pure function leaves alone.

    Attributes:
        tensor: the tensor itself.
        entries: a copy of its entries.
        facts: the rest, by name.
    """

    tensor: Tensor
    entries: Tensor
    facts: dict[str, Any]

    @classmethod
    def of(cls, tensor: Tensor) -> TensorState:
        """Record a tensor; of one that is not strided, or has no memory, only the version."""
        if not _is_plain(tensor):
            return cls(tensor, tensor, {"version": tensor._version})
        return cls(tensor, tensor.detach().clone(), _facts(tensor))

    def changes(self, name: str) -> list[str]:
        """Say what is different now."""
        if self.entries is self.tensor:
            was, version = self.facts["version"], self.tensor._version
            return [] if version == was else [f"{name} version was {was}, is {version}"]
        found = []
        now, then = self.tensor.detach(), self.entries
        if (now.shape, now.dtype) == (then.shape, then.dtype) and _bits(now) != _bits(then):
            found.append(f"{name} held {then.tolist()}, holds {now.tolist()}")
        facts = _facts(self.tensor)
        for what, was in self.facts.items():
            if facts[what] != was:
                found.append(f"{name} {what} was {was}, is {facts[what]}")
        return found


class Snapshot(NamedTuple):
    """The inputs of a call and the global state, recorded to see what the call changes.

    Attributes:
        names: what to call each input.
        trees: the inputs themselves.
        leaves: the leaves of each, as they were.
        treedefs: their structures, as they were.
        states: the tensors among the leaves, by place.
        outside: the global state.
    """

    names: list[str]
    trees: list[Tree]
    leaves: list[list[Any]]
    treedefs: list[TreeDef]
    states: dict[str, TensorState]
    outside: dict[str, Any]

    @classmethod
    def of(cls, **inputs: Tree) -> Snapshot:
        """Record inputs, by name, and the global state."""
        flat = [flatten(tree) for tree in inputs.values()]
        places = [
            (place, leaf)
            for name, (leaves, treedef) in zip(inputs, flat, strict=True)
            for place, leaf in zip(leaf_names(treedef, name), leaves, strict=True)
        ]
        return cls(
            list(inputs),
            list(inputs.values()),
            [leaves for leaves, _ in flat],
            [treedef for _, treedef in flat],
            {place: TensorState.of(leaf) for place, leaf in places if isinstance(leaf, Tensor)},
            _global_state(),
        )

    def changes(self) -> list[str]:
        """Say what is different now, one line for each change."""
        outside = _global_state()
        return [
            *self._tree_changes(),
            *(line for place, state in self.states.items() for line in state.changes(place)),
            *(f"{what} changed" for what, was in self.outside.items() if outside[what] != was),
        ]

    def inputs(self) -> list[Tree]:
        """Rebuild the inputs as they were, of copies."""
        copies = {id(state.tensor): state for state in self.states.values()}
        return [
            unflatten(treedef, [_as_it_was(copies.get(id(leaf)), leaf) for leaf in leaves])
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
                places = zip(leaf_names(treedef, name), leaves, now, strict=True)
                found += [f"{place} is another object" for place, a, b in places if a is not b]
        return found


def _named(function: Callable[..., Any], args: tuple[Any, ...]) -> dict[str, Any]:
    """Name the arguments as the function's signature does, where it has names for them."""
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):
        parameters = []
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    names = [parameter.name for parameter in parameters if parameter.kind in positional]
    if len(names) < len(args):
        names = [f"args[{i}]" for i in range(len(args))]
    return dict(zip(names, args, strict=False))


def _shared(result: Any, before: Snapshot, may_return_inputs: bool) -> list[str]:
    """Name the results that share memory with an input or with each other."""
    leaves, treedef = flatten(result)
    owners = {
        _storage(state.tensor): place
        for place, state in before.states.items()
        if _is_plain(state.tensor)
    }
    own = {id(state.tensor) for state in before.states.values()}
    found = []
    for place, leaf in zip(leaf_names(treedef, "result"), leaves, strict=True):
        if not isinstance(leaf, Tensor) or (may_return_inputs and id(leaf) in own):
            continue
        if not _is_plain(leaf) or leaf.is_meta or leaf.numel() == 0:
            continue
        storage = _storage(leaf)
        if storage in owners:
            found.append(f"{place} shares memory with {owners[storage]}")
        else:
            owners[storage] = place
    return found


def _as_it_was(state: TensorState | None, leaf: Any) -> Any:
    if state is None or state.entries is leaf:
        return leaf
    return state.entries.clone().requires_grad_(state.facts["requires_grad"])


def _is_plain(tensor: Tensor) -> bool:
    lazy: bool = torch.nn.parameter.is_lazy(tensor)
    return not lazy and tensor.layout == torch.strided and not tensor.is_nested


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _bits(tensor: Tensor) -> bytes | None:
    """Give the entries to the bit, so that NaN is itself and -0.0 is not 0.0."""
    if tensor.is_meta:
        return None
    flat = torch.empty(tensor.numel(), dtype=tensor.dtype, device="cpu").copy_(tensor.reshape(-1))
    return bytes(flat.view(torch.uint8).numpy().tobytes())


def _facts(tensor: Tensor) -> dict[str, Any]:
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
    kind, keys, *rest = np.random.get_state(legacy=True)  # noqa: NPY002  others may still use it
    return (kind, np.asarray(keys).tobytes(), *rest)
