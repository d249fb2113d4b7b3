"""Counting zeros: how many entries of each tensor of a checkpoint are zero."""

from __future__ import annotations

from torch import Tensor

from gprune.checkpoints.planning import is_matrix
from gprune.checkpoints.reading import CheckpointError
from gprune.select.blocks import flat_blocks
from gprune.summaries import LeafSummary, Summary


def density(tensors: dict[str, Tensor]) -> Summary:
    """Count the zeros of each tensor.

    A pair `<name>_orig` and `<name>_mask`, as `torch.nn.utils.prune` leaves it, counts as one
    tensor: their product, under `<name>`.

    Args:
        tensors: tensors by name, of any dtype and layout. They are read block by block.

    Returns:
        One row per tensor, sorted by name. `pruned` is the number of zeros, and `prunable` says
        whether `choose` chooses the tensor by default.

    Raises:
        CheckpointError: if a mask does not have the shape of its weight, if the product of a pair
            has the name of another tensor, or if torch cannot compare a dtype with zero.
    """
    factors = {name: [tensor] for name, tensor in tensors.items()}
    for name, mask in tensors.items():
        base = name.removesuffix("_mask")
        if base != name and f"{base}_orig" in tensors:
            if base in tensors:
                raise CheckpointError(f"{base!r} exists twice, once as {base}_orig and {name}")
            factors[base] = [*factors.pop(f"{base}_orig"), mask]
            del factors[name]
            if factors[base][0].shape != mask.shape:
                raise CheckpointError(f"{name!r} does not have the shape of {base}_orig")
    return Summary(tuple(_row(name, *factors[name]) for name in sorted(factors)))


def _row(name: str, tensor: Tensor, *masks: Tensor) -> LeafSummary:
    nonzero = 0
    try:
        for first, *rest in flat_blocks(tensor, *masks):
            kept = first != 0  # count_nonzero supports fewer dtypes
            for mask in rest:
                kept &= mask != 0
            nonzero += int(kept.sum())
    except NotImplementedError:
        raise CheckpointError(
            f"{name!r} has dtype {tensor.dtype}, which torch cannot compare with zero"
        ) from None
    size = tensor.numel()
    return LeafSummary(name, tuple(tensor.shape), size, size - nonzero, is_matrix(tensor))
