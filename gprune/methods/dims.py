"""`dim=`: the dims of each leaf along which a method compares or groups entries.

`dim` is an int, a tuple of ints, or a function `(path, leaf)` that returns one of these for each
leaf. One int does not mean the same for all leaves: the last dim of a linear weight holds its
inputs, and the last dim of a convolution weight is the width of its kernel.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

from torch import Tensor

from gprune.inputs import LeafError, Leaves

DimFunction: TypeAlias = Callable[[str, Tensor], int | tuple[int, ...]]
"""A function of the dotted path of a leaf and of the leaf, which returns some of its dims."""


def input_dims(path: str, leaf: Tensor) -> tuple[int, ...]:
    """Return the dims of a weight that hold the inputs of one output: all but the first.

    This is right for weights of linear layers, (outputs, inputs), and of convolutions,
    (outputs, inputs, *kernel). For a vector it is dim 0. `layerwise(params, scores, amount=0.5,
    dim=gp.input_dims)` prunes half of the inputs of every output, as Wanda does.

    Weights with another layout need a function of your own that knows them by their paths. A
    transposed convolution has the shape (inputs, outputs, *kernel), so its input dims are all but
    dim 1. The `Conv1D` of transformers has the shape (inputs, outputs), so its input dim is 0.
    Experts packed into one tensor have the shape (experts, outputs, inputs), so their input dim is
    2, or 1 in models that store (experts, inputs, outputs).

    Args:
        path: the dotted path of the leaf, `""` in a direct call; not used.
        leaf: the weight, of any shape.

    Returns:
        The dims.

    Raises:
        TypeError: if the leaf is not a tensor.

    Example:
        >>> import torch, gprune as gp
        >>> gp.input_dims("conv.weight", torch.ones(16, 32, 3, 3))
        (1, 2, 3)
        >>> def dims(path, leaf):
        ...     return 2 if "experts" in path else gp.input_dims(path, leaf)
        >>> params = {"experts": torch.rand(3, 5, 8), "fc": torch.rand(5, 8)}
        >>> masks = gp.layerwise(params, amount=0.25, dim=dims)
        >>> masks["experts"].sum(2).unique(), masks["fc"].sum(1).unique()
        (tensor([6]), tensor([6]))

    References:
        Sun et al., 2024, arXiv:2306.11695, section 3 (comparison per output).
    """
    if not isinstance(leaf, Tensor):
        raise TypeError(f"leaf must be a tensor, got {type(leaf).__name__}")
    return tuple(range(1, leaf.dim())) or (0,)


def value_per_leaf(dim: Any, paths: Callable[[], list[str]], leaves: list[Tensor]) -> list[Any]:
    """Return the value of `dim` for each leaf: `dim(path, leaf)` if it is a function, else `dim`.

    The values are not checked.

    Args:
        dim: the argument of a method.
        paths: returns the dotted paths of the leaves; called only if `dim` is a function.
        leaves: the leaves.

    Returns:
        One value per leaf.
    """
    if callable(dim):
        return [dim(path, leaf) for path, leaf in zip(paths(), leaves, strict=True)]
    return [dim] * len(leaves)


def dims_per_leaf(dim: Any, leaves: Leaves) -> list[list[int]]:
    """Check `dim` for every ranked leaf, and return the dims of each.

    Args:
        dim: an int, a tuple of ints, or a function of (path, leaf).
        leaves: the ranked leaves.

    Returns:
        The dims of each leaf, counted from 0 and ascending.

    Raises:
        LeafError: if a value is none of these, a leaf has no such dim, or a dim is given twice.
    """
    dims = []
    for i, given in enumerate(value_per_leaf(dim, leaves.paths, leaves.params)):
        try:
            dims.append(ascending_dims(given, leaves.params[i].shape))
        except (TypeError, ValueError) as error:
            raise LeafError(i, "params", str(error), type(error)) from None
    return dims


def ascending_dims(dims: Any, shape: tuple[int, ...]) -> list[int]:
    """Check the dims of one leaf.

    Args:
        dims: an int or a tuple of ints.
        shape: the shape of the leaf.

    Returns:
        The dims, counted from 0 and ascending.

    Raises:
        TypeError: if `dims` is neither.
        ValueError: if the leaf has no such dim, or a dim is given twice.
    """
    given = list(dims) if isinstance(dims, tuple | list) else [dims]
    if not given or any(isinstance(d, bool) or not isinstance(d, int) for d in given):
        raise TypeError(
            "dim must be an int, a tuple of ints, or a function (path, leaf) that returns one of "
            f"these, got {dims!r}"
        )
    if any(not -len(shape) <= d < len(shape) for d in given):
        raise ValueError(f"dim {dims!r} is out of range for a leaf of shape {tuple(shape)}")
    ascending = sorted({d % len(shape) for d in given})
    if len(ascending) < len(given):
        raise ValueError(f"dim must name each dim once, got {dims!r}")
    return ascending


def one_dim(dim: Any, shape: tuple[int, ...]) -> int:
    """Check a `dim` that must be a single dim of a leaf.

    Args:
        dim: the value for this leaf.
        shape: the shape of the leaf.

    Returns:
        The dim, counted from 0.

    Raises:
        TypeError: if it is not an int.
        ValueError: if the leaf has no such dim.
    """
    if isinstance(dim, bool) or not isinstance(dim, int):
        raise TypeError(f"dim must be an int or a function (path, leaf) -> int, got {dim!r}")
    if not -len(shape) <= dim < len(shape):
        raise ValueError(f"dim {dim} is out of range for a leaf of shape {tuple(shape)}")
    return dim % len(shape)


def single_entry_problem(shape: tuple[int, ...], dims: list[int]) -> str | None:
    """Return an error message if every group along some dims is a single entry, or else `None`.

    In such a group there is nothing to rank, and `amount=0.5` prunes nothing. The dim is probably
    wrong, such as the last dim of a 1x1 convolution.

    Args:
        shape: the shape of the leaf.
        dims: the dims that a group runs along.

    Returns:
        The message, without the name of the leaf, or `None`.
    """
    if 0 in shape or any(shape[dim] != 1 for dim in dims):
        return None
    named = f"dim {dims[0]}" if len(dims) == 1 else f"dims {tuple(dims)}"
    return (
        f"every group along {named} is a single entry in a leaf of shape {tuple(shape)}; "
        "choose another dim, or make the leaf None with prunable()"
    )
