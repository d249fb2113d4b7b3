"""Gram matrices of inputs: against loops, the norms of inputs, and the error of the output."""

import re
import warnings
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F  # noqa: N812  torch's own name for it

from gprune.scores import input_gram, input_norms
from gprune.testing import assert_pure
from tests.support import reconstruct_reference as oracle
from tests.support import reference
from tests.support.scoring import each_dtype, each_model, seeds, setting

few_tokens = pytest.mark.filterwarnings("ignore:.*:UserWarning")
"""Where a test takes fewer inputs than a weight has columns, and does not look at the warning."""

# The diagonal is a sum in float64, rounded once; two roundings are allowed. The other entries are
# sums in the dtype of the inputs: matrix products sum in blocks, so a million terms err like a few.
TOLERANCE = {torch.float32: 2e-7, torch.float64: 1e-12}
OFF_DIAGONAL = {torch.float32: 5e-6, torch.float64: 1e-12}


def assert_gram(got: torch.Tensor, want: Any, dtype: torch.dtype = torch.float64) -> None:
    """Relative to the largest entry, that is, of the diagonal."""
    want = torch.as_tensor(want, dtype=torch.float64)
    assert (got.dtype, got.shape, got.requires_grad) == (dtype, want.shape, False)
    errors = (got.double() - want).abs() / want.abs().max().clamp(min=1e-300)
    diagonal = errors.diagonal(dim1=-2, dim2=-1)
    assert diagonal.max() <= TOLERANCE[dtype], f"{got} for {want}"
    assert errors.max() <= OFF_DIAGONAL[dtype], f"{got} for {want}"
    assert torch.equal(got, got.mT)


# --- the definition ---------------------------------------------------------------------------


@few_tokens
@given(seeds, st.integers(1, 5), st.integers(1, 5), st.integers(1, 3), st.integers(0, 2))
def test_gram_of_a_linear_layer_is_that_of_the_oracle(
    seed: int, rows: int, columns: int, batches: int, dims: int
) -> None:
    """The sum over all inputs of all batches, whatever their number and their dims."""
    generator = torch.Generator().manual_seed(seed)
    inputs = [
        torch.randn((2,) * dims + (columns,), generator=generator, dtype=torch.float64)
        for _ in range(batches)
    ]
    weight = torch.ones(rows, columns, dtype=torch.float64)
    got = input_gram(lambda w, x: F.linear(x, w), weight, iter(inputs))
    tokens = [row for x in inputs for row in oracle.linear_inputs(x)]
    assert_gram(got, oracle.gram(tokens, columns))


SETTINGS = [
    {"stride": 1, "padding": 0, "dilation": 1},
    {"stride": 2, "padding": 1, "dilation": 1},
    {"stride": 1, "padding": 2, "dilation": 2},
    {"stride": 3, "padding": 1, "dilation": 2},
]


@few_tokens
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_gram_of_a_convolution_is_that_of_the_oracle(settings: dict[str, int], groups: int) -> None:
    """In one matrix, or in one for each group."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.ones(4, 4 // groups, 2, 1, dtype=torch.float64)
    x = torch.randn(2, 4, 5, 6, generator=generator, dtype=torch.float64)
    size = 4 // groups * 2
    got = input_gram(lambda w, x: F.conv2d(x, w, groups=groups, **settings), weight, [x])
    parts = oracle.conv_inputs(x, (2, 1), groups=groups, **settings)
    want = [oracle.gram(rows, size) for rows in parts]
    assert_gram(got, want if groups > 1 else want[0])


@few_tokens
@pytest.mark.parametrize("groups", [1, 2])
def test_gram_of_a_convolution_in_one_and_three_dimensions(groups: int) -> None:
    generator = torch.Generator().manual_seed(0)
    settings = {"stride": 2, "padding": 1, "dilation": 1, "groups": groups}
    for layer, sizes, kernel in ((F.conv1d, (6,), (3,)), (F.conv3d, (3, 2, 3), (2, 1, 2))):
        x = torch.randn(2, 2, *sizes, generator=generator, dtype=torch.float64)
        weight = torch.ones(2, 2 // groups, *kernel, dtype=torch.float64)
        got = input_gram(lambda w, x, f=layer: f(x, w, **settings), weight, [x])
        parts = oracle.conv_inputs(x, kernel, **settings)
        want = [oracle.gram(rows, weight[0].numel()) for rows in parts]
        assert_gram(got, want if groups > 1 else want[0])


@few_tokens
def test_padding_of_the_same_size_and_images_without_a_batch() -> None:
    x = torch.randn(1, 2, 4, 4, dtype=torch.float64)
    weight = torch.ones(3, 2, 3, 3, dtype=torch.float64)
    settings = {"stride": 1, "padding": 1, "dilation": 1, "groups": 1}
    [rows] = oracle.conv_inputs(x, (3, 3), **settings)
    got = input_gram(lambda w, x: F.conv2d(x[0], w, padding="same"), weight, [x])
    assert_gram(got, oracle.gram(rows, 18))


@few_tokens
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("groups", [1, 2])
def test_gram_of_a_transposed_convolution_is_that_of_the_oracle(stride: int, groups: int) -> None:
    """Its weights are (inputs, outputs, *kernel); inputs of other groups have nothing in common."""
    x = torch.randn(2, 4, 3, 4, dtype=torch.float64)
    weight = torch.ones(4, 3, 2, 3, dtype=torch.float64)
    settings = {
        "stride": stride,
        "padding": 1,
        "output_padding": stride - 1,
        "dilation": 2,
        "groups": groups,
    }
    got = input_gram(lambda w, x: F.conv_transpose2d(x, w, **settings), weight, [x])
    rows = oracle.conv_transpose_inputs(x, (2, 3), **settings)
    want = torch.tensor(oracle.gram(rows, 24), dtype=torch.float64)
    if groups > 1:  # the blocks on the diagonal: all else is zero
        want = torch.stack([want[:12, :12], want[12:, 12:]])
    assert_gram(got, want)


# --- layouts: the Gram matrix gives the error of the output of any change -----------------------

OFFSETS = torch.tensor([2, 2, 6], dtype=torch.int32)
"""The ends of the groups of rows of three experts: the second has none."""

LAYOUTS: dict[str, tuple[tuple[int, ...], Any, Any]] = {  # shape, dim of inputs, function
    "linear": ((3, 4), None, lambda w, x: F.linear(x, w)),
    "addmm, the Conv1D of GPT-2": ((4, 3), 0, lambda w, x: torch.addmm(torch.ones(3).to(x), x, w)),
    "@": ((4, 3), 0, lambda w, x: x @ w),
    "matmul": ((4, 3), -2, lambda w, x: torch.matmul(x, other=w)),
    "a vector": ((4, 3), 0, lambda w, x: x[0] @ w),
    "transposed": ((3, 4), 1, lambda w, x: x @ w.mT),
    "permuted twice": ((4, 3), 0, lambda w, x: F.linear(x, w.permute(1, 0))),
    "on the left": ((3, 4), None, lambda w, x: w @ x.mT),
    "on the left of many": ((3, 4), None, lambda w, x: w @ x.view(2, 3, 4).mT),
    "used twice": ((3, 4), None, lambda w, x: torch.cat([F.linear(x, w), x[:2] @ w.mT])),
    "vmap": ((4, 3), 0, lambda w, x: torch.vmap(lambda row: row @ w)(x)),
    "convolution": ((3, 2, 2), None, lambda w, x: F.conv1d(x.view(3, 2, 4), w, padding=1)),
    "grouped convolution": ((4, 1, 2), None, lambda w, x: F.conv1d(x.view(3, 2, 4), w, groups=2)),
    "experts by index": ((3, 2, 4), 2, lambda w, x: torch.cat([x[i::3] @ w[i].mT for i in (0, 2)])),
    "experts by index, @": (
        (3, 4, 2),
        1,
        lambda w, x: torch.cat([x[i::3] @ w[i] for i in range(3)]),
    ),
    "experts in bmm": ((3, 4, 2), 1, lambda w, x: torch.bmm(x.view(3, 2, 4), w)),
    "experts in bmm, transposed": ((3, 2, 4), 2, lambda w, x: torch.bmm(x.view(3, 2, 4), w.mT)),
    "experts in baddbmm": (
        (3, 4, 2),
        1,
        lambda w, x: torch.baddbmm(torch.ones(3, 2, 2).to(x), x.view(3, 2, 4), w),
    ),
}


def dims_of(dim: Any, weight: torch.Tensor) -> tuple[int, ...]:
    if dim is None:
        return tuple(range(1, weight.dim()))
    return (dim % weight.dim(),)


@few_tokens
@pytest.mark.parametrize("name", LAYOUTS)
def test_a_gram_matrix_gives_the_error_of_the_output(name: str) -> None:
    """Of any change D of the weight: the sum over the rows of D G Dᵀ, over all batches."""
    shape, dim, forward = LAYOUTS[name]
    generator = torch.Generator().manual_seed(0)
    weight, change = torch.randn(2, *shape, generator=generator, dtype=torch.float64)
    batches = list(torch.randn(3, 6, 4, generator=generator, dtype=torch.float64))
    gram = input_gram(forward, weight, batches)
    dims = dims_of(dim, weight)
    rows = oracle.as_rows(change, dims)
    assert gram.shape[-2:] == (len(rows[0]),) * 2
    zeros = [[0.0] * len(row) for row in rows]
    parts = (gram if gram.dim() == 3 else gram[None]).tolist()
    got = sum(oracle.errors(rows, zeros, parts))
    want = sum((forward(weight + change, x) - forward(weight, x)).square().sum() for x in batches)
    torch.testing.assert_close(torch.tensor(got, dtype=torch.float64), want)


@few_tokens
def test_gram_of_experts_that_get_groups_of_rows() -> None:
    """One of them gets none, and has a Gram matrix of zeros."""
    weight, x = torch.randn(3, 4, 4), torch.randn(6, 4)
    gram = input_gram(lambda w, x: F.grouped_mm(x, w, offs=OFFSETS), weight, [x])
    want = torch.stack(
        [part.mT @ part for part in (x[:2].double(), x[2:2].double(), x[2:].double())]
    )
    assert_gram(gram, want, torch.float32)


@few_tokens
def test_the_shape_says_whether_the_rows_have_the_same_inputs() -> None:
    def forward(params: Any, x: torch.Tensor) -> Any:
        image = x.view(2, 2, 3)
        experts = [F.linear(x, part) for part in params["experts"]]
        whole, halves = F.conv1d(image, params["conv"]), F.conv1d(image, params["halves"], groups=2)
        return F.linear(x, params["fc"]), whole, halves, experts

    shapes = {"fc": (5, 3), "conv": (4, 2, 2), "halves": (4, 1, 2), "experts": (3, 2, 3)}
    params = {name: torch.randn(shape) for name, shape in shapes.items()}
    grams = input_gram(
        forward,
        {**params, "bias": torch.zeros(5), "none": None},
        [torch.randn(4, 3)],
    )
    got = {name: None if gram is None else tuple(gram.shape) for name, gram in grams.items()}
    assert got == {
        "bias": None,
        "conv": (4, 4),
        "experts": (3, 3, 3),
        "fc": (3, 3),
        "halves": (2, 2, 2),
        "none": None,
    }


# --- the diagonal, dtypes and rounding --------------------------------------------------------


@few_tokens
@each_model
@each_dtype
def test_the_diagonal_is_the_square_of_the_norms(name: str, dtype: torch.dtype) -> None:
    model, params, (x, _) = setting(name, dtype)
    grams = input_gram(model.forward, params, [x, -2 * x])
    norms = input_norms(model.forward, params, [x, -2 * x])
    assert reference.structure(grams) == reference.structure(params)
    for gram, norm in zip(reference.leaves(grams), reference.leaves(norms), strict=True):
        assert (gram is None) == (norm is None)
        if gram is None:
            continue
        diagonal = gram.diagonal(dim1=-2, dim2=-1)  # a row for each part
        rows = norm.flatten(1).view(len(diagonal) if gram.dim() == 3 else 1, -1, diagonal.shape[-1])
        squares = rows[:, 0].double().square().reshape(diagonal.shape)
        # the norm is rounded to its dtype, so its square may be off by two roundings more
        torch.testing.assert_close(
            diagonal.double(), squares, rtol=2 * TOLERANCE[dtype], atol=1e-300
        )


@few_tokens
@given(
    seeds, st.integers(1, 6), st.integers(1, 40), st.sampled_from([torch.float32, torch.bfloat16])
)
def test_a_gram_matrix_of_inputs_far_from_zero(
    seed: int, columns: int, tokens: int, dtype: torch.dtype
) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = (torch.randn(tokens, columns, generator=generator) * 3 + 100).to(dtype)
    gram = input_gram(lambda w, x: F.linear(x, w), torch.ones(1, columns, dtype=dtype), [x])
    assert_gram(gram, x.double().mT @ x.double(), torch.float32)


@pytest.mark.parametrize(
    ("dtype", "want"),
    [
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ],
    ids=str,
)
def test_dtypes(dtype: torch.dtype, want: torch.dtype) -> None:
    """Float32 at least: the square of 300 is infinite in float16, and inexact in bfloat16."""
    x = torch.full((2, 1), 300.0, dtype=dtype)
    gram = input_gram(lambda w, x: F.linear(x, w), torch.ones(1, 1, dtype=dtype), [x])
    assert gram.dtype == want
    assert gram.item() == 2 * x[0].double().square().item()


def test_gram_of_a_million_inputs_is_as_exact_as_that_of_a_few() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2**20, 2, generator=generator) + 1
    got = input_gram(lambda w, x: F.linear(x, w), torch.ones(1, 2), [x])
    assert_gram(got, x.double().mT @ x.double(), torch.float32)
    image = x[: 2**16, :1].reshape(1, 1, 2**8, 2**8)
    got = input_gram(lambda w, x: F.conv2d(x, w), torch.ones(1, 1, 2, 2), [image])
    columns = F.unfold(image.double(), (2, 2))[0]
    assert_gram(got, columns @ columns.mT, torch.float32)


def test_products_are_not_rounded_by_autocast() -> None:
    def forward(params: Any, x: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return F.linear(x, params)

    x = torch.randn(100, 3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outside = input_gram(forward, torch.randn(2, 3), [x])
    for gram in (input_gram(forward, torch.randn(2, 3), [x]), outside):
        assert_gram(gram, x.double().mT @ x.double(), torch.float32)


# --- adding up, leaving out, transforms ----------------------------------------------------------


@few_tokens
@given(seeds, st.integers(1, 4), st.integers(1, 3))
def test_grams_of_batches_add_up(seed: int, columns: int, batches: int) -> None:
    """As those of ranks do."""
    generator = torch.Generator().manual_seed(seed)
    inputs = list(torch.randn(batches + 1, 3, columns, generator=generator, dtype=torch.float64))

    def of(some: list[torch.Tensor]) -> torch.Tensor:
        weight = torch.ones(2, columns, dtype=torch.float64)
        return input_gram(lambda w, x: F.linear(x, w), weight, some)

    assert_gram(of(inputs[:-1]) + of(inputs[-1:]), of(inputs))


def network(params: Any, x: torch.Tensor) -> torch.Tensor:
    return F.linear(F.linear(x, params["a"]["weight"]).relu(), params["b"]["weight"])


def network_params() -> Any:
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(5, 4, generator=generator), torch.randn(2, 5, generator=generator)
    return {"a": {"weight": a}, "b": {"weight": b}}


@pytest.mark.parametrize(
    "where",
    ["b.*", ["nothing", "b*"], lambda path, leaf: leaf.shape[1] == 5],
    ids=["glob", "globs", "predicate"],
)
def test_where_limits_the_leaves(where: Any) -> None:
    """By globs or a predicate, as in `prunable`."""
    x = torch.randn(20, 4)
    grams = input_gram(network, network_params(), [x], where=where)
    everything = input_gram(network, network_params(), [x])
    assert grams["a"]["weight"] is None
    assert torch.equal(grams["b"]["weight"], everything["b"]["weight"])


def test_no_other_leaf_costs_memory() -> None:
    """A Gram matrix of a wide layer may not fit: it must not be made first and left out later."""
    wide = 2**18  # 256 GiB
    params = {"wide": torch.ones(1, 1).expand(1, wide), "narrow": torch.ones(1, 2)}

    def forward(params: Any, x: torch.Tensor) -> Any:
        return F.linear(x, params["narrow"]), F.linear(x[:, :1].expand(-1, wide), params["wide"])

    grams = input_gram(forward, params, [torch.randn(3, 2)], where="narrow")
    assert grams["wide"] is None
    assert grams["narrow"].shape == (2, 2)


def test_under_vmap() -> None:
    weight, x = torch.randn(2, 3), torch.randn(2, 6, 3)
    each = torch.vmap(lambda x: input_gram(lambda w, x: F.linear(x, w), weight, [x]))(x)
    assert_gram(each, x.double().mT @ x.double(), torch.float32)


def test_inputs_do_not_change() -> None:
    params = network_params()
    params["a"]["weight"].requires_grad_()
    x = torch.randn(20, 4)
    grams = assert_pure(lambda params, x: input_gram(network, params, [x]), params, x)
    assert not any(gram.requires_grad for gram in reference.leaves(grams))


def test_a_module_by_functional_call() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Tanh(), torch.nn.Linear(3, 2))
    params, x = dict(model.named_parameters()), torch.randn(9, 4)
    grams = input_gram(lambda p, x: torch.func.functional_call(model, p, (x,)), params, [x])
    assert_gram(grams["0.weight"], x.double().mT @ x.double(), torch.float32)
    hidden = model[:2](x).detach().double()
    assert_gram(grams["2.weight"], hidden.mT @ hidden, torch.float32)
    assert grams["0.bias"] is None


# --- warnings and bad inputs -------------------------------------------------------------------


def test_fewer_inputs_than_columns_are_a_warning_with_both_numbers() -> None:
    params = network_params()
    with pytest.warns(UserWarning, match=r"\['b'\]\['weight'\]") as caught:
        input_gram(network, params, [torch.randn(3, 4), torch.randn(1, 4)])
    [text] = [str(warning.message) for warning in caught]
    assert re.search(r"\b4\b.*\b5\b|\b5\b.*\b4\b", text)
    # 4 inputs are too few for the 5 columns of b, and enough for the 4 columns of a
    assert "['a']['weight']" not in text
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        input_gram(network, params, [torch.randn(3, 4), torch.randn(2, 4)])
        input_gram(network, params, [torch.randn(4, 4)], where="a.*")


def test_every_part_of_a_weight_gets_the_rows_that_all_parts_share() -> None:
    weight, x = torch.ones(4, 3, 2), torch.randn(6, 3)  # 6 rows, which all 4 matrices multiply
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_gram(input_gram(lambda w, x: x @ w, weight, [x])[3], x.T @ x, torch.float32)
        # 4 examples of 1 row each, for a batch dim of size 1
        input_gram(lambda w, x: x @ w, torch.ones(1, 3, 2), [torch.randn(4, 1, 3)])


def test_positions_of_a_convolution_are_inputs() -> None:
    """An image of 4 x 4 has 9 positions of a kernel of 2 x 2, and 4 of a kernel of 3 x 3."""
    image = torch.randn(1, 1, 4, 4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        input_gram(lambda w, x: F.conv2d(x, w), torch.ones(1, 1, 2, 2), [image])
    with pytest.warns(UserWarning, match=r"\b4\b.*\b9\b|\b9\b.*\b4\b"):
        input_gram(lambda w, x: F.conv2d(x, w), torch.ones(1, 1, 3, 3), [image])


def test_bad_batches_and_forwards_are_refused_as_by_input_norms() -> None:
    params, x = network_params(), torch.randn(9, 4)
    with pytest.raises(ValueError, match="batches is empty"):
        input_gram(network, params, [])
    with pytest.raises(TypeError, match="batches"):
        input_gram(network, params, x)
    with pytest.raises(TypeError, match="forward"):
        input_gram(torch.nn.Linear(4, 2), params, [x])
    with pytest.raises(TypeError, match=r"\['a'\]\['weight'\]"):
        input_gram(network, {**params, "a": {"weight": torch.ones(5, 4, dtype=torch.long)}}, [x])
    with pytest.raises(ValueError, match="forward passed no tensor of params"):
        input_gram(lambda params, x: x.sum(), params, [x])


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 1e30])
def test_inputs_that_are_not_finite_are_refused(bad: float) -> None:
    """Or whose squares are not, in float32."""
    x = torch.randn(9, 4)
    x[3, 1] = bad
    with pytest.raises(ValueError, match=r"\['a'\]\['weight'\].*(NaN|finite)"):
        input_gram(network, network_params(), [x])


def test_a_wrong_where_is_refused() -> None:
    with pytest.raises(TypeError, match="where"):
        input_gram(network, network_params(), [torch.randn(9, 4)], where=3)


def test_a_leaf_that_forward_does_not_use_has_no_gram() -> None:
    params = {**network_params(), "unused": torch.ones(2, 2)}
    grams = input_gram(network, params, [torch.randn(9, 4)], where=["unused", "a.*"])
    assert grams["unused"] is None
    assert grams["a"]["weight"] is not None


# --- autocast and padding -------------------------------------------------------------------------


def test_autocast_does_not_round_the_products() -> None:
    """The observer runs inside the region, where a product of float32 is one of bfloat16."""
    generator = torch.Generator().manual_seed(0)
    weight, x = torch.ones(2, 6), torch.randn(40, 6, generator=generator)

    def forward(weight: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return F.linear(x, weight)

    torch.testing.assert_close(input_gram(forward, weight, [x]), x.mT @ x)


@pytest.mark.filterwarnings("ignore:Using padding='same':UserWarning")  # torch's, of a copy
@pytest.mark.parametrize("kernel", [(2, 3), (4, 2)])
def test_an_even_kernel_with_the_same_size_is_padded_as_torch_does(kernel: tuple[int, int]) -> None:
    """It pads one more at the end. The sum of the squared outputs differs if it is elsewhere."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(9, 2, 5, 4, generator=generator)
    error = torch.randn(3, 2, *kernel, generator=generator)

    def forward(weight: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return F.conv2d(x, weight, padding="same")

    gram, rows = input_gram(forward, error, [x]), error.flatten(1)
    torch.testing.assert_close((rows @ gram * rows).sum(), forward(error, x).square().sum())


# --- limits of the dtype, and leaves without outputs ----------------------------------------------


def linear(weight: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    return F.linear(x, weight)


def test_a_sum_that_overflows_is_refused() -> None:
    """Each squared input is finite."""
    batches = [torch.full((9, 2), 4e18)] * 3
    assert input_norms(linear, torch.ones(3, 2), batches).isfinite().all()
    with pytest.raises(ValueError, match="grams"):
        input_gram(linear, torch.ones(3, 2), batches)
    exact = [batch.double() for batch in batches]
    assert input_gram(linear, torch.ones(3, 2).double(), exact).isfinite().all()


def test_a_weight_without_outputs() -> None:
    gram = input_gram(linear, torch.ones(0, 5), [torch.randn(9, 5)])
    assert gram.shape == (5, 5)
