"""The operators: selection as torch.library custom operators, opaque to every transform.

Under `torch.compile` the search is data-dependent control flow, which cannot be traced, and masks
written elementwise per leaf cost the compiler seconds per hundred leaves. So the graph sees one
node: a list of tensors in, a list of fresh bool masks out. Each operator has a fake rule (shapes
for tracing, `meta` and export) and a batching rule (for `vmap`). None has a gradient: a selection
is piecewise constant, and its inputs are detached before they get here.
`cudagraph_unsafe`, since counts meet on the host.

The only room that imports `torch.library`. What is wrong with values is raised from here, in eager
and in compiled code alike.
"""

# No `from __future__ import annotations`: the schemas are inferred from the annotations themselves.

from typing import Optional

import torch
from torch import Tensor

from gprune.select import batching, rows, several
from gprune.select.amounts import resolve, resolve_amount, resolve_sparsity
from gprune.select.apportion import apportion as share_out
from gprune.select.draws import draw_range
from gprune.select.errors import LeafError
from gprune.select.host import undisturbed
from gprune.select.keys import check_exact
from gprune.select.marking import empty_masks, mark
from gprune.select.ranking import Ranking
from gprune.select.search import prune

TAGS = (torch.Tag.cudagraph_unsafe,)


@torch.library.custom_op("gprune::select", mutates_args=(), tags=TAGS)
@undisturbed
def select(
    scores: list[Tensor],
    masks: list[Tensor],
    amounts: list[Tensor],
    seed: Optional[Tensor],  # noqa: UP045  the schema inference of torch 2.10 takes this spelling
    absolute: bool,
    sparsity: bool,
) -> list[Tensor]:
    """Find the cut and make the masks.

    Args:
        scores: one tensor per prunable leaf.
        masks: their prior masks, or empty.
        amounts: one, to rank all leaves together, or one per leaf, to rank each alone.
        seed: ranks by random draws if given.
        absolute: ranks by absolute value.
        sparsity: whether the amounts are sparsities.

    Returns:
        The masks, one per leaf.
    """
    ranking = _ranking(scores, masks, absolute, seed)
    if len(amounts) == 1:
        return _select_together(ranking, amounts[0], sparsity)
    return [_select_alone(ranking, leaf, amount, sparsity) for leaf, amount in enumerate(amounts)]


@torch.library.custom_op("gprune::select_rows", mutates_args=(), tags=TAGS)
@undisturbed
def select_rows(
    scores: Tensor,
    masks: list[Tensor],
    amount: Tensor,
    absolute: bool,
    sparsity: bool,
) -> Tensor:
    """Find a cut for every row and make the masks.

    Args:
        scores: (rows, entries).
        masks: the prior mask, or empty.
        amount: what each row is to be pruned by.
        absolute: ranks by absolute value.
        sparsity: whether the amount is a sparsity.

    Returns:
        The mask, (rows, entries).
    """
    return rows.select(_ranking([scores], masks, absolute), amount, sparsity)


@torch.library.custom_op("gprune::find_threshold", mutates_args=(), tags=TAGS)
@undisturbed
def find_threshold(
    scores: list[Tensor], masks: list[Tensor], amount: Tensor, absolute: bool, sparsity: bool
) -> tuple[Tensor, Tensor]:
    """Find a cut for every amount of a tensor; the other arguments are those of `select`."""
    ranking = _ranking(scores, masks, absolute)
    ks = [resolve(one, ranking.entries, ranking.candidates, sparsity) for one in amount.view(-1)]
    values, indices = zip(*several.find(ranking, ks), strict=True) if ks else ([], [])
    return (
        torch.tensor(values, dtype=torch.float64).view(amount.shape),
        torch.tensor(indices, dtype=torch.int64).view(amount.shape),
    )


@torch.library.custom_op("gprune::masks_from_threshold", mutates_args=(), tags=TAGS)
@undisturbed
def masks_from_threshold(
    value: Tensor, index: Tensor, scores: list[Tensor], masks: list[Tensor], absolute: bool
) -> list[Tensor]:
    """Make the masks at a cut; the other arguments are those of `select`."""
    return mark(_ranking(scores, masks, absolute), float(value.item()), int(index.item()))


@torch.library.custom_op("gprune::num_to_prune", mutates_args=(), tags=TAGS)
@undisturbed
def num_to_prune(amount: Tensor, candidates: int) -> Tensor:
    """Count what an amount prunes."""
    return torch.tensor(resolve_amount(amount, candidates), dtype=torch.int64)


@torch.library.custom_op("gprune::random_scores", mutates_args=(), tags=TAGS)
@undisturbed
def random_scores(leaves: list[Tensor], seed: Tensor) -> list[Tensor]:
    """Draw the scores that `select` ranks by when it is given a seed."""
    number = int(seed.item())
    return [
        draw_range(number, leaf, 0, like.numel(), like.device).view(like.shape)
        for leaf, like in enumerate(leaves)
    ]


@torch.library.custom_op("gprune::all_finite", mutates_args=(), tags=TAGS)
@undisturbed
def all_finite(leaves: list[Tensor]) -> Tensor:
    """Say of each leaf whether all its entries, of the whole batch under `vmap`, are finite."""
    # NaN goes through aminmax, which is one pass; isfinite is several
    ends = [torch.stack(leaf.aminmax()) if leaf.numel() else torch.zeros(2) for leaf in leaves]
    return torch.tensor([bool(end.isfinite().all()) for end in ends], dtype=torch.bool)


@torch.library.custom_op("gprune::apportion", mutates_args=(), tags=TAGS)
@undisturbed
def apportion(
    sparsity: Tensor, sizes: list[int], weights: list[float], low: list[int], high: list[int]
) -> list[Tensor]:
    """Share what a sparsity keeps out among leaves, in proportion to weights.

    Args:
        sparsity: of all leaves together.
        sizes: how many entries each leaf has.
        weights: what the kept entries are in proportion to.
        low: how many entries each leaf keeps at least.
        high: how many it keeps at most.

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
        torch.tensor((size - count) / max(1, size), dtype=torch.float64)
        for count, size in zip(counts, sizes, strict=True)
    ]


def _ranking(
    scores: list[Tensor], masks: list[Tensor], absolute: bool, seed: Tensor | None = None
) -> Ranking:
    if seed is not None:
        return Ranking(scores, masks, seed=int(seed.item()))
    check_exact(scores)
    return Ranking(scores, masks, absolute)


def _select_alone(ranking: Ranking, leaf: int, amount: Tensor, sparsity: bool) -> Tensor:
    try:
        [mask] = _select_together(ranking.only(leaf), amount, sparsity)
    except ValueError as error:
        raise LeafError(leaf, "sparsity" if sparsity else "amount", str(error)) from None
    return mask


def _select_together(ranking: Ranking, amount: Tensor, sparsity: bool) -> list[Tensor]:
    k = resolve(amount, ranking.entries, ranking.candidates, sparsity)
    if k == 0 and ranking.masks:  # what a step that is not due costs: one copy of the masks
        return [mask.clone(memory_format=torch.contiguous_format) for mask in ranking.masks]
    return prune(ranking, k)


@select.register_fake
def _(
    scores: list[Tensor],
    masks: list[Tensor],
    amounts: list[Tensor],
    seed: Tensor | None,
    absolute: bool,
    sparsity: bool,
) -> list[Tensor]:
    return empty_masks(scores)


@select_rows.register_fake
def _(
    scores: Tensor, masks: list[Tensor], amount: Tensor, absolute: bool, sparsity: bool
) -> Tensor:
    return empty_masks([scores])[0]


@find_threshold.register_fake
def _(
    scores: list[Tensor], masks: list[Tensor], amount: Tensor, absolute: bool, sparsity: bool
) -> tuple[Tensor, Tensor]:
    device = "meta" if any(leaf.is_meta for leaf in scores) else "cpu"
    value = torch.empty(amount.shape, dtype=torch.float64, device=device)
    return value, torch.empty(amount.shape, dtype=torch.int64, device=device)


@masks_from_threshold.register_fake
def _(
    value: Tensor, index: Tensor, scores: list[Tensor], masks: list[Tensor], absolute: bool
) -> list[Tensor]:
    return empty_masks(scores)


@num_to_prune.register_fake
def _(amount: Tensor, candidates: int) -> Tensor:
    return torch.empty((), dtype=torch.int64, device="cpu")


@random_scores.register_fake
def _(leaves: list[Tensor], seed: Tensor) -> list[Tensor]:
    return [torch.empty(x.shape, dtype=torch.float64, device=x.device) for x in leaves]


@all_finite.register_fake
def _(leaves: list[Tensor]) -> Tensor:
    return torch.ones(len(leaves), dtype=torch.bool, device="cpu")


@apportion.register_fake
def _(
    sparsity: Tensor, sizes: list[int], weights: list[float], low: list[int], high: list[int]
) -> list[Tensor]:
    return [torch.empty((), dtype=torch.float64, device="cpu") for _ in sizes]


select.register_vmap(batching.of_select(select, select_rows, find_threshold, masks_from_threshold))
find_threshold.register_vmap(batching.of_find_cut(find_threshold))
for _operator in (select_rows, masks_from_threshold, num_to_prune, random_scores, apportion):
    _operator.register_vmap(batching.by_loop(_operator))
all_finite.register_vmap(lambda info, in_dims, leaves: (all_finite(leaves), None))
