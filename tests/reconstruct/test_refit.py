"""Weights refitted to a mask: against elimination, and the guarantees of least squares."""

import contextlib
import re
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gprune.reconstruct import refit
from gprune.testing import assert_pure
from tests.support import reconstruct_reference as oracle
from tests.support.assertions import assert_same
from tests.support.reconstruct_cases import (
    GRAM,
    LAYOUTS,
    MASK,
    TOLERANCE,
    WEIGHT,
    WHERE,
    Case,
    any_case,
    assert_near,
    bad_grams,
    cases,
    gram_dtype,
    in_tree,
    orders,
    parts_of,
    stacked,
    tree,
)
from tests.support.transforms import assert_compiles, assert_vmaps


def refitted(case: Case) -> torch.Tensor:
    return refit(case.weight, case.mask, case.gram, damping=case.damping)


# --- guarantees ---------------------------------------------------------------------------------


@given(any_case())
def test_refit_is_the_oracle(case: Case) -> None:
    want = oracle.refit(case.rows, case.keep, [case.matrix], case.damping)
    assert_near(refitted(case), want, case.weight)


@given(any_case())
def test_pruned_entries_are_zero(case: Case) -> None:
    """Exactly, and zeros of their own accord where a row keeps nothing."""
    new = refitted(case)
    assert (new[~case.mask] == 0).all()
    assert new.isfinite().all()


@given(st.sampled_from([torch.float32, torch.float64]).flatmap(cases))
def test_the_normal_equations_hold(case: Case) -> None:
    """On what is kept: H[K, :] (w - v) = 0, over the sizes of the terms of this sum."""
    h = oracle.damped(case.matrix, case.damping)
    for row, mask, new in zip(case.rows, case.keep, refitted(case).tolist(), strict=True):
        left = [w - v for w, v in zip(row, new, strict=True)]
        scale = max(map(abs, [*row, *new])) * max(map(max, h)) * len(row)
        for line, kept in zip(h, mask, strict=True):
            assert not kept or abs(oracle.dot(line, left)) <= TOLERANCE[case.weight.dtype] * scale


@given(any_case(), st.integers(0, 48))
def test_refit_is_never_worse_than_the_masked_weights_or_sparsegpt(case: Case, k: int) -> None:
    """In the damped objective, for the same mask."""
    h = [oracle.damped(case.matrix, case.damping)]
    k = min(k, case.weight.numel())
    chosen = oracle.sparsegpt(case.rows, [case.matrix], case.damping, k=k, block_size=3)
    for keep, other in (
        (case.keep, oracle.masked(case.rows, case.keep)),
        (chosen.keep, oracle.masked(case.rows, chosen.keep)),
        (chosen.keep, chosen.weight),
    ):
        new = refit(case.weight, torch.tensor(keep), case.gram, damping=case.damping)
        pairs = zip(
            case.rows,
            oracle.errors(case.rows, new.double().tolist(), h),
            oracle.errors(case.rows, other, h),
            strict=True,
        )
        for row, least, more in pairs:
            # the objective is flat at its minimum: an error of the weights enters squared
            rounding = TOLERANCE[case.weight.dtype] ** 2 * len(row) * max(map(max, h[0]))
            size = max(map(abs, [*row, *new.abs().max().double().reshape(1).tolist()]))
            assert least <= more * (1 + 1e-12) + len(row) * rounding * size**2


@given(any_case())
def test_a_mask_that_keeps_all_changes_nothing_but_rounding(case: Case) -> None:
    new = refit(case.weight, torch.ones_like(case.mask), case.gram, damping=case.damping)
    assert_near(new, case.weight, case.weight)


@given(st.data())
def test_permuted_rows_are_permuted_results(data: st.DataObject) -> None:
    case = data.draw(any_case())
    order = data.draw(orders(len(case.weight)))
    moved = case._replace(weight=case.weight[order], mask=case.mask[order])
    assert_near(refitted(moved), refitted(case)[order], case.weight)


@given(st.data())
def test_permuted_inputs_are_permuted_results(data: st.DataObject) -> None:
    case = data.draw(any_case())
    order = data.draw(orders(case.weight.shape[1]))
    moved = case._replace(
        weight=case.weight[:, order],
        mask=case.mask[:, order],
        gram=case.gram[order][:, order],
    )
    assert_near(refitted(moved), refitted(case)[:, order], case.weight)


@given(cases())
def test_refit_again_changes_nothing(case: Case) -> None:
    """What is pruned is zero already, so its error is the smallest there is."""
    once = refitted(case)
    assert_near(refitted(case._replace(weight=once)), once, case.weight)


@given(cases())
def test_the_scale_of_the_gram_matrix_does_not_matter(case: Case) -> None:
    """Neither does the number of inputs that it is a sum of: the damping is relative."""
    assert_near(refitted(case._replace(gram=case.gram * 2**20)), refitted(case), case.weight)
    assert_near(refitted(case._replace(gram=case.gram / 2**20)), refitted(case), case.weight)


# --- larger weights: whatever method is cheapest there ----------------------------------------


@pytest.mark.parametrize("rows", [1, 40])
@pytest.mark.parametrize("density", [0.02, 0.5, 0.98])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_weights_of_some_size(rows: int, density: float, dtype: torch.dtype) -> None:
    """Inputs that go along with each other, so that the condition number is in the thousands."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    columns = 200
    x = normal(300, columns) + 2 * normal(300, 1) + normal(300, 8) @ normal(8, columns)
    weight, gram = normal(rows, columns).to(dtype), (x.mT @ x).to(dtype)
    mask = torch.rand(rows, columns, generator=generator) < density
    got = refit(weight, mask, gram)
    h = gram.double() + 0.01 * gram.double().diagonal().mean() * torch.eye(columns).double()
    want = torch.zeros(rows, columns, dtype=torch.float64)
    for i, keep in enumerate(mask):
        right = (h @ weight[i].double())[keep]
        want[i, keep] = torch.linalg.solve(h[keep][:, keep], right)
    assert_near(got, want, weight, {torch.float32: 1e-3, torch.float64: 1e-6}[dtype])


# --- trees, layouts, dtypes ---------------------------------------------------------------------


@pytest.mark.parametrize("name", LAYOUTS)
def test_layouts(name: str) -> None:
    """The rows of each part have a Gram matrix of their own."""
    layout = LAYOUTS[name]
    weight, gram, mask = layout.draw()
    got = in_tree(refit, weight, mask, gram, **layout.keywords)
    rows, keep = layout.rows_of(weight), layout.rows_of(mask)
    want = oracle.refit(rows, keep, parts_of(gram), 0.01)
    assert_near(got, layout.from_rows(want), weight)
    assert got.is_contiguous()


def test_leaves_without_a_mask_stay() -> None:
    weight, gram, mask = LAYOUTS["linear"].draw()
    params = {"fc": weight, "bias": torch.ones(4), "none": None, "table": torch.ones(2, 3)}
    masks = {"fc": mask, "bias": None, "none": None, "table": None}
    grams = {"fc": gram, "bias": None, "none": None, "table": torch.eye(3)}
    new = refit(params, masks, grams)
    assert list(new) == list(params)
    assert_same([new["bias"], new["table"], new["none"]], [params["bias"], params["table"], None])
    assert_same(new["fc"], refit(weight, mask, gram))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_dtypes(dtype: torch.dtype) -> None:
    """The result has the dtype of the parameter; 16 bits are computed in float32, rounded once."""
    weight, gram, mask = LAYOUTS["linear"].draw()
    weight, gram = weight.to(dtype), gram.to(gram_dtype(dtype))
    got = refit(weight, mask, gram)
    want = oracle.refit(weight.double().tolist(), mask.tolist(), parts_of(gram), 0.01)
    tolerance = {torch.float16: 2e-3}.get(dtype) or TOLERANCE[dtype]
    assert_near(got, want, weight, tolerance)


def test_leaves_of_different_dtypes_in_one_tree() -> None:
    weight, gram, mask = LAYOUTS["linear"].draw()
    params = [weight, weight.bfloat16(), weight.float()]
    grams = [gram, gram.float(), gram.float()]
    new = refit(params, [mask] * 3, grams)
    assert [leaf.dtype for leaf in new] == [torch.float64, torch.bfloat16, torch.float32]
    for got, param, g in zip(new, params, grams, strict=True):
        assert_same(got, refit(param, mask, g))


def test_a_row_that_keeps_nothing_is_zero() -> None:
    weight, gram, mask = LAYOUTS["linear"].draw()
    mask[1] = False
    new = refit(weight, mask, gram)
    assert not new[1].any()
    assert new[[0, 2, 3]].any(1).all()


def test_weights_that_are_not_finite_are_refused() -> None:
    """Also pruned ones take part in the right side, H w, so there is no answer to them."""
    weight, gram, mask = LAYOUTS["linear"].draw()
    weight[0, 0] = float("nan")
    with pytest.raises(ValueError, match=r"(?i)nan|finite"):
        refit(weight, mask, gram)


def test_empty_leaves() -> None:
    for rows, columns in ((0, 3), (2, 0)):
        weight = torch.ones(rows, columns)
        new = refit(weight, weight.bool(), torch.eye(columns))
        assert new.shape == weight.shape


@given(any_case())
def test_inputs_do_not_change(case: Case) -> None:
    assert_pure(refit, {"w": case.weight}, {"w": case.mask}, {"w": case.gram})


def test_parameters_that_require_gradients() -> None:
    weight, gram, mask = LAYOUTS["linear"].draw()
    got = refit(torch.nn.Parameter(weight), mask, gram)
    assert not got.requires_grad
    assert_same(got, refit(weight, mask, gram))


# --- transforms ---------------------------------------------------------------------------------


def call(leaves: Any) -> Any:
    return refit(leaves["w"], leaves["mask"], leaves["gram"])


def test_vmap_over_layers_is_a_loop() -> None:
    """Also if one layer keeps less than another: 1e-12 is the order of sums of batched products."""
    inputs = stacked("linear")
    inputs["mask"][1, :, 1:] = False
    assert_vmaps(call, inputs, rtol=1e-10, atol=1e-12)
    assert_vmaps(call, stacked("grouped convolution"), rtol=1e-10, atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_one_graph(backend: str) -> None:
    """For masks with other counts, too."""
    weights = stacked("linear")
    inputs = [{name: leaf[i] for name, leaf in weights.items()} for i in range(3)]
    assert_compiles(call, inputs, backend, rtol=1e-10, atol=1e-12)


# --- bad inputs, and matrices that need more damping ---------------------------------------------


@bad_grams
def test_a_bad_gram_matrix_is_refused(gram: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words) as raised:
        refit(tree(WEIGHT), tree(MASK), tree(gram))
    assert re.search(WHERE, str(raised.value))


@pytest.mark.parametrize("gram", [torch.ones(2, 2, dtype=torch.long), "x", 3.0], ids=str)
def test_a_gram_matrix_of_a_wrong_type_is_refused(gram: Any) -> None:
    with pytest.raises(TypeError, match=WHERE):
        refit(tree(WEIGHT), tree(MASK), tree(gram))


def test_a_little_asymmetry_of_rounding_is_allowed() -> None:
    """Grams that were summed over ranks in another order."""
    gram = GRAM.clone()
    gram[0, 1] = gram[0, 1].nextafter(torch.tensor(2.0))
    assert_near(refit(WEIGHT, MASK, gram), refit(WEIGHT, MASK, GRAM), WEIGHT)


@pytest.mark.parametrize(
    ("masks", "error", "words"),
    [
        (tree(MASK.float()), TypeError, "bool"),
        (tree(MASK.to(torch.uint8)), TypeError, "bool"),
        (tree(MASK[:2]), ValueError, "shape"),
        ({"fc": {"bias": MASK}}, ValueError, "(?i)structure"),
    ],
    ids=["float", "uint8", "shape", "structure"],
)
def test_bad_masks_are_refused(masks: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        refit(tree(WEIGHT), masks, tree(GRAM))


def test_integer_weights_are_refused() -> None:
    with pytest.raises(TypeError, match=WHERE):
        refit(tree(WEIGHT.long()), tree(MASK), tree(GRAM))


@pytest.mark.parametrize("damping", [-0.01, float("nan"), float("inf"), "x", None, True])
def test_a_bad_damping_is_refused(damping: Any) -> None:
    with pytest.raises((TypeError, ValueError), match="damping"):
        refit(tree(WEIGHT), tree(MASK), tree(GRAM), damping=damping)


@pytest.mark.parametrize("dim", [2, (0, 0), "x", (0, 1)], ids=str)
def test_a_bad_dim_is_refused(dim: Any) -> None:
    with pytest.raises((TypeError, ValueError), match=r"dim|shape"):
        refit(tree(WEIGHT), tree(MASK), tree(GRAM), dim=dim)


SINGULAR = torch.tensor([[1.0, 1.0], [1.0, 1.0]])


def test_the_mean_of_a_large_diagonal_does_not_overflow() -> None:
    weight, mask = torch.ones(1, 4), torch.tensor([[True, True, True, False]])
    gram = torch.full((4, 4), 1e38).fill_diagonal_(2e38)
    scaled = refit(weight, mask, gram / 1e38)
    torch.testing.assert_close(refit(weight, mask, gram), scaled)


def test_a_singular_matrix_without_damping_is_damped_and_said() -> None:
    """With the leaf and the damping. By hand: an input that is pruned has a twin that is kept."""
    with pytest.warns(UserWarning, match=WHERE) as caught:
        new = refit(tree(WEIGHT), tree(MASK), tree(SINGULAR), damping=0.0)["fc"]["weight"]
    [text] = [str(warning.message) for warning in caught]
    [used] = [
        float(number) for number in re.findall(r"damping[^0-9]*([0-9.]+(?:e[-+]?\d+)?)", text)
    ][-1:]
    assert 0 < used < 1
    assert_near(new, torch.tensor([[3.0, 0], [3, 4], [0, 12]]), WEIGHT, 1e-2)


@pytest.mark.filterwarnings("ignore:.*damping:UserWarning")
@given(cases(torch.float32), st.sampled_from([0.0, 1e-7, 1e-6]))
def test_a_nearly_singular_matrix_has_an_answer(case: Case, damping: float) -> None:
    """The damping that is used is enough for the matrix of every row, too."""
    assert refit(case.weight, case.mask, case.gram, damping=damping).isfinite().all()


@pytest.mark.filterwarnings("ignore:.*damping:UserWarning")
def test_a_row_that_keeps_the_inputs_that_are_the_same_has_an_answer() -> None:
    """The whole matrix has a Cholesky factor in float32, thanks to rounding, and this part none."""
    gram = torch.tensor([[2.0, 1.0, 1.0], [1.0, 5.0, 5.0], [1.0, 5.0, 5.0]])
    weight, mask = torch.ones(1, 3), torch.tensor([[False, True, True]])
    new = refit(weight, mask, gram, damping=0.0)
    torch.testing.assert_close(new.sum(), torch.tensor(2.2))  # 5 (v_1 + v_2) = 11


def test_a_matrix_of_full_rank_needs_no_damping() -> None:
    """By hand: the first row keeps 1, and its v is (2 * 1 + 1 * 2) / 2."""
    new = refit(WEIGHT, MASK, GRAM, damping=0.0)
    assert_near(new, torch.tensor([[2.0, 0], [3, 4], [0, 7 + 5 / 3]]).double(), WEIGHT, 1e-6)


def test_a_matrix_that_is_not_positive_is_an_error_or_damped_and_said() -> None:
    """No Gram matrix has negative eigenvalues; the identity is never taken in its place."""
    for gram in (torch.tensor([[1.0, 2.0], [2.0, 1.0]]), torch.tensor([[1.0, 0.0], [0.0, -1.0]])):
        with pytest.raises((ValueError, UserWarning), match=WHERE):  # warnings are errors here
            refit(tree(WEIGHT), tree(MASK), tree(gram))


def test_inputs_that_were_all_zero() -> None:
    """Nothing is known of them: any answer that fits the mask has the same error."""
    with contextlib.suppress(ValueError, UserWarning):
        new = refit(tree(WEIGHT), tree(MASK), tree(torch.zeros(2, 2)))["fc"]["weight"]
        assert new.isfinite().all()
        assert (new[~MASK] == 0).all()


@pytest.mark.parametrize("unit", [1e-28, 1e-20, 1e20, 1e28])
@pytest.mark.parametrize("columns", [12, 900])  # by Cholesky factors, and by conjugate gradients
def test_weights_and_inputs_of_any_unit(unit: float, columns: int) -> None:
    """Squares of the weights would be 0 or infinite in float32."""
    draw = torch.Generator().manual_seed(0)
    weight = torch.randn(1, columns, generator=draw)
    mask = torch.arange(columns).view(1, -1) > columns // 20
    gram = torch.eye(columns) + 1
    new = refit(weight, mask, gram)
    assert not torch.equal(new, torch.where(mask, weight, 0))
    for scaled in (gram, gram * unit):
        torch.testing.assert_close(refit(weight * unit, mask, scaled) / unit, new)
