"""The operators: selection as torch.library custom operators, opaque to every transform.

The control flow of the search depends on data, so `torch.compile` cannot trace it. An operator is
one node of the graph instead: a list of tensors in, a list of new bool masks out. Each operator has
a fake rule (shapes, for tracing, `meta` and export) and a batching rule (for `vmap`). None has a
gradient: masks are piecewise constant, and the inputs are detached before they get here. The
operators are `cudagraph_unsafe`, because the host reads counts.

The last argument, `context`, is for DTensors. A public function passes a description of its call.
If an operator gets DTensors, `gprune.select.dtensors` calls it again with their local shards, and
with the layout of the shards added to the context.

Errors about values, such as an amount that is out of range, are raised here, in eager and in
compiled code.
"""

# No `from __future__ import annotations`: the schemas are inferred from the annotations themselves.

from contextlib import AbstractContextManager, nullcontext
from typing import Optional

import torch
from torch import Tensor

from gprune.select import batching, rows
from gprune.select.blocks import RankedLeaves
from gprune.select.counter_rng import draw
from gprune.select.counts import apportion as share_out
from gprune.select.counts import resolve_amount, resolve_sparsity
from gprune.select.partition import empty_masks
from gprune.select.refine import OneProcess, Reduce
from gprune.select.search import find_thresholds, select_into, write_at

TAGS = (torch.Tag.cudagraph_unsafe,)
Opened = AbstractContextManager[tuple[RankedLeaves, Reduce, list[Tensor]]]


def opened(
    scores: list[Tensor],
    masks: list[Tensor],
    absolute: bool,
    seed: Tensor | None,
    context: str,
    *arguments: object,
) -> Opened:
    """Prepare a call of an operator: check the scores, and that all ranks make the same call.

    Args:
        scores: one tensor per leaf, or its local shard.
        masks: their prior masks, or an empty list.
        absolute: whether to rank by absolute value.
        seed: if given, random draws are ranked.
        context: the last argument of the operator.
        *arguments: what else must be the same on all ranks: tensors and plain values.

    Returns:
        A context manager. It yields the leaves that are ranked, the sum over the processes, and new
        masks to be written. Errors inside its block are raised on all ranks.
    """
    if context.startswith("{"):  # it has a layout: the leaves are local shards
        from gprune.select.shards import open_shards

        return open_shards(scores, masks, absolute, seed, context, arguments)
    ranked = RankedLeaves(scores, masks, absolute, None if seed is None else int(seed.item()))
    ranked.check_exact()
    return nullcontext((ranked, OneProcess(), empty_masks(scores)))


@torch.library.custom_op("gprune::select", mutates_args=(), tags=TAGS)
def select(
    scores: list[Tensor],
    masks: list[Tensor],
    amounts: list[Tensor],
    seed: Optional[Tensor],  # noqa: UP045  the schema inference of torch 2.10 takes this spelling
    absolute: bool,
    sparsity: bool,
    context: str,
) -> list[Tensor]:
    """Find thresholds and make the masks at them.

    Args:
        scores: one tensor per prunable leaf.
        masks: their prior masks, or an empty list.
        amounts: one, to rank all leaves together; or one per leaf, to rank each leaf alone.
        seed: if given, random draws are ranked.
        absolute: whether to rank by absolute value.
        sparsity: whether the amounts are sparsities.
        context: for DTensors the public function and the paths of the leaves, and for local shards
            their layout too; otherwise not used.

    Returns:
        The masks, one per leaf.
    """
    arguments = sparsity, *amounts
    with opened(scores, masks, absolute, seed, context, *arguments) as (ranked, reduce, kept):
        select_into(kept, ranked, amounts, sparsity, reduce)
        return kept


@torch.library.custom_op("gprune::select_rows", mutates_args=(), tags=TAGS)
def select_rows(
    scores: Tensor, masks: list[Tensor], amount: Tensor, absolute: bool, sparsity: bool
) -> Tensor:
    """Prune each row of a matrix by an amount; `masks` has the prior mask, or is empty."""
    RankedLeaves([scores], masks).check_exact()
    prior = masks[0] if masks else None
    return rows.select_rows(scores, prior, amount, absolute=absolute, is_sparsity=sparsity)


@torch.library.custom_op("gprune::find_threshold", mutates_args=(), tags=TAGS)
def find_threshold(
    scores: list[Tensor],
    masks: list[Tensor],
    amount: Tensor,
    absolute: bool,
    sparsity: bool,
    context: str,
) -> tuple[Tensor, Tensor]:
    """Find a threshold for every amount of a tensor; the other arguments are those of `select`."""
    arguments = sparsity, amount
    with opened(scores, masks, absolute, None, context, *arguments) as (ranked, reduce, _):
        return find_thresholds(ranked, amount, sparsity, reduce)


@torch.library.custom_op("gprune::masks_from_threshold", mutates_args=(), tags=TAGS)
def masks_from_threshold(
    value: Tensor,
    index: Tensor,
    scores: list[Tensor],
    masks: list[Tensor],
    absolute: bool,
    context: str,
) -> list[Tensor]:
    """Make the masks at a threshold; the other arguments are those of `select`."""
    with opened(scores, masks, absolute, None, context, value, index) as (ranked, reduce, kept):
        write_at(kept, ranked, value, index, reduce)
        return kept


@torch.library.custom_op("gprune::num_to_prune", mutates_args=(), tags=TAGS)
def num_to_prune(amount: Tensor, candidates: int) -> Tensor:
    """Return how many candidates an amount prunes."""
    return torch.tensor(resolve_amount(amount, candidates), dtype=torch.int64, device="cpu")


@torch.library.custom_op("gprune::random_scores", mutates_args=(), tags=TAGS)
def random_scores(leaves: list[Tensor], seed: Tensor, context: str) -> list[Tensor]:
    """Draw the scores that `select` ranks if it has a seed. No messages are sent."""
    number, slices = int(seed.item()), None
    if context.startswith("{"):
        from gprune.select.shards import from_text

        slices = from_text(context).slices()
    drawn = []
    for i, leaf in enumerate(leaves):
        index = torch.arange(leaf.numel(), device=leaf.device)
        index = index if slices is None else slices[i].leaf_index(index)
        drawn.append(draw(number, i, index).view(leaf.shape))
    return drawn


@torch.library.custom_op("gprune::all_finite", mutates_args=(), tags=TAGS)
def all_finite(leaves: list[Tensor], context: str) -> Tensor:
    """Return, for each leaf, whether all its entries are finite; under `vmap`, in all the batch."""

    def count() -> Tensor:
        # aminmax returns NaN if there is one, and takes one pass; isfinite takes several
        ends = [
            torch.stack(x.aminmax()) if x.numel() else torch.zeros(2, device="cpu") for x in leaves
        ]
        return torch.tensor([int(not end.isfinite().all()) for end in ends], device="cpu")

    with opened(leaves, [], False, None, context) as (_, reduce, _):
        return reduce.sum("checking that all entries are finite", len(leaves), count) == 0


@torch.library.custom_op("gprune::count_pruned", mutates_args=(), tags=TAGS)
def count_pruned(masks: list[Tensor], context: str) -> Tensor:
    """Count the pruned entries of each mask, as int64 on the device of the first mask."""
    with opened(masks, [], False, None, context) as (ranked, reduce, _):

        def count() -> Tensor:
            numbers = [mask.numel() - mask.count_nonzero().cpu() for mask in masks]
            is_counted = ranked.counted or [True] * len(masks)
            return torch.stack(numbers) * torch.tensor(is_counted, device="cpu")

        return reduce.sum("counting the pruned entries", len(masks), count).to(masks[0].device)


@torch.library.custom_op("gprune::apportion", mutates_args=(), tags=TAGS)
def apportion(
    sparsity: Tensor, sizes: list[int], weights: list[float], low: list[int], high: list[int]
) -> list[Tensor]:
    """Divide the entries that a sparsity keeps among the leaves, in proportion to weights.

    Args:
        sparsity: the sparsity of all leaves together.
        sizes: how many entries each leaf has.
        weights: a number for each leaf, to which its kept entries are proportional.
        low: the fewest entries that each leaf may keep.
        high: the most entries that each leaf may keep.

    Returns:
        The sparsity of each leaf.

    Raises:
        ValueError: if the bounds do not allow the total.
    """
    entries = sum(sizes)
    total = entries - resolve_sparsity(sparsity, entries, entries)
    if not sum(low) <= total <= sum(high):
        raise ValueError(
            f"sparsity {sparsity.item():g} keeps {total} of {entries} entries, overrides and "
            f"min_kept allow from {sum(low)} to {sum(high)}"
        )
    counts = share_out(total, weights, low, high)
    return [
        torch.tensor((size - count) / max(1, size), dtype=torch.float64, device="cpu")
        for count, size in zip(counts, sizes, strict=True)
    ]


@select.register_fake
def _(
    scores: list[Tensor],
    masks: list[Tensor],
    amounts: list[Tensor],
    seed: Tensor | None,
    absolute: bool,
    sparsity: bool,
    context: str,
) -> list[Tensor]:
    return empty_masks(scores)


@select_rows.register_fake
def _(
    scores: Tensor, masks: list[Tensor], amount: Tensor, absolute: bool, sparsity: bool
) -> Tensor:
    return empty_masks([scores])[0]


@find_threshold.register_fake
def _(
    scores: list[Tensor],
    masks: list[Tensor],
    amount: Tensor,
    absolute: bool,
    sparsity: bool,
    context: str,
) -> tuple[Tensor, Tensor]:
    device = "meta" if any(leaf.is_meta for leaf in scores) else "cpu"
    value = torch.empty(amount.shape, dtype=torch.float64, device=device)
    return value, torch.empty(amount.shape, dtype=torch.int64, device=device)


@masks_from_threshold.register_fake
def _(
    value: Tensor,
    index: Tensor,
    scores: list[Tensor],
    masks: list[Tensor],
    absolute: bool,
    context: str,
) -> list[Tensor]:
    return empty_masks(scores)


@num_to_prune.register_fake
def _(amount: Tensor, candidates: int) -> Tensor:
    return torch.empty((), dtype=torch.int64, device="cpu")


@random_scores.register_fake
def _(leaves: list[Tensor], seed: Tensor, context: str) -> list[Tensor]:
    return [torch.empty(x.shape, dtype=torch.float64, device=x.device) for x in leaves]


@all_finite.register_fake
def _(leaves: list[Tensor], context: str) -> Tensor:
    return torch.ones(len(leaves), dtype=torch.bool, device="cpu")


@count_pruned.register_fake
def _(masks: list[Tensor], context: str) -> Tensor:
    return torch.empty(len(masks), dtype=torch.int64, device=masks[0].device)


@apportion.register_fake
def _(
    sparsity: Tensor, sizes: list[int], weights: list[float], low: list[int], high: list[int]
) -> list[Tensor]:
    return [torch.empty((), dtype=torch.float64, device="cpu") for _ in sizes]


select.register_vmap(batching.of_select(select, select_rows, find_threshold, masks_from_threshold))
find_threshold.register_vmap(batching.of_find_threshold(find_threshold))
for _operator in (
    select_rows,
    masks_from_threshold,
    num_to_prune,
    random_scores,
    count_pruned,
    apportion,
):
    _operator.register_vmap(batching.by_loop(_operator))
all_finite.register_vmap(lambda info, in_dims, *args: (all_finite(*args), None))
