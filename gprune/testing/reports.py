"""Messages of failed contracts: every bad leaf by its path, and source that reproduces it."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from gprune.trees import Tree, flatten, tensor_problem, unflatten

_MOST_ENTRIES = 1_000  # of larger tensors only the shape is printed


def report(
    contract: str, function: Callable[..., Any], call: str, problems: Sequence[str], setup: str
) -> str:
    """Return the message of a failed contract.

    `problems` are lines. `setup` is the `source` of the names in `call`, the arguments after the
    function. With the function in scope, the source in the message fails in the same way.
    """
    name = getattr(function, "__name__", "")
    name = name if name.isidentifier() else "function"  # of a lambda or a partial
    said = [f"{name} breaks {contract}:", *(f"  {problem}" for problem in problems)]
    body = [*setup.splitlines(), f"{contract}({name}, {call})"]
    return "\n".join([*said, "to reproduce:", *(f"  {line}" for line in body)])


def source(contract: str, /, **values: Tree) -> str:
    """Return source that imports a contract, and assigns each value to its name.

    Args:
        contract: the name of the assertion.
        **values: trees of tensors, numbers and `None`s. Any other leaf becomes its repr.

    Returns:
        The source. It keeps entries, dtypes, memory layouts and `requires_grad`. Of a tensor with
        more than 1,000 entries it keeps the shape and the dtype only.
    """
    imports, body = {f"from gprune.testing import {contract}"}, ""
    for name, value in values.items():
        leaves, treedef = flatten(value)
        # every container has a repr that is source, if those of its leaves are
        tree = unflatten(treedef, [_Verbatim(_leaf_source(leaf)) for leaf in leaves])
        imports |= _imports_of_nodes(treedef)
        body += f"{name} = {tree!r}\n"
    if re.search(r"\b(nan|inf)\b", body):
        imports.add("from math import inf, nan")
    return "\n".join(["import torch", *sorted(imports), "", body.rstrip()])


class _Verbatim:
    """An object whose repr is a given text."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __repr__(self) -> str:
        return self.text


def _imports_of_nodes(treedef: Any) -> set[str]:
    """Return the imports of the classes in a tree, such as named tuples and `OrderedDict`."""
    found = set().union(*map(_imports_of_nodes, treedef.children()))
    if treedef.type is not None and treedef.type.__module__ != "builtins":
        found.add(f"from {treedef.type.__module__} import {treedef.type.__qualname__}")
    return found


def _leaf_source(leaf: Any) -> str:
    if tensor_problem(leaf):
        return repr(leaf)
    shape, options = tuple(leaf.shape), f"dtype={leaf.dtype}"
    if leaf.device.type != "cpu":
        options += f", device={str(leaf.device)!r}"
    tensor = leaf.detach()
    if tensor.numel() == 0 or tensor.is_meta or tensor.numel() > _MOST_ENTRIES:
        made = f"torch.empty({shape}, {options})"
    else:
        repeated = [i for i in range(tensor.dim()) if shape[i] > 1 and tensor.stride(i) == 0]
        for dim in repeated:
            tensor = tensor.narrow(dim, 0, 1)
        made = f"torch.tensor({_entries(tensor.tolist(), tensor.dtype)}, {options})"
        if not tensor.is_contiguous():
            size, stride = tuple(tensor.shape), tensor.stride()
            made = f"torch.empty_strided({size}, {stride}, {options}).copy_({made})"
        if repeated:
            made += f".expand{shape}"
    return made + (".requires_grad_()" if leaf.requires_grad else "")


def _entries(entries: Any, dtype: torch.dtype) -> str:
    if isinstance(entries, list):
        return "[" + ", ".join(_entries(entry, dtype) for entry in entries) + "]"
    if not isinstance(entries, float) or dtype == torch.float64:
        return repr(entries)
    # the shortest decimal that rounds to the entry: 0.1, not 0.10000000149011612
    return str(np.float32(entries))
