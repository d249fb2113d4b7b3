"""What a plain call on small trees never meets: each of these gave a wrong answer once."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from torch.profiler import ProfilerActivity, profile

import gprune as gp
from tests.bench.measure import peak, python
from tests.support import fuzz, reference
from tests.support.assertions import assert_masks, fail_if

# --- several amounts, among scores of which the same number has several bit patterns --------

SIZE = 20_000  # more than 2^14


def with_zeros_of_both_signs(rng: np.random.Generator, dtype: torch.dtype) -> fuzz.Array:
    values = rng.standard_normal(SIZE)
    values[rng.random(SIZE) < 0.5] = 0.0
    return fuzz.rounded(np.where(rng.random(SIZE) < 0.5, values, -values), dtype)


def with_nans_of_both_signs(rng: np.random.Generator, dtype: torch.dtype) -> fuzz.Array:
    nans = fuzz.nans_of_both_signs(rng, SIZE, dtype)
    normal = fuzz.rounded(rng.standard_normal(SIZE), dtype)
    return np.where(rng.random(SIZE) < 0.4, nans, normal)


SEVERAL_BITS = [with_zeros_of_both_signs, with_nans_of_both_signs]
# the zeros go from 5,000 to 15,000, the NaNs from 12,000
AMOUNTS = [[7_000, 8_000], [13_000, 17_000], [1, 5_000, 7_000, 9_999, 12_500, 16_000, SIZE]]


def signed_case(make: Any, dtype: torch.dtype, sizes: list[int]) -> tuple[Any, Any, fuzz.Ranking]:
    """Params and signed scores, in leaves of some sizes, and how they rank."""
    array = make(np.random.default_rng(0), dtype)
    scores = list(fuzz.tensor_of(array, dtype).split(sizes))
    ranked = fuzz.exact(array, dtype)
    ranking = fuzz.Ranking(np.split(ranked, np.cumsum(sizes)[:-1]), [np.ones(SIZE, bool)])
    return [torch.zeros(size) for size in sizes], scores, ranking


@pytest.mark.parametrize("sizes", [[SIZE], [7, SIZE - 8, 1]], ids=["one leaf", "three leaves"])
@pytest.mark.parametrize("dtype", fuzz.FLOATING, ids=str)
@pytest.mark.parametrize("make", SEVERAL_BITS)
def test_several_amounts_in_one_search(make: Any, dtype: torch.dtype, sizes: list[int]) -> None:
    params, scores, ranking = signed_case(make, dtype, sizes)
    for amounts in AMOUNTS:
        found = gp.find_threshold(params, scores, amount=torch.tensor(amounts))
        got = [repr_of(*pair) for pair in zip(*(x.tolist() for x in found), strict=True)]
        assert got == [repr_of(*ranking.last(k)) for k in amounts]


def repr_of(value: float, flat_index: int) -> str:
    return repr((value + 0.0, flat_index))  # -0.0 + 0.0 is 0.0, and NaN is nan


@pytest.mark.parametrize("sizes", [[SIZE], [7, SIZE - 8, 1]], ids=["one leaf", "three leaves"])
@pytest.mark.parametrize("dtype", fuzz.FLOATING, ids=str)
@pytest.mark.parametrize("make", SEVERAL_BITS)
def test_vmap_over_amounts(make: Any, dtype: torch.dtype, sizes: list[int]) -> None:
    params, scores, ranking = signed_case(make, dtype, sizes)
    for amounts in AMOUNTS:
        masks = torch.vmap(lambda k: gp.global_unstructured(params, scores, amount=k))(
            torch.tensor(amounts)
        )
        for i, k in enumerate(amounts):
            got = [mask[i].numpy() for mask in masks]
            assert sum(int((~mask).sum()) for mask in got) == k
            assert all(map(np.array_equal, got, ranking.masks(k)))


# --- an empty leaf beside small ones, whose dtype no score has ------------------------------

INTEGERS = [torch.int16, torch.int32, torch.int64]
# two integers that the dtype of the empty leaf would round to one number
PAIRS = {
    torch.bfloat16: (1000, 999),
    torch.float16: (2049, 2048),
    torch.float32: (2**24 + 1, 2**24),
    torch.float64: (2**53, 2**53 - 1),
}


@pytest.mark.parametrize("call", ["plain", "with scores", "with priors", "find_threshold"])
@pytest.mark.parametrize("floating", PAIRS, ids=str)
def test_an_empty_leaf_between_small_integers(floating: torch.dtype, call: str) -> None:
    """The first leaf has the larger number: it would go if the two tied."""
    problems = []
    for (more, less), left, right in itertools.product(
        [(1000, 999), PAIRS[floating]], INTEGERS, INTEGERS
    ):
        if more > min(torch.iinfo(left).max, torch.iinfo(right).max):
            continue
        values = [
            torch.tensor([more], dtype=left),
            torch.empty(0, dtype=floating),
            torch.tensor([less, 0], dtype=right),
        ]
        zeros, masks = [torch.zeros(x.shape) for x in values], None
        params, scores = (zeros, values) if call == "with scores" else (values, None)
        amount, expected = 2, [[True], [], [False, False]]
        if call == "with priors":
            amount, masks = 1, [torch.tensor(keep).bool() for keep in ([True], [], [True, False])]
        if call == "find_threshold":
            found = gp.find_threshold(params, scores, masks=masks, amount=amount)
            got, expected = [x.item() for x in found], [less, 1]
        else:
            kept = gp.global_unstructured(params, scores, masks=masks, amount=amount)
            got = [mask.tolist() for mask in kept]
        if got != expected:
            problems.append(f"{more} {left}, {less} {right}: got {got}, expected {expected}")
    fail_if(problems)


@pytest.mark.parametrize(
    "empty",
    [
        torch.bfloat16,
        torch.float32,
        *(
            pytest.param(dtype, marks=pytest.mark.long)
            for dtype in fuzz.FLOATING + fuzz.INTEGER
            if dtype not in (torch.bfloat16, torch.float32)
        ),
    ],
    ids=str,
)
def test_an_empty_leaf_between_leaves_of_any_dtypes(empty: torch.dtype) -> None:
    rng = np.random.default_rng(0)
    problems = []
    for dtypes in itertools.product(fuzz.FLOATING + fuzz.INTEGER, repeat=2):
        arrays = [fuzz.values_of("corners", rng, 9, dtype) for dtype in dtypes]
        left, right = map(fuzz.tensor_of, arrays, dtypes)
        ranking = fuzz.Ranking(
            [np.abs(x) for x in map(fuzz.exact, arrays, dtypes)], [np.ones(18, bool)]
        )
        for k in (3, 6, 9, 12, 15):
            masks = gp.global_unstructured([left, torch.empty(0, dtype=empty), right], amount=k)
            got = [masks[0].numpy(), masks[2].numpy()]
            if not all(map(np.array_equal, got, ranking.masks(k))):
                problems.append(f"{k} of {left} and {right}: got {got}")
    fail_if(problems)


# --- denormals that are flushed to zero -----------------------------------------------------

FLUSHED = """
import itertools
import numpy as np, torch
from tests.support import fuzz

torch.set_num_threads(2)
torch.set_flush_denormal(True)
torch.ones(2**22).add(1)  # the workers start now, and inherit it
torch.set_flush_denormal(False)
denormals = torch.from_numpy(np.ones(2**20, np.int32)).view(torch.float32)
assert denormals.mul(1).count_nonzero() < 2**20, "no worker flushes denormals"

import gprune as gp

rng = np.random.default_rng(0)

def case(dtype, size, distinct, other):
    bits = rng.integers(1, min(distinct, 2 ** fuzz.MANTISSA[dtype] - 1) + 1, size)
    small = fuzz.from_bits(bits.astype(np.uint64), dtype)
    exact = fuzz.exact(small, dtype)
    if other == "between":  # the denormals of the first leaf
        wide = rng.uniform(0, exact.max(), size // 2)
    elif other == "above":
        wide = np.ones(size // 2)
    else:  # denormals of float64
        wide = rng.integers(1, 1_000, size // 2).view(np.float64)
    ranking = fuzz.Ranking([exact, wide], [np.ones(size + size // 2, bool)])
    ks = [size // 3, size // 2]
    params = [fuzz.tensor_of(small, dtype), torch.from_numpy(wide)]
    return params, [(k, ranking.masks(k)) for k in ks]

others = ["between", "above", "x"]
kinds = [
    *itertools.product([torch.float32], [6, 5_000, 70_000, 200_000], [3, 10**5], others),
    *itertools.product([torch.bfloat16, torch.float16], [70_000], [3], others),
]
cases = [(kind, *case(*kind)) for kind in kinds]
prunes = {
    "global": lambda params, k: gp.global_unstructured(params, amount=k),
    "threshold": lambda params, k: gp.masks_from_threshold(
        gp.find_threshold(params, amount=k), params
    ),
}
wrong = []
torch.set_flush_denormal(True)
for (kind, params, expected), (name, prune) in itertools.product(cases, prunes.items()):
    for k, masks in expected:
        got = prune(params, k)
        if not all(np.array_equal(a.numpy(), b) for a, b in zip(got, masks)):
            number = sum(int((~mask).sum()) for mask in got)
            wrong.append(f"{name} of {kind}: {number} pruned, expected {k}")
print(chr(10).join(wrong))
"""


@pytest.mark.long  # test_determinism.py flushes denormals in the process itself
def test_denormals_are_ranked_where_the_workers_flush_them() -> None:
    assert python(FLUSHED, OMP_NUM_THREADS="2", OMP_WAIT_POLICY="passive") == ""


# --- autocast around the call ---------------------------------------------------------------


@pytest.mark.parametrize("cast", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("first", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("second", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_autocast_does_not_reach_into_a_selection(
    first: torch.dtype, second: torch.dtype, cast: torch.dtype
) -> None:
    params = [
        torch.tensor([3.0, -1.0, 0.1, 1e-3, float("nan")]).to(first),
        torch.tensor([[2.0, 0.1], [-0.5, 0.2]]).to(second),
    ]
    calls = [
        lambda: gp.global_unstructured(params, amount=4),
        lambda: gp.global_unstructured(params, params, sparsity=0.5),
        lambda: gp.layerwise(params, amount=2),
        lambda: gp.layerwise(params, amount=1, dim=-1),
        lambda: gp.layerwise(params, pruning_method=gp.n_of_m, n=1, m=2, dim=-1),
        lambda: gp.global_unstructured(
            params, pruning_method=gp.random_unstructured, seed=0, amount=4
        ),
        lambda: gp.masks_from_threshold(gp.find_threshold(params, amount=4), params),
        lambda: list(gp.find_threshold(params, amount=torch.tensor([1, 4, 7]))),
        lambda: gp.scores.random(params, seed=0),
        lambda: torch.vmap(lambda k: gp.global_unstructured(params, amount=k))(torch.arange(9)),
    ]
    for call in calls:
        outside = call()
        with torch.autocast("cpu", cast):
            inside = call()
        assert all(a.dtype == b.dtype for a, b in zip(inside, outside, strict=True))
        assert all(a.equal(b) for a, b in zip(inside, outside, strict=True))
    with torch.autocast("cpu", cast):
        masks = calls[0]()
    assert_masks(masks, reference.global_masks(params, None, 4), params)


# --- counting and tying in constant memory --------------------------------------------------


@pytest.mark.parametrize("strided", [False, True])
@pytest.mark.parametrize("count", [gp.num_pruned, gp.sparsity])
def test_counting_copies_no_mask(count: Any, strided: bool) -> None:
    """The profiler sees what operators allocate within, which a dispatch mode does not."""
    mask = torch.zeros(2**20, dtype=torch.bool)
    mask[: 3 * 2**18] = True
    masks = [mask.view(2**10, 2**10).t() if strided else mask, torch.ones(5) > 0]
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        number = count(masks)
    assert number.item() == (2**18 if count is gp.num_pruned else 2**18 / (2**20 + 5))
    assert max(event.self_cpu_memory_usage for event in profiled.events()) <= 2**10


PEAK_SETUP = """
import torch, gprune as gp
torch.set_num_threads(1)
def tied(size):
    params = [torch.ones(size, size) for _ in range({leaves})]
    params[0][0, 0], params[-1][-1, -1] = 0.5, 2.0  # not all equal
    return params
gp.global_unstructured(tied(2**10), amount={leaves} * 2**19)  # loads the code
params = tied(2**12)
"""


@pytest.mark.long
@pytest.mark.parametrize("leaves", [2, 4])
def test_ties_take_no_second_set_of_masks(leaves: int) -> None:
    """The masks have 16 MiB a leaf; the bound on what is beyond them does not grow with these."""
    grown = peak(
        PEAK_SETUP.format(leaves=leaves), f"gp.global_unstructured(params, amount={leaves} * 2**23)"
    )
    print(f"{leaves} leaves: {grown - 16 * leaves:.1f} MiB beyond the masks")
    assert grown - 16 * leaves <= 16
