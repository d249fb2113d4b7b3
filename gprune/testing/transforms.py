"""The contracts of transforms: a function does the same compiled, under vmap and on meta tensors.

The function under test takes one argument, a tree of tensors, numbers and `None`s, and returns any
tree. Bools and integers, that is masks and counts, must be equal. Floating point numbers must be
equal within the given tolerance.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from gprune.testing.reports import fail, fail_if
from gprune.trees import Tree, flatten, leaf_names, map_leaves, vmap_dims


def assert_compiles(
    function: Callable[[Any], Any],
    inputs: Sequence[Any],
    backend: str = "aot_eager",
    *,
    max_graphs: int = 1,
    rtol: float = 0.0,
    atol: float = 0.0,
) -> None:
    """Assert that a function compiles to one graph for all inputs, with the results of eager code.

    Dynamo is reset before and after. That drops everything that it has compiled in this process.

    Args:
        function: a function of one argument.
        inputs: the arguments to call it with, one after the other. Give tensors with different
            values, such as several amounts, to show that none is compiled as a constant.
        backend: the backend of `torch.compile`.
        max_graphs: how many compilations all inputs together may need: 1 for tensors; 2 for Python
            numbers, because Dynamo compiles the first one as a constant.
        rtol: relative tolerance of floating point results.
        atol: absolute tolerance of floating point results.

    Raises:
        AssertionError: if there is a graph break or a recompilation, or a result differs, with
            every leaf that differs.

    Example:
        >>> import gprune as gp
        >>> params = [torch.tensor([3.0, 1.0, 2.0])]
        >>> def prune(amount):
        ...     return gp.global_unstructured(params, amount=amount)
        >>> assert_compiles(prune, [torch.tensor(1), torch.tensor(2)])
        >>> assert_compiles(lambda amount: params[0] if amount > 0 else 0, [torch.tensor(1)])
        Traceback (most recent call last):
        AssertionError: function breaks assert_compiles:
          it does not compile to one graph: Unsupported: ...
        ...
    """
    torch._dynamo.reset()
    before = _num_graphs()
    compiled = torch.compile(function, backend=backend, fullgraph=True)
    try:
        for value in inputs:
            expected = function(value)
            try:
                got = compiled(value)
            except Exception as error:  # any error of the compiler is a failure of the function
                first_line = str(error).strip().split("\n")[0]
                line = f"it does not compile to one graph: {type(error).__name__}: {first_line}"
                fail([line], "assert_compiles", function, "inputs", inputs=[value])
            problems = _differences(got, expected, rtol, atol)
            fail_if(problems, "assert_compiles", function, "inputs", inputs=[value])
        graphs = _num_graphs() - before
    finally:
        torch._dynamo.reset()
    if graphs > max_graphs:
        line = f"it compiles {graphs} times for {len(inputs)} inputs, must be {max_graphs} at most"
        fail([line], "assert_compiles", function, "inputs", inputs=list(inputs))


def assert_vmaps(
    function: Callable[[Any], Any],
    inputs: Tree,
    *,
    rtol: float = 0.0,
    atol: float = 0.0,
) -> None:
    """Assert that `torch.vmap` of a function has the results of a loop over the batch.

    Args:
        function: a function of one argument.
        inputs: tree of tensors and `None`s. The first dimension of every tensor is the batch, of
            size one or more.
        rtol: relative tolerance of floating point results.
        atol: absolute tolerance of floating point results.

    Raises:
        AssertionError: if `vmap` fails, or a result differs, with every leaf that differs.

    Example:
        >>> import gprune as gp
        >>> batch = {"params": [torch.tensor([[3.0, 1.0], [1.0, 2.0]])], "amount": torch.arange(2)}
        >>> assert_vmaps(lambda x: gp.global_unstructured(x["params"], amount=x["amount"]), batch)
        >>> assert_vmaps(lambda x: x["amount"].item(), batch)
        Traceback (most recent call last):
        AssertionError: function breaks assert_vmaps:
          vmap of it fails: RuntimeError: ...
        ...
    """
    size = next(leaf.shape[0] for leaf in flatten(inputs)[0] if leaf is not None)
    looped = [function(_at(inputs, i)) for i in range(size)]
    dims = vmap_dims(inputs), vmap_dims(looped[0])
    try:
        got = torch.vmap(function, in_dims=(dims[0],), out_dims=dims[1])(inputs)
    except Exception as error:  # any error of vmap is a failure of the function
        first_line = str(error).strip().split("\n")[0]
        line = f"vmap of it fails: {type(error).__name__}: {first_line}"
        fail([line], "assert_vmaps", function, "inputs", inputs=inputs)
    problems = [
        f"in element {i} of the batch, {problem}"
        for i, expected in enumerate(looped)
        for problem in _differences(_at(got, i), expected, rtol, atol)
    ]
    fail_if(problems, "assert_vmaps", function, "inputs", inputs=inputs)


def assert_meta(function: Callable[[Any], Any], inputs: Tree) -> None:
    """Assert that a function of meta tensors returns the right structure, shapes and dtypes.

    Tracing, `torch.export` and shape checks of models that do not fit in memory rely on this.

    Args:
        function: a function of one argument.
        inputs: tree of tensors, numbers and `None`s. Its tensors are moved to `meta`.

    Raises:
        AssertionError: if the function needs data; if a result has another structure, shape or
            dtype than with data; or if a result with dimensions is not on `meta`.

    Example:
        >>> import gprune as gp
        >>> params = [torch.tensor([3.0, 1.0, 2.0])]
        >>> assert_meta(lambda params: gp.global_unstructured(params, amount=1), params)
        >>> assert_meta(lambda params: [params[0] if params[0][0] > 1 else 0], params)
        Traceback (most recent call last):
        AssertionError: function breaks assert_meta:
          it fails without data: RuntimeError: Tensor.item() cannot be called on meta tensors
        ...
    """
    (want, treedef) = flatten(function(inputs))
    try:
        have, other = flatten(function(map_leaves(_to_meta, inputs)))
    except Exception as error:  # any error without data is a failure of the function
        first_line = str(error).strip().split("\n")[0]
        line = f"it fails without data: {type(error).__name__}: {first_line}"
        fail([line], "assert_meta", function, "inputs", inputs=inputs)
    problems = []
    if other != treedef:
        problems.append(f"the result has the structure {other}, must have {treedef}")
    else:
        for name, a, b in zip(leaf_names(treedef, "result"), have, want, strict=True):
            problems += [f"{name} {problem}" for problem in _shapes_differ(a, b)]
            if isinstance(a, Tensor) and a.dim() > 0 and not a.is_meta:
                problems.append(f"{name} is on {a.device}, must be on meta")
    fail_if(problems, "assert_meta", function, "inputs", inputs=inputs)


def _num_graphs() -> int:
    # finished graphs, not calls of the backend: Dynamo may restart in one compilation
    return int(torch._dynamo.utils.counters["stats"]["unique_graphs"])


def _differences(got: Any, expected: Any, rtol: float, atol: float) -> list[str]:
    """Return which leaves of a result differ from the expected ones, one line for each problem."""
    (have, other), (want, treedef) = flatten(got), flatten(expected)
    if other != treedef:
        return [f"the result has the structure {other}, must have {treedef}"]
    problems = []
    for name, a, b in zip(leaf_names(treedef, "result"), have, want, strict=True):
        found = _shapes_differ(a, b)
        if not found and isinstance(b, Tensor):
            exact = not (b.is_floating_point() or b.is_complex())
            tolerance = (0.0, 0.0) if exact else (rtol, atol)
            if not torch.allclose(a, b, *tolerance, equal_nan=True):
                found = [f"is {a.tolist()}, must be {b.tolist()}"]
        elif not found and a != b:
            found = [f"is {a!r}, must be {b!r}"]
        problems += [f"{name} {problem}" for problem in found]
    return problems


def _shapes_differ(got: Any, expected: Any) -> list[str]:
    if type(got) is not type(expected):
        return [f"is {type(got).__name__}, must be {type(expected).__name__}"]
    if not isinstance(got, Tensor):
        return []
    have, want = (tuple(got.shape), got.dtype), (tuple(expected.shape), expected.dtype)
    words = ("shape", "dtype")
    return [
        f"has {word} {a}, must be {b}"
        for word, a, b in zip(words, have, want, strict=True)
        if a != b
    ]


def _at(tree: Tree, i: int) -> Tree:
    return map_leaves(lambda leaf: leaf[i] if isinstance(leaf, Tensor) else leaf, tree)


def _to_meta(leaf: Any) -> Any:
    return leaf.to("meta") if isinstance(leaf, Tensor) else leaf
