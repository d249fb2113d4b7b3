"""The rules of the operators for DTensors.

If an operator gets a DTensor, torch calls the rule that is registered here. The rule calls the
operator again with the local shards and a string that describes their layout, and makes DTensors of
the results. So under `torch.compile` a call with DTensors is one node of the graph too, and its
messages are inside that node.

Importing this module registers the rules. `gprune.sharding.load_dtensor_rules` imports it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from gprune.select import operators
from gprune.select.shards import layout_of, to_text


def _rule(operator: Callable[..., Any]) -> Callable[..., Any]:
    """Make the rule of an operator that is called with `call` as its last argument."""

    def rule(mode: Any, op: Any, types: Any, args: tuple[Any, ...], kwargs: Any) -> Any:
        *arguments, call = args
        leaves = next(arg for arg in arguments if isinstance(arg, list))
        with torch.no_grad():
            result = operator(*map(_local, arguments), call, to_text(layout_of(leaves)))
            if not isinstance(result, list):
                return result
            return [_place_like(*pair) for pair in zip(leaves, result, strict=True)]

    return rule


def _local(arg: Any) -> Any:
    if isinstance(arg, list):
        return [_local(one) for one in arg]
    return arg.to_local() if isinstance(arg, DTensor) else arg


def _place_like(leaf: Tensor, local: Tensor) -> Tensor:
    """Wrap a local shard with the placements of a leaf, if the leaf is a DTensor."""
    if not isinstance(leaf, DTensor):
        return local
    mesh, placements = leaf.device_mesh, leaf.placements
    stride = torch.empty(leaf.shape, device="meta").stride()
    return DTensor.from_local(
        local, mesh, placements, run_check=False, shape=leaf.shape, stride=stride
    )


def shard_like(whole: Tensor, leaf: DTensor) -> Tensor:
    """Return the DTensor whose shards are cut out of a whole tensor as those of a leaf are.

    No messages are sent.

    Args:
        whole: a plain tensor of the shape of the leaf, the same on all ranks.
        leaf: a DTensor whose shards are contiguous slices.
    """
    [piece] = layout_of([leaf]).slices()
    local = whole[tuple(slice(a, a + n) for a, n in zip(piece.start, piece.size, strict=True))]
    return _place_like(leaf, local.contiguous())


def _mask_with_decay(mode: Any, op: Any, types: Any, args: tuple[Any, ...], kwargs: Any) -> Any:
    return _place_like(args[0], operators.mask_with_decay(*map(_local, args)))


torch.library.register_torch_dispatch(operators.MASK_WITH_DECAY, DTensor, _mask_with_decay)
for _operator in (
    operators.select,
    operators.find_threshold,
    operators.masks_from_threshold,
    operators.random_scores,
    operators.all_finite,
    operators.count_pruned,
    operators.relative_outliers,
):
    _operator.register_torch_dispatch(DTensor, _rule(_operator))
