"""Modules and flat dicts of their parameters and masks: prune, attach, detach, read.

The keys of the dicts are those of `named_parameters()` before anything is pruned in the module. A
tied parameter has several names and is recognised by identity. The functions that read a module
return it under its first name. Masks may be given under any of its names.
"""

from __future__ import annotations

import difflib
import numbers
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from gprune import prune
from gprune.adapter.hooks import originals_of, uncalled_children
from gprune.adapter.sharded import (
    check_attaching,
    check_renaming,
    follow_names,
    place_for_forward,
    place_like,
    reshard,
)
from gprune.adapter.state import (
    ModuleAndName,
    all_or_nothing,
    attach_all,
    make_permanent,
    pruning_hooks,
    remove_stale_child_hooks,
    restore_dense,
)
from gprune.masks import keep_all
from gprune.methods import lowest_unstructured
from gprune.methods.method import unwrap_partials
from gprune.select.counts import amount_or_sparsity
from gprune.sharding import check_same_leaves, is_sharded, raise_on_all_ranks
from gprune.trees import MOST_NAMED, Where, describe_first, is_single_leaf, prunable

M = TypeVar("M", bound=nn.Module)


class _Site(NamedTuple):
    """One name of one parameter: its dotted path, the module that has it, and its mask there."""

    path: str
    owner: nn.Module
    name: str
    dense: nn.Parameter
    mask: Tensor | None


def prune_(
    module: M,
    scores: Mapping[str, Tensor | None] | None = None,
    *,
    amount: float | Tensor | None = None,
    sparsity: float | Tensor | None = None,
    min_per_leaf: float | Tensor | None = None,
    where: Where = None,
    method: Callable[..., Tensor] = lowest_unstructured,
) -> M:
    """Prune a whole module by one ranking across all of its prunable parameters, in place.

    The masks are those of `gprune.global_unstructured`, and the module is left in the state that
    the drop-in `global_unstructured` leaves. What earlier calls have pruned stays pruned. A tied
    parameter is ranked once and masked under all of its names. If an error is raised, the module
    has not changed.

    A module may be pruned before `fully_shard` (FSDP2) and after it, with the same masks. After it,
    call this function on all ranks, with the module to which `fully_shard` was applied. If
    parameters are DTensors before `fully_shard`, as after `parallelize_module`, prune before
    `fully_shard`.

    The weight of a child whose forward is not called needs its owner; see `attach_masks_`.

    Args:
        module: the module to prune.
        scores: scores by parameter name, with the keys and shapes of `params_of(module)`; larger =
            more important. Scores of parameters that are not prunable may be `None`. By default
            the parameters are ranked by magnitude, at their current dense values.
        amount: how many more entries to prune (int), or the fraction of those that are not pruned
            yet (float, 0 to 1).
        sparsity: the fraction of all prunable entries that is pruned after the call, 0 to 1.
            Exactly one of `amount` and `sparsity` must be given.
        min_per_leaf: how many entries each prunable parameter keeps at least (int), or the fraction
            of its entries (float, 0 to 1), as in `gprune.global_unstructured`. By default a
            parameter may lose all.
        where: which parameters to prune, as in `gprune.prunable`. The others are not changed and
            not counted.
        method: an unstructured pruning method of gprune, or a `functools.partial` of one:
            `partial(gprune.random_unstructured, seed=0)`.

    Returns:
        The same module.

    Raises:
        TypeError: if both or neither of `amount` and `sparsity` are given, or an argument is of the
            wrong type.
        ValueError: if a number is out of range, nothing is prunable, the scores do not fit,
            `min_per_leaf` does not allow the total, or `attach_masks_` raises a ValueError.

    Example:
        >>> from torch import nn
        >>> import gprune.adapter as prune
        >>> net = nn.Sequential(nn.Linear(10, 4), nn.ReLU(), nn.Linear(4, 1))
        >>> net = prune.prune_(net, sparsity=0.5)
        >>> sum(int((mask == 0).sum()) for mask in net.buffers())
        22
    """
    budget = {"amount": amount, "sparsity": sparsity, "min_per_leaf": min_per_leaf}
    return attach_masks_(module, _select(params_of(module), module, scores, budget, where, method))


@raise_on_all_ranks
def _select(
    params: dict[str, nn.Parameter],
    module: nn.Module,
    scores: Any,
    budget: dict[str, Any],
    where: Where,
    method: Callable[..., Tensor],
) -> dict[str, Tensor | None]:
    """Return the masks of `prune_`, whose other arguments these are.

    Args:
        params: all parameters of the module, whose DTensors tell the ranks that raise an error.
        module: the module.
        scores: scores by parameter name, or `None`.
        budget: `amount`, `sparsity` and `min_per_leaf`.
        where: which parameters to prune.
        method: the pruning method.

    Returns:
        Masks by parameter name.

    Raises:
        TypeError: if `scores` is not a mapping, the method is not an unstructured one, or a number
            is not one for the whole module.
        ValueError: if nothing is prunable.
    """
    if scores is not None and not isinstance(scores, Mapping):
        is_number = isinstance(scores, numbers.Real)
        got = repr(scores) if is_number else type(scores).__name__
        remedy = (
            f"a number by name: amount={got} or sparsity=..."
            if is_number
            else "a dict with the keys of params_of(module)"
        )
        raise TypeError(f"scores must map parameter names to tensors, got {got}; pass {remedy}")
    pruning_method, _ = unwrap_partials(method)
    others = "layerwise(params_of(module), masks=prior_masks(module), ...) and attach_masks_()"
    if pruning_method.PRUNING_TYPE != "unstructured":
        raise TypeError(
            f"prune_() takes methods of PRUNING_TYPE 'unstructured', but {pruning_method.__name__} "
            f"is {pruning_method.PRUNING_TYPE!r}; use {others}"
        )
    number, is_sparsity = amount_or_sparsity(budget["amount"], budget["sparsity"], "prune_")
    keyword = "sparsity" if is_sparsity else "amount"
    if not is_single_leaf(number):
        raise TypeError(
            f"prune_() takes one {keyword} for the whole module, got {number!r}; use {others}"
        )
    weights = prunable(params, where)
    if all(weight is None for weight in weights.values()):
        remedy = "choose some with where=" if where is None else f"where={where!r} chooses none"
        raise ValueError(f"prune_() found no prunable parameter in the module; {remedy}")
    masks: dict[str, Tensor | None] = prune.global_unstructured(
        weights,
        None if scores is None else dict(scores),
        masks=prior_masks(module, where),
        pruning_method=method,
        min_per_leaf=budget["min_per_leaf"],
        **{keyword: number},
    )
    return masks


def attach_masks_(module: M, masks: Mapping[str, Tensor | None]) -> M:
    """Prune a module by given masks, in place, with the same effect as `global_unstructured`.

    If a parameter is pruned already, both masks apply: nothing pruned comes back. A tied parameter
    may be given under any of its names, and is masked under all of them.

    A masked weight is recomputed when its module is called. `nn.MultiheadAttention` does not call
    its `out_proj`, so this weight is recomputed before each forward of the attention. If another
    module of yours uses the weight of a child without calling the child, name it by a dotted pair:
    `global_unstructured([(owner, "child.weight")], Identity)`.

    Args:
        module: the module to change.
        masks: masks (bool, `True` = keep, the parameter's shape) by the names that
            `named_parameters()` of the plain module gives: `fc.weight`, never `fc.weight_orig`.
            Parameters that are absent or have the mask `None` are left alone. If the parameters
            are DTensors, a mask is a DTensor too, or a plain tensor that is the same on all ranks.

    Returns:
        The same module.

    Raises:
        TypeError: if `masks` is not a mapping, or a mask is not a bool tensor.
        ValueError: if a name is unknown, a shape does not fit, `weight_norm` or `spectral_norm`
            would divide by a norm of 0, or `fully_shard` was applied to a module that contains this
            one, or to parameters that were DTensors already. The module has not changed then.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> import gprune.adapter as prune
        >>> net = prune.attach_masks_(nn.Linear(2, 1), {"weight": torch.tensor([[True, False]])})
        >>> net.weight_mask
        tensor([[1., 0.]])
    """
    attach_all(
        _masks_to_attach(params_of(module), module, masks), uncalled_children(module.modules())
    )
    follow_names(module)
    return module


@raise_on_all_ranks
def _masks_to_attach(
    params: dict[str, nn.Parameter], module: nn.Module, masks: Any
) -> dict[ModuleAndName, Tensor]:
    """Check the masks of `attach_masks_`, and place them as their parameters are in the forward.

    Args:
        params: all parameters of the module, whose DTensors tell the ranks that raise an error.
        module: the module.
        masks: masks by parameter name.

    Returns:
        The masks by module and name, under all names of a tied parameter.

    Raises:
        TypeError: if `masks` is not a mapping, or a mask is not a bool tensor.
        ValueError: if a mask does not fit, or `fully_shard` does not allow it.
    """
    if not isinstance(masks, Mapping):
        raise TypeError(f"masks must map parameter names to tensors, got {type(masks).__name__}")
    sites = list(_sites(module))
    by_path = {site.path: site for site in sites}
    errors = list(_mask_errors(masks, {path: site.dense for path, site in by_path.items()}, module))
    if errors:
        raise type(errors[0])(describe_first(errors, str, "\n"))
    check_attaching(module, [site for site in sites if masks.get(site.path) is not None])
    given = {path: mask.detach() for path, mask in masks.items() if mask is not None}
    # the masks that are DTensors are gathered below, on all ranks in the same order
    gathered = [path for path, mask in given.items() if is_sharded([mask])]
    check_same_leaves("attach_masks_", list(params.values()), lambda: list(given), gathered)
    keep: dict[int, Tensor] = {}
    for path, mask in given.items():
        _intersect(keep, by_path[path].dense, place_for_forward(mask, by_path[path]))
    return {
        (site.owner, site.name): keep[id(site.dense)] for site in sites if id(site.dense) in keep
    }


def detach_masks_(module: M) -> M:
    """Remove all masks of a module, also torch's, and restore the dense weights, in place.

    The original `Parameter`, with all of its values, gets its own name back. Masks and pruning
    hooks are removed. The parameter becomes the last one of its module, as with torch's `remove`.

    Args:
        module: the module to change.

    Returns:
        The same module.

    Raises:
        ValueError: if `fully_shard` was applied to a module that contains this one.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> import gprune.adapter as prune
        >>> net = prune.attach_masks_(nn.Linear(2, 1), {"weight": torch.tensor([[True, False]])})
        >>> sorted(prune.detach_masks_(net).state_dict())
        ['bias', 'weight']
    """
    check_renaming(module, [site for site in _sites(module) if site.mask is not None])
    with all_or_nothing(module.modules()):
        for owner in module.modules():
            for name in pruning_hooks(owner):
                restore_dense(owner, name)
        for owner in module.modules():
            remove_stale_child_hooks(owner)
        follow_names(module)
    return module


def make_permanent_(module: M) -> M:
    """Write the zeros of all masks of a module into its weights, and remove the masks, in place.

    It does to every pruned tensor what `torch.nn.utils.prune.remove` does to one.

    Call it before the module is quantized or fused, and before it is saved for code that does not
    know the masks, such as `from_pretrained` of transformers. Afterwards the zeros are candidates
    again. To prune further, pass a `sparsity`, which counts the zeros, and no `amount`.

    Pruned entries become exactly zero, also where the weight is NaN or infinite.

    Args:
        module: the module to change. If it is under DDP and masks are its only buffers, wrap it
            again: DDP cannot broadcast the buffers of a module that has none left.

    Returns:
        The same module.

    Raises:
        ValueError: if `fully_shard` was applied to a module that contains this one.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> import gprune.adapter as prune
        >>> net = prune.attach_masks_(nn.Linear(2, 1), {"weight": torch.tensor([[True, False]])})
        >>> prune.make_permanent_(net).weight[0, 1].item() == 0
        True
    """
    pruned = [site for site in _sites(module) if site.mask is not None]
    check_renaming(module, pruned)
    shards = [
        (site.dense, place_like(site.mask, site.dense))
        for site in pruned
        if site.mask is not None and is_sharded([site.dense])
    ]
    with all_or_nothing(module.modules()):
        for owner in module.modules():
            for name in pruning_hooks(owner):
                # torch's `remove` assigns to `.data`, which does not change a DTensor
                is_shard = is_sharded([owner.get_parameter(f"{name}_orig")])
                (restore_dense if is_shard else make_permanent)(owner, name)
        for owner in module.modules():
            remove_stale_child_hooks(owner)
        follow_names(module)
    with torch.no_grad():
        for shard, mask in shards:
            shard.masked_fill_(mask == 0, 0)
    return module


def prior_masks(module: nn.Module, where: Where = None) -> dict[str, Tensor | None]:
    """Return the prior masks of a module, for `masks=` of `global_unstructured`.

    Pass them to `gprune.global_unstructured` or `gprune.layerwise`, together with
    `params_of(module)` or `gprune.prunable(params_of(module), where)`.

    Args:
        module: the module to read, pruned or not.
        where: which parameters are prunable, as in `gprune.prunable`.

    Returns:
        For each entry of `params_of(module)`: `None` if it is not prunable, its mask if it is
        pruned, and otherwise a mask that keeps everything.

    Raises:
        TypeError: if `where` is no predicate, glob or list of globs.

    Example:
        >>> from torch import nn
        >>> import gprune.adapter as prune
        >>> prune.prior_masks(nn.Linear(2, 1))
        {'weight': tensor([[True, True]]), 'bias': None}
    """
    unpruned, pruned = keep_all(prunable(params_of(module), where)), masks_of(module)
    return {
        name: mask if mask is None or pruned[name] is None else pruned[name]
        for name, mask in unpruned.items()
    }


def masks_of(module: nn.Module) -> dict[str, Tensor | None]:
    """Return the masks of a module, also those that torch has attached.

    Args:
        module: the module to read.

    Returns:
        A mask (bool, `True` = keep) for each entry of `params_of(module)`, `None` if it is not
        pruned. If a tied parameter is pruned under several names, all of these masks apply.

    Raises:
        TypeError: if `module` is not a module.
        ValueError: if the module is wrapped in `FullyShardedDataParallel` (FSDP1).

    Example:
        >>> import torch
        >>> from torch import nn
        >>> import gprune.adapter as prune
        >>> net = prune.attach_masks_(nn.Linear(2, 1), {"weight": torch.tensor([[True, False]])})
        >>> prune.masks_of(net)
        {'bias': None, 'weight': tensor([[ True, False]])}
    """
    masks: dict[int, Tensor] = {}
    for site in _sites(module):
        if site.mask is not None:
            _intersect(masks, site.dense, place_like(site.mask.detach() != 0, site.dense))
    return {path: masks.get(id(dense)) for path, dense in params_of(module).items()}


def params_of(module: nn.Module) -> dict[str, nn.Parameter]:
    """Return the dense parameters of a module under the names that the plain module gives them.

    Args:
        module: the module to read, pruned or not.

    Returns:
        The `Parameter`s themselves, with `fc.weight_orig` under the name `fc.weight`. A tied one is
        listed once, under its first name. Use them with `masks_of(module)` in `gprune.apply_masks`,
        and the result in `torch.func.functional_call` on a plain module.

    Raises:
        TypeError: if `module` is not a module.
        ValueError: if the module is wrapped in `FullyShardedDataParallel` (FSDP1).

    Example:
        >>> import torch
        >>> from torch import nn
        >>> import gprune.adapter as prune
        >>> net = prune.attach_masks_(nn.Linear(2, 1), {"weight": torch.tensor([[True, False]])})
        >>> sorted(prune.params_of(net))
        ['bias', 'weight']
    """
    first: dict[int, _Site] = {}
    for site in _sites(module):
        first.setdefault(id(site.dense), site)
    return {site.path: site.dense for site in first.values()}


def _sites(module: nn.Module) -> Iterator[_Site]:
    if not isinstance(module, nn.Module):
        raise TypeError(f"module must be a torch.nn.Module, got {type(module).__name__}")
    reshard(module)
    for prefix, owner in _owners(module, "", ()):
        original = {f"{name}_orig": name for name in pruning_hooks(owner)}
        for key, dense in owner.named_parameters(recurse=False, remove_duplicate=False):
            name = original.get(key, key)
            mask = getattr(owner, f"{name}_mask") if key in original else None
            yield _Site(f"{prefix}.{name}".lstrip("."), owner, name, dense, mask)


def _owners(
    module: nn.Module, prefix: str, above: tuple[nn.Module, ...]
) -> Iterator[tuple[str, nn.Module]]:
    # `named_modules` gives a module that has two names only once; with remove_duplicate=False it
    # never ends if a module contains itself
    yield prefix, module
    if "_fsdp_wrapped_module" in module._modules:
        raise ValueError(
            "the module is wrapped in FullyShardedDataParallel (FSDP1), which has flat shards in "
            "place of its parameters; make this call before the module is wrapped, or use "
            "fully_shard (FSDP2)"
        )
    for name, child in module._modules.items():
        if child is not None and all(child is not other for other in (*above, module)):
            yield from _owners(child, f"{prefix}.{name}".lstrip("."), (*above, module))


def _intersect(masks: dict[int, Tensor], dense: Tensor, mask: Tensor) -> None:
    known = masks.get(id(dense))
    masks[id(dense)] = mask if known is None else known & mask


def _mask_errors(
    masks: Mapping[str, Any], by_path: Mapping[str, nn.Parameter], module: nn.Module
) -> Iterator[Exception]:
    num_unknown = 0
    for path, mask in masks.items():
        if path not in by_path:
            num_unknown += 1  # hints for names that the error does not show would take long
            near = num_unknown <= MOST_NAMED and difflib.get_close_matches(str(path), by_path, n=1)
            names = describe_first(list(by_path), repr, ", ")
            hint = f"did you mean {near[0]!r}?" if near else f"it has {names}"
            if originals := num_unknown <= MOST_NAMED and _original_paths(module, str(path)):
                hint = f"it is computed from {originals}; mask that instead"
            yield ValueError(f"masks[{path!r}]: the module has no such parameter; {hint}")
        elif mask is None:
            continue
        elif not isinstance(mask, Tensor) or mask.dtype != torch.bool:
            got = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
            yield TypeError(f"masks[{path!r}] must be a bool tensor, got {got}")
        elif mask.shape != by_path[path].shape:
            shape, wanted = tuple(mask.shape), tuple(by_path[path].shape)
            yield ValueError(f"masks[{path!r}] has shape {shape}, its parameter has {wanted}")


def _original_paths(module: nn.Module, path: str) -> str:
    """Name the parameters from which a parametrized tensor is computed; empty if it is none."""
    prefix, _, name = path.rpartition(".")
    try:
        originals = originals_of(module.get_submodule(prefix), name)
    except AttributeError:  # there is no such submodule
        return ""
    return " and ".join(repr(f"{prefix}.{tensor}".lstrip(".")) for tensor in originals)
