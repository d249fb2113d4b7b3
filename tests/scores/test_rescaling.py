"""LAMP and L2 normalization: against oracles, at the ends of the dtypes, and under scaling."""

from typing import Any

import pytest
import torch
from hypothesis import given

import gprune as gp
from tests.support import reference
from tests.support.accelerator import DEVICE, measured
from tests.support.cases import map_tensors
from tests.support.scoring import assert_close, each_dtype, each_model, finite_trees, setting


@each_model
@each_dtype
def test_normalize_l2(name: str, dtype: torch.dtype) -> None:
    _, params, _ = setting(name, dtype)
    scores = gp.scores.magnitude(params)
    assert_close(gp.scores.normalize_l2(scores), reference.normalize_l2(scores), dtype)


def test_normalize_l2_takes_scores_and_no_weights() -> None:
    """Weights would rank by their sign: the largest negative one would go first."""
    params = {"fc": {"weight": torch.tensor([1.0, -8.0, 2.0]), "bias": None}}
    with pytest.raises(
        ValueError, match=r"scores\['fc'\]\['weight'\] has neg.*magnitude\(params\)"
    ):
        gp.scores.normalize_l2(params)
    scores = gp.scores.normalize_l2(gp.scores.magnitude(params))
    masks = gp.global_unstructured(params, scores, amount=1)
    assert masks["fc"]["weight"].tolist() == [False, True, True]
    zeros = gp.scores.normalize_l2([torch.tensor([-0.0, 3.0])])
    assert zeros[0].tolist() == [0, 1]


def test_a_negative_score_is_seen_in_a_batch_and_ranks_last_in_a_trace() -> None:
    scores = torch.tensor([[3.0, 4.0], [3.0, -4.0]])
    with pytest.raises(ValueError, match="has negative entries"):
        torch.vmap(gp.scores.normalize_l2)(scores)
    compiled = torch.compile(gp.scores.normalize_l2, fullgraph=True, backend="aot_eager")
    assert compiled(list(scores))[0].tolist() == pytest.approx([0.6, 0.8])
    assert compiled(list(scores))[1].isnan().all()


extremes = pytest.mark.parametrize(
    ("dtype", "scale"),
    [
        (torch.float32, 1e-30),
        (torch.float32, 1e30),
        (torch.float64, 1e-200),
        (torch.float64, 1e200),
    ],
)


@extremes
def test_normalize_l2_neither_vanishes_nor_overflows(dtype: torch.dtype, scale: float) -> None:
    leaf = torch.tensor([3.0, 4.0], dtype=dtype) * scale
    want = torch.tensor([0.6, 0.8], dtype=dtype)
    torch.testing.assert_close(gp.scores.normalize_l2(leaf), want)


@each_model
@each_dtype
def test_lamp(name: str, dtype: torch.dtype) -> None:
    _, params, _ = setting(name, dtype)
    assert_close(gp.scores.lamp(params), reference.lamp(params), dtype)


@extremes
def test_lamp_neither_vanishes_nor_overflows(dtype: torch.dtype, scale: float) -> None:
    """The largest scores 1, whatever its square is."""
    leaf = torch.tensor([3.0, -4.0], dtype=dtype) * scale
    want = torch.tensor([9 / 25, 1.0], dtype=dtype)
    torch.testing.assert_close(gp.scores.lamp(leaf), want)


def test_lamp_waits_for_an_accelerator_once() -> None:
    """The scores are checked together, whatever the number of leaves is."""
    waits = []
    for num_leaves in (1, 20):
        params = [torch.randn(30).to(DEVICE) for _ in range(num_leaves)]
        with measured() as cost:
            gp.scores.lamp(params)
        waits.append(cost.waits)
    assert waits == [1, 1]


def test_lamp_of_ties_and_zeros() -> None:
    params = [
        torch.tensor([2.0, -2.0, 1.0, 0.0]),
        torch.zeros(2),
        torch.zeros(0),
        torch.tensor(3.0),
    ]
    got = gp.scores.lamp(params)
    assert [leaf.tolist() for leaf in got[1:]] == [[0, 0], [], 1]
    torch.testing.assert_close(got[0], torch.tensor([4 / 8, 1, 1 / 9, 0]))


@given(finite_trees)
def test_the_largest_weight_of_each_leaf_has_lamp_one(params: Any) -> None:
    for leaf, score in zip(
        reference.leaves(params), reference.leaves(gp.scores.lamp(params)), strict=True
    ):
        if leaf is None or not leaf.numel():
            continue
        assert score.min() >= 0
        assert score.max() == (1 if leaf.abs().max() > 0 else 0)
        order = leaf.double().abs().flatten().argsort(stable=True)
        assert (score.flatten()[order].diff() >= 0).all()


@given(finite_trees)
def test_lamp_does_not_see_the_scale_of_a_leaf(params: Any) -> None:
    params = map_tensors(lambda leaf: leaf.double().round(decimals=3), params)
    larger = map_tensors(lambda leaf: leaf * 8, params)
    assert reference.lists(gp.scores.lamp(params)) == reference.lists(gp.scores.lamp(larger))


@given(finite_trees)
def test_normalized_leaves_have_norm_one_and_their_own_order(params: Any) -> None:
    scores = gp.scores.magnitude(params)
    for leaf, unit in zip(
        reference.leaves(scores), reference.leaves(gp.scores.normalize_l2(scores)), strict=True
    ):
        if leaf is None or not leaf.numel():
            continue
        norm = unit.double().norm()
        assert norm == 0 if not leaf.any() else abs(norm - 1) < 1e-6
        assert (unit.flatten()[leaf.flatten().argsort()].diff() >= 0).all()
