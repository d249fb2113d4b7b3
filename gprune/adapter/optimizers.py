"""The optimizer of a pruned module: what it moves at masked places is put back to zero.

A mask in a module stops the gradient of what it masks, and nothing else: momentum and weight decay
go on, and after `remove` or `make_permanent_` the gradients come back too. So after each of the
optimizer's steps the masked weights, and whatever the optimizer remembers of them, become zero.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from gprune.adapter.modules import masks_of, params_of


def project_(optimizer: Optimizer, module: nn.Module) -> RemovableHandle:
    """Keep what is pruned in a module at zero, from now on and after every step of an optimizer.

    The masks are those of the module after each step, and once a pruning is permanent the last that
    this or a step has seen: after pruning further, call it again before `make_permanent_`, or take
    a step. Every tensor that the optimizer keeps for a parameter and that has its shape, such as a
    momentum, is masked like the parameter itself. The dense weights are gone at once, so
    `detach_masks_` brings zeros back, which stay until the hook is removed.

    Args:
        optimizer: the optimizer, of any class; its step gets a hook.
        module: the pruned module, whose parameters the optimizer updates.

    Returns:
        The handle of the hook; `handle.remove()` ends it.

    Raises:
        TypeError: `optimizer` is no optimizer, or `module` no module.
        ValueError: Nothing in the module is pruned.

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
        raise TypeError(f"module must be a module, got {module!r}")
    known = _masks_by_parameter(module)
    if not known:
        raise ValueError("the module has no pruned parameter; attach masks first")

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
        remembered = optimizer.state.get(parameter, {})
        of_its_shape = [
            value
            for name, value in remembered.items()
            if name != "step" and isinstance(value, Tensor) and value.shape == parameter.shape
        ]
        for tensor in (parameter, *of_its_shape):
            tensor.masked_fill_(~mask, 0)
