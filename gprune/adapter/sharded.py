"""Masks of modules whose parameters are DTensors, and of modules under `fully_shard` (FSDP2).

Under `fully_shard` a module has a shard of each parameter, as a DTensor. In a forward pass it has
the whole parameter instead, a plain tensor under the same name. So a mask is needed whole and as a
shard, and `fully_shard` must know the names:

1. The hook that multiplies the mask into the weight runs in the forward pass. So the buffer
   `<name>_mask` is whole, and the same on all ranks. The masked weight of the last forward pass,
   which torch keeps under the name of the parameter, is whole too.
2. Everything else happens between forward passes. It takes the part of the mask that belongs to
   the shard of the parameter: `place_like`.
3. Pruning renames the parameter to `<name>_orig`, and `remove` renames it back. `follow_names`
   tells `fully_shard` the name that the parameter has now.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from gprune.sharding import is_sharded


def reshard(module: nn.Module) -> None:
    """Replace whole parameters, which a forward pass may have left, by their shards."""
    for child in _fully_sharded(module):
        child.reshard()


def whole(tensor: Any) -> Tensor:
    """Return all entries of a tensor; those of a DTensor are gathered from all ranks."""
    entries: Tensor = tensor.full_tensor() if is_sharded([tensor]) else tensor
    return entries


def local_shard(tensor: Any) -> Tensor:
    """Return the shard of a DTensor that this rank has; a plain tensor is returned as it is."""
    shard: Tensor = tensor.to_local() if is_sharded([tensor]) else tensor
    return shard


def place_like(tensor: Tensor, leaf: Any) -> Tensor:
    """Return a tensor on the device of another one, and sharded as that one is.

    Args:
        tensor: a tensor of the shape of `leaf`; if it is plain, it is the same on all ranks.
        leaf: a plain tensor or a DTensor.

    Returns:
        The placed tensor, which is `tensor` itself if it is in place already.
    """
    if not is_sharded([leaf]):
        return whole(tensor).to(leaf.device)
    if is_sharded([tensor]) and _place(tensor) == _place(leaf):
        return tensor
    from gprune.select import dtensors  # imports torch.distributed

    return dtensors.shard_like(whole(tensor).to(leaf.device), leaf)


def place_for_forward(mask: Tensor, site: Any) -> Tensor:
    """Return a mask that is placed as its parameter is in the forward pass.

    Args:
        mask: a mask of the shape of the parameter; if it is plain, it is the same on all ranks.
        site: the parameter, with its `owner`, `name` and `dense`.

    Returns:
        The placed mask.
    """
    if is_fully_sharded(site.owner, site.name):
        return whole(mask).to(site.dense.device_mesh.device_type)
    return place_like(mask, site.dense)


def _place(dtensor: Any) -> tuple[Any, ...]:
    return dtensor.device_mesh, dtensor.placements


def is_managed(module: nn.Module) -> bool:
    """Return whether `fully_shard` was applied to a module, or to one that contains it."""
    return getattr(module, "_is_fsdp_managed_module", False)


def is_fully_sharded(module: nn.Module, name: str) -> bool:
    """Return whether `fully_shard` has sharded a parameter, by its name before pruning."""
    dense = module._parameters.get(f"{name}_orig", module._parameters.get(name))
    return is_managed(module) and is_sharded([dense])


def check_renaming(module: nn.Module, sites: Iterable[Any]) -> None:
    """Raise an error if `fully_shard` would not follow the new names of parameters.

    Args:
        module: the module in which `fully_shard` is looked for.
        sites: parameters, each with its `path`, `owner`, `name` and `dense`.

    Raises:
        ValueError: if `fully_shard` has sharded a parameter as a part of a larger module.
    """
    known = {id(record.sharded_param) for record in _records(module)}
    for site in sites:
        # a plain parameter is one that `fully_shard` ignores, or a whole one, between two shards
        is_part = is_fully_sharded(site.owner, site.name) or (is_managed(site.owner) and not known)
        if is_part and id(site.dense) not in known:
            raise ValueError(
                f"{site.path!r} is sharded by fully_shard as a part of a larger module; pass that "
                "module, or prune before fully_shard"
            )


def check_attaching(module: nn.Module, sites: Iterable[Any]) -> None:
    """Raise an error if masks cannot be attached to parameters, because of how they are sharded.

    Args:
        module: the module in which `fully_shard` is looked for.
        sites: parameters, each with its `path`, `owner`, `name` and `dense`.

    Raises:
        ValueError: as `check_renaming` does, or if a parameter was a DTensor before `fully_shard`.
    """
    check_renaming(module, sites)
    were_dtensors = {id(each.sharded_param) for each in _records(module) if each.is_dtensor}
    for site in sites:
        if id(site.dense) in were_dtensors:
            raise ValueError(
                f"{site.path!r} was a DTensor before fully_shard, and is one in the forward pass; "
                "prune before fully_shard, after parallelize_module"
            )


@contextmanager
def whole_stand_in(module: nn.Module, name: str) -> Iterator[None]:
    """Make a parameter under `fully_shard` whole while a whole mask is attached to it.

    Otherwise torch would multiply the mask into the shard. Inside the block, a tensor of the whole
    shape that takes no memory stands in for the parameter. A parameter that is not under
    `fully_shard` is left as it is.

    Args:
        module: the module that has the parameter.
        name: the name of the parameter before it was pruned.
    """
    if not is_fully_sharded(module, name):
        yield
        return
    key = f"{name}_orig" if f"{name}_orig" in module._parameters else name
    dense: Any = module._parameters[key]
    zero = torch.zeros((), dtype=dense.dtype, device=dense.device_mesh.device_type)
    module._parameters[key] = nn.Parameter(zero.expand(dense.shape), dense.requires_grad)
    yield
    module._parameters[f"{name}_orig"] = dense
    setattr(module, name, place_like(getattr(module, f"{name}_mask"), dense) * dense)


def follow_names(module: nn.Module) -> None:
    """Make `fully_shard` use the names that the parameters of a module have now."""
    for record in _records(module):
        info, dense = record._module_info, record.sharded_param
        info.param_name = _current_name(info.module, info.param_name, dense)
        info.shared_param_names = [
            _current_name(owner, name, dense)
            for owner, name in zip(info.shared_modules, info.shared_param_names, strict=True)
        ]


def _current_name(owner: nn.Module, name: str, dense: nn.Parameter) -> str:
    names = (name, f"{name}_orig", name.removesuffix("_orig"))
    return next(each for each in names if owner._parameters.get(each) is dense)


def _records(module: nn.Module) -> Iterator[Any]:
    """Yield what `fully_shard` has stored about each parameter; there is no public name for it."""
    for child in _fully_sharded(module):
        state = child._get_fsdp_state()
        # torch 2.10 has one group of parameters for each module, later versions have several
        groups = getattr(state, "_fsdp_param_groups", None)
        for group in [state._fsdp_param_group] if groups is None else groups:
            yield from group.fsdp_params if group else ()


def _fully_sharded(module: nn.Module) -> list[Any]:
    """Return the modules to which `fully_shard` was applied. It gives them `_get_fsdp_state`."""
    return [child for child in module.modules() if hasattr(child, "_get_fsdp_state")]
