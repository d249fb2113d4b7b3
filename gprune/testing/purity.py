"""The contract of purity: inputs and global state do not change, and results share no memory."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gprune.testing.reports import report, source
from gprune.trees import flatten, leaf_names, tensor_problem

_MOST_SHOWN = 1_000  # characters: longer values are said to have changed, and not printed


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
        >>> import torch
        >>> from gprune.testing import assert_pure
        >>> assert_pure(torch.neg, torch.tensor([1.0, 2.0]))
        tensor([-1., -2.])
        >>> assert_pure(torch.Tensor.neg_, torch.tensor([1.0, 2.0]))
        Traceback (most recent call last):
        AssertionError: neg_ breaks assert_pure:
          args[0] entries changed from [1.0, 2.0] to [-1.0, -2.0]
          args[0] version changed from 0 to 1
          result shares memory with args[0]
        to reproduce:
          import torch
          from gprune.testing import assert_pure
        <BLANKLINE>
          args = (torch.tensor([1.0, 2.0], dtype=torch.float32),)
          assert_pure(neg_, *args)
    """
    setup = source("assert_pure", args=args)
    inputs, treedef = flatten(args)
    names = leaf_names(treedef, "args")
    before = _state(args)
    result = function(*args)
    after = _state(args)
    problems = [
        _change(what, was, after[what])
        for what, was in before.items()
        if what in after and was != after[what]
    ]
    problems += _shared_memory(result, dict(zip(names, inputs, strict=True)), may_return_inputs)
    if problems:
        call = "*args" + (", may_return_inputs=True" if may_return_inputs else "")
        raise AssertionError(report("assert_pure", function, call, problems, setup))
    return result


def _state(args: tuple[Any, ...]) -> dict[str, Any]:
    """Return everything that must not change, by a name for messages."""
    leaves, treedef = flatten(args)
    state: dict[str, Any] = {"the structure of args": treedef}
    for path, leaf in zip(leaf_names(treedef, "args"), leaves, strict=True):
        state[f"{path} identity"] = id(leaf)
        if isinstance(leaf, Tensor):
            state |= {f"{path} {what}": value for what, value in _tensor_state(leaf).items()}
    state |= {
        "the random state of torch": torch.get_rng_state().tolist(),
        "the random state of Python": random.getstate(),
        "the random state of numpy": _numpy_state(),
        "the default dtype": torch.get_default_dtype(),
        "the default device": torch.get_default_device(),
        "the number of threads": torch.get_num_threads(),
        "grad mode": torch.is_grad_enabled(),
        "deterministic mode": torch.are_deterministic_algorithms_enabled(),
    }
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]  # torch's
        state["the random state of CUDA"] = torch.cuda.get_rng_state().tolist()
    return state


def _tensor_state(tensor: Tensor) -> dict[str, Any]:
    if tensor_problem(tensor):  # sparse, nested, quantized or uninitialised
        return {"version": tensor._version}
    grad = tensor.grad if tensor.is_leaf else None
    return {
        # as text NaN equals itself, and -0.0 differs from 0.0
        "entries": None if tensor.is_meta else str(tensor.tolist()),
        "shape": tuple(tensor.shape),
        "dtype": tensor.dtype,
        "strides": tensor.stride(),
        "memory": tensor.data_ptr(),
        "version": tensor._version,
        "requires_grad": tensor.requires_grad,
        "grad": None if grad is None else (id(grad), grad._version, str(grad.tolist())),
    }


def _numpy_state() -> tuple[Any, ...]:
    kind, keys, *rest = np.random.get_state(legacy=True)  # noqa: NPY002  the function under test may use it
    return (kind, np.asarray(keys).tolist(), *rest)


def _change(what: str, was: Any, now: Any) -> str:
    change = f" from {was} to {now}"
    return f"{what} changed" + (change if len(change) <= _MOST_SHOWN else "")


def _shared_memory(result: Any, inputs: dict[str, Any], may_return_inputs: bool) -> list[str]:
    """Return which results share memory with an input or with each other, one line each."""
    owners = {_memory(leaf): path for path, leaf in inputs.items() if _memory(leaf)}
    passed = [id(leaf) for leaf in inputs.values()] if may_return_inputs else []
    leaves, treedef = flatten(result)
    found = []
    for path, leaf in zip(leaf_names(treedef, "result"), leaves, strict=True):
        memory = _memory(leaf)
        if memory and memory in owners and id(leaf) not in passed:
            found.append(f"{path} shares memory with {owners[memory]}")
        owners.setdefault(memory, path)
    return found


def _memory(leaf: Any) -> int:
    """Return the address of a tensor's storage; 0 if the leaf has no entries in memory."""
    if tensor_problem(leaf) or leaf.numel() == 0:
        return 0
    address: int = leaf.untyped_storage().data_ptr()
    return address
