"""SparseGPT: against a transcription of the paper's algorithm, with exact counts and ties."""

import re
from typing import Any

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

import gprune as gp
from gprune.reconstruct import sparsegpt
from gprune.testing import assert_pure
from tests.support import reconstruct_reference as oracle
from tests.support import reference
from tests.support.assertions import assert_are_masks, assert_same
from tests.support.reconstruct_cases import (
    DTYPES,
    GAP,
    GRAM,
    GROUPED,
    LAYOUTS,
    TOLERANCE,
    WEIGHT,
    WHERE,
    Case,
    any_case,
    assert_near,
    bad_grams,
    gram_dtype,
    in_tree,
    matrices,
    orders,
    parts_of,
    stacked,
    tree,
)
from tests.support.transforms import assert_compiles, assert_vmaps

block_sizes = st.integers(1, 9)


def patterns_of(weight: torch.Tensor, m: int) -> int:
    """There is no group of several inputs in a single one, which `n_of_m` refuses."""
    return m if weight.shape[1] > 1 else 1


def num_pruned(mask: torch.Tensor) -> int:
    return int((~mask).sum())


# --- against the oracle --------------------------------------------------------------------------


@given(any_case(), st.integers(0, 48), block_sizes)
def test_unstructured_is_the_oracle(case: Case, k: int, block_size: int) -> None:
    k = min(k, case.weight.numel())
    want = oracle.sparsegpt(case.rows, [case.matrix], case.damping, k=k, block_size=block_size)
    assume(want.gap > GAP[case.weight.dtype])
    new, mask = sparsegpt(
        case.weight, case.gram, amount=k, block_size=block_size, damping=case.damping
    )
    assert mask.tolist() == want.keep
    assert_near(new, want.weight, case.weight)


@given(any_case(), st.integers(1, 5), st.integers(0, 5), block_sizes)
def test_n_of_m_is_the_oracle(case: Case, m: int, n: int, block_size: int) -> None:
    """Whatever the block size is, also where a group lies in two blocks."""
    m = patterns_of(case.weight, m)
    n = min(n, m)
    groups = oracle.groups_of_columns([case.weight.shape[1]], m)
    want = oracle.sparsegpt(case.rows, [case.matrix], case.damping, n=n, groups=groups)
    assume(want.gap > GAP[case.weight.dtype])
    new, mask = sparsegpt(
        case.weight, case.gram, n=n, m=m, block_size=block_size, damping=case.damping
    )
    assert mask.tolist() == want.keep
    assert_near(new, want.weight, case.weight)


@given(st.data())
def test_ties_go_by_index(data: st.DataObject) -> None:
    """Inputs that have nothing in common, and weights of few sizes: nothing is made up for."""
    rows, columns = data.draw(st.integers(1, 6)), data.draw(st.integers(1, 8))
    dtype = data.draw(st.sampled_from(DTYPES))
    weight = data.draw(matrices(rows, columns, 2)).to(dtype)
    gram = 4 * torch.eye(columns, dtype=gram_dtype(dtype))
    k, block_size = data.draw(st.integers(0, rows * columns)), data.draw(block_sizes)
    want = oracle.sparsegpt(weight.tolist(), parts_of(gram), 0.0, k=k, block_size=block_size)
    new, mask = sparsegpt(weight, gram, amount=k, block_size=block_size, damping=0.0)
    assert mask.tolist() == want.keep
    assert_same(new, torch.where(mask, weight, 0))
    m = patterns_of(weight, data.draw(st.integers(1, 5)))
    n = data.draw(st.integers(0, m))
    groups = oracle.groups_of_columns([columns], m)
    want = oracle.sparsegpt(weight.tolist(), parts_of(gram), 0.0, n=n, groups=groups)
    new, mask = sparsegpt(weight, gram, n=n, m=m, damping=0.0)
    assert mask.tolist() == want.keep
    assert torch.equal(mask, gp.n_of_m(weight, n=n, m=m))
    assert_same(new, torch.where(mask, weight, 0))


def test_a_block_by_hand() -> None:
    """Two equal inputs and no damping but 1: U is upper triangular, U_00² = 2 / 3, U_11² = 1 / 2.

    H = [[2, 1], [1, 2]], of which the inverse is [[2, -1], [-1, 2]] / 3. The scores of 3 and 2 are
    9 * 3 / 2 and 4 * 2, so the second goes. The first was done before, and takes over nothing.
    With 2 and 3 the first goes, at 6 of 18, and the second takes over half of it.
    """
    gram = torch.ones(2, 2, dtype=torch.float64)
    weight = torch.tensor([[3.0, 2.0], [2.0, 3.0]], dtype=torch.float64)
    for row, want in zip(weight, [[3.0, 0.0], [0.0, 4.0]], strict=True):
        new, mask = sparsegpt(row[None], gram, amount=1, damping=1.0)
        assert_near(new, [want], weight)
        assert mask.tolist() == [[bool(x) for x in want]]


# --- guarantees ----------------------------------------------------------------------------------


@given(any_case(ties=True), st.integers(0, 48), block_sizes)
def test_counts_are_exact_block_by_block(case: Case, k: int, block_size: int) -> None:
    """Whatever the ties: when e of d columns are done, k * e / d are pruned, rounded down."""
    rows, columns = case.weight.shape
    k = min(k, rows * columns)
    new, mask = sparsegpt(
        case.weight, case.gram, amount=k, block_size=block_size, damping=case.damping
    )
    assert_are_masks(mask, case.weight)
    for end in [*range(block_size, columns, block_size), columns]:
        assert num_pruned(mask[:, :end]) == k * end // columns
    assert (new.dtype, new.shape) == (case.weight.dtype, case.weight.shape)
    assert (new[~mask] == 0).all()
    assert new.isfinite().all()


@given(any_case(ties=True), st.integers(1, 5), st.integers(0, 5))
def test_every_group_of_every_row_keeps_n(case: Case, m: int, n: int) -> None:
    """Or all, if a shorter last group has no more."""
    m = patterns_of(case.weight, m)
    n = min(n, m)
    new, mask = sparsegpt(case.weight, case.gram, n=n, m=m, damping=case.damping)
    for group in mask.split(m, dim=1):
        assert (group.sum(1) == min(n, group.shape[1])).all()
    assert (new[~mask] == 0).all()
    assert new.isfinite().all()


NOTHING: list[dict[str, Any]] = [
    {"amount": 0},
    {"amount": 0.0},
    {"sparsity": 0.0},
    {"n": 3, "m": 3},
]


@given(any_case(), st.sampled_from(NOTHING), block_sizes)
def test_pruning_nothing_returns_the_bits_of_the_weights(
    case: Case, nothing: dict[str, Any], block_size: int
) -> None:
    weight = case.weight.clone()
    weight[0, 0] = -0.0
    new, mask = sparsegpt(weight, case.gram, block_size=block_size, **nothing)
    assert_same(new, weight)
    assert mask.all()


@given(any_case(), st.sampled_from([{"amount": 1.0}, {"sparsity": 1.0}, {"n": 0, "m": 1}]))
def test_pruning_everything(case: Case, everything: dict[str, Any]) -> None:
    new, mask = sparsegpt(case.weight, case.gram, **everything)
    assert not mask.any()
    assert not new.any()


@given(st.data())
def test_permuted_rows_are_permuted_results(data: st.DataObject) -> None:
    case = data.draw(any_case())
    k = data.draw(st.integers(0, case.weight.numel()))
    clear = oracle.sparsegpt(case.rows, [case.matrix], case.damping, k=k, block_size=3).gap
    assume(clear > GAP[case.weight.dtype])
    order = data.draw(orders(len(case.weight)))
    keywords: dict[str, Any] = {"amount": k, "block_size": 3, "damping": case.damping}
    new, mask = sparsegpt(case.weight, case.gram, **keywords)
    moved, moved_mask = sparsegpt(case.weight[order], case.gram, **keywords)
    assert torch.equal(moved_mask, mask[order])
    assert_near(moved, new[order], case.weight)


@given(any_case(), st.floats(0, 1), block_sizes)
def test_the_fraction_of_a_leaf_is_rounded_half_to_even(
    case: Case, fraction: float, block_size: int
) -> None:
    """An amount and a sparsity are the same: there is nothing pruned before."""
    size = case.weight.numel()
    for number in (fraction, 0.5, 1 / size, 1.5 / size):
        number = min(number, 1.0)
        k = reference.num_to_prune(number, size)
        for name in ("amount", "sparsity"):
            keywords: dict[str, Any] = {name: number, "block_size": block_size}
            assert num_pruned(sparsegpt(case.weight, case.gram, **keywords)[1]) == k


# --- trees, layouts, dtypes -----------------------------------------------------------------------


@pytest.mark.parametrize("name", LAYOUTS)
def test_layouts(name: str) -> None:
    """Blocks run over the rows of all parts, each with the factor of its own Gram matrix."""
    layout = LAYOUTS[name]
    weight, gram, _ = layout.draw()
    rows, parts = layout.rows_of(weight), parts_of(gram)
    k = weight.numel() * 2 // 5
    want = oracle.sparsegpt(rows, parts, 0.01, k=k, block_size=3)
    new, mask = in_tree(sparsegpt, weight, gram, amount=k, block_size=3, **layout.keywords)
    assert want.gap > GAP[weight.dtype]
    assert torch.equal(mask, layout.from_rows(want.keep))
    assert_near(new, layout.from_rows(want.weight), weight)
    assert new.is_contiguous()
    assert mask.is_contiguous()


@pytest.mark.parametrize("name", GROUPED)
def test_groups_lie_along_the_inputs_of_one_place_of_the_kernel(name: str) -> None:
    """As those of `n_of_m`: along the first of the dims of the inputs."""
    layout = LAYOUTS[name]
    weight, gram, _ = layout.draw()
    rows, parts = layout.rows_of(weight), parts_of(gram)
    want = oracle.sparsegpt(rows, parts, 0.01, n=1, groups=layout.groups(2))
    new, mask = in_tree(sparsegpt, weight, gram, n=1, m=2, block_size=3, **layout.keywords)
    assert want.gap > GAP[weight.dtype]
    assert torch.equal(mask, layout.from_rows(want.keep))
    assert_near(new, layout.from_rows(want.weight), weight)
    gp.check_n_of_m([mask], n=1, m=2, dim=layout.dims[0])


def test_the_leaves_of_a_tree_are_pruned_each_by_its_own_amount() -> None:
    weight, gram, _ = LAYOUTS["linear"].draw()
    image, image_gram, _ = LAYOUTS["grouped convolution"].draw()
    params = {"conv": image, "fc": weight, "none": None}
    grams = {"conv": image_gram, "fc": gram, "none": None}
    _, masks = sparsegpt(params, grams, amount={"conv": 5, "fc": 0.25, "none": None})
    assert_are_masks(masks, params)
    assert (num_pruned(masks["conv"]), num_pruned(masks["fc"])) == (5, 6)
    new, masks = sparsegpt(params, grams, sparsity={"conv": 0.5, "fc": 0.0, "none": None})
    assert (num_pruned(masks["conv"]), num_pruned(masks["fc"])) == (12, 0)
    assert_same(new["fc"], weight)
    new, masks = sparsegpt(params, grams, sparsity=0.5)
    for name, param in (("conv", image), ("fc", weight)):
        alone, mask = sparsegpt(param, grams[name], sparsity=0.5)
        assert_same([new[name], masks[name]], [alone, mask])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_dtypes(dtype: torch.dtype) -> None:
    weight, gram, _ = LAYOUTS["linear"].draw()
    weight, gram = weight.to(dtype), gram.to(gram_dtype(dtype))
    want = oracle.sparsegpt(weight.double().tolist(), parts_of(gram), 0.01, k=10)
    new, mask = sparsegpt(weight, gram, amount=10)
    assert mask.tolist() == want.keep
    assert_near(new, want.weight, weight, TOLERANCE.get(dtype, 2e-3))


def test_the_default_block_is_of_128_columns() -> None:
    generator = torch.Generator().manual_seed(0)
    x, weight = torch.randn(400, 200, generator=generator), torch.randn(2, 200, generator=generator)
    gram = x.mT @ x
    got, mask = sparsegpt(weight, gram, amount=101)
    assert num_pruned(mask[:, :128]) == 101 * 128 // 200
    assert_same([got, mask], list(sparsegpt(weight, gram, amount=101, block_size=128)))
    assert num_pruned(sparsegpt(weight, gram, amount=101, block_size=500)[1]) == 101


def test_a_weight_of_some_size_is_the_oracle_in_float64() -> None:
    """Blocks that are updated one after the other."""
    generator = torch.Generator().manual_seed(0)
    shared = torch.randn(90, 4, generator=generator) @ torch.randn(4, 40, generator=generator)
    x = (torch.randn(90, 40, generator=generator) + shared).double()
    weight = torch.randn(5, 40, generator=generator).double()
    gram = x.mT @ x
    want = oracle.sparsegpt(weight.tolist(), parts_of(gram), 0.01, k=111, block_size=16)
    new, mask = sparsegpt(weight, gram, amount=111, block_size=16)
    assert mask.tolist() == want.keep
    assert_near(new, want.weight, weight)


@given(any_case(), block_sizes)
def test_inputs_do_not_change(case: Case, block_size: int) -> None:
    assert_pure(
        lambda w, g: sparsegpt(w, g, amount=0.5, block_size=block_size),
        {"w": case.weight},
        {"w": case.gram},
    )


def test_parameters_that_require_gradients() -> None:
    weight, gram, _ = LAYOUTS["linear"].draw()
    new, mask = sparsegpt(torch.nn.Parameter(weight), gram, amount=0.5)
    assert not new.requires_grad
    assert_same([new, mask], list(sparsegpt(weight, gram, amount=0.5)))


# --- transforms ----------------------------------------------------------------------------------


def unstructured(leaves: Any, **keywords: Any) -> Any:
    return sparsegpt(leaves["w"], leaves["gram"], amount=10, block_size=4, **keywords)


def pattern(leaves: Any, **keywords: Any) -> Any:
    return sparsegpt(leaves["w"], leaves["gram"], n=1, m=2, block_size=4, **keywords)


@pytest.mark.parametrize("call", [unstructured, pattern])
@pytest.mark.parametrize("name", ["linear", "Conv1D of transformers", "grouped convolution"])
def test_vmap_over_layers_is_a_loop(call: Any, name: str) -> None:
    """1e-12 is the order of sums of batched products."""
    inputs = stacked(name)
    del inputs["mask"]
    keywords = LAYOUTS[name].keywords
    assert_vmaps(lambda leaves: call(leaves, **keywords), inputs, rtol=1e-10, atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("call", [unstructured, pattern])
def test_one_graph(call: Any, backend: str) -> None:
    layers = stacked("linear")
    inputs = [{name: layers[name][i] for name in ("w", "gram")} for i in range(2)]
    assert_compiles(call, inputs, backend, rtol=1e-10, atol=1e-12)


# --- bad inputs ----------------------------------------------------------------------------------


@bad_grams
def test_a_bad_gram_matrix_is_refused(gram: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words) as raised:
        sparsegpt(tree(WEIGHT), tree(gram), amount=2)
    assert gram is None or re.search(WHERE, str(raised.value))


def test_a_leaf_without_a_gram_matrix_is_not_pruned() -> None:
    params, grams = [WEIGHT, WEIGHT, None], [GRAM, None, None]
    new, masks = sparsegpt(params, grams, amount=2)
    assert_same([new[1], masks[1]], [WEIGHT, None])
    assert_same([new[0], masks[0]], list(sparsegpt(WEIGHT, GRAM, amount=2)))


@pytest.mark.parametrize(
    ("keywords", "words"),
    [
        ({}, "amount|sparsity"),
        ({"amount": 1, "sparsity": 0.5}, "amount.*sparsity|sparsity.*amount"),
        ({"amount": 1, "n": 1, "m": 2}, r"amount.*\bn\b|\bn\b.*amount"),
        ({"n": 1}, r"\bm\b"),
        ({"m": 2}, r"\bn\b"),
        ({"n": 3, "m": 2}, r"\bn\b"),
        ({"n": -1, "m": 2}, r"\bn\b"),
        ({"n": 0, "m": 0}, r"\bm\b"),
        ({"n": 1.0, "m": 2}, r"\bn\b"),
        ({"amount": 7}, "amount"),
        ({"amount": -1}, "amount"),
        ({"amount": 1.5}, "amount"),
        ({"amount": float("nan")}, "amount"),
        ({"amount": "x"}, "amount"),
        ({"sparsity": 1.5}, "sparsity"),
        ({"sparsity": -0.5}, "sparsity"),
        ({"amount": 1, "block_size": 0}, "block_size"),
        ({"amount": 1, "block_size": -2}, "block_size"),
        ({"amount": 1, "block_size": 1.5}, "block_size"),
        ({"amount": 1, "block_size": True}, "block_size"),
        ({"amount": 1, "damping": -0.01}, "damping"),
        ({"amount": 1, "damping": float("nan")}, "damping"),
        ({"amount": 1, "damping": "x"}, "damping"),
        ({"amount": {"fc": 1}}, "amount|structure"),
    ],
    ids=str,
)
def test_bad_numbers_are_refused(keywords: dict[str, Any], words: str) -> None:
    with pytest.raises((TypeError, ValueError), match=words):
        sparsegpt(tree(WEIGHT), tree(GRAM), **keywords)


def test_weights_that_are_not_finite_are_refused() -> None:
    """What is left over of them would spread to all later columns."""
    weight = WEIGHT.clone()
    weight[1, 0] = float("nan")
    with pytest.raises(ValueError, match=r"(?i)nan|finite"):
        sparsegpt(tree(weight), tree(GRAM), amount=2)


def test_integer_weights_are_refused() -> None:
    with pytest.raises(TypeError, match=WHERE):
        sparsegpt(tree(WEIGHT.long()), tree(GRAM), amount=2)


def test_a_singular_matrix_without_damping_is_damped_and_said() -> None:
    with pytest.warns(UserWarning, match=WHERE) as caught:
        new, masks = sparsegpt(tree(WEIGHT), tree(torch.ones(2, 2)), amount=3, damping=0.0)
    [text] = [str(warning.message) for warning in caught]
    assert re.search(r"damping.*\d", text)
    assert num_pruned(masks["fc"]["weight"]) == 3
    assert new["fc"]["weight"].isfinite().all()


@pytest.mark.filterwarnings("ignore:.*damping:UserWarning")
@pytest.mark.parametrize("seed", range(3))
def test_inputs_of_very_different_sizes_have_an_answer(seed: int) -> None:
    """From .01 to 100, and one fewer than there are columns, in float32."""
    generator = torch.Generator().manual_seed(seed)
    for columns in range(2, 12):
        sizes = 10 ** (4 * torch.rand(columns, generator=generator) - 2)
        x = torch.randn(columns - 1, columns, generator=generator) * sizes
        weight = torch.randn(4, columns, generator=generator)
        new, mask = sparsegpt(weight, x.mT @ x, amount=0.5, damping=0.0)
        assert num_pruned(mask) == 2 * columns
        assert new.isfinite().all()


def test_empty_leaves() -> None:
    for rows, columns in ((0, 3), (2, 0)):
        new, mask = sparsegpt(torch.ones(rows, columns), torch.eye(columns), amount=0.5)
        assert new.shape == mask.shape == (rows, columns)


def test_a_matrix_that_is_not_positive_is_an_error_or_damped_and_said() -> None:
    """No Gram matrix has negative eigenvalues; the identity is never taken in its place."""
    for gram in (torch.tensor([[1.0, 2.0], [2.0, 1.0]]), torch.tensor([[1.0, 0.0], [0.0, -1.0]])):
        with pytest.raises((ValueError, UserWarning), match=WHERE):  # warnings are errors here
            sparsegpt(tree(WEIGHT), tree(gram), amount=2)


@pytest.mark.parametrize("unit", [1e-28, 1e-20, 1e20, 1e28])
def test_weights_and_inputs_of_any_unit(unit: float) -> None:
    """Squares of the weights would be 0 or infinite in float32."""
    draw = torch.Generator().manual_seed(0)
    weight, inputs = torch.randn(6, 12, generator=draw), torch.randn(40, 12, generator=draw)
    gram = inputs.mT @ inputs
    new, mask = sparsegpt(weight, gram, amount=0.5, block_size=4)
    for scaled in (gram, gram * unit):
        other, same = sparsegpt(weight * unit, scaled, amount=0.5, block_size=4)
        assert torch.equal(mask, same)
        torch.testing.assert_close(other / unit, new)
