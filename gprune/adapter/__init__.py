"""Masks in modules: the drop-in for `torch.nn.utils.prune`, and calls for whole modules.

To migrate, write `import gprune.adapter as prune`. To prune a whole module by one ranking, call
`prune_`, once or repeatedly:

    >>> import torch
    >>> import gprune.adapter as prune
    >>> net = torch.nn.Sequential(torch.nn.Linear(10, 4), torch.nn.ReLU(), torch.nn.Linear(4, 1))
    >>> net = prune.prune_(net, sparsity=0.5)
    >>> net = prune.prune_(net, sparsity=0.75)  # keeps the first masks, and prunes more
    >>> sum(int((mask == 0).sum()) for mask in net.buffers())
    33
    >>> net = prune.make_permanent_(net)  # writes the zeros into the weights

Names that end with `_` change the module that they are given.

A whole module:

    prune_                   prune by one ranking of all weights
    attach_masks_            prune by masks that you have
    detach_masks_            remove the masks, and restore the dense weights
    make_permanent_          write the zeros into the weights, and remove the masks

The dicts of a module, for the pure functions of gprune:

    params_of                the dense parameters by name
    masks_of                 the masks by name
    prior_masks              the masks by name, for `masks=` of `gprune.global_unstructured`

Training a pruned module:

    project_                 keep pruned weights at zero through the steps of an optimizer
    keep_zeros_              the same for a module that was loaded sparse, without masks
    recalibrate_batchnorm_   measure the running statistics of batch norms anew
    recalibrate_batchnorm    the same as a pure function

With torch's arguments, a module and the name of a tensor:

    global_unstructured      prune tensors of modules by one ranking
    remove                   write the zeros of one mask into its weight

From torch, unchanged. Every other name of `torch.nn.utils.prune`, private ones included, is here
too:

    l1_unstructured          prune the entries of a tensor with the lowest absolute values
    random_unstructured      prune entries of a tensor at random
    ln_structured            prune the channels of a tensor with the lowest norms
    random_structured        prune channels of a tensor at random
    custom_from_mask         prune a tensor by a mask
    identity                 prune nothing of a tensor, and attach a mask
    is_pruned                whether a module has a mask of torch
    BasePruningMethod        the base class of methods
    L1Unstructured           the method of `l1_unstructured`
    RandomUnstructured       the method of `random_unstructured`
    LnStructured             the method of `ln_structured`
    RandomStructured         the method of `random_structured`
    CustomFromMask           the method of `custom_from_mask`
    Identity                 the method of `identity`
    PruningContainer         several methods of one tensor

Only this package changes modules. It leaves the state that torch's own `custom_from_mask` leaves,
so torch's `remove` and `is_pruned` recognise it: `<name>_orig` is the same `Parameter` as before,
`<name>_mask` is a persistent buffer in that dtype, and a forward pre-hook recomputes `<name>`. The
hook's class extends torch's, so that modules pruned here can be copied. The functions that come
from torch, such as `l1_unstructured`, leave torch's own hook. After
`attach_masks_(net, masks_of(net))` such a module can be copied too.

    drop_in.py               global_unstructured and remove with torch's arguments
    modules.py               a whole module, and flat dicts of its parameters and masks
    optimizers.py            zeros that survive the optimizer's steps
    sharded.py               modules under fully_shard, and parameters that are DTensors
    batchnorm.py             running statistics of the pruned network
    hooks.py                 the hooks that recompute masked weights
    state.py                 what torch keeps in a pruned module; all-or-nothing changes
"""

from typing import TYPE_CHECKING, Any

from torch.nn.utils import prune as _torch_prune
from torch.nn.utils.prune import (
    BasePruningMethod,
    CustomFromMask,
    Identity,
    L1Unstructured,
    LnStructured,
    PruningContainer,
    RandomStructured,
    RandomUnstructured,
    custom_from_mask,
    identity,
    is_pruned,
    l1_unstructured,
    ln_structured,
    random_structured,
    random_unstructured,
)

from gprune.adapter.batchnorm import recalibrate_batchnorm, recalibrate_batchnorm_
from gprune.adapter.drop_in import global_unstructured, remove
from gprune.adapter.modules import (
    attach_masks_,
    detach_masks_,
    make_permanent_,
    masks_of,
    params_of,
    prior_masks,
    prune_,
)
from gprune.adapter.optimizers import keep_zeros_, project_

__all__ = [
    "BasePruningMethod",
    "CustomFromMask",
    "Identity",
    "L1Unstructured",
    "LnStructured",
    "PruningContainer",
    "RandomStructured",
    "RandomUnstructured",
    "attach_masks_",
    "custom_from_mask",
    "detach_masks_",
    "global_unstructured",
    "identity",
    "is_pruned",
    "keep_zeros_",
    "l1_unstructured",
    "ln_structured",
    "make_permanent_",
    "masks_of",
    "params_of",
    "prior_masks",
    "project_",
    "prune_",
    "random_structured",
    "random_unstructured",
    "recalibrate_batchnorm",
    "recalibrate_batchnorm_",
    "remove",
]

if not TYPE_CHECKING:  # a type checker should still report names that do not exist

    def __getattr__(name: str) -> Any:
        return getattr(_torch_prune, name)
