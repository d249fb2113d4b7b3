"""The state that torch keeps in a pruned module, and writing to several modules or to none.

Most private names of torch that the adapter needs are used here, because there are no public ones.
A hook's `_tensor_name` and a module's `_forward_pre_hooks` are the only record of which tensors are
pruned. A container's `_pruning_methods` can be extended through public functions, but not restored.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from copy import copy
from typing import TypeAlias

from torch import Tensor, nn
from torch.nn.utils.prune import BasePruningMethod, PruningContainer, custom_from_mask, remove

from gprune.adapter.sharded import whole_stand_in

ModuleAndName: TypeAlias = tuple[nn.Module, str]


def pruning_hooks(module: nn.Module) -> dict[str, int]:
    """Return the key of the hook of each pruned tensor of a module, without its submodules."""
    hooks = module._forward_pre_hooks.items()
    return {hook._tensor_name: key for key, hook in hooks if isinstance(hook, BasePruningMethod)}


def attach_all(masks: Mapping[ModuleAndName, Tensor]) -> None:
    """Prune each (module, name) by its mask, or none of them if one fails.

    torch's `custom_from_mask` does it. It multiplies the mask into the mask of an earlier pruning.
    """
    with all_or_nothing(module for module, _ in masks):
        for (module, name), mask in masks.items():
            with whole_stand_in(module, name):
                custom_from_mask(module, name, mask)  # type: ignore[no-untyped-call]  # torch's prune has no types


def make_permanent(module: nn.Module, name: str) -> None:
    """Write the zeros of a mask into the weight, and remove the mask, with torch's `remove`."""
    remove(module, name)  # type: ignore[no-untyped-call]  # torch's prune has no types


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
