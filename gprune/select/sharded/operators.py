"""The operators of selection on DTensors: each becomes one on local shards.

When an operator is handed a DTensor, torch asks for a rule. The rule takes the shards out, calls an
operator on plain tensors, which does all the counting and talking, and puts the result back with
the placements of the leaves. So under `torch.compile` the graph sees one node here as well, and the
messages are inside.
"""

# No `from __future__ import annotations`: the schemas are inferred from the annotations themselves.

from collections.abc import Callable
from typing import Any, Optional

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from gprune.select import operators as whole
from gprune.select.draws import draw
from gprune.select.host import undisturbed
from gprune.select.marking import empty_masks
from gprune.select.sharded import shards
from gprune.select.sharded.layouts import from_text, layout_of, to_text

TAGS = (torch.Tag.cudagraph_unsafe,)


@torch.library.custom_op("gprune::select_shards", mutates_args=(), tags=TAGS)
@undisturbed
def select_shards(
    scores: list[Tensor],
    masks: list[Tensor],
    amounts: list[Tensor],
    seed: Optional[Tensor],  # noqa: UP045  the schema inference of torch 2.10 takes this spelling
    absolute: bool,
    sparsity: bool,
    layout: str,
) -> list[Tensor]:
    """Find the cut and make the masks of this rank's shards; the leaves are placed as in layout."""
    kept = empty_masks(scores)
    opened = shards.open_call(
        from_text(layout), scores, masks, absolute, seed, ("select", sparsity, _numbers(amounts))
    )
    if len(amounts) == 1:
        shards.select_together(opened, kept, amounts[0], sparsity)
    else:
        shards.select_alone(opened, kept, amounts, sparsity)
    return kept


@torch.library.custom_op("gprune::find_threshold_shards", mutates_args=(), tags=TAGS)
@undisturbed
def find_threshold_shards(
    scores: list[Tensor],
    masks: list[Tensor],
    amount: Tensor,
    absolute: bool,
    sparsity: bool,
    layout: str,
) -> tuple[Tensor, Tensor]:
    """Find a cut for every amount of a tensor."""
    opened = shards.open_call(
        from_text(layout),
        scores,
        masks,
        absolute,
        None,
        ("find_threshold", sparsity, _numbers([amount])),
    )
    values, indices = shards.find_cuts(opened, amount.view(-1).unbind(), sparsity)
    return values.view(amount.shape), indices.view(amount.shape)


@torch.library.custom_op("gprune::masks_from_threshold_shards", mutates_args=(), tags=TAGS)
@undisturbed
def masks_from_threshold_shards(
    value: Tensor,
    index: Tensor,
    scores: list[Tensor],
    masks: list[Tensor],
    absolute: bool,
    layout: str,
) -> list[Tensor]:
    """Make the masks of this rank's shards at a cut."""
    kept = empty_masks(scores)
    opened = shards.open_call(
        from_text(layout),
        scores,
        masks,
        absolute,
        None,
        ("masks_from_threshold", _numbers([value, index])),
    )
    shards.masks_from_threshold(opened, kept, float(value.item()), int(index.item()))
    return kept


@torch.library.custom_op("gprune::random_scores_shards", mutates_args=(), tags=TAGS)
@undisturbed
def random_scores_shards(leaves: list[Tensor], seed: Tensor, layout: str) -> list[Tensor]:
    """Draw the scores of this rank's shards; no message is sent."""
    boxes, _ = from_text(layout).shards()
    number = int(seed.item())
    return [
        draw(number, leaf, box.places(torch.arange(like.numel(), device=like.device))).view_as(like)
        for leaf, (like, box) in enumerate(zip(leaves, boxes, strict=True))
    ]


@torch.library.custom_op("gprune::all_finite_shards", mutates_args=(), tags=TAGS)
@undisturbed
def all_finite_shards(leaves: list[Tensor], layout: str) -> Tensor:
    """Say of each leaf whether all its entries, on all ranks, are finite."""
    opened = shards.open_call(from_text(layout), leaves, [], False, None, ("all_finite",))

    def count() -> Tensor:
        finite: Tensor = whole.all_finite(leaves)
        return finite.logical_not().to(torch.int64)

    return opened.ranks.total("looking for what is not finite", len(leaves), count) == 0


@torch.library.custom_op("gprune::num_pruned", mutates_args=(), tags=TAGS)
@undisturbed
def num_pruned(masks: list[Tensor]) -> Tensor:
    """Count the pruned entries."""
    return torch.stack([(~mask).count_nonzero() for mask in masks]).sum()


@torch.library.custom_op("gprune::num_pruned_shards", mutates_args=(), tags=TAGS)
@undisturbed
def num_pruned_shards(masks: list[Tensor], layout: str) -> Tensor:
    """Count the pruned entries of all ranks' shards."""
    opened = shards.open_call(from_text(layout), masks, [], False, None, ("num_pruned",))
    return shards.num_pruned(opened)


def _numbers(tensors: list[Tensor]) -> list[tuple[torch.dtype, Any]]:
    return [(tensor.dtype, tensor.tolist()) for tensor in tensors]


@select_shards.register_fake
def _(
    scores: list[Tensor],
    masks: list[Tensor],
    amounts: list[Tensor],
    seed: Tensor | None,
    absolute: bool,
    sparsity: bool,
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
    layout: str,
) -> list[Tensor]:
    return empty_masks(scores)


@random_scores_shards.register_fake
def _(leaves: list[Tensor], seed: Tensor, layout: str) -> list[Tensor]:
    return [torch.empty(x.shape, dtype=torch.float64, device=x.device) for x in leaves]


@all_finite_shards.register_fake
def _(leaves: list[Tensor], layout: str) -> Tensor:
    return torch.ones(len(leaves), dtype=torch.bool, device="cpu")


@num_pruned.register_fake
def _(masks: list[Tensor]) -> Tensor:
    return torch.empty((), dtype=torch.int64, device=masks[0].device)


@num_pruned_shards.register_fake
def _(masks: list[Tensor], layout: str) -> Tensor:
    return torch.empty((), dtype=torch.int64, device=masks[0].device)


def _by_shards(operator: Callable[..., Any]) -> Callable[..., Any]:
    """Make the rule: shards in, and a list that comes out is placed as the leaves are."""

    def rule(mode: Any, op: Any, types: Any, args: tuple[Any, ...], kwargs: Any) -> Any:
        with torch.no_grad():
            leaves = next(arg for arg in args if isinstance(arg, list))
            result = operator(*map(_shards, args), to_text(layout_of(leaves)))
            if not isinstance(result, list):
                return result
            return [_placed_as(leaf, own) for leaf, own in zip(leaves, result, strict=True)]

    return rule


def _shards(arg: Any) -> Any:
    if isinstance(arg, list):
        return [_shards(one) for one in arg]
    return arg.to_local() if isinstance(arg, DTensor) else arg


def _placed_as(leaf: Tensor, own: Tensor) -> Tensor:
    """Make the DTensor of which this is the shard, placed as a leaf; a replica stays as it is."""
    if not isinstance(leaf, DTensor):
        return own
    return DTensor.from_local(
        own,
        leaf.device_mesh,
        leaf.placements,
        run_check=False,
        shape=leaf.shape,
        stride=torch.empty(leaf.shape, device="meta").stride(),
    )


for _operator, _own in (
    (whole.select, select_shards),
    (whole.find_threshold, find_threshold_shards),
    (whole.masks_from_threshold, masks_from_threshold_shards),
    (whole.random_scores, random_scores_shards),
    (whole.all_finite, all_finite_shards),
    (num_pruned, num_pruned_shards),
):
    _operator.register_torch_dispatch(DTensor, _by_shards(_own))
