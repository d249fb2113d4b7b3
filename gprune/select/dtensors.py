"""The operators on DTensors: each becomes an operator on local shards.

If an operator of `gprune.select.operators` gets a DTensor, torch calls the rule that is registered
here. The rule calls a second operator with the local shards, and gives its results the placements
of the leaves. The second operator counts, and sends messages to the other ranks. So under
`torch.compile` the graph has one node here as well, and the messages are inside it.

Importing this module registers the rules; `gprune.sharding.load_dtensor_rules` does that.
"""

# No `from __future__ import annotations`: the schemas are inferred from the annotations themselves.

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Optional

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from gprune.inputs import LeafError
from gprune.select import operators
from gprune.select.blocks import RankedLeaves
from gprune.select.counter_rng import draw
from gprune.select.partition import empty_masks
from gprune.select.ranks import Ranks
from gprune.select.shards import first_mesh, from_text, layout_of, mesh_of, place_like, to_text

TAGS = (torch.Tag.cudagraph_unsafe,)


@torch.library.custom_op("gprune::select_shards", mutates_args=(), tags=TAGS)
def select_shards(
    scores: list[Tensor],
    masks: list[Tensor],
    amounts: list[Tensor],
    seed: Optional[Tensor],  # noqa: UP045  the schema inference of torch 2.10 takes this spelling
    absolute: bool,
    sparsity: bool,
    call: str,
    layout: str,
) -> list[Tensor]:
    """Find thresholds and make the masks of this rank's shards."""
    arguments = sparsity, *amounts
    with started(scores, masks, absolute, seed, call, layout, *arguments) as (ranked, ranks, kept):
        operators.select_into(kept, ranked, amounts, sparsity, ranks)
        return kept


@torch.library.custom_op("gprune::find_threshold_shards", mutates_args=(), tags=TAGS)
def find_threshold_shards(
    scores: list[Tensor],
    masks: list[Tensor],
    amount: Tensor,
    absolute: bool,
    sparsity: bool,
    call: str,
    layout: str,
) -> tuple[Tensor, Tensor]:
    """Find a threshold for every amount of a tensor."""
    arguments = sparsity, amount
    with started(scores, masks, absolute, None, call, layout, *arguments) as (ranked, ranks, _):
        return operators.find_thresholds(ranked, amount, sparsity, ranks)


@torch.library.custom_op("gprune::masks_from_threshold_shards", mutates_args=(), tags=TAGS)
def masks_from_threshold_shards(
    value: Tensor,
    index: Tensor,
    scores: list[Tensor],
    masks: list[Tensor],
    absolute: bool,
    call: str,
    layout: str,
) -> list[Tensor]:
    """Make the masks of this rank's shards at a threshold."""
    arguments = value, index
    with started(scores, masks, absolute, None, call, layout, *arguments) as (ranked, ranks, kept):

        def write() -> Tensor:
            operators.write_at(kept, ranked.with_exact_keys(), value, index)
            return torch.empty(0, dtype=torch.int64, device="cpu")

        ranks.sum("writing the masks", 0, write)
        return kept


@torch.library.custom_op("gprune::random_scores_shards", mutates_args=(), tags=TAGS)
def random_scores_shards(leaves: list[Tensor], seed: Tensor, layout: str) -> list[Tensor]:
    """Draw the scores of this rank's shards; no message is sent."""
    number, slices = int(seed.item()), from_text(layout).slices()
    return [
        draw(number, i, own.leaf_index(torch.arange(x.numel(), device=x.device))).view_as(x)
        for i, (x, own) in enumerate(zip(leaves, slices, strict=True))
    ]


@torch.library.custom_op("gprune::all_finite_shards", mutates_args=(), tags=TAGS)
def all_finite_shards(leaves: list[Tensor], call: str, layout: str) -> Tensor:
    """Return, for each leaf, whether all its entries on all ranks are finite."""
    with started(leaves, [], False, None, call, layout) as (_, ranks, _):

        def count() -> Tensor:
            finite: Tensor = operators.all_finite(leaves, "")
            return finite.logical_not().to(torch.int64)

        return ranks.sum("checking that all entries are finite", len(leaves), count) == 0


@torch.library.custom_op("gprune::count_pruned_shards", mutates_args=(), tags=TAGS)
def count_pruned_shards(masks: list[Tensor], call: str, layout: str) -> Tensor:
    """Count the pruned entries of each mask on all ranks."""
    with started(masks, [], False, None, call, layout) as (ranked, ranks, _):

        def count() -> Tensor:
            counts: Tensor = operators.count_pruned(masks, "").cpu()
            return counts * torch.tensor(ranked.counted, device="cpu")

        return ranks.sum("counting the pruned entries", len(masks), count).to(masks[0].device)


@contextmanager
def started(
    scores: list[Tensor],
    masks: list[Tensor],
    absolute: bool,
    seed: Tensor | None,
    call: str,
    layout: str,
    *arguments: Any,
) -> Iterator[tuple[RankedLeaves, Ranks, list[Tensor]]]:
    """Check that all ranks make the same call, and run a block that raises its errors on all ranks.

    Args:
        scores: the local shard of each leaf.
        masks: their prior masks, or an empty list.
        absolute: whether to rank by absolute value.
        seed: if given, random draws are ranked.
        call: the public function and the paths of the leaves.
        layout: the layout of the leaves, as a string.
        *arguments: what else must be the same on all ranks: tensors and plain values.

    Yields:
        The leaves that are ranked, the ranks, and masks to be written.

    Raises:
        Exception: with the attribute `is_on_all_ranks`, because every rank raises it.
    """
    known = from_text(layout)
    ready: list[tuple[RankedLeaves, list[Tensor]]] = []

    def describe() -> dict[str, str]:
        number = None if seed is None else int(seed.item())
        slices = known.slices()
        for i, (leaf, own, local) in enumerate(zip(known.leaves, slices, scores, strict=True)):
            if tuple(local.shape) != own.size:
                raise LeafError(
                    i,
                    "params",
                    f"has a local shard of shape {tuple(local.shape)}, but by the placements of a "
                    f"leaf of shape {leaf.shape} it must be {own.size}",
                )
        ranked = RankedLeaves(scores, masks, absolute, number, slices, known.counted())
        operators.check_exact(ranked)
        ready.append((ranked, empty_masks(scores)))
        values = [(x.dtype, x.tolist()) if isinstance(x, Tensor) else x for x in arguments]
        return {
            "structure": call,
            "leaves": repr((known, [x.dtype for x in scores], len(masks))),
            "arguments": repr((absolute, number, values)),
        }

    try:
        ranks = Ranks(known.mesh)
        ranks.check_same_on_all_ranks(describe)
        [(ranked, kept)] = ready
        yield ranked, ranks, kept
    except Exception as error:
        error.is_on_all_ranks = True  # type: ignore[attr-defined]  # read by gprune.sharding
        raise


def raise_error(error: Exception, leaves: list[Any]) -> None:
    """Raise an error of this rank on all ranks of the first DTensor's mesh.

    Raises:
        Exception: `error`, or the error of a lower rank.
    """
    try:
        Ranks(mesh_of(first_mesh(leaves))).raise_error(error)
    except Exception as shared:
        shared.is_on_all_ranks = True  # type: ignore[attr-defined]  # read by gprune.sharding
        raise


@select_shards.register_fake
def _(
    scores: list[Tensor],
    masks: list[Tensor],
    amounts: list[Tensor],
    seed: Tensor | None,
    absolute: bool,
    sparsity: bool,
    call: str,
    layout: str,
) -> list[Tensor]:
    return empty_masks(scores)


@find_threshold_shards.register_fake
def _(
    scores: list[Tensor],
    masks: list[Tensor],
    amount: Tensor,
    absolute: bool,
    sparsity: bool,
    call: str,
    layout: str,
) -> tuple[Tensor, Tensor]:
    value = torch.empty(amount.shape, dtype=torch.float64, device="cpu")
    return value, torch.empty(amount.shape, dtype=torch.int64, device="cpu")


@masks_from_threshold_shards.register_fake
def _(
    value: Tensor,
    index: Tensor,
    scores: list[Tensor],
    masks: list[Tensor],
    absolute: bool,
    call: str,
    layout: str,
) -> list[Tensor]:
    return empty_masks(scores)


@random_scores_shards.register_fake
def _(leaves: list[Tensor], seed: Tensor, layout: str) -> list[Tensor]:
    return [torch.empty(x.shape, dtype=torch.float64, device=x.device) for x in leaves]


@all_finite_shards.register_fake
def _(leaves: list[Tensor], call: str, layout: str) -> Tensor:
    return torch.ones(len(leaves), dtype=torch.bool, device="cpu")


@count_pruned_shards.register_fake
def _(masks: list[Tensor], call: str, layout: str) -> Tensor:
    return torch.empty(len(masks), dtype=torch.int64, device=masks[0].device)


def _by_shards(operator: Callable[..., Any]) -> Callable[..., Any]:
    """Make the rule of an operator, which calls the operator on local shards."""

    def rule(mode: Any, op: Any, types: Any, args: tuple[Any, ...], kwargs: Any) -> Any:
        with torch.no_grad():
            leaves = next(arg for arg in args if isinstance(arg, list))
            result = operator(*map(_local, args), to_text(layout_of(leaves)))
            if not isinstance(result, list):
                return result
            pairs = zip(leaves, result, strict=True)
            return [
                place_like(leaf, own) if isinstance(leaf, DTensor) else own for leaf, own in pairs
            ]

    return rule


def _local(arg: Any) -> Any:
    if isinstance(arg, list):
        return [_local(one) for one in arg]
    return arg.to_local() if isinstance(arg, DTensor) else arg


for _operator, _own in (
    (operators.select, select_shards),
    (operators.find_threshold, find_threshold_shards),
    (operators.masks_from_threshold, masks_from_threshold_shards),
    (operators.random_scores, random_scores_shards),
    (operators.all_finite, all_finite_shards),
    (operators.count_pruned, count_pruned_shards),
):
    _operator.register_torch_dispatch(DTensor, _by_shards(_own))
