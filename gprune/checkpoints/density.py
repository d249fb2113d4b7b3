"""Counting zeros: how many entries of each tensor of a checkpoint are zero."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from gprune.checkpoints.choosing import left_out, quantized
from gprune.checkpoints.reading import CheckpointError
from gprune.select.blocks import flat_blocks
from gprune.summaries import LeafSummary, Summary

FP4 = torch.float4_e2m1fn_x2
"""A dtype with two entries in each byte, which torch counts as one entry."""

EXPONENTS = torch.float8_e8m0fnu
"""A dtype of powers of two. None is zero, but torch compares the smallest as zero."""


def density(tensors: dict[str, Tensor]) -> Summary:
    """Return how many entries of each tensor are zero.

    A pair `<name>_orig` and `<name>_mask`, as `torch.nn.utils.prune` leaves it, counts as one
    tensor: their product, under `<name>`. The tensors of `uncounted` have no row.

    Args:
        tensors: tensors by name, of any dtype and layout. They are read block by block.

    Returns:
        One row per tensor, sorted by name. `pruned` is the number of zeros, and `prunable` says
        whether `choose` chooses the tensor by default.

    Raises:
        CheckpointError: if a mask does not have the shape of its weight, or if the product of a
            pair has the name of another tensor.

    Example:
        >>> import torch
        >>> from gprune import checkpoints
        >>> found = checkpoints.density({"fc.weight": torch.tensor([[0.0, 2.0], [3.0, 0.0]])})
        >>> found.leaves[0].pruned, found.total.density
        (2, 0.5)
    """
    skipped = uncounted(tensors)
    factors = {name: [tensor] for name, tensor in tensors.items() if name not in skipped}
    for name, mask in tensors.items():
        base = name.removesuffix("_mask")
        if base != name and f"{base}_orig" in factors:
            if base in tensors:
                raise CheckpointError(f"{base!r} exists twice, once as {base}_orig and {name}")
            factors[base] = [*factors.pop(f"{base}_orig"), mask]
            del factors[name]
            if factors[base][0].shape != mask.shape:
                raise CheckpointError(f"{name!r} does not have the shape of {base}_orig")
    no_weights = left_out({name: first for name, (first, *_) in factors.items()})
    rows = []
    for name in sorted(factors):
        shape, zeros = _shape(factors[name][0]), count_zeros(*factors[name])
        prunable = name not in no_weights
        rows.append(LeafSummary(name, shape, math.prod(shape), zeros, prunable))
    return Summary(tuple(rows))


def uncounted(tensors: dict[str, Tensor]) -> dict[str, str]:
    """Return why the zeros of some tensors cannot be counted.

    Args:
        tensors: tensors by name, of any dtype and layout.

    Returns:
        The reason for each tensor that `density` leaves out, by name: it holds the codes of a
        quantized weight, in which 0 is not the value 0 or several share a byte; or torch has no
        comparison for its dtype.

    Example:
        >>> import torch
        >>> from gprune import checkpoints
        >>> codes, scales = torch.ones(2, 2, dtype=torch.int32), torch.ones(2)
        >>> checkpoints.uncounted({"fc.qweight": codes, "fc.scales": scales})
        {'fc.qweight': 'codes of quantized weights (GPTQ or AWQ)'}
    """
    layouts = quantized(tensors)
    reasons = {}
    for name, tensor in sorted(tensors.items()):
        if layouts.get(name, "FP8") not in ("FP4", "FP8"):
            reasons[name] = f"codes of quantized weights ({layouts[name]})"
        elif not _is_comparable(tensor.dtype):
            reasons[name] = f"of dtype {tensor.dtype}, which torch cannot compare with zero"
    return reasons


def count_zeros(tensor: Tensor, *masks: Tensor) -> int:
    """Count the entries of the product of a tensor and masks that are zero, block by block.

    Args:
        tensor: of a dtype that `uncounted` does not name, and of any layout.
        *masks: tensors of that shape.

    Returns:
        The count.
    """
    if tensor.dtype == EXPONENTS and not masks:
        return 0
    if tensor.dtype == FP4:
        # the lowest three bits of each half byte are 0 for 0 and -0
        return sum(
            int((block & half == 0).sum())
            for (block,) in flat_blocks(tensor.view(torch.uint8))
            for half in (0x07, 0x70)
        )
    nonzero = 0
    for first, *rest in flat_blocks(tensor, *masks):
        kept = first != 0  # count_nonzero supports fewer dtypes
        for mask in rest:
            kept &= mask != 0
        nonzero += int(kept.sum())
    return tensor.numel() - nonzero


def _shape(tensor: Tensor) -> tuple[int, ...]:
    """Return the shape of a tensor, in entries."""
    shape = tuple(tensor.shape)
    return (*shape[:-1], 2 * shape[-1]) if tensor.dtype == FP4 and shape else shape


def _is_comparable(dtype: torch.dtype) -> bool:
    if dtype == FP4:
        return True
    try:
        torch.empty(0, dtype=dtype).ne(0)
    except NotImplementedError:
        return False
    return True
