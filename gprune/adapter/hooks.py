"""The hooks that the adapter leaves in modules.

`MaskHook` is torch's `CustomFromMask` with two differences: a module that has it can be copied, and
the mask that it was given is not kept beside the module's buffer.

A pruning hook recomputes the masked weight when its module is called. Some modules use the weight
of a child without calling the child: `nn.MultiheadAttention` uses `out_proj.weight`. For those,
`RecomputeChild` runs the hooks of the child before each forward of its owner.
"""

import copy
import weakref
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize
from torch.nn.utils.prune import BasePruningMethod, CustomFromMask, PruningContainer
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm


class MaskHook(CustomFromMask):
    """torch's `CustomFromMask`, in a module that `copy.deepcopy` can copy.

    The masked weight is an attribute of the module and has an autograd history. `copy.deepcopy`
    refuses to copy such a tensor. But it copies the attributes of a module in the order in which
    they were set, so it comes to the hooks before the masked weights. So when this hook is copied,
    it computes the masked weight of the copy and enters it in `memo`, where `copy.deepcopy` finds
    it.

    The hook has a weak reference to its module. A strong one would keep the module alive until the
    garbage collector runs.
    """

    mask: Tensor | None
    _module: weakref.ref[nn.Module] | None = None

    def compute_mask(self, t: Tensor, default_mask: Tensor) -> Tensor:
        """Return the product of `default_mask` and the mask of this hook, which is released."""
        mask: Tensor = super().compute_mask(t, default_mask)  # type: ignore[no-untyped-call]  # torch's
        self.mask = None  # the module's buffer has the product
        return mask

    def __deepcopy__(self, memo: dict[int, Any]) -> "MaskHook":
        copied = copy.copy(self)
        module = self._owner()
        if module is not None:
            self._copy_masked_weight(module, memo)
            copied.set_owner(memo.get(id(module)))  # a copy that is not complete yet
        return copied

    def _copy_masked_weight(self, module: nn.Module, memo: dict[int, Any]) -> None:
        name = self._tensor_name
        weight = vars(module).get(name)
        if isinstance(weight, Tensor) and id(weight) not in memo:
            dense = copy.deepcopy(getattr(module, f"{name}_orig"), memo)
            mask = copy.deepcopy(getattr(module, f"{name}_mask"), memo)
            with torch.set_grad_enabled(weight.requires_grad):
                memo[id(weight)] = mask.to(dense.dtype) * dense

    def set_owner(self, module: nn.Module | None) -> None:
        """Set the module that has this hook."""
        self._module = None if module is None else weakref.ref(module)

    def _owner(self) -> nn.Module | None:
        return None if self._module is None else self._module()

    def __getstate__(self) -> dict[str, Any]:
        # A weak reference cannot be pickled. Its module is usually in the same pickle.
        return {**vars(self), "_module": self._owner()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self.set_owner(state["_module"])


def attach_mask(module: nn.Module, name: str, mask: Tensor) -> None:
    """Prune a tensor of a module by a mask, with a `MaskHook`.

    The hook runs before those of the old `weight_norm` and `spectral_norm`, because they read the
    tensor that it recomputes.

    Args:
        module: the module to change.
        name: the tensor, pruned before or not.
        mask: the mask. It is multiplied into the mask of an earlier pruning.

    Raises:
        ValueError: if `weight_norm` or `spectral_norm` would divide the masked tensor by a norm of
            0. The mask is attached by then: the caller must restore the module.
    """
    method = MaskHook.apply(module, name, mask)  # type: ignore[no-untyped-call]  # torch's prune has no types
    hook = method[-1] if isinstance(method, PruningContainer) else method
    hook.set_owner(module)
    hooks = module._forward_pre_hooks
    if any(isinstance(other, WeightNorm | SpectralNorm) for other in hooks.values()):
        later = {key: other for key, other in hooks.items() if other is not method}
        for key in later:
            del hooks[key]
        hooks.update(later)
    dim = _dim_of_norms(module, name)
    if (
        dim is not None
        and (torch.norm_except_dim(getattr(module, f"{name}_mask"), 2, dim) == 0).any()
    ):
        raise ValueError(
            f"the mask of {name!r} in a {type(module).__name__} prunes all entries of a norm, and "
            "the weight that is divided by the norm would be NaN; prune less of this tensor, or "
            "remove the parametrization and prune the weight itself"
        )


def _dim_of_norms(module: nn.Module, name: str) -> int | None:
    """Return the `dim` of `torch.norm_except_dim` for the norms by which a tensor is divided.

    It is -1 for a single norm of the whole tensor, and `None` if the tensor is not divided.
    """
    for hook in module._forward_pre_hooks.values():
        if isinstance(hook, WeightNorm) and name == f"{hook.name}_v":
            return hook.dim
        if isinstance(hook, SpectralNorm) and name == f"{hook.name}_orig":
            return -1
    if isinstance(module, parametrize.ParametrizationList):
        first = module[0]
        if isinstance(first, parametrizations._WeightNorm) and name == "original1":
            return first.dim
        if isinstance(first, parametrizations._SpectralNorm):
            return -1
    return None


@dataclass(frozen=True)
class RecomputeChild:
    """A forward pre-hook that recomputes the pruned tensors of a child before its owner runs.

    Attributes:
        child: the dotted path of the child in its owner.
    """

    child: str

    def __call__(self, owner: nn.Module, inputs: Any) -> None:
        """Run the pruning hooks of the child; do nothing if it is not pruned any more."""
        child = owner.get_submodule(self.child)
        for hook in child._forward_pre_hooks.values():
            if isinstance(hook, BasePruningMethod):
                hook(child, ())


def uncalled_children(modules: Iterable[nn.Module]) -> Iterator[tuple[nn.Module, str]]:
    """Yield (owner, path of a child) for each child whose weights its owner uses without a call."""
    for module in modules:
        if isinstance(module, nn.MultiheadAttention):
            yield module, "out_proj"
        if _has_forward(module):
            yield from ((module, path) for path in _without_forward(module, ""))


def _has_forward(module: nn.Module) -> bool:
    """Return whether a module can be called. A `ParameterList` cannot, for example."""
    return type(module).forward is not nn.Module.forward or "forward" in vars(module)


def _without_forward(module: nn.Module, prefix: str) -> Iterator[str]:
    """Yield the paths of the children that cannot be called, also of nested ones."""
    for name, child in module._modules.items():
        if child is not None and not _has_forward(child):
            if child._parameters:
                yield f"{prefix}{name}"
            yield from _without_forward(child, f"{prefix}{name}.")


def originals_of(module: nn.Module, name: str) -> list[str]:
    """Return the dotted names of the tensors to prune instead of one that is computed from them.

    Args:
        module: the module that has the tensor.
        name: its name.

    Returns:
        For `weight_norm` the direction, for `spectral_norm` the weight before it is divided, and
        for other parametrizations all of their originals. Empty if the tensor is not parametrized.
    """
    for hook in module._forward_pre_hooks.values():
        if isinstance(hook, WeightNorm | SpectralNorm) and hook.name == name:
            return [f"{name}_v" if isinstance(hook, WeightNorm) else f"{name}_orig"]
    if not parametrize.is_parametrized(module, name):
        return []
    originals = module.get_submodule(f"parametrizations.{name}")
    assert isinstance(originals, parametrize.ParametrizationList)
    if originals.is_tensor:
        return [f"parametrizations.{name}.original"]
    indices = range(originals.ntensors)
    if isinstance(originals[0], parametrizations._WeightNorm):
        indices = range(1, 2)  # the first is the length
    return [f"parametrizations.{name}.original{index}" for index in indices]
