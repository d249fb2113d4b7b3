"""Structured methods: against torch's own, against an oracle, and by hand."""

import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch.nn.utils import prune as torch_prune

import gprune as gp
from gprune.testing import prior_masks, tensors
from tests.support import reference, reference_patterns
from tests.support.cases import fractions

NORMS = [1, 2, 3, 0.5, 1.7, 0, -1, -2.5, math.inf, -math.inf, "fro", "nuc"]


def shapes(least: int = 2, most: int = 4) -> st.SearchStrategy[tuple[int, ...]]:
    return st.lists(st.integers(0, 4), min_size=least, max_size=most).map(tuple)


def some_dim(draw: Any, scores: torch.Tensor) -> int:
    return draw(st.integers(-scores.dim(), scores.dim() - 1))


def channel_budgets(num_candidates: int) -> st.SearchStrategy[dict[str, Any]]:
    counts = st.integers(0, num_candidates)
    return st.one_of(
        st.fixed_dictionaries({"amount": counts}),
        st.fixed_dictionaries({"amount": fractions().filter(lambda x: not isinstance(x, int))}),
        st.fixed_dictionaries({"sparsity": fractions()}),
    )


def num_alive(scores: torch.Tensor, mask: torch.Tensor | None, dim: int) -> int:
    prior = reference_patterns.prior_of(scores, mask)
    groups = reference_patterns.channels(scores.shape, dim)
    return sum(any(prior[index] for index in group) for group in groups)


# --- against the oracle: ties, NaN, priors, every dtype ----------------------------------------


@given(tensors(shapes=shapes()), st.data())
def test_ln_structured(scores: torch.Tensor, data: st.DataObject) -> None:
    dim = some_dim(data.draw, scores)
    n = data.draw(st.sampled_from([1, 0, math.inf, -math.inf]))  # exact: no rounding makes a tie
    assume(n != 1 or scores.abs().double().nan_to_num(0).le(2**20).all())
    scores = scores.double().round() if n == 1 else scores
    mask = data.draw(st.none() | prior_masks(scores))
    budget = data.draw(channel_budgets(num_alive(scores, mask, dim)))
    got = gp.ln_structured(torch.zeros(scores.shape), scores, mask=mask, n=n, dim=dim, **budget)
    assert (got.dtype, got.shape, got.is_contiguous()) == (torch.bool, scores.shape, True)
    expected = reference_patterns.ln_structured(scores, mask, n, dim, **budget)
    assert got.flatten().tolist() == expected


@given(tensors(shapes=shapes()), st.data(), st.integers(0, 2**40))
def test_random_structured(scores: torch.Tensor, data: st.DataObject, seed: int) -> None:
    """The exact number of channels goes: those of the lowest draws."""
    dim = some_dim(data.draw, scores)
    mask = data.draw(st.none() | prior_masks(scores))
    budget = data.draw(channel_budgets(num_alive(scores, mask, dim)))
    got = gp.random_structured(scores, mask=mask, dim=dim, seed=seed, **budget)
    draws = gp.scores.random(torch.ones(scores.shape[dim]), seed=seed)
    groups = reference_patterns.channels(scores.shape, dim)
    prior = reference_patterns.prior_of(scores, mask)
    keep = reference_patterns.prune_groups(groups, draws.tolist(), prior, **budget)
    assert got.flatten().tolist() == reference_patterns.as_mask(scores.shape, keep)


# --- against torch, in rounds -------------------------------------------------------------------


def round_of_torch(weight: torch.Tensor, mask: torch.Tensor, **arguments: Any) -> torch.Tensor:
    container = torch_prune.PruningContainer()
    method = torch_prune.LnStructured(**arguments)
    container._tensor_name = method._tensor_name = "temp"
    container.add_pruning_method(method)
    return container.compute_mask(weight * mask, mask)


def some_zeros(weight: torch.Tensor, dim: int) -> torch.Tensor:
    """No two channels with as many entries that are not zero."""
    weight = weight.clone()
    for c in range(weight.shape[dim]):
        channel = weight.select(dim, c)
        channel[tuple(index[:c] for index in (channel != 0).nonzero().T)] = 0
    return weight


# torch has no nuclear norm but that of matrices
@pytest.mark.parametrize(
    ("n", "rank"), [(n, rank) for n in NORMS for rank in (2, 3, 4, 5) if n != "nuc" or rank == 3]
)
@pytest.mark.parametrize("from_the_end", [False, True])
def test_masks_are_those_of_torch(n: Any, rank: int, from_the_end: bool) -> None:
    """Three rounds in a row on the masked weight, as torch prunes a module; every dim."""
    generator = torch.Generator().manual_seed(rank)
    for dim in range(-rank, 0) if from_the_end else range(rank):
        dense = torch.randn([5, 7, 6, 3, 4][:rank], generator=generator, dtype=torch.float64)
        weight = some_zeros(dense, dim) if n == 0 else dense
        theirs, ours = torch.ones_like(weight), None
        for amount in (0.3, 1, 0.25):
            theirs = round_of_torch(weight, theirs, amount=amount, n=n, dim=dim)
            masked = weight if ours is None else gp.apply_masks(weight, ours)
            ours = gp.ln_structured(masked, mask=ours, n=n, dim=dim, amount=amount)
            assert torch.equal(ours, theirs.bool())


def test_channels_of_a_module_in_rounds_with_other_pruning_between() -> None:
    """What an unstructured round has pruned counts as zero; whole channels are no candidates."""
    generator = torch.Generator().manual_seed(0)
    module = torch.nn.Linear(6, 8)
    module.weight.data = torch.randn(8, 6, generator=generator)
    weight, mask = module.weight.detach().clone(), None
    torch_prune.l1_unstructured(module, "weight", 20)
    mask = gp.l1_unstructured(weight, mask=mask, amount=20)
    for n, dim, amount in [(2, 0, 3), (1, 1, 2), (math.inf, 0, 0.5)]:
        torch_prune.ln_structured(module, "weight", amount, n, dim)
        masked = gp.apply_masks(weight, mask)
        mask = gp.ln_structured(masked, mask=mask, n=n, dim=dim, amount=amount)
        assert torch.equal(mask, module.weight_mask.bool())


@pytest.mark.parametrize(
    ("shape", "arguments"),
    [
        ((4, 3), {"amount": 5, "n": 2, "dim": 0}),
        ((4, 3), {"amount": -1, "n": 2, "dim": 0}),
        ((4, 3), {"amount": 1.5, "n": 2, "dim": 0}),
        ((4, 3), {"amount": "x", "n": 2, "dim": 0}),
        ((4, 3), {"amount": 1, "n": 2, "dim": 2}),
        ((4, 3), {"amount": 1, "n": 2, "dim": -3}),
        ((4,), {"amount": 1, "n": 2, "dim": 0}),
    ],
)
def test_errors_are_those_of_torch(shape: tuple[int, ...], arguments: dict[str, Any]) -> None:
    scores = torch.rand(shape)
    module = torch.nn.Module()
    module.weight = torch.nn.Parameter(scores)
    with pytest.raises(Exception) as theirs:  # noqa: PT011 torch says which
        torch_prune.ln_structured(module, "weight", **arguments)
    with pytest.raises(type(theirs.value)):
        gp.ln_structured(scores, **arguments)


# --- by hand --------------------------------------------------------------------------------------


def test_golden() -> None:
    scores = torch.tensor([[3.0, -4.0], [5.0, 0.0], [0.0, 0.0]])  # norms 5, 5, 0; maxima 4, 5, 0
    assert gp.ln_structured(scores, n=2, dim=0, amount=2)[:, 0].tolist() == [False, True, False]
    assert gp.ln_structured(scores, n=1, dim=0, amount=2)[:, 0].tolist() == [True, False, False]
    assert gp.ln_structured(scores, n=math.inf, dim=0, amount=2)[:, 0].tolist() == [False, True, 0]
    nan = torch.tensor([[math.nan, 0.0], [9.0, 9.0]])
    assert gp.ln_structured(nan, n=2, dim=0, amount=1)[:, 0].tolist() == [True, False]
    cube = nan.expand(2, 2, 2)
    assert gp.ln_structured(cube, n="nuc", dim=1, amount=1)[0, :, 0].tolist() == [True, False]


def test_layers_of_one_shape_are_drawn_apart_and_counted_apart() -> None:
    params = {"a": torch.ones(50, 2), "b": torch.ones(50, 2), "bias": None}
    kinds = {"pruning_method": gp.random_structured, "dim": 0, "seed": 0}
    masks = gp.layerwise(params, amount={"a": 10, "b": 10, "bias": None}, **kinds)
    assert [int(masks[name][:, 0].sum()) for name in "ab"] == [40, 40]
    assert not torch.equal(masks["a"], masks["b"])


def test_errors_name_the_leaf() -> None:
    params = {"fc": torch.ones(3, 2), "bias": torch.ones(3)}
    method = {"pruning_method": gp.ln_structured, "n": 2, "dim": 0}
    with pytest.raises(ValueError, match=r"params\['bias'\]: .* two dim.* of shape \(3,\)"):
        gp.layerwise(params, amount=1, **method)
    with pytest.raises(IndexError, match=r"params\['fc'\]: dim 2 is out of range"):
        gp.layerwise({"fc": params["fc"]}, amount=1, **{**method, "dim": 2})
    with pytest.raises(ValueError, match=r"params\['fc'\]: the nuclear norm"):
        gp.layerwise({"fc": params["fc"]}, amount=1, **{**method, "n": "nuc"})
    params["bias"] = torch.ones(5, 2)
    with pytest.raises(ValueError, match=r"amount\['fc'\]: amount must be at most"):
        gp.layerwise(params, amount=4, **method)


def test_the_order_of_a_norm_is_any_real_number() -> None:
    scores = torch.tensor([[3.0, -4.0], [5.0, 1.0]])
    for n, same in ((Fraction(1, 2), 0.5), (2**70, float(2**70)), (np.float32(2), 2)):
        got = gp.ln_structured(scores, n=n, dim=0, amount=1)
        assert got.equal(gp.ln_structured(scores, n=same, dim=0, amount=1))
    with pytest.raises(ValueError, match="n must be within the range of a float"):
        gp.ln_structured(scores, n=10**400, dim=0, amount=1)
    with pytest.raises(TypeError, match="n must be a number"):
        gp.ln_structured(scores, n=np.array([1, 2]), dim=0, amount=1)


def test_the_oracle_itself() -> None:
    assert reference_patterns.norm([3.0, -4.0], 2) == 5
    assert reference_patterns.norm([3.0, -4.0, 0.0], 0) == 2
    assert reference_patterns.norm([3.0, math.nan, 0.0], 0) == 2
    assert reference_patterns.norm([2.0, -4.0], -1) == pytest.approx(4 / 3)
    assert reference.rank(math.nan) > reference.rank(math.inf)
