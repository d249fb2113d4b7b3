"""RIA: against an oracle, in every layout of weights, in the rows and columns, and sharded."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.distributed.tensor import Replicate, Shard
from torch.nn import functional as F  # noqa: N812  torch's own name for it

import gprune as gp
from tests.support import reference
from tests.support.scoring import assert_close, each_dtype, seeds
from tests.support.sharded_cases import Sharding, all_well, differences, placed

# the shapes of weights, and the dims of their inputs
LAYOUTS: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
    "linear": ((3, 4), (1,)),
    "Conv1D of transformers": ((4, 3), (0,)),
    "convolution": ((3, 2, 2, 3), (1, 2, 3)),
    "transposed convolution": ((2, 3, 2, 2), (0, 2, 3)),
    "packed experts": ((2, 3, 4), (2,)),
    "packed experts, inputs first": ((2, 4, 3), (1,)),
    "groups as a dim": ((2, 3, 2, 3), (2, 3)),
    "one output": ((4,), (0,)),
    "all dims": ((3, 4), (0, 1)),
    "no outputs": ((0, 4), (1,)),
    "no inputs": ((3, 0), (1,)),
}


def drawn(shape: tuple[int, ...], seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A weight with some zeros, and norms of its inputs."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(shape, generator=generator, dtype=torch.float64)
    weight = weight * (torch.rand(shape, generator=generator) > 0.3)
    return weight, torch.rand(shape, generator=generator, dtype=torch.float64) * 10


@pytest.mark.parametrize("layout", LAYOUTS)
@given(seeds, st.sampled_from([0, 0.5, 1.0, 3]))
def test_ria(layout: str, seed: int, power: float) -> None:
    shape, inputs = LAYOUTS[layout]
    weight, norms = drawn(shape, seed)
    want = reference.ria(weight, norms, power, inputs)
    got = gp.scores.ria({"w": weight, "b": None}, {"w": norms, "b": None}, power=power, dim=inputs)
    assert got["b"] is None
    torch.testing.assert_close(got["w"], want)
    got = gp.scores.ria(weight.float(), norms.float(), power=power, dim=inputs)
    torch.testing.assert_close(got, want.float(), rtol=1e-5, atol=1e-6)


@each_dtype
def test_inputs_are_found_by_path(dtype: torch.dtype) -> None:
    """By default the first dim has the outputs; a function knows the leaves that differ."""
    linear, packed = drawn((3, 4), 0), drawn((2, 3, 4), 1)
    params = {"fc": linear[0].to(dtype), "experts": [packed[0].to(dtype)]}
    norms = {"fc": linear[1].to(dtype), "experts": [packed[1].to(dtype)]}

    def dims(path: str, leaf: torch.Tensor) -> Any:
        return 2 if path.startswith("experts") else gp.input_dims(path, leaf)

    got = gp.scores.ria(params, norms, dim=dims)
    want = {
        "fc": reference.ria(*linear, 0.5, (1,)),
        "experts": [reference.ria(*packed, 0.5, (2,))],
    }
    assert_close(got, want, dtype)
    assert_close(gp.scores.ria(params["fc"], norms["fc"]), want["fc"], dtype)


def test_experts_are_scored_as_if_each_was_a_layer() -> None:
    weight, norms = drawn((3, 4, 5), 0)
    each = [gp.scores.ria(w, n) for w, n in zip(weight, norms, strict=True)]
    torch.testing.assert_close(gp.scores.ria(weight, norms, dim=2), torch.stack(each))


@given(seeds, st.integers(-100, 100))
def test_the_scale_of_a_leaf_does_not_matter(seed: int, exponent: int) -> None:
    """Powers of two change no bit, and sums of huge weights do not overflow."""
    weight, norms = drawn((3, 4), seed)
    scores = gp.scores.ria(weight, norms)
    assert gp.scores.ria(weight * 2.0**exponent, norms).equal(scores)
    huge = weight / weight.abs().max().clamp(min=1e-9) * 1e308
    torch.testing.assert_close(gp.scores.ria(huge, norms), scores)


@given(seeds, st.data())
def test_permuted_rows_and_columns_have_permuted_scores(seed: int, data: st.DataObject) -> None:
    weight, norms = drawn((4, 5), seed)
    scores = gp.scores.ria(weight, norms)
    rows, columns = (torch.tensor(data.draw(st.permutations(range(n)))) for n in (4, 5))
    got = gp.scores.ria(weight[rows][:, columns], norms[rows][:, columns])
    torch.testing.assert_close(got, scores[rows][:, columns])


def test_no_channel_vanishes_before_the_others_are_down_to_the_same() -> None:
    """The one weight of an input that is left has a share of 1: magnitude prunes it first."""
    weight = torch.tensor([[1.0, 2.0, 0.0], [3.0, 4.0, 0.01]])
    ones = torch.ones(2, 3)
    assert gp.scores.magnitude(weight)[1, 2] < gp.scores.magnitude(weight)[0, 0]
    assert gp.scores.ria(weight, ones)[1, 2] > gp.scores.ria(weight, ones)[0, 0]


def test_ria_of_what_input_norms_measures() -> None:
    """Of a network with a bias and a convolution, whose norms are expanded without a copy."""
    torch.manual_seed(0)
    params = {"conv": torch.randn(4, 3, 2), "fc": torch.randn(2, 4), "bias": torch.zeros(2)}

    def forward(params: Any, x: torch.Tensor) -> torch.Tensor:
        x = F.conv1d(x, params["conv"]).relu().mean(2)
        return F.linear(x, params["fc"], params["bias"])

    norms = gp.scores.input_norms(forward, params, [torch.randn(5, 3, 6)])
    got = gp.scores.ria(gp.prunable(params), norms)
    want = {
        "conv": reference.ria(params["conv"], norms["conv"], 0.5, (1, 2)),
        "fc": reference.ria(params["fc"], norms["fc"], 0.5, (1,)),
        "bias": None,
    }
    assert_close(got, want, torch.float32)
    with pytest.raises(ValueError, match=r"params\['bias'\]: input_norms has seen no linear"):
        gp.scores.ria(params, norms)


@pytest.mark.parametrize("row", [[1e30, 1e-20], [1e-20, 1e30]])
def test_the_only_weight_of_an_input_scores_high_however_small(row: list[float]) -> None:
    scores = gp.scores.ria(torch.tensor([row]), torch.ones(1, 2))
    assert sorted(scores[0].tolist()) == [1, 2]


def test_power_must_not_make_scores_infinite() -> None:
    weight = torch.ones(2, 2)
    for power in (-0.5, math.inf, math.nan):
        with pytest.raises(ValueError, match="power must be finite and not negative"):
            gp.scores.ria(weight, weight, power=power)


def check_sharded(where: list[Any]) -> list[str]:
    """Sums over a sharded dim are added up over the ranks, in float64, and then rounded."""
    torch.manual_seed(0)
    whole = [torch.randn(301, 57), torch.randn(4, 3, 3), torch.randn(6, 4).half()]
    norms = [torch.rand_like(leaf) for leaf in whole]
    sharding = Sharding((2,), where)
    got = gp.scores.ria(placed(whole, sharding), placed(norms, sharding))
    expected = gp.scores.ria(whole, norms)
    problems = differences("scores", got, expected, sharding)
    for i, (mine, leaf) in enumerate(zip(got, expected, strict=True)):
        if where[i] is not None and not mine.full_tensor().equal(leaf):
            problems.append(f"scores[{i}] differ by rounding")
    return problems


@pytest.mark.slow
@pytest.mark.parametrize(
    "where",
    [
        [(Shard(0),), (Shard(0),), (Shard(0),)],
        [(Shard(1),), (Shard(1),), (Shard(1),)],
        [(Replicate(),), None, (Shard(0),)],
    ],
    ids=["rows", "columns", "mixed"],
)
def test_sharded_scores_are_those_of_one_process(where: list[Any]) -> None:
    all_well(2, check_sharded, where)
