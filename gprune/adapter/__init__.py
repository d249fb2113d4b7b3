"""Masks in modules: the drop-in for `torch.nn.utils.prune`, and ways in and out of it.

`import gprune.adapter as prune` is the whole migration. This folder alone mutates modules, and
what it leaves there is torch's own state, written by torch's own `custom_from_mask`:
`<name>_orig` is the same `Parameter`, `<name>_mask` a persistent buffer in its dtype, and a
forward pre-hook recomputes `<name>`. So torch's `remove` and `is_pruned` know it.

    drop_in.py     the pairs of `global_unstructured` -> scores and prior masks -> masks
    modules.py     a whole module <-> flat dicts of parameters and masks
    optimizers.py  zeros that survive the optimizer's step
    state.py       what torch keeps in a pruned module, and writing it all or not at all
"""

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
    remove,
)

from gprune.adapter.drop_in import global_unstructured
from gprune.adapter.modules import (
    attach_masks_,
    detach_masks_,
    make_permanent_,
    masks_of,
    params_of,
)
from gprune.adapter.optimizers import project_

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
    "l1_unstructured",
    "ln_structured",
    "make_permanent_",
    "masks_of",
    "params_of",
    "project_",
    "random_structured",
    "random_unstructured",
    "remove",
]
