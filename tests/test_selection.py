"""What the rooms of selection promise each other: keys, draws, leaves, and an undisturbed host."""

import functools
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from gprune.select.draws import draw_range
from gprune.select.marking import mark
from gprune.select.passes import Divided, divide
from gprune.select.ranking import Ranking
from torch.nn.utils.prune import L1Unstructured
from torch.utils._python_dispatch import TorchDispatchMode

import gprune as gp
from gprune.select import digits, keys, operators, search
from gprune.select.keys import BRAIN, DOUBLE, HALF, SINGLE, KeySpace

CPU = torch.device("cpu")
NARROW = {torch.float16: HALF, torch.bfloat16: BRAIN}


# --- keys: every value of the 16-bit floats ---------------------------------------------------


def every(dtype: torch.dtype) -> torch.Tensor:
    return torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)


@pytest.mark.parametrize("dtype", NARROW)
@pytest.mark.parametrize("absolute", [False, True])
def test_keys_are_in_the_order_of_the_scores(dtype: torch.dtype, absolute: bool) -> None:
    scores = every(dtype)
    exact = scores.double().abs() if absolute else scores.double()
    order = exact.sort(stable=True).indices
    for space in (NARROW[dtype], SINGLE, DOUBLE):
        key = keys.keys(scores, space, absolute=absolute)
        assert key.sort(stable=True).indices.equal(order)
        same = (exact[order][1:] == exact[order][:-1]) | exact[order][:-1].isnan()
        assert (key[order][1:] == key[order][:-1]).equal(same)


@pytest.mark.parametrize("dtype", NARROW)
@pytest.mark.parametrize("absolute", [False, True])
def test_raw_keys_are_divided_as_the_scores_are(dtype: torch.dtype, absolute: bool) -> None:
    scores, space = every(dtype), NARROW[dtype]
    exact = scores.double().abs() if absolute else scores.double()
    raw = torch.empty_like(scores, dtype=space.integer)
    keys.raw_keys(scores, space, absolute=absolute, out=raw)
    ends = [-math.inf, -1.001, -1.0, -1e-45, -0.0, 0.0, 1e-45, 1.0, 1.001, 65504, 1e300, math.inf]
    for low in [*ends, math.nan]:
        for high in [end for end in [*ends, math.nan] if not end < low]:
            least, greatest = keys.raw_bounds(low, high, space, absolute=absolute)
            below = exact < low if not math.isnan(low) else ~exact.isnan()
            above = ~(exact <= high) & (not math.isnan(high))
            assert (raw < least).equal(below), (low, high)
            assert (raw > greatest).equal(above), (low, high)


@pytest.mark.parametrize("space", [HALF, BRAIN, SINGLE, DOUBLE])
def test_values_and_keys_are_each_others_inverse(space: KeySpace) -> None:
    for key in (0, 1, -1, 1000, -1000, space.infinity, -space.infinity, space.nan):
        value = keys.value_of(key, space)
        assert keys.key_below(value, space) == (key, True)


# --- draws: SplitMix64 ------------------------------------------------------------------------


def splitmix64(seed: int, count: int) -> list[int]:
    """Steele, Lea and Flood, 2014, figure 17, in Python's integers."""
    outputs = []
    for i in range(1, count + 1):
        z = (seed + i * 0x9E3779B97F4A7C15) % 2**64
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
        outputs.append(z ^ (z >> 31))
    return outputs


def test_the_oracle_itself() -> None:
    """The first outputs for the seed 1234567, as in the reference implementations."""
    assert splitmix64(1234567, 3) == [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
    ]


@pytest.mark.parametrize("seed", [0, 1, -1, 2**63 - 1, -(2**63)])
@pytest.mark.parametrize("leaf", [0, 1, 7])
def test_draws_are_splitmix64_in_a_stream_of_the_seed_and_the_leaf(seed: int, leaf: int) -> None:
    mixed = splitmix64(seed % 2**64, 1)[0]
    stream = splitmix64((mixed + (leaf - 1) * 0x9E3779B97F4A7C15) % 2**64, 1)[0]
    expected = [(z >> 11) * 2.0**-53 for z in splitmix64(stream, 9)]
    assert draw_range(seed, leaf, 0, 9, CPU).tolist() == expected
    assert draw_range(seed, leaf, 4, 9, CPU).tolist() == expected[4:]


def test_draws_are_uniform_and_differ_between_leaves_and_seeds() -> None:
    scores = gp.scores.random([torch.empty(4000), torch.empty(4000)], seed=3)
    assert all(float(x.min()) >= 0 and float(x.max()) < 1 for x in scores)
    assert all(abs(float(x.mean()) - 0.5) < 0.03 for x in scores)
    assert not scores[0].equal(scores[1])
    assert not scores[0].equal(gp.scores.random([torch.empty(4000)], seed=4)[0])


def test_random_leaves_are_drawn_apart_also_layer_by_layer() -> None:
    params = [torch.zeros(100), torch.zeros(100)]
    masks = gp.layerwise(params, pruning_method=gp.random_unstructured, seed=0, amount=50)
    assert not masks[0].equal(masks[1])
    scores = gp.scores.random(params, seed=0)
    apart = gp.layerwise(params, scores, amount=50)
    assert all(a.equal(b) for a, b in zip(masks, apart, strict=True))


# --- what the process has set -----------------------------------------------------------------


@contextmanager
def flushed() -> Iterator[None]:
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)


DENORMALS = torch.tensor([3, 1, 2, 5, 4], dtype=torch.int32).view(torch.float32)


@pytest.mark.parametrize(
    "leaves",
    [
        [DENORMALS],
        [DENORMALS, torch.zeros(1, dtype=torch.float64) + 1],
        [torch.tensor([3, 1, 2, 5, 4], dtype=torch.int16).view(torch.bfloat16)],
        [torch.tensor([3, 1, 2, 5, 4], dtype=torch.int64).view(torch.float64)],
    ],
    ids=["float32", "mixed", "bfloat16", "float64"],
)
def test_denormals_count_also_where_arithmetic_flushes_them(leaves: list[torch.Tensor]) -> None:
    with flushed():
        masks = gp.global_unstructured(leaves, amount=3)
        cut = gp.find_threshold(leaves, amount=3)
        again = gp.masks_from_threshold(cut, leaves)
        assert operators.num_to_prune(torch.tensor(1), 2) == 1
        still = DENORMALS.sum().item() == 0
    assert masks[0].tolist() == [False, False, False, True, True]
    assert again[0].tolist() == masks[0].tolist()
    assert still, "the setting was not put back"


@pytest.mark.parametrize("device", ["meta", "cpu"])
def test_a_default_device_changes_nothing(device: str) -> None:
    params = [torch.arange(1.0, 13).reshape(3, 4), torch.arange(5.0)]
    with torch.device(device):
        masks = gp.global_unstructured(params, amount=3)
        cut = gp.find_threshold(params, amount=0.5)
        sparsity = gp.schedules.polynomial(0.5, begin=0, end=10)(10)
        masked = gp.global_unstructured(params, sparsity=sparsity)
        drawn = gp.scores.random(params, seed=0)
        rows = gp.layerwise(params[:1], amount=1, dim=-1)
        large = gp.global_unstructured([torch.arange(20_000.0, device="cpu")], amount=10_000)
    assert int(gp.num_pruned(masks)) == 3
    assert (float(cut.value), int(cut.flat_index)) == (4.0, 3)
    assert int(gp.num_pruned(masked)) == 8
    assert drawn[0].device.type == "cpu"
    assert rows[0].sum().item() == 9
    assert large[0].sum() == 10_000


def test_leaves_without_values_beside_others_are_refused() -> None:
    meta = torch.empty(2, 2, device="meta")
    with pytest.raises(ValueError, match=r"params\['a'\] is on the meta device"):
        gp.global_unstructured({"a": meta, "b": torch.ones(2)}, amount=1)
    with pytest.raises(ValueError, match="amount must have a value"):
        gp.global_unstructured([torch.ones(3)], amount=torch.tensor(1, device="meta"))
    assert gp.find_threshold([meta], amount=1).value.is_meta
    with pytest.raises(ValueError, match=r"masks\[0\] is on meta, its parameter is on cpu"):
        gp.global_unstructured(
            [torch.ones(2)], masks=[torch.empty(2, dtype=torch.bool, device="meta")], amount=1
        )


def test_operators_meet_on_the_host() -> None:
    for operator in (operators.select, operators.select_rows, operators.find_threshold):
        assert torch.Tag.cudagraph_unsafe in operator._opoverload.tags


class Waits(TorchDispatchMode):
    """Counts how often a value is asked for: on an accelerator, how often the host would wait."""

    number = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any, kwargs: Any = None) -> Any:
        waits = function in (
            torch.ops.aten._local_scalar_dense.default,
            torch.ops.aten.nonzero.default,
        )
        self.number += waits
        return function(*args, **(kwargs or {}))


def test_an_accelerator_is_waited_for_as_often_however_large_the_model_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The search that accelerators take, and the marking, on leaves of many blocks and of one."""
    monkeypatch.setattr("gprune.select.ranking.BLOCK", 64)
    numbers = []
    for leaves in (1, 2, 20):
        scores = [torch.arange(200.0) % 17 for _ in range(leaves)]
        priors = [torch.arange(200) % 3 > 0 for _ in range(leaves)]
        with Waits() as waits:
            ranking = Ranking(scores, priors)
            value, index = digits.find(ranking, ranking.candidates // 2)
            mark(ranking, value, index)
        numbers.append(waits.number)
    assert len(set(numbers)) == 1
    assert numbers[0] < 20


# --- methods that are not built in ------------------------------------------------------------


def test_a_method_that_wraps_a_built_in_one_is_called() -> None:
    @functools.wraps(gp.lowest_unstructured)
    def highest(param: torch.Tensor, scores: Any = None, **kwargs: Any) -> torch.Tensor:
        return gp.lowest_unstructured(param, -param if scores is None else -scores, **kwargs)

    params = [torch.tensor([1.0, 2.0, 3.0, 4.0])]
    method = gp.pruning_method("unstructured")(highest)
    masks = gp.global_unstructured(params, pruning_method=method, amount=1)
    assert masks[0].tolist() == [True, True, True, False]
    with pytest.raises(TypeError, match="lowest_unstructured is not a pruning method; mark it"):
        gp.global_unstructured(params, pruning_method=highest, amount=1)


def test_a_users_method_sees_exact_scores_of_mixed_dtypes() -> None:
    seen = []

    @gp.pruning_method("unstructured")
    def method(param: torch.Tensor, scores: Any, *, mask: torch.Tensor) -> torch.Tensor:
        seen.append((param, scores))
        return mask

    params = [torch.tensor([2**24 + 1]), torch.ones(1)]
    gp.global_unstructured(params, pruning_method=method)
    assert seen[0][0].tolist() == [2**24 + 1, 1]
    assert seen[0][1] is None
    gp.global_unstructured([torch.ones(1), torch.ones(1)], params, pruning_method=method)
    assert seen[1][1].tolist() == [2**24 + 1, 1]


class Nameless:
    """A callable object without a name of its own."""

    def __call__(self, param: torch.Tensor, scores: Any, *, mask: torch.Tensor) -> Any:
        return 3


@pytest.mark.parametrize("prune", [gp.global_unstructured, gp.layerwise])
def test_what_is_wrong_with_a_method(prune: Any) -> None:
    params = [torch.ones(3)]
    with pytest.raises(ValueError, match="Nameless must return a bool mask of shape"):
        prune(params, pruning_method=gp.pruning_method("unstructured")(Nameless()))
    with pytest.raises(TypeError, match=r"is a class.*gprune\.l1_unstructured"):
        prune(params, pruning_method=L1Unstructured, amount=1)
    with pytest.raises(TypeError, match="keyword arguments only"):
        prune(params, pruning_method=functools.partial(gp.l1_unstructured, params[0]), amount=1)
    with pytest.raises(TypeError, match="is not a pruning method"):
        prune(params, pruning_method=lambda s, m: m)


def test_nested_partials_bind_from_the_inside_and_calls_from_the_outside() -> None:
    inner = functools.partial(gp.l1_unstructured, amount=1)
    outer = functools.partial(inner, amount=2)
    params = [torch.ones(4)]
    assert gp.num_pruned(gp.global_unstructured(params, pruning_method=outer)) == 2
    assert gp.num_pruned(gp.global_unstructured(params, pruning_method=outer, amount=3)) == 3


@pytest.mark.parametrize("kind", ["structured", "semi_structured"])
def test_other_types_are_for_layerwise(kind: str) -> None:
    @gp.pruning_method(kind)
    def none(param: torch.Tensor, scores: Any, *, mask: torch.Tensor) -> torch.Tensor:
        return torch.zeros_like(mask)

    assert not gp.layerwise([torch.ones(2)], pruning_method=none)[0].any()
    with pytest.raises(TypeError, match="use layerwise"):
        gp.global_unstructured([torch.ones(2)], pruning_method=none)


def test_only_three_types() -> None:
    with pytest.raises(ValueError, match="unstructured, structured, semi_structured"):
        gp.pruning_method("global")


# --- errors name the leaf ---------------------------------------------------------------------


def test_errors_of_values_name_the_leaf() -> None:
    params = {"a": torch.ones(2), "b": {"c": torch.ones(3), "hole": None}}
    with pytest.raises(ValueError, match=r"amount\['b'\]\['c'\]: amount must be at most 1"):
        gp.layerwise(params, amount={"a": 0.5, "b": {"c": 80.0, "hole": None}})
    with pytest.raises(ValueError, match=r"amount\['a'\]: .*candidates, 2"):
        gp.layerwise(params, amount=3)
    integers = {"a": torch.ones(2, dtype=torch.int64), "b": torch.tensor([2**60])}
    for prune in (gp.global_unstructured, gp.layerwise, gp.find_threshold):
        with pytest.raises(
            ValueError, match=r"scores\['b'\]: int64 scores must be at most 2\*\*53"
        ):
            prune(integers, amount=1)


def test_thresholds_that_are_none() -> None:
    for threshold in (3, (1, 2, 3), None):
        with pytest.raises(TypeError, match="must be a Threshold"):
            gp.masks_from_threshold(threshold, [torch.ones(2)])
    with pytest.raises(TypeError, match="index must be an integer"):
        gp.masks_from_threshold((1.0, 2.0), [torch.ones(2)])


def test_an_empty_batch_is_refused() -> None:
    with pytest.raises(ValueError, match="empty batch"):
        torch.vmap(lambda w: gp.global_unstructured([w], amount=0)[0])(torch.zeros(0, 3))


@pytest.mark.parametrize("dim", [0, 1, 2, -1])
def test_any_batch_dimension(dim: int) -> None:
    models = torch.randn(3, 3, 3, generator=torch.Generator().manual_seed(0))
    at_random = functools.partial(gp.random_unstructured, seed=0)
    for method in (gp.lowest_unstructured, at_random):  # side by side, and in turn

        def prune(weight: torch.Tensor, method: Any = method) -> torch.Tensor:
            return gp.global_unstructured([weight], pruning_method=method, amount=4)[0]

        masks = torch.vmap(prune, in_dims=dim, out_dims=dim)(models)
        for i in range(3):
            assert masks.select(dim, i).equal(prune(models.select(dim, i)))


def test_an_amount_that_requires_grad() -> None:
    amount = torch.tensor(0.5, requires_grad=True)
    assert gp.num_pruned(gp.global_unstructured([torch.ones(4)], amount=amount)) == 2


# --- a pass -----------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [8, 11])  # whole words of flags, and not
@pytest.mark.parametrize("pruned", [None, [5, 7], [0, 1, 4]])  # in, above and below the bracket
@pytest.mark.parametrize("absolute", [False, True])
def test_a_pass_divides_at_both_ends_of_its_bracket(
    size: int, pruned: list[int] | None, absolute: bool
) -> None:
    scores = torch.tensor([1.0, 2, 3, 4, 5, 2, 4, math.nan, 9, 1, 4][:size])
    prior = torch.ones(size, dtype=torch.bool)
    prior[pruned or []] = False
    masks = [torch.empty_like(prior)]
    ranking = Ranking([scores], [] if pruned is None else [prior], absolute=absolute)
    seen = divide(ranking, 2.0, 4.0, limit=size, masks=masks)
    candidates = [i for i in range(size) if prior[i]]
    inside = [i for i in candidates if 2 <= scores[i] <= 4]
    assert seen.below == sum(bool(scores[i] < 2) for i in candidates)
    assert (seen.inside, seen.counts) == (len(inside), [(0, len(inside))])
    assert seen.positions is not None
    assert seen.positions.tolist() == inside
    assert seen.keys is not None
    assert [keys.value_of(key, SINGLE) for key in seen.keys.tolist()] == scores[inside].tolist()
    above = [i for i in candidates if scores[i] > 4 or scores[i].isnan()]
    assert masks[0].nonzero().view(-1).tolist() == above
    few = divide(ranking, 2.0, 4.0, limit=len(inside) - 1, masks=None)
    assert (few.below, few.inside) == (seen.below, seen.inside)
    assert few.keys is few.positions is None


@pytest.mark.parametrize("pruned", [False, True])
def test_what_pads_a_block_is_nowhere(monkeypatch: pytest.MonkeyPatch, pruned: bool) -> None:
    """The second block is padded to a whole word, over what the first has left in the scratch."""
    monkeypatch.setattr("gprune.select.ranking.BLOCK", 16)
    for left in (3.0, 9.0):  # in the bracket, and above it
        scores = torch.cat([torch.full((16,), left), torch.ones(3)])
        masks = [torch.empty(19, dtype=torch.bool)]
        priors = [torch.ones(19, dtype=torch.bool)] * pruned
        seen = divide(Ranking([scores], priors), 2.0, 4.0, limit=19, masks=masks)
        assert (seen.below, seen.inside) == (3, 16 if left == 3 else 0)
        assert masks[0].tolist() == [left == 9] * 16 + [False] * 3


def test_what_is_learnt_from_a_bracket_that_missed() -> None:
    """Of 100 candidates, 10 lie below the key 0 and 60 at keys from 0 to 50, of which one is k."""
    known = search._Known(0, 50, 10, 60)
    seen = Divided(30, 15, None, None, [])  # below the bracket from 20 to 29, and in it
    assert search._learn(known, 20, 29, seen, 30) == (0, 19, 10, 20)
    assert search._learn(known, 20, 29, seen, 31) == (20, 29, 30, 15)
    assert search._learn(known, 20, 29, seen, 45) == (20, 29, 30, 15)
    assert search._learn(known, 20, 29, seen, 46) == (30, 50, 45, 25)
