"""Comparison groups: with `dim=`, the guarantees hold within each group of a leaf."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import gprune as gp
from gprune.testing import prior_masks, tensors
from tests.support import reference

METHODS = {"lowest": gp.lowest_unstructured, "l1": gp.l1_unstructured}


def groups(tensor: torch.Tensor, dims: list[int]) -> torch.Tensor:
    """One row per group, of the entries that differ in nothing but `dims`."""
    if tensor.numel() == 0:
        return tensor.new_empty(0, 0)
    rest = [d for d in range(tensor.dim()) if d not in dims]
    rows = tensor.permute(rest + dims).reshape(*(tensor.shape[d] for d in rest), -1)
    return rows.reshape(-1, rows.shape[-1])


@given(tensors().filter(lambda t: t.dim() > 0), st.data())
def test_every_group_is_pruned_as_if_alone(scores: torch.Tensor, data: st.DataObject) -> None:
    dims = sorted(data.draw(st.sets(st.integers(0, scores.dim() - 1), min_size=1)))
    signed = tuple(d - scores.dim() if data.draw(st.booleans()) else d for d in dims)
    dim = signed[0] if len(signed) == 1 else signed
    mask = data.draw(st.none() | prior_masks(scores))
    budget = data.draw(
        st.one_of(
            st.fixed_dictionaries({"amount": st.floats(0, 1)}),
            st.fixed_dictionaries({"sparsity": st.floats(0, 1)}),
            st.just({"amount": 0}),
        )
    )
    name = data.draw(st.sampled_from(sorted(METHODS)))
    if scores.numel() and all(scores.shape[d] == 1 for d in dims):
        with pytest.raises(ValueError, match="single entry"):
            METHODS[name](scores, mask=mask, dim=dim, **budget)
        return
    got = METHODS[name](scores, scores, mask=mask, dim=dim, **budget)
    assert (got.dtype, got.shape, got.is_contiguous()) == (torch.bool, scores.shape, True)
    masks = [None] * scores.numel() if mask is None else list(groups(mask, dims))
    for row, kept, prior in zip(groups(scores, dims), groups(got, dims), masks, strict=False):
        k = reference.count(row, prior, **budget)
        ranked = None if name == "l1" else row
        expected = reference.global_masks(row, ranked, k, prior)
        assert [kept.tolist()] == expected


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


@pytest.mark.parametrize("rows", [1, 3, 1000])
def test_more_rows_than_a_block_holds(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    scores = torch.randint(0, 5, (rows, 17), generator=torch.Generator().manual_seed(rows))
    together = gp.lowest_unstructured(scores, amount=0.3, dim=-1)
    monkeypatch.setattr("gprune.select.rows.BLOCK", 40)
    assert torch.equal(gp.lowest_unstructured(scores, amount=0.3, dim=-1), together)


@pytest.mark.parametrize(
    ("dim", "error", "words"),
    [
        (2, ValueError, r"dim is 2 for a leaf of shape \(2, 3\)"),
        (-3, ValueError, "dim is -3"),
        ((0, -2), ValueError, "each dim once"),
        ("x", TypeError, "an int, a tuple of ints or a function .* got 'x'"),
        (True, TypeError, "an int"),
        ((), TypeError, "an int"),
        (1.0, TypeError, "an int"),
    ],
)
def test_bad_dims(dim: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        gp.lowest_unstructured(torch.ones(2, 3), amount=1, dim=dim)


def test_a_global_ranking_has_no_groups() -> None:
    with pytest.raises(ValueError, match="use layerwise"):
        gp.global_unstructured([torch.ones(2, 3)], amount=1, dim=-1)


def test_an_amount_above_the_candidates_of_one_group_is_refused() -> None:
    mask = torch.tensor([[True, True, True], [True, False, False]])
    with pytest.raises(ValueError, match="candidates, 1"):
        gp.lowest_unstructured(torch.ones(2, 3), mask=mask, amount=2, dim=-1)


# --- real networks --------------------------------------------------------------------------------

NETWORK = {
    "c1": torch.randn(16, 32, 1, 1, generator=torch.Generator().manual_seed(1)),
    "c3": torch.randn(16, 32, 3, 3, generator=torch.Generator().manual_seed(2)),
    "fc": torch.randn(10, 32, generator=torch.Generator().manual_seed(3)),
}


def test_wanda_and_two_of_four_prune_half_of_every_layer() -> None:
    wanda = gp.layerwise(NETWORK, amount=0.5, dim=gp.input_dims)
    for name, mask in wanda.items():
        weight = NETWORK[name].flatten(1)
        half = weight.shape[1] // 2
        lowest = weight.abs().argsort(1)[:, :half]
        assert mask.flatten(1).equal(torch.ones_like(weight).scatter(1, lowest, 0).bool()), name
    patterned = gp.layerwise(NETWORK, pruning_method=gp.n_of_m, n=2, m=4)
    for mask in patterned.values():
        groups = mask.movedim(1, -1).reshape(-1, 4)
        assert (groups.sum(1) == 2).all()
    gp.check_n_of_m(patterned, n=2, m=4)


def test_dims_of_inputs() -> None:
    shapes = {(5,): (0,), (2, 3): (1,), (2, 3, 4): (1, 2), (2, 3, 4, 5): (1, 2, 3)}
    for shape, dims in shapes.items():
        assert gp.input_dims("any.path", torch.ones(shape)) == dims


def test_a_function_is_given_the_path_and_the_leaf() -> None:
    params = {"up": [torch.rand(2, 3), None], "down": {"w": torch.rand(3, 2)}}
    seen = []

    def dims(path: str, leaf: torch.Tensor) -> int | tuple[int, ...]:
        seen.append((path, tuple(leaf.shape)))
        return (0,) if path == "up.0" else -1

    masks = gp.layerwise(params, amount=1, dim=dims)
    assert seen == [("down.w", (3, 2)), ("up.0", (2, 3))]
    assert masks["up"][0].sum(0).tolist() == [1, 1, 1]
    assert masks["down"]["w"].sum(1).tolist() == [1, 1, 1]
    seen.clear()
    gp.lowest_unstructured(torch.rand(2, 3), amount=1, dim=dims)
    assert seen == [("", (2, 3))]


def test_scores_may_differ_from_the_leaf_that_the_function_is_given() -> None:
    """The function sees the parameter, and not its scores."""
    seen = []

    def dims(path: str, leaf: torch.Tensor) -> int:
        seen.append(leaf.dtype)
        return 1

    param = torch.rand(2, 3, dtype=torch.float64)
    gp.layerwise([param], [torch.rand(2, 3)], amount=1, dim=dims)
    gp.layerwise([param], [torch.rand(2, 3)], pruning_method=gp.n_of_m, n=1, m=2, dim=dims)
    assert seen == [torch.float64] * 2


def test_an_error_within_groups_names_the_leaf() -> None:
    params = {"a": torch.ones(2, 3), "b": torch.ones(2, 2)}
    with pytest.raises(ValueError, match=r"amount\['b'\]: amount must be at most .* 2"):
        gp.layerwise(params, amount=3, dim=-1)
    integers = {"a": torch.ones(2, 3, dtype=torch.int64), "b": torch.full((2, 3), 2**60)}
    for kwargs in ({"amount": 1, "dim": -1}, {"pruning_method": gp.n_of_m, "n": 1, "m": 2}):
        with pytest.raises(ValueError, match=r"^scores\['b'\]: int64 scores"):
            gp.layerwise(integers, **kwargs)


def test_groups_of_a_single_entry_are_an_error_but_for_empty_leaves() -> None:
    """The last dim of a 1x1 convolution is the width of its kernel."""
    with pytest.raises(ValueError, match=r"params\['c1'\]: .* dim 3 is a single entry.*prunable"):
        gp.layerwise(NETWORK, amount=0.5, dim=-1)
    with pytest.raises(ValueError, match=r"params\['c1'\]: .* dim 3 is a single entry.*prunable"):
        gp.layerwise(NETWORK, pruning_method=gp.n_of_m, n=2, m=4, dim=lambda path, x: x.dim() - 1)
    with pytest.raises(ValueError, match=r"masks\['c1'\]: .* dim 3 is a single entry"):
        gp.check_n_of_m(gp.keep_all({"c1": NETWORK["c1"]}), n=4, m=4, dim=3)
    empty = torch.ones(0, 1)
    assert gp.lowest_unstructured(empty, amount=0.5, dim=1).shape == (0, 1)
    assert gp.n_of_m(empty, n=2, m=4).shape == (0, 1)
    assert gp.n_of_m(torch.ones(3, 1), n=1, m=1).all()


def test_a_dim_shorter_than_m_keeps_its_n_highest() -> None:
    assert gp.n_of_m(torch.tensor([[3.0, 1.0, 2.0]]), n=2, m=4).tolist() == [[True, False, True]]
    assert gp.n_of_m(torch.tensor([[3.0, 1.0]]), n=2, m=4).all()
