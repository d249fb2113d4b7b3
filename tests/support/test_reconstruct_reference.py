"""The oracles of Gram matrices and rebuilt weights: by hand, against torch and each other."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F  # noqa: N812  torch's own name for it

from tests.support import reconstruct_reference as oracle
from tests.support.reconstruct_cases import Case, cases, grams


def test_gram_by_hand() -> None:
    assert oracle.gram([[1.0, 2.0], [3.0, -1.0]], 2) == [[10, -1], [-1, 5]]


def test_rows_and_columns_of_a_layout() -> None:
    leaf = torch.arange(24).view(2, 3, 4)
    assert oracle.as_rows(leaf, [1])[0] == [0, 4, 8]
    assert oracle.as_rows(leaf, [2, 0])[1] == [4, 5, 6, 7, 16, 17, 18, 19]
    for dims in ([0], [1], [2, 0], [1, 2]):
        back = oracle.from_rows(oracle.as_rows(leaf, dims), leaf.shape, dims)
        assert torch.equal(back, leaf.double())


def test_groups_of_input_channels() -> None:
    assert oracle.groups_of_columns([5], 2) == [[0, 1], [2, 3], [4]]
    assert oracle.groups_of_columns([3, 2], 2) == [[0, 2], [4], [1, 3], [5]]


@given(grams(4), st.sampled_from([0.01, 1.0]))
def test_linear_algebra_is_that_of_torch(gram: torch.Tensor, damping: float) -> None:
    h = torch.tensor(oracle.damped(gram.tolist(), damping), dtype=torch.float64)
    inverse = torch.tensor(oracle.inverse(h.tolist()), dtype=torch.float64)
    torch.testing.assert_close(inverse @ h, torch.eye(4, dtype=torch.float64))
    upper = torch.tensor(oracle.upper_factor(inverse.tolist()), dtype=torch.float64)
    torch.testing.assert_close(upper, torch.linalg.cholesky(inverse, upper=True))


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("is_transposed", [False, True])
def test_inputs_of_convolutions_give_their_outputs(
    stride: int, groups: int, is_transposed: bool
) -> None:
    """Row by row times the weights."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 4, 5, 6, generator=generator, dtype=torch.float64)
    settings = {"stride": stride, "padding": 1, "dilation": 2, "groups": groups}
    if is_transposed:
        settings["output_padding"] = stride - 1
        weight = torch.randn(4, 3, 2, 3, generator=generator, dtype=torch.float64)
        inputs = oracle.conv_transpose_inputs(x, (2, 3), **settings)
        rows = torch.tensor(oracle.as_rows(weight, (0, 2, 3)), dtype=torch.float64)
        out = F.conv_transpose2d(x, weight, **settings)
        # each row of inputs is of one example, one group and one place
        got = (torch.tensor(inputs, dtype=torch.float64) @ rows.mT).view(2, groups, -1, 3)
        got = got.movedim(3, 2)
    else:
        weight = torch.randn(6, 4 // groups, 2, 3, generator=generator, dtype=torch.float64)
        parts = torch.tensor(oracle.conv_inputs(x, (2, 3), **settings), dtype=torch.float64)
        rows = weight.view(groups, 6 // groups, -1)
        out = F.conv2d(x, weight, **settings)
        got = (parts @ rows.mT).view(groups, 2, -1, 6 // groups).permute(1, 0, 3, 2)
    torch.testing.assert_close(got.reshape(out.shape), out)


def relax(row: list[float], matrix: list[list[float]], fixed: list[int], at: list[float]) -> list:
    """The least-squares values of the columns that are not fixed, by elimination."""
    free = [j for j in range(len(row)) if j not in fixed]
    shift = [a - w for a, w in zip(at, row, strict=True)]
    right = [-oracle.dot([matrix[j][f] for f in fixed], [shift[f] for f in fixed]) for j in free]
    values = oracle.solve([[matrix[j][k] for k in free] for j in free], right)
    new = list(at)
    for j, value in zip(free, values, strict=True):
        new[j] = row[j] + value
    return new


@given(cases(), st.integers(0, 48), st.integers(1, 9))
def test_sparsegpt_is_optimal_given_the_columns_before(case: Case, k: int, block_size: int) -> None:
    """After each column the rest is the least-squares answer to what is fixed: no Cholesky."""
    size = case.weight.numel()
    new, keep, _ = oracle.sparsegpt(
        case.rows, [case.matrix], case.damping, k=min(k, size), block_size=block_size
    )
    h = oracle.damped(case.matrix, case.damping)
    for row, mask, got in zip(case.rows, keep, new, strict=True):
        at = list(row)
        for c, kept in enumerate(mask):
            if not kept:
                at[c] = 0.0
            at = relax(row, h, list(range(c + 1)), at)
        assert max(abs(a - b) for a, b in zip(at, got, strict=True)) < 1e-9 * max(map(abs, row))
    assert sum(not kept for mask in keep for kept in mask) == min(k, size)


@given(cases(), st.integers(1, 48))
def test_refit_satisfies_the_normal_equations_and_beats_sparsegpt(case: Case, k: int) -> None:
    h = [oracle.damped(case.matrix, case.damping)]
    k = min(k, case.weight.numel())
    new, keep, _ = oracle.sparsegpt(case.rows, [case.matrix], case.damping, k=k)
    best = oracle.refit(case.rows, keep, [case.matrix], case.damping)
    for row, mask, values in zip(case.rows, keep, best, strict=True):
        difference = [w - v for w, v in zip(row, values, strict=True)]
        for line, kept in zip(h[0], mask, strict=True):
            sizes = oracle.dot(map(abs, line), map(abs, difference))
            assert not kept or abs(oracle.dot(line, difference)) <= 1e-10 * max(1.0, sizes)
    for other in (new, oracle.masked(case.rows, keep)):
        pairs = zip(
            oracle.errors(case.rows, best, h), oracle.errors(case.rows, other, h), strict=True
        )
        assert all(least <= more * (1 + 1e-10) + 1e-10 for least, more in pairs)


@given(cases())
def test_sparsegpt_that_prunes_nothing_changes_nothing(case: Case) -> None:
    chosen = oracle.sparsegpt(case.rows, [case.matrix], case.damping, k=0)
    assert chosen.weight == case.rows
    assert chosen.gap == math.inf


def test_sparsegpt_prunes_by_block_and_first_index() -> None:
    """With an identity for H nothing is spread, so the lowest of each block go."""
    gram = oracle.identity(4)
    weight = [[1.0, 2.0, 9.0, 3.0], [1.0, 1.0, 4.0, 3.0]]

    def kept(k: int) -> list[list[bool]]:
        return oracle.sparsegpt(weight, [gram], 0.0, k=k, block_size=2).keep

    assert kept(3) == [[False, True, True, False], [True, True, True, False]]
    assert kept(4) == [[False, True, True, False], [False, True, True, False]]


def test_sparsegpt_keeps_n_of_each_group_in_each_row() -> None:
    weight = [[1.0, 2.0, 3.0, 3.0, 5.0], [4.0, 1.0, 1.0, 1.0, 5.0]]
    groups = oracle.groups_of_columns([5], 2)
    chosen = oracle.sparsegpt(weight, [oracle.identity(5)], 0.0, n=1, groups=groups)
    assert chosen.keep == [[False, True, False, True, True], [True, False, False, True, True]]
    assert chosen.gap == 0


def test_the_best_swap_by_hand() -> None:
    """Two inputs that are the same: what one loses the other has, so keep a third."""
    gram = [[1.0, -1.0, 0.0], [-1.0, 1.0, 0.0], [0.0, 0.0, 1.0]]
    keep, _ = oracle.swap([[2.0, 2.0, 1.0]], [[True, False, False]], [gram], rounds=1)
    assert keep == [[False, False, True]]
    groups = [[0, 1], [2]]
    keep, _ = oracle.swap(
        [[2.0, 1.0, 9.0]], [[False, True, False]], [gram], rounds=9, groups=groups
    )
    assert keep == [[True, False, False]]


@given(cases(), st.integers(0, 9))
def test_swaps_lower_the_error_and_keep_the_counts(case: Case, rounds: int) -> None:
    before = oracle.mask_errors(case.rows, case.keep, [case.matrix])
    keep, _ = oracle.swap(case.rows, case.keep, [case.matrix], rounds=rounds)
    after = oracle.mask_errors(case.rows, keep, [case.matrix])
    assert all(b <= a for a, b in zip(before, after, strict=True))
    assert [sum(mask) for mask in keep] == case.mask.sum(1).tolist()
