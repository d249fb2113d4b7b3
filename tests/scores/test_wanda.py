"""Wanda and the norms of inputs: against an oracle, and the error of the output."""

from typing import Any
from unittest import mock

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F  # noqa: N812  torch's own name for it

import gprune as gp
from tests.support import reference
from tests.support.models import Model
from tests.support.scoring import assert_close, each_dtype, each_model, seeds, setting


def recorded_layers(model: Model, params: Any, x: torch.Tensor) -> list[tuple[Any, Any]]:
    """Every call of a layer as (weight, function of the weight), by patching torch itself."""
    calls: list[tuple[Any, Any]] = []

    def patched(layer: Any) -> Any:
        def record(x: Any, weight: Any, bias: Any = None, *args: Any, **kwargs: Any) -> Any:
            calls.append((weight, lambda w: layer(x, w, bias, *args, **kwargs)))
            return layer(x, weight, bias, *args, **kwargs)

        return record

    layers = {name: patched(getattr(F, name)) for name in ("linear", "conv1d", "conv2d")}
    with mock.patch.multiple(F, **layers):
        model.forward(params, x)
    return calls


@each_model
@each_dtype
def test_wanda_is_the_error_of_the_output_without_a_weight(name: str, dtype: torch.dtype) -> None:
    """Its square, over all batches: of linear layers and of convolutions of every kind."""
    model, params, _ = setting(name, dtype)
    batches = [model.batch(seed)[0].to(dtype) for seed in range(3)]
    norms = gp.scores.input_norms(model.forward, params, iter(batches))
    got = gp.scores.wanda(gp.prunable(params), norms)
    exact = reference.doubled(params)
    errors = {id(leaf): torch.zeros_like(leaf) for leaf in reference.tensors_of(exact)}
    for x in batches:
        for weight, layer in recorded_layers(model, exact, x.double()):
            errors[id(weight)] += reference.removal_errors(layer, weight)
    want = reference.over(lambda leaf: errors[id(leaf)].sqrt(), gp.prunable(exact))
    assert_close(got, want, dtype)


def test_norms_of_a_linear_layer_are_one_row_in_memory() -> None:
    params = {"weight": torch.randn(50, 4), "other": torch.randn(3, 3)}
    norms = gp.scores.input_norms(
        lambda p, x: F.linear(x, p["weight"]), params, [torch.randn(6, 4)]
    )
    assert norms["other"] is None
    assert norms["weight"].shape == (50, 4)
    assert norms["weight"].untyped_storage().nbytes() == 4 * 4


def test_norms_of_a_module_and_of_a_weight_that_is_used_twice() -> None:
    layer = torch.nn.Linear(4, 4, bias=False)
    params = dict(layer.named_parameters())
    x = torch.randn(7, 4)

    def twice(params: Any, x: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(
            layer, params, (torch.func.functional_call(layer, params, (x,)),)
        )

    norms = gp.scores.input_norms(twice, params, [x])["weight"]
    want = torch.cat([x, layer(x)]).norm(dim=0)
    torch.testing.assert_close(norms, want.expand(4, 4))
    assert not norms.requires_grad


def test_squares_are_not_rounded_by_autocast() -> None:
    def forward(params: Any, x: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return F.linear(x, params)

    x = torch.randn(100, 3)
    norms = gp.scores.input_norms(forward, torch.randn(2, 3), [x])
    torch.testing.assert_close(norms, x.norm(dim=0).expand(2, 3))


def test_norms_of_a_million_positions_are_as_exact_as_those_of_a_few() -> None:
    """One batch of a language model has as many tokens, one image as many pixels."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(2**20, 2, generator=generator)
    norms = gp.scores.input_norms(lambda w, x: F.linear(x, w), torch.ones(1, 2), [rows])
    assert_close(norms, rows.double().norm(dim=0, keepdim=True), torch.float32)
    image = rows[: 2**18, :1].reshape(1, 1, 2**9, 2**9)
    norms = gp.scores.input_norms(lambda w, x: F.conv2d(x, w), torch.ones(1, 1, 3, 3), [image])
    windows = image.double().squeeze().unfold(0, 510, 1).unfold(1, 510, 1)
    assert_close(norms, windows.square().sum((2, 3)).sqrt().reshape(1, 1, 3, 3), torch.float32)


def one_by_one(weight: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    return torch.vmap(lambda row: F.linear(row, weight))(x)


def with_derivatives(weight: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    return torch.vmap(torch.func.grad(lambda row: F.linear(row, weight).sum()))(x)


def pairwise(weight: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    return torch.vmap(one_by_one, in_dims=(None, 1))(weight, x.reshape(-1, 2, 3))


@pytest.mark.parametrize("forward", [one_by_one, with_derivatives, pairwise])
def test_norms_of_a_network_of_one_example_under_vmap(forward: Any) -> None:
    """As many networks of `torch.func` are written; and in the batches of a `vmap` around it."""
    weight, x = torch.randn(2, 3), torch.randn(2, 6, 3)
    norms = gp.scores.input_norms(forward, weight, list(x))
    torch.testing.assert_close(norms, x.flatten(0, 1).norm(dim=0).expand(2, 3))
    each = torch.vmap(lambda x: gp.scores.input_norms(forward, weight, [x]))(x)
    torch.testing.assert_close(each, x.norm(dim=1, keepdim=True).expand(2, 2, 3))


@given(seeds, st.integers(1, 5), st.integers(1, 5), st.integers(1, 4), st.integers(0, 2))
def test_wanda_is_the_exact_reconstruction_error_of_a_linear_layer(
    seed: int, rows: int, columns: int, batches: int, dims: int
) -> None:
    """Of one weight that is removed, whatever the shape and the number of the batches."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    weight, bias = draw(rows, columns), draw(rows)
    inputs = [draw(*(2,) * dims, columns) for _ in range(batches)]
    norms = gp.scores.input_norms(lambda w, x: F.linear(x, w, bias), weight, inputs)
    flat = torch.cat([x.reshape(-1, columns) for x in inputs])
    errors = reference.removal_errors(lambda w: F.linear(flat, w, bias), weight)
    torch.testing.assert_close(gp.scores.wanda(weight, norms).square(), errors)


def test_norms_are_not_negative() -> None:
    """As weights are, if the two arguments are swapped."""
    weight, norms = torch.tensor([[2.0, -1.0]]), torch.tensor([[1.0, 3.0]])
    assert gp.scores.wanda(weight, norms).tolist() == [[2, 3]]
    with pytest.raises(ValueError, match="input_norms has negative entries; pass params first"):
        gp.scores.wanda(norms, weight)
