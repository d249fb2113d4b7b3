"""What the papers prove of their scores, as properties."""

import itertools
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F  # noqa: N812  torch's own name for it

import gprune as gp
from gprune.testing import param_trees
from tests.support import reference
from tests.support.cases import map_tensors

seeds = st.integers(0, 2**32 - 1)
finite_trees = param_trees(dtypes=[torch.float32, torch.float64]).map(
    lambda tree: map_tensors(lambda leaf: leaf.clamp(-8, 8).nan_to_num(), tree)
)


def layers(widths: list[int], seed: int, dtype: torch.dtype = torch.float64) -> list[torch.Tensor]:
    """Weights of a network, each output of variance one."""
    generator = torch.Generator().manual_seed(seed)
    shapes = itertools.pairwise(widths)
    return [torch.randn(b, a, generator=generator).to(dtype) / a**0.5 for a, b in shapes]


def network(weights: list[torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    for weight in weights[:-1]:
        x = F.relu(F.linear(x, weight))
    return F.linear(x, weights[-1])


def loss(weights: list[torch.Tensor], x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(network(weights, x), y)


def batch(widths: list[int], seed: int, size: int = 32) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(size, widths[0], generator=generator, dtype=torch.float64)
    return x, torch.randint(widths[-1], (size,), generator=generator)


# --- SynFlow ----------------------------------------------------------------------------------


@given(st.lists(st.integers(1, 6), min_size=3, max_size=6), seeds)
def test_synflow_is_conserved_at_every_hidden_neuron(widths: list[int], seed: int) -> None:
    """Tanaka et al., 2020, theorem 1: what flows in flows out; and through every layer flows R."""
    weights = layers(widths, seed)
    scores = gp.scores.synflow(network, weights, (1, widths[0]))
    for before, after in itertools.pairwise(scores):
        torch.testing.assert_close(before.sum(1), after.sum(0), rtol=1e-12, atol=0)
    for score in scores:
        torch.testing.assert_close(score.sum(), scores[0].sum(), rtol=1e-12, atol=0)


@given(seeds, st.integers(1, 3), st.integers(1, 3))
def test_synflow_is_conserved_at_channels_with_biases(seed: int, stride: int, padding: int) -> None:
    """The bias is one of the ways in."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {"first": (3, 2, 3, 3), "bias": (3,), "second": (2, 3, 2, 2)}
    params = {k: torch.randn(s, generator=generator).double() for k, s in shapes.items()}

    def forward(p: Any, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(F.conv2d(x, p["first"], p["bias"], stride, padding))
        return F.conv2d(F.avg_pool2d(x, 2, 1), p["second"])

    scores = gp.scores.synflow(forward, params, (1, 2, 9, 9))
    into = scores["first"].sum((1, 2, 3)) + scores["bias"]
    torch.testing.assert_close(into, scores["second"].sum((0, 2, 3)), rtol=1e-12, atol=0)


DEEP = [24, 24, 24, 6, 6, 6, 6, 24, 10]
ENTRIES = sum(a * b for a, b in itertools.pairwise(DEEP))
CRITICAL = 1 - (len(DEEP) - 1) / ENTRIES  # one weight for each layer is left


def empty_layers(masks: list[torch.Tensor]) -> int:
    return sum(not mask.any() for mask in masks)


@pytest.mark.slow
@settings(max_examples=settings().max_examples // 5)
@given(seeds, st.floats(0.5, CRITICAL) | st.just(CRITICAL))
def test_iterative_synflow_keeps_every_layer(seed: int, sparsity: float) -> None:
    """Theorem 3: up to the maximal critical compression, where a single path is left."""
    weights = layers(DEEP, seed)
    masks = gp.scores.iterative_synflow(network, weights, (1, DEEP[0]), sparsity=sparsity)
    assert empty_layers(masks) == 0
    assert gp.num_pruned(masks) == reference.count(weights, sparsity=sparsity)
    if sparsity == CRITICAL:  # and it is a path: something still flows
        left = gp.scores.synflow(network, gp.apply_masks(weights, masks), (1, DEEP[0]))
        assert left[0].sum() > 0


NARROW = [200, 200, 200, 6, 6, 6, 6, 6, 10]  # the large layers are emptied first
TWICE = 1 - 2 * (len(NARROW) - 1) / sum(a * b for a, b in itertools.pairwise(NARROW))


@pytest.mark.parametrize("seed", range(5))
def test_one_shot_scores_empty_layers_before(seed: int) -> None:
    """Magnitude, SNIP and GraSP do where two weights are left for each layer.

    That is a fact of nearly all networks and not of all: about one of 1,000 keeps its layers.
    """
    weights, data = layers(NARROW, seed), batch(NARROW, seed + 1)
    for scores in (
        gp.scores.magnitude(weights),
        gp.scores.snip(loss, weights, *data),
        gp.scores.grasp(loss, weights, *data),
    ):
        masks = gp.global_unstructured(weights, scores, sparsity=TWICE)
        assert empty_layers(masks) > 0


@settings(max_examples=1)
@given(seeds)
def test_iterative_synflow_does_not_where_they_do(seed: int) -> None:
    weights = layers(NARROW, seed)
    masks = gp.scores.iterative_synflow(network, weights, (1, NARROW[0]), sparsity=TWICE)
    assert empty_layers(masks) == 0


# --- SNIP, GraSP, OBD, movement ---------------------------------------------------------------


@given(seeds, st.integers(-20, 20).map(lambda power: 2.0**power), st.floats(0, 1))
def test_snip_ranks_alike_whatever_the_scale_of_the_loss(
    seed: int, scale: float, amount: float
) -> None:
    weights, data = layers([4, 5, 3], seed), batch([4, 3], seed + 1)
    scores = gp.scores.snip(loss, weights, *data)
    scaled = gp.scores.snip(lambda *args: loss(*args) * scale, weights, *data)
    assert reference.lists(scaled) == reference.lists([score * scale for score in scores])
    masks, others = (gp.global_unstructured(weights, s, amount=amount) for s in (scores, scaled))
    assert reference.lists(masks) == reference.lists(others)


@given(seeds)
def test_grasp_of_a_quadratic_is_the_change_of_the_gradient_norm_but_for_its_square(
    seed: int,
) -> None:
    """‖g‖² without weight q is ‖g - θ_q H_q‖²; of that, -2 θ_q (Hg)_q is of first order."""
    generator = torch.Generator().manual_seed(seed)
    root = torch.randn(5, 5, generator=generator, dtype=torch.float64)
    h, theta = root @ root.T, torch.randn(5, generator=generator, dtype=torch.float64)
    scores = gp.scores.grasp(lambda w: w @ h @ w / 2, theta)
    g = h @ theta
    for q in range(5):
        without = theta.clone()
        without[q] = 0
        exact = (h @ without).square().sum() - g.square().sum()
        second = (theta[q] * h[q]).square().sum()
        torch.testing.assert_close(exact, second - 2 * scores[q])


@given(seeds)
def test_obd_is_the_change_of_a_loss_at_its_minimum(seed: int) -> None:
    """Exactly, if the Hessian is diagonal; of which one probe is enough."""
    generator = torch.Generator().manual_seed(seed)
    best, h = (torch.randn(6, generator=generator, dtype=torch.float64) for _ in range(2))

    def quadratic(w: torch.Tensor) -> torch.Tensor:
        return (h * (w - best) ** 2).sum() / 2

    diagonal = gp.scores.hessian_diagonal(quadratic, best, seed=seed, num_probes=1)
    changes = [quadratic(torch.where(torch.arange(6) == q, 0, best)) for q in range(6)]
    torch.testing.assert_close(gp.scores.obd(best, diagonal), torch.stack(changes))


@given(seeds, st.integers(1, 20))
def test_movement_grows_where_descent_moves_away_from_zero(seed: int, steps: int) -> None:
    """And so its sum is, to first order, half the growth of the squared weights per step size."""
    generator = torch.Generator().manual_seed(seed)
    rate, theta = 1e-6, torch.randn(7, generator=generator, dtype=torch.float64)
    start, scores = theta, torch.zeros(7, dtype=torch.float64)
    for _ in range(steps):
        grad = torch.randn(7, generator=generator, dtype=torch.float64)
        scores = gp.scores.movement(scores, theta, grad)
        theta = theta - rate * grad
    growth = (theta.square() - start.square()) / (2 * rate)
    torch.testing.assert_close(scores, growth, rtol=1e-3, atol=1e-3)


@given(finite_trees)
def test_taylor_does_not_see_signs_and_its_square_ranks_alike(params: Any) -> None:
    grads = map_tensors(lambda leaf: leaf.flip(tuple(range(leaf.dim()))).contiguous(), params)
    scores = gp.scores.taylor(params, grads)
    negated = gp.scores.taylor(map_tensors(torch.neg, params), grads)
    assert reference.lists(scores) == reference.lists(negated)
    squared = gp.scores.taylor(params, grads, squared=True)
    assert reference.lists(squared) == reference.lists(map_tensors(torch.square, scores))


# --- the curvature ----------------------------------------------------------------------------


@pytest.mark.slow
def test_hutchinson_converges_as_one_over_the_root_of_the_probes() -> None:
    """Its variance is exactly the sum of the squares beside the diagonal, over the probes."""
    generator = torch.Generator().manual_seed(0)
    root = torch.randn(8, 8, generator=generator, dtype=torch.float64)
    h, theta = root @ root.T, torch.zeros(8, dtype=torch.float64)
    deviation = (h - h.diag().diag()).square().sum(1).sqrt()
    for num_probes in (1, 4, 16, 64):

        def estimate(seed: torch.Tensor, n: int = num_probes) -> Any:
            return gp.scores.hessian_diagonal(
                lambda w: w @ h @ w / 2, theta, seed=seed, num_probes=n
            )

        estimates = torch.vmap(estimate)(torch.arange(500))
        error = (estimates - h.diag()).square().mean(0).sqrt()
        ratio = error / (deviation / num_probes**0.5)
        assert ((ratio > 0.8) & (ratio < 1.2)).all(), ratio  # 500 draws: a deviation of 0.032
        bias = (estimates.mean(0) - h.diag()).abs() / (deviation / (500 * num_probes) ** 0.5)
        assert (bias < 4.5).all(), bias


@settings(max_examples=settings().max_examples // 5)
@given(seeds)
def test_fisher_is_the_hessian_of_a_softmax_regression_within_sampling_error(seed: int) -> None:
    """At the parameters that generated the data, where it is the expectation of the Hessian."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(3, 4, generator=generator, dtype=torch.float64)
    x = torch.randn(4000, 4, generator=generator, dtype=torch.float64)
    p = torch.softmax(x @ weight.T, dim=1)
    y = torch.multinomial(p, 1, generator=generator).squeeze(1)
    got = gp.scores.fisher(loss, [weight], x, y, chunk_size=1000)[0]
    hessian = torch.einsum("nk,nj->kj", p * (1 - p), x.square()) / len(x)
    squares = torch.einsum("nk,nj->nkj", (F.one_hot(y, 3) - p).square(), x.square())
    error = (squares - torch.einsum("nk,nj->nkj", p * (1 - p), x.square())).std(0) / len(x) ** 0.5
    assert ((got - hessian).abs() < 6 * error).all()
    assert (error < 0.1 * hessian.max()).all()


@settings(max_examples=settings().max_examples // 5)
@given(seeds, st.integers(1, 9), st.integers(1, 10))
def test_fisher_does_not_depend_on_the_chunk(seed: int, size: int, chunk_size: int) -> None:
    weights, data = layers([4, 5, 3], seed), batch([4, 3], seed + 1, size)
    whole = gp.scores.fisher(loss, weights, *data, chunk_size=100)
    parts = gp.scores.fisher(loss, weights, *data, chunk_size=chunk_size)
    for a, b in zip(whole, parts, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-15)


# --- Wanda ------------------------------------------------------------------------------------


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


# --- rescalings -------------------------------------------------------------------------------


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
def test_normalized_leaves_have_norm_one_and_their_own_order(scores: Any) -> None:
    for leaf, unit in zip(
        reference.leaves(scores), reference.leaves(gp.scores.normalize_l2(scores)), strict=True
    ):
        if leaf is None or not leaf.numel():
            continue
        norm = unit.double().norm()
        assert norm == 0 if not leaf.any() else abs(norm - 1) < 1e-6
        assert (unit.flatten()[leaf.flatten().argsort()].diff() >= 0).all()


# --- means ------------------------------------------------------------------------------------


@pytest.mark.parametrize("score", [gp.scores.fisher, None])
def test_the_mean_over_equal_batches_is_that_of_the_whole(score: Any) -> None:
    weights, (x, y) = layers([4, 5, 3], 0), batch([4, 3], 1, 12)
    score = score or (lambda f, *args: torch.func.grad(f)(*args))
    batches = zip(x.split(3), y.split(3), strict=True)
    mean = gp.scores.accumulate(lambda data: score(loss, weights, *data), batches)
    for a, b in zip(mean, score(loss, weights, x, y), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-15)


def test_expanded_parameters_are_differentiated_forward_too() -> None:
    """As `vmap` and `expand` make them: several entries in one place of memory."""
    expanded = torch.tensor([2.0]).expand(3)
    scores = gp.scores.grasp(lambda w: (w**3).sum() / 3, expanded)
    assert scores.equal(gp.scores.grasp(lambda w: (w**3).sum() / 3, expanded.clone()))
    diagonal = gp.scores.hessian_diagonal(lambda w: (w**3).sum() / 6, expanded, seed=0)
    assert diagonal.tolist() == [2.0, 2.0, 2.0]
