"""The operators: selection as torch.library custom operators, opaque to every transform.

The control flow of the search depends on data, so `torch.compile` cannot trace it. An operator is
one node of the graph instead: a list of tensors in, a list of new bool masks out. Each operator has
a fake rule (shapes, for tracing, `meta` and export) and a batching rule (for `vmap`). None of them
has a gradient: masks are piecewise constant, and the inputs are detached before they get here. The
one operator with a gradient, `mask_with_decay`, applies masks. The others are `cudagraph_unsafe`,
because the host reads counts.

The arguments `call` and `layout` are for DTensors, and only operators that take DTensors have them.
A public function passes `call`, which names the function and the leaves. If an operator gets
DTensors, `gprune.select.dtensors` calls it again with their local shards and with a description of
their `layout`.

Under `vmap` an operator is called once for each element of the batch. Three cases are faster. The
entries of small models become the rows of one matrix, which one operator prunes. Many amounts of
one model become one search for many thresholds. `all_finite` checks the whole batch at once.

Errors about values, such as an amount that is out of range, are raised here, in eager and in
compiled code.
"""

# No `from __future__ import annotations`: the schemas are inferred from the annotations themselves.

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Optional

import torch
from torch import Tensor
from torch._functorch.utils import enable_single_level_autograd_function
from torch.autograd.forward_ad import _set_fwd_grad_enabled
from torch.autograd.function import _SingleLevelFunction

from gprune.inputs import float64_device
from gprune.select import blocks, rows
from gprune.select.blocks import RankedLeaves
from gprune.select.counter_rng import draw
from gprune.select.counts import resolve_amount, resolve_sparsity, share_out
from gprune.select.outliers import outlier_shares
from gprune.select.partition import empty_masks
from gprune.select.refine import OneProcess, Reduce
from gprune.select.search import (
    find_thresholds,
    select_above_floors,
    select_into,
    write_at,
)

TAGS = (torch.Tag.cudagraph_unsafe,)
Prepared = AbstractContextManager[tuple[RankedLeaves, Reduce, list[Tensor]]]


def operator_with_masks(name: str) -> Callable[[Callable[..., Any]], Any]:
    """Make an operator whose argument `masks`, a list, may be `None`, which is an empty list.

    A program that AOTInductor has compiled passes `None` for an empty list of tensors. The
    annotation `Optional[list[Tensor]]` is refused by the schema inference of torch.

    Args:
        name: the name of the operator.

    Returns:
        A decorator of the function of the operator.
    """

    def decorate(function: Callable[..., Any]) -> Any:
        schema = torch.library.infer_schema(function, mutates_args=())
        schema = schema.replace("Tensor[] masks", "Tensor[]? masks")
        make = torch.library.custom_op(name, mutates_args=(), tags=TAGS, schema=schema)
        return make(function)

    return decorate


def prepare(
    scores: list[Tensor],
    masks: list[Tensor],
    absolute: bool,
    seed: Tensor | None,
    call: str,
    layout: str,
    *arguments: object,
    needs_masks: bool = False,
) -> Prepared:
    """Prepare a call of an operator: check the scores, and that all ranks make the same call.

    Args:
        scores: one tensor per leaf, or its local shard.
        masks: their prior masks, or an empty list; `None` is an empty list too.
        absolute: whether to rank by absolute value.
        seed: if given, random draws are ranked in place of the scores.
        call: see `select`.
        layout: see `select`.
        *arguments: what else must be the same on all ranks: tensors and plain values.
        needs_masks: whether new masks are needed.

    Returns:
        A context manager. It yields the leaves that are ranked, the object that sums counts over
        the processes, and new masks, if they are needed. Errors inside its block are raised on all
        ranks.
    """
    masks = masks or []
    if layout:
        from gprune.select.shards import open_shards

        return open_shards(scores, masks, absolute, seed, call, layout, arguments, needs_masks)
    ranked = RankedLeaves(scores, masks, absolute, None if seed is None else int(seed.item()))
    ranked.check_int64_range()
    return nullcontext((ranked, OneProcess(), empty_masks(scores) if needs_masks else []))


@operator_with_masks("gprune::select")
def select(
    scores: list[Tensor],
    masks: list[Tensor],
    amounts: list[Tensor],
    seed: Optional[Tensor],  # noqa: UP045  the schema inference of torch 2.10 takes this spelling
    min_per_leaf: Optional[Tensor],  # noqa: UP045  as the line before
    absolute: bool,
    is_sparsity: bool,
    call: str,
    layout: str = "",
) -> list[Tensor]:
    """Find thresholds and make the masks at them.

    Args:
        scores: one tensor per prunable leaf.
        masks: their prior masks, or an empty list; `None` is an empty list too.
        amounts: one, to rank all leaves together; or one per leaf, to rank each leaf alone.
        seed: if given, random draws are ranked.
        min_per_leaf: if given, how many entries each leaf keeps at least, or the fraction of them;
            then there is one amount.
        absolute: whether to rank by absolute value.
        is_sparsity: whether the amounts are sparsities.
        call: for DTensors the public function and the paths of the leaves; otherwise not used.
        layout: for local shards, how they are placed; otherwise empty.

    Returns:
        The masks, one per leaf.
    """
    arguments = is_sparsity, min_per_leaf, *amounts
    prepared = prepare(scores, masks, absolute, seed, call, layout, *arguments, needs_masks=True)
    with prepared as (ranked, reduce, kept):
        if min_per_leaf is None:
            select_into(kept, ranked, amounts, is_sparsity, reduce)
        else:
            [amount] = amounts
            select_above_floors(kept, ranked, amount, is_sparsity, min_per_leaf, reduce)
        return kept


@operator_with_masks("gprune::select_rows")
def select_rows(
    scores: Tensor, masks: list[Tensor], amount: Tensor, absolute: bool, is_sparsity: bool
) -> Tensor:
    """Prune each row of a matrix by an amount or a sparsity; `masks` is [prior mask] or empty."""
    RankedLeaves([scores], masks or []).check_int64_range()
    prior = masks[0] if masks else None
    return rows.prune_rows(scores, prior, amount, absolute=absolute, is_sparsity=is_sparsity)


@operator_with_masks("gprune::find_threshold")
def find_threshold(
    scores: list[Tensor],
    masks: list[Tensor],
    amount: Tensor,
    absolute: bool,
    is_sparsity: bool,
    call: str,
    layout: str = "",
) -> tuple[Tensor, Tensor]:
    """Find a threshold for every amount of a tensor; the other arguments are those of `select`."""
    arguments = is_sparsity, amount
    with prepare(scores, masks, absolute, None, call, layout, *arguments) as (ranked, reduce, _):
        return find_thresholds(ranked, amount, is_sparsity, reduce)


@operator_with_masks("gprune::masks_from_threshold")
def masks_from_threshold(
    value: Tensor,
    index: Tensor,
    scores: list[Tensor],
    masks: list[Tensor],
    absolute: bool,
    call: str,
    layout: str = "",
) -> list[Tensor]:
    """Make the masks at a threshold; the other arguments are those of `select`."""
    prepared = prepare(scores, masks, absolute, None, call, layout, value, index, needs_masks=True)
    with prepared as (ranked, reduce, kept):
        write_at(kept, ranked, value, index, reduce)
        return kept


@torch.library.custom_op("gprune::num_to_prune", mutates_args=(), tags=TAGS)
def num_to_prune(amount: Tensor, candidates: int) -> Tensor:
    """Return how many candidates an amount prunes."""
    return torch.tensor(resolve_amount(amount, candidates), dtype=torch.int64, device="cpu")


@torch.library.custom_op("gprune::random_scores", mutates_args=(), tags=TAGS)
def random_scores(leaves: list[Tensor], seed: Tensor, call: str, layout: str = "") -> list[Tensor]:
    """Draw the scores that `select` ranks if it has a seed. No messages are sent."""
    seed_value, slices = int(seed.item()), None
    if layout:
        from gprune.select.shards import from_text

        slices = from_text(layout).slices()
    drawn = []
    for i, leaf in enumerate(leaves):
        # on the CPU where the device of the leaf has no float64
        index = torch.arange(leaf.numel(), device=float64_device(leaf.device))
        index = index if slices is None else slices[i].leaf_index(index)
        drawn.append(draw(seed_value, i, index).view(leaf.shape))
    return drawn


@torch.library.custom_op("gprune::all_finite", mutates_args=(), tags=TAGS)
def all_finite(leaves: list[Tensor], call: str, layout: str = "") -> Tensor:
    """Return, for each leaf, whether all entries are finite: of the whole batch under `vmap`."""

    def count() -> Tensor:
        # aminmax returns NaN if there is one, and takes one pass; isfinite takes several
        found = [
            torch.stack(x.aminmax()).isfinite().all() if x.numel() else torch.ones((), device="cpu")
            for x in leaves
        ]
        by_device: dict[torch.device, list[int]] = {}
        for i, is_finite in enumerate(found):
            by_device.setdefault(is_finite.device, []).append(i)
        wrong = torch.zeros(len(leaves), dtype=torch.int64, device="cpu")
        for numbers in by_device.values():  # all leaves of a device are read together
            finite = torch.stack([found[i].to(torch.bool) for i in numbers]).cpu()
            wrong[torch.tensor(numbers, device="cpu")] = finite.logical_not().to(torch.int64)
        return wrong

    with prepare(leaves, [], False, None, call, layout) as (_, reduce, _):
        return reduce.sum("checking that all entries are finite", len(leaves), count) == 0


@torch.library.custom_op("gprune::count_pruned", mutates_args=(), tags=TAGS)
def count_pruned(masks: list[Tensor], call: str, layout: str = "") -> Tensor:
    """Count the pruned entries of each mask, as int64 on the device of the first mask."""
    with prepare(masks, [], False, None, call, layout) as (ranked, reduce, _):

        def count() -> Tensor:
            numbers = [mask.numel() - mask.count_nonzero().cpu() for mask in masks]
            is_counted = ranked.counted or [True] * len(masks)
            return torch.stack(numbers) * torch.tensor(is_counted, device="cpu")

        return reduce.sum("counting the pruned entries", len(masks), count).to(masks[0].device)


@torch.library.custom_op("gprune::relative_outliers", mutates_args=(), tags=TAGS)
def relative_outliers(
    scores: list[Tensor], groups: list[int], outlier: float, call: str, layout: str = ""
) -> Tensor:
    """Compare how many outliers the groups of leaves have; see `outlier_shares`.

    Args:
        scores: one tensor per leaf.
        groups: the number of the group of each leaf.
        outlier: how many times the mean of its group a score must exceed.
        call: see `select`.
        layout: see `select`.

    Returns:
        For each leaf (D - min D) / (max D - min D), where D is the share of outliers of its group;
        0 if all groups have the same D, or the group has no entries. float64, on the CPU.
    """
    with prepare(scores, [], False, None, call, layout, groups, outlier) as (ranked, reduce, _):
        is_counted = ranked.counted or [True] * len(scores)
        shares = outlier_shares(scores, groups, outlier, is_counted, reduce)
    known = [share for share in shares if not math.isnan(share)]
    low, high = min(known, default=0.0), max(known, default=0.0)
    relative = [0.0 if math.isnan(d) or low == high else (d - low) / (high - low) for d in shares]
    return torch.tensor([relative[g] for g in groups], dtype=torch.float64, device="cpu")


@torch.library.custom_op("gprune::apportion", mutates_args=(), tags=TAGS)
def apportion(
    sparsity: Tensor,
    sizes: list[int],
    weights: list[float],
    low: list[int],
    high: list[int],
    shifts: Optional[Tensor] = None,  # noqa: UP045  the schema inference of torch 2.10 takes this
) -> list[Tensor]:
    """Divide the entries that a sparsity keeps among the leaves, in proportion to weights.

    Args:
        sparsity: the sparsity of all leaves together.
        sizes: how many entries each leaf has.
        weights: a number for each leaf, to which its kept entries are proportional.
        low: the fewest entries that each leaf may keep.
        high: the most entries that each leaf may keep.
        shifts: for each leaf how many entries it keeps beyond its proportion; 1-D, float64.

    Returns:
        The sparsity of each leaf.

    Raises:
        ValueError: if the bounds do not allow the total.
    """
    entries = sum(sizes)
    total = entries - resolve_sparsity(sparsity, entries, entries)
    if not sum(low) <= total <= sum(high):
        raise ValueError(
            f"sparsity {sparsity.item():g} keeps {total} of {entries} entries, but overrides "
            f"and min_kept allow only from {sum(low)} to {sum(high)}; change one of them"
        )
    counts = share_out(total, weights, low, high, None if shifts is None else shifts.tolist())
    return [
        torch.tensor((size - count) / max(1, size), dtype=torch.float64, device="cpu")
        for count, size in zip(counts, sizes, strict=True)
    ]


# --- masking with decay ---------------------------------------------------------------------------
#
# Its gradient has a term that does not depend on the gradient of the result. No composition of
# torch's operators has such a gradient. Two public ways to write it do not work everywhere: in
# torch 2.10 to 2.14, `torch.compile` drops the `backward` of a `torch.autograd.Function` inside
# `torch.func.grad`, or cannot trace it (pytorch/pytorch#193279), and an operator with
# `register_autograd` does not work inside `torch.func.grad` at all. So the derivative is a kernel
# for the dispatch key Autograd, as operators in C++ have.

MASK_WITH_DECAY = "gprune::mask_with_decay"
torch.library.define(MASK_WITH_DECAY, "(Tensor leaf, Tensor mask, Tensor decay) -> Tensor")


def mask_with_decay(leaf: Tensor, mask: Tensor, decay: Tensor) -> Tensor:
    """Mask a leaf; its gradient is that of the result, plus `decay` times the masked values.

    Args:
        leaf: a floating point or complex tensor.
        mask: its mask.
        decay: 0-dim, or of a shape that broadcasts to that of the leaf.

    Returns:
        The leaf, with zeros where it is masked.
    """
    masked: Tensor = torch.ops.gprune.mask_with_decay.default(leaf, mask, decay)
    return masked


@torch.library.impl(MASK_WITH_DECAY, "CompositeExplicitAutograd")
def _mask(leaf: Tensor, mask: Tensor, decay: Tensor) -> Tensor:
    return torch.where(mask, leaf, leaf.new_zeros(()))


class _MaskWithDecay(_SingleLevelFunction):
    """The derivative of `mask_with_decay` at one level of nested transforms."""

    @staticmethod
    def forward(ctx: Any, leaf: Tensor, mask: Tensor, decay: Tensor) -> Tensor:
        ctx.save_for_backward(leaf, mask, decay)
        # the other levels differentiate the operator themselves
        with (
            torch.enable_grad(),
            _set_fwd_grad_enabled(True),
            torch._C._AutoDispatchBelowAutograd(),
        ):
            return mask_with_decay(leaf, mask, decay)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        leaf, mask, decay = ctx.saved_tensors
        zero = leaf.new_zeros(())
        decayed = grad + decay.to(leaf.device, leaf.dtype) * torch.where(mask, zero, leaf)
        return torch.where(mask | leaf.isfinite(), decayed, zero), None, None


@torch.library.impl(MASK_WITH_DECAY, "Autograd")
def _mask_with_derivative(leaf: Tensor, mask: Tensor, decay: Tensor) -> Tensor:
    with enable_single_level_autograd_function():
        # the metaclass of torch's single-level functions adds `apply`, which mypy does not see
        masked: Tensor = _MaskWithDecay.apply(leaf, mask, decay)  # type: ignore[attr-defined]
        return masked


# --- batching rules: what `vmap` does with an operator -------------------------------------------


def vmap_by_loop(operator: Callable[..., Any]) -> Callable[..., tuple[Any, Any]]:
    """Make the rule that calls an operator for each element of the batch and stacks the results.

    Args:
        operator: takes tensors, lists of tensors and plain values; returns one or more tensors.

    Returns:
        The rule that `register_vmap` takes.
    """

    def rule(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Any, Any]:
        if info.batch_size == 0:
            raise ValueError("torch.vmap got an empty batch; gprune needs at least one element")
        calls = [operator(*_element(args, in_dims, i)) for i in range(info.batch_size)]
        if isinstance(calls[0], Tensor):
            return torch.stack(calls), 0
        stacked = [torch.stack(outputs) for outputs in zip(*calls, strict=True)]
        return type(calls[0])(stacked), type(calls[0])([0] * len(stacked))

    return rule


def vmap_of_find_threshold(find_threshold: Callable[..., Any]) -> Callable[..., tuple[Any, Any]]:
    """Make the rule of `find_threshold`: many amounts in one search, many models in a loop.

    Args:
        find_threshold: the operator, which takes an amount of any shape.

    Returns:
        The rule that `register_vmap` takes.
    """
    loop = vmap_by_loop(find_threshold)

    def rule(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Any, Any]:
        scores, masks, amount, absolute, sparsity, call = args
        if info.batch_size == 0 or _any_batched(in_dims[0], in_dims[1]):
            return loop(info, in_dims, *args)
        amounts = amount.movedim(in_dims[2], 0).contiguous()
        return find_threshold(scores, masks, amounts, absolute, sparsity, call), (0, 0)

    return rule


def vmap_of_select(
    select: Callable[..., list[Tensor]],
    select_rows: Callable[..., Tensor],
    find_threshold: Callable[..., tuple[Tensor, Tensor]],
    masks_from_threshold: Callable[..., list[Tensor]],
) -> Callable[..., tuple[Any, Any]]:
    """Make the rule of `select`: many amounts at once, many small models at once, or a loop.

    Args:
        select: the operator that the rule is for.
        select_rows: the operator that prunes each row of a matrix.
        find_threshold: the operator that finds the thresholds of many amounts in one search.
        masks_from_threshold: the operator that makes the masks at one threshold.

    Returns:
        The rule that `register_vmap` takes.
    """
    loop = vmap_by_loop(select)

    def rule(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Any, Any]:
        scores, masks, amounts, seed, min_per_leaf, absolute, sparsity, call = args
        has_options = seed is not None or min_per_leaf is not None
        if info.batch_size == 0 or has_options or len(amounts) > 1:
            return loop(info, in_dims, *args)
        if not _any_batched(in_dims[0], in_dims[1]):
            many = amounts[0].movedim(in_dims[2][0], 0).contiguous()
            found = zip(*find_threshold(scores, masks, many, absolute, sparsity, call), strict=True)
            calls = [masks_from_threshold(*one, scores, masks, absolute, call) for one in found]
            return [torch.stack(outputs) for outputs in zip(*calls, strict=True)], [0] * len(scores)
        if call:  # DTensors, of which no rank has whole models to make rows of
            return loop(info, in_dims, *args)
        alike = len({(leaf.dtype, leaf.device) for leaf in scores}) == 1
        RankedLeaves(scores, []).check_int64_range()  # an error names the leaf
        leaves = [_batched(*pair, info) for pair in zip(scores, in_dims[0], strict=True)]
        sizes = [leaf[0].numel() for leaf in leaves]
        if in_dims[2][0] is not None or not alike or sum(sizes) > blocks.BLOCK // 8:
            return loop(info, in_dims, *args)
        priors = [_batched(*pair, info) for pair in zip(masks, in_dims[1], strict=True)]
        prior = [_joined(priors)] if priors else []
        kept = select_rows(_joined(leaves), prior, amounts[0], absolute, sparsity)
        parts = torch.split(kept, sizes, dim=1)
        result = [part.reshape(leaf.shape) for part, leaf in zip(parts, leaves, strict=True)]
        return result, [0] * len(result)

    return rule


def _vmap_of_mask_with_decay(info: Any, in_dims: tuple[Any, ...], *args: Tensor) -> tuple[Any, int]:
    """Mask the whole batch at once."""
    leaf, mask, decay = (_batched(*pair, info) for pair in zip(args, in_dims, strict=True))
    return mask_with_decay(leaf, mask, decay.view(-1, *[1] * (leaf.dim() - 1))), 0


def _any_batched(*in_dims: Any) -> bool:
    """Return whether any tensor of some lists is batched."""
    return any(dim is not None for dims in in_dims if dims is not None for dim in dims)


def _batched(leaf: Tensor, dim: int | None, info: Any) -> Tensor:
    """Move the batch dim to the front; expand a leaf that has none."""
    return leaf.expand(info.batch_size, *leaf.shape) if dim is None else leaf.movedim(dim, 0)


def _joined(leaves: list[Tensor]) -> Tensor:
    """Concatenate the entries of each model into a row."""
    return torch.cat([leaf.reshape(len(leaf), math.prod(leaf.shape[1:])) for leaf in leaves], dim=1)


def _element(argument: Any, in_dim: Any, i: int) -> Any:
    """Return an argument with element i of every batched tensor, also of those inside lists."""
    if isinstance(argument, list | tuple):
        dims = in_dim if isinstance(in_dim, list | tuple) else [in_dim] * len(argument)
        return [_element(part, dim, i) for part, dim in zip(argument, dims, strict=True)]
    return argument if in_dim is None else argument.select(in_dim, i)


# --- fake rules: shapes and devices without values ------------------------------------------------


def _fake_threshold(
    scores: list[Tensor], masks: list[Tensor], amount: Tensor, *_: object
) -> tuple[Tensor, Tensor]:
    device = "meta" if any(leaf.is_meta for leaf in scores) else "cpu"
    value = torch.empty(amount.shape, dtype=torch.float64, device=device)
    return value, torch.empty(amount.shape, dtype=torch.int64, device=device)


def _fake_draws(leaves: list[Tensor], *_: object) -> list[Tensor]:
    return [
        torch.empty(x.shape, dtype=torch.float64, device=float64_device(x.device)) for x in leaves
    ]


def _fake_sparsities(
    sparsity: Tensor,
    sizes: list[int],
    weights: list[float],
    low: list[int],
    high: list[int],
    shifts: Tensor | None = None,
) -> list[Tensor]:
    device = "cpu" if shifts is None else shifts.device
    return [torch.empty((), dtype=torch.float64, device=device) for _ in sizes]


select.register_fake(lambda scores, *_: empty_masks(scores))
select_rows.register_fake(lambda scores, *_: empty_masks([scores])[0])
find_threshold.register_fake(_fake_threshold)
masks_from_threshold.register_fake(lambda value, index, scores, *_: empty_masks(scores))
num_to_prune.register_fake(lambda *_: torch.empty((), dtype=torch.int64, device="cpu"))
random_scores.register_fake(_fake_draws)
all_finite.register_fake(lambda leaves, *_: torch.ones(len(leaves), dtype=torch.bool, device="cpu"))
count_pruned.register_fake(lambda masks, *_: masks[0].new_empty(len(masks), dtype=torch.int64))
apportion.register_fake(_fake_sparsities)
relative_outliers.register_fake(
    lambda scores, *_: torch.empty(
        len(scores), dtype=torch.float64, device="meta" if any(x.is_meta for x in scores) else "cpu"
    )
)

select.register_vmap(vmap_of_select(select, select_rows, find_threshold, masks_from_threshold))
find_threshold.register_vmap(vmap_of_find_threshold(find_threshold))
for _operator in (
    select_rows,
    masks_from_threshold,
    num_to_prune,
    random_scores,
    count_pruned,
    relative_outliers,
    apportion,
):
    _operator.register_vmap(vmap_by_loop(_operator))
torch.library.register_vmap(MASK_WITH_DECAY, _vmap_of_mask_with_decay)
all_finite.register_vmap(lambda info, in_dims, *args: (all_finite(*args), None))
