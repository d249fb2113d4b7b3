"""Running statistics of batch norms after pruning.

Pruning changes the activations of a network. Its batch norms still have the mean and variance of
the dense network, and use them in eval mode. The functions here measure them anew.

As in `torch.optim.swa_utils.update_bn`, the new statistics are the averages of the statistics of
the batches. Unlike in `update_bn`, all other modules are in eval mode, because dropout would
change the variances (Li et al., 2018, arXiv:1801.05134).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm

M = TypeVar("M", bound=nn.Module)


@torch.no_grad()
def recalibrate_batchnorm_(module: M, batches: Iterable[Any]) -> M:
    """Measure the running statistics of all batch norms in a module anew, in place.

    The running mean and variance become the averages over the batches. All batches have the same
    weight, also a smaller last one. A batch norm that the forward does not call in eval mode, or
    that keeps no running statistics, is left alone. Modes and momenta are as before. If an error is
    raised, the module has not changed.

    Args:
        module: the module, pruned or not, with at least one batch norm that has running statistics.
        batches: the batches, read once. The module is called on a tensor, on the first element of a
            list or tuple (the others are targets, as in `update_bn`), or with the entries of a
            mapping as keyword arguments.

    Returns:
        The same module.

    Raises:
        TypeError: if `module` is not a module, or `batches` is one batch or no iterable.
        ValueError: if no batch norm has running statistics, there is no batch, or a statistic is
            not finite.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> import gprune.adapter as prune
        >>> net = nn.Sequential(nn.Linear(1, 1), nn.BatchNorm1d(1))
        >>> _ = net[0].weight.data.fill_(2.0), net[0].bias.data.zero_()
        >>> net = prune.recalibrate_batchnorm_(net, [torch.tensor([[1.0], [3.0]])])
        >>> net[1].running_mean, net[1].running_var
        (tensor([4.]), tensor([8.]))
    """
    norms = _batch_norms(module)
    buffers = dict(module.named_buffers())
    statistics = {path: buffers[path] for path in _statistic_paths(norms)}
    before = {path: tensor.clone() for path, tensor in statistics.items()}
    try:
        _reset(statistics)
        _call_on_batches(module, norms, batches, module)
        measured = _measured(norms, statistics, before)
    except BaseException:
        _copy(before, statistics)
        raise
    _copy(measured, statistics)
    return module


@torch.no_grad()
def recalibrate_batchnorm(
    module: nn.Module,
    params: Mapping[str, Tensor],
    buffers: Mapping[str, Tensor],
    batches: Iterable[Any],
) -> dict[str, Tensor]:
    """Return the buffers with the running statistics that batch norms have on some batches.

    It is `recalibrate_batchnorm_` for `torch.func.functional_call(module, (params, buffers), x)`.
    Nothing that is given changes.

    Args:
        module: the plain module, whose own parameters and buffers are not used.
        params: the parameters by name, such as `gprune.apply_masks(params, masks)`.
        buffers: the buffers by name, `dict(module.named_buffers())`.
        batches: the batches, as in `recalibrate_batchnorm_`.

    Returns:
        A new dict with the keys of `buffers`. Running statistics are new tensors; other buffers are
        those that were given.

    Raises:
        TypeError: if `module` is not a module, or `batches` is one batch or no iterable.
        ValueError: if a running statistic is not in `buffers`, no batch norm has any, there is no
            batch, or a statistic is not finite.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> import gprune.adapter as prune
        >>> net = nn.Sequential(nn.Linear(1, 1, bias=False), nn.BatchNorm1d(1, affine=False))
        >>> params = {"0.weight": torch.tensor([[2.0]])}
        >>> x = torch.tensor([[1.0], [3.0]])
        >>> buffers = prune.recalibrate_batchnorm(net, params, dict(net.named_buffers()), [x])
        >>> buffers["1.running_mean"]
        tensor([4.])
    """
    norms = _batch_norms(module)
    missing = [path for path in _statistic_paths(norms) if path not in buffers]
    if missing:
        raise ValueError(f"buffers has no {missing[0]!r}; give all of dict(module.named_buffers())")
    copies = {path: tensor.detach().clone() for path, tensor in buffers.items()}
    statistics = {path: copies[path] for path in _statistic_paths(norms)}

    def call(*args: Any, **kwargs: Any) -> None:
        functional_call(module, (dict(params), copies), args, kwargs)

    _reset(statistics)
    _call_on_batches(module, norms, batches, call)
    return {**buffers, **_measured(norms, statistics, buffers)}


def _batch_norms(module: nn.Module) -> dict[str, _BatchNorm]:
    """Return the batch norms that have running statistics, by path."""
    if not isinstance(module, nn.Module):
        raise TypeError(f"module must be a torch.nn.Module, got {type(module).__name__}")
    norms = {
        path: norm
        for path, norm in module.named_modules()
        if isinstance(norm, _BatchNorm) and norm.num_batches_tracked is not None
    }
    if not norms:
        raise ValueError("the module has no batch norm with running statistics to recalibrate")
    return norms


def _statistic_paths(norms: Iterable[str]) -> list[str]:
    """Return the paths of the running statistics of batch norms."""
    names = ("running_mean", "running_var", "num_batches_tracked")
    return [f"{norm}.{name}".lstrip(".") for norm in norms for name in names]


def _reset(statistics: Mapping[str, Tensor]) -> None:
    for path, tensor in statistics.items():
        tensor.fill_(path.endswith("running_var"))


def _copy(source: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> None:
    for path, tensor in target.items():
        tensor.copy_(source[path])


def _call_on_batches(
    module: nn.Module,
    norms: Mapping[str, _BatchNorm],
    batches: Iterable[Any],
    call: Callable[..., Any],
) -> None:
    is_one = isinstance(batches, Tensor | Mapping)
    if is_one or not (hasattr(batches, "__iter__") or hasattr(batches, "__getitem__")):
        got = f"{'one ' if is_one else ''}{type(batches).__name__}"
        raise TypeError(
            f"batches must be an iterable of batches, got {got}; put it into a list if it is a "
            "batch"
        )
    done = 0
    with _only_batch_norms_train(module, norms.values()):
        for batch in batches:
            if isinstance(batch, Mapping):
                call(**batch)
            else:
                call(batch[0] if isinstance(batch, list | tuple) else batch)
            done += 1
    if done == 0:
        raise ValueError("batches is empty: there are no activations to measure")


@contextmanager
def _only_batch_norms_train(module: nn.Module, norms: Iterable[_BatchNorm]) -> Iterator[None]:
    # Without a momentum, a batch norm averages the statistics of the batches.
    modes = {submodule: submodule.training for submodule in module.modules()}
    momenta = {norm: norm.momentum for norm in norms}
    try:
        for submodule in modes:
            submodule.training = submodule in momenta
        for norm in momenta:
            norm.momentum = None
        yield
    finally:
        for submodule, mode in modes.items():
            submodule.training = mode
        for norm, momentum in momenta.items():
            norm.momentum = momentum


def _measured(
    norms: Iterable[str], statistics: Mapping[str, Tensor], before: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Return the new statistics, and the old ones of batch norms that were not called."""
    measured = dict(statistics)
    for norm in norms:
        mean, var, num_batches = paths = _statistic_paths([norm])
        if statistics[num_batches] == 0:
            measured.update((path, before[path]) for path in paths)
        elif not (statistics[mean].isfinite().all() and statistics[var].isfinite().all()):
            raise ValueError(
                f"the new statistics of the batch norm {norm!r} are not finite; look for NaN and "
                "infinity in the batches and in the weights"
            )
    return measured
