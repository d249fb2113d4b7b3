"""Keep the pruned weights of a module at zero through the steps of an optimizer.

A mask in a module stops the gradients of pruned weights, but not momentum and weight decay. After
`remove` or `make_permanent_` there is no mask, and the gradients return too. So after each step of
the optimizer, the pruned weights and their moments are set to zero.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from gprune.adapter.modules import masks_of, params_of
from gprune.adapter.sharded import local_shard, place_like
from gprune.inputs import PLAIN
from gprune.masks import count_pruned, masks_from_zeros
from gprune.sharding import check_same_leaves, raise_on_all_ranks
from gprune.trees import Where, describe_first, prunable

ELEMENTWISE_STATE = frozenset(
    {
        "exp_avg",  # Adam, AdamW, Adamax, NAdam, RAdam, SparseAdam
        "exp_avg_sq",  # Adam, AdamW, NAdam, RAdam, SparseAdam
        "max_exp_avg_sq",  # Adam and AdamW with amsgrad
        "exp_inf",  # Adamax
        "momentum_buffer",  # SGD, RMSprop, Muon
        "square_avg",  # RMSprop, Adadelta
        "grad_avg",  # RMSprop, centered
        "acc_delta",  # Adadelta
        "sum",  # Adagrad
        "variance",  # Adafactor, of vectors; for matrices it has those of rows and of columns
        "prev",  # Rprop: the last gradient
        "ax",  # ASGD: the average of the weights
    }
)
"""The names under which the optimizers of torch store one moment for each weight.

Two states are left out on purpose. Rprop's `step_size` must not become 0. What `LBFGS` stores is
about all parameters together.
"""

MAX_WRAPPERS = 10
"""The most wrappers that are opened to find an optimizer. A mock has endlessly many."""


def project_(optimizer: Optimizer, module: nn.Module) -> RemovableHandle:
    """Set the pruned weights of a module to zero, now and after every step of an optimizer.

    The moments of pruned weights are set to zero too. A moment is a floating tensor of the
    parameter's shape that the optimizer stores under a name that torch's optimizers use for one
    value per weight, such as `exp_avg`. Quantized states and states under other names are left
    alone, and the weights are zero after every step all the same. Two kinds of optimizers do not
    fit. Some store something else under such a name, as SOAP does under `exp_avg_sq`. Others change
    weights outside of `step`, as schedule-free ones do in `eval`.

    The dense values of pruned weights are lost at once, so `detach_masks_` restores zeros. The
    weights stay zero until the hook is removed.

    The masks are read from the module at this call and after each step. After `make_permanent_` the
    last masks that were read stay in use. So if you prune further, take a step or call this
    function again before `make_permanent_`.

    It sends no messages between ranks: with DTensors, only the rank with an error raises it.

    Args:
        optimizer: the optimizer, of any class, or a wrapper that has it as its attribute
            `optimizer`, as Accelerate and Lightning make them. A hook is added to its steps.
        module: the pruned module, whose parameters the optimizer updates.

    Returns:
        The handle of the hook; `handle.remove()` removes it.

    Raises:
        TypeError: if `optimizer` is not an optimizer, or `module` is not a module.
        ValueError: if nothing in the module is pruned, or the optimizer updates no pruned
            parameter. Nothing has changed then.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> import gprune.adapter as prune
        >>> net = prune.attach_masks_(nn.Linear(2, 1), {"weight": torch.tensor([[True, False]])})
        >>> optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
        >>> handle = prune.project_(optimizer, net)
        >>> net = prune.make_permanent_(net)
        >>> for _ in range(3):
        ...     net(torch.ones(4, 2)).sum().backward()
        ...     optimizer.step()
        >>> net.weight[0, 1].item() == 0
        True
    """
    inner = _find_optimizer(optimizer)
    masks = _masks_of_pruned(module)
    if not masks:
        raise ValueError("the module has no pruned parameter; prune it or attach masks first")
    _check_updated(inner, params_of(module), masks)

    def hook(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        masks.update(_masks_of_pruned(module))
        _mask_all(optimizer, module, masks)

    handle = inner.register_step_post_hook(hook)
    _mask_all(inner, module, masks)
    return handle


def keep_zeros_(module: nn.Module, optimizer: Optimizer, *, where: Where = None) -> RemovableHandle:
    """Keep the zeros of an already sparse module at zero while an optimizer trains the rest.

    Use it to fine-tune a network whose zeros are in its weights: one that was loaded from a pruned
    checkpoint, or one after `make_permanent_`. No masks and no hooks are attached to the module, so
    its state dict and its names stay as they are. After every step of the optimizer, the weights
    that are zero now are set to zero again, and so are their moments, as by `project_`.

    Gradients are not masked, so gradient clipping by norm counts those of the zeros too.

    If the module is under DDP, its weights must be equal on all ranks at this call. Under
    `fully_shard`, all ranks must make the call.

    Args:
        module: the module to train. It may be wrapped, compiled, moved or sharded later.
        optimizer: the optimizer of its parameters, or a wrapper that has it as its attribute
            `optimizer`, as Accelerate and Lightning make them. A hook is added to its steps.
        where: the parameters whose zeros are kept, as in `gprune.prunable`. By default the weights
            of linear, convolution, embedding and recurrent layers, of which none may be all zero.

    Returns:
        The handle of the hook; `handle.remove()` removes it.

    Raises:
        TypeError: if `module` is not a module, `optimizer` is not an optimizer, or `where` is no
            predicate, glob or list of globs.
        ValueError: if there are no zeros, the optimizer updates no parameter that has zeros, or a
            parameter is all zero and `where` is not given.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> import gprune.adapter as prune
        >>> net = nn.Linear(2, 1)
        >>> net.load_state_dict({"weight": torch.tensor([[1.0, 0.0]]), "bias": torch.ones(1)})
        <All keys matched successfully>
        >>> optimizer = torch.optim.AdamW(net.parameters(), lr=0.1)
        >>> handle = prune.keep_zeros_(net, optimizer)
        >>> for _ in range(3):
        ...     net(torch.ones(4, 2)).sum().backward()
        ...     optimizer.step()
        >>> (net.weight == 0).tolist()
        [[False, True]]
    """
    inner, masks = _zeros_to_keep(params_of(module), optimizer, where)

    def hook(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        _mask_all(optimizer, module, masks)

    handle = inner.register_step_post_hook(hook)
    _mask_all(inner, module, masks)
    return handle


@raise_on_all_ranks
def _zeros_to_keep(
    params: dict[str, nn.Parameter], optimizer: Any, where: Where
) -> tuple[Optimizer, dict[str, Tensor]]:
    """Return the optimizer whose steps run hooks, and the masks of the parameters that have zeros.

    Args:
        params: all parameters of the module, whose DTensors tell the ranks that raise an error.
        optimizer: the optimizer, or a wrapper of it.
        where: as in `gprune.prunable`.

    Returns:
        The optimizer, and masks by the paths of the parameters.

    Raises:
        ValueError: if there are no zeros, the optimizer updates no parameter that has zeros, or a
            parameter is all zero and `where` is not given.
    """
    inner = _find_optimizer(optimizer)
    weights = prunable(params, where)
    if where is not None and all(weight is None for weight in weights.values()):
        names = describe_first(list(weights), repr, ", ")
        raise ValueError(f"where={where!r} chooses no parameter of the module; it has {names}")
    found = {path: mask for path, mask in masks_from_zeros(weights).items() if mask is not None}
    num_zeros = dict(zip(found, count_pruned(list(found.values()), found).tolist(), strict=True))
    masks = {path: mask for path, mask in found.items() if num_zeros[path]}
    if not masks:
        raise ValueError(
            "the module has no zeros in its weights; prune it first, choose parameters with where=,"
            " or call project_ if it is pruned by masks"
        )
    all_zero = [path for path in masks if num_zeros[path] == params[path].numel()]
    if all_zero and where is None:
        raise ValueError(
            f"all of {describe_first(all_zero, repr, ', ')} is zero and would stay so; choose the "
            "parameters whose zeros are kept with where="
        )
    _check_updated(inner, params, masks)
    check_same_leaves("keep_zeros_", list(params.values()), lambda: list(params))
    return inner, masks


def _masks_of_pruned(module: nn.Module) -> dict[str, Tensor]:
    return {path: mask for path, mask in masks_of(module).items() if mask is not None}


def _find_optimizer(optimizer: Any) -> Optimizer:
    """Return the optimizer whose steps run hooks: the given one, or the one inside a wrapper."""
    inner = optimizer
    for _ in range(MAX_WRAPPERS):
        if isinstance(inner, Optimizer) and hasattr(inner, "_optimizer_step_post_hooks"):
            return inner
        inner = getattr(inner, "optimizer", None)
    raise TypeError(
        "optimizer must be a torch.optim.Optimizer whose steps run hooks, or have one as its "
        f"attribute `optimizer`, got {type(optimizer).__name__}"
    )


def _check_updated(
    optimizer: Optimizer, params: Mapping[str, Tensor], masks: Mapping[str, Tensor]
) -> None:
    updated = {id(param) for group in optimizer.param_groups for param in group["params"]}
    if updated.isdisjoint(id(params[path]) for path in masks):
        paths = describe_first(list(masks), repr, ", ")
        raise ValueError(
            f"the optimizer updates none of {paths}; make the optimizer from the parameters that "
            "the module has now: fully_shard, for one, replaces them"
        )


@torch.no_grad()
def _mask_all(optimizer: Optimizer, module: nn.Module, masks: dict[str, Tensor]) -> None:
    """Set the pruned weights and their moments to zero.

    Args:
        optimizer: the optimizer that has the moments.
        module: the module that has the parameters.
        masks: masks by the paths of the parameters. A mask is replaced by one that is placed like
            its parameter, if the parameter has been moved or sharded since.
    """
    for path, param in params_of(module).items():
        if path not in masks:
            continue
        masks[path] = place_like(masks[path], param)
        pruned = ~masks[path]
        for tensor in (param, *_moments(optimizer.state.get(param, {}), param)):
            tensor.masked_fill_(place_like(pruned, tensor), 0)


def _moments(stored: Mapping[str, Any], param: Tensor) -> Iterator[Tensor]:
    """Yield the tensors among the stored ones that have one value for each weight."""
    for name, value in stored.items():
        if name in ELEMENTWISE_STATE and isinstance(value, Tensor) and value.shape == param.shape:
            local = local_shard(value)
            is_number = local.is_floating_point() or local.is_complex()
            if type(local) in PLAIN and is_number and local.dtype.itemsize > 1:
                yield value
