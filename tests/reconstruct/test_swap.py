"""Swaps of kept for pruned entries: against all pairs tried out, and never a larger error."""

import re
from typing import Any

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

import gprune as gp
from gprune.reconstruct import swap
from gprune.testing import assert_pure
from tests.support import reconstruct_reference as oracle
from tests.support.assertions import assert_are_masks, assert_same
from tests.support.reconstruct_cases import (
    GAP,
    GRAM,
    GROUPED,
    LAYOUTS,
    MASK,
    WEIGHT,
    WHERE,
    Case,
    any_case,
    bad_grams,
    gram_dtype,
    in_tree,
    orders,
    parts_of,
    stacked,
    tree,
)
from tests.support.transforms import assert_compiles, assert_vmaps

ROUNDING = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 1e-5}
"""Of an error, over the sum of the sizes of its terms: about a hundred roundings."""

group_sizes = st.none() | st.integers(2, 5)


def groups_for(case: Case, m: int | None) -> tuple[dict[str, int], oracle.Columns | None]:
    """The argument, and the groups that it stands for; a single input has none."""
    if m is None or case.weight.shape[1] == 1:
        return {}, None
    return {"m": m}, oracle.groups_of_columns([case.weight.shape[1]], m)


def sizes(case: Case) -> list[float]:
    """The sum of the sizes of all terms of the error of each row."""
    matrix = [[abs(x) for x in line] for line in case.matrix]
    return [oracle.quadratic([abs(x) for x in row], matrix) for row in case.rows]


# --- guarantees ----------------------------------------------------------------------------------


@given(any_case(), st.sampled_from([1, 2, 3, 100]), group_sizes)
def test_swap_is_the_oracle(case: Case, rounds: int, m: int | None) -> None:
    keywords, groups = groups_for(case, m)
    want, gap = oracle.swap(case.rows, case.keep, [case.matrix], rounds=rounds, groups=groups)
    assume(gap > GAP[case.weight.dtype] / 10)
    assert swap(case.weight, case.mask, case.gram, rounds=rounds, **keywords).tolist() == want


@given(any_case(ties=True), st.integers(1, 9), group_sizes)
def test_the_error_never_rises_and_counts_stay(case: Case, rounds: int, m: int | None) -> None:
    """Of no row, also where errors tie; counts of no row and of no group in it."""
    keywords, _ = groups_for(case, m)
    new = swap(case.weight, case.mask, case.gram, rounds=rounds, **keywords)
    assert_are_masks(new, case.weight)
    rows = zip(
        oracle.mask_errors(case.rows, new.tolist(), [case.matrix]),
        oracle.mask_errors(case.rows, case.keep, [case.matrix]),
        sizes(case),
        strict=True,
    )
    for after, before, size in rows:
        assert after <= before + ROUNDING[case.weight.dtype] * size
    columns = case.weight.shape[1]
    for got, was in zip(
        new.split(keywords.get("m", columns), dim=1),
        case.mask.split(keywords.get("m", columns), dim=1),
        strict=True,
    ):
        assert torch.equal(got.sum(1), was.sum(1))


@given(any_case(), group_sizes)
def test_at_the_end_no_exchange_lowers_the_error(case: Case, m: int | None) -> None:
    keywords, groups = groups_for(case, m)
    new = swap(case.weight, case.mask, case.gram, rounds=1000, **keywords).tolist()
    now = oracle.mask_errors(case.rows, new, [case.matrix])
    for row, mask, error, size in zip(case.rows, new, now, sizes(case), strict=True):
        for exchange in oracle.exchanges(row, mask, case.matrix, groups)[:1]:
            assert exchange.error >= error - ROUNDING[case.weight.dtype] * size


@given(any_case(ties=True), group_sizes)
def test_more_rounds_are_rounds_after_rounds(case: Case, m: int | None) -> None:
    """One at a time: the order of the exchanges is that of how much they lower the error."""
    keywords, groups = groups_for(case, m)
    gap = oracle.swap(case.rows, case.keep, [case.matrix], rounds=3, groups=groups)[1]
    assume(gap > GAP[case.weight.dtype] / 10)
    mask = case.mask
    for _ in range(3):
        mask = swap(case.weight, mask, case.gram, rounds=1, **keywords)
    assert_same(mask, swap(case.weight, case.mask, case.gram, rounds=3, **keywords))


@given(any_case(ties=True), st.booleans())
def test_rows_that_keep_all_or_nothing_have_no_exchange(case: Case, keeps: bool) -> None:
    mask = torch.full_like(case.mask, keeps)
    assert_same(swap(case.weight, mask, case.gram), mask)


@given(st.data())
def test_permuted_rows_and_inputs_are_permuted_results(data: st.DataObject) -> None:
    case = data.draw(any_case())
    gap = oracle.swap(case.rows, case.keep, [case.matrix], rounds=100)[1]
    assume(gap > GAP[case.weight.dtype] / 10)
    mask = swap(case.weight, case.mask, case.gram)
    rows = data.draw(orders(len(case.weight)))
    assert_same(swap(case.weight[rows], case.mask[rows], case.gram), mask[rows])
    order = data.draw(orders(case.weight.shape[1]))
    gram = case.gram[order][:, order]
    assert_same(swap(case.weight[:, order], case.mask[:, order], gram), mask[:, order])


@given(any_case(ties=True), st.sampled_from([2.0**-20, 2.0**20]))
def test_the_scale_does_not_matter(case: Case, scale: float) -> None:
    """Not a bit of a mask, where the scale is a power of 2 and rounds nothing."""
    mask = swap(case.weight, case.mask, case.gram)
    assert_same(swap(case.weight, case.mask, case.gram * scale), mask)
    assert_same(swap(case.weight * scale, case.mask, case.gram), mask)


def test_by_hand() -> None:
    """The first two inputs are opposite, so their weights make up for each other: both can go."""
    weight = torch.tensor([[2.0, 2.0, 1.0]])
    gram = torch.tensor([[1.0, -1.0, 0.0], [-1.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    mask = torch.tensor([[True, False, False]])
    assert swap(weight, mask, gram).tolist() == [[False, False, True]]
    assert swap(weight, mask, gram, m=2).tolist() == [[True, False, False]]  # of 2 and 1


# --- trees, layouts, dtypes ----------------------------------------------------------------------


@pytest.mark.parametrize("name", LAYOUTS)
def test_layouts(name: str) -> None:
    layout = LAYOUTS[name]
    weight, gram, mask = layout.draw()
    rows, keep = layout.rows_of(weight), layout.rows_of(mask)
    want, gap = oracle.swap(rows, keep, parts_of(gram), rounds=100)
    got = in_tree(swap, weight, mask, gram, **layout.keywords)
    assert gap > GAP[weight.dtype]
    assert torch.equal(got, layout.from_rows(want))
    assert got.is_contiguous()


@pytest.mark.parametrize("name", GROUPED)
def test_groups_lie_along_the_inputs_of_one_place_of_the_kernel(name: str) -> None:
    layout = LAYOUTS[name]
    along = layout.dims[0]
    weight, gram, _ = layout.draw()
    mask = gp.n_of_m(weight, n=1, m=2, dim=along)
    rows, keep = layout.rows_of(weight), layout.rows_of(mask)
    want, gap = oracle.swap(rows, keep, parts_of(gram), rounds=100, groups=layout.groups(2))
    got = in_tree(swap, weight, mask, gram, m=2, **layout.keywords)
    assert gap > GAP[weight.dtype]
    assert torch.equal(got, layout.from_rows(want))
    gp.check_n_of_m([got], n=1, m=2, dim=along)


def test_leaves_without_a_mask_have_none() -> None:
    weight, gram, mask = LAYOUTS["linear"].draw()
    params = {"fc": weight, "bias": torch.ones(4), "none": None}
    masks = {"fc": mask, "bias": None, "none": None}
    new = swap(params, masks, {"fc": gram, "bias": None, "none": None})
    assert_same(new, {"fc": swap(weight, mask, gram), "bias": None, "none": None})


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_dtypes(dtype: torch.dtype) -> None:
    """Errors are compared in float32 at least."""
    weight, gram, mask = LAYOUTS["linear"].draw()
    weight, gram = weight.to(dtype), gram.to(gram_dtype(dtype))
    want, _ = oracle.swap(weight.double().tolist(), mask.tolist(), parts_of(gram), rounds=100)
    assert swap(weight, mask, gram).tolist() == want


def test_a_weight_of_some_size_is_the_oracle() -> None:
    """From half of each row by magnitude to an error that is much lower."""
    generator = torch.Generator().manual_seed(0)
    shared = torch.randn(60, 3, generator=generator) @ torch.randn(3, 24, generator=generator)
    x = (torch.randn(60, 24, generator=generator) + 2 * shared).double()
    weight = torch.randn(3, 24, generator=generator).double()
    gram, mask = x.mT @ x, gp.layerwise(weight, amount=0.5, dim=1)
    want, _ = oracle.swap(weight.tolist(), mask.tolist(), parts_of(gram), rounds=5)
    assert swap(weight, mask, gram, rounds=5).tolist() == want
    before = sum(oracle.mask_errors(weight.tolist(), mask.tolist(), parts_of(gram)))
    end = swap(weight, mask, gram).tolist()
    assert sum(oracle.mask_errors(weight.tolist(), end, parts_of(gram))) < before / 2


@given(any_case())
def test_inputs_do_not_change(case: Case) -> None:
    assert_pure(swap, {"w": case.weight}, {"w": case.mask}, {"w": case.gram})


def test_empty_leaves() -> None:
    for rows, columns in ((0, 3), (2, 0)):
        weight = torch.ones(rows, columns)
        assert swap(weight, weight.bool(), torch.eye(columns)).shape == weight.shape


# --- transforms ----------------------------------------------------------------------------------


def unstructured(leaves: Any) -> Any:
    return swap(leaves["w"], leaves["mask"], leaves["gram"], rounds=5)


def in_groups(leaves: Any) -> Any:
    return swap(leaves["w"], leaves["mask"], leaves["gram"], rounds=5, m=2)


@pytest.mark.parametrize("call", [unstructured, in_groups])
@pytest.mark.parametrize("name", ["linear", "convolution in two"])
def test_vmap_over_layers_is_a_loop(call: Any, name: str) -> None:
    """Masks are equal: rows of different layers need different numbers of rounds."""
    assert_vmaps(call, stacked(name))


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("call", [unstructured, in_groups])
def test_one_graph(call: Any, backend: str) -> None:
    layers = stacked("linear")
    inputs = [{name: leaf[i] for name, leaf in layers.items()} for i in range(2)]
    assert_compiles(call, inputs, backend)


# --- bad inputs ----------------------------------------------------------------------------------


@bad_grams
def test_a_bad_gram_matrix_is_refused(gram: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words) as raised:
        swap(tree(WEIGHT), tree(MASK), tree(gram))
    assert re.search(WHERE, str(raised.value))


@pytest.mark.parametrize(
    ("masks", "error", "words"),
    [
        (tree(MASK.float()), TypeError, "bool"),
        (tree(MASK[:2]), ValueError, "shape"),
        ({"fc": {"bias": MASK}}, ValueError, "(?i)structure"),
    ],
    ids=["float", "shape", "structure"],
)
def test_bad_masks_are_refused(masks: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        swap(tree(WEIGHT), masks, tree(GRAM))


@pytest.mark.parametrize(
    ("keywords", "words"),
    [
        ({"rounds": 0}, "rounds"),
        ({"rounds": -1}, "rounds"),
        ({"rounds": 1.5}, "rounds"),
        ({"rounds": True}, "rounds"),
        ({"m": 0}, r"\bm\b"),
        ({"m": -2}, r"\bm\b"),
        ({"m": 2.0}, r"\bm\b"),
    ],
    ids=str,
)
def test_bad_numbers_are_refused(keywords: dict[str, Any], words: str) -> None:
    with pytest.raises((TypeError, ValueError), match=words):
        swap(tree(WEIGHT), tree(MASK), tree(GRAM), **keywords)


def test_weights_that_are_not_finite_are_refused() -> None:
    weight = WEIGHT.clone()
    weight[1, 0] = float("nan")
    with pytest.raises(ValueError, match=r"(?i)nan|finite"):
        swap(tree(weight), tree(MASK), tree(GRAM))


def test_integer_weights_are_refused() -> None:
    with pytest.raises(TypeError, match=WHERE):
        swap(tree(WEIGHT.long()), tree(MASK), tree(GRAM))


@pytest.mark.parametrize("unit", [1e-28, 1e-20, 1e20, 1e28])
def test_weights_and_inputs_of_any_unit(unit: float) -> None:
    """Products of two weights would be 0 or infinite in float32."""
    draw = torch.Generator().manual_seed(0)
    weight, inputs = torch.randn(6, 12, generator=draw), torch.randn(40, 12, generator=draw)
    gram, mask = inputs.mT @ inputs, torch.arange(12).expand(6, 12) % 2 == 0
    better = swap(weight, mask, gram)
    assert not torch.equal(better, mask)
    for scaled in (gram, gram * unit):
        assert torch.equal(swap(weight * unit, mask, scaled), better)
