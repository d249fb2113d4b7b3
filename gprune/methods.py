"""What a pruning method is: a marked function of one tensor, `method(scores, mask=None, **kwargs)`.

Its `PRUNING_TYPE` says what it chooses among. The methods of gprune also know how to handle many
leaves at once without joining them; that is their `over_leaves` attribute, `over_leaves(leaves,
**kwargs) -> masks`, which the combinators call and of which the method itself is the case of one
leaf.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

from torch import Tensor

Method = TypeVar("Method", bound=Callable[..., Tensor])

PRUNING_TYPES = ("unstructured", "structured", "semi_structured")


def pruning_method(kind: str) -> Callable[[Method], Method]:
    """Mark a function of one tensor as a pruning method.

    The function is called as `method(scores, mask, **kwargs)` and returns a bool mask of the shape
    of `scores`. `global_unstructured` calls it once, with the 1-D concatenation of all scores and
    prior masks; `layerwise` once per leaf.

    Args:
        kind: `"unstructured"` if single entries are chosen, else `"structured"` or
            `"semi_structured"`, which `layerwise` takes and `global_unstructured` refuses.

    Returns:
        A decorator that sets `PRUNING_TYPE` and returns the function itself.

    Raises:
        ValueError: if `kind` is none of these.

    Example:
        >>> @pruning_method("unstructured")
        ... def negative(scores, mask=None):
        ...     return scores >= 0
        >>> negative.PRUNING_TYPE
        'unstructured'
    """
    if kind not in PRUNING_TYPES:
        raise ValueError(f"a pruning method is one of {', '.join(PRUNING_TYPES)}, got {kind!r}")

    def decorate(function: Method) -> Method:
        function.PRUNING_TYPE = kind  # type: ignore[attr-defined]  # functions have them
        return function

    return decorate


def over_leaves(method: Any) -> Callable[..., list[Tensor]] | None:
    """Give what runs a built-in method over many leaves; `None` for any other method.

    A function that wraps a built-in one may have copied its attributes, but it is another method.

    Args:
        method: a marked function.

    Returns:
        The function of `Leaves` and the method's arguments.
    """
    function = getattr(method, "over_leaves", None)
    return function if getattr(function, "method", None) is method else None


def unwrap(method: Any) -> tuple[Any, dict[str, Any]]:
    """Look through `functools.partial` at the method inside and the arguments that it holds.

    Args:
        method: a marked function, or a partial of one.

    Returns:
        The marked function and its bound keyword arguments.

    Raises:
        TypeError: if the function is not marked, or the partial binds positional arguments.
    """
    bound: dict[str, Any] = {}
    while isinstance(method, functools.partial):
        if method.args:
            raise TypeError("a partial of a pruning method must bind keyword arguments only")
        bound = {**method.keywords, **bound}
        method = method.func
    if isinstance(method, type):
        raise TypeError(
            f"{method.__name__} is a class, a pruning method is a function; use "
            "gprune.l1_unstructured and its like, or gprune.adapter for the classes of torch"
        )
    if not hasattr(method, "PRUNING_TYPE"):
        name = getattr(method, "__name__", repr(method))
        raise TypeError(
            f'{name} is not a pruning method; mark it with @gprune.pruning_method("unstructured")'
        )
    return method, bound


def built_in(kind: str, function: Callable[..., list[Tensor]]) -> Callable[[Method], Method]:
    """Mark a method of gprune and give it its `over_leaves`.

    Args:
        kind: its `PRUNING_TYPE`.
        function: of `Leaves` and the method's own arguments, to one mask per leaf.

    Returns:
        A decorator of the method.
    """

    def decorate(method: Method) -> Method:
        function.__qualname__ = method.__qualname__  # what Python's own TypeErrors name
        function.method = method  # type: ignore[attr-defined]  # functions have them
        method.over_leaves = function  # type: ignore[attr-defined]  # functions have them
        return pruning_method(kind)(method)

    return decorate
