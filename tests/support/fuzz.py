"""Random trees for gprune, and an oracle in numpy that ranks their entries.

A tree is described by a `Tree`, which prints as the source that makes it again. `build` turns it
into a `Case`: the tensors that are handed to gprune, and the same scores as float64 arrays. Every
score that gprune ranks is exact in float64, so the oracle is one stable sort of float64 numbers.
numpy sorts as the guarantees say: NaN last and in the order of its indices, `-0.0` equal to `0.0`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
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
