"""A whole module and flat dicts of its parameters and masks, each made from the other.

The keys are those of `named_parameters()` of the plain module, whatever is pruned in it. A
parameter is known by identity, since it may have several names; only its first is a key of what
is read, any is one of what is given.
"""

import difflib
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from gprune.adapter.state import (
    all_or_nothing,
    make_final,
    pruning_hooks,
    restore_dense,
    write_masks,
)

M = TypeVar("M", bound=nn.Module)


class _Site(NamedTuple):
    """One name of one parameter: where it lives, under which path, and its mask there."""

    path: str
    owner: nn.Module
    name: str
    dense: nn.Parameter
    mask: Tensor | None


def attach_masks_(module: M, masks: Mapping[str, Tensor | None]) -> M:
    """Prune a module by given masks, as the drop-in would have done.

    On a tensor that is already pruned the masks combine: nothing pruned comes back. A tied
    parameter, given under any of its names, is masked under all of them.

    Args:
        module: The module to change.
        masks: Masks (bool, `True` = keep, the parameter's shape), keyed as `named_parameters()`
            of the plain module: `fc.weight`, never `fc.weight_orig`. What is absent or `None`
            is left alone.

    Returns:
        The same module.

    Raises:
        TypeError: `masks` is not a mapping, or a mask not a bool tensor.
        ValueError: A name is unknown or a shape does not fit. Nothing has changed then.

    Example:
        >>> net = attach_masks_(nn.Linear(2, 1), {"weight": torch.tensor([[True, False]])})
        >>> net.weight_mask
        tensor([[1., 0.]])
    """
    if not isinstance(masks, Mapping):
        raise TypeError(f"masks must map parameter names to tensors, got {type(masks).__name__}")
    sites = list(_sites(module))
    by_path = {site.path: site.dense for site in sites}
    misfits = list(_misfits(masks, by_path))
    if misfits:
        raise type(misfits[0])("\n".join(map(str, misfits)))
    keep: dict[int, Tensor] = {}
    for path, mask in masks.items():
        if mask is not None:
            _intersect(keep, by_path[path], mask.detach().to(by_path[path].device))
    write_masks(
        {(site.owner, site.name): keep[id(site.dense)] for site in sites if id(site.dense) in keep}
    )
    return module


def detach_masks_(module: M) -> M:
    """Undo every pruning in a module, whoever applied it: the dense weights are back.

    The `Parameter` of before, with all of its values, is again under its own name; masks and
    pruning hooks are gone. Its place in the order of the parameters is the last, where torch's
    `remove` leaves it too.

    Args:
        module: The module to change.

    Returns:
        The same module.

    Example:
        >>> net = attach_masks_(nn.Linear(2, 1), {"weight": torch.tensor([[True, False]])})
        >>> sorted(detach_masks_(net).state_dict())
        ['bias', 'weight']
    """
    with all_or_nothing(module.modules()):
        for owner in module.modules():
            for name in pruning_hooks(owner):
                restore_dense(owner, name)
    return module


def make_permanent_(module: M) -> M:
    """Make every pruning in a module final, by torch's `remove`: the pruned weights are zero.

    Args:
        module: The module to change.

    Returns:
        The same module.

    Example:
        >>> net = attach_masks_(nn.Linear(2, 1), {"weight": torch.tensor([[True, False]])})
        >>> make_permanent_(net).weight[0, 1].item() == 0
        True
    """
    with all_or_nothing(module.modules()):
        for owner in module.modules():
            for name in pruning_hooks(owner):
                make_final(owner, name)
    return module


def masks_of(module: nn.Module) -> dict[str, Tensor | None]:
    """Read the masks of a module, whoever pruned it.

    Args:
        module: The module to read.

    Returns:
        A mask (bool, `True` = keep) for each entry of `params_of(module)`, `None` where it is not
        pruned. A tied parameter keeps an entry where all of its names that are pruned keep it.

    Example:
        >>> net = attach_masks_(nn.Linear(2, 1), {"weight": torch.tensor([[True, False]])})
        >>> masks_of(net)
        {'bias': None, 'weight': tensor([[ True, False]])}
    """
    masks: dict[int, Tensor] = {}
    for site in _sites(module):
        if site.mask is not None:
            _intersect(masks, site.dense, site.mask.detach() != 0)
    return {path: masks.get(id(dense)) for path, dense in params_of(module).items()}


def params_of(module: nn.Module) -> dict[str, nn.Parameter]:
    """Read the dense parameters of a module under the names that the plain module gives them.

    Args:
        module: The module to read, pruned or not.

    Returns:
        The `Parameter`s themselves, `fc.weight_orig` as `fc.weight`; a tied one once, under its
        first name. With `masks_of(module)` they feed `gprune.apply_masks` and, on a plain
        module, `torch.func.functional_call`.

    Example:
        >>> net = attach_masks_(nn.Linear(2, 1), {"weight": torch.tensor([[True, False]])})
        >>> sorted(params_of(net))
        ['bias', 'weight']
    """
    first: dict[int, _Site] = {}
    for site in _sites(module):
        first.setdefault(id(site.dense), site)
    return {site.path: site.dense for site in first.values()}


def _sites(module: nn.Module) -> Iterator[_Site]:
    for prefix, owner in _owners(module, "", ()):
        original = {f"{name}_orig": name for name in pruning_hooks(owner)}
        for key, dense in owner.named_parameters(recurse=False, remove_duplicate=False):
            name = original.get(key, key)
            mask = getattr(owner, f"{name}_mask") if key in original else None
            yield _Site(f"{prefix}.{name}".lstrip("."), owner, name, dense, mask)


def _owners(
    module: nn.Module, prefix: str, above: tuple[nn.Module, ...]
) -> Iterator[tuple[str, nn.Module]]:
    # `named_modules` gives each module but once, or never ends where one contains itself
    yield prefix, module
    for name, child in module._modules.items():
        if child is not None and all(child is not other for other in (*above, module)):
            yield from _owners(child, f"{prefix}.{name}".lstrip("."), (*above, module))


def _intersect(masks: dict[int, Tensor], dense: Tensor, mask: Tensor) -> None:
    known = masks.get(id(dense))
    masks[id(dense)] = mask if known is None else known & mask


def _misfits(masks: Mapping[str, Any], by_path: Mapping[str, nn.Parameter]) -> Iterator[Exception]:
    for path, mask in masks.items():
        if path not in by_path:
            near = difflib.get_close_matches(str(path), by_path, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"it has {list(by_path)}"
            yield ValueError(f"masks[{path!r}]: the module has no such parameter; {hint}")
        elif mask is None:
            continue
        elif not isinstance(mask, Tensor) or mask.dtype != torch.bool:
            got = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
            yield TypeError(f"masks[{path!r}] must be a bool tensor, got {got}")
        elif mask.shape != by_path[path].shape:
            shape, wanted = tuple(mask.shape), tuple(by_path[path].shape)
            yield ValueError(f"masks[{path!r}] has shape {shape}, its parameter has {wanted}")
