"""What a failing contract says: every broken leaf by its path, and source that reproduces it."""

from __future__ import annotations

import dataclasses
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor

_MOST_ENTRIES = 1_000  # of a tensor that is printed whole


def fail_if(
    problems: Sequence[str], contract: str, function: Callable[..., Any], call: str, **inputs: Any
) -> None:
    """Raise one error with all the problems, if there are any.

    Args:
        problems: what is wrong, one line each.
        contract: the name of the assertion.
        function: what was tested.
        call: the arguments of the assertion after the function, as source.
        **inputs: what the names in `call` stand for.

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
        problems: what is wrong, one line each.
        contract: the name of the assertion.
        function: what was tested.
        call: the arguments of the assertion after the function, as source.
        **inputs: what the names in `call` stand for.

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
    """Name a function as its caller would; a lambda or a partial is `function`."""
    name = getattr(function, "__name__", "function")
    return name if name.isidentifier() else "function"


def keywords(**kwargs: Any) -> str:
    """Write keyword arguments as source, each under its own name: `amount=amount, seed=seed`."""
    return ", ".join(f"{key}={key}" for key in kwargs)


def source(value: Any, imports: set[str]) -> str:
    """Write Python source that rebuilds a value.

    Args:
        value: a tree of tensors, numbers and holes; what is no such thing is written as its repr.
        imports: gets the import lines that the source needs.

    Returns:
        An expression. Entries, dtypes, strides and `requires_grad` are those of the value; a tensor
        of more than 1,000 entries is replaced by zeros, and a comment says so.
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
    # the empty ones say their shape, the large ones no more than that
    shape = tuple(tensor.shape)
    options = f"dtype={tensor.dtype}"
    if tensor.device.type != "cpu":
        options += f", device={str(tensor.device)!r}"
    wants_gradient = ".requires_grad_()" if tensor.requires_grad else ""
    tensor = tensor.detach()
    if tensor.numel() == 0 or tensor.is_meta:
        return f"torch.empty({shape}, {options}){wants_gradient}"
    if tensor.numel() > _MOST_ENTRIES:
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
