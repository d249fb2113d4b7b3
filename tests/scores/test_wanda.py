"""Wanda and the norms of inputs: against an oracle, and the error of the output."""

import ast
import re
from typing import Any
from unittest import mock

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.distributed.tensor import Replicate
from torch.nn import functional as F  # noqa: N812  torch's own name for it

import gprune as gp
from tests.support import reference
from tests.support.models import Model
from tests.support.scoring import assert_close, each_dtype, each_model, seeds, setting
from tests.support.sharded_cases import mesh_of, place
from tests.support.workers import started


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


# --- layouts of weights ---------------------------------------------------------------------------

OFFSETS = torch.tensor([2, 2, 5], dtype=torch.int32)
"""The ends of the groups of rows of three experts: the second has none, and one row is of none."""

LAYOUTS: dict[str, tuple[tuple[int, ...], Any]] = {
    "addmm, the Conv1D of GPT-2": ((4, 3), lambda w, x: torch.addmm(torch.ones(3), x, w)),
    "addmm with keywords": ((4, 3), lambda w, x: torch.addmm(torch.ones(3), mat1=x, mat2=w)),
    "@": ((4, 3), lambda w, x: x @ w),
    "matmul": ((4, 3), lambda w, x: torch.matmul(x, other=w)),
    "mm of a method": ((4, 3), lambda w, x: x.mm(w)),
    "a vector": ((4, 3), lambda w, x: x[0] @ w),
    "transposed": ((3, 4), lambda w, x: x @ w.mT),
    "permuted twice": ((4, 3), lambda w, x: F.linear(x, w.permute(1, 0))),
    "on the left": ((3, 4), lambda w, x: w @ x.mT),
    "on the left of a vector": ((3, 4), lambda w, x: w @ x[0]),
    "on the left of many": ((3, 4), lambda w, x: w @ x.view(2, 3, 4).mT),
    "split": ((6, 4), lambda w, x: [F.linear(x[i::2], part) for i, part in enumerate(w.chunk(2))]),
    "some columns": ((3, 4), lambda w, x: F.linear(x[:, :2], w[:, 2:])),
    "one column": ((3, 4), lambda w, x: F.linear(x[:, :1], w[:, 1:2])),
    "whole and in part": ((3, 4), lambda w, x: [F.linear(x, w), x[:2] @ w[1:].mT]),
    "on both sides": ((4, 4), lambda w, x: [x @ w, F.linear(x, w)]),
    "experts by index": ((3, 2, 4), lambda w, x: [F.linear(x[i::3], w[i]) for i in (0, 2)]),
    "experts by index, @": ((3, 4, 2), lambda w, x: [x[i::3] @ w[i] for i in range(3)]),
    "experts in bmm": ((3, 4, 2), lambda w, x: torch.bmm(x.view(3, 2, 4), w)),
    "experts in bmm, transposed": ((3, 2, 4), lambda w, x: torch.bmm(x.view(3, 2, 4), w.mT)),
    "experts in baddbmm": (
        (3, 4, 2),
        lambda w, x: torch.baddbmm(torch.ones(3, 2, 2), x.view(3, 2, 4), w),
    ),
    "experts of all rows": ((3, 4, 2), lambda w, x: x @ w),
    "groups of experts": ((3, 4, 4), lambda w, x: F.grouped_mm(x, w, offs=OFFSETS)[:5]),
    "groups of experts, transposed": (
        (3, 8, 4),
        lambda w, x: F.grouped_mm(x, w.transpose(-2, -1), offs=OFFSETS)[:5],
    ),
    "vmap of a product": ((4, 3), lambda w, x: torch.vmap(lambda row: row @ w)(x)),
    "vmap of a part": ((3, 2, 4), lambda w, x: torch.vmap(lambda row: F.linear(row, w[1]))(x)),
}


def outputs_of(result: Any) -> torch.Tensor:
    return torch.cat([x.reshape(-1) for x in (result if isinstance(result, list) else [result])])


@pytest.mark.parametrize("name", LAYOUTS)
def test_wanda_of_any_layout_is_the_error_of_the_output(name: str) -> None:
    """Of each weight, set to zero by hand."""
    shape, forward = LAYOUTS[name]
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(shape, generator=generator)
    batches = torch.randn(2, 6, 4, generator=generator)
    errors = torch.zeros(weight.numel())
    for x in batches:
        dense = outputs_of(forward(weight, x))
        for i in range(weight.numel()):
            without = weight.flatten()
            without = torch.where(torch.arange(weight.numel()) == i, 0, without).view(shape)
            errors[i] += (outputs_of(forward(without, x)) - dense).square().sum()
    norms = gp.scores.input_norms(forward, weight, list(batches))
    assert norms.shape == weight.shape
    scores = gp.scores.wanda(weight, norms)
    torch.testing.assert_close(scores.square().flatten(), errors, rtol=1e-4, atol=1e-5)


def test_norms_of_experts_are_expanded_along_their_outputs() -> None:
    weight = torch.randn(3, 50, 4)
    norms = gp.scores.input_norms(
        lambda w, x: [F.linear(x, w[i]) for i in range(3)], weight, [torch.randn(6, 4)]
    )
    assert norms.untyped_storage().nbytes() == 3 * 4 * 4


def test_tensors_that_share_no_memory_with_a_weight_are_no_views_of_it() -> None:
    """A copy may have the shape and the strides of a view, and a view may have other strides."""
    weight = torch.randn(4, 4)
    for forward in (
        lambda w, x: x @ w.clone(),
        lambda w, x: x @ w.view(8, 2)[:4],
        lambda w, x: x @ w[:, :1].expand(4, 4),
    ):
        with pytest.raises(ValueError, match="forward passed no tensor of params"):
            gp.scores.input_norms(forward, weight, [torch.randn(6, 4)])


def test_other_factors_than_dense_tensors() -> None:
    """A graph network multiplies by a sparse matrix, and a selection may be empty."""
    weight, x = torch.randn(4, 3), torch.randn(6, 4)
    sparse = torch.eye(6).to_sparse()

    def forward(weight: torch.Tensor, x: torch.Tensor) -> Any:
        return torch.mm(sparse, x) @ weight, x[:, :0] @ weight[:0], x @ weight[:, :0]

    norms = gp.scores.input_norms(forward, weight, [x])
    torch.testing.assert_close(norms, x.norm(dim=0)[:, None].expand(4, 3))


class Recurrent(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = torch.nn.Embedding(7, 4)
        self.lstm = torch.nn.LSTM(4, 3, num_layers=2)
        self.layers = torch.nn.ModuleList(torch.nn.GRU(3, 3) for _ in range(12))
        self.head = torch.nn.Linear(3, 2)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x, _ = self.lstm(self.embed(tokens))
        for layer in self.layers:
            x, _ = layer(x)
        return self.head(x)


def test_the_error_about_recurrent_weights_has_the_line_that_leaves_them_out() -> None:
    model, tokens = Recurrent(), torch.arange(7)
    params = dict(model.named_parameters())
    norms = gp.scores.input_norms(
        lambda params, x: torch.func.functional_call(model, params, (x,)), params, [tokens]
    )
    with pytest.raises(ValueError, match="input_norms has seen no linear") as raised:
        gp.scores.wanda(gp.prunable(params), norms)
    text = str(raised.value)
    assert text.count("params['layers.0.weight_hh_l0']") == 1
    line = re.search(r"prunable\(params, exclude=(\[.*\])\)$", text)
    assert line is not None
    globs = ast.literal_eval(line[1])
    assert "layers.*.weight_hh_l0" in globs  # twelve layers need no twelve names
    weights = gp.prunable(params, exclude=globs)
    assert [name for name, leaf in weights.items() if leaf is not None] == ["head.weight"]
    assert gp.scores.wanda(weights, norms)["head.weight"].shape == (2, 3)


def measure_sharded() -> list[tuple[str, str]]:
    """A DTensor is recognised by identity; a view of one is refused, not taken for another part."""
    mesh = mesh_of((2,))
    whole, rows = torch.randn(6, 4), torch.arange(20.0).view(5, 4)
    weight, x = place(whole, mesh, (Replicate(),)), place(rows, mesh, (Replicate(),))
    norms = gp.scores.input_norms(lambda w, x: F.linear(x, w), weight, [x])
    expected = rows.norm(dim=0).expand(6, 4)
    answers = [("norms", str(torch.allclose(norms.full_tensor(), expected)))]
    try:
        gp.scores.input_norms(lambda w, x: x @ w[3:].mT, weight, [x])
    except ValueError as error:
        answers.append(("ValueError", str(error)[:30]))
    return answers


@pytest.mark.slow
def test_norms_of_dtensors() -> None:
    expected = [("norms", "True"), ("ValueError", "forward passed no tensor of pa")]
    assert started(2).run(measure_sharded) == [expected] * 2
