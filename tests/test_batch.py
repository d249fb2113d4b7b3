"""A batch under vmap is the stack of its elements, side by side in one operator or in turn."""

from typing import Any

import torch
from hypothesis import given
from hypothesis import strategies as st

import gprune as gp
from gprune.testing import SCORE_DTYPES, param_trees, prior_masks
from tests.support import reference
from tests.support.assertions import assert_equal_masks, assert_masks

SIZE = 3


def stack(trees: list[Any]) -> Any:
    return gp.trees.map_leaves(lambda *xs: None if xs[0] is None else torch.stack(xs), *trees)


def element(tree: Any, i: int) -> Any:
    return gp.trees.map_leaves(lambda x: None if x is None else x[i], tree)


def permuted(tree: Any, i: int) -> Any:
    """Another tree of the same shapes: the entries of every leaf, rolled."""
    return gp.trees.map_leaves(
        lambda x: None if x is None else x.reshape(-1).roll(i).reshape(x.shape), tree
    )


def flat(params: Any) -> list[Any]:
    """The leaves as a list, since torch's vmap does not know optree's custom nodes."""
    return gp.trees.flatten(params)[0]


@given(param_trees().map(flat), st.floats(0, 1), st.booleans(), st.data())
def test_a_batch_of_models(params: Any, sparsity: float, layers: bool, data: st.DataObject) -> None:
    models = [permuted(params, i) for i in range(SIZE)]
    priors = [data.draw(prior_masks(params)) for _ in range(SIZE)]
    shared = data.draw(st.booleans())  # one prior for all models, without a batch dimension
    prune = gp.layerwise if layers else gp.global_unstructured
    dims = gp.vmap_dims(params)
    masks = torch.vmap(
        lambda p, m: prune(p, masks=m, sparsity=sparsity),
        in_dims=(dims, None if shared else dims),
        out_dims=dims,
    )(stack(models), priors[0] if shared else stack(priors))
    for i, model in enumerate(models):
        alone = prune(model, masks=priors[0 if shared else i], sparsity=sparsity)
        assert_equal_masks(element(masks, i), alone, model)


@given(param_trees(dtypes=SCORE_DTYPES[:1]).map(flat), st.floats(0, 1))
def test_a_batch_of_models_against_the_oracle(params: Any, amount: float) -> None:
    models = [permuted(params, i) for i in range(SIZE)]
    dims = gp.vmap_dims(params)
    masks = torch.vmap(
        lambda p: gp.global_unstructured(p, amount=amount), in_dims=(dims,), out_dims=dims
    )(stack(models))
    for i, model in enumerate(models):
        k = reference.count(model, None, amount=amount)
        assert_masks(element(masks, i), reference.global_masks(model, None, k, None), model)
