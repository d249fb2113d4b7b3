"""Pytrees: flattening with `None` leaves, paths, structure checks, and which leaves to prune.

The rest of gprune sees a tree as a list of leaves and a structure to rebuild it from. `None` is a
leaf: it marks a place in the tree that is not pruned. Dict keys are sorted, as optree sorts them,
so the flat order does not depend on the order in which a dict was filled.

Only this file imports optree. The one exception is `gprune.testing`, which registers a node class.

Dynamo cannot trace optree through a dict that holds no tensor, such as a batch norm whose two
parameters are `None`. So inside a trace this file walks the tree itself; see `TracedDef`.
"""

from __future__ import annotations

import re
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from fnmatch import translate
from types import GeneratorType
from typing import Any, TypeAlias, TypeVar

import optree
import torch
from torch import Tensor
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter

Tree: TypeAlias = Any
"""A pytree: nested dicts, lists, tuples, named tuples, registered nodes of tensors and `None`."""

Where: TypeAlias = Callable[[str, Any], bool] | str | Sequence[str] | None
"""Which leaves to take: a predicate `(path, leaf) -> bool`, globs, or `None` for the default."""

Item = TypeVar("Item")

MOST_NAMED = 10
"""The most leaves that one error names."""

MOST_SHOWN = 500
"""The most characters of a structure that an error shows."""

_NOT_WEIGHTS = ("bias", "norm", "token", "tokens", "pos", "position", "positions")
"""Parts of names that mark parameters as no weights: `in_proj_bias`, `cls_token`, ..."""


@dataclass(frozen=True)
class TracedDef:
    """The structure of a tree inside a trace, where optree's own `PyTreeSpec` is not available.

    Attributes:
        kind: the type of the node, `None` for a leaf.
        metadata: what must be equal in two nodes for their structures to be equal, besides their
            children: for a dict its keys.
        entries: how to reach each child: as Python source, and as a part of a dotted path.
        children: the structures of the children.
        rebuild: builds the node from its children.
    """

    kind: type | None = None
    metadata: Any = None
    entries: tuple[tuple[str, str], ...] = ()
    children: tuple[TracedDef, ...] = ()
    rebuild: Callable[[list[Any]], Any] | None = field(default=None, compare=False)

    def unflatten(self, leaves: Iterator[Any]) -> Any:
        """Rebuild the tree from the next leaves of an iterator, as many as it needs."""
        if self.rebuild is None:
            return next(leaves)
        return self.rebuild([child.unflatten(leaves) for child in self.children])

    def paths(self, source: str, dotted: str) -> list[tuple[str, str]]:
        """Return the path of every leaf, as Python source and dotted."""
        if self.kind is None:
            return [(source, dotted)]
        found = []
        for (code, name), child in zip(self.entries, self.children, strict=True):
            found += child.paths(source + code, f"{dotted}.{name}" if dotted else name)
        return found


TreeDef: TypeAlias = optree.PyTreeSpec | TracedDef


def prunable(params: Tree, where: Where = None, *, exclude: Where = None) -> Tree:
    """Return the tree with `None` in place of the leaves that are not to be pruned.

    By default the floating point leaves of at least two dimensions are taken: the weights of
    linear, convolution, embedding and recurrent layers. Three kinds of such leaves are left out:

    - Leaves whose own name says that they are not weights. The name is the last component of the
      dotted path, `bias_k` in `attention.bias_k`. The leaf is left out if one of the parts of its
      name between underscores is bias, norm, token, tokens, pos, position or positions. The names
      of the modules above do not count: `embed_tokens.weight` is taken.
    - Leaves that have a `bias` of their own shape beside them (the same dotted path up to the last
      component): the weights of a layer norm over several dims.
    - The norms that `weight_norm` stores: `weight_g` beside `weight_v`, or `original0` beside
      `original1`. Their size is 1 in the dims that the norm is taken over.

    A norm layer over several dims that has no bias cannot be recognised. Leave its weight out with
    `exclude`. Tied parameters are taken wherever the tree has them, so an embedding that is also
    the output layer is pruned. Lists and bare tensors have no names, so there the shape alone
    decides.

    It sends no messages between ranks: with DTensors, only the rank with an error raises it.

    Args:
        params: pytree of tensors of any shape and dtype.
        where: which leaves to take instead of the default: a predicate `(path, leaf) -> bool`, a
            glob or a list of globs. Globs are matched against the dotted path by the rules of
            `fnmatch`: `*` crosses dots, case counts, and one match is enough.
        exclude: which of these leaves to leave out: a predicate, a glob or a list of globs. By
            default none.

    Returns:
        A tree of the same structure: the same tensors where a leaf is taken, `None` elsewhere.

    Raises:
        TypeError: if `where` or `exclude` is none of these, or `params` is not a tree: a module, a
            generator or a number.

    Example:
        >>> import torch, gprune as gp
        >>> params = {"fc": {"weight": torch.ones(2, 3), "bias": torch.ones(2)}}
        >>> gp.prunable(params)["fc"]["bias"] is None
        True
        >>> gp.prunable(params, "fc.*", exclude="*.weight")["fc"]["weight"] is None
        True
    """
    included = None if where is None else predicate(where)
    excluded = None if exclude is None else predicate(exclude, "exclude")
    leaves, treedef = flatten(params)
    for leaf in leaves:
        _refuse_module_or_generator(leaf, "params")
    if not (params is None or isinstance(params, Tensor)) and is_single_leaf(params):
        raise TypeError(f"params must be a tree of tensors, got {params!r}")
    by_path = list(zip(dotted_paths(treedef), leaves, strict=True))
    others = dict(by_path)
    taken = []
    for path, leaf in by_path:
        take = leaf is not None and (
            _is_weight(path, leaf, others) if included is None else included(path, leaf)
        )
        if take and excluded is not None:
            take = not excluded(path, leaf)
        taken.append(leaf if take else None)
    return unflatten(treedef, taken)


def _is_weight(path: str, leaf: Any, others: dict[str, Any]) -> bool:
    """Return whether `prunable` takes a leaf by default; `others` has all leaves by path."""
    if not isinstance(leaf, Tensor):
        return False
    if isinstance(leaf, UninitializedParameter | UninitializedBuffer):
        raise TypeError(f"params[{path!r}] {tensor_problem(leaf)}")
    if not torch.is_floating_point(leaf) or leaf.dim() < 2:
        return False
    parent, dot, name = path.rpartition(".")
    if any(part in _NOT_WEIGHTS for part in name.split("_")):
        return False
    bias = others.get(f"{parent}{dot}bias")
    if isinstance(bias, Tensor) and bias.shape == leaf.shape:
        return False
    return not _could_be_norms_of(leaf, others.get(_path_of_direction(path)))


def _path_of_direction(path: str) -> str:
    """Return where `weight_norm` stores the direction if it stores the norms at `path`, or `""`."""
    if path.endswith("_g"):
        return f"{path[:-1]}v"
    return f"{path[:-1]}1" if path.endswith("original0") else ""


def _could_be_norms_of(leaf: Tensor, direction: Any) -> bool:
    """Return whether a leaf has the shape of the norms of `direction` over some of its dims."""
    if not isinstance(direction, Tensor) or direction.shape == leaf.shape:
        return False
    sizes = list(zip(leaf.shape, direction.shape, strict=False))
    return leaf.dim() == direction.dim() and all(size in (1, whole) for size, whole in sizes)


def vmap_dims(tree: Tree, dim: int = 0) -> Tree:
    """Return the `in_dims` or `out_dims` tree that `torch.vmap` needs for a tree with `None`s.

    Args:
        tree: pytree of tensors of any shape, and `None`s.
        dim: the batch dim of every tensor, 0 for the first.

    Returns:
        A tree of the same structure with `dim` in place of the tensors.

    Raises:
        TypeError: if `tree` is a module or a generator.

    Example:
        >>> import torch, gprune as gp
        >>> gp.vmap_dims({"bias": None, "weight": torch.ones(5, 2, 3)})
        {'bias': None, 'weight': 0}
    """
    leaves, treedef = flatten(tree)
    for leaf in leaves:
        _refuse_module_or_generator(leaf, "tree")
    return unflatten(treedef, [None if leaf is None else dim for leaf in leaves])


def flatten(tree: Tree) -> tuple[list[Any], TreeDef]:
    """Return the leaves of a tree, `None`s included, and the structure to rebuild it from."""
    if torch.compiler.is_compiling():
        found: list[Any] = []
        return found, _trace(tree, found)
    leaves, treedef = optree.tree_flatten(tree, none_is_leaf=True)
    return leaves, treedef


def unflatten(treedef: TreeDef, leaves: list[Any]) -> Tree:
    """Rebuild a tree from its structure and its leaves."""
    if isinstance(treedef, TracedDef):
        return treedef.unflatten(iter(leaves))
    return optree.tree_unflatten(treedef, leaves)


def is_single_leaf(tree: Tree) -> bool:
    """Return whether a tree is a single leaf, such as a tensor, a number or `None`."""
    leaves, _ = flatten(tree)
    return len(leaves) == 1 and leaves[0] is tree


def map_leaves(function: Callable[..., Any], tree: Tree, *rest: Tree) -> Tree:
    """Apply a function to the leaves of trees of one structure, `None` leaves included."""
    leaves, treedef = flatten(tree)
    others = [flatten(other)[0] for other in rest]
    return unflatten(treedef, [function(*group) for group in zip(leaves, *others, strict=True)])


def unflatten_like(treedef: TreeDef, leaves: list[Any], tensors: list[Tensor]) -> Tree:
    """Rebuild the tree of `leaves` with `tensors` in place of its tensors; `None`s stay."""
    results = iter(tensors)
    return unflatten(treedef, [None if leaf is None else next(results) for leaf in leaves])


def leaves_like(tree: Tree, treedef: TreeDef, name: str, reference: str = "params") -> list[Any]:
    """Return the leaves of a tree that must have a given structure.

    Args:
        tree: the tree to flatten.
        treedef: the structure that it must have.
        name: what errors call the tree.
        reference: what errors call the tree that `treedef` is from.

    Returns:
        The leaves, `None`s included.

    Raises:
        ValueError: if the structures differ; the error has the first path where they do.
    """
    leaves, other = flatten(tree)
    if other == treedef:
        return leaves
    has, wants = leaf_names(other, ""), leaf_names(treedef, "")
    known, wanted = set(has), set(wants)
    missing = [path for path in wants if path not in known]
    extra = [path for path in has if path not in wanted]
    if missing:
        detail = f"{name}{missing[0]} is missing"
    elif extra:
        detail = f"{reference} has nothing at {name}{extra[0]}"
    elif _kind(other) is dict and _kind(treedef) is OrderedDict:
        detail = f"{name} is a dict, {reference} is an OrderedDict; pass dict({reference})"
    else:
        detail = f"{name} is {_shown(other)}, {reference} is {_shown(treedef)}"
    if missing and not extra and "." in missing[0] and _kind(treedef) in (dict, OrderedDict):
        detail += (
            "; state_dict() also has buffers and every name of a tied weight, named_parameters() "
            "does not: make both trees from the same one"
        )
    raise ValueError(f"{name} must have the structure of {reference}: {detail}")


def _kind(treedef: TreeDef) -> type | None:
    """Return the type of the root of a tree, `None` for a leaf."""
    return treedef.kind if isinstance(treedef, TracedDef) else treedef.type


def _shown(treedef: TreeDef) -> str:
    """Return a structure as text, shortened to `MOST_SHOWN` characters."""
    text = str(treedef)
    return text if len(text) <= MOST_SHOWN else f"{text[:MOST_SHOWN]}..."


def leaf_names(treedef: TreeDef, root: str) -> list[str]:
    """Return the path of every leaf as Python source for errors: `params['fc']['weight']`."""
    if isinstance(treedef, TracedDef):
        return [source for source, _ in treedef.paths(root, "")]
    return [accessor.codify(root) for accessor in treedef.accessors()]


def dotted_paths(treedef: TreeDef) -> list[str]:
    """Return the dotted path of every leaf, `fc.weight`, with the names of fields."""
    if isinstance(treedef, TracedDef):
        return [dotted for _, dotted in treedef.paths("", "")]
    return [
        ".".join(str(getattr(entry, "field", entry.entry)) for entry in accessor)
        for accessor in treedef.accessors()
    ]


def tensor_paths(treedef: TreeDef, leaves: list[Any]) -> list[str]:
    """Return the dotted path of every leaf that is not `None`."""
    pairs = zip(dotted_paths(treedef), leaves, strict=True)
    return [path for path, leaf in pairs if leaf is not None]


def tensor_problem(leaf: Any) -> str | None:
    """Return why a leaf is not a dense tensor, or `None` if it is one."""
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
    """Raise a TypeError if a leaf is neither a dense tensor nor `None`.

    Args:
        leaves: the leaves of a tree.
        treedef: its structure.
        root: what errors call the tree.

    Raises:
        TypeError: if one is; the error has the path and the problem of every such leaf.
    """
    wrong = [i for i, leaf in enumerate(leaves) if leaf is not None and tensor_problem(leaf)]
    if not wrong:
        return
    for leaf in leaves:
        _refuse_module_or_generator(leaf, root)
    names = leaf_names(treedef, root)
    raise TypeError(describe_first(wrong, lambda i: f"{names[i]} {tensor_problem(leaves[i])}"))


def _refuse_module_or_generator(leaf: Any, root: str) -> None:
    """Raise a TypeError if a leaf is a module, or a generator such as `module.parameters()`."""
    for kind, name in ((torch.nn.Module, "module"), (GeneratorType, "generator")):
        if isinstance(leaf, kind):
            raise TypeError(
                f"{root} must be a tree of tensors, got a {name}; "
                "pass dict(module.named_parameters())"
            )


def describe_first(
    wrong: Sequence[Item], describe: Callable[[Item], str], separator: str = "; "
) -> str:
    """Return the descriptions of the first ten items, and say how many more there are.

    Args:
        wrong: the items that are wrong, such as the indices of leaves.
        describe: describes an item; called for the first ten only.
        separator: what is put between the descriptions.

    Returns:
        The descriptions, as one text.
    """
    described = [describe(item) for item in wrong[:MOST_NAMED]]
    if len(wrong) > MOST_NAMED:
        described.append(f"... and {len(wrong) - MOST_NAMED:,} more")
    return separator.join(described)


def predicate(where: Where, name: str = "where") -> Callable[[str, Any], bool]:
    """Return the predicate `(path, leaf) -> bool` that `where=` stands for.

    Args:
        where: a predicate, a glob or a list of globs; see `prunable`.
        name: what errors call it.

    Returns:
        The predicate.

    Raises:
        TypeError: if `where` is none of these.
    """
    if callable(where):
        return where
    globs = [where] if isinstance(where, str) else where
    if isinstance(globs, Sequence) and all(isinstance(glob, str) for glob in globs):
        # compiled here, because fnmatch.fnmatchcase warns inside a trace
        patterns = [re.compile(translate(glob)) for glob in globs]
        return lambda path, leaf: any(pattern.match(path) for pattern in patterns)
    raise TypeError(
        f"{name} must be None, a glob, a list of globs or a predicate (path, leaf) -> bool, "
        f"got {where!r}"
    )


def _trace(tree: Tree, leaves: list[Any]) -> TracedDef:
    """Append the leaves to a list in optree's order, and return the structure, inside a trace."""
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
    child_paths = (
        [(f".{name}", name) for name in fields]
        if fields
        else [(f"[{entry!r}]", str(entry)) for entry in entries]
    )
    parts = tuple(_trace(child, leaves) for child in children)
    return TracedDef(kind, metadata, tuple(child_paths), parts, rebuild)


def _dict_rebuilder(like: dict[Any, Any], keys: Sequence[Any]) -> Callable[[list[Any]], Any]:
    """Return a function that makes a dict of the type and key order of `like` from its values."""
    order = list(like)

    def rebuild(children: list[Any]) -> Any:
        values = dict(zip(keys, children, strict=True))
        ordered = {key: values[key] for key in order}
        if type(like) is defaultdict:
            return defaultdict(like.default_factory, ordered)
        return OrderedDict(ordered) if type(like) is OrderedDict else ordered

    return rebuild
