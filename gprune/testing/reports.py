"""Messages of failed contracts: every bad leaf by its path, and source that reproduces it."""

from __future__ import annotations

import dataclasses
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor

_MAX_PRINTED_ENTRIES = 1_000  # larger tensors are not printed


def fail_if(
    problems: Sequence[str], contract: str, function: Callable[..., Any], call: str, **inputs: Any
) -> None:
    """Raise one error with all problems, if there are any.

    Args:
        problems: the problems, one line each.
        contract: the name of the assertion.
        function: the function under test.
        call: the arguments of the assertion after the function, as source.
        **inputs: the values of the names in `call`.

    Raises:
        AssertionError: if there are problems.
    """
    if problems:
        fail(problems, contract, function, call, **inputs)


def fail(
    problems: Sequence[str], contract: str, function: Callable[..., Any], call: str, **inputs: Any
) -> NoReturn:
    """Raise the error of `fail_if`.

    Args:
        problems: the problems, one line each.
        contract: the name of the assertion.
        function: the function under test.
        call: the arguments of the assertion after the function, as source.
        **inputs: the values of the names in `call`.

    Raises:
        AssertionError: always.
    """
    name = name_of(function)
    imports: set[str] = {"import torch", f"from gprune.testing import {contract}"}
    lines = [f"{key} = {source(value, imports)}" for key, value in inputs.items()]
    arguments = ", ".join([name, call] if call else [name])
    body = [*sorted(imports, key=_plain_imports_first), "", *lines, f"{contract}({arguments})"]
    said = [f"{name} breaks {contract}:", *(f"  {problem}" for problem in problems)]
    raise AssertionError("\n".join([*said, "to reproduce:", *(f"  {line}" for line in body)]))


def name_of(function: Callable[..., Any]) -> str:
    """Return the name of a function; `function` for a lambda or a partial."""
    name = getattr(function, "__name__", "function")
    return name if name.isidentifier() else "function"


def keywords(**kwargs: Any) -> str:
    """Return source that passes each keyword by its own name: `amount=amount, seed=seed`."""
    return ", ".join(f"{key}={key}" for key in kwargs)


def source(value: Any, imports: set[str]) -> str:
    """Return Python source that rebuilds a value.

    Args:
        value: a tree of tensors, numbers and `None`s. Any other object becomes its repr.
        imports: the import lines that the source needs are added to it.

    Returns:
        An expression. It keeps entries, dtypes, memory layouts and `requires_grad`. A tensor of
        more than 1,000 entries is replaced by zeros, and a comment says so.
    """
    if isinstance(value, Tensor):
        return _tensor(value, imports)
    if isinstance(value, float) and repr(value).lstrip("-") in ("nan", "inf"):
        imports.add(f"from math import {repr(value).lstrip('-')}")
    if isinstance(value, torch.dtype | torch.device | float | int | str | type(None)):
        return repr(value)
    if type(value) in (list, tuple):
        inside = ", ".join(source(child, imports) for child in value)
        if isinstance(value, list):
            return f"[{inside}]"
        return f"({inside},)" if len(value) == 1 else f"({inside})"
    if isinstance(value, dict):
        pairs = (f"{key!r}: {source(child, imports)}" for key, child in value.items())
        inside = "{" + ", ".join(pairs) + "}"
        if isinstance(value, OrderedDict):
            imports.add("from collections import OrderedDict")
            return f"OrderedDict({inside})"
        return inside
    names = getattr(value, "_fields", None)  # of a named tuple
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        names = [field.name for field in dataclasses.fields(value)]
    if names is None:
        return repr(value)
    kind = type(value)
    imports.add(f"from {kind.__module__} import {kind.__qualname__}")
    parts = (f"{name}={source(getattr(value, name), imports)}" for name in names)
    return f"{kind.__qualname__}({', '.join(parts)})"


def _tensor(tensor: Tensor, imports: set[str]) -> str:
    # of empty, meta and large tensors only shape and dtype are printed
    shape = tuple(tensor.shape)
    options = f"dtype={tensor.dtype}"
    if tensor.device.type != "cpu":
        options += f", device={str(tensor.device)!r}"
    wants_gradient = ".requires_grad_()" if tensor.requires_grad else ""
    tensor = tensor.detach()
    if tensor.numel() == 0 or tensor.is_meta:
        return f"torch.empty({shape}, {options}){wants_gradient}"
    if tensor.numel() > _MAX_PRINTED_ENTRIES:
        return f"torch.zeros({shape}, {options}){wants_gradient}  # was too large to print"
    repeated = [i for i in range(tensor.dim()) if shape[i] > 1 and tensor.stride(i) == 0]
    for dim in repeated:
        tensor = tensor.narrow(dim, 0, 1)
    made = f"torch.tensor({_entries(tensor.tolist(), tensor.dtype, imports)}, {options})"
    if not tensor.is_contiguous():
        size = tuple(tensor.shape)
        made = f"torch.empty_strided({size}, {tensor.stride()}, {options}).copy_({made})"
    return made + (f".expand{shape}" if repeated else "") + wants_gradient


def _entries(entries: Any, dtype: torch.dtype, imports: set[str]) -> str:
    if isinstance(entries, list):
        return "[" + ", ".join(_entries(entry, dtype, imports) for entry in entries) + "]"
    if not isinstance(entries, float):
        return repr(entries)
    # the shortest decimal that rounds to the entry: 0.1, not 0.10000000149011612
    text = repr(entries) if dtype == torch.float64 else str(np.float32(entries))
    if text.lstrip("-") in ("nan", "inf"):
        imports.add(f"from math import {text.lstrip('-')}")
    return text


def _plain_imports_first(line: str) -> tuple[bool, str]:
    return line.startswith("from gprune"), line
