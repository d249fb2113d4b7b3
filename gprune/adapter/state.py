"""The state that torch keeps in a pruned module, and all-or-nothing changes of modules.

Most private names of torch that the adapter needs are used here, because there are no public ones.
A hook's `_tensor_name` and a module's `_forward_pre_hooks` are the only record of which tensors are
pruned. A container's `_pruning_methods` can be extended through public functions, but not restored.
"""

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from copy import copy
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
from torch.nn.utils.prune import BasePruningMethod, PruningContainer, remove

from gprune.adapter.hooks import RecomputeChild, attach_mask
from gprune.adapter.sharded import place_like, whole_stand_in
from gprune.sharding import is_sharded

ModuleAndName: TypeAlias = tuple[nn.Module, str]


def pruning_hooks(module: nn.Module) -> dict[str, int]:
    """Return the key of the hook of each pruned tensor of a module, without its submodules."""
    hooks = module._forward_pre_hooks.items()
    return {hook._tensor_name: key for key, hook in hooks if isinstance(hook, BasePruningMethod)}


def attach_all(
    masks: Mapping[ModuleAndName, Tensor], uncalled: Iterable[tuple[nn.Module, str]] = ()
) -> None:
    """Prune each (module, name) by its mask, or none of them if one fails.

    A mask is multiplied into the mask of an earlier pruning, as in torch's `custom_from_mask`.

    Args:
        masks: the masks.
        uncalled: (owner, path of a child) where the owner uses a weight of the child without
            calling the child. If the child is in `masks`, its weights are recomputed before each
            forward of the owner.
    """
    modules = {module for module, _ in masks}
    recomputed = [(owner, path) for owner, path in uncalled if owner.get_submodule(path) in modules]
    with all_or_nothing((*modules, *(owner for owner, _ in recomputed))):
        _warn_of_uncalled(masks, {owner.get_submodule(path) for owner, path in recomputed})
        for (module, name), mask in masks.items():
            with whole_stand_in(module, name):
                attach_mask(module, name, mask)
        for owner, path in recomputed:
            hook = RecomputeChild(path)
            if hook not in owner._forward_pre_hooks.values():
                owner.register_forward_pre_hook(hook)


def _warn_of_uncalled(masks: Mapping[ModuleAndName, Tensor], recomputed: set[nn.Module]) -> None:
    # only `nn.MultiheadAttention` makes modules of this class
    if any(
        isinstance(module, NonDynamicallyQuantizableLinear)
        and module not in recomputed
        and name not in pruning_hooks(module)  # else the earlier pruning has warned
        for module, name in masks
    ):
        warnings.warn(
            "out_proj of an nn.MultiheadAttention is pruned without its owner. The attention does "
            "not call out_proj, so the masked weight is not recomputed: changes of the parameter "
            'have no effect, and a second backward fails. Give the pair (attention, "out_proj.'
            'weight"), or call prune_ or attach_masks_ on a module that holds the attention',
            stacklevel=4,
        )


def remove_stale_child_hooks(module: nn.Module) -> None:
    """Remove the hooks by which a module recomputes children that are not pruned any more."""
    for key, hook in list(module._forward_pre_hooks.items()):
        if isinstance(hook, RecomputeChild) and not pruning_hooks(module.get_submodule(hook.child)):
            del module._forward_pre_hooks[key]


def make_permanent(module: nn.Module, name: str) -> None:
    """Write the zeros of a mask into the weight, and remove the mask, with torch's `remove`.

    torch's `remove` assigns to `.data`, which does not change a DTensor, so its shard is changed in
    place. torch multiplies by the mask, and 0 times NaN is NaN, so pruned entries are set to zero
    afterwards.
    """
    dense = module._parameters.get(f"{name}_orig")
    if dense is not None and is_sharded([dense]):
        mask = place_like(getattr(module, f"{name}_mask"), dense)
        restore_dense(module, name)
        with torch.no_grad():
            dense.masked_fill_(mask == 0, 0)
        return
    pruned = getattr(module, f"{name}_mask", torch.ones(())) == 0
    remove(module, name)  # type: ignore[no-untyped-call]  # torch's prune has no types
    module.get_parameter(name).data.masked_fill_(pruned, 0)


def restore_dense(module: nn.Module, name: str) -> None:
    """Restore the dense parameter of a pruned tensor under its own name."""
    dense = module.get_parameter(f"{name}_orig")
    for attribute in (name, f"{name}_orig", f"{name}_mask"):
        delattr(module, attribute)
    del module._forward_pre_hooks[pruning_hooks(module)[name]]
    setattr(module, name, dense)  # not `register_parameter`: RNNs override `__setattr__`


@contextmanager
def all_or_nothing(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Restore the modules to their state before the block if the block raises an error."""
    undo = [_snapshot(module) for module in {id(module): module for module in modules}.values()]
    try:
        yield
    except BaseException:
        for restore in undo:
            restore()
        raise


def _snapshot(module: nn.Module) -> Callable[[], None]:
    # Pruning changes the module's own dicts, and an RNN's list of flat weights: a shallow copy of
    # each is enough. They are refilled, not replaced, because other objects (the handles of hooks)
    # refer to them. torch's `remove` also replaces the data of the dense parameter.
    attributes = dict(vars(module))
    containers = [value for value in attributes.values() if isinstance(value, dict | list | set)]
    contents = [(container, copy(container)) for container in containers]
    hooks = [h for h in module._forward_pre_hooks.values() if isinstance(h, PruningContainer)]
    chains = [(hook, hook._pruning_methods) for hook in hooks]
    dense = [getattr(module, f"{name}_orig") for name in pruning_hooks(module)]
    data = [(parameter, parameter.data) for parameter in dense]

    def restore() -> None:
        vars(module).clear()
        vars(module).update(attributes)
        for container, content in contents:
            container.clear()
            if isinstance(container, list):
                container.extend(content)
            else:
                container.update(content)
        for hook, chain in chains:
            hook._pruning_methods = chain
        for parameter, values in data:
            parameter.data = values

    return restore
