"""Named assertions over trees: every failing leaf, by its path, in one message."""

import math
from typing import Any

import torch

from tests.support import reference


def fail_if(problems: list[str]) -> None:
    assert not problems, "\n".join(["", *problems])


def assert_same_structure(tree: Any, params: Any) -> None:
    got, expected = reference.structure(tree), reference.structure(params)
    assert got == expected, f"structure {got}, expected that of params, {expected}"


def assert_are_masks(masks: Any, params: Any) -> None:
    """Bool, of each parameter's shape and device, contiguous, no gradient; `None` stays `None`."""
    assert_same_structure(masks, params)
    problems = []
    for path, mask, param in zip(
        reference.paths(params), reference.leaves(masks), reference.leaves(params), strict=True
    ):
        if param is None or mask is None:
            if mask is not param:
                problems.append(f"{path}: mask is {mask}, parameter is {param}")
            continue
        expected = (torch.bool, param.shape, param.device, True, False)
        got = (mask.dtype, mask.shape, mask.device, mask.is_contiguous(), mask.requires_grad)
        if got != expected:
            problems.append(f"{path}: (dtype, shape, device, contiguous, grad) is {got}")
    fail_if(problems)


def assert_masks(masks: Any, expected: reference.MaskLists, params: Any) -> None:
    """Masks in every respect, and with these entries."""
    assert_are_masks(masks, params)
    fail_if(
        [
            f"{path}: keeps {got}, expected {want}"
            for path, got, want in zip(
                reference.paths(params), reference.lists(masks), expected, strict=True
            )
            if got != want
        ]
    )


def assert_equal_masks(masks: Any, expected: Any, params: Any) -> None:
    assert_masks(masks, reference.lists(expected), params)


def assert_entries(tree: Any, expected: reference.Lists, like: Any) -> None:
    """Tensors of the same dtypes and shapes with these entries: NaN is NaN, -0.0 is not 0.0.

    An expected int stands for any zero or number equal to it.
    """
    assert_same_structure(tree, like)
    problems = []
    for path, got, want, leaf in zip(
        reference.paths(like), reference.leaves(tree), expected, reference.leaves(like), strict=True
    ):
        if got is None or want is None:
            if got is not want:
                problems.append(f"{path}: is {got}, expected {want}")
        elif (got.dtype, got.shape) != (leaf.dtype, leaf.shape):
            problems.append(f"{path}: is {got.dtype} of shape {tuple(got.shape)}")
        elif not all(map(same_number, reference.entries(got), want)):
            problems.append(f"{path}: holds {reference.entries(got)}, expected {want}")
    fail_if(problems)


def same_number(got: float, want: float) -> bool:
    if isinstance(want, int):
        return got == want
    if math.isnan(want):
        return math.isnan(got)
    return got == want and math.copysign(1, got) == math.copysign(1, want)


def assert_same(got: Any, expected: Any) -> None:
    """The same structure, dtypes and bits (NaN is NaN), whatever the leaves are."""
    assert_same_structure(got, expected)
    problems = []
    for path, a, b in zip(
        reference.paths(expected), reference.leaves(got), reference.leaves(expected), strict=True
    ):
        if isinstance(b, torch.Tensor):
            same = (a.dtype, a.shape) == (b.dtype, b.shape)
            same = same and repr(reference.entries(a)) == repr(reference.entries(b))
        else:
            same = a == b
        if not same:
            problems.append(f"{path}: is {a}, expected {b}")
    fail_if(problems)


def assert_subset(smaller: Any, larger: Any) -> None:
    """Whatever the first keeps, the second keeps."""
    fail_if(
        [
            f"{path}: {few} keeps what {many} does not"
            for path, few, many in zip(
                reference.paths(larger),
                reference.lists(smaller),
                reference.lists(larger),
                strict=True,
            )
            if few is not None and any(f and not m for f, m in zip(few, many, strict=True))
        ]
    )


def assert_threshold(got: Any, expected: reference.Threshold) -> None:
    """A float64 value and an int64 index, both 0-dim; -0.0 stands for 0.0."""
    assert got.value.dtype == torch.float64
    assert got.flat_index.dtype == torch.int64
    assert got.value.shape == got.flat_index.shape == ()
    value = got.value.item()
    same = value == expected.value or (math.isnan(value) and math.isnan(expected.value))
    assert same, f"threshold {got}, expected {expected}"
    assert got.flat_index.item() == expected.index, f"threshold {got}, expected {expected}"
