"""N:M patterns: keep n of every m consecutive entries along a dim, as sparse tensor cores need."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from gprune.inputs import LeafError, Leaves
from gprune.masks import mask_leaves
from gprune.methods.dims import DimFunction, one_dim, single_entry_problem, value_per_leaf
from gprune.methods.lowest import select_rows
from gprune.methods.method import built_in, select_on_one_leaf
from gprune.select.counts import as_scalar
from gprune.sharding import (
    check_same_leaves,
    is_sharded,
    raise_on_all_ranks,
    require_unsharded,
)
from gprune.trees import Tree, describe_first, flatten, leaf_names, tensor_paths

MAX_BATCH = 2**18
"""The most entries of several leaves that are pruned as one matrix."""

SMALL = 2**12
"""The most entries of a leaf that is pruned in one matrix with others."""


def _select(leaves: Leaves, *, per_leaf: bool, n: Any, m: Any, dim: Any = None) -> list[Tensor]:
    check_pattern(n, m)
    require_unsharded(leaves.ranked_by, "n_of_m")
    dims = []
    for i, given in enumerate(_dims(dim, leaves.paths, leaves.params)):
        try:
            dims.append(_group_dim(given, leaves.ranked_by[i].shape, m))
        except (TypeError, ValueError) as error:
            raise LeafError(i, "params", str(error), type(error)) from None
    masks: dict[int, Tensor] = {}
    for numbers in _batches(leaves.ranked_by, dims, m):
        scores = [_groups(leaves.ranked_by[i], m, dims[i]) for i in numbers]
        priors = [_prior_groups(leaves, i, m, dims[i]) for i in numbers]
        size = scores[0].shape[1]
        sparsity = as_scalar((size - min(n, size)) / size, "sparsity")
        kept = select_rows(
            numbers[0],
            _joined(scores),
            [] if all(prior is None for prior in priors) else [_joined_priors(priors, scores)],
            sparsity,
            absolute=leaves.scores is None,
            name="sparsity",
        )
        parts = [kept]
        if len(numbers) > 1:  # the masks of a tree must not share memory
            sizes = [len(groups) for groups in scores]
            parts = [part.clone() for part in torch.split(kept, sizes)]
        for i, part in zip(numbers, parts, strict=True):
            masks[i] = _ungroup(part, leaves.ranked_by[i], dims[i])
    return [masks[i] for i in range(len(dims))]


def _batches(tensors: list[Tensor], dims: list[int], m: int) -> list[list[int]]:
    """Group the leaves that are pruned as one matrix: small ones of one dtype on one device.

    Args:
        tensors: the scores of the leaves.
        dims: the dim that the groups of each leaf run along.
        m: the size of a group.

    Returns:
        The numbers of the leaves in each batch. A leaf of int64 is alone, so that an error about
        its values names it. While compiling, and under autocast, every leaf is alone.
    """
    # under autocast `cat` would cast the scores
    is_alone = torch.compiler.is_compiling() or torch._C._is_any_autocast_enabled()
    batches: list[list[int]] = []
    open_batches: dict[Any, tuple[list[int], int]] = {}
    for i, (tensor, dim) in enumerate(zip(tensors, dims, strict=True)):
        if is_alone or tensor.numel() > SMALL or tensor.dtype == torch.int64:
            batches.append([i])
            continue
        kind = max(1, min(m, tensor.shape[dim])), tensor.dtype, tensor.device
        batch, num_entries = open_batches.get(kind, ([], 0))
        if not batch or num_entries + tensor.numel() > MAX_BATCH:
            batch, num_entries = [], 0
            batches.append(batch)
        batch.append(i)
        open_batches[kind] = batch, num_entries + tensor.numel()
    return batches


@built_in("semi_structured", _select)
def n_of_m(
    param: Tensor,
    scores: Tensor | None = None,
    *,
    mask: Tensor | None = None,
    n: int,
    m: int,
    dim: int | DimFunction | None = None,
) -> Tensor:
    """Return the mask that keeps the n highest of every m consecutive entries along a dim.

    A group keeps n entries, or fewer if the prior mask has left fewer. If the size of the dim is
    not a multiple of m, the last group is shorter. It keeps its n highest too, or all of its
    entries if it has no more than n. A dim that is shorter than m is one such group. So the pruned
    tensor, padded with zeros to a multiple of m, has the pattern in every group. Among equal scores
    the lowest index is pruned first; NaN is pruned last.

    Args:
        param: a tensor with at least one dimension.
        scores: its scores, of that shape, larger = more important, sign included; float16 to
            float64, uint8, or int8 to int64. Without them the magnitude of `param` ranks.
        mask: prior bool mask of that shape; what it has pruned stays pruned.
        n: how many entries of a group are kept, 0 to m; "2:4" is n=2, m=4.
        m: how many entries are a group.
        dim: the dim that groups run along, or a function `(path, leaf)` that returns it. By default
            it is 1, and 0 for a vector: the inputs of a linear layer, the input channels of a
            convolution. A transposed convolution has its input channels in dim 0.

    Returns:
        Bool mask of the shape of `param`, `True` = keep.

    Raises:
        TypeError: if n, m or the dim is not an int, or a dtype is wrong.
        ValueError: if n or m is out of range, there is no such dim, the dim has a single entry and
            m is above 1, or a shape differs.

    Example:
        >>> import torch, gprune as gp
        >>> gp.n_of_m(torch.tensor([-9.0, 1.0, 2.0, -8.0, 1.0]), n=2, m=4)
        tensor([ True, False, False,  True,  True])

    References:
        Mishra et al., 2021, arXiv:2104.08378, section 3 (2:4).
        Zhou et al., 2021, arXiv:2102.04010 (N:M).
    """
    return select_on_one_leaf(_select, param, scores, mask, n=n, m=m, dim=dim)


@raise_on_all_ranks
def check_n_of_m(masks: Tree, *, n: int, m: int, dim: int | DimFunction | None = None) -> None:
    """Raise an error if more than n of some m consecutive entries along a dim are kept.

    It returns nothing if the masks have the pattern.

    Args:
        masks: pytree of bool masks and `None`. DTensors are gathered one leaf at a time.
        n: how many entries of a group may be kept, 0 to m.
        m: how many entries are a group; the last group may be shorter.
        dim: the dim that groups run along, or a function `(path, mask)` that returns it; by default
            1, and 0 for a vector, as in `n_of_m`.

    Raises:
        TypeError: if a mask is not a bool tensor, or n, m or the dim is not an int.
        ValueError: if n or m is out of range. If groups keep more, or a leaf has no such dim, or a
            single entry along it while m is above 1, the error names all such leaves.

    Example:
        >>> import torch, gprune as gp
        >>> gp.check_n_of_m([torch.tensor([True, False, True, True])], n=2, m=4)
        Traceback (most recent call last):
        ValueError: masks[0] keeps more than 2 of 4 along dim 0 in 1 of 1 groups
    """
    check_pattern(n, m)
    mask_leaves(masks)
    flat, treedef = flatten(masks)
    leaves = [(i, mask) for i, mask in enumerate(flat) if mask is not None]

    def paths() -> list[str]:
        return tensor_paths(treedef, flat)

    dims = _dims(dim, paths, [mask for _, mask in leaves])
    check_same_leaves("check_n_of_m", [mask for _, mask in leaves], paths, n, m, dims)
    problems: list[tuple[int, str]] = []
    for (i, mask), given in zip(leaves, dims, strict=True):
        try:
            along = _group_dim(given, mask.shape, m)
        except TypeError as error:
            raise TypeError(f"{leaf_names(treedef, 'masks')[i]}: {error}") from None
        except ValueError as error:
            problems.append((i, f": {error}"))
            continue
        full = mask.full_tensor() if is_sharded([mask]) else mask
        too_many = _groups(full, m, along).sum(1) > n
        if too_many.any():
            num_wrong, num_groups = int(too_many.sum()), too_many.numel()
            where = f"along dim {along} in {num_wrong} of {num_groups} groups"
            problems.append((i, f" keeps more than {n} of {m} {where}"))
    if problems:
        names = leaf_names(treedef, "masks")
        raise ValueError(describe_first(problems, lambda found: f"{names[found[0]]}{found[1]}"))


def _dims(dim: Any, paths: Callable[[], list[str]], leaves: list[Tensor]) -> list[Any]:
    """Return the dim of each leaf, which is not checked: by default 1, and 0 for a vector."""
    if dim is None:
        return [1 if leaf.dim() > 1 else 0 for leaf in leaves]
    return value_per_leaf(dim, paths, leaves)


def check_pattern(n: Any, m: Any) -> None:
    """Check n and m.

    Args:
        n: how many entries of a group are kept.
        m: how many entries are a group.

    Raises:
        TypeError: if one is not an int.
        ValueError: if n is not from 0 to m, or m is below 1.
    """
    for name, number in (("n", n), ("m", m)):
        if isinstance(number, bool) or not isinstance(number, int):
            raise TypeError(f"{name} must be an int, got {number!r}")
    if not 0 <= n <= m or m == 0:
        raise ValueError(f"n must be from 0 to m and m above 0, got n={n}, m={m}")


def _group_dim(dim: Any, shape: tuple[int, ...], m: int) -> int:
    """Check the dim of one leaf: if m is above 1, it must have more than one entry."""
    if isinstance(dim, tuple | list):  # as `gprune.input_dims` gives them
        raise TypeError(
            f"dim must be one dim, got {dim!r}; a group runs along one dim only, so leave dim out, "
            "which means dim 1, or pass a function (path, leaf) -> int"
        )
    along = one_dim(dim, shape)
    if m > 1 and (problem := single_entry_problem(shape, [along])):
        raise ValueError(problem)
    return along


def _groups(tensor: Tensor, m: int, dim: int) -> Tensor:
    """Return the groups along a dim as the rows of a matrix, the last ones padded with zeros."""
    m = max(1, min(m, tensor.shape[dim]))  # padding a short dim to m would only take memory
    moved = tensor.movedim(dim, -1)
    return pad(moved, (0, -moved.shape[-1] % m)).reshape(-1, m)


def _ungroup(rows: Tensor, like: Tensor, dim: int) -> Tensor:
    """Return the rows of `_groups` as a tensor of the shape that they were made from."""
    moved = like.movedim(dim, -1)
    padded = rows.view(*moved.shape[:-1], -(-moved.shape[-1] // rows.shape[1]) * rows.shape[1])
    return padded[..., : moved.shape[-1]].movedim(-1, dim).contiguous()


def _prior_groups(leaves: Leaves, i: int, m: int, dim: int) -> Tensor | None:
    """Return the prior mask of the groups, which prunes the padding; `None` if there is neither."""
    scores = leaves.ranked_by[i]
    if leaves.masks:
        return _groups(leaves.masks[i], m, dim)
    size = scores.shape[dim]
    if size > m and size % m:  # a shorter dim is one group without padding
        return _groups(torch.ones_like(scores, dtype=torch.bool), m, dim)
    return None


def _joined(rows: list[Tensor]) -> Tensor:
    """Return matrices of one width as one matrix."""
    return rows[0] if len(rows) == 1 else torch.cat(rows)


def _joined_priors(priors: list[Tensor | None], groups: list[Tensor]) -> Tensor:
    """Return the prior masks of groups as one matrix, `True` where there is none."""
    pairs = zip(priors, groups, strict=True)
    return _joined(
        [torch.ones_like(x, dtype=torch.bool) if prior is None else prior for prior, x in pairs]
    )
