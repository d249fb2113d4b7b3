"""Keep the pruned weights of a module at zero through the steps of an optimizer.

A mask in a module stops the gradients of pruned weights, but not momentum and weight decay. After
`remove` or `make_permanent_` there is no mask, and the gradients return too. So after each step of
the optimizer, the pruned weights and everything that the optimizer stores for them are set to zero.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from gprune.adapter.modules import masks_of, params_of


def project_(optimizer: Optimizer, module: nn.Module) -> RemovableHandle:
    """Set the pruned weights of a module to zero, now and after every step of an optimizer.

    Every tensor that the optimizer stores for a parameter and that has its shape, such as a
    momentum, is masked like the parameter itself. The dense values of pruned weights are lost at
    once, so `detach_masks_` restores zeros. They stay zero until the hook is removed.

    The masks are read from the module at this call and after each step. After `make_permanent_` the
    last masks that were read stay in use. So after pruning further, call this function again, or
    take a step, before `make_permanent_`.

    Args:
        optimizer: the optimizer, of any class. A hook is added to its steps.
        module: the pruned module, whose parameters the optimizer updates.

    Returns:
        The handle of the hook; `handle.remove()` removes it.

    Raises:
        TypeError: if `optimizer` is not an optimizer, or `module` is not a module.
        ValueError: if nothing in the module is pruned.

    Example:
        >>> from gprune.adapter import attach_masks_, make_permanent_
        >>> net = attach_masks_(nn.Linear(2, 1), {"weight": torch.tensor([[True, False]])})
        >>> optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
        >>> handle = project_(optimizer, net)
        >>> net = make_permanent_(net)
        >>> for _ in range(3):
        ...     net(torch.ones(4, 2)).sum().backward()
        ...     optimizer.step()
        >>> net.weight[0, 1].item() == 0
        True
    """
    if not isinstance(optimizer, Optimizer):
        raise TypeError(f"optimizer must be a torch.optim.Optimizer, got {optimizer!r}")
    if not isinstance(module, nn.Module):
        raise TypeError(f"module must be a torch.nn.Module, got {type(module).__name__}")
    known = _masks_by_parameter(module)
    if not known:
        raise ValueError("the module has no pruned parameter; prune it or attach masks first")

    def hook(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        known.update(_masks_by_parameter(module))
        _mask_all(optimizer, known)

    _mask_all(optimizer, known)
    return optimizer.register_step_post_hook(hook)


def _masks_by_parameter(module: nn.Module) -> dict[nn.Parameter, Tensor]:
    masks = masks_of(module)
    return {
        parameter: mask
        for path, parameter in params_of(module).items()
        if (mask := masks[path]) is not None
    }


@torch.no_grad()
def _mask_all(optimizer: Optimizer, masks: dict[nn.Parameter, Tensor]) -> None:
    for parameter, mask in masks.items():
        stored = optimizer.state.get(parameter, {})
        of_its_shape = [
            value
            for name, value in stored.items()
            if name != "step" and isinstance(value, Tensor) and value.shape == parameter.shape
        ]
        for tensor in (parameter, *of_its_shape):
            tensor.masked_fill_(~mask, 0)
