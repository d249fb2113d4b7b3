"""Contracts of transforms: a function does the same compiled, under vmap and on meta tensors.

The function under test takes one argument, a tree of tensors, numbers and `None`s, and returns any
tree. Bools and integers, that is masks and counts, must be equal. Floating point numbers must be
equal within the given tolerance.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch

from gprune.trees import flatten, leaf_names, map_leaves, vmap_dims
from tests.support.assertions import fail_if


def assert_compiles(
    function: Callable[[Any], Any],
    inputs: Sequence[Any],
    backend: str = "aot_eager",
    *,
    max_graphs: int = 1,
    rtol: float = 0.0,
    atol: float = 0.0,
) -> None:
    """It compiles to one graph for all inputs, with the results of eager code.

    `max_graphs` is how many compilations all inputs together may need: 1 for tensors; 2 for Python
    numbers, because Dynamo compiles the first one as a constant. Dynamo is reset before and after.
    """
    torch._dynamo.reset()
    before = num_graphs()
    compiled = torch.compile(function, backend=backend, fullgraph=True)
    try:
        for value in inputs:
            expected = function(value)
            try:
                got = compiled(value)
            except Exception as error:  # any error of the compiler is a failure of the function
                raise AssertionError("it does not compile to one graph") from error
            fail_if(differences(got, expected, rtol, atol))
        graphs = num_graphs() - before
    finally:
        torch._dynamo.reset()
    assert graphs <= max_graphs, f"it compiles {graphs} times for {len(inputs)} inputs"


def assert_vmaps(
    function: Callable[[Any], Any], inputs: Any, *, rtol: float = 0.0, atol: float = 0.0
) -> None:
    """`torch.vmap` of it has the results of a loop over the first dimension of every tensor."""
    size = next(leaf.shape[0] for leaf in flatten(inputs)[0] if leaf is not None)
    looped = [function(element(inputs, i)) for i in range(size)]
    dims = vmap_dims(inputs), vmap_dims(looped[0])
    try:
        got = torch.vmap(function, in_dims=(dims[0],), out_dims=dims[1])(inputs)
    except Exception as error:  # any error of vmap is a failure of the function
        raise AssertionError("vmap of it fails") from error
    fail_if(
        [
            f"in element {i} of the batch, {problem}"
            for i, expected in enumerate(looped)
            for problem in differences(element(got, i), expected, rtol, atol)
        ]
    )


def assert_meta(function: Callable[[Any], Any], inputs: Any) -> None:
    """On meta tensors its results have the right structure, shapes and dtypes, and are on meta."""
    (want, treedef) = flatten(function(inputs))
    try:
        have, other = flatten(function(map_leaves(to_meta, inputs)))
    except Exception as error:  # any error without data is a failure of the function
        raise AssertionError("it fails without data") from error
    assert other == treedef, f"the result has the structure {other}, must have {treedef}"
    problems = []
    for name, a, b in zip(leaf_names(treedef, "result"), have, want, strict=True):
        problems += [f"{name} {problem}" for problem in shapes_differ(a, b)]
        if isinstance(a, torch.Tensor) and a.dim() > 0 and not a.is_meta:
            problems.append(f"{name} is on {a.device}, must be on meta")
    fail_if(problems)


def num_graphs() -> int:
    # finished graphs, not calls of the backend: Dynamo may restart in one compilation
    return int(torch._dynamo.utils.counters["stats"]["unique_graphs"])


def differences(got: Any, expected: Any, rtol: float, atol: float) -> list[str]:
    """Which leaves of a result differ from the expected ones, one line for each problem."""
    (have, other), (want, treedef) = flatten(got), flatten(expected)
    if other != treedef:
        return [f"the result has the structure {other}, must have {treedef}"]
    problems = []
    for name, a, b in zip(leaf_names(treedef, "result"), have, want, strict=True):
        found = shapes_differ(a, b)
        if not found and isinstance(b, torch.Tensor):
            exact = not (b.is_floating_point() or b.is_complex())
            tolerance = (0.0, 0.0) if exact else (rtol, atol)
            if not torch.allclose(a, b, *tolerance, equal_nan=True):
                found = [f"is {a.tolist()}, must be {b.tolist()}"]
        elif not found and a != b:
            found = [f"is {a!r}, must be {b!r}"]
        problems += [f"{name} {problem}" for problem in found]
    return problems


def shapes_differ(got: Any, expected: Any) -> list[str]:
    if type(got) is not type(expected):
        return [f"is {type(got).__name__}, must be {type(expected).__name__}"]
    if not isinstance(got, torch.Tensor):
        return []
    pairs = {"shape": (tuple(got.shape), tuple(expected.shape))}
    pairs["dtype"] = (got.dtype, expected.dtype)
    return [f"has {word} {a}, must be {b}" for word, (a, b) in pairs.items() if a != b]


def element(tree: Any, i: int) -> Any:
    return map_leaves(lambda leaf: leaf[i] if isinstance(leaf, torch.Tensor) else leaf, tree)


def to_meta(leaf: Any) -> Any:
    return leaf.to("meta") if isinstance(leaf, torch.Tensor) else leaf
