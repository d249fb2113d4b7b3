"""The checks at the public edge: which leaves are ranked, and what the checks cost."""

from typing import Any

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

import gprune as gp
from gprune import inputs
from gprune.select import keys
from gprune.testing import param_trees, prior_masks, scores_for
from tests.support import reference
from tests.support.assertions import assert_equal_masks
from tests.support.cases import budgets, map_tensors

WEIGHTS = {"a": torch.tensor([1.0, -4.0]), "b": torch.tensor([3.0, -2.0])}
KEEP_B = {"a": None, "b": torch.tensor([True, True])}


def without(tree: Any, leaves: Any) -> Any:
    """`None` in the place of some leaves."""
    chosen = iter(leaves)
    return map_tensors(lambda leaf: None if next(chosen) else leaf, tree)


# --- leaves whose prior mask is None ------------------------------------------------------------


@given(param_trees(), st.data())
def test_a_leaf_without_a_prior_mask_is_as_if_it_was_not_prunable(
    params: Any, data: st.DataObject
) -> None:
    leaves = [leaf for leaf in reference.leaves(params) if leaf is not None]
    chosen = data.draw(st.lists(st.booleans(), min_size=len(leaves), max_size=len(leaves)))
    assume(not all(chosen))
    scores = data.draw(st.none() | scores_for(params))
    masks = without(data.draw(prior_masks(params)), chosen)
    ranked = without(params, chosen)
    budget = data.draw(budgets(reference.num_candidates(ranked, masks)))
    budget = budget if "sparsity" in budget else {"amount": 0.5}
    for prune in (gp.global_unstructured, gp.layerwise):
        expected = prune(ranked, scores, masks=masks, **budget)
        assert_equal_masks(prune(params, scores, masks=masks, **budget), expected, ranked)
    threshold = gp.find_threshold(params, scores, masks=masks, **budget)
    same = gp.find_threshold(ranked, scores, masks=masks, **budget)
    assert repr([x.item() for x in threshold]) == repr([x.item() for x in same])  # NaN is NaN
    got = gp.masks_from_threshold(threshold, params, scores, masks=masks)
    assert_equal_masks(got, gp.masks_from_threshold(threshold, ranked, scores, masks=masks), ranked)


def test_scores_and_amounts_at_leaves_that_are_not_ranked_do_not_matter() -> None:
    for anything in (None, torch.ones(7), torch.tensor([True]), "x"):
        scores = {"a": anything, "b": WEIGHTS["b"]}
        got = gp.global_unstructured(WEIGHTS, scores, masks=KEEP_B, amount=1)
        assert (got["a"], got["b"].tolist()) == (None, [True, False])
    for amount in (None, 99, -1, "x"):
        got = gp.layerwise(WEIGHTS, masks=KEEP_B, amount={"a": amount, "b": 1})
        assert (got["a"], got["b"].tolist()) == (None, [True, False])
    sparsity = gp.allocation.uniform(WEIGHTS, sparsity=0.5)
    got = gp.layerwise(WEIGHTS, masks=KEEP_B, sparsity=sparsity)
    assert (got["a"], got["b"].tolist()) == (None, [True, False])


def test_a_leaf_that_is_not_ranked_may_have_any_dtype() -> None:
    params = {"a": torch.tensor([True, False]), "b": WEIGHTS["b"]}
    assert gp.global_unstructured(params, masks=KEEP_B, amount=1)["b"].tolist() == [True, False]


def test_a_users_method_does_not_see_leaves_that_are_not_ranked() -> None:
    seen = []

    @gp.pruning_method("unstructured")
    def method(param: torch.Tensor, scores: Any, *, mask: torch.Tensor) -> torch.Tensor:
        seen.append(param.tolist())
        return mask

    for prune in (gp.global_unstructured, gp.layerwise):
        assert prune(WEIGHTS, masks=KEEP_B, pruning_method=method)["a"] is None
    assert seen == [[3.0, -2.0]] * 2


def test_errors_of_values_name_the_leaf_also_behind_one_that_is_not_ranked() -> None:
    params = {"a": torch.tensor([1]), "b": torch.tensor([2**60])}
    masks = {"a": None, "b": torch.tensor([True])}
    with pytest.raises(ValueError, match=r"params\['b'\]: int64 scores"):
        gp.global_unstructured(params, masks=masks, amount=1)
    with pytest.raises(ValueError, match=r"amount\['b'\] must be a number"):
        gp.layerwise(params, masks=masks, amount={"a": 1, "b": None})


@pytest.mark.slow
def test_none_masks_and_functions_of_paths_compile() -> None:
    params = {"a": torch.rand(2, 3), "b": torch.rand(3, 4), "c": None}
    masks = {"a": None, "b": torch.rand(3, 4) < 0.7, "c": None}

    def prune(amount: torch.Tensor) -> Any:
        paths = []

        def dims(path: str, leaf: torch.Tensor) -> tuple[int, ...]:
            paths.append(path)
            return gp.input_dims(path, leaf)

        return (
            gp.global_unstructured(params, masks=masks, sparsity=amount),
            gp.layerwise(params, masks=masks, sparsity={"a": 9, "b": amount, "c": None}, dim=dims),
            gp.n_of_m(params["b"], mask=masks["b"], n=1, m=2),
            gp.lowest_unstructured(params["b"], mask=masks["b"], sparsity=amount),
            paths,
        )

    got = torch.compile(prune, backend="eager", fullgraph=True)(torch.tensor(0.5))
    expected = prune(torch.tensor(0.5))
    assert got[-1] == expected[-1] == ["b"]
    for ours, theirs in zip(got[:2], expected[:2], strict=True):
        assert ours["a"] is ours["c"] is None
        assert ours["b"].equal(theirs["b"])
    assert got[2].equal(expected[2])
    assert got[3].equal(expected[3])


def test_masks_that_are_all_none_say_what_to_pass() -> None:
    for prune in (gp.global_unstructured, gp.layerwise, gp.find_threshold):
        with pytest.raises(ValueError, match=r"every mask .* is None.*keep_all\(params\)"):
            prune(WEIGHTS, masks={"a": None, "b": None}, amount=1)
    with pytest.raises(ValueError, match=r"masks\['a'\] is a tensor, its parameter is None"):
        gp.global_unstructured({"a": None, "b": WEIGHTS["b"]}, masks=gp.keep_all(WEIGHTS), amount=1)


def test_an_error_about_what_ranks_names_the_tree_that_was_given() -> None:
    large = {"a": torch.ones(2), "b": torch.tensor([2**53 + 1])}
    for prune in (gp.global_unstructured, gp.layerwise, gp.find_threshold):
        with pytest.raises(ValueError, match=r"^params\['b'\]: int64 scores must be at most"):
            prune(large, amount=1)
        with pytest.raises(ValueError, match=r"^scores\['b'\]: int64 scores must be at most"):
            prune(gp.keep_all(large), large, amount=1)
    with pytest.raises(ValueError, match=r"^int64 scores must be at most"):
        gp.l1_unstructured(large["b"], amount=1)


# --- what the checks are, and cost ----------------------------------------------------------------


def test_the_dtypes_of_scores_are_those_that_have_keys() -> None:
    assert keys.FORMATS.keys() == inputs.RANKABLE_DTYPES.keys()
    for dtype, floating in inputs.RANKABLE_DTYPES.items():
        finfo = torch.finfo(floating)
        if dtype.is_floating_point:
            assert dtype == floating
        else:  # consecutive integers are consecutive floats up to 2 / eps
            assert min(torch.iinfo(dtype).max, 2**53) <= 2 / finfo.eps


@pytest.mark.parametrize("prune", [gp.global_unstructured, gp.layerwise])
def test_no_path_is_made_and_no_tree_is_flattened_twice(
    prune: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Paths take longer than all checks: they are made for an error, or for a function of paths."""

    def forbidden(*args: Any) -> Any:
        raise AssertionError("paths were made")

    flattened = []
    flatten = gp.trees.flatten

    def counted(tree: Any) -> Any:
        if isinstance(tree, dict):
            flattened.append(id(tree))
        return flatten(tree)

    for module in ("gprune.inputs", "gprune.trees"):
        monkeypatch.setattr(f"{module}.leaf_names", forbidden)
        monkeypatch.setattr(f"{module}.flatten", counted)
    monkeypatch.setattr("gprune.inputs.dotted_paths", forbidden)
    scores, masks = gp.scores.magnitude(WEIGHTS), gp.keep_all(WEIGHTS)
    flattened.clear()
    prune(WEIGHTS, scores, masks=masks, amount=1)
    assert sorted(flattened) == sorted(map(id, (WEIGHTS, scores, masks)))
    with pytest.raises(AssertionError, match="paths were made"):
        prune(WEIGHTS, scores, masks={"a": KEEP_B["b"], "b": torch.ones(2)}, amount=1)
