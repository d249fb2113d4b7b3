"""What torch keeps in a pruned module, and writing it all or not at all.

Private names of torch are touched only here and for lack of public ones: a hook's `_tensor_name`
and a module's `_forward_pre_hooks` are the only record of which tensors are pruned, and a
container's `_pruning_methods` can be extended in public but not taken back.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from copy import copy
from typing import TypeAlias

from torch import Tensor, nn
from torch.nn.utils.prune import BasePruningMethod, PruningContainer, custom_from_mask, remove

Pair: TypeAlias = tuple[nn.Module, str]


def pruning_hooks(module: nn.Module) -> dict[str, int]:
    """Return the key of its hook for each tensor that is pruned in this very module."""
    hooks = module._forward_pre_hooks.items()
    return {hook._tensor_name: key for key, hook in hooks if isinstance(hook, BasePruningMethod)}


def write_masks(masks: Mapping[Pair, Tensor]) -> None:
    """Multiply a mask into each pair by torch's `custom_from_mask`, in this order, or into none."""
    with all_or_nothing(module for module, _ in masks):
        for (module, name), mask in masks.items():
            custom_from_mask(module, name, mask)  # type: ignore[no-untyped-call]  # torch's prune has no types


def make_final(module: nn.Module, name: str) -> None:
    """Replace a pruned tensor by its masked values for good, by torch's `remove`."""
    remove(module, name)  # type: ignore[no-untyped-call]  # torch's prune has no types


def restore_dense(module: nn.Module, name: str) -> None:
    """Put the dense parameter of a pruned tensor back under its own name."""
    dense = module.get_parameter(f"{name}_orig")
    for attribute in (name, f"{name}_orig", f"{name}_mask"):
        delattr(module, attribute)
    del module._forward_pre_hooks[pruning_hooks(module)[name]]
    setattr(module, name, dense)  # not `register_parameter`: an RNN listens to `setattr`


@contextmanager
def all_or_nothing(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Undo what happened to the modules inside the block if it raises."""
    undo = [_snapshot(module) for module in {id(module): module for module in modules}.values()]
    try:
        yield
    except BaseException:
        for restore in undo:
            restore()
        raise


def _snapshot(module: nn.Module) -> Callable[[], None]:
    # One level deep is all that pruning reaches: the module's own dicts, an RNN's list of flat
    # weights. They are refilled, not replaced, since others (the handles of hooks) hold them.
    # `remove` also replaces the data of the dense parameter.
    attributes = dict(vars(module))
    boxes = [value for value in attributes.values() if isinstance(value, dict | list | set)]
    contents = [(box, copy(box)) for box in boxes]
    hooks = [h for h in module._forward_pre_hooks.values() if isinstance(h, PruningContainer)]
    chains = [(hook, hook._pruning_methods) for hook in hooks]
    dense = [getattr(module, f"{name}_orig") for name in pruning_hooks(module)]
    data = [(parameter, parameter.data) for parameter in dense]

    def restore() -> None:
        vars(module).clear()
        vars(module).update(attributes)
        for box, content in contents:
            box.clear()
            box.extend(content) if isinstance(box, list) else box.update(content)
        for hook, chain in chains:
            hook._pruning_methods = chain
        for parameter, values in data:
            parameter.data = values

    return restore
