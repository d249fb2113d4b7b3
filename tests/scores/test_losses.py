"""Scores of a loss: derivatives of any parameters, compiled, vmapped and pure."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

import gprune as gp
from gprune.testing import assert_pure
from tests.support import reference
from tests.support.models import MODELS, Model
from tests.support.scoring import each_model, setting
from tests.support.transforms import assert_compiles, assert_vmaps


def all_of_a_loss(model: Model) -> Callable[[Any], Any]:
    """Every score that takes a loss or a forward pass, of a tree of parameters and a batch."""

    def scores(inputs: Any) -> Any:
        params, args = inputs["params"], (model.loss, inputs["params"], inputs["x"], inputs["y"])
        shape = (1, *model.inputs[1:])
        return {
            "snip": gp.scores.snip(*args),
            "grasp": gp.scores.grasp(*args),
            "fisher": gp.scores.fisher(*args, chunk_size=2),
            "hessian_diagonal": gp.scores.hessian_diagonal(*args, seed=0, num_probes=2),
            "synflow": gp.scores.synflow(model.forward, params, shape),
            "wanda": gp.scores.wanda(
                gp.prunable(params), gp.scores.input_norms(model.forward, params, [inputs["x"]])
            ),
        }

    return scores


def inputs_of(model: Model, seed: int) -> Any:
    x, y = model.batch(seed)
    return {"params": model.params(seed), "x": x, "y": y}


@pytest.mark.slow
@pytest.mark.parametrize(
    "score",
    [
        gp.scores.snip,
        pytest.param(gp.scores.grasp, marks=pytest.mark.long),
        pytest.param(gp.scores.fisher, marks=pytest.mark.long),
    ],
)
def test_scores_of_a_network_compile_whole(score: Any) -> None:
    """One network, since a trace of forward over reverse takes seconds; see test_contracts.py."""
    model = MODELS["attention"]
    inputs = [inputs_of(model, seed) for seed in range(2)]
    assert_compiles(
        lambda x: score(model.loss, x["params"], x["x"], x["y"]), inputs, rtol=1e-4, atol=1e-5
    )


@each_model
def test_scores_of_networks_vmap(name: str) -> None:
    """An ensemble, each network with its own data."""
    model = MODELS[name]
    members = [inputs_of(model, seed) for seed in range(3)]
    batch = gp.trees.map_leaves(lambda *xs: None if xs[0] is None else torch.stack(xs), *members)
    assert_vmaps(all_of_a_loss(model), batch, rtol=1e-4, atol=1e-5)


@each_model
def test_scores_of_networks_are_pure(name: str) -> None:
    model = MODELS[name]
    inputs = inputs_of(model, 0)
    for leaf in reference.tensors_of(inputs["params"]):
        leaf.requires_grad_()
    # the norms of a linear layer are one row: the scores are fresh, and so are the norms
    assert_pure(all_of_a_loss(model), inputs)


def test_all_is_scored_and_none_leaves_choose_afterwards() -> None:
    """A loss needs every parameter; which of them are pruned is said where they are pruned."""
    model, params, batch = setting("mlp", torch.float32)
    scores = gp.scores.snip(model.loss, params, *batch)
    assert scores["in.bias"] is not None
    masks = gp.global_unstructured(gp.prunable(params), scores, sparsity=0.5)
    assert masks["in.bias"] is None
    assert gp.num_pruned(masks) == gp.num_to_prune(0.5, 35)


def test_expanded_parameters_are_differentiated_forward_too() -> None:
    """As `vmap` and `expand` make them: several entries in one place of memory."""
    expanded = torch.tensor([2.0]).expand(3)
    scores = gp.scores.grasp(lambda w: (w**3).sum() / 3, expanded)
    assert scores.equal(gp.scores.grasp(lambda w: (w**3).sum() / 3, expanded.clone()))
    diagonal = gp.scores.hessian_diagonal(lambda w: (w**3).sum() / 6, expanded, seed=0)
    assert diagonal.tolist() == [2.0, 2.0, 2.0]
