"""gprune: exact pruning masks as pure functions. Parameters and scores in, a tree of masks out.

    >>> import torch
    >>> import gprune as gp
    >>> params = {"weight": torch.tensor([[0.1, -2.0], [3.0, 0.4]]), "bias": torch.zeros(2)}
    >>> masks = gp.global_unstructured(gp.prunable(params), sparsity=0.5)
    >>> masks
    {'weight': tensor([[False,  True],
            [ True, False]]), 'bias': None}
    >>> gp.apply_masks(params, masks)["weight"]
    tensor([[ 0., -2.],
            [ 3.,  0.]])

A mask is a bool tensor, `True` = keep. Parameters, scores and masks are pytrees of one structure:
nested dicts, lists and tuples of tensors. `None` marks a leaf that is not pruned. No function here
changes its inputs, and none changes a module.

Below are all names, in the order of the data flow. `help(gp.prunable)` and so on shows the
arguments, the equation and an example of each.

Which leaves are pruned:

    prunable              put `None` in place of biases, norms and the like
    vmap_dims             the `in_dims` of `torch.vmap` for a tree with `None`s

Pruning methods, which decide what is pruned of a leaf. They are passed as `pruning_method=`, or
called on one tensor:

    lowest_unstructured   the entries with the lowest scores; the default
    l1_unstructured       the entries with the lowest absolute values
    random_unstructured   entries at random
    identity              nothing
    ln_structured         the channels with the lowest norms
    random_structured     channels at random
    n_of_m                all but the n highest of every m entries, such as 2:4
    blocks                the rectangular blocks with the lowest mean scores
    input_dims            `dim=` of a method: rank the inputs of each output by themselves
    pruning_method        make a method of your own function

From parameters and scores to masks:

    global_unstructured   one ranking over all leaves
    layerwise             any method, on each leaf by itself
    Threshold             the score and the position of the last pruned entry of a ranking
    find_threshold        the threshold of `global_unstructured`, without masks
    masks_from_threshold  the masks that a threshold determines
    num_to_prune          how many entries an amount is

Masks:

    keep_all              masks that prune nothing, to start from
    masks_from_zeros      masks of a tree that is sparse already
    apply_masks           set the pruned entries to zero
    straight_through      the same, but gradients pass through to pruned entries
    num_pruned            how many entries are pruned
    sparsity              which fraction of the entries is pruned
    summary               a table of the leaves, to print
    intersect             keep what all of several masks keep
    agreement             how much two trees of masks have in common
    check_n_of_m          raise an error unless masks have an N:M pattern
    pack_masks            masks as bits, in an eighth of the memory
    unpack_masks          the masks again

Submodules, which `import gprune` brings. Read `help(gp.scores)` next:

    scores                what to rank by: SNIP, Wanda, LAMP and others
    reconstruct           better masks and new weights from the inputs of each layer
    schedules             from a training step to a sparsity
    allocation            from one sparsity to one for each leaf
    pruners               masks that change while a model trains

Submodules that need an import of their own:

    gprune.adapter        masks in modules, in place of `torch.nn.utils.prune`
    gprune.checkpoints    prune files on disk; needs the extra `cli`
    gprune.testing        strategies and contracts for tests; needs the extra `testing`
    gprune.cli            the command `gprune`; needs the extra `cli`

The source files are in this order. Most have a test file of the same name in `tests`:

    trees.py              pytrees with `None` leaves, and `prunable`
    inputs.py             the checks of what a user passes
    methods/              the pruning methods
    prune.py              global_unstructured, layerwise, and thresholds
    masks.py              making, applying, counting and combining masks
    summaries.py          tables of masks, and how far two trees of masks agree
    select/               the search for a threshold, as torch operators
    sharding.py           DTensors at the public functions
"""

from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING

from gprune import allocation, pruners, schedules, scores
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

if TYPE_CHECKING:
    from gprune import reconstruct

__version__ = "0.1.0"

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

if not TYPE_CHECKING:  # a type checker should still report names that do not exist

    def __getattr__(name: str) -> ModuleType:
        """Import `gprune.reconstruct` when it is first used, so that `import gprune` stays fast."""
        if name == "reconstruct":
            return import_module("gprune.reconstruct")
        raise AttributeError(f"module 'gprune' has no attribute {name!r}")

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
