"""Checks of what a user passes: params, scores and prior masks become aligned lists of leaves.

The rest of gprune trusts these lists. If several leaves are wrong, one error names them all.
"""

from __future__ import annotations

import functools
import numbers
from collections.abc import Sequence
from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor

from gprune.trees import (
    Tree,
    TreeDef,
    describe_first,
    dotted_paths,
    flatten,
    is_single_leaf,
    leaf_names,
    leaves_like,
    require_tensors,
    tensor_problem,
)

RANKABLE_DTYPES = {
    torch.float16: torch.float16,
    torch.bfloat16: torch.bfloat16,
    torch.float32: torch.float32,
    torch.float64: torch.float64,
    torch.uint8: torch.float32,
    torch.int8: torch.float32,
    torch.int16: torch.float32,
    torch.int32: torch.float64,
    torch.int64: torch.float64,
}
"""The dtypes that can be ranked, and the floating dtype that holds each exactly."""

PLAIN = (Tensor, torch.nn.Parameter)
"""A tensor whose type is exactly one of these is neither a DTensor nor a fake tensor."""


class LeafError(ValueError):
    """An error in one leaf, raised where the leaf's path is not known.

    The public functions catch it and raise an error of `kind` that names the leaf; see
    `raise_with_path`.

    Attributes:
        leaf: the index of the leaf among the ranked leaves.
        tree: the argument that has the wrong leaf: `params`, `amount`, `sparsity` or `scores`. For
            the tensors that rank it is `scores`, also if these are the parameters.
        message: the error as a clause. The leaf's name and a colon are put before it.
        kind: the class of the error to raise.
    """

    def __init__(
        self, leaf: int, tree: str, message: str, kind: type[Exception] = ValueError
    ) -> None:
        super().__init__(f"{tree} of ranked leaf {leaf}: {message}")
        self.leaf = leaf
        self.tree = tree
        self.message = message
        self.kind = kind


class Leaves(NamedTuple):
    """The leaves that a call ranks, as aligned lists in pytree order.

    Attributes:
        params: the parameters, detached.
        scores: the scores, detached; `None` if the call has none and ranks by magnitude.
        ranked_by: the tensors that rank: the scores, or the parameters if there are no scores.
        masks: the prior masks; an empty list where nothing is pruned yet.
        flat: every leaf of the tree, with `None` for a leaf that is not ranked.
        treedef: the structure of the tree.
        min_per_leaf: how many entries each leaf keeps at least, or the fraction of its entries, a
            0-dim tensor; `None` if a leaf may lose all.
    """

    params: list[Tensor]
    scores: list[Tensor] | None
    ranked_by: list[Tensor]
    masks: list[Tensor]
    flat: list[Any]
    treedef: TreeDef
    min_per_leaf: Tensor | None = None

    def paths(self) -> list[str]:
        """Return the dotted path of every ranked leaf."""
        return self._ranked_only(dotted_paths(self.treedef))

    def names(self, tree: str) -> list[str]:
        """Return every ranked leaf as Python source, `params['fc']['weight']`."""
        return self._ranked_only(leaf_names(self.treedef, tree))

    def _ranked_only(self, values: list[str]) -> list[str]:
        pairs = zip(values, self.flat, strict=True)
        return [value for value, leaf in pairs if leaf is not None]


def align(
    params: Tree,
    scores: Tree,
    masks: Tree,
    names: tuple[str, str, str] = ("params", "scores", "masks"),
) -> Leaves:
    """Check params, scores and prior masks against each other, and list the leaves to rank.

    A leaf is ranked if `params` has a tensor there and `masks` does not have `None`. Scores of the
    other leaves are ignored.

    Args:
        params: pytree of tensors and `None`.
        scores: pytree of that structure, or `None` to rank by magnitude.
        masks: pytree of bool masks of that structure, or `None` where nothing is pruned yet.
        names: what errors call the three.

    Returns:
        The ranked leaves.

    Raises:
        TypeError: if a leaf is not a dense tensor or has the wrong dtype.
        ValueError: if a structure, shape or device differs, or there is no leaf to rank.
    """
    flat, treedef = flatten(params)
    if not all(map(_is_plain, flat)):
        require_tensors(flat, treedef, names[0])
    if scores is not None and not isinstance(scores, (dict, Tensor)):
        require_score_tensors(scores, names)
    given = flat if scores is None else leaves_like(scores, treedef, names[1], names[0])
    # a leaf is ranked if neither its parameter nor its prior mask is None
    priors = flat if masks is None else leaves_like(masks, treedef, names[2], names[0])
    wrong_types: list[tuple[int, str, str]] = []  # each as (leaf, tree, problem)
    wrong_values: list[tuple[int, str, str]] = []
    ranked_indices = []
    for i, param in enumerate(flat):
        if masks is not None and priors[i] is not None:
            if problem := mask_problem(priors[i]):
                wrong_types.append((i, names[2], problem))
            elif problem := mismatch(priors[i], param):
                wrong_values.append((i, names[2], problem))
        if param is None or priors[i] is None:
            continue  # not ranked
        ranked_indices.append(i)
        if scores is None:
            if param.dtype not in RANKABLE_DTYPES:
                wrong_types.append((i, names[0], _dtype_problem(param)))
        elif given[i] is not None and (problem := score_problem(given[i], names[2])):
            wrong_types.append((i, names[1], problem))
        elif problem := mismatch(given[i], param):
            wrong_values.append((i, names[1], problem))
    if wrong_types:
        raise TypeError(_listed(wrong_types, treedef))
    if not ranked_indices:
        raise ValueError(_nothing_to_rank(flat, names))
    on_meta = [i for i in ranked_indices if flat[i].is_meta]
    if 0 < len(on_meta) < len(ranked_indices):
        problem = "is on the meta device, others have values"
        wrong_values += [(i, names[0], problem) for i in on_meta]
    if wrong_values:
        raise ValueError(_listed(wrong_values, treedef))
    detached_scores = None if scores is None else [given[i].detach() for i in ranked_indices]
    tensors = [flat[i].detach() for i in ranked_indices]
    prior_list = [] if masks is None else [priors[i] for i in ranked_indices]
    if len(ranked_indices) < len(flat):
        flat = [None if mask is None else leaf for leaf, mask in zip(flat, priors, strict=True)]
    ranked_by = tensors if detached_scores is None else detached_scores
    return Leaves(tensors, detached_scores, ranked_by, prior_list, flat, treedef)


def require_score_tensors(scores: Any, names: tuple[str, str, str]) -> None:
    """Raise a TypeError if the scores are a number, a string or a function instead of tensors.

    Args:
        scores: what the user has passed as scores.
        names: what errors call params, scores and prior masks.

    Raises:
        TypeError: if they are; the error says what to pass instead.
    """
    params, name, _ = names
    got = f"{name} must be tensors like {params}, got"
    if isinstance(scores, numbers.Real):
        raise TypeError(f"{got} {scores!r}; pass a number by name: amount={scores} or sparsity=...")
    if isinstance(scores, str):
        raise TypeError(f"{got} {scores!r}; pass gprune.scores.magnitude({params}) or its like")
    if not callable(scores) or not is_single_leaf(scores) or isinstance(scores, torch.nn.Module):
        return
    inner = scores.func if isinstance(scores, functools.partial) else scores
    function = getattr(inner, "__name__", type(inner).__name__)
    if hasattr(inner, "PRUNING_TYPE") and not isinstance(inner, type):
        raise TypeError(
            f"{got} the pruning method {function}; pass it by name: pruning_method={function}"
        )
    if isinstance(inner, type):
        raise TypeError(
            f"{got} the class {function}; pass a method of gprune by name, such as "
            "pruning_method=gprune.l1_unstructured, or use gprune.adapter for the classes of torch"
        )
    raise TypeError(f"{got} the function {function}; pass what it returns for {params}")


def raise_with_path(error: LeafError, leaves: Leaves) -> NoReturn:
    """Raise a `LeafError` as an error of its `kind` that names the leaf by its path."""
    tree = "params" if error.tree == "scores" and leaves.scores is None else error.tree
    name = leaves.names(tree)[error.leaf]
    is_bare = name == tree  # the tree is one tensor, which has no path
    named = error.kind(error.message if is_bare else f"{name}: {error.message}")
    named.__dict__.update(is_on_all_ranks=getattr(error, "is_on_all_ranks", False))
    raise named from None


def score_problem(scores: Any, masks: str = "masks") -> str | None:
    """Return what is wrong with the type of one leaf of scores, or `None`.

    Args:
        scores: the leaf.
        masks: what errors call the prior masks; a bool leaf was probably meant as one.

    Returns:
        The end of a sentence that starts with the leaf's name, or `None`.
    """
    if _is_plain(scores) and scores is not None and scores.dtype in RANKABLE_DTYPES:
        return None
    if problem := tensor_problem(scores):
        return problem.replace("a tensor or None", "a tensor")
    if scores.dtype in RANKABLE_DTYPES:
        return None
    hint = f"; a prior mask is passed as {masks}=" if scores.dtype == torch.bool else ""
    return _dtype_problem(scores) + hint


def mask_problem(mask: Any) -> str | None:
    """Return what is wrong with the type of one mask, or `None`."""
    if not _is_plain(mask) and (problem := tensor_problem(mask)):
        return problem
    if mask.dtype != torch.bool:
        return (
            f"has dtype {mask.dtype}, a mask is torch.bool (True = keep); did you mean mask != 0?"
        )
    return None


def mismatch(
    leaf: Tensor | None, param: Tensor | None, param_name: str = "its parameter"
) -> str | None:
    """Return how a leaf of scores or masks differs from its parameter, or `None` if it fits.

    Args:
        leaf: the scores or the mask.
        param: the parameter, or the other mask that the mask is compared with.
        param_name: what errors call the parameter or the other mask.

    Returns:
        The end of a sentence that starts with the leaf's name, or `None`.
    """
    if param is None:
        return None if leaf is None else f"is a tensor, {param_name} is None (not prunable)"
    if leaf is None:
        return f"is None, {param_name} is a tensor; give it a value, or make both of them None"
    if leaf.shape != param.shape:
        return f"has shape {tuple(leaf.shape)}, {param_name} has {tuple(param.shape)}"
    if leaf.device != param.device:
        return f"is on {leaf.device}, {param_name} is on {param.device}"
    if type(leaf) in PLAIN and type(param) in PLAIN:
        return None
    if _placement(leaf) != _placement(param):
        return (
            f"is placed as {_placement(leaf)}, {param_name} as {_placement(param)}; redistribute it"
        )
    return None


def _is_plain(leaf: Any) -> bool:
    """Return whether a cheap check suffices to see that a leaf is a dense tensor or `None`."""
    return leaf is None or (
        type(leaf) in PLAIN
        and leaf.layout == torch.strided
        and not leaf.is_nested
        and not leaf.is_quantized
    )


def _dtype_problem(leaf: Tensor) -> str:
    names = ", ".join(str(dtype).removeprefix("torch.") for dtype in RANKABLE_DTYPES)
    return f"has dtype {leaf.dtype}, which cannot be ranked; cast it to one of {names}"


def _nothing_to_rank(flat: list[Any], names: tuple[str, str, str]) -> str:
    params, _, masks = names
    if all(leaf is None for leaf in flat):
        return (
            f"{params} has no prunable leaf: every leaf is None; did the globs of prunable() match?"
        )
    return (
        f"{masks} has no mask for a prunable leaf: every mask there is None, which means that the "
        f"leaf is not ranked; pass keep_all({params}), or {masks}=None if nothing is pruned yet"
    )


def _listed(problems: list[tuple[int, str, str]], treedef: TreeDef) -> str:
    names = {tree: leaf_names(treedef, tree) for tree in {tree for _, tree, _ in problems}}
    return describe_first(problems, lambda found: f"{names[found[1]][found[0]]} {found[2]}")


def float64_device(device: torch.device) -> torch.device:
    """Return the device, or the CPU if the device has no float64.

    Computations that need float64 take place there, so their results do not depend on the device.
    """
    if device.type in ("cpu", "mps"):  # while tracing, an empty tensor on MPS raises no error
        return torch.device("cpu")
    try:
        torch.empty(0, dtype=torch.float64, device=device)
    except TypeError:
        return torch.device("cpu")
    return device


def unwrap(leaves: Sequence[Any]) -> Sequence[Any]:
    """Return the leaves without the wrappers of `torch.func.grad` and `vmap`.

    A wrapped DTensor does not have the class and the attributes of a DTensor.

    Args:
        leaves: tensors, wrapped or not, and anything else.

    Returns:
        The same leaves, none of them wrapped.
    """
    if torch.compiler.is_compiling() or torch._C._functorch.peek_interpreter_stack() is None:
        return leaves  # while compiling, Dynamo sees the tensors inside
    found = []
    for leaf in leaves:
        while isinstance(leaf, Tensor) and torch._C._functorch.is_functorch_wrapped_tensor(leaf):
            leaf = torch._C._functorch.get_unwrapped(leaf)
        found.append(leaf)
    return found


def _placement(leaf: Tensor) -> Any:
    """Return the placements and the mesh of a DTensor; `None` for a plain tensor."""
    [leaf] = unwrap([leaf])
    mesh = getattr(leaf, "device_mesh", None)
    return None if mesh is None else (getattr(leaf, "placements", None), mesh)
