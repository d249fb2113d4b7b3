"""Choosing: which tensors of a checkpoint are weights, and why the others are left out.

A checkpoint stores more than weights: the buffers of the model, and the codes and scales of
quantized weights. A file does not say which tensor is which. So they are recognised by dtype and by
name: the last component of the dotted name, and its parts between underscores.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

import gprune as gp
from gprune.checkpoints.reading import CheckpointError
from gprune.trees import describe_first, predicate

NamedTensors: TypeAlias = dict[str, Tensor]

DTYPES = (torch.bfloat16, torch.float16, torch.float32, torch.float64)

NARROW_DTYPES = {
    torch.float4_e2m1fn_x2: "FP4",
    torch.float8_e4m3fn: "FP8",
    torch.float8_e4m3fnuz: "FP8",
    torch.float8_e5m2: "FP8",
    torch.float8_e5m2fnuz: "FP8",
}
"""The floating dtypes that only quantized weights have, and what errors call them."""


class Layout(NamedTuple):
    """How a quantization library names the two tensors of a weight.

    Attributes:
        title: the libraries or formats that use these names.
        codes: the end of the name of the integers that stand for the entries.
        scales: the end of the name of what the codes are decoded with.
    """

    title: str
    codes: str
    scales: str


LAYOUTS = (
    Layout("GPTQ or AWQ", ".qweight", ".scales"),
    Layout("compressed-tensors", ".weight_packed", ".weight_scale"),
    Layout("integers with a scale", ".weight", ".weight_scale"),  # BitNet, ModelOpt, INT8
    Layout("bitsandbytes 4-bit", ".weight", ".weight.absmax"),
    Layout("bitsandbytes 8-bit", ".weight", ".SCB"),
    Layout("EETQ", ".weight", ".weight_scales"),
    Layout("MLX or HIGGS", ".weight", ".scales"),
    Layout("MXFP4", "_blocks", "_scales"),
    Layout("HQQ", ".W_q", ".scale"),
    Layout("quanto", ".weight._data", ".weight._scale"),
    Layout("torchao", "._weight_qdata", "._weight_scale"),
    Layout("AQLM", ".codes", ".codebooks"),
    Layout("VPTQ", ".indices", ".centroids.weight"),
    Layout("EXL2", ".q_weight", ".q_scale"),
    Layout("EXL3", ".trellis", ".svh"),
    Layout("QuIP#", ".Qidxs", ".SV"),
    Layout("Marlin", ".B", ".s"),
)

SCALE = "with the name of a scale"

SCALES = {"absmax", "biases", "codebooks", "qzeros", "scale", "scales", "zero", "zeros"}
"""Parts of the names of scales, zero points and the like."""

CONSTANTS = {
    *("mask", "masks", "masked", "tril", "triu", "alibi", "slopes"),  # of attention
    *("cache", "cached", "cos", "sin", "freq", "freqs", "pe"),  # of rotary and other positions
    *("anchor", "anchors", "ids", "index", "indices"),  # of detection and of windows
    *("basis", "buffer", "fb", "hadamard", "window"),  # of spectrograms and rotations
    *("coords", "filt", "filter", "filters"),  # of Swin v2, blur pooling, vocoders and Whisper
}
"""Parts of the names of buffers that hold constants."""

NORMS = {"weight_g", "original0"}
"""The names that torch's weight normalization gives to the norms of a weight."""


def choose(
    tensors: NamedTensors, *, include: Sequence[str] = (), exclude: Sequence[str] = ()
) -> NamedTensors:
    """Return the tensors of a checkpoint that are to be pruned: its weights.

    `left_out` says which tensors are not chosen, and why.

    Args:
        tensors: the tensors of a checkpoint, by name.
        include: globs of names. If there are any, only tensors that one of them matches are chosen.
        exclude: globs of names. Tensors that one of them matches are not chosen.

    Returns:
        The chosen tensors by name, sorted by name, which is the order of the flat indices.

    Raises:
        CheckpointError: if a glob matches no name, no tensor is chosen, a tensor that the globs do
            not leave out is quantized, or the checkpoint contains masks of `torch.nn.utils.prune`.

    Example:
        >>> import torch
        >>> from gprune import checkpoints
        >>> tensors = {
        ...     "embed.weight": torch.ones(5, 2),
        ...     "fc.weight": torch.ones(2, 2),
        ...     "fc.bias": torch.ones(2),
        ... }
        >>> list(checkpoints.choose(tensors, exclude=["*embed*"]))
        ['fc.weight']
    """
    for glob in (*include, *exclude):
        matches = predicate(glob)
        if not any(matches(name, tensor) for name, tensor in tensors.items()):
            raise CheckpointError(f"{glob!r} matches none of the {len(tensors)} tensors")
    masked = [name for name in tensors if name.endswith("_mask") and f"{name[:-5]}_orig" in tensors]
    if masked:
        raise CheckpointError(
            f"{masked[0]!r} is a mask of torch.nn.utils.prune; make it permanent first, with its "
            "remove() or gprune.adapter.make_permanent_()"
        )
    reasons = left_out(tensors, include=include, exclude=exclude)
    layouts = quantized(tensors)
    codes = [name for name in sorted(layouts) if reasons[name] == _quantized(layouts[name])]
    if codes:
        found = describe_first(codes, lambda name: f"{name!r} ({layouts[name]})", ", ")
        raise CheckpointError(
            f"quantized weights cannot be pruned: {found}; prune the checkpoint before it is "
            "quantized, or dequantize it, or leave these tensors out with --exclude"
        )
    chosen = {name: tensors[name] for name in sorted(tensors) if name not in reasons}
    if not chosen:
        why = "; ".join(f"{len(names)} {reason}" for reason, names in group(reasons).items())
        raise CheckpointError(f"there is nothing to prune: {why or 'there are no tensors'}")
    return chosen


def left_out(
    tensors: NamedTensors, *, include: Sequence[str] = (), exclude: Sequence[str] = ()
) -> dict[str, str]:
    """Return why tensors are not pruned, for each tensor that `choose` does not choose.

    Weights are floating point tensors of bfloat16, float16, float32 or float64, of at least two
    dimensions, that are not quantized. Tensors whose name says that they are not weights are left
    out: those that `gprune.prunable` leaves out, scales, and buffers of constants such as causal
    masks. To prune a tensor in spite of its name, give its whole name to `include`.

    Args:
        tensors: the tensors of a checkpoint, by name.
        include: globs of names, as in `choose`. If one of them is the whole name of a tensor, what
            that name says is ignored.
        exclude: globs of names, as in `choose`.

    Returns:
        The reasons by name. A reason is the end of a sentence that begins with a number of tensors.

    Example:
        >>> import torch
        >>> from gprune import checkpoints
        >>> checkpoints.left_out({"fc.weight": torch.ones(2, 2), "fc.bias": torch.ones(2)})
        {'fc.bias': 'of fewer than two dimensions'}
    """
    included, excluded = predicate(include or "*"), predicate(exclude)
    layouts, weights = quantized(tensors), gp.prunable(tensors)
    pairs = [_codes_and_scales(name, tensors) for name in tensors]
    scales = {pair[1] for pair in pairs if pair is not None}
    reasons = {}
    for name, tensor in sorted(tensors.items()):
        if not included(name, tensor):
            reasons[name] = "matched by no --include"
        elif excluded(name, tensor):
            reasons[name] = "matched by --exclude"
        elif name in layouts:
            reasons[name] = _quantized(layouts[name])
        elif tensor.dim() < 2:
            reasons[name] = "of fewer than two dimensions"
        elif tensor.numel() == 0:
            reasons[name] = "without entries"
        elif tensor.dtype not in DTYPES:
            reasons[name] = f"of dtype {tensor.dtype}, which is not ranked"
        elif name in scales:
            reasons[name] = SCALE
        elif name not in include and (reason := _named(name, weights[name] is None)):
            reasons[name] = reason
    return reasons


def quantized(tensors: NamedTensors) -> dict[str, str]:
    """Return the quantized weights of a checkpoint, which cannot be pruned.

    They are recognised by their dtype, or by the names of their codes and scales.

    Args:
        tensors: the tensors of a checkpoint, by name.

    Returns:
        The layout of each quantized weight, by the name of the tensor that holds its entries.

    Example:
        >>> import torch
        >>> from gprune import checkpoints
        >>> codes, scales = torch.ones(2, 2, dtype=torch.int32), torch.ones(2)
        >>> checkpoints.quantized({"fc.qweight": codes, "fc.scales": scales})
        {'fc.qweight': 'GPTQ or AWQ'}
    """
    found = {}
    for name, tensor in tensors.items():
        if tensor.dtype in NARROW_DTYPES and tensor.dim() >= 2 and not _is_scale(name):
            found[name] = NARROW_DTYPES[tensor.dtype]
        elif (pair := _codes_and_scales(name, tensors)) is not None:
            found[name], _ = pair
    return found


def group(reasons: dict[str, str]) -> dict[str, list[str]]:
    """Return the names for each reason, the most frequent reason first.

    Args:
        reasons: a reason for each name, from `left_out` or `uncounted`.

    Returns:
        The names for each reason, in the order of `reasons`.

    Example:
        >>> from gprune import checkpoints
        >>> reasons = {"x": "matched by --exclude", "a.bias": "of fewer than two dimensions"}
        >>> reasons["b.bias"] = "of fewer than two dimensions"
        >>> checkpoints.group(reasons)
        {'of fewer than two dimensions': ['a.bias', 'b.bias'], 'matched by --exclude': ['x']}
    """
    names: dict[str, list[str]] = {}
    for name, reason in reasons.items():
        names.setdefault(reason, []).append(name)
    return dict(sorted(names.items(), key=lambda item: -len(item[1])))


def _codes_and_scales(name: str, tensors: NamedTensors) -> tuple[str, str] | None:
    """Return the layout and the name of the scales if a tensor holds the codes of a weight."""
    if tensors[name].dtype not in (*DTYPES, torch.bool):
        for layout in LAYOUTS:
            scales = name.removesuffix(layout.codes) + layout.scales
            if name.endswith(layout.codes) and scales in tensors:
                return layout.title, scales
    return None


def _quantized(layout: str) -> str:
    return f"quantized ({layout})"


def _named(name: str, is_no_weight: bool) -> str | None:
    """Return why a matrix is no weight by its name, or `None`."""
    if _is_scale(name):
        return SCALE
    if is_no_weight:
        return "with the name of a bias, norm, token or position, or the shape of its bias"
    return "with the name of a constant" if _parts(name) & CONSTANTS else None


def _is_scale(name: str) -> bool:
    return name.rpartition(".")[2] in NORMS or bool(_parts(name) & SCALES)


def _parts(name: str) -> set[str]:
    return set(name.rpartition(".")[2].split("_"))
