"""Slow, obvious oracles for Gram matrices and rebuilt weights: naive float64 loops, no gprune.

A weight is a list of rows, one per output, and a row holds one number per input of that output
(a column). The rows fall into equal consecutive parts, and each part has a Gram matrix of its own:
one part for a linear layer, one per group of a grouped convolution, one per packed expert.
"""

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch

Matrix = list[list[float]]
MaskRows = list[list[bool]]
Columns = list[list[int]]


def as_rows(leaf: torch.Tensor, dims: Sequence[int]) -> list[list]:
    """The leaf as a matrix: the dims that are named are columns, all others rows."""
    columns = sorted(dim % leaf.dim() for dim in dims)
    rows = [dim for dim in range(leaf.dim()) if dim not in columns]
    size = math.prod(leaf.shape[dim] for dim in columns)
    return leaf.detach().permute(*rows, *columns).reshape(-1, size).tolist()


def from_rows(
    rows: Sequence[Sequence[float]], shape: Sequence[int], dims: Sequence[int]
) -> torch.Tensor:
    """The inverse of `as_rows`: a leaf of a shape, float64 or bool."""
    columns = sorted(dim % len(shape) for dim in dims)
    order = [dim for dim in range(len(shape)) if dim not in columns] + columns
    is_bool = bool(rows) and bool(rows[0]) and isinstance(rows[0][0], bool)
    flat = torch.tensor(rows, dtype=torch.bool if is_bool else torch.float64)
    back = [order.index(dim) for dim in range(len(shape))]
    return flat.reshape([shape[dim] for dim in order]).permute(back).contiguous()


def groups_of_columns(sizes: Sequence[int], m: int) -> Columns:
    """The groups of m inputs along the first of the input dims, at each place of the others.

    The last group of a place may be shorter. Each group is a list of columns, in ascending order;
    those of one place of the kernel follow each other.
    """
    inner = math.prod(sizes[1:])
    return [
        [i * inner + place for i in range(start, min(start + m, sizes[0]))]
        for place in range(inner)
        for start in range(0, sizes[0], m)
    ]


# --- linear algebra ----------------------------------------------------------------------------


def dot(a: Sequence[float], b: Sequence[float]) -> float:
    return math.fsum(x * y for x, y in zip(a, b, strict=True))


def identity(size: int) -> Matrix:
    return [[float(i == j) for j in range(size)] for i in range(size)]


def solve(a: Matrix, b: Sequence[float]) -> list[float]:
    """Gaussian elimination with partial pivoting."""
    n = len(b)
    rows = [[*row, right] for row, right in zip(a, b, strict=True)]
    for i in range(n):
        pivot = max(range(i, n), key=lambda r: abs(rows[r][i]))
        rows[i], rows[pivot] = rows[pivot], rows[i]
        for r in range(i + 1, n):
            factor = rows[r][i] / rows[i][i]
            rows[r] = [x - factor * y for x, y in zip(rows[r], rows[i], strict=True)]
    x = [0.0] * n
    for i in reversed(range(n)):
        x[i] = (rows[i][n] - dot(rows[i][i + 1 : n], x[i + 1 :])) / rows[i][i]
    return x


def inverse(a: Matrix) -> Matrix:
    """Of a symmetric matrix, so its columns are its rows."""
    return [solve(a, unit) for unit in identity(len(a))]


def upper_factor(a: Matrix) -> Matrix:
    """U, upper triangular with a positive diagonal, with a = Uᵀ U: Cholesky, row by row of U."""
    n = len(a)
    u = [[0.0] * n for _ in range(n)]
    for i in range(n):
        u[i][i] = math.sqrt(a[i][i] - math.fsum(u[k][i] ** 2 for k in range(i)))
        for j in range(i + 1, n):
            u[i][j] = (a[i][j] - math.fsum(u[k][i] * u[k][j] for k in range(i))) / u[i][i]
    return u


def damped(gram: Matrix, damping: float) -> Matrix:
    """Plus `damping` times the mean of its diagonal, on the diagonal."""
    extra = damping * math.fsum(gram[i][i] for i in range(len(gram))) / len(gram)
    return [[x + extra if i == j else x for j, x in enumerate(row)] for i, row in enumerate(gram)]


def quadratic(difference: Sequence[float], matrix: Matrix) -> float:
    """dᵀ M d: for a Gram matrix, the squared error of one output over all inputs."""
    return dot(difference, [dot(row, difference) for row in matrix])


def gram_of_row(row: int, num_rows: int, grams: Sequence[Matrix]) -> Matrix:
    return grams[row * len(grams) // num_rows]


def errors(before: Matrix, after: Matrix, grams: Sequence[Matrix]) -> list[float]:
    """The squared error of each row."""
    return [
        quadratic(
            [x - y for x, y in zip(old, new, strict=True)], gram_of_row(i, len(before), grams)
        )
        for i, (old, new) in enumerate(zip(before, after, strict=True))
    ]


def masked(weight: Matrix, keep: MaskRows) -> Matrix:
    return [
        [x if kept else 0.0 for x, kept in zip(row, mask, strict=True)]
        for row, mask in zip(weight, keep, strict=True)
    ]


# --- Gram matrices -----------------------------------------------------------------------------


def gram(rows: Sequence[Sequence[float]], size: int) -> Matrix:
    """Xᵀ X, entry by entry, each sum rounded once."""
    return [[math.fsum(row[i] * row[j] for row in rows) for j in range(size)] for i in range(size)]


def linear_inputs(x: torch.Tensor) -> Matrix:
    """The rows that a linear layer multiplies: every leading dim is a batch."""
    return x.double().reshape(-1, x.shape[-1]).tolist()


def places(sizes: Sequence[int]) -> Iterator[tuple[int, ...]]:
    return itertools.product(*map(range, sizes))


def entry(x: torch.Tensor, example: int, channel: int, at: Sequence[int]) -> float:
    """Zero outside of the image, which is what padding means."""
    sizes = x.shape[2:]
    inside = all(0 <= i < size for i, size in zip(at, sizes, strict=True))
    return float(x[(example, channel, *at)]) if inside else 0.0


def conv_inputs(
    x: torch.Tensor, kernel: Sequence[int], *, stride: int, padding: int, dilation: int, groups: int
) -> list[Matrix]:
    """What the weights of each group are multiplied by, one row per position of the kernel.

    x is (examples, channels, *sizes). The columns are (channels of the group, *kernel).
    """
    per_group = x.shape[1] // groups
    outputs = [
        (size + 2 * padding - dilation * (k - 1) - 1) // stride + 1
        for size, k in zip(x.shape[2:], kernel, strict=True)
    ]
    return [
        [
            [
                entry(
                    x,
                    example,
                    group * per_group + channel,
                    [o * stride - padding + k * dilation for o, k in zip(out, tap, strict=True)],
                )
                for channel in range(per_group)
                for tap in places(kernel)
            ]
            for example in range(x.shape[0])
            for out in places(outputs)
        ]
        for group in range(groups)
    ]


def conv_transpose_inputs(
    x: torch.Tensor,
    kernel: Sequence[int],
    *,
    stride: int,
    padding: int,
    output_padding: int,
    dilation: int,
    groups: int,
) -> Matrix:
    """What the weights (inputs, outputs / groups, *kernel) are multiplied by, per output position.

    x is (examples, channels, *sizes). The columns are (channels, *kernel) of all groups. A row of
    the weights holds the outputs of every group at one place, and each output reads the channels of
    its own group alone: so there is one row of inputs per group, and it is zero elsewhere.
    """
    channels = x.shape[1]
    outputs = [
        (size - 1) * stride - 2 * padding + dilation * (k - 1) + output_padding + 1
        for size, k in zip(x.shape[2:], kernel, strict=True)
    ]

    def multiplied(example: int, channel: int, out: Sequence[int], tap: Sequence[int]) -> float:
        """The input that this tap spreads to this output, if there is one."""
        spots = [o + padding - k * dilation for o, k in zip(out, tap, strict=True)]
        if any(spot % stride for spot in spots):
            return 0.0
        return entry(x, example, channel, [spot // stride for spot in spots])

    return [
        [
            multiplied(example, channel, out, tap) if channel * groups // channels == group else 0.0
            for channel in range(channels)
            for tap in places(kernel)
        ]
        for example in range(x.shape[0])
        for group in range(groups)
        for out in places(outputs)
    ]


# --- refit -------------------------------------------------------------------------------------


def refit(weight: Matrix, keep: MaskRows, grams: Sequence[Matrix], damping: float) -> Matrix:
    """Per row the least-squares weights on what it keeps: H[K, K] v[K] = (H w)[K]."""
    result = []
    for i, (row, mask) in enumerate(zip(weight, keep, strict=True)):
        h = damped(gram_of_row(i, len(weight), grams), damping)
        kept = [j for j, keeps in enumerate(mask) if keeps]
        values = solve([[h[j][k] for k in kept] for j in kept], [dot(h[j], row) for j in kept])
        new = [0.0] * len(row)
        for j, value in zip(kept, values, strict=True):
            new[j] = value
        result.append(new)
    return result


# --- SparseGPT ---------------------------------------------------------------------------------


class Chosen(NamedTuple):
    """Weights and masks, and how clear the choices were.

    Attributes:
        weight: the new weights.
        keep: the masks.
        gap: the smallest distance of |w| / U_cc between the last that was chosen and the first that
            was not, over the largest weight over the smallest U_cc; 0 at a tie. Rounding errors
            that are smaller change no mask.
    """

    weight: Matrix
    keep: MaskRows
    gap: float


def sparsegpt(
    weight: Matrix,
    grams: Sequence[Matrix],
    damping: float,
    *,
    k: int = 0,
    block_size: int = 128,
    n: int | None = None,
    groups: Columns | None = None,
) -> Chosen:
    """Frantar & Alistarh, 2023, arXiv:2301.00774, algorithm 1.

    What a pruned weight leaves over is spread to all later columns at once, not block by block:
    the sums are the same. Columns are taken in ascending order, or group by group.

    Args:
        weight: the rows.
        grams: the Gram matrix of each part of the rows.
        damping: of the Gram matrices.
        k: how many weights are pruned in all, if they are chosen block by block.
        block_size: how many columns a block has. When the first e of d columns are done, the
            k * e / d of them that come first are pruned, rounded down.
        n: how many columns of each group are kept instead, in each row.
        groups: the columns of each group.
    """
    if groups is not None and (order := list(itertools.chain(*groups))) != sorted(order):
        # the columns of a group lie apart: bring them together, and back
        moved = [[matrix[i][j] for j in order] for matrix in grams for i in order]
        size = len(order)
        parts = [moved[at : at + size] for at in range(0, len(moved), size)]
        places = iter(range(size))
        chosen = sparsegpt(
            [[row[j] for j in order] for row in weight],
            parts,
            damping,
            n=n,
            groups=[[next(places) for _ in group] for group in groups],
        )
        return Chosen(
            [[row[order.index(j)] for j in range(size)] for row in chosen.weight],
            [[row[order.index(j)] for j in range(size)] for row in chosen.keep],
            chosen.gap,
        )
    w = [list(row) for row in weight]
    rows, columns = len(w), len(w[0])
    keep = [[True] * columns for _ in range(rows)]
    factors = [upper_factor(inverse(damped(g, damping))) for g in grams]
    factor_of = [factors[i * len(factors) // rows] for i in range(rows)]
    scale = max(abs(x) for row in w for x in row) / min(
        u[c][c] for u in factors for c in range(columns)
    )
    gap = math.inf

    def prune_lowest(candidates: list[tuple[int, int]], number: int) -> float:
        """Prune so many of these (row, column), and return the gap to the next."""

        def score(at: tuple[int, int]) -> float:
            i, c = at
            return w[i][c] ** 2 / factor_of[i][c][c] ** 2

        order = sorted(candidates, key=lambda at: (score(at), at))
        for i, c in order[:number]:
            keep[i][c] = False
        if 0 < number < len(order):
            last, first = score(order[number - 1]), score(order[number])
            return (math.sqrt(first) - math.sqrt(last)) / scale if scale else 0.0
        return math.inf

    for c in range(columns):
        if groups is not None and n is not None:
            [group] = [group for group in groups if c in group]
            if c == group[0]:
                for i in range(rows):
                    number = max(0, len(group) - n)
                    gap = min(gap, prune_lowest([(i, j) for j in group], number))
        elif c % block_size == 0:
            end = min(c + block_size, columns)
            number = k * end // columns - k * c // columns
            block = [(i, j) for i in range(rows) for j in range(c, end)]
            gap = min(gap, prune_lowest(block, number))
        for i in range(rows):
            if not keep[i][c]:
                error = w[i][c] / factor_of[i][c][c]
                w[i][c] = 0.0
                for j in range(c + 1, columns):
                    w[i][j] -= error * factor_of[i][c][j]
    return Chosen(w, keep, gap)


# --- swaps -------------------------------------------------------------------------------------


def mask_errors(weight: Matrix, keep: MaskRows, grams: Sequence[Matrix]) -> list[float]:
    """e of each row: the error of the output if what is pruned is just set to zero."""
    return errors(weight, masked(weight, keep), grams)


class Exchange(NamedTuple):
    """The columns that change places, and the error afterwards."""

    error: float
    prune: int
    keep: int


def exchanges(
    row: Sequence[float], mask: Sequence[bool], matrix: Matrix, groups: Columns | None = None
) -> list[Exchange]:
    """All exchanges of one kept for one pruned column, the best first, each tried out."""
    found = []
    for group in groups or [list(range(len(row)))]:
        for out in (j for j in group if mask[j]):
            for back in (j for j in group if not mask[j]):
                changed = [(keeps and j != out) or j == back for j, keeps in enumerate(mask)]
                pruned = [0.0 if keeps else x for x, keeps in zip(row, changed, strict=True)]
                found.append(Exchange(quadratic(pruned, matrix), out, back))
    return sorted(found)


def swap(
    weight: Matrix,
    keep: MaskRows,
    grams: Sequence[Matrix],
    *,
    rounds: int,
    groups: Columns | None = None,
) -> tuple[MaskRows, float]:
    """Per row the best exchange, again and again, while it lowers the error.

    Also how clear the choices were: the smallest distance between two errors of which one was
    preferred, over the error of the row with everything pruned.
    """
    result = []
    gap = math.inf
    for i, (row, start) in enumerate(zip(weight, keep, strict=True)):
        matrix = gram_of_row(i, len(weight), grams)
        scale = quadratic([abs(x) for x in row], [[abs(x) for x in line] for line in matrix]) or 1.0
        mask = list(start)
        for _ in range(rounds):
            error = quadratic(
                [0.0 if kept else x for x, kept in zip(row, mask, strict=True)], matrix
            )
            order = exchanges(row, mask, matrix, groups)
            if not order:
                break
            best = order[0]
            if best.error == error:  # as if both inputs are always 0
                break
            gap = min(gap, abs(best.error - error) / scale)
            if best.error > error:
                break
            if len(order) > 1:
                gap = min(gap, (order[1].error - best.error) / scale)
            mask[best.prune], mask[best.keep] = False, True
        result.append(mask)
    return result, gap
