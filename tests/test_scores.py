"""Every score against an independent oracle in float64, on three kinds of networks."""

from collections.abc import Callable
from typing import Any
from unittest import mock

import pytest
import torch
from torch.nn import functional as F  # noqa: N812  torch's own name for it

import gprune as gp
from gprune.scores import curvature
from gprune.testing import assert_compiles, assert_pure, assert_vmaps
from tests.support import reference
from tests.support.models import MODELS, Model

TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}

each_model = pytest.mark.parametrize("name", MODELS)
each_dtype = pytest.mark.parametrize("dtype", TOLERANCE, ids=str)


def cast(tree: Any, dtype: torch.dtype) -> Any:
    return reference.over(lambda leaf: leaf.to(dtype), tree)


def setting(name: str, dtype: torch.dtype) -> tuple[Model, Any, Any]:
    """A model, its parameters and its batch."""
    model = MODELS[name]
    x, y = model.batch()
    return model, cast(model.params(), dtype), (x.to(dtype), y)


def in_float64(model: Model, batch: Any) -> Callable[[Any], torch.Tensor]:
    x, y = batch
    return lambda params: model.loss(params, x.double(), y)


def assert_close(got: Any, want: Any, dtype: torch.dtype) -> None:
    """The largest error of each leaf, over its largest entry; dtype and holes too."""
    assert reference.structure(got) == reference.structure(want)
    for path, a, b in zip(
        reference.paths(want), reference.leaves(got), reference.leaves(want), strict=True
    ):
        if b is None:
            assert a is None, path
            continue
        assert (a.dtype, a.shape, a.requires_grad) == (dtype, b.shape, False), path
        error, largest = (a.double() - b).abs().max(), b.abs().max()
        assert error <= TOLERANCE[dtype] * largest, f"{path}: {error / largest:.2g}"


def draw(tree: Any, seed: int, dtype: torch.dtype) -> Any:
    generator = torch.Generator().manual_seed(seed)
    return reference.over(lambda x: torch.randn(x.shape, generator=generator).to(dtype), tree)


# --- from gradients ---------------------------------------------------------------------------


@each_model
@each_dtype
def test_taylor(name: str, dtype: torch.dtype) -> None:
    _, params, _ = setting(name, dtype)
    grads = draw(params, 3, dtype)
    for squared in (False, True):
        got = gp.scores.taylor(params, grads, squared=squared)
        assert_close(got, reference.taylor(params, grads, squared), dtype)


@each_model
@each_dtype
def test_movement(name: str, dtype: torch.dtype) -> None:
    _, params, _ = setting(name, dtype)
    steps = [(draw(params, 2 * i, dtype), draw(params, 2 * i + 1, dtype)) for i in range(3)]
    scores = reference.over(torch.zeros_like, params)
    for weights, grads in steps:
        scores = gp.scores.movement(scores, weights, grads)
    assert_close(scores, reference.movement(steps), dtype)


@each_model
@each_dtype
def test_obd(name: str, dtype: torch.dtype) -> None:
    _, params, _ = setting(name, dtype)
    diagonal = draw(params, 3, dtype)
    assert_close(gp.scores.obd(params, diagonal), reference.obd(params, diagonal), dtype)


# --- from a loss ------------------------------------------------------------------------------


@each_model
@each_dtype
def test_snip(name: str, dtype: torch.dtype) -> None:
    model, params, batch = setting(name, dtype)
    want = reference.snip(in_float64(model, batch), params)
    assert_close(gp.scores.snip(model.loss, params, *batch), want, dtype)


@each_model
@each_dtype
def test_grasp(name: str, dtype: torch.dtype) -> None:
    model, params, batch = setting(name, dtype)
    want = reference.grasp(in_float64(model, batch), params)
    assert_close(gp.scores.grasp(model.loss, params, *batch), want, dtype)


@each_model
def test_grasp_is_minus_half_the_change_of_the_gradient_norm(name: str) -> None:
    """To first order in the part of a weight that is removed."""
    model, params, batch = setting(name, torch.float64)
    loss = in_float64(model, batch)
    theta, scores = (
        reference.flat(params),
        reference.flat(gp.scores.grasp(model.loss, params, *batch)),
    )
    step = 1e-5

    def squared_norm(vector: torch.Tensor) -> torch.Tensor:
        return (
            reference.flat(reference.gradient(loss, reference.unflat(vector, params)))
            .square()
            .sum()
        )

    for q in range(len(theta)):
        part = torch.zeros_like(theta)
        part[q] = step * theta[q]
        change = (squared_norm(theta - part) - squared_norm(theta + part)) / (2 * step)
        assert (change + 2 * scores[q]).abs() <= 1e-7 * scores.abs().max()


@each_model
@each_dtype
@pytest.mark.parametrize("chunk_size", [1, 2, 32])
def test_fisher(name: str, dtype: torch.dtype, chunk_size: int) -> None:
    model, params, (x, y) = setting(name, dtype)
    examples = zip(x.double().split(1), y.split(1), strict=True)
    losses = [lambda p, a=a, b=b: model.loss(p, a, b) for a, b in examples]
    got = gp.scores.fisher(model.loss, params, x, y, chunk_size=chunk_size)
    assert_close(got, reference.fisher(losses, params), dtype)


@each_model
@each_dtype
def test_hessian_diagonal(name: str, dtype: torch.dtype) -> None:
    """The probes are those that it drew itself: each is -1 or 1 everywhere."""
    model, params, batch = setting(name, dtype)
    probes: list[torch.Tensor] = []
    signs = curvature._signs

    def recorded(*args: Any) -> list[torch.Tensor]:
        probes.append(reference.flat(drawn := signs(*args)))
        return drawn

    with mock.patch.object(curvature, "_signs", recorded):
        got = gp.scores.hessian_diagonal(model.loss, params, *batch, seed=5, num_probes=3)
    assert_close(got, reference.hutchinson(in_float64(model, batch), params, probes), dtype)
    assert len(probes) == len({tuple(v.tolist()) for v in probes}) == 3
    assert all((v.abs() == 1).all() for v in probes)


def test_hessian_diagonal_is_exact_where_the_hessian_is_diagonal() -> None:
    params = {
        "a": torch.randn(3, 4, dtype=torch.float64),
        "hole": None,
        "b": torch.randn(5).double(),
    }

    def loss(p: Any) -> torch.Tensor:
        return (p["a"] ** 3).sum() + p["b"].exp().sum()

    want = {"a": 6 * params["a"], "hole": None, "b": params["b"].exp()}
    got = gp.scores.hessian_diagonal(loss, params, seed=0, num_probes=1)
    assert_close(got, want, torch.float64)


# --- from a forward pass ----------------------------------------------------------------------


@each_model
@each_dtype
def test_synflow(name: str, dtype: torch.dtype) -> None:
    model, params, _ = setting(name, dtype)
    shape = (1, *model.inputs[1:])
    got = gp.scores.synflow(model.forward, params, shape)
    assert_close(got, reference.synflow(model.forward, params, shape), dtype)


def test_synflow_is_what_the_flow_loses_without_a_weight() -> None:
    model, params, _ = setting("conv", torch.float64)
    params["bias"] = torch.zeros(2, dtype=torch.float64)
    shape = (1, *model.inputs[1:])
    want = reference.synflow_by_removal(model.forward, params, shape)
    assert_close(gp.scores.synflow(model.forward, params, shape), want, torch.float64)


@each_model
@pytest.mark.parametrize("rounds", [1, 7])
def test_iterative_synflow(name: str, rounds: int) -> None:
    model, params, _ = setting(name, torch.float64)
    shape = (1, *model.inputs[1:])
    weights = gp.prunable(params)
    prior = gp.global_unstructured(weights, gp.scores.random(weights, seed=1), amount=4)
    for masks in (gp.keep_all(weights), prior):
        want = masks
        for k in range(1, rounds + 1):
            now = 1 - (1 - 0.8) ** (k / rounds) if k < rounds else 0.8
            scores = reference.synflow(model.forward, gp.apply_masks(params, want), shape)
            count = reference.count(weights, want, sparsity=now)
            kept = reference.global_masks(weights, scores, count, want)
            want = reference.like(
                weights,
                [
                    torch.tensor(keep).reshape(leaf.shape)
                    for keep, leaf in zip(kept, reference.leaves(weights), strict=True)
                    if keep is not None
                ],
            )
        got = gp.scores.iterative_synflow(
            model.forward, params, shape, sparsity=0.8, masks=masks, rounds=rounds
        )
        assert reference.lists(got) == reference.lists(want)
    got = gp.scores.iterative_synflow(model.forward, params, shape, sparsity=0.8, rounds=rounds)
    assert (gp.num_pruned(got), got.get("bias")) == (
        reference.count(weights, sparsity=0.8),
        None,
    )


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
    norms = gp.scores.input_norms(forward, weight, x)
    torch.testing.assert_close(norms, x.flatten(0, 1).norm(dim=0).expand(2, 3))
    each = torch.vmap(lambda x: gp.scores.input_norms(forward, weight, [x]))(x)
    torch.testing.assert_close(each, x.norm(dim=1, keepdim=True).expand(2, 2, 3))


# --- rescalings and means ---------------------------------------------------------------------


@each_model
@each_dtype
def test_normalize_l2(name: str, dtype: torch.dtype) -> None:
    _, params, _ = setting(name, dtype)
    assert_close(gp.scores.normalize_l2(params), reference.normalize_l2(params), dtype)


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
    leaf = torch.tensor([3.0, -4.0], dtype=dtype) * scale
    want = torch.tensor([0.6, -0.8], dtype=dtype)
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


@each_model
@each_dtype
def test_accumulate(name: str, dtype: torch.dtype) -> None:
    """The score of the mean gradient is that of the whole data."""
    model, params, _ = setting(name, dtype)
    batches = [(x.to(dtype), y) for x, y in map(model.batch, range(4))]
    done: list[int] = []

    def grad_fn(batch: Any) -> Any:
        return cast(reference.gradient(in_float64(model, batch), params), dtype)

    got = gp.scores.accumulate(grad_fn, iter(batches), progress=done.append)
    losses = [in_float64(model, batch) for batch in batches]
    want = reference.gradient(lambda p: sum(loss(p) for loss in losses) / 4, params)
    assert_close(got, want, dtype)
    assert done == [1, 2, 3, 4]


# --- networks under transforms ----------------------------------------------------------------


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
@pytest.mark.parametrize("score", [gp.scores.snip, gp.scores.grasp, gp.scores.fisher])
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


def test_an_unfinite_value_is_seen_in_a_batch_and_ranks_last_in_a_trace() -> None:
    params = torch.tensor([[1.0, 2.0], [3.0, float("nan")]])
    with pytest.raises(ValueError, match="NaN or infinity"):
        torch.vmap(lambda p: gp.scores.taylor(p, torch.ones(2)))(params)
    compiled = torch.compile(gp.scores.taylor, fullgraph=True, backend="aot_eager")
    scores = compiled(params, torch.ones(2, 2))
    assert scores.isnan().tolist() == [[False, False], [False, True]]
    assert gp.lowest_unstructured(scores, amount=3).tolist() == [[False, False], [False, True]]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_multiplied_in_float32(dtype: torch.dtype) -> None:
    """Whose squares of small gradients are not zero."""
    params, grads = torch.full((3,), 1e-3, dtype=dtype), torch.full((3,), 1e-4, dtype=dtype)
    score = gp.scores.taylor(params, grads, squared=True)
    assert score.dtype == torch.float32
    assert (score > 0).all()
    diagonal = gp.scores.fisher(
        lambda p, x: (p * x).sum() * 1e-4, params, torch.ones(2, 3).to(dtype)
    )
    assert diagonal.dtype == torch.float32
    assert (diagonal > 0).all()


def test_all_is_scored_and_the_holes_choose_afterwards() -> None:
    """A loss needs every parameter; which of them are pruned is said where they are pruned."""
    model, params, batch = setting("mlp", torch.float32)
    scores = gp.scores.snip(model.loss, params, *batch)
    assert scores["in.bias"] is not None
    masks = gp.global_unstructured(gp.prunable(params), scores, sparsity=0.5)
    assert masks["in.bias"] is None
    assert gp.num_pruned(masks) == gp.num_to_prune(0.5, 35)
