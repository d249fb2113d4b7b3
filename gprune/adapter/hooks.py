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
    refuses to copy such a tensor. It copies the hooks of a module before the masked weights,
    because it goes through the attributes in the order in which they were set. So the copy of this
    hook computes the masked weight of the copied module, and enters it in `memo`, where
    `copy.deepcopy` finds it.

    To find its module, the hook has a weak reference to it. A strong one would keep the module
    alive until the garbage collector runs.
    """

    mask: Tensor | None
    _module: weakref.ref[nn.Module] | None = None

    def compute_mask(self, t: Tensor, default_mask: Tensor) -> Tensor:
        """Return the product of the masks so far and this one, and release this one."""
        mask: Tensor = super().compute_mask(t, default_mask)  # type: ignore[no-untyped-call]
        self.mask = None  # the module's buffer has the product
        return mask

    def __deepcopy__(self, memo: dict[int, Any]) -> "MaskHook":
        twin = copy.copy(self)
        module = self._owner()
        if module is not None:
            self._copy_masked_weight(module, memo)
            twin.remember(memo.get(id(module)))  # a copy that is not complete yet
        return twin

    def _copy_masked_weight(self, module: nn.Module, memo: dict[int, Any]) -> None:
        name = self._tensor_name
        weight = vars(module).get(name)
        if isinstance(weight, Tensor) and id(weight) not in memo:
            dense = copy.deepcopy(getattr(module, f"{name}_orig"), memo)
            mask = copy.deepcopy(getattr(module, f"{name}_mask"), memo)
            with torch.set_grad_enabled(weight.requires_grad):
                memo[id(weight)] = mask.to(dense.dtype) * dense

    def remember(self, module: nn.Module | None) -> None:
        """Set the module that has this hook."""
        self._module = None if module is None else weakref.ref(module)

    def _owner(self) -> nn.Module | None:
        return None if self._module is None else self._module()

    def __getstate__(self) -> dict[str, Any]:
        # A weak reference cannot be pickled. What is pickled here is mostly the module itself.
        return {**vars(self), "_module": self._owner()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self.remember(state["_module"])


def attach_mask(module: nn.Module, name: str, mask: Tensor) -> None:
    """Prune a tensor of a module by a mask, with a `MaskHook`.

    The hook runs before those of the old `weight_norm` and `spectral_norm`, because they read the
    tensor that it recomputes.

    Args:
        module: the module to change.
        name: the tensor, pruned before or not.
        mask: the mask, which is multiplied into that of an earlier pruning.

    Raises:
        ValueError: if `weight_norm` or `spectral_norm` would divide the masked tensor by a norm
            of 0. The module has changed then.
    """
    method = MaskHook.apply(module, name, mask)  # type: ignore[no-untyped-call]  # torch's prune has no types
    hook = method[-1] if isinstance(method, PruningContainer) else method
    hook.remember(module)
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
    """Return the dim along which a tensor is divided by its norms, -1 for one norm of it all.

    `None` if it is not divided. The numbers are those of `torch.norm_except_dim`.
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
    """Yield (owner, path of a child) if the owner uses weights of a child that it does not call."""
    for module in modules:
        if isinstance(module, nn.MultiheadAttention):
            yield module, "out_proj"
        if _has_forward(module):
            yield from ((module, path) for path in _without_forward(module, ""))


def _has_forward(module: nn.Module) -> bool:
    """Return whether a module can be called; a `ParameterList`, for one, cannot."""
    return type(module).forward is not nn.Module.forward or "forward" in vars(module)


def _without_forward(module: nn.Module, prefix: str) -> Iterator[str]:
    """Yield the paths of the children that cannot be called, also of those inside of each other."""
    for name, child in module._modules.items():
        if child is not None and not _has_forward(child):
            if child._parameters:
                yield f"{prefix}{name}"
            yield from _without_forward(child, f"{prefix}{name}.")


def tensors_behind(module: nn.Module, name: str) -> list[str]:
    """Return the dotted names of the tensors to prune instead of one that is computed from them.

    Args:
        module: the module that has the tensor.
        name: its name.

    Returns:
        For `weight_norm` the direction, for `spectral_norm` the weight before it is divided; for
        another parametrization all of its originals. Empty if the tensor is not parametrized.
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
