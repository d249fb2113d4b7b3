"""Random calls of gprune, each with what must come out of it: an oracle in numpy, and nothing else.

A tree is described by a `Tree`, which prints as the source that makes it again. `build` turns it
into a `Case`: the tensors that are handed to gprune, and the same scores as float64 arrays. Every
score that gprune ranks is exact in float64, so the oracle is one stable sort of float64 numbers.
numpy sorts as the guarantees say: NaN last and in the order of its indices, `-0.0` equal to `0.0`.

A *way* is one way to ask for masks or thresholds. It makes several calls on a case, and yields for
each result what was asked, what came out, and what must come out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from hypothesis import settings
from hypothesis import strategies as st
from torch import Tensor

import gprune as gp

Array = np.ndarray
Rng = np.random.Generator

FLOATING = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
INTEGER = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)
EXACT = 2**53
"""The largest magnitude that an int64 score may have."""

CALLS = 8
"""How many calls a way makes on one case, where it can choose."""


# --- numbers in numpy -----------------------------------------------------------------------

NUMPY: dict[torch.dtype, Any] = {
    torch.bfloat16: np.uint16,  # its bits, because numpy has no bfloat16
    **{x: getattr(np, str(x).removeprefix("torch.")) for x in (*FLOATING[:3], *INTEGER)},
}
MANTISSA = {torch.float64: 52, torch.float32: 23, torch.float16: 10, torch.bfloat16: 7}
BITS = {torch.float64: np.uint64, torch.float32: np.uint32, torch.float16: np.uint16}


def rounded(reals: Array, dtype: torch.dtype) -> Array:
    """Take real numbers as those of a dtype, within its range; NaN as an integer is 0."""
    with np.errstate(all="ignore"):
        if dtype == torch.bfloat16:
            return (reals.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
        if dtype.is_floating_point:
            return reals.astype(NUMPY[dtype])
        low, high = int_range(dtype)
        return np.clip(np.rint(np.nan_to_num(reals)), low, high).astype(NUMPY[dtype])


def int_range(dtype: torch.dtype) -> tuple[int, int]:
    info = torch.iinfo(dtype)
    return max(info.min, -EXACT), min(info.max, EXACT)


def from_bits(bits: Array, dtype: torch.dtype) -> Array:
    return bits.astype(BITS.get(dtype, np.uint16)).view(NUMPY[dtype])


def exact(array: Array, dtype: torch.dtype) -> Array:
    """Give the same numbers as float64."""
    if dtype == torch.bfloat16:
        array = (array.astype(np.uint32) << 16).view(np.float32)
    with np.errstate(invalid="ignore"):  # signaling NaNs
        return array.astype(np.float64)


def tensor_of(array: Array, dtype: torch.dtype) -> Tensor:
    if dtype == torch.bfloat16:
        return torch.from_numpy(array.view(np.int16)).view(dtype)
    return torch.from_numpy(array)


# --- distributions: what is hard to rank ----------------------------------------------------

# in pairs that some dtype rounds to one value, and at the ends of every range
CORNERS = np.array(
    [
        *(0.0, -0.0, 1, -1, 2, 3, 0.5, math.inf, -math.inf, math.nan, -math.nan),
        *(1 + 2**-7, 1 + 2**-10, 1 + 2**-23, 1 + 2**-52, 999, 1000, -999, -1000),
        *(127, 128, -127, -128, 255, 256, 257, 2048, 2049, 32767, -32768, 65504, 65505),
        *(2**24, 2**24 + 1, 2**31 - 1, -(2**31), EXACT - 1, EXACT, -EXACT),
        *(2.0**-14, 2.0**-24, 2.0**-126, 2.0**-133, 2.0**-149, 2.0**-1074, -(2.0**-1074)),
        *(float(np.finfo(np.float32).max), float(np.finfo(np.float64).max)),
    ]
)


def normal(rng: Rng, n: int) -> Array:
    return rng.standard_normal(n) * rng.choice([1e-3, 1.0, 1e3])


def replaced(rng: Rng, values: Array, share: float, by: Sequence[float]) -> Array:
    """Replace a share of the values by others."""
    return np.where(rng.random(len(values)) < share, rng.choice(by, len(values)), values)


def one_outlier(rng: Rng, n: int) -> Array:
    values = np.ones(n) + rng.integers(0, 2, n) * 2.0**-23
    values[: n // 2 + 1][-1:] = rng.choice([3e38, 65504, -65504, 1e-30])
    return values


REAL: dict[str, Callable[[Rng, int], Array]] = {
    "normal": normal,
    "uniform": lambda rng, n: rng.random(n),
    "all equal": lambda rng, n: np.full(n, rng.choice(CORNERS)),
    "all zero": lambda rng, n: np.zeros(n),
    "two values": lambda rng, n: rng.choice(rng.choice(CORNERS, 2), n),
    "few values": lambda rng, n: rng.integers(-2, 3, n).astype(np.float64),
    "signed zeros": lambda rng, n: rng.choice([-0.0, 0.0], n),
    "signed zeros among others": lambda rng, n: replaced(rng, normal(rng, n), 0.4, [-0.0, 0.0]),
    "half NaN": lambda rng, n: replaced(rng, normal(rng, n), 0.5, [math.nan]),
    "infinities": lambda rng, n: replaced(rng, normal(rng, n), 0.5, [math.inf, -math.inf]),
    "sorted": lambda rng, n: np.sort(normal(rng, n)),
    "reversed": lambda rng, n: np.sort(normal(rng, n))[::-1].copy(),
    "one outlier": one_outlier,
    "close": lambda rng, n: 1000 + rng.integers(0, 50, n) * 2.0**-40,
    "coarse": lambda rng, n: np.rint(rng.standard_normal(n) * 4) * 8,
    "every magnitude": lambda rng, n: np.exp2(rng.uniform(-1080, 1023, n)) * rng.choice([-1, 1], n),
    "magnitudes of float32": lambda rng, n: np.exp2(rng.uniform(-155, 127, n)),
    "integers": lambda rng, n: rng.integers(990, 1010, n) * rng.choice([-1.0, 1.0], n),
    "corners": lambda rng, n: rng.choice(CORNERS, n),
}


def any_bits(rng: Rng, n: int, dtype: torch.dtype) -> Array:
    if not dtype.is_floating_point:
        low, high = int_range(dtype)
        return rng.integers(low, high, n, dtype=np.int64, endpoint=True).astype(NUMPY[dtype])
    return from_bits(rng.integers(0, 2**64, n, dtype=np.uint64, endpoint=False), dtype)


def extremes(rng: Rng, n: int, dtype: torch.dtype) -> Array:
    if not dtype.is_floating_point:
        low, high = int_range(dtype)
        ends = np.array([low, low + 1, -1 if low else 1, 0, 1, high - 1, high], np.int64)
        return rng.choice(ends, n).astype(NUMPY[dtype])
    return from_bits(signed(rng, boundaries(dtype)[rng.integers(0, 8, n)], dtype), dtype)


def boundaries(dtype: torch.dtype) -> Array:
    """The bits of 0, the smallest and largest denormal, normal and infinite numbers and NaNs."""
    one = 1 << MANTISSA[dtype]
    infinity = exponent_mask(dtype)
    bits = [0, 1, one - 1, one, infinity - 1, infinity, infinity + 1, infinity + one - 1]
    return np.array(bits, np.uint64)


def exponent_mask(dtype: torch.dtype) -> int:
    width = 8 * dtype.itemsize - 1 - MANTISSA[dtype]
    return ((1 << width) - 1) << MANTISSA[dtype]


def signed(rng: Rng, bits: Array, dtype: torch.dtype) -> Array:
    sign = rng.integers(0, 2, len(bits), dtype=np.uint64)
    return bits | sign << np.uint64(8 * dtype.itemsize - 1)


def nans_of_both_signs(rng: Rng, n: int, dtype: torch.dtype) -> Array:
    """Of every payload, with a few numbers among them."""
    if not dtype.is_floating_point:
        return rounded(normal(rng, n), dtype)
    payload = rng.integers(0, 1 << MANTISSA[dtype], n, dtype=np.uint64)
    bits = np.where(rng.random(n) < 0.3, payload, payload | np.uint64(exponent_mask(dtype)))
    return from_bits(signed(rng, bits, dtype), dtype)


def denormals(rng: Rng, n: int, dtype: torch.dtype) -> Array:
    if not dtype.is_floating_point:
        return rounded(rng.integers(-3, 4, n).astype(np.float64), dtype)
    bits = rng.integers(0, 1 << MANTISSA[dtype], n, dtype=np.uint64)
    return from_bits(signed(rng, bits, dtype), dtype)


OF_A_DTYPE: dict[str, Callable[[Rng, int, torch.dtype], Array]] = {
    "any bits": any_bits,
    "extremes": extremes,
    "NaNs of both signs": nans_of_both_signs,
    "denormals": denormals,
}
DISTRIBUTIONS = (*REAL, *OF_A_DTYPE)
HARD = (*OF_A_DTYPE, "signed zeros among others", "corners", "coarse")
"""What has faulted a search before, and is drawn more often."""


def values_of(name: str, rng: Rng, n: int, dtype: torch.dtype) -> Array:
    if name in OF_A_DTYPE:
        return OF_A_DTYPE[name](rng, n, dtype)
    return rounded(REAL[name](rng, n), dtype)


def lowest_half_pruned(rng: Rng, ranked: Array) -> Array:
    keep = np.ones(len(ranked), bool)
    keep[np.argsort(ranked, kind="stable")[: len(ranked) // 2]] = False
    return keep


def one_kept(rng: Rng, ranked: Array) -> Array:
    return np.arange(len(ranked)) == rng.integers(0, max(1, len(ranked)))


PRIORS: dict[str, Callable[[Rng, Array], Array] | None] = {
    "none": None,
    "all kept": lambda rng, ranked: np.ones(len(ranked), bool),
    "half kept": lambda rng, ranked: rng.random(len(ranked)) < 0.5,
    "nearly all kept": lambda rng, ranked: rng.random(len(ranked)) < 0.98,
    "nearly all pruned": lambda rng, ranked: rng.random(len(ranked)) < 0.02,
    "lowest half pruned": lowest_half_pruned,
    "first half pruned": lambda rng, ranked: np.arange(len(ranked)) >= len(ranked) // 2,
    "one kept": one_kept,
    "all pruned": lambda rng, ranked: np.zeros(len(ranked), bool),
}


# --- trees ----------------------------------------------------------------------------------


class Leaf(NamedTuple):
    """The description of one leaf."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    values: str
    layout: str


class Tree(NamedTuple):
    """The description of a call: its leaves, prior masks, how they are ranked, and a seed."""

    leaves: tuple[Leaf | None, ...]
    prior: str
    ranking: str
    seed: int


class Case(NamedTuple):
    """The trees for gprune, and the same numbers for the oracle.

    Attributes:
        params: list of tensors, `None` where a leaf is not prunable.
        scores: list of tensors, or `None` to rank by magnitude.
        masks: list of prior masks, or `None`.
        method: the keyword arguments that say how `scores` are ranked.
        values: the tensors whose values or magnitudes are ranked.
        ranked: what is ranked, an exact float64 array of the shape of each prunable leaf.
        prior: which entries of it are candidates.
    """

    params: list[Any]
    scores: list[Any] | None
    masks: list[Any] | None
    method: dict[str, Any]
    values: list[Any]
    ranked: list[Array]
    prior: list[Array]

    @property
    def trees(self) -> tuple[list[Any], list[Any] | None]:
        """Params and scores that the default method ranks as this case is ranked."""
        return (
            (self.values, None) if "pruning_method" in self.method else (self.params, self.scores)
        )

    @property
    def places(self) -> list[int]:
        """Where the prunable leaves are."""
        return [i for i, leaf in enumerate(self.params) if leaf is not None]

    def only(self, leaves: Sequence[int]) -> Case:
        """Give the case of some of the prunable leaves, by their numbers."""

        def of(tree: list[Any] | None) -> Any:
            return None if tree is None else [tree[self.places[i]] for i in leaves]

        return Case(
            *(of(self.params), of(self.scores), of(self.masks), self.method, of(self.values)),
            [self.ranked[i] for i in leaves],
            [self.prior[i] for i in leaves],
        )


RANKINGS = ("scores", "magnitude", "l1")


def build(tree: Tree) -> Case:
    """Make the tensors of a description."""
    rng = np.random.default_rng(tree.seed)
    values: list[Any] = []
    ranked = []
    for leaf in tree.leaves:
        if leaf is None:
            values.append(None)
            continue
        array = values_of(leaf.values, rng, math.prod(leaf.shape), leaf.dtype).reshape(leaf.shape)
        if leaf.layout == "expanded" and leaf.shape:
            array[:] = array[:1]
        values.append(lay_out(tensor_of(array, leaf.dtype), leaf.layout))
        numbers = exact(array, leaf.dtype)
        ranked.append(numbers if tree.ranking == "scores" else np.abs(numbers))
    masks, prior = _priors(tree, ranked, rng)
    if tree.ranking == "magnitude":
        return Case(values, None, masks, {}, values, ranked, prior)
    method = {"pruning_method": gp.l1_unstructured} if tree.ranking == "l1" else {}
    params = [None if x is None else torch.zeros(x.shape) for x in values]
    return Case(params, values, masks, method, values, ranked, prior)


def _priors(tree: Tree, ranked: list[Array], rng: Rng) -> tuple[list[Any] | None, list[Array]]:
    make = PRIORS[tree.prior]
    if make is None:
        return None, [np.ones(x.shape, bool) for x in ranked]
    prior = unflatten(make(rng, flat(ranked)), ranked)
    rest = zip([leaf for leaf in tree.leaves if leaf is not None], prior, strict=True)
    masks = iter([lay_out(torch.from_numpy(keep.copy()), leaf.layout) for leaf, keep in rest])
    return [None if leaf is None else next(masks) for leaf in tree.leaves], prior


LAYOUTS = ("contiguous", "transposed", "strided", "offset", "channels last", "expanded")


def lay_out(tensor: Tensor, layout: str) -> Tensor:
    """Give the same entries in another memory layout, where the shape has it."""
    if layout == "transposed" and tensor.dim() > 1:
        return tensor.transpose(0, -1).contiguous().transpose(0, -1)
    if layout == "strided" and tensor.dim() > 0:
        storage = tensor.new_zeros((*tensor.shape[:-1], 2 * tensor.shape[-1] + 1))
        return storage[..., 1::2].copy_(tensor)
    if layout == "offset":
        return tensor.new_zeros(tensor.numel() + 1)[1:].view(tensor.shape).copy_(tensor)
    if layout == "channels last" and tensor.dim() == 4:
        return tensor.contiguous(memory_format=torch.channels_last)
    if layout == "expanded" and tensor.dim() > 0 and tensor.dtype != torch.bool:
        return tensor[:1].expand(tensor.shape)
    return tensor


# a flat leaf of one of these sizes is above the limits that a small tree never meets
LARGE = (3_000, 2**14 + 7, 2**15, 40_001)


def shapes(large: bool) -> st.SearchStrategy[tuple[int, ...]]:
    small = st.lists(st.integers(0, 6), max_size=4).map(tuple)
    vectors = (st.integers(0, 300) | st.sampled_from((100, 257))).map(lambda n: (n,))
    matrices = st.tuples(st.integers(1, 40), st.integers(1, 40))
    if not large:
        return st.one_of(small, vectors, matrices)
    big = st.sampled_from(LARGE)
    return st.one_of(big.map(lambda n: (n,)), big.map(lambda n: (n // 100, 100)))


def leaves(
    large: bool, dtypes: Sequence[torch.dtype], values: Sequence[str]
) -> st.SearchStrategy[Leaf]:
    return st.builds(
        Leaf, st.sampled_from(dtypes), shapes(large), st.sampled_from(values), layouts()
    )


def layouts() -> st.SearchStrategy[str]:
    return st.sampled_from(("contiguous",) * 3 + LAYOUTS)


def one(name: str) -> tuple[str]:
    return (name,)


@st.composite
def trees(draw: st.DrawFn, large: bool | None = None) -> Tree:
    """Draw a tree: one dtype or several, one distribution or several, mostly small.

    Args:
        draw: given by hypothesis.
        large: whether one leaf is large; drawn, and one time in five, by default.
    """
    if large is None:
        large = draw(st.sampled_from([False] * 4 + [True]))
    dtypes: Sequence[torch.dtype] = FLOATING + INTEGER
    dtypes = draw(st.sampled_from([dtypes, FLOATING, INTEGER, *((x,) for x in dtypes)]))
    values = draw(st.sampled_from([DISTRIBUTIONS, HARD]) | st.sampled_from(DISTRIBUTIONS).map(one))
    small = leaves(False, dtypes, values)
    drawn: list[Leaf | None] = draw(st.lists(small | st.none(), max_size=6))
    at = draw(st.integers(0, len(drawn)))
    drawn.insert(at, draw(leaves(large, dtypes, values)))  # one at least is prunable
    return Tree(
        tuple(drawn),
        draw(st.sampled_from(("none",) * 4 + tuple(PRIORS))),
        draw(st.sampled_from(("scores", *RANKINGS))),
        draw(st.integers(0, 2**32 - 1)),
    )


@st.composite
def limited_trees(draw: st.DrawFn) -> tuple[Tree, int | None]:
    """Draw a tree, and a seed for `limits.small_limits` or `None` for the real limits.

    In the quick profile a tree with a large leaf has the real limits. Under small ones such a tree
    has taken 1.2 s instead of 0.04 s, because the search then makes many passes over many blocks.
    """
    large = draw(st.sampled_from([False] * 4 + [True]))
    tree = draw(trees(large))
    if large and settings().max_examples < 100:
        return tree, None
    return tree, draw(st.none() | st.integers(0, 2**32 - 1))


# --- the oracle -----------------------------------------------------------------------------


class Last(NamedTuple):
    """The score and the flat index of the last pruned entry, as a threshold must have them."""

    value: float
    flat_index: int


def flat(arrays: Sequence[Array]) -> Array:
    return np.concatenate([array.reshape(-1) for array in arrays])


def unflatten(entries: Array, like: Sequence[Array]) -> list[Array]:
    ends = np.cumsum([array.size for array in like])[:-1]
    return [x.reshape(y.shape) for x, y in zip(np.split(entries, ends), like, strict=True)]


def order_of(ranked: Array, prior: Array) -> Array:
    """Give the flat indices of the candidates in the order in which they are pruned."""
    candidates = np.flatnonzero(prior)
    return candidates[np.argsort(ranked.reshape(-1)[candidates], kind="stable")]


def pruned(prior: Array, first: Array) -> Array:
    """Give a prior mask less the entries of some flat indices."""
    keep = prior.copy().reshape(-1)
    keep[first] = False
    return keep.reshape(prior.shape)


class Ranking:
    """One ranking of all prunable leaves, sorted once."""

    def __init__(self, ranked: Sequence[Array], prior: Sequence[Array]) -> None:
        self.like, self.scores, self.prior = ranked, flat(ranked), flat(prior)
        self.order = order_of(self.scores, self.prior)

    @property
    def entries(self) -> int:
        return len(self.scores)

    @property
    def candidates(self) -> int:
        return len(self.order)

    def masks(self, k: int) -> list[Array]:
        return unflatten(pruned(self.prior, self.order[:k]), self.like)

    def last(self, k: int) -> Last:
        if k == 0:
            return Last(-math.inf, -1)
        return Last(float(self.scores[self.order[k - 1]]), int(self.order[k - 1]))

    def masks_at(self, threshold: Last) -> list[Array]:
        """Give the masks of any threshold, also of one that is not the score of an entry."""
        value, flat_index = threshold
        until = np.arange(self.entries) <= flat_index
        if math.isnan(value):
            go = ~np.isnan(self.scores) | until
        else:
            go = (self.scores < value) | ((self.scores == value) & until)
        return unflatten(self.prior & ~go, self.like)


def count(kwargs: dict[str, Any], candidates: int, entries: int) -> int:
    """Give the number of candidates that an amount or a sparsity prunes."""
    [(name, number)] = kwargs.items()
    number = number.item() if isinstance(number, Tensor) else number
    if name == "sparsity":
        return max(0, round(float(number) * entries) - (entries - candidates))
    return number if isinstance(number, int) else round(number * candidates)


# --- how much to prune ----------------------------------------------------------------------


def number(rng: Rng, candidates: int) -> Any:
    """Draw an amount: an int, a float, or a 0-dim tensor of one."""
    k = int(rng.integers(0, candidates + 1))
    k = int(rng.choice([k, k, k, 0, min(1, candidates), max(0, candidates - 1), candidates]))
    kind = rng.integers(0, 4)
    if kind == 0:
        return k
    if kind == 1:
        return torch.tensor(k, dtype=[torch.int64, torch.int32][rng.integers(0, 2)])
    return fraction(rng, k / max(1, candidates))


def fraction(rng: Rng, near: float) -> Any:
    """Draw a number from 0 to 1: a float, or a 0-dim tensor of one."""
    dtype = [None, None, *FLOATING][rng.integers(0, 6)]
    return near if dtype is None else torch.tensor(near, dtype=dtype)


def asked(rng: Rng, candidates: int) -> dict[str, Any]:
    """Draw how much to prune, as a keyword argument."""
    if rng.random() < 0.3:
        return {"sparsity": fraction(rng, float(rng.choice([rng.random(), 0.0, 0.5, 1.0])))}
    return {"amount": number(rng, candidates)}


def several(rng: Rng, candidates: int) -> dict[str, Any]:
    """Draw several amounts or sparsities as a 1-D tensor, in any order and some of them equal."""
    size = int(rng.integers(1, CALLS + 1))
    ks = rng.integers(0, candidates + 1, size)
    if rng.random() < 0.5:
        return {"amount": torch.from_numpy(ks)}
    name = ["amount", "sparsity"][rng.integers(0, 2)]
    dtype = [torch.float64, torch.float32][rng.integers(0, 2)]
    return {name: torch.from_numpy(ks / max(1, candidates)).to(dtype)}


# --- every way to ask -----------------------------------------------------------------------

Check = tuple[str, Any, Any]
"""What was asked, what came out, and what must come out.

That is a `Last`, a list of one array for each prunable leaf, or a dict of the array of one of them.
"""


def one_amount(case: Case, rng: Rng) -> Iterator[Check]:
    ranking = Ranking(case.ranked, case.prior)
    for _ in range(CALLS):
        much = asked(rng, ranking.candidates)
        masks = gp.global_unstructured(
            case.params, case.scores, masks=case.masks, **case.method, **much
        )
        k = count(much, ranking.candidates, ranking.entries)
        yield f"global_unstructured {much}", masks, ranking.masks(k)


def one_threshold(case: Case, rng: Rng) -> Iterator[Check]:
    """Thresholds of one amount, masks from them, and masks from thresholds of nobody."""
    ranking = Ranking(case.ranked, case.prior)
    for _ in range(CALLS // 2):
        much = asked(rng, ranking.candidates)
        threshold = gp.find_threshold(*case.trees, masks=case.masks, **much)
        k = count(much, ranking.candidates, ranking.entries)
        yield f"find_threshold {much}", threshold, ranking.last(k)
        masks = gp.masks_from_threshold(threshold, *case.trees, masks=case.masks)
        yield f"masks_from_threshold {threshold}", masks, ranking.masks(k)
    for _ in range(CALLS // 2):
        threshold = gp.Threshold(*any_threshold(rng, ranking))
        masks = gp.masks_from_threshold(threshold, *case.trees, masks=case.masks)
        yield f"masks_from_threshold {threshold}", masks, ranking.masks_at(Last(*threshold))


def any_threshold(rng: Rng, ranking: Ranking) -> Last:
    """Draw a threshold at a score, beside one, or anywhere."""
    value = float(rng.choice(CORNERS))
    if ranking.entries and rng.random() < 0.7:
        value = float(rng.choice(ranking.scores))
        with np.errstate(all="ignore"):  # beyond the largest number, and from NaN
            value = float(np.nextafter(value, rng.choice([value, -math.inf, math.inf])))
    return Last(value, int(rng.integers(-1, ranking.entries + 1)))


def several_thresholds(case: Case, rng: Rng) -> Iterator[Check]:
    """Several amounts in one search, and the masks of each of them."""
    ranking = Ranking(case.ranked, case.prior)
    for _ in range(2):
        much = several(rng, ranking.candidates)
        [(name, numbers)] = much.items()
        found = gp.find_threshold(*case.trees, masks=case.masks, **much)
        for i, (value, flat_index) in enumerate(zip(*found, strict=True)):
            k = count({name: numbers[i]}, ranking.candidates, ranking.entries)
            yield f"find_threshold {much}, number {i}", (value, flat_index), ranking.last(k)
            threshold = gp.Threshold(value, flat_index)
            masks = gp.masks_from_threshold(threshold, *case.trees, masks=case.masks)
            yield f"masks_from_threshold {threshold}", masks, ranking.masks(k)


def vmap_over_amounts(case: Case, rng: Rng) -> Iterator[Check]:
    ranking = Ranking(case.ranked, case.prior)
    for _ in range(2):
        much = several(rng, ranking.candidates)
        [(name, numbers)] = much.items()

        def prune(number: Tensor, name: str = name) -> list[Tensor]:
            masks = gp.global_unstructured(
                case.params, case.scores, masks=case.masks, **case.method, **{name: number}
            )
            return [mask for mask in masks if mask is not None]

        batch = torch.vmap(prune)(numbers)
        for i in range(len(numbers)):
            k = count({name: numbers[i]}, ranking.candidates, ranking.entries)
            masks = refill(case, [mask[i] for mask in batch])
            yield f"vmap over {much}, number {i}", masks, ranking.masks(k)


def refill(case: Case, masks: list[Any]) -> list[Any]:
    """Put `None` where a leaf is not prunable."""
    rest = iter(masks)
    return [None if leaf is None else next(rest) for leaf in case.params]


MODELS = 3


def vmap_over_models(case: Case, rng: Rng) -> Iterator[Check]:
    """Models of the same shapes: the entries of every leaf, permuted."""
    models = [permuted(case, rng) for _ in range(MODELS)]
    for prune in (gp.global_unstructured, gp.layerwise):
        shared = case.masks is None or bool(rng.integers(0, 2))  # one prior for all models
        priors = [case.prior if shared else model.prior for model in models]
        each = prune is gp.layerwise
        least = min(int(keep.sum()) for prior in priors for keep in prior)
        several_numbers = bool(rng.integers(0, 2))
        if several_numbers:
            name, numbers = "amount", torch.from_numpy(rng.random(MODELS))
        else:
            candidates = least if each else min(int(flat(prior).sum()) for prior in priors)
            [(name, numbers)] = asked(rng, candidates).items()
        dims = int(rng.integers(-1, 1))

        def call(
            params: Any, scores: Any, masks: Any, n: Any, prune: Any = prune, name: str = name
        ):
            got = prune(params, scores, masks=masks, **case.method, **{name: n})
            return [mask for mask in got if mask is not None]

        ours, theirs = (
            (stacked([model.params for model in models], dims)),
            None if case.scores is None else stacked([model.scores for model in models], dims),
        )
        masks = case.masks if shared else stacked([model.masks for model in models], dims)
        along = [None if leaf is None else (dims if leaf.dim() else 0) for leaf in case.params]
        batch = torch.vmap(
            call,
            in_dims=(
                along,
                None if theirs is None else along,
                None if shared else along,
                0 if several_numbers else None,
            ),
        )(ours, theirs, masks, numbers)
        for i, model in enumerate(models):
            much = {name: numbers[i] if several_numbers else numbers}
            expected = expected_masks(model.ranked, priors[i], much, each)
            got = refill(case, [mask[i] for mask in batch])
            yield f"vmap of {prune.__name__} over models, {much}, model {i}", got, expected


def stacked(trees: Sequence[Any], dim: int) -> list[Any]:
    """Stack the leaves of several trees along a dim."""
    return [
        None if group[0] is None else torch.stack(group, dim if group[0].dim() else 0)
        for group in zip(*trees, strict=True)
    ]


def permuted(case: Case, rng: Rng) -> Case:
    """Give the case with the entries of every leaf in another order."""
    orders = [rng.permutation(array.size) for array in case.ranked]

    def of_arrays(arrays: list[Array]) -> list[Array]:
        pairs = zip(arrays, orders, strict=True)
        return [array.reshape(-1)[order].reshape(array.shape) for array, order in pairs]

    def of(tree: list[Any] | None) -> Any:
        if tree is None:
            return None
        rest = iter(orders)
        return [
            None if x is None else x.reshape(-1)[torch.from_numpy(next(rest))].reshape(x.shape)
            for x in tree
        ]

    values = of(case.values)
    return case._replace(
        params=values if case.scores is None else case.params,
        scores=None if case.scores is None else values,
        masks=of(case.masks),
        values=values,
        ranked=of_arrays(case.ranked),
        prior=of_arrays(case.prior),
    )


def expected_masks(
    ranked: list[Array], prior: list[Array], much: dict[str, Any], each: bool
) -> list[Array]:
    """Give the masks of one ranking, or of one for each leaf."""
    groups = [([x], [keep]) for x, keep in zip(ranked, prior, strict=True)]
    masks = []
    for group in groups if each else [(ranked, prior)]:
        ranking = Ranking(*group)
        masks += ranking.masks(count(much, ranking.candidates, ranking.entries))
    return masks


def layerwise(case: Case, rng: Rng) -> Iterator[Check]:
    """One amount for all leaves."""
    rankings = [Ranking([x], [keep]) for x, keep in zip(case.ranked, case.prior, strict=True)]
    for _ in range(CALLS // 2):
        much = asked(rng, min(ranking.candidates for ranking in rankings))
        masks = gp.layerwise(case.params, case.scores, masks=case.masks, **case.method, **much)
        yield from each_leaf(f"layerwise {much}", case, masks, rankings, [much] * len(rankings))


def layerwise_tree(case: Case, rng: Rng) -> Iterator[Check]:
    """A tree of amounts."""
    rankings = [Ranking([x], [keep]) for x, keep in zip(case.ranked, case.prior, strict=True)]
    for _ in range(CALLS // 2):
        name = ["amount", "sparsity"][rng.integers(0, 2)]
        numbers = [
            number(rng, ranking.candidates) if name == "amount" else fraction(rng, rng.random())
            for ranking in rankings
        ]
        much = {name: refill(case, numbers)}
        masks = gp.layerwise(case.params, case.scores, masks=case.masks, **case.method, **much)
        ones = [{name: one} for one in numbers]
        yield from each_leaf(f"layerwise {much}", case, masks, rankings, ones)


def each_leaf(
    what: str, case: Case, masks: list[Any], rankings: list[Ranking], much: list[dict[str, Any]]
) -> Iterator[Check]:
    """One check for each leaf, because each is a ranking of its own."""
    assert [i for i, mask in enumerate(masks) if mask is not None] == case.places
    for i, (place, ranking, one) in enumerate(zip(case.places, rankings, much, strict=True)):
        [expected] = ranking.masks(count(one, ranking.candidates, ranking.entries))
        yield f"{what}, leaf {place}", [masks[place]], {i: expected}


def rows(case: Case, rng: Rng) -> Iterator[Check]:
    """Comparison groups along dims, of all the leaves that have such groups of at least two."""
    for _ in range(CALLS // 2):
        dim = dims_of(case, rng)
        some = case.only([i for i, x in enumerate(case.ranked) if group_size(x.shape, dim) > 1])
        if not some.params:
            continue
        groups = [groups_along(x.shape, dim) for x in some.ranked]
        least = min(fewest(*one) for one in zip(some.prior, groups, strict=True))
        much = asked(rng, least)
        masks = gp.layerwise(
            some.params, some.scores, masks=some.masks, dim=dim, **some.method, **much
        )
        for i, index in enumerate(groups):
            expected = pruned_in(
                some.ranked[i],
                some.prior[i],
                index,
                partial(count, much),
            )
            yield f"layerwise dim={dim}, {much}, leaf {i} of those", [masks[i]], {i: expected}


def n_of_m(case: Case, rng: Rng) -> Iterator[Check]:
    for _ in range(CALLS // 2):
        dim = int(rng.choice([-1, -1, 0, 1]))
        m = int(rng.integers(1, 9))
        n = int(rng.integers(0, m + 1))
        some = case.only(
            [i for i, x in enumerate(case.ranked) if -x.ndim <= dim < x.ndim and x.shape[dim] != 1]
        )
        if not some.params:
            continue
        params, scores = some.trees
        masks = gp.layerwise(
            params, scores, masks=some.masks, pruning_method=gp.n_of_m, n=n, m=m, dim=dim
        )
        for i, (ranked, prior) in enumerate(zip(some.ranked, some.prior, strict=True)):
            index = in_groups_of(m, groups_along(ranked.shape, dim))
            expected = pruned_in(ranked, prior, index, lambda c, size, n=n: max(0, c - n))
            yield f"n_of_m n={n}, m={m}, dim={dim}, leaf {i} of those", [masks[i]], {i: expected}


def dims_of(case: Case, rng: Rng) -> int | tuple[int, ...]:
    """Draw one dim, or several of one of the leaves."""
    leaf = case.ranked[rng.integers(0, len(case.ranked))]
    if leaf.ndim == 0 or rng.random() < 0.6:
        return int(rng.choice([-1, 0]))
    chosen = [d for d in range(leaf.ndim) if rng.random() < 0.6] or [0]
    rng.shuffle(chosen)
    return tuple(int(d) - leaf.ndim * int(rng.integers(0, 2)) for d in chosen)


def group_size(shape: tuple[int, ...], dim: int | tuple[int, ...]) -> int:
    """How many entries a comparison group has; 0 where the leaf has no such dims."""
    dims = (dim,) if isinstance(dim, int) else dim
    if any(not -len(shape) <= d < len(shape) for d in dims):
        return 0
    if len({d % len(shape) for d in dims}) < len(dims):
        return 0
    return math.prod(shape[d] for d in dims)


def groups_along(shape: tuple[int, ...], dim: int | tuple[int, ...]) -> Array:
    """Give a row of flat indices, ascending, for each comparison group."""
    dims = sorted(d % len(shape) for d in ((dim,) if isinstance(dim, int) else dim))
    rest = [d for d in range(len(shape)) if d not in dims]
    index = np.arange(math.prod(shape)).reshape(shape).transpose(rest + dims)
    size = math.prod(shape[d] for d in dims)
    return index.reshape(math.prod(shape[d] for d in rest), size)


NOTHING = -1
"""The index of what fills up a group that is shorter than the others."""


def in_groups_of(m: int, rows: Array) -> Array:
    """Split every row in groups of m, the last of which may be shorter."""
    padded = np.pad(rows, ((0, 0), (0, -rows.shape[1] % m)), constant_values=NOTHING)
    return padded.reshape(-1, m)


def fewest(prior: Array, index: Array) -> int:
    """How few candidates a comparison group has; where there is no group, how many it would."""
    return int(prior.reshape(-1)[index].sum(1).min(initial=index.shape[1]))


def pruned_in(
    ranked: Array, prior: Array, index: Array, how_many: Callable[[int, int], int]
) -> Array:
    """Give the mask in which every comparison group has lost its lowest candidates.

    Args:
        ranked: what is ranked, of one leaf.
        prior: its candidates.
        index: the flat indices of each group in a row.
        how_many: how many a group loses, by the number of its candidates and of its entries.
    """
    candidate = np.append(prior, False)[index]
    order = np.lexsort((np.append(ranked, 0.0)[index], ~candidate), axis=-1)  # candidates first
    candidates, entries = candidate.sum(1), (index != NOTHING).sum(1)
    ks = [how_many(*map(int, pair)) for pair in zip(candidates, entries, strict=True)]
    first = np.arange(index.shape[1]) < np.array(ks, np.int64)[:, None]
    return pruned(prior, np.take_along_axis(index, order, 1)[first])


def random(case: Case, rng: Rng) -> Iterator[Check]:
    """A method of random draws, against the draws as scores."""
    for _ in range(CALLS // 4):
        seed = int(rng.choice([0, 1, -1, 2**63 - 1, 1 - 2**63, rng.integers(1 - 2**63, 2**63 - 1)]))
        given = seed if rng.random() < 0.7 else torch.tensor(seed)
        draws = gp.scores.random([torch.zeros(x.shape) for x in case.ranked], seed=seed)
        ranked = [x.numpy() for x in draws]
        method = {"pruning_method": gp.random_unstructured, "seed": given}
        for prune in (gp.global_unstructured, gp.layerwise):
            each = prune is gp.layerwise
            least = [int(keep.sum()) for keep in case.prior]
            much = asked(rng, min(least) if each else sum(least))
            masks = prune(case.params, masks=case.masks, **method, **much)
            expected = expected_masks(ranked, case.prior, much, each)
            yield f"{prune.__name__} random, seed={given}, {much}", masks, expected


def random_several(case: Case, rng: Rng) -> Iterator[Check]:
    """vmap over seeds and amounts."""
    seeds = torch.from_numpy(rng.integers(1 - 2**63, 2**63 - 1, CALLS))
    numbers = torch.from_numpy(rng.random(CALLS))

    def prune(seed: Tensor, amount: Tensor) -> list[Tensor]:
        method = {"pruning_method": gp.random_unstructured, "seed": seed, "amount": amount}
        masks = gp.global_unstructured(case.params, masks=case.masks, **method)
        return [mask for mask in masks if mask is not None]

    batch = torch.vmap(prune)(seeds, numbers)
    for i in range(CALLS):
        draws = [x for x in gp.scores.random(case.params, seed=seeds[i]) if x is not None]
        much = {"amount": numbers[i]}
        expected = expected_masks([x.numpy() for x in draws], case.prior, much, False)
        got = refill(case, [mask[i] for mask in batch])
        yield f"vmap over seeds, {seeds[i]}, {much}", got, expected


class Way(NamedTuple):
    """One way to ask, and about how many checks it makes on a case, at least."""

    ask: Callable[[Case, Rng], Iterator[Check]]
    checks: int


WAYS: dict[str, Way] = {
    "one amount": Way(one_amount, 8),
    "one threshold": Way(one_threshold, 12),
    "several thresholds": Way(several_thresholds, 14),
    "vmap over amounts": Way(vmap_over_amounts, 7),
    "vmap over models": Way(vmap_over_models, 6),
    "layerwise": Way(layerwise, 7),
    "layerwise with a tree of amounts": Way(layerwise_tree, 7),
    "rows": Way(rows, 4),
    "n of m": Way(n_of_m, 4),
    "random": Way(random, 4),
    "vmap over seeds": Way(random_several, 8),
}


# --- what is wrong --------------------------------------------------------------------------


def error_of(case: Case, check: Check, local: Callable[[int, Array], Array] | None = None) -> str:
    """Say what is wrong with one result, or nothing.

    Args:
        case: the case, whose leaves say where `None` belongs.
        check: what was asked, what came out, and what must come out.
        local: takes the part of this rank from the array of a prunable leaf.

    Returns:
        A sentence, or an empty string.
    """
    what, got, expected = check
    if isinstance(expected, Last):
        value, flat_index = (x.item() for x in got)
        same = value == expected.value or (math.isnan(value) and math.isnan(expected.value))
        right = same and flat_index == expected.flat_index
        return "" if right else f"{what}: got {value, flat_index}, expected {tuple(expected)}"
    if isinstance(expected, list):
        if [i for i, mask in enumerate(got) if mask is not None] != case.places:
            return f"{what}: got {got}, expected a mask where there is a prunable leaf"
        expected = dict(enumerate(expected))
    masks = [mask for mask in got if mask is not None]
    problems = [
        f"{i} {problem}"
        for mask, (i, array) in zip(masks, expected.items(), strict=True)
        if (problem := leaf_error(mask, array if local is None else local(i, array)))
    ]
    return f"{what}: mask {'; '.join(problems)}" if problems else ""


def leaf_error(mask: Tensor, expected: Array) -> str:
    mask = mask.to_local() if hasattr(mask, "to_local") else mask
    if mask.dtype != torch.bool or tuple(mask.shape) != expected.shape:
        return f"is {mask.dtype} of {tuple(mask.shape)}, expected bool of {expected.shape}"
    wrong = np.flatnonzero(mask.numpy().reshape(-1) != expected.reshape(-1))
    if not len(wrong):
        return ""
    kept = int(mask.sum()), int(expected.sum())
    return (
        f"keeps {kept[0]}, expected {kept[1]}; entry {wrong[0]} is the first of {len(wrong)} wrong"
    )
