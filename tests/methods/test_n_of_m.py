"""N:M patterns: by hand, and against an oracle."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import gprune as gp
from gprune.testing import prior_masks, tensors
from tests.support import reference, reference_patterns
from tests.support.golden import SCORES, bits


def test_a_dim_shorter_than_m_keeps_its_n_highest() -> None:
    assert gp.n_of_m(torch.tensor([[3.0, 1.0, 2.0]]), n=2, m=4).tolist() == [[True, False, True]]
    assert gp.n_of_m(torch.tensor([[3.0, 1.0]]), n=2, m=4).all()


GOLDEN = [  # n, m, dim, and what is kept, by hand
    (1, 4, 1, bits("10001000", "00010001", "00010001", "01000100")),
    (2, 4, 1, bits("10101010", "00110011", "00110011", "01101100")),
    (4, 8, 1, bits("10101010", "00001111", "00110011", "01101100")),
    (1, 4, 0, bits("10100000", "00010000", "00000011", "01001100")),
    (2, 4, 0, bits("10101000", "00010111", "11010011", "01101100")),
    (1, 2, 0, bits("10101000", "01010111", "10010011", "01101100")),
    (1, 3, 1, bits("10001010", "00100101", "00110001", "01000101")),  # 3, 3 and a last of 2
    (2, 3, 0, bits("10101100", "01011111", "11110011", "11111111")),  # 3 and a last of 1
]


@pytest.mark.parametrize(("n", "m", "dim", "expected"), GOLDEN)
def test_golden_patterns(n: int, m: int, dim: int, expected: list[list[bool]]) -> None:
    assert gp.n_of_m(SCORES, n=n, m=m, dim=dim).tolist() == expected
    assert gp.n_of_m(SCORES, n=n, m=m, dim=dim - 2).tolist() == expected


@pytest.mark.parametrize(("n", "m", "dim", "expected"), GOLDEN)
@pytest.mark.parametrize("order", [(1, 0, 2), (2, 0, 1), (2, 1, 0), (0, 2, 1), (1, 2, 0)])
def test_golden_patterns_along_every_dim(
    n: int, m: int, dim: int, expected: list[list[bool]], order: tuple[int, ...]
) -> None:
    """The same tensors lying otherwise among three dims, twice."""
    scores = torch.stack([SCORES, SCORES], 2).permute(order)
    kept = torch.tensor(expected)
    wanted = torch.stack([kept, kept], 2).permute(order)
    assert gp.n_of_m(scores, n=n, m=m, dim=order.index(dim)).equal(wanted)


@st.composite
def patterns(draw: st.DrawFn) -> tuple[int, int]:
    m = draw(st.integers(1, 5))
    return draw(st.integers(0, m)), m


@given(tensors().filter(lambda t: t.dim() > 0), patterns(), st.data())
def test_n_of_m(scores: torch.Tensor, pattern: tuple[int, int], data: st.DataObject) -> None:
    dim = data.draw(st.integers(-scores.dim(), scores.dim() - 1))
    mask = data.draw(st.none() | prior_masks(scores))
    n, m = pattern
    if scores.numel() and scores.shape[dim] == 1 and m > 1:
        with pytest.raises(ValueError, match="single entry"):
            gp.n_of_m(scores, mask=mask, n=n, m=m, dim=dim)
        return
    got = gp.n_of_m(torch.zeros(scores.shape), scores, mask=mask, n=n, m=m, dim=dim)
    assert (got.dtype, got.shape, got.is_contiguous()) == (torch.bool, scores.shape, True)
    assert got.flatten().tolist() == reference_patterns.n_of_m(scores, mask, n, m, dim)
    gp.check_n_of_m(got, n=n, m=m, dim=dim)


def test_signed_weights_are_ranked_by_magnitude_unless_they_are_the_scores() -> None:
    params = {"w": torch.tensor([[-4.0, 1.0, 3.0, -2.0]]), "bias": None}
    weight = params["w"]
    assert gp.n_of_m(weight, n=2, m=4).tolist() == [[True, False, True, False]]
    assert gp.n_of_m(weight, weight, n=2, m=4).tolist() == [[False, True, True, False]]
    halves = torch.tensor([-4.0, 1.0, 2.0, -2.0])  # means of magnitudes 2.5, 2; of scores -1.5, 0
    assert gp.blocks(halves, shape=(2,), amount=1).tolist() == [True, True, False, False]
    assert gp.blocks(halves, halves, shape=(2,), amount=1).tolist() == [False, False, True, True]
    masks = gp.layerwise(params, pruning_method=gp.n_of_m, n=2, m=4)
    assert masks["w"].tolist() == [[True, False, True, False]]
    masks = gp.layerwise(params, pruning_method=gp.blocks, shape=(2,), amount=1)
    assert masks["w"].tolist() == [[False, False, True, True]]
    masks = gp.layerwise(params, params, pruning_method=gp.n_of_m, n=2, m=4)
    assert masks["w"].tolist() == [[False, True, True, False]]


def test_check_n_of_m_names_every_leaf_that_keeps_too_many() -> None:
    masks = {"a": torch.ones(2, 4).bool(), "b": torch.eye(4).bool(), "c": torch.ones(6).bool()}
    gp.check_n_of_m({"b": masks["b"], "none": None}, n=1, m=4)
    with pytest.raises(ValueError, match=r"\['a'\] .* in 2 of 2 groups; .*\['c'\] .* in 1 of 2"):
        gp.check_n_of_m(masks, n=2, m=4)
    with pytest.raises(ValueError, match=r"masks\['c'\]: dim 1 is out of range .* \(6,\)"):
        gp.check_n_of_m(masks, n=4, m=4, dim=1)


def test_more_than_can_be_kept_keeps_all_that_is_left() -> None:
    mask = torch.tensor([True, False, False, False, True, True, True, True])
    got = gp.n_of_m(torch.arange(8), mask=mask, n=2, m=4)
    assert got.tolist() == [True, False, False, False, False, False, True, True]
    assert reference.num_candidates(torch.arange(8), mask) == 5


def test_what_pads_the_last_group_is_never_kept() -> None:
    """Zeros would be, among scores below zero."""
    scores = torch.tensor([-4.0, -1.0, -3.0, -2.0, -5.0, -6.0])
    kept = gp.n_of_m(torch.ones(6), scores, n=1, m=4)
    assert kept.tolist() == [False, True, False, False, True, False]


def test_groups_longer_than_the_dim_take_no_memory() -> None:
    """A group of 2^40 entries, of which there are five; padded it would be a terabyte."""
    scores, mask = torch.tensor([3.0, 1.0, 2.0, 5.0, 4.0]), torch.tensor([1, 1, 1, 0, 1]).bool()
    got = gp.n_of_m(scores, n=2, m=2**40)
    assert got.tolist() == [False, False, False, True, True]
    assert gp.n_of_m(scores, mask=mask, n=2, m=2**70).tolist() == [True, False, False, False, True]
    assert gp.n_of_m(scores, n=2**40 - 1, m=2**40).all()
    gp.check_n_of_m(got, n=2, m=2**40)
    with pytest.raises(ValueError, match=r"keeps more than 1 of .* in 1 of 1 groups"):
        gp.check_n_of_m(got, n=1, m=2**40)


def test_errors_name_the_leaf() -> None:
    params = {"fc": torch.ones(4, 4), "bias": torch.ones(4)}
    with pytest.raises(ValueError, match=r"params\['bias'\]: dim 1 is out of range .* \(4,\)"):
        gp.layerwise(params, pruning_method=gp.n_of_m, n=1, m=2, dim=1)
    with pytest.raises(ValueError, match=r"params\['bias'\]: blocks of shape \(2, 2\)"):
        gp.layerwise(params, pruning_method=gp.blocks, shape=(2, 2), amount=1)
    with pytest.raises(ValueError, match=r"^dim 1 is out of range for a leaf"):
        gp.n_of_m(params["bias"], n=1, m=2, dim=1)
