"""The operators: selection as torch.library custom operators, opaque to every transform.

The control flow of the search depends on data, so `torch.compile` cannot trace it. An operator is
one node of the graph instead: a list of tensors in, a list of new bool masks out. Each operator has
a fake rule (shapes, for tracing, `meta` and export) and a batching rule (for `vmap`). None has a
gradient: masks are piecewise constant, and the inputs are detached before they get here. The
operators are `cudagraph_unsafe`, because the host reads counts.

Errors about values, such as an amount that is out of range, are raised here, in eager and in
compiled code.
"""

# No `from __future__ import annotations`: the schemas are inferred from the annotations themselves.

from collections.abc import Sequence
from typing import Optional

import torch
from torch import Tensor

from gprune.inputs import LeafError
from gprune.select import batching, rows
from gprune.select.blocks import Query, RankedLeaves
from gprune.select.counter_rng import draw
from gprune.select.counts import apportion as share_out
from gprune.select.counts import resolve, resolve_amount, resolve_sparsity
from gprune.select.keys import (
    FORMATS,
    LARGEST_INT64,
    keys_of,
    to_bits,
    to_float64_keys,
    values_of,
)
from gprune.select.partition import copy_priors, empty_masks, write_masks
from gprune.select.refine import OneProcess, Reduce
from gprune.select.search import Search, batches

TAGS = (torch.Tag.cudagraph_unsafe,)


@torch.library.custom_op("gprune::select", mutates_args=(), tags=TAGS)
def select(
    scores: list[Tensor],
    masks: list[Tensor],
    amounts: list[Tensor],
    seed: Optional[Tensor],  # noqa: UP045  the schema inference of torch 2.10 takes this spelling
    absolute: bool,
    sparsity: bool,
    call: str,
) -> list[Tensor]:
    """Find thresholds and make the masks at them.

    Args:
        scores: one tensor per prunable leaf.
        masks: their prior masks, or an empty list.
        amounts: one, to rank all leaves together; or one per leaf, to rank each leaf alone.
        seed: if given, random draws are ranked.
        absolute: whether to rank by absolute value.
        sparsity: whether the amounts are sparsities.
        call: the public function and the paths of the leaves, to check that all ranks make the same
            call; not used without DTensors.

    Returns:
        The masks, one per leaf.
    """
    number = None if seed is None else int(seed.item())
    ranked = RankedLeaves(scores, masks, absolute, number)
    check_exact(ranked)
    kept = empty_masks(scores)
    select_into(kept, ranked, amounts, sparsity, OneProcess())
    return kept


@torch.library.custom_op("gprune::select_rows", mutates_args=(), tags=TAGS)
def select_rows(
    scores: Tensor,
    masks: list[Tensor],
    amount: Tensor,
    absolute: bool,
    sparsity: bool,
) -> Tensor:
    """Find a threshold for every row and make the masks.

    Args:
        scores: (rows, entries).
        masks: the prior mask, or an empty list.
        amount: the amount or sparsity of each row.
        absolute: whether to rank by absolute value.
        sparsity: whether the amount is a sparsity.

    Returns:
        The mask, (rows, entries).
    """
    check_exact(RankedLeaves([scores], masks))
    prior = masks[0] if masks else None
    return rows.select_rows(scores, prior, amount, absolute=absolute, is_sparsity=sparsity)


@torch.library.custom_op("gprune::find_threshold", mutates_args=(), tags=TAGS)
def find_threshold(
    scores: list[Tensor],
    masks: list[Tensor],
    amount: Tensor,
    absolute: bool,
    sparsity: bool,
    call: str,
) -> tuple[Tensor, Tensor]:
    """Find a threshold for every amount of a tensor; the other arguments are those of `select`."""
    ranked = RankedLeaves(scores, masks, absolute)
    check_exact(ranked)
    return find_thresholds(ranked, amount, sparsity, OneProcess())


@torch.library.custom_op("gprune::masks_from_threshold", mutates_args=(), tags=TAGS)
def masks_from_threshold(
    value: Tensor,
    index: Tensor,
    scores: list[Tensor],
    masks: list[Tensor],
    absolute: bool,
    call: str,
) -> list[Tensor]:
    """Make the masks at a threshold; the other arguments are those of `select`."""
    ranked = RankedLeaves(scores, masks, absolute, exact=True)
    check_exact(ranked)
    kept = empty_masks(scores)
    write_at(kept, ranked, value, index)
    return kept


@torch.library.custom_op("gprune::num_to_prune", mutates_args=(), tags=TAGS)
def num_to_prune(amount: Tensor, candidates: int) -> Tensor:
    """Return how many candidates an amount prunes."""
    return torch.tensor(resolve_amount(amount, candidates), dtype=torch.int64, device="cpu")


@torch.library.custom_op("gprune::random_scores", mutates_args=(), tags=TAGS)
def random_scores(leaves: list[Tensor], seed: Tensor) -> list[Tensor]:
    """Draw the scores that `select` ranks if it has a seed."""
    number = int(seed.item())
    return [
        draw(number, leaf, torch.arange(like.numel(), device=like.device)).view(like.shape)
        for leaf, like in enumerate(leaves)
    ]


@torch.library.custom_op("gprune::all_finite", mutates_args=(), tags=TAGS)
def all_finite(leaves: list[Tensor], call: str) -> Tensor:
    """Return, for each leaf, whether all its entries are finite; under `vmap`, in all the batch."""
    # aminmax returns NaN if there is one, and takes one pass; isfinite takes several
    ends = [leaf.aminmax() for leaf in leaves if leaf.numel()]
    finite = iter([bool(torch.stack(end).isfinite().all()) for end in ends])
    found = [leaf.numel() == 0 or next(finite) for leaf in leaves]
    return torch.tensor(found, dtype=torch.bool, device="cpu")


@torch.library.custom_op("gprune::count_pruned", mutates_args=(), tags=TAGS)
def count_pruned(masks: list[Tensor], call: str) -> Tensor:
    """Count the pruned entries of each mask, as int64 on the device of the first mask."""
    device = masks[0].device
    return torch.stack([(mask.numel() - mask.count_nonzero()).to(device) for mask in masks])


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


def check_exact(ranked: RankedLeaves) -> None:
    """Raise an error for int64 scores that float64 may not hold exactly.

    Args:
        ranked: the leaves that are ranked.

    Raises:
        LeafError: if an int64 score is beyond 2^53 in magnitude.
    """
    for number, leaf in enumerate(ranked.scores):
        if leaf.dtype == torch.int64 and leaf.numel() and ranked.seed is None:
            low, high = torch.stack(leaf.aminmax()).tolist()
            if low < -LARGEST_INT64 or high > LARGEST_INT64:
                raise LeafError(
                    number,
                    "scores",
                    "int64 scores must be at most 2**53 in magnitude to compare exactly, "
                    f"got {low if low < -LARGEST_INT64 else high}; cast them to float64",
                )


def select_into(
    kept: list[Tensor],
    ranked: RankedLeaves,
    amounts: Sequence[Tensor],
    is_sparsity: bool,
    reduce: Reduce,
) -> None:
    """Write the masks that prune all leaves by one amount, or each leaf by its own.

    Args:
        kept: one contiguous bool mask per leaf, to be written.
        ranked: the leaves that are ranked.
        amounts: one, or one per leaf.
        is_sparsity: whether the amounts are sparsities.
        reduce: sums counts over the processes.

    Raises:
        ValueError: if the amount is out of range.
        LeafError: if the amount of one leaf is out of range.
    """
    all_leaves = range(len(ranked.scores))
    scopes = [all_leaves] if len(amounts) == 1 else [range(leaf, leaf + 1) for leaf in all_leaves]
    queries = []
    pairs = zip(amounts, scopes, count_candidates(ranked, scopes, reduce), strict=True)
    for number, (amount, leaves, num_candidates) in enumerate(pairs):
        entries = ranked.tree_starts[leaves.stop] - ranked.tree_starts[leaves.start]
        try:
            k = resolve(amount, entries, num_candidates, is_sparsity)
        except ValueError as error:
            if len(amounts) == 1:
                raise
            raise LeafError(number, "sparsity" if is_sparsity else "amount", str(error)) from None
        if k == 0:
            copy_priors(ranked, leaves, kept)
        else:
            queries.append(Query(leaves, k, num_candidates))
    for some in batches(queries, reduce):
        Search(ranked, some, reduce, kept).run()


def find_thresholds(
    ranked: RankedLeaves, amount: Tensor, is_sparsity: bool, reduce: Reduce
) -> tuple[Tensor, Tensor]:
    """Find the threshold of all leaves at every amount of a tensor.

    Returns:
        The values, float64, and the flat indices, int64, on the CPU, of the shape of the amount.
    """
    leaves = range(len(ranked.scores))
    [num_candidates] = count_candidates(ranked, [leaves], reduce)
    entries = ranked.tree_starts[-1]
    ks = [resolve(one, entries, num_candidates, is_sparsity) for one in amount.view(-1)]
    wanted = sorted(set(ks) - {0})
    found = {0: (-torch.inf, -1)}
    if wanted:
        queries = [Query(leaves, k, num_candidates) for k in wanted]
        keys, indices = zip(*Search(ranked, queries, reduce).run(), strict=True)
        values = values_of(torch.tensor(keys, device="cpu"), ranked.common).tolist()
        found |= dict(zip(wanted, zip(values, indices, strict=True), strict=True))
    return (
        torch.tensor([found[k][0] for k in ks], dtype=torch.float64, device="cpu").view(
            amount.shape
        ),
        torch.tensor([found[k][1] for k in ks], dtype=torch.int64, device="cpu").view(amount.shape),
    )


def write_at(kept: list[Tensor], ranked: RankedLeaves, value: Tensor, index: Tensor) -> None:
    """Write the masks at a threshold: the score and the tree index of the last pruned entry."""
    form, tree_index = FORMATS[value.dtype], int(index.item())
    key = int(to_float64_keys(keys_of(to_bits(value, form), form, absolute=False), form))
    for own in (ranked, ranked.not_counted()):
        if own is not None:
            blocks = own.blocks(range(len(own.scores)))
            write_masks(own, blocks, key, own.last_position(tree_index), kept)


def count_candidates(ranked: RankedLeaves, scopes: list[range], reduce: Reduce) -> list[int]:
    """Count the candidates of each scope, over all processes."""
    if not ranked.priors:
        starts = ranked.tree_starts
        return [starts[leaves.stop] - starts[leaves.start] for leaves in scopes]

    def count() -> Tensor:
        return torch.stack([ranked.num_candidates(leaves) for leaves in scopes])

    return reduce.sum("counting the candidates", len(scopes), count).tolist()


@select.register_fake
def _(
    scores: list[Tensor],
    masks: list[Tensor],
    amounts: list[Tensor],
    seed: Tensor | None,
    absolute: bool,
    sparsity: bool,
    call: str,
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
    call: str,
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
    call: str,
) -> list[Tensor]:
    return empty_masks(scores)


@num_to_prune.register_fake
def _(amount: Tensor, candidates: int) -> Tensor:
    return torch.empty((), dtype=torch.int64, device="cpu")


@random_scores.register_fake
def _(leaves: list[Tensor], seed: Tensor) -> list[Tensor]:
    return [torch.empty(x.shape, dtype=torch.float64, device=x.device) for x in leaves]


@all_finite.register_fake
def _(leaves: list[Tensor], call: str) -> Tensor:
    return torch.ones(len(leaves), dtype=torch.bool, device="cpu")


@count_pruned.register_fake
def _(masks: list[Tensor], call: str) -> Tensor:
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
