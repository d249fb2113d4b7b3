"""What a pruning method is: a function of one parameter, and how it selects over many leaves.

A method is called directly as `method(param, scores=None, *, mask=None, **kwargs)`. The combinators
call its `select` instead, once, with all leaves. A method of gprune passes its own `select`, which
streams over the leaves. The `select` of a user's method calls the user's function, once per leaf or
once with the concatenation of all leaves.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, Generic, ParamSpec

import torch
from torch import Tensor

from gprune.inputs import RANKABLE_DTYPES, LeafError, Leaves, align, require_score_tensors
from gprune.sharding import raise_on_all_ranks, require_unsharded

P = ParamSpec("P")

PRUNING_TYPES = ("unstructured", "structured", "semi_structured")

NUMBER_ARGUMENTS = ("amount", "sparsity")
"""The arguments of methods for which `layerwise` also takes a tree, with one number per leaf."""


class PruningMethod(Generic[P]):
    """A function that prunes one parameter, its type, and a function that prunes many leaves.

    `pruning_method` makes the methods of users, and `built_in` makes those of gprune. Calling a
    method calls the function. A method is immutable, and it is pickled by its name, as a function
    is.

    Attributes:
        function: the function that prunes one parameter.
        PRUNING_TYPE: `"unstructured"`, `"structured"` or `"semi_structured"`.
        select: `select(leaves, per_leaf=..., **kwargs)`, which returns one mask per ranked leaf of
            `gprune.inputs.Leaves`. If `per_leaf` is true, each leaf is ranked alone, and `amount`
            and `sparsity`, where they are given, are lists with one number per leaf. Otherwise all
            leaves are ranked together.
    """

    __name__: str
    __qualname__: str
    function: Callable[P, Tensor]
    PRUNING_TYPE: str
    select: Callable[..., list[Tensor]]

    def __init__(
        self, function: Callable[P, Tensor], kind: str, select: Callable[..., list[Tensor]]
    ) -> None:
        name = type(function).__name__  # for callables without a name
        attributes = {"__name__": name, "__qualname__": name, **getattr(function, "__dict__", {})}
        # not functools.update_wrapper, which would call __setattr__
        for attribute in functools.WRAPPER_ASSIGNMENTS:
            if hasattr(function, attribute):
                attributes[attribute] = getattr(function, attribute)
        attributes |= {"__wrapped__": function, "function": function}
        vars(self).update(attributes, PRUNING_TYPE=kind, select=select)

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(
            f"{self.__name__} is immutable, so {name} cannot be set; "
            "make another method with pruning_method()"
        )

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"{self.__name__} is immutable, so {name} cannot be deleted")

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Tensor:
        """Call the function."""
        return self.function(*args, **kwargs)

    def __get__(self, instance: object, owner: type | None = None) -> PruningMethod[P]:
        """Return the method itself, also where it is an attribute of a class.

        `help` shows the signature of an object only if it has a `__get__`, as functions have.
        """
        return self

    def __reduce__(self) -> str:
        return self.__qualname__

    def __repr__(self) -> str:
        return f"<{self.PRUNING_TYPE} pruning method {self.__name__}>"


def pruning_method(kind: str) -> Callable[[Callable[P, Tensor]], PruningMethod[P]]:
    """Return a decorator that makes a pruning method of a function of one parameter.

    The function is called as `method(param, scores, mask=mask, **kwargs)` and returns a bool mask
    of the shape of `param`, `True` = keep. `scores` is `None` if the user gave none. `mask` is the
    prior mask, all `True` if there is none; what it has pruned stays pruned, also if the function
    returns `True` there. `layerwise` calls the function once per leaf. `global_unstructured` calls
    it once, with the 1-D concatenations of all parameters, all scores and all prior masks.

    Args:
        kind: `"unstructured"` if single entries are chosen; otherwise `"structured"` or
            `"semi_structured"`, which `layerwise` takes and `global_unstructured` refuses.

    Returns:
        A decorator. It turns the function into a `PruningMethod`, which can still be called as
        before.

    Raises:
        ValueError: if `kind` is none of these.

    Example:
        >>> import torch, gprune as gp
        >>> @gp.pruning_method("unstructured")
        ... def keep_positive(param, scores=None, *, mask=None):
        ...     return param > 0
        >>> keep_positive.PRUNING_TYPE
        'unstructured'
        >>> keep_positive(torch.tensor([1.0, -2.0]))
        tensor([ True, False])
    """
    if kind not in PRUNING_TYPES:
        kinds = ", ".join(PRUNING_TYPES)
        raise ValueError(f"pruning_method() takes one of {kinds} as its kind, got {kind!r}")

    def decorate(function: Callable[P, Tensor]) -> PruningMethod[P]:
        def select(leaves: Leaves, *, per_leaf: bool, **kwargs: Any) -> list[Tensor]:
            run = call_per_leaf if per_leaf else call_on_concatenation
            return run(function, method.__name__, leaves, **kwargs)

        method = PruningMethod(function, kind, select)
        return method

    return decorate


def built_in(
    kind: str, select: Callable[..., list[Tensor]]
) -> Callable[[Callable[P, Tensor]], PruningMethod[P]]:
    """Make a method of gprune, which selects over many leaves without concatenating them.

    Args:
        kind: its `PRUNING_TYPE`.
        select: as described in `PruningMethod`.

    Returns:
        A decorator of the function of one parameter.
    """

    def decorate(function: Callable[P, Tensor]) -> PruningMethod[P]:
        return PruningMethod(raise_on_all_ranks(function), kind, select)

    return decorate


def select_on_one_leaf(
    select: Callable[..., list[Tensor]], param: Any, scores: Any, mask: Any, **kwargs: Any
) -> Tensor:
    """Run a built-in method as `layerwise` does, on the one leaf of a direct call.

    Args:
        select: how the method selects over many leaves.
        param: the parameter.
        scores: its scores, or `None`.
        mask: its prior mask, or `None`.
        **kwargs: the arguments of `select`.

    Returns:
        The mask.

    Raises:
        TypeError: if an argument is not a tensor or has the wrong dtype.
        ValueError: if a shape or device differs, or a number is out of range.
    """
    names = ("param", "scores", "mask")
    for name, given in zip(names, (param, scores, mask), strict=True):
        if name == "scores":
            require_score_tensors(scores, names)
        if not isinstance(given, Tensor) and (given is not None or name == "param"):
            raise TypeError(
                f"{name} must be a tensor, got {type(given).__name__}; to prune a tree, pass the "
                "method to layerwise, as pruning_method="
            )
    leaves = align(param, scores, mask, names=names)
    arguments = {
        name: [value] if name in NUMBER_ARGUMENTS and value is not None else value
        for name, value in kwargs.items()
    }
    try:
        [kept] = select(leaves, per_leaf=True, **arguments)
    except LeafError as error:
        raise error.kind(error.message) from None
    return kept


def unwrap_partials(method: Any) -> tuple[PruningMethod[...], dict[str, Any]]:
    """Return the method inside nested `functools.partial`s, and the arguments that they bind.

    Args:
        method: a pruning method, or a partial of one.

    Returns:
        The method, and its bound keyword arguments.

    Raises:
        TypeError: if there is no pruning method inside, or positional arguments are bound.
    """
    bound: dict[str, Any] = {}
    while isinstance(method, functools.partial):
        if method.args:
            raise TypeError("a partial of a pruning method must bind keyword arguments only")
        bound = {**method.keywords, **bound}
        method = method.func
    if isinstance(method, PruningMethod):
        return method, bound
    if isinstance(method, type):
        raise TypeError(
            f"{method.__name__} is a class, but a pruning method is a function; use a method of "
            "gprune, such as gprune.l1_unstructured, or use gprune.adapter for the classes of torch"
        )
    if isinstance(method, str):
        raise TypeError(
            f"a pruning method is a function, got {method!r}; pass one of gprune, such as "
            "gprune.l1_unstructured"
        )
    name = getattr(method, "__name__", repr(method))
    raise TypeError(
        f'{name} is not a pruning method; mark it with @gprune.pruning_method("unstructured")'
    )


def check_arguments(method: PruningMethod[...], arguments: dict[str, Any]) -> None:
    """Raise a TypeError that names the method, if an argument is unknown or missing.

    Python's own error would name the `select` of the method, which the user has not called. This
    check is slow, so it is made only after a TypeError.

    Args:
        method: the method.
        arguments: its keyword arguments.

    Raises:
        TypeError: if the method does not take these arguments.
    """
    try:
        inspect.signature(method).bind(None, None, mask=None, **arguments)
    except TypeError as error:
        raise TypeError(f"{method.__name__}() {error}") from None


# --- how a user's method is called ----------------------------------------------------------------


def call_per_leaf(
    function: Callable[..., Any], name: str, leaves: Leaves, **kwargs: Any
) -> list[Tensor]:
    """Call a user's function once per leaf."""
    require_unsharded(leaves.params, name)
    masks = []
    for i, (param, prior) in enumerate(zip(leaves.params, _prior_masks(leaves), strict=True)):
        scores = None if leaves.scores is None else leaves.scores[i]
        arguments = {
            key: value[i] if key in NUMBER_ARGUMENTS and value is not None else value
            for key, value in kwargs.items()
        }
        masks.append(_call(function, name, param, scores, prior, arguments))
    return masks


def call_on_concatenation(
    function: Callable[..., Any], name: str, leaves: Leaves, **kwargs: Any
) -> list[Tensor]:
    """Call a user's function once, with the 1-D concatenations of all leaves."""
    require_unsharded(leaves.params, name)
    if leaves.min_per_leaf is not None:
        raise TypeError(
            f"{name} chooses the entries itself, so min_per_leaf has no effect on it; use a method "
            "of gprune"
        )
    devices = {param.device for param in leaves.params}
    if len(devices) > 1:
        got = " and ".join(sorted(map(str, devices)))
        raise ValueError(
            f"{name} needs all leaves on one device, got {got}; move them to one, or use a method "
            "of gprune"
        )
    params = _concatenate(leaves.params, name)
    scores = None if leaves.scores is None else _concatenate(leaves.scores, name)
    prior = torch.cat([mask.reshape(-1) for mask in _prior_masks(leaves)])
    kept = _call(function, name, params, scores, prior, kwargs)
    parts = torch.split(kept, [param.numel() for param in leaves.params])
    pairs = zip(parts, leaves.params, strict=True)
    return [part.reshape(param.shape).clone() for part, param in pairs]


def _call(
    function: Callable[..., Any],
    name: str,
    param: Tensor,
    scores: Tensor | None,
    prior: Tensor,
    kwargs: dict[str, Any],
) -> Tensor:
    """Call a user's function, check its mask, and keep pruned what the prior mask has pruned."""
    kept: Any = function(param, scores, mask=prior, **kwargs)
    if not isinstance(kept, Tensor) or kept.dtype != torch.bool or kept.shape != param.shape:
        got = f"{kept.dtype} of shape {tuple(kept.shape)}" if isinstance(kept, Tensor) else kept
        raise ValueError(f"{name} must return a bool mask of shape {tuple(param.shape)}, got {got}")
    return torch.logical_and(prior, kept)


def _prior_masks(leaves: Leaves) -> list[Tensor]:
    return leaves.masks or [torch.ones_like(x, dtype=torch.bool) for x in leaves.params]


def _concatenate(leaves: list[Tensor], name: str) -> Tensor:
    """Concatenate leaves of any shapes; mixed dtypes are cast to one that holds them exactly."""
    dtypes = {leaf.dtype for leaf in leaves}
    if len(dtypes) > 1:
        if not dtypes <= RANKABLE_DTYPES.keys():
            names = ", ".join(sorted(map(str, dtypes)))
            raise TypeError(
                f"{name} needs leaves of one dtype, or of dtypes that gprune can rank, got {names}"
            )
        exact = functools.reduce(torch.promote_types, (RANKABLE_DTYPES[dtype] for dtype in dtypes))
        leaves = [leaf.to(exact) for leaf in leaves]
    return torch.cat([leaf.reshape(-1) for leaf in leaves])
