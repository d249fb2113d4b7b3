"""The lowest entries of each comparison group, and of each element of a batch."""

import functools
import itertools
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import gprune as gp


@pytest.mark.parametrize("dims", [(0,), (1,), (2,), (0, 1), (0, 2), (1, 2), (0, 1, 2)])
def test_every_group_is_a_tensor_of_its_own(dims: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    scores = torch.randint(1, 4, (4, 5, 6), generator=generator)
    masks = torch.rand(4, 5, 6, generator=generator) < 0.7
    got = gp.lowest_unstructured(scores, scores, mask=masks, amount=0.4, dim=dims)
    places = [[slice(None)] if d in dims else range(n) for d, n in enumerate(scores.shape)]
    for place in itertools.product(*places):
        group = scores[place]
        alone = gp.lowest_unstructured(group, group, mask=masks[place], amount=0.4)
        assert torch.equal(got[place], alone)


@pytest.mark.parametrize("dim", [0, 1, -1])
@pytest.mark.parametrize(
    "method",
    [
        gp.lowest_unstructured,
        gp.l1_unstructured,
        functools.partial(gp.random_unstructured, seed=1),
    ],
)
def test_vmap_over_any_dimension(method: Any, dim: int) -> None:
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(4, 4, 4, generator=generator)
    masks = torch.rand(4, 4, 4, generator=generator) < 0.8
    for kwargs in ({"amount": 5}, {"sparsity": 0.6}, {"amount": 1, "dim": 0}):

        def prune(score: Any, mask: Any, kwargs: Any = kwargs) -> torch.Tensor:
            return method(score, score, mask=mask, **kwargs)

        got = torch.vmap(prune, in_dims=dim)(scores, masks)
        for i in range(4):
            alone = prune(scores.select(dim, i), masks.select(dim, i))
            assert torch.equal(got[i], alone)


@given(st.integers(0, 12), st.integers(0, 2**40))
def test_random_groups_have_exact_counts_and_differ_between_leaves(k: int, seed: int) -> None:
    params = {"a": torch.zeros(20, 12), "b": torch.zeros(20, 12)}
    masks = gp.layerwise(params, pruning_method=gp.random_unstructured, seed=seed, amount=k, dim=-1)
    assert ((~masks["a"]).sum(1) == k).all()
    assert ((~masks["b"]).sum(1) == k).all()
    assert k in (0, 12) or not torch.equal(masks["a"], masks["b"])


@pytest.mark.parametrize("dim", [0, 1, (0, 1), -1])
def test_random_groups_are_the_lowest_of_random_scores(dim: Any) -> None:
    params = [torch.zeros(4, 6), torch.zeros(3, 5)]
    at_random = gp.layerwise(
        params, pruning_method=gp.random_unstructured, seed=5, amount=2, dim=dim
    )
    by_score = gp.layerwise(params, gp.scores.random(params, seed=5), amount=2, dim=dim)
    assert all(a.equal(b) for a, b in zip(at_random, by_score, strict=True))


@pytest.mark.parametrize("amount", [2.5, 7, -1])
def test_amounts_are_checked_where_there_is_no_group(amount: float) -> None:
    with pytest.raises(ValueError, match="amount must"):
        gp.lowest_unstructured(torch.zeros(0, 3), amount=amount, dim=-1)


def test_amounts_per_leaf_and_integer_amounts_per_group() -> None:
    params = {"a": torch.arange(12.0).reshape(3, 4), "b": torch.arange(6.0).reshape(3, 2)}
    masks = gp.layerwise(params, amount={"a": 3, "b": 1}, dim=1)
    assert masks["a"].sum(1).tolist() == [1, 1, 1]
    assert masks["b"].sum(1).tolist() == [1, 1, 1]


def test_an_amount_above_the_candidates_of_one_group_is_refused() -> None:
    mask = torch.tensor([[True, True, True], [True, False, False]])
    with pytest.raises(ValueError, match="candidates, 1"):
        gp.lowest_unstructured(torch.ones(2, 3), mask=mask, amount=2, dim=-1)


def test_an_error_within_groups_names_the_leaf() -> None:
    params = {"a": torch.ones(2, 3), "b": torch.ones(2, 2)}
    with pytest.raises(ValueError, match=r"amount\['b'\]: amount must be at most .* 2"):
        gp.layerwise(params, amount=3, dim=-1)
    integers = {"a": torch.ones(2, 3, dtype=torch.int64), "b": torch.full((2, 3), 2**60)}
    for kwargs in ({"amount": 1, "dim": -1}, {"pruning_method": gp.n_of_m, "n": 1, "m": 2}):
        with pytest.raises(ValueError, match=r"^params\['b'\]: int64 scores"):
            gp.layerwise(integers, **kwargs)
