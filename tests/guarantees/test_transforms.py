"""Transforms beyond the contracts of test_contracts.py: derivatives, nesting, export."""

import copy
import io
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

import gprune as gp
from tests.support.assertions import assert_equal_masks

PARAMS = {"a": torch.linspace(-1, 1, 12).reshape(3, 4), "b": [torch.arange(5.0), None]}


def at(tree: Any, i: int) -> Any:
    return gp.trees.map_leaves(lambda leaf: None if leaf is None else leaf[i], tree)


# --- grad -------------------------------------------------------------------------------------


def sum_of_squares(tree: Any) -> torch.Tensor:
    return sum(((leaf**2).sum() for leaf in gp.trees.flatten(tree)[0]), torch.zeros(()))


FULL = {"a": PARAMS["a"], "b": [PARAMS["b"][0]]}


def masked_loss(params: Any, mask: Any) -> torch.Tensor:
    return sum_of_squares(mask(params, gp.global_unstructured(params, amount=0.5)))


def test_grad_through_a_selection_is_the_gradient_at_fixed_masks() -> None:
    masks = gp.global_unstructured(FULL, amount=0.5)
    grads = torch.func.grad(masked_loss)(FULL, gp.apply_masks)
    assert torch.equal(grads["a"], torch.where(masks["a"], 2 * FULL["a"], 0))
    through = torch.func.grad(masked_loss)(FULL, gp.straight_through)
    assert torch.equal(through["a"], torch.where(masks["a"], 2 * FULL["a"], 0))  # 2 * masked value
    ones = torch.func.grad(lambda p: gp.straight_through(p, masks)["a"].sum())(FULL)
    assert (ones["a"] == 1).all()


def test_second_derivatives() -> None:
    masks = gp.global_unstructured(FULL, amount=0.5)
    hessian = torch.func.hessian(masked_loss)(FULL, gp.apply_masks)
    diagonal = hessian["a"]["a"].reshape(12, 12).diagonal()
    assert torch.equal(diagonal, 2.0 * masks["a"].reshape(-1))
    jacobian = torch.func.jacrev(lambda p: gp.apply_masks(p, masks)["a"])(FULL)
    assert torch.equal(jacobian["a"].reshape(12, 12).diagonal(), masks["a"].reshape(-1).float())


def test_jvp_and_vmap_of_grad() -> None:
    tangents = gp.trees.map_leaves(torch.ones_like, FULL)
    _, out = torch.func.jvp(lambda p: masked_loss(p, gp.apply_masks), (FULL,), (tangents,))
    masks = gp.global_unstructured(FULL, amount=0.5)
    kept = gp.apply_masks(FULL, masks)
    torch.testing.assert_close(out, 2 * (kept["a"].sum() + kept["b"][0].sum()))
    many = gp.trees.map_leaves(lambda leaf: torch.stack([leaf, -leaf]), FULL)
    grads = torch.vmap(lambda p: torch.func.grad(masked_loss)(p, gp.apply_masks))(many)
    assert torch.equal(grads["a"][1], -torch.func.grad(masked_loss)(FULL, gp.apply_masks)["a"])


def test_autograd_of_leaf_parameters() -> None:
    weight = torch.nn.Parameter(torch.tensor([1.0, -3.0, 2.0]))
    masks = gp.global_unstructured([weight], amount=1)
    assert not masks[0].requires_grad
    gp.apply_masks([weight], masks)[0].sum().backward()
    assert weight.grad is not None
    assert weight.grad.tolist() == [0, 1, 1]


# --- functional_call, copies, files -----------------------------------------------------------


def test_functional_call_with_masked_parameters() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.BatchNorm1d(3)).eval()
    params = dict(model.named_parameters())
    masks = gp.global_unstructured(gp.prunable(params), amount=5)
    x = torch.randn(2, 4)
    before = {name: p.clone() for name, p in params.items()}
    got = torch.func.functional_call(model, gp.apply_masks(params, masks), (x,))
    weight = torch.where(masks["0.weight"], params["0.weight"], 0)
    expected = model[1](torch.nn.functional.linear(x, weight, params["0.bias"]))
    torch.testing.assert_close(got, expected)
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())


def test_masks_are_copied_and_saved_like_any_tensors() -> None:
    masks = gp.global_unstructured(PARAMS, amount=0.5)
    assert_equal_masks(copy.deepcopy(masks), masks, PARAMS)
    file = io.BytesIO()
    torch.save({"masks": masks, "threshold": tuple(gp.find_threshold(PARAMS, amount=0.5))}, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=True)
    assert_equal_masks(loaded["masks"], masks, PARAMS)
    assert_equal_masks(
        gp.masks_from_threshold(gp.Threshold(*loaded["threshold"]), PARAMS), masks, PARAMS
    )


# --- tensors without data ---------------------------------------------------------------------


def shapes(tree: Any) -> list[Any]:
    return [None if x is None else (x.shape, x.dtype) for x in gp.trees.flatten(tree)[0]]


@pytest.mark.parametrize("amount", [0.5, 3, torch.tensor(0.5)], ids=["float", "int", "tensor"])
def test_fake_tensors(amount: Any) -> None:
    real = gp.global_unstructured(PARAMS, amount=amount)
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    fake = gp.trees.map_leaves(
        lambda leaf: None if leaf is None else mode.from_tensor(leaf), PARAMS
    )
    with mode:
        assert shapes(gp.global_unstructured(fake, amount=amount)) == shapes(real)


def test_make_fx_and_export() -> None:
    def prune(a: torch.Tensor, amount: torch.Tensor) -> torch.Tensor:
        return gp.global_unstructured([a], amount=amount)[0]

    a, amount = PARAMS["a"], torch.tensor(0.5)
    graph = make_fx(prune)(a, amount)
    assert torch.equal(graph(a * 2, torch.tensor(0.25)), prune(a * 2, torch.tensor(0.25)))

    class Pruner(torch.nn.Module):
        def forward(self, a: torch.Tensor, amount: torch.Tensor) -> torch.Tensor:
            return prune(a, amount)

    file = io.BytesIO()
    torch.export.save(torch.export.export(Pruner(), (a, amount)), file)
    file.seek(0)
    loaded = torch.export.load(file).module()
    assert torch.equal(loaded(a, torch.tensor(0.75)), prune(a, torch.tensor(0.75)))
