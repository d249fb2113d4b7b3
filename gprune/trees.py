"""Pytrees: flattening with holes, paths, structure checks, and which leaves may be pruned.

The only room that imports optree, but for a node that `gprune.testing` registers. Everywhere else
a tree is a list of leaves and a way back. `None` is a leaf, a *hole*: a place in the tree that is
not pruned. Dict keys are sorted, as optree does, so "flat order" means the same thing whatever
order a dict was filled in.

Dynamo cannot trace optree through a dict without a tensor in it, such as a batch norm whose two
parameters are holes: it folds the constant dict into an optree object that it cannot represent.
So under a trace this room walks dicts itself, into a `TracedDef`.
"""

from __future__ import annotations

import re
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from fnmatch import translate
from typing import Any, TypeAlias

import optree
import torch
from torch import Tensor
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter

Tree: TypeAlias = Any
"""A pytree: nested dicts, lists, tuples, named tuples, registered nodes of tensors and `None`."""

Where: TypeAlias = Callable[[str, Any], bool] | str | Sequence[str] | None
"""What `prunable` selects by: a predicate of (path, leaf), a glob, a list of globs, or `None`."""


@dataclass(frozen=True)
class TracedDef:
    """The structure of a tree under a trace, as `optree.PyTreeSpec` is in eager code.

    Attributes:
        kind: the type of the node, `None` for a leaf.
        metadata: what must agree for two nodes to be of one structure, besides the children.
        entries: how each child is reached, as Python source and as part of a dotted path.
        children: the structures of the children.
        rebuild: makes the node from its children.
    """

    kind: type | None = None
    metadata: Any = None
    entries: tuple[tuple[str, str], ...] = ()
    children: tuple[TracedDef, ...] = ()
    rebuild: Callable[[list[Any]], Any] | None = field(default=None, compare=False)

    def unflatten(self, leaves: Iterator[Any]) -> Any:
        """Take as many leaves as the structure has, and rebuild it."""
        if self.rebuild is None:
            return next(leaves)
        return self.rebuild([child.unflatten(leaves) for child in self.children])

    def paths(self, source: str, dotted: str) -> list[tuple[str, str]]:
        """Give every leaf's place, as Python source and as a dotted path."""
        if self.kind is None:
            return [(source, dotted)]
        found = []
        for (code, name), child in zip(self.entries, self.children, strict=True):
            found += child.paths(source + code, f"{dotted}.{name}" if dotted else name)
        return found


TreeDef: TypeAlias = optree.PyTreeSpec | TracedDef


def prunable(params: Tree, where: Where = None) -> Tree:
    """Give the tree with `None` where a leaf is not to be pruned.

    Args:
        params: pytree of tensors of any shape and dtype.
        where: a predicate `(path, leaf) -> bool`; a glob or a list of globs, matched against the
            dotted path with `fnmatch` rules (`*` crosses dots, case counts, any match is enough);
            or `None` for "floating point and at least two dimensions", which takes the weights of
            linear, convolution and embedding layers and leaves biases and norms alone.

    Returns:
        The same structure and the same tensors, with holes.

    Raises:
        TypeError: if `where` is none of these.

    Example:
        >>> params = {"fc": {"weight": torch.ones(2, 3), "bias": torch.ones(2)}}
        >>> prunable(params)["fc"]["bias"] is None
        True
        >>> prunable(params, "fc.b*")["fc"]["weight"] is None
        True
    """
    chosen = predicate(where)
    leaves, treedef = flatten(params)
    kept = [
        leaf if leaf is not None and chosen(path, leaf) else None
        for path, leaf in zip(dotted_paths(treedef), leaves, strict=True)
    ]
    return unflatten(treedef, kept)


def vmap_dims(tree: Tree, dim: int = 0) -> Tree:
    """Give the `in_dims` or `out_dims` tree that `torch.vmap` needs for a tree with holes.

    Args:
        tree: pytree of tensors and holes.
        dim: the batched dimension of every tensor.

    Returns:
        The same structure, with `dim` at tensors and `None` at holes.

    Example:
        >>> vmap_dims({"bias": None, "weight": torch.ones(5, 2, 3)})
        {'bias': None, 'weight': 0}
    """
    return map_leaves(lambda leaf: None if leaf is None else dim, tree)


def flatten(tree: Tree) -> tuple[list[Any], TreeDef]:
    """Flatten to leaves, holes included, and the structure to rebuild from."""
    if torch.compiler.is_compiling():
        found: list[Any] = []
        return found, _trace(tree, found)
    leaves, treedef = optree.tree_flatten(tree, none_is_leaf=True)
    return leaves, treedef


def unflatten(treedef: TreeDef, leaves: list[Any]) -> Tree:
    """Rebuild the tree of a structure from its leaves."""
    if isinstance(treedef, TracedDef):
        return treedef.unflatten(iter(leaves))
    return optree.tree_unflatten(treedef, leaves)


def is_leaf(tree: Tree) -> bool:
    """Say whether a tree is a single leaf; `None` is one."""
    leaves, _ = flatten(tree)
    return len(leaves) == 1 and leaves[0] is tree


def map_leaves(function: Callable[..., Any], tree: Tree, *rest: Tree) -> Tree:
    """Map over the leaves of trees of one structure; the function sees holes as `None`."""
    leaves, treedef = flatten(tree)
    others = [flatten(other)[0] for other in rest]
    return unflatten(treedef, [function(*group) for group in zip(leaves, *others, strict=True)])


def fill(treedef: TreeDef, leaves: list[Any], tensors: list[Tensor]) -> Tree:
    """Rebuild the tree of `leaves` with `tensors` in place of its tensors; holes stay holes."""
    results = iter(tensors)
    return unflatten(treedef, [None if leaf is None else next(results) for leaf in leaves])


def match(tree: Tree, treedef: TreeDef, name: str, owner: str = "params") -> list[Any]:
    """Flatten a tree that must have the structure of another.

    Args:
        tree: the tree to flatten.
        treedef: the structure that it must have.
        name: what to call the tree in an error.
        owner: what to call the tree that `treedef` is from.

    Returns:
        The leaves, holes included.

    Raises:
        ValueError: if the structures differ, naming the first path where they do.
    """
    leaves, other = flatten(tree)
    if other == treedef:
        return leaves
    has, wants = leaf_names(other, ""), leaf_names(treedef, "")
    missing = [path for path in wants if path not in has]
    extra = [path for path in has if path not in wants]
    if missing:
        detail = f"{name}{missing[0]} is missing"
    elif extra:
        detail = f"{owner} has nothing at {name}{extra[0]}"
    else:
        detail = f"{name} is {other}, {owner} is {treedef}"
    raise ValueError(f"{name} must have the structure of {owner}: {detail}")


def leaf_names(treedef: TreeDef, root: str) -> list[str]:
    """Give every leaf's place as Python source, `params['fc']['weight']`, for error messages."""
    if isinstance(treedef, TracedDef):
        return [source for source, _ in treedef.paths(root, "")]
    return [accessor.codify(root) for accessor in treedef.accessors()]


def dotted_paths(treedef: TreeDef) -> list[str]:
    """Give every leaf's dotted path, `fc.weight`; named tuples and dataclasses by field name."""
    if isinstance(treedef, TracedDef):
        return [dotted for _, dotted in treedef.paths("", "")]
    return [
        ".".join(str(getattr(entry, "field", entry.entry)) for entry in accessor)
        for accessor in treedef.accessors()
    ]


def tensor_problem(leaf: Any) -> str | None:
    """Say why a leaf is no dense tensor, or nothing."""
    if not isinstance(leaf, Tensor):
        return f"must be a tensor or None, got {type(leaf).__name__}"
    # not is_lazy(), which Dynamo does not trace
    if isinstance(leaf, UninitializedParameter | UninitializedBuffer):
        return "is not initialised yet; run the module once first"
    if leaf.layout != torch.strided or leaf.is_nested:
        return "is not a dense tensor; convert it with to_dense()"
    if leaf.is_quantized:
        return "is quantized; convert it with dequantize()"
    return None


def require_tensors(leaves: list[Any], treedef: TreeDef, root: str) -> None:
    """Refuse leaves that are neither dense tensors nor holes.

    Args:
        leaves: the leaves of a tree.
        treedef: its structure.
        root: what to call the tree in the error.

    Raises:
        TypeError: if there are any, naming them all.
    """
    wrong = [i for i, leaf in enumerate(leaves) if leaf is not None and tensor_problem(leaf)]
    if not wrong:
        return
    if any(isinstance(leaf, torch.nn.Module) for leaf in leaves):
        raise TypeError(
            f"{root} must be a tree of tensors, got a module; pass dict(module.named_parameters())"
        )
    names = leaf_names(treedef, root)
    raise TypeError("; ".join(f"{names[i]} {tensor_problem(leaves[i])}" for i in wrong))


def predicate(where: Where) -> Callable[[str, Any], bool]:
    """Give the predicate that a `where` stands for; see `prunable`."""
    if where is None:
        return _is_floating_matrix
    if callable(where):
        return where
    globs = [where] if isinstance(where, str) else where
    if isinstance(globs, Sequence) and all(isinstance(glob, str) for glob in globs):
        patterns = [re.compile(translate(glob)) for glob in globs]  # fnmatchcase warns in a trace
        return lambda path, leaf: any(pattern.match(path) for pattern in patterns)
    raise TypeError(
        "where must be None, a glob, a list of globs or a predicate (path, leaf) -> bool, "
        f"got {where!r}"
    )


def _is_floating_matrix(path: str, leaf: Any) -> bool:
    return isinstance(leaf, Tensor) and torch.is_floating_point(leaf) and leaf.dim() >= 2


def _trace(tree: Tree, leaves: list[Any]) -> TracedDef:
    """Flatten under a trace: append the leaves in optree's order, and give the structure."""
    if tree is None or optree.tree_is_leaf(tree, none_is_leaf=True):
        leaves.append(tree)
        return TracedDef()
    kind = type(tree)
    rebuild: Callable[[list[Any]], Any]
    if kind in (dict, OrderedDict, defaultdict):
        keys = list(tree) if kind is OrderedDict else optree.utils.total_order_sorted(tree)
        children, metadata, entries = [tree[key] for key in keys], keys, keys
        rebuild = _dict_rebuilder(tree, keys)
    else:
        node: Any = optree.tree_flatten_one_level(tree, none_is_leaf=True)
        children, metadata, entries, remake = node

        def rebuild(parts: list[Any]) -> Any:
            return remake(metadata, parts)

    fields = getattr(tree, "_fields", None) if isinstance(tree, tuple) else None
    places = (
        [(f".{name}", name) for name in fields]
        if fields
        else [(f"[{entry!r}]", str(entry)) for entry in entries]
    )
    parts = tuple(_trace(child, leaves) for child in children)
    return TracedDef(kind, metadata, tuple(places), parts, rebuild)


def _dict_rebuilder(like: dict[Any, Any], keys: Sequence[Any]) -> Callable[[list[Any]], Any]:
    order = list(like)

    def rebuild(children: list[Any]) -> Any:
        values = dict(zip(keys, children, strict=True))
        ordered = {key: values[key] for key in order}
        if type(like) is defaultdict:
            return defaultdict(like.default_factory, ordered)
        return OrderedDict(ordered) if type(like) is OrderedDict else ordered

    return rebuild
