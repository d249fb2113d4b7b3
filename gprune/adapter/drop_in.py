"""The drop-ins for `global_unstructured` and `remove` of `torch.nn.utils.prune`.

1. Collect: the pairs become a list of parameters, each with all pairs that name it.
2. Select: gprune selects for `L1Unstructured`; any other method runs its own `compute_mask`.
3. Write: after all masks have been computed, they are written into the modules.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector
from torch.nn.utils.parametrize import ParametrizationList
from torch.nn.utils.prune import BasePruningMethod, L1Unstructured, PruningContainer

from gprune import methods, prune
from gprune.adapter.hooks import originals_of, uncalled_children
from gprune.adapter.sharded import is_managed
from gprune.adapter.state import (
    ModuleAndName,
    attach_all,
    make_permanent,
    pruning_hooks,
    remove_stale_child_hooks,
)

M = TypeVar("M", bound=nn.Module)

# The dtypes that gprune ranks exactly. int64 is left to torch, which also ranks it beyond 2^53.
_EXACT_DTYPES = frozenset(
    {torch.float16, torch.bfloat16, torch.float32, torch.float64}
    | {torch.uint8, torch.int8, torch.int16, torch.int32}
)


def global_unstructured(
    parameters: Iterable[ModuleAndName],
    pruning_method: Any,
    importance_scores: dict[ModuleAndName, Tensor] | None = None,
    **kwargs: Any,
) -> None:
    """Prune tensors of modules by one ranking across all of them, in place; it returns nothing.

    It has the signature, errors and effects of `torch.nn.utils.prune.global_unstructured`. In
    addition it takes any iterable of pairs and any memory layout. A `Parameter` that is given
    twice, by one name or by two, is ranked once and masked under every given name. Scores of the
    wrong shape are refused. If an error is raised, no module has changed.

    A name may be dotted: `(attention, "out_proj.weight")` prunes `weight` of `attention.out_proj`.
    That weight is then also recomputed before each forward of `attention`. This is needed if
    `attention` uses the weight without calling the child. `nn.MultiheadAttention` does so with
    `out_proj`. If its `out_proj` is pruned, and the attention is in no pair, there is a warning.

    A tensor that `weight_norm`, `spectral_norm` or another parametrization computes cannot be
    pruned itself. The error names the parameter to prune instead: `weight_v`, `weight_orig`, or
    `parametrizations.weight.original1`. Its zeros are zeros of the weight if the parametrization
    keeps zeros, as `weight_norm` and `spectral_norm` do.

    Args:
        parameters: pairs `(module, name)`, each naming a parameter, pruned before or not.
        pruning_method: `L1Unstructured`, which prunes exactly `amount` entries, among equal scores
            those with the lowest index; or any other `BasePruningMethod` whose `PRUNING_TYPE` is
            `"unstructured"`. Its own `compute_mask` is called with the arguments that torch passes.
        importance_scores: scores by pair, each in its parameter's shape. A pair without scores
            is ranked by the attribute `name` of the module. For a pruned tensor that is the masked
            weight of the last forward pass. Scores of other pairs are not used.
        **kwargs: the arguments of `pruning_method`, such as `amount`. An int is that many more
            entries; a float in [0, 1] is the fraction of the entries that all masks so far keep.

    Raises:
        TypeError: if `parameters` is not iterable, `importance_scores` is not a dict of tensors,
            the method is not an unstructured `BasePruningMethod`, `amount` is not a number, or a
            pair names a buffer or a parametrized tensor.
        ValueError: if there is nothing to prune, the amount is out of range, none of the scores
            belongs to a pair, scores do not have the shape of their parameter, scores differ
            between the names of one parameter, a norm by which a parametrized weight is divided
            would be 0, or a module is under `fully_shard`: see `prune_`.
        AttributeError: if a pair names no tensor, or the method lacks a `PRUNING_TYPE`.

    Example:
        >>> from torch import nn
        >>> import gprune.adapter as prune
        >>> net = nn.Sequential(nn.Linear(10, 4), nn.Linear(4, 1))
        >>> pairs = [(net[0], "weight"), (net[1], "weight")]
        >>> prune.global_unstructured(pairs, pruning_method=prune.L1Unstructured, amount=10)
        >>> sum(int((mask == 0).sum()) for mask in net.buffers())
        10
    """
    if not isinstance(parameters, Iterable):
        got = type(parameters).__name__
        raise TypeError(f"parameters must be an iterable of (module, name) pairs, got {got}")
    if importance_scores is not None and not isinstance(importance_scores, dict):
        got = type(importance_scores).__name__
        raise TypeError(f"importance_scores must be a dict from pairs to tensors, got {got}")
    if hasattr(pruning_method, "PRUNING_TYPE") and not isinstance(pruning_method, type):
        raise TypeError(
            f"pruning_method must be a class, such as L1Unstructured, got {pruning_method!r}; "
            "pass its arguments by name (amount=...), or use prune_ for the methods of gprune"
        )
    weights, uncalled = _collect(parameters, importance_scores or {})
    method = pruning_method(**kwargs)
    _check_method(method)
    if type(method) is L1Unstructured and all(w.scores.dtype in _EXACT_DTYPES for w in weights):
        masks = _select_by_gprune(weights, method.amount)
    else:
        masks = _select_by_torch(weights, method)
    factors = {
        pair: weight.factor(pair, mask)
        for weight, mask in zip(weights, masks, strict=True)
        for pair in weight.priors
    }
    attach_all(factors, uncalled)


def remove(module: M, name: str) -> M:
    """Write the zeros of one mask into its weight, and remove the mask.

    It does what `torch.nn.utils.prune.remove` does, and also takes the dotted names of
    `global_unstructured`.

    Args:
        module: the module to change.
        name: the name of the tensor, as in the pair `(module, name)` by which it was pruned.

    Returns:
        The same module.

    Raises:
        ValueError: if the tensor is not pruned, or the module is under `fully_shard`.

    Example:
        >>> from torch import nn
        >>> import gprune.adapter as prune
        >>> attention = nn.MultiheadAttention(4, 2)
        >>> pairs = [(attention, "out_proj.weight")]
        >>> prune.global_unstructured(pairs, prune.L1Unstructured, amount=8)
        >>> int((prune.remove(attention, "out_proj.weight").out_proj.weight == 0).sum())
        8
    """
    owner, last = _resolve(module, name)
    if is_managed(owner):
        raise ValueError(
            "the module is under fully_shard; call make_permanent_ with the module to which "
            "fully_shard was applied"
        )
    make_permanent(owner, last)
    remove_stale_child_hooks(module)
    return module


@dataclass(eq=False)
class _Weight:
    """A dense parameter, its scores, and the prior mask of every pair that names it."""

    dense: Tensor
    scores: Tensor
    has_scores: bool = False
    priors: dict[ModuleAndName, Tensor | None] = field(default_factory=dict)

    @cached_property
    def candidates(self) -> Tensor | None:
        """Return where all prior masks are 1, or `None` if there is no prior mask."""
        kept = [prior == 1 for prior in self.priors.values() if prior is not None]
        return torch.stack(kept).all(0) if kept else None

    def factor(self, pair: ModuleAndName, mask: Tensor) -> Tensor:
        """Return the mask to give to `custom_from_mask` for a pair.

        If the pair was pruned before, `custom_from_mask` multiplies the factor into its mask.
        Otherwise the factor becomes the mask. So the factor is:

        - the new mask, for a candidate,
        - 0, for an entry that is pruned under any name of the parameter,
        - 1 or the prior mask, for any other entry: 1 if the factor is multiplied into a mask or
          there is no prior mask, and the prior mask otherwise.

        Args:
            pair: one of the pairs that name the parameter.
            mask: the new mask of the candidates.

        Returns:
            The factor, in the parameter's shape.
        """
        mask = mask.to(self.dense.device)
        if self.candidates is None:
            return mask
        module, name = pair
        mask, prior = mask.to(self.dense.dtype), self.priors[pair]
        multiplied = name in pruning_hooks(module)
        rest = torch.ones_like(mask) if multiplied or prior is None else prior
        for other in self.priors.values():
            rest = rest if other is None else rest.masked_fill(other == 0, 0)
        return torch.where(self.candidates, mask, rest)


def _collect(
    pairs: Iterable[ModuleAndName], scores: dict[ModuleAndName, Tensor]
) -> tuple[list[_Weight], list[tuple[nn.Module, str]]]:
    """Return the parameters, and the (owner, child) where the owner uses weights without a call."""
    weights: dict[int, _Weight] = {}
    uncalled: list[tuple[nn.Module, str]] = []
    for index, pair in enumerate(pairs):
        given = owner, path = _checked_pair(pair, index)
        label = f"parameters[{index}] ({type(owner).__name__}, {path!r})"
        module, name = _resolve(owner, path)
        dense, value = _dense_and_current(module, name, label)
        if module is not owner and not isinstance(module, ParametrizationList):
            uncalled.append((owner, path.rpartition(".")[0]))
        uncalled += uncalled_children([owner])
        weight = weights.setdefault(id(dense), _Weight(dense, value))
        weight.priors[module, name] = _checked_prior(module, name, dense, label)
        for key in (given, (module, name)):
            if key in scores:
                _check_scores(scores[key], weight, label)
                weight.scores, weight.has_scores = scores[key], True
    if not weights:
        raise ValueError("parameters must hold at least one (module, name) pair, got none")
    if scores and not any(weight.has_scores for weight in weights.values()):
        raise ValueError(
            f"importance_scores has {len(scores)} keys, and none is a pair of parameters; the keys "
            f"must be the same pairs (module, name), got {_shown(next(iter(scores)))}"
        )
    return list(weights.values()), uncalled


def _dense_and_current(module: nn.Module, name: str, label: str) -> tuple[Tensor, Tensor]:
    """Return the dense parameter of a pair, and the tensor that the module has under the name."""
    value = getattr(module, name, None)
    if not isinstance(value, Tensor):
        raise AttributeError(
            f"{label}: there is no such tensor to prune, got {value!r}; leave the pair out, or "
            "correct its name"
        )
    if is_managed(module):
        raise ValueError(
            f"{label}: the module is under fully_shard; prune before fully_shard, or call "
            "prune_ with the module to which fully_shard was applied"
        )
    is_pruned = name in pruning_hooks(module)
    if not is_pruned and (originals := originals_of(module, name)):
        raise TypeError(
            f"{label}: the tensor is computed from {' and '.join(map(repr, originals))}, so it "
            f"is no Parameter to prune; give the pair (module, {originals[0]!r}) instead"
        )
    dense = getattr(module, f"{name}_orig") if is_pruned else value
    if value.device != dense.device:  # the masked weight does not move before a forward
        value = getattr(module, f"{name}_mask") * dense
    return dense, value


def _checked_pair(pair: Any, index: int) -> ModuleAndName:
    """Return the pair, or raise an error of the class that torch raises."""
    kind: type[Exception] = TypeError
    try:
        module, name = pair
        if isinstance(module, nn.Module) and isinstance(name, str):
            return module, name
        if isinstance(name, str):
            kind = AttributeError
    except (TypeError, ValueError) as error:  # it cannot be unpacked
        kind = type(error)
    raise kind(
        f"parameters[{index}] must be a pair (module, attribute name), the name a string, got "
        f"{_shown(pair)}"
        '; make pairs such as [(m, "weight") for m in model.modules() if isinstance(m, nn.Linear)],'
        " or prune the whole model with prune_(model, amount=...)"
    )


def _shown(pair: Any) -> str:
    """Return what was given as a pair as text, without the long text of a module or a tensor."""
    parts = pair if isinstance(pair, tuple | list) else [pair]
    shown = [repr(part) if isinstance(part, str) else type(part).__name__ for part in parts]
    return shown[0] if parts is not pair else f"({', '.join(shown)})"


def _resolve(owner: nn.Module, path: str) -> ModuleAndName:
    """Return the module that has a tensor with a dotted name, and the last part of the name."""
    prefix, _, name = path.rpartition(".")
    try:
        return (owner.get_submodule(prefix), name) if prefix else (owner, path)
    except AttributeError:  # there is no such submodule, or it is not a module
        return owner, path


def _checked_prior(module: nn.Module, name: str, dense: Tensor, label: str) -> Tensor | None:
    prior = getattr(module, f"{name}_mask", None)
    if prior is None or (isinstance(prior, Tensor) and prior.shape == dense.shape):
        return prior
    got = tuple(prior.shape) if isinstance(prior, Tensor) else repr(prior)
    raise ValueError(f"{label}: {name}_mask must be of shape {tuple(dense.shape)}, got {got}")


def _check_scores(scores: Tensor, weight: _Weight, label: str) -> None:
    if not isinstance(scores, Tensor):
        got = type(scores).__name__
        raise TypeError(f"importance_scores of {label} must be a tensor, got {got}")
    if scores.shape != weight.dense.shape:
        raise ValueError(
            f"importance_scores of {label} have shape {tuple(scores.shape)}, "
            f"its parameter has {tuple(weight.dense.shape)}"
        )
    if weight.has_scores and not _are_equal(scores, weight.scores):
        raise ValueError(
            f"importance_scores of {label} differ from those of another name of the same "
            "Parameter, which is ranked once; give one tensor for all of its names"
        )


def _are_equal(a: Tensor, b: Tensor) -> bool:
    return a is b or (a.device == b.device and torch.equal(a, b))


def _check_method(method: Any) -> None:
    kind = type(method).__name__
    if not hasattr(method, "PRUNING_TYPE"):
        raise AttributeError(
            f"pruning_method made a {kind}, which has no attribute PRUNING_TYPE; a subclass of "
            "BasePruningMethod must set it to 'unstructured'"
        )
    if method.PRUNING_TYPE != "unstructured":
        raise TypeError(
            'only methods of PRUNING_TYPE "unstructured" can prune globally, '
            f"got {kind} of type {method.PRUNING_TYPE!r}"
        )
    if not isinstance(method, BasePruningMethod):
        raise TypeError(f"pruning_method must make a BasePruningMethod, got {kind}")


def _select_by_gprune(weights: Sequence[_Weight], amount: Any) -> tuple[Tensor, ...]:
    scores = tuple(weight.scores.detach() for weight in weights)
    priors = None
    if any(weight.candidates is not None for weight in weights):
        priors = tuple(
            torch.ones_like(score, dtype=torch.bool)
            if weight.candidates is None
            else weight.candidates.to(score.device)
            for weight, score in zip(weights, scores, strict=True)
        )
    available = sum(int(keep.sum()) for keep in priors) if priors else sum(map(torch.numel, scores))
    masks: tuple[Tensor, ...] = prune.global_unstructured(
        scores,
        masks=priors,
        pruning_method=methods.l1_unstructured,
        amount=_checked_amount(amount, available),
    )
    return masks


def _checked_amount(amount: Any, available: int) -> int | float:
    """Return the amount as an int or a float, with errors that name torch's range."""
    # L1Unstructured itself has checked the range of a float, but lets NaN and bools pass
    if isinstance(amount, bool):
        raise TypeError(f"amount must be an int or a float, got {amount}")
    if not isinstance(amount, numbers.Integral):
        if math.isnan(amount):
            raise ValueError("amount must be an int or a float in [0, 1], got NaN")
        return float(amount)
    number = int(amount)
    if number > available:
        raise ValueError(
            f"amount={number} is more than the {available} entries that are not pruned yet; "
            "a float in [0, 1] is a fraction of them"
        )
    return number


def _select_by_torch(weights: Sequence[_Weight], method: BasePruningMethod) -> tuple[Tensor, ...]:
    container = PruningContainer()
    # A container accepts only methods whose tensor has its own name. This vector has no name, so
    # both are called "temp", as in torch's own global_unstructured.
    container._tensor_name = method._tensor_name = "temp"
    container.add_pruning_method(method)
    scores = parameters_to_vector(weight.scores.reshape(-1) for weight in weights)
    priors = parameters_to_vector(_joint_prior(weight).reshape(-1) for weight in weights)
    mask: Tensor = container.compute_mask(scores, priors)  # type: ignore[no-untyped-call]  # torch's
    parts = torch.split(mask, [weight.dense.numel() for weight in weights])
    return tuple(
        part.reshape(weight.dense.shape) for part, weight in zip(parts, weights, strict=True)
    )


def _joint_prior(weight: _Weight) -> Tensor:
    priors = list(weight.priors.values())
    if weight.candidates is None:
        return torch.ones_like(weight.dense)
    if len(priors) == 1 and priors[0] is not None:
        return priors[0]
    return weight.candidates.to(weight.dense.dtype)
