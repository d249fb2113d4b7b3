"""gprune: exact pruning masks as pure functions over `torch.func`.

Parameters and scores in, a mask pytree out; no module is touched. The names below stand in the
order of the pipeline: which leaves, by which method, lifted to the tree, and what to do with the
masks.

Four rooms are imported by their own names, since most programs do without: `gprune.adapter` (masks
in modules), `gprune.checkpoints` (on disk), `gprune.testing` (contracts for tests), `gprune.cli`.
"""

from gprune import allocation, pruners, schedules, scores
from gprune.masks import (
    apply_masks,
    intersect,
    keep_all,
    num_pruned,
    sparsity,
    straight_through,
)
from gprune.methods import pruning_method
from gprune.prune import (
    find_threshold,
    global_unstructured,
    layerwise,
    masks_from_threshold,
    num_to_prune,
)
from gprune.select.cut import Threshold
from gprune.semi_structured import blocks, check_n_of_m, n_of_m
from gprune.structured import ln_structured, random_structured
from gprune.summaries import agreement, summary
from gprune.trees import prunable, vmap_dims
from gprune.unstructured import (
    identity,
    l1_unstructured,
    lowest_unstructured,
    random_unstructured,
)

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
    "pruning_method",
    "global_unstructured",
    "layerwise",
    "Threshold",
    "find_threshold",
    "masks_from_threshold",
    "num_to_prune",
    "keep_all",
    "apply_masks",
    "straight_through",
    "num_pruned",
    "sparsity",
    "summary",
    "intersect",
    "agreement",
    "check_n_of_m",
    "scores",
    "schedules",
    "allocation",
    "pruners",
]
