"""What rebuilding weights is tested on: weights, Gram matrices of every rank, masks and layouts."""

import itertools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import strategies as st

from tests.support import reconstruct_reference as oracle

GOLDEN = (math.sqrt(5) - 1) / 2

# With a damping of .01 and 8 columns the condition number of H is below 8 / .01 + 1, about 800. A
# solution is as exact as the dtype times that, and the steps of the sum: we allow 10 times as much.
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-3, torch.bfloat16: 1e-2}
"""The largest error over the largest weight: 800 roundings of the dtype; bfloat16 rounds to 1/256.

bfloat16 weights are rebuilt in float32 and then rounded once, so 1/256 and a little.
"""

DTYPES = list(TOLERANCE)

GAP = {torch.float64: 1e-9, torch.float32: 1e-3, torch.bfloat16: 1e-3}
"""How clear a choice must be, so that no rounding of the scores changes it: see `Chosen.gap`."""


def gram_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


class Case(NamedTuple):
    """A linear weight, (rows, columns), with its Gram matrix, a mask and a damping."""

    weight: torch.Tensor
    gram: torch.Tensor
    mask: torch.Tensor
    damping: float

    @property
    def rows(self) -> oracle.Matrix:
        return self.weight.double().tolist()

    @property
    def matrix(self) -> oracle.Matrix:
        return self.gram.double().tolist()

    @property
    def keep(self) -> oracle.MaskRows:
        return self.mask.tolist()


def unequal(integers: torch.Tensor) -> torch.Tensor:
    """The integers plus a fraction that differs from place to place, so that scores do not tie."""
    index = torch.arange(1, integers.numel() + 1, dtype=torch.float64).reshape(integers.shape)
    return integers.double() + (index * GOLDEN % 1) / 2 + 1 / 8


def matrices(rows: int, columns: int, bound: int) -> st.SearchStrategy[torch.Tensor]:
    entries = st.lists(st.integers(-bound, bound), min_size=rows * columns, max_size=rows * columns)
    return entries.map(lambda flat: torch.tensor(flat, dtype=torch.float64).view(rows, columns))


@st.composite
def grams(draw: st.DrawFn, columns: int) -> torch.Tensor:
    """XᵀX: of fewer rows than columns and with inputs that are always 0 too, but not all 0."""
    tokens = draw(st.integers(1, 10))
    inputs = draw(matrices(tokens, columns, 3))
    if draw(st.booleans()):
        inputs = unequal(inputs)
    elif not inputs.any():
        inputs[0, 0] = 1
    gram = inputs.mT @ inputs
    return (gram + gram.mT) / 2


def masks(rows: int, columns: int) -> st.SearchStrategy[torch.Tensor]:
    entries = st.lists(st.booleans(), min_size=rows * columns, max_size=rows * columns)
    return entries.map(lambda flat: torch.tensor(flat).view(rows, columns))


@st.composite
def cases(draw: st.DrawFn, dtype: torch.dtype = torch.float64, *, ties: bool = False) -> Case:
    """Weights of 1 to 6 rows and 1 to 8 columns; integers, if scores shall tie."""
    rows, columns = draw(st.integers(1, 6)), draw(st.integers(1, 8))
    weight = draw(matrices(rows, columns, 8))
    return Case(
        (weight if ties else unequal(weight)).to(dtype),
        draw(grams(columns)).to(gram_dtype(dtype)),
        draw(masks(rows, columns)),
        draw(st.sampled_from([0.01, 0.1, 1.0])),
    )


def any_case(*, ties: bool = False) -> st.SearchStrategy[Case]:
    return st.sampled_from(DTYPES).flatmap(lambda dtype: cases(dtype, ties=ties))


def orders(size: int) -> st.SearchStrategy[list[int]]:
    return st.permutations(list(range(size)))


# --- layouts -------------------------------------------------------------------------------------


class Layout(NamedTuple):
    """How a weight is laid out.

    Attributes:
        shape: of the weight.
        dim: the argument, or `None` for the default.
        dims: the dims that it stands for.
        parts: how many Gram matrices there are.
        divides_columns: whether each is of some of the columns in all rows, as in a transposed
            convolution in groups; else each is of all columns in some of the rows.
    """

    shape: tuple[int, ...]
    dim: Any
    dims: tuple[int, ...]
    parts: int = 1
    divides_columns: bool = False

    @property
    def num_columns(self) -> int:
        columns = math.prod(self.shape[dim] for dim in self.dims)
        return columns // self.parts if self.divides_columns else columns

    def rows_of(self, leaf: torch.Tensor) -> list[list[Any]]:
        """The leaf as a matrix in which each part has its own consecutive rows."""
        rows = oracle.as_rows(leaf, self.dims)
        if not self.divides_columns:
            return rows
        size = self.num_columns
        return [row[part * size :][:size] for part in range(self.parts) for row in rows]

    def from_rows(self, rows: list[list[Any]]) -> torch.Tensor:
        if self.divides_columns:
            number = len(rows) // self.parts
            rows = [list(itertools.chain(*rows[i::number])) for i in range(number)]
        return oracle.from_rows(rows, self.shape, self.dims)

    @property
    def keywords(self) -> dict[str, Any]:
        return {} if self.dim is None else {"dim": self.dim}

    def groups(self, m: int) -> oracle.Columns:
        sizes = [self.shape[dim] for dim in self.dims]
        sizes[0] //= self.parts if self.divides_columns else 1
        return oracle.groups_of_columns(sizes, m)

    def draw(self, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """A weight, its Gram matrices, and a mask that keeps about half of each row."""
        generator = torch.Generator().manual_seed(seed)
        size = self.num_columns

        def normal(*shape: int) -> torch.Tensor:
            return torch.randn(shape, generator=generator, dtype=torch.float64)

        # inputs of different sizes that go along with each other, as those of a network do
        inputs = normal(self.parts, 3 * size, size) + normal(self.parts, 3 * size, 1)
        inputs = inputs * torch.linspace(2, 1 / 2, size, dtype=torch.float64)
        gram = inputs.mT @ inputs
        mask = normal(*self.shape) > 0
        return normal(*self.shape), gram if self.parts > 1 else gram[0], mask


LAYOUTS = {
    "linear": Layout((4, 6), None, (1,)),
    "linear, counted from the end": Layout((4, 6), -1, (1,)),
    "Conv1D of transformers": Layout((6, 4), 0, (0,)),
    "one row": Layout((1, 5), None, (1,)),
    "one column": Layout((3, 1), None, (1,)),
    "convolution in one dimension": Layout((4, 5, 2), None, (1, 2)),
    "convolution in two": Layout((3, 4, 2, 1), None, (1, 2, 3)),
    "dims in another order": Layout((3, 4, 2), (2, 1), (1, 2)),
    "grouped convolution": Layout((4, 2, 3), None, (1, 2), 2),
    "depthwise convolution": Layout((3, 1, 2, 2), None, (1, 2, 3), 3),
    "transposed convolution": Layout((4, 3, 2), (0, 2), (0, 2)),
    "grouped transposed convolution": Layout((4, 3, 2), (0, 2), (0, 2), 2, divides_columns=True),
    "packed experts": Layout((3, 2, 5), 2, (2,), 3),
    "packed experts, inputs first": Layout((3, 5, 2), 1, (1,), 3),
    "by a function": Layout((5, 2), lambda path, leaf: 0, (0,)),
}


GROUPED = [name for name, layout in LAYOUTS.items() if layout.shape[layout.dims[0]] > 1]
"""Those in which several inputs can be a group."""


def parts_of(gram: torch.Tensor) -> list[oracle.Matrix]:
    """The Gram matrix of each part of the rows, as lists."""
    return [matrix.double().tolist() for matrix in (gram if gram.dim() == 3 else gram[None])]


def assert_near(
    got: torch.Tensor, want: Any, scale_of: torch.Tensor, tolerance: float | None = None
) -> None:
    """The largest error, over the largest entry of the expected and the original weight."""
    want = want if isinstance(want, torch.Tensor) else torch.tensor(want, dtype=torch.float64)
    assert (got.dtype, got.shape) == (scale_of.dtype, want.shape)
    tolerance = TOLERANCE[got.dtype] if tolerance is None else tolerance
    largest = max(want.abs().max().item(), scale_of.abs().max().item(), 1e-300)
    error = (got.double() - want.double()).abs().max().item()
    assert error <= tolerance * largest, f"error {error / largest:.2g}: {got} for {want}"


def in_tree(function: Callable[..., Any], *leaves: Any, **keywords: Any) -> Any:
    """Call with each leaf in a tree, beside a leaf that is `None` in each of them."""
    result = function(*({"w": leaf, "none": None} for leaf in leaves), **keywords)
    if isinstance(result, tuple):
        assert all(tree["none"] is None for tree in result)
        return tuple(tree["w"] for tree in result)
    assert result["none"] is None
    return result["w"]


def stacked(name: str, size: int = 3) -> dict[str, torch.Tensor]:
    """Several layers of one layout, stacked along a new first dim."""
    drawn = [LAYOUTS[name].draw(seed) for seed in range(size)]
    weight, gram, mask = (torch.stack(leaves) for leaves in zip(*drawn, strict=True))
    return {"w": weight, "gram": gram, "mask": mask}


# --- bad inputs ----------------------------------------------------------------------------------

WEIGHT = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 7.0]])
MASK = torch.tensor([[True, False], [True, True], [False, True]])
GRAM = torch.tensor([[2.0, 1.0], [1.0, 3.0]])
WHERE = r"\['fc'\]\['weight'\]"
"""The path of the leaf, as a pattern."""


def tree(leaf: Any) -> dict[str, Any]:
    return {"fc": {"weight": leaf}}


bad_grams = pytest.mark.parametrize(
    ("gram", "words"),
    [
        (torch.tensor([[2.0, 1.0], [0.0, 3.0]]), "symmetric"),
        (torch.tensor([[2.0, torch.nan], [torch.nan, 3.0]]), "(?i)nan|finite"),
        (torch.tensor([[2.0, torch.inf], [torch.inf, 3.0]]), "(?i)inf|finite"),
        (torch.eye(3), "shape"),
        (torch.ones(2), "shape"),
        (torch.ones(2, 3), "shape"),
        (torch.eye(2).expand(2, 2, 2), "shape"),  # three rows are not two parts
        (torch.eye(3).expand(3, 3, 3), "shape"),
        (None, "(?i)none|gram"),
    ],
    ids=["asymmetric", "nan", "inf", "wrong size", "vector", "not square", "parts", "both", "none"],
)
