"""gprune: exact pruning masks as pure functions over `torch.func`.

Functions take parameters and scores and return a pytree of masks; no module is changed. The names
below are in the order of the data flow: which leaves, which method, its application to the tree,
and what to do with the masks.

    trees.py       pytrees with `None` leaves, and `prunable`
    prune.py       global_unstructured, layerwise, and thresholds
    methods/       the pruning methods: which entries of the leaves are pruned
    masks.py       making, applying, counting and combining masks
    summaries.py   tables of masks, and how far two trees of masks agree
    scores/        functions from parameters to scores
    reconstruct/   better masks and new weights from the inputs of each layer
    schedules.py   from a step to a sparsity
    allocation.py  from a total sparsity to one for each leaf
    pruners/       masks that change while a model trains
    select/        the search for a threshold, as torch operators
    inputs.py      the checks of what a user passes
    sharding.py    DTensors at the public functions

Four submodules are imported by their own names, since most programs do not need them:
`gprune.adapter` (masks in modules), `gprune.checkpoints` (pruning files), `gprune.testing`
(strategies and contracts for tests) and `gprune.cli` (the command line).
"""

from gprune import allocation, pruners, reconstruct, schedules, scores
from gprune.masks import (
    apply_masks,
    intersect,
    keep_all,
    masks_from_zeros,
    num_pruned,
    pack_masks,
    sparsity,
    straight_through,
    unpack_masks,
)
from gprune.methods import (
    blocks,
    check_n_of_m,
    identity,
    input_dims,
    l1_unstructured,
    ln_structured,
    lowest_unstructured,
    n_of_m,
    pruning_method,
    random_structured,
    random_unstructured,
)
from gprune.prune import (
    Threshold,
    find_threshold,
    global_unstructured,
    layerwise,
    masks_from_threshold,
    num_to_prune,
)
from gprune.summaries import agreement, summary
from gprune.trees import prunable, vmap_dims

__all__ = [
    "prunable",
    "vmap_dims",
    "lowest_unstructured",
    "l1_unstructured",
    "random_unstructured",
    "identity",
    "ln_structured",
    "random_structured",
    "n_of_m",
    "blocks",
    "input_dims",
    "pruning_method",
    "global_unstructured",
    "layerwise",
    "Threshold",
    "find_threshold",
    "masks_from_threshold",
    "num_to_prune",
    "keep_all",
    "masks_from_zeros",
    "apply_masks",
    "straight_through",
    "num_pruned",
    "sparsity",
    "summary",
    "intersect",
    "agreement",
    "check_n_of_m",
    "pack_masks",
    "unpack_masks",
    "scores",
    "reconstruct",
    "schedules",
    "allocation",
    "pruners",
]
