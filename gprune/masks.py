"""Masks: making, applying, counting and combining them. A mask is `torch.bool`, `True` = keep."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import is_fake

from gprune.inputs import float64_device, mask_problem, mismatch
from gprune.select import operators
from gprune.select.counts import as_nonnegative, as_scalar
from gprune.sharding import (
    is_sharded,
    load_dtensor_rules,
    raise_on_all_ranks,
    require_unsharded,
)
from gprune.trees import (
    Tree,
    TreeDef,
    describe_first,
    flatten,
    leaf_names,
    leaves_like,
    require_tensors,
    tensor_paths,
    unflatten,
    unflatten_like,
)


def keep_all(params: Tree) -> Tree:
    """Return the masks that keep everything.

    Start a training loop from these rather than from `None`. Then the masks have the same structure
    at every step, and a compiled step is compiled only once.

    It sends no messages between ranks: with DTensors, only the rank with an error raises it.

    Args:
        params: pytree of tensors of any shape and dtype, and `None`s.

    Returns:
        Masks of that structure, all `True`; `None` where `params` has `None`.

    Raises:
        TypeError: if a leaf is neither a tensor nor `None`.

    Example:
        >>> import torch, gprune as gp
        >>> gp.keep_all({"bias": None, "weight": torch.zeros(2)})
        {'bias': None, 'weight': tensor([True, True])}
    """
    leaves, treedef = flatten(params)
    require_tensors(leaves, treedef, "params")
    tensors = [leaf for leaf in leaves if leaf is not None]
    return unflatten_like(treedef, leaves, [_ones(leaf) for leaf in tensors])


def _ones(leaf: Tensor) -> Tensor:
    if is_sharded([leaf]):
        return torch.ones_like(leaf, dtype=torch.bool, requires_grad=False)
    return torch.ones(leaf.shape, dtype=torch.bool, device=leaf.device)


def masks_from_zeros(params: Tree) -> Tree:
    """Return the masks of a tree that is sparse already: they prune the entries that are zero.

    Use them to train a pruned checkpoint further, or to count its zeros. Pass
    `gprune.prunable(params)`, so that biases and norms, which often start at zero, have no masks.
    To keep the zeros of a module, see `gprune.adapter.keep_zeros_`.

    It sends no messages between ranks: with DTensors, only the rank with an error raises it.

    Args:
        params: pytree of tensors of any shape and dtype, and `None`s.

    Returns:
        Masks of that structure, `True` where the entry is not zero, so also where it is NaN; `None`
        where `params` has `None`.

    Raises:
        TypeError: if a leaf is neither a tensor nor `None`.

    Example:
        >>> import torch, gprune as gp
        >>> gp.masks_from_zeros({"bias": None, "weight": torch.tensor([0.5, -0.0])})
        {'bias': None, 'weight': tensor([ True, False])}
    """
    leaves, treedef = flatten(params)
    require_tensors(leaves, treedef, "params")
    tensors = [leaf for leaf in leaves if leaf is not None]
    return unflatten_like(treedef, leaves, [(leaf != 0).contiguous() for leaf in tensors])


def apply_masks(params: Tree, masks: Tree) -> Tree:
    """Return the tree with the pruned entries set to exactly zero, also those that are NaN.

    An entry θ becomes θ where its mask is `True`, and 0 where it is `False`, also if θ is NaN or
    infinite. The gradient of a pruned entry is zero. The function works on everything that has the
    structure of the parameters: gradients, updates, an optimizer's moments.

    It sends no messages between ranks: with DTensors, only the rank with an error raises it.

    Args:
        params: pytree of tensors of any shape and dtype.
        masks: bool masks of that structure; a parameter whose mask is `None` is returned as it is.

    Returns:
        The masked tree, in the dtypes of `params`; memory formats are not kept.

    Raises:
        TypeError: if a mask is not a bool tensor.
        ValueError: if a structure, shape or device differs.

    Example:
        >>> import torch, gprune as gp
        >>> gp.apply_masks([torch.tensor([1.0, float("nan")])], [torch.tensor([True, False])])
        [tensor([1., 0.])]
    """
    return _map_with_masks(
        lambda leaf, mask: torch.where(mask, leaf, leaf.new_zeros(())), params, masks
    )


def straight_through(params: Tree, masks: Tree, *, decay: float | Tensor = 0.0) -> Tree:
    """Return the tree with pruned entries set to zero, and let gradients pass through to them.

    For the weights θ with the masks m and the result w:

        w = m ⊙ θ,    gradient of θ = ∂L/∂w + λ (1 - m) ⊙ θ.

    Pruned weights keep receiving gradients, so they can come back. This is the straight-through
    estimator. The decay λ is 0 by default. With a decay pruned weights shrink, so the masks of N:M
    training, which are chosen anew at each step, change less (SR-STE). A pruned weight that is NaN
    or infinite has the gradient zero.

    The decay is added to the gradient, not to the loss. So it stays the same if the loss is scaled.
    With a decay, second derivatives are wrong, and forward-mode derivatives (`jvp`) raise an error.

    It sends no messages between ranks: with DTensors, only the rank with an error raises it.

    Args:
        params: pytree of tensors.
        masks: bool masks of that structure; a parameter whose mask is `None` is returned as it is.
        decay: λ, a number or a 0-dim tensor, finite and not negative; 2e-4 in the paper. The host
            reads the value of a tensor, except inside a compiled function. Such a function is
            compiled once for all tensors, and again for each new number.

    Returns:
        The masked tree, in the dtypes of `params`.

    Raises:
        TypeError: if a mask is not a bool tensor, or `decay` is not a number.
        ValueError: if a structure, shape or device differs, or `decay` is negative or not finite. A
            tensor is not checked inside a compiled function.

    Example:
        >>> import torch, gprune as gp
        >>> mask, weight = torch.tensor([True, False]), torch.tensor([1.0, 4.0])
        >>> torch.func.grad(lambda p: gp.straight_through(p, mask).sum())(weight)
        tensor([1., 1.])
        >>> torch.func.grad(lambda p: gp.straight_through(p, mask, decay=0.5).sum())(weight)
        tensor([1., 3.])

    References:
        Bengio et al., 2013, arXiv:1308.3432 (the straight-through estimator).
        Zhou et al., 2021, arXiv:2102.04010, eq. 9 (SR-STE, the decay).
    """
    leaves, treedef = flatten(params)
    float8 = [
        i
        for i, leaf in enumerate(leaves)
        if isinstance(leaf, Tensor) and leaf.is_floating_point() and leaf.dtype.itemsize == 1
    ]
    if float8:
        names = leaf_names(treedef, "params")
        problem = "which has no arithmetic; cast it to bfloat16"
        raise TypeError(
            describe_first(float8, lambda i: f"{names[i]} has dtype {leaves[i].dtype}, {problem}")
        )
    factor = _checked_decay(decay)
    load_dtensor_rules()
    return _map_with_masks(partial(_straight_through, decay=factor), params, masks)


def _straight_through(leaf: Tensor, mask: Tensor, decay: Tensor | None) -> Tensor:
    if not (leaf.is_floating_point() or leaf.is_complex()):
        return torch.where(mask, leaf, leaf.new_zeros(()))  # integers have no gradient
    if decay is None:
        return torch.where(mask, leaf, torch.nan_to_num(leaf - leaf.detach()))
    return operators.mask_with_decay(leaf, mask, decay)


def _checked_decay(decay: Any) -> Tensor | None:
    """Return a decay, checked, as a 0-dim tensor; `None` if it is the number 0."""
    if not isinstance(decay, Tensor):
        number = as_nonnegative(decay, "decay")
        return None if number == 0 else as_scalar(number, "decay")
    factor = as_scalar(decay, "decay")
    if not torch.compiler.is_compiling():  # while compiling, a tensor has no value
        is_fine = operators.all_finite([torch.where(factor < 0, torch.nan, factor)], "decay")
        if not is_fake(is_fine) and not bool(is_fine):
            raise ValueError(f"decay must be finite and not negative, got {decay!r}")
    return factor


@raise_on_all_ranks
def num_pruned(masks: Tree) -> Tensor:
    """Return the number of pruned entries of all masks together.

    Args:
        masks: pytree of bool masks and `None`s.

    Returns:
        0-dim int64 tensor, on the device of the first mask.

    Raises:
        TypeError: if a mask is not a bool tensor.

    Example:
        >>> import torch, gprune as gp
        >>> gp.num_pruned([torch.tensor([True, False, False]), None])
        tensor(2)
    """
    return count_pruned(mask_leaves(masks), masks).sum()


def count_pruned(masks: list[Tensor], tree: Tree) -> Tensor:
    """Return the number of pruned entries of each mask, summed over all ranks.

    Args:
        masks: the masks.
        tree: a tree with a tensor wherever there is a mask. It gives the masks their paths, which
            must be the same on all ranks.

    Returns:
        1-D int64 tensor.
    """
    load_dtensor_rules()
    if is_sharded(masks):
        leaves, treedef = flatten(tree)
        paths = tensor_paths(treedef, leaves)
        counts: Tensor = operators.count_pruned(masks, f"counting of {' '.join(paths)}")
        return counts
    device = masks[0].device if masks else None
    counted = [(mask.numel() - mask.count_nonzero()).to(device) for mask in masks]
    return torch.stack(counted) if counted else torch.zeros(0, dtype=torch.int64)


@raise_on_all_ranks
def sparsity(masks: Tree) -> Tensor:
    """Return the fraction of the prunable entries that is pruned: pruned / entries.

    Args:
        masks: pytree of bool masks and `None`s.

    Returns:
        0-dim float64 tensor, 0 to 1; 0 where there are no entries. It is on the device of the first
        mask, or on the CPU if that device has no float64.

    Raises:
        TypeError: if a mask is not a bool tensor.

    Example:
        >>> import torch, gprune as gp
        >>> gp.sparsity([torch.tensor([True, False, False, False])])
        tensor(0.7500, dtype=torch.float64)
    """
    entries = sum(mask.numel() for mask in mask_leaves(masks))
    pruned = num_pruned(masks)
    return pruned.to(float64_device(pruned.device)).to(torch.float64) / max(1, entries)


def intersect(*masks: Tree) -> Tree:
    """Return the masks that keep what all of the given masks keep: m₁ ∧ m₂ ∧ ...

    It sends no messages between ranks: with DTensors, only the rank with an error raises it.

    Args:
        *masks: one or more pytrees of bool masks, `True` = keep, of one structure, with `None` at
            the same leaves.

    Returns:
        Masks of that structure.

    Raises:
        TypeError: if there are no masks, or one is not a bool tensor.
        ValueError: if a structure, shape or device differs. The error calls the second tree
            `masks[1]`.

    Example:
        >>> import torch, gprune as gp
        >>> gp.intersect([torch.tensor([True, True])], [torch.tensor([False, True])])
        [tensor([False,  True])]
    """
    if not masks:
        raise TypeError("intersect() takes at least one tree of masks")
    mask_leaves(masks[0], "masks[0]")
    kept = masks[0]
    for i, other in enumerate(masks[1:], start=1):
        ours, theirs, treedef = paired_masks(kept, other, ("masks[0]", f"masks[{i}]"))
        both = [(a & b).contiguous() for a, b in zip(ours, theirs, strict=True) if a is not None]
        kept = unflatten_like(treedef, ours, both)
    return kept


def pack_masks(masks: Tree) -> Tree:
    """Return masks packed into bits: 8 entries in a byte, which takes an eighth of the memory.

    Bit i of byte j, counted from the lowest, is entry 8 j + i of the flattened mask. The last byte
    is filled up with zeros. The shapes are those of the parameters, which `unpack_masks` takes.

    `torch.save` saves the result. safetensors saves dicts of tensors, so leave out the `None`s, and
    put them back before you unpack: `{**dict.fromkeys(params), **loaded}`.

    Args:
        masks: pytree of bool masks of any shape and `None`s; no DTensors.

    Returns:
        1-D uint8 tensors of ceil(entries / 8) bytes, of the structure of `masks`, on their devices.

    Raises:
        TypeError: if a mask is not a bool tensor.
        ValueError: if a mask is a DTensor.

    Example:
        >>> import torch, gprune as gp
        >>> gp.pack_masks({"bias": None, "weight": torch.tensor([[True, False], [True, True]])})
        {'bias': None, 'weight': tensor([13], dtype=torch.uint8)}
    """
    leaves, treedef = flatten(masks)
    _check_masks(leaves, leaves, treedef)
    require_unsharded(leaves, "pack_masks")
    return unflatten(treedef, [None if mask is None else _packed(mask) for mask in leaves])


def unpack_masks(packed: Tree, params: Tree) -> Tree:
    """Return the masks that `pack_masks` has packed.

    Args:
        packed: what `pack_masks` returned, as it is or saved and loaded.
        params: pytree of that structure: tensors of the shapes of the masks, on the devices of
            `packed`; their values do not matter.

    Returns:
        The masks, bit for bit: bool tensors of the shapes of `params`, `None` where `packed` has
        `None`.

    Raises:
        TypeError: if a leaf of `packed` is not a uint8 tensor.
        ValueError: if a structure, size or device differs, or a leaf is a DTensor.

    Example:
        >>> import torch, gprune as gp
        >>> params = {"bias": torch.zeros(2), "weight": torch.zeros(2, 2)}
        >>> packed = {"bias": None, "weight": torch.tensor([13], dtype=torch.uint8)}
        >>> gp.unpack_masks(packed, params)["weight"]
        tensor([[ True, False],
                [ True,  True]])
    """
    leaves, treedef = flatten(params)
    require_tensors(leaves, treedef, "params")
    found = leaves_like(packed, treedef, "packed")
    require_tensors(found, treedef, "packed")
    require_unsharded(leaves + found, "unpack_masks")
    names, pairs = leaf_names(treedef, "packed"), list(zip(found, leaves, strict=True))
    wrong = [i for i, bits in enumerate(found) if bits is not None and bits.dtype != torch.uint8]
    if wrong:
        problem = "packed masks are torch.uint8, as pack_masks returns them"
        raise TypeError(
            describe_first(wrong, lambda i: f"{names[i]} has dtype {found[i].dtype}, {problem}")
        )
    wrong = [i for i, pair in enumerate(pairs) if _packed_mismatch(*pair)]
    if wrong:
        raise ValueError(
            describe_first(wrong, lambda i: f"{names[i]} {_packed_mismatch(*pairs[i])}")
        )
    return unflatten(
        treedef, [None if bits is None else _unpacked(bits, leaf.shape) for bits, leaf in pairs]
    )


def _packed(mask: Tensor) -> Tensor:
    """Pack one mask into bytes."""
    entries = mask.reshape(-1).view(torch.uint8)
    if missing := -entries.numel() % 8:
        entries = torch.nn.functional.pad(entries, (0, missing))
    return (entries.view(-1, 8) * _powers_of_two(mask.device)).sum(1, dtype=torch.uint8)


def _unpacked(packed: Tensor, shape: torch.Size) -> Tensor:
    """Unpack one mask of a shape."""
    entries = packed.unsqueeze(1) & _powers_of_two(packed.device)
    return entries.view(-1)[: shape.numel()].view(shape) != 0


def _powers_of_two(device: torch.device) -> Tensor:
    """Return the value of each bit of a byte, the lowest first."""
    bits = torch.arange(8, dtype=torch.uint8, device=device)
    return torch.ones_like(bits) << bits


def _packed_mismatch(packed: Tensor | None, param: Tensor | None) -> str | None:
    """Return how a packed mask differs from its parameter, or `None` if it fits."""
    if packed is None:
        return None
    if param is None:
        return "is a tensor, its parameter is None (not prunable)"
    shape, size = tuple(param.shape), -(-param.numel() // 8)
    if packed.shape != (size,):
        got = tuple(packed.shape)
        return f"has shape {got}, its parameter of shape {shape} takes ({size},)"
    if packed.device != param.device:
        return f"is on {packed.device}, its parameter is on {param.device}"
    return None


def _map_with_masks(
    function: Callable[[Tensor, Tensor], Tensor], params: Tree, masks: Tree
) -> Tree:
    """Apply a function to every leaf that has a mask; the others are returned as they are."""
    leaves, kept, treedef = paired_with_masks(params, masks)
    return unflatten(
        treedef,
        [
            leaf if mask is None else function(leaf, mask)
            for leaf, mask in zip(leaves, kept, strict=True)
        ],
    )


def paired_masks(
    left: Tree, right: Tree, names: tuple[str, str]
) -> tuple[list[Any], list[Any], TreeDef]:
    """Flatten two trees of masks, which must have one structure and `None` at the same leaves.

    Args:
        left: a tree of masks.
        right: another tree of masks.
        names: what errors call the two trees.

    Returns:
        The leaves of both trees, `None`s included, and their structure.

    Raises:
        TypeError: if a mask is not a bool tensor.
        ValueError: if a structure, shape or device differs.
    """
    ours, treedef = flatten(left)
    theirs = leaves_like(right, treedef, names[1], reference=names[0])
    _check_masks(ours, ours, treedef, names[0])
    _check_masks(ours, theirs, treedef, names[1], other_masks=names[0])
    return ours, theirs, treedef


def prunable_params(params: Tree, masks: Tree, name: str) -> Tree:
    """Return the parameters with `None` where the mask is `None`.

    Args:
        params: pytree of tensors.
        masks: masks of that structure.
        name: what errors call the masks.

    Returns:
        A tree of that structure.

    Raises:
        TypeError: if a leaf of `params` is neither a tensor nor `None`.
        ValueError: if the structures differ.
    """
    leaves, treedef = flatten(params)
    require_tensors(leaves, treedef, "params")
    pairs = zip(leaves, leaves_like(masks, treedef, name), strict=True)
    return unflatten(treedef, [None if mask is None else leaf for leaf, mask in pairs])


def paired_with_masks(params: Tree, masks: Tree) -> tuple[list[Any], list[Any], TreeDef]:
    """Return the leaves of params and masks, `None`s included, and their structure, all checked."""
    leaves, treedef = flatten(params)
    require_tensors(leaves, treedef, "params")
    kept = leaves_like(masks, treedef, "masks")
    _check_masks(leaves, kept, treedef)
    return leaves, kept, treedef


def mask_leaves(masks: Tree, name: str = "masks") -> list[Tensor]:
    """Return the masks of a tree without the `None`s, checked; errors call the tree `name`."""
    leaves, treedef = flatten(masks)
    _check_masks(leaves, leaves, treedef, name)
    return [mask for mask in leaves if mask is not None]


def _check_masks(
    leaves: list[Any],
    masks: list[Any],
    treedef: TreeDef,
    name: str = "masks",
    *,
    other_masks: str | None = None,
) -> None:
    """Raise an error that names every mask that is not a bool tensor or does not fit its leaf.

    Args:
        leaves: the parameters, or other masks.
        masks: the masks to check.
        treedef: the structure of both.
        name: what errors call the masks.
        other_masks: what errors call `leaves` if these are masks. Then both must have `None` at the
            same leaves.

    Raises:
        TypeError: if a mask is not a bool tensor.
        ValueError: if a mask does not fit its leaf.
    """
    wrong = [i for i, mask in enumerate(masks) if mask is not None and mask_problem(mask)]
    if wrong:
        names = leaf_names(treedef, name)
        raise TypeError(describe_first(wrong, lambda i: f"{names[i]} {mask_problem(masks[i])}"))
    wrong = [
        i
        for i, (leaf, mask) in enumerate(zip(leaves, masks, strict=True))
        if (other_masks or mask is not None) and mismatch(mask, leaf)
    ]
    if wrong:
        names = leaf_names(treedef, name)
        others = leaf_names(treedef, other_masks) if other_masks else ["its parameter"] * len(names)
        raise ValueError(
            describe_first(
                wrong, lambda i: f"{names[i]} {mismatch(masks[i], leaves[i], others[i])}"
            )
        )
