"""The simulated accelerator itself: data apart, devices that do not mix, and costs by hand."""

import copy
import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.support.accelerator import DEVICE, measured, without_float64


def numbers() -> Tensor:
    """Twelve float32 numbers, 48 bytes, on the device."""
    return torch.arange(12.0).reshape(3, 4).to(DEVICE)


INDEX = torch.tensor([0, 2]).to(DEVICE)
"""Two int64 indices of rows, 16 bytes, on the device."""
VALUES = torch.ones(3, 4).to(DEVICE)
"""Values to put somewhere, 4 bytes each."""


# --- data -------------------------------------------------------------------------------------


def test_data_are_apart_from_the_cpu() -> None:
    source = torch.ones(3)
    tensor = source.to(DEVICE)
    source.zero_()
    assert tensor.tolist() == [1, 1, 1]
    back = tensor.cpu()
    back.zero_()
    assert tensor.tolist() == [1, 1, 1]
    assert (tensor.device, back.device) == (DEVICE, torch.device("cpu"))
    with pytest.raises(TypeError, match=r"Use Tensor\.cpu"):
        tensor.numpy()


VIEWS: dict[str, Callable[[Tensor], Any]] = {
    "view": lambda x: x.view(2, 6),
    "view.dtype": lambda x: x.view(torch.int32),
    "reshape": lambda x: x.reshape(-1),
    "select": lambda x: x[1],
    "slice": lambda x: x[1:, ::2],
    "as_strided": lambda x: x.as_strided((2, 3), (2, 1), 1),
    "transpose": lambda x: x.t(),
    "permute": lambda x: x.permute(1, 0),
    "movedim": lambda x: x.unsqueeze(0).movedim(0, 2),
    "diagonal": lambda x: x.diagonal(),
    "unfold": lambda x: x.unfold(1, 2, 2),
    "split": lambda x: x.split(2),
    "unbind": lambda x: x.unbind(1),
    "narrow": lambda x: x.narrow(1, 1, 2),
    "detach": lambda x: x.detach(),
    "expand": lambda x: x[:1].expand(5, 4),
}


@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS)
def test_views_share_data_and_cost_nothing(view: Callable[[Tensor], Any]) -> None:
    tensor, expected = numbers(), numbers().cpu()
    with measured() as cost:
        views = view(tensor)
    assert (cost.calls, cost.bytes, cost.waits) == (0, 0, 0)
    views, like = ([x] if isinstance(x, Tensor) else x for x in (views, view(expected)))
    for part, other in zip(views, like, strict=True):
        assert part.device == DEVICE
        assert (part.shape, part.stride(), part.dtype) == (other.shape, other.stride(), other.dtype)
        assert part.tolist() == other.tolist()
        part.select(0, 0).fill_(7)
        other.select(0, 0).fill_(7)
    assert tensor.tolist() == expected.tolist()


def fill_views(x: Tensor, kind: Callable[..., Any]) -> Any:
    out = [kind(x, (3, 2)), kind(x, (3, 2))]
    torch.split_with_sizes_copy(x, [2, 2], 1, out=out)
    return out


def with_out(x: Tensor) -> Tensor:
    out = torch.zeros(6, 4, device=x.device)
    torch.mul(x, 2, out=out[1:4])
    torch.cat([x[:1], x[1:2]], out=out[4:])
    return out


def change_slices(x: Tensor) -> Tensor:
    x[1].add_(10)
    x[:, 1] *= 3
    x.t()[2].bitwise_and_(torch.ones((), dtype=torch.int32)) if x.dtype == torch.int32 else None
    x.view(torch.int32)[0, 0] = 5
    return x


def scatter(x: Tensor) -> Tensor:
    index = torch.tensor([[0, 1, 2, 0]], device=x.device)
    ones = torch.ones((), device=x.device).expand(1, 4)
    return x.scatter_add_(0, index, ones).index_fill_(1, index[0, :1], -1.0)


def put(x: Tensor) -> Tensor:
    rows = torch.tensor([0, 2], device=x.device)
    x[rows] = torch.ones(4, device=x.device)
    x[x > 6] = 0.5
    x[rows, rows] = x[1, :2].clone()
    x.index_put_((rows,), x[:2].clone(), accumulate=True)
    x[torch.tensor([1])] = 2  # an index of the CPU
    x[torch.tensor([True, False, False])] = 4.0
    return x.index_copy_(0, rows, x[rows] + 1)


RESULTS: dict[str, Callable[[Tensor], Any]] = {
    "arithmetic": lambda x: (x * 2.5 - 1) / (x + 0.1),
    "integers": lambda x: (x.int() & 2147483647) >> 1,
    "numbers of the CPU": lambda x: x * torch.tensor(3.0) + torch.tensor(1),
    "in-place and views": change_slices,
    "out=": with_out,
    "a resized out=": lambda x: torch.abs(x, out=torch.empty(0, device=x.device)),
    "split_with_sizes_copy": lambda x: fill_views(x, Tensor.new_empty),
    "split_with_sizes_copy, new": lambda x: torch.split_with_sizes_copy(x, [1, 2]),
    "cat and stack": lambda x: torch.cat([torch.stack([x, x]).flatten(), x[0]]),
    "kthvalue": lambda x: tuple(x.kthvalue(2)),
    "sort": lambda x: tuple(x.neg().sort(stable=True)),
    "topk": lambda x: tuple(x.topk(2)),
    "searchsorted": lambda x: torch.searchsorted(x.reshape(-1), x[1] + 0.5, right=True),
    "nonzero": lambda x: (x > 5).nonzero(),
    "nonzero_static": lambda x: torch.nonzero_static(x > 5, size=4),
    "bincount": lambda x: x.long().flatten().bincount(minlength=20),
    "scatters": scatter,
    "put": put,
    "index": lambda x: (x[x > 3], x[torch.tensor([2, 0])], x[:, torch.tensor([1]).to(x.device)]),
    "index_select": lambda x: x.index_select(0, torch.tensor([2, 0]).to(x.device)),
    "gather": lambda x: x.gather(1, x.argsort(1)),
    "where": lambda x: torch.where(x > 3, x, 0) + torch.where(x > 5, 1.0, x),
    "repeat_interleave": lambda x: x[0].long().repeat_interleave(x[0].long()),
    "unravel_index": lambda x: torch.unravel_index(x[1].long(), (3, 4)),
    "cumsum": lambda x: x.cumsum(1),
    "aminmax": lambda x: tuple(x.aminmax()),
    "count_nonzero": lambda x: x.count_nonzero(),
    "unique": lambda x: x.unique(return_counts=True),
    "foreach": lambda x: torch._foreach_mul(torch._foreach_add([x, x[0]], 1), 2.0),
    "clamp": lambda x: x.clamp_max_(5).clamp_(min=2),
    "isfinite": lambda x: (x / 0).isfinite(),
    "masked_select": lambda x: x.masked_select(x > 2),
    "new": lambda x: (x.new_zeros(2), x.new_full((2,), 3), torch.zeros_like(x, dtype=torch.int8)),
    "ranges": lambda x: (
        torch.arange(5, device=x.device),
        torch.linspace(0, 1, 4, device=x.device),
        torch.eye(2, device=x.device),
    ),
    "sums": lambda x: (x.sum(), x.mean(0), x.square().sum(1).sqrt(), x.norm()),
    "matrices": lambda x: (x @ x.t(), torch.nn.functional.linear(x, x, x[:, 0])),
    "softmax": lambda x: x.log_softmax(1),
    "quantile": lambda x: x.quantile(0.3),
    "complex": lambda x: torch.view_as_real(torch.complex(x, x)),
    "dtypes": lambda x: (x.half(), x.double().view(torch.int64), x.bool(), x.bfloat16() * 3),
}


def assert_equal_results(got: Any, expected: Any) -> None:
    if not isinstance(expected, Tensor):
        assert len(got) == len(expected)
        for a, b in zip(got, expected, strict=True):
            assert_equal_results(a, b)
        return
    assert got.device == DEVICE
    assert (got.dtype, got.shape, got.stride()) == (
        expected.dtype,
        expected.shape,
        expected.stride(),
    )
    assert torch.equal(got.cpu().nan_to_num(), expected.nan_to_num())


@pytest.mark.parametrize("function", RESULTS.values(), ids=RESULTS)
def test_results_are_those_of_the_cpu(function: Callable[[Tensor], Any]) -> None:
    assert_equal_results(function(numbers()), function(numbers().cpu()))


def test_draws_with_a_seed_are_those_of_the_cpu() -> None:
    def draw(device: Any) -> Any:
        torch.manual_seed(3)
        x = torch.rand(5, device=device), torch.randperm(5, device=device)
        return [*x, torch.empty(3, device=device).normal_(), x[0].bernoulli()]

    assert_equal_results(draw(DEVICE), draw("cpu"))
    before = torch.get_rng_state()
    torch.rand(3, device=DEVICE)
    assert torch.equal(torch.get_rng_state(), before)
    with pytest.raises(RuntimeError, match="Expected a 'simulated' device type for generator"):
        torch.rand(3, device=DEVICE, generator=torch.Generator())


def test_data_die_with_the_last_view() -> None:
    tensor = numbers()
    view = tensor[1]
    address = tensor.data_ptr()
    del tensor
    assert view.tolist() == [4, 5, 6, 7]
    assert view.data_ptr() == address + 16


# --- devices ----------------------------------------------------------------------------------

REFUSED: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "add": lambda x, y: x + y,
    "add in reverse": lambda x, y: y + x,
    "in-place": lambda x, y: x.add_(y),
    "in-place on the CPU": lambda x, y: y.add_(x),
    "in-place on a number of the CPU": lambda x, y: y[0, 0].add_(x[0, 0]),
    "out=": lambda x, y: torch.add(x, x, out=y),
    "out= a number of the CPU": lambda x, y: torch.sum(x, (0, 1), out=y.new_empty(())),
    "cat": lambda x, y: torch.cat([x, y]),
    "an index that is a number": lambda x, y: x.index_select(0, torch.tensor(0)),
    "stack of numbers": lambda x, y: torch.stack([x[0, 0], y[0, 0]]),
    "where": lambda x, y: torch.where(x > 3, y, 0),
    "a mask of the CPU": lambda x, y: torch.where(y > 3, x, 0),
    "index_select": lambda x, y: x.index_select(0, torch.tensor([0])),
    "gather": lambda x, y: x.gather(0, torch.zeros(1, 4, dtype=torch.int64)),
    "scatter": lambda x, y: x.scatter_(0, torch.zeros(1, 4, dtype=torch.int64), y),
    "index of the device": lambda x, y: y[INDEX],
    "searchsorted": lambda x, y: torch.searchsorted(x[0], y[0]),
    "matrices": lambda x, y: x @ y.t(),
    "equal": lambda x, y: torch.equal(x, y),
    "foreach": lambda x, y: torch._foreach_add([x], [y]),
    "put values": lambda x, y: x.index_put_((INDEX,), y[0]),
}


@pytest.mark.parametrize("function", REFUSED.values(), ids=REFUSED)
def test_devices_do_not_mix(function: Callable[[Tensor, Tensor], Any]) -> None:
    same_device = "on the same device"
    with pytest.raises(RuntimeError, match=same_device):
        function(numbers(), numbers().cpu())


def test_no_float64() -> None:
    makers: list[Callable[[], Tensor]] = [
        lambda: numbers().double(),
        lambda: torch.empty(3, dtype=torch.float64, device=DEVICE),
        lambda: torch.tensor([1.0], dtype=torch.float64).to(DEVICE),
        lambda: torch.tensor([1.0], dtype=torch.float64, device=DEVICE),
        lambda: numbers().sum(dtype=torch.float64),
        lambda: torch.ones(2, dtype=torch.float64, device=DEVICE),
        lambda: INDEX.bincount(INDEX),  # the sums of weights
    ]
    with without_float64():
        for make in makers:
            with pytest.raises(TypeError, match="doesn't support float64"):
                make()
        assert (numbers() * torch.tensor(2.0, dtype=torch.float64)).dtype == torch.float32
        assert numbers().cpu().double().dtype == torch.float64
    assert {make().dtype for make in makers} == {torch.float64}


# --- costs ------------------------------------------------------------------------------------

COSTS: dict[str, tuple[Callable[[Tensor], Any], tuple[int, int, int]]] = {
    # element-wise: each argument read, each result written
    "x + x": (lambda x: x + x, (1, 144, 0)),
    "x * 2": (lambda x: x * 2, (1, 96, 0)),
    "x * 0-dim of the CPU": (lambda x: x * torch.tensor(2.0), (1, 96, 0)),
    "x > 2": (lambda x: x > 2, (1, 60, 0)),
    "in-place": (lambda x: x.mul_(2), (1, 96, 0)),
    "out=": (lambda x: torch.abs(x, out=x.new_empty(3, 4)), (1, 96, 0)),
    "clamp_max_": (lambda x: x.clamp_max_(3), (1, 96, 0)),
    "masked_fill_": (lambda x: x.masked_fill_(x > 3, 0), (2, 60 + 12 + 96, 0)),
    "isnan": (lambda x: x.isnan(), (1, 60, 0)),
    "foreach": (lambda x: torch._foreach_add([x, x], 1), (1, 192, 0)),
    "a cast": (lambda x: x.half(), (1, 48 + 24, 0)),
    "an expanded row": (lambda x: x[:1].expand(100, 4).sum(), (1, 16 + 4, 0)),
    "an expanded column": (lambda x: x[:, :1].expand(3, 100).sum(), (1, 12 + 4, 0)),
    "overlapping windows": (lambda x: x.view(12).unfold(0, 3, 1).sum(), (1, 48 + 4, 0)),
    "a slice": (lambda x: x[1].neg(), (1, 32, 0)),
    # allocations and fills
    "empty": (lambda x: (torch.empty_like(x), x.new_empty(9)), (0, 0, 0)),
    "zeros": (lambda x: x.new_zeros(9), (1, 36, 0)),
    "full": (lambda x: torch.full_like(x, 2), (1, 48, 0)),
    "fill_": (lambda x: x.fill_(2), (1, 48, 0)),
    "arange": (lambda x: torch.arange(4, device=x.device), (1, 32, 0)),
    "uniform_": (lambda x: x.uniform_(), (1, 48, 0)),
    # reductions and searches
    "sum": (lambda x: x.sum(), (1, 52, 0)),
    "aminmax": (lambda x: x.aminmax(), (1, 56, 0)),
    "kthvalue": (lambda x: x[0].kthvalue(2), (1, 16 + 4 + 8, 0)),
    "sort": (lambda x: x.sort(), (1, 48 + 48 + 96, 0)),
    "cumsum": (lambda x: x.cumsum(0), (1, 96, 0)),
    "searchsorted": (lambda x: torch.searchsorted(x[0], x[1]), (1, 16 + 16 + 32, 0)),
    "cat": (lambda x: torch.cat([x, x]), (1, 192, 0)),
    # gathers and scatters: what moves, and the index
    "index_select": (lambda x: x.index_select(0, INDEX), (1, 16 + 64, 0)),
    "index": (lambda x: x[INDEX], (1, 16 + 64, 0)),
    "index of the CPU": (lambda x: x[torch.tensor([0, 2])], (2, 16 + 16 + 64, 0)),
    "gather": (lambda x: x.gather(0, INDEX.view(1, 2)), (1, 16 + 16, 0)),
    "take": (lambda x: x.take(INDEX), (1, 16 + 16, 0)),
    "index_fill_": (lambda x: x.index_fill_(0, INDEX, 1.0), (1, 16 + 32, 0)),
    "index_fill": (lambda x: x.index_fill(0, INDEX, 1.0), (2, 96 + 16 + 32, 0)),
    "index_copy_": (lambda x: x.index_copy_(0, INDEX, VALUES[:2]), (1, 16 + 32 + 32, 0)),
    "index_add_": (lambda x: x.index_add_(0, INDEX, VALUES[:2]), (1, 16 + 32 + 64, 0)),
    "scatter_": (lambda x: x.scatter_(0, INDEX.view(1, 2), VALUES[:1]), (1, 16 + 8 + 8, 0)),
    "scatter": (lambda x: x.scatter(0, INDEX.view(1, 2), 1.0), (1, 96 + 16 + 8, 0)),
    "scatter_add_": (
        lambda x: x.scatter_add_(0, INDEX.view(1, 2), VALUES[0, :1].expand(1, 2)),
        (1, 16 + 4 + 16, 0),
    ),
    "index_put_": (lambda x: x.index_put_((INDEX,), VALUES[0]), (1, 16 + 16 + 32, 0)),
    "index_put_, accumulate": (
        lambda x: x.index_put_((INDEX,), VALUES[:2], accumulate=True),
        (1, 16 + 32 + 64, 0),
    ),
    "index_put_ at a mask": (
        lambda x: x.index_put_((x > 9,), VALUES[0, 0]),
        (2, 60 + 12 + 4 + 96, 0),
    ),
    "nonzero_static": (lambda x: torch.nonzero_static(x[0], size=2), (1, 16 + 16, 0)),
    "split_with_sizes_copy": (lambda x: fill_views(x, Tensor.new_empty), (1, 96, 0)),
    # copies
    "to the device": (lambda x: torch.zeros(6).to(x.device), (1, 24, 0)),
    "to the device, cast": (lambda x: torch.zeros(6).to(x.device, torch.half), (1, 12, 0)),
    "tensor": (lambda x: torch.tensor([1.0, 2.0], device=x.device), (1, 8, 0)),
    "within the device": (lambda x: x.clone(), (1, 96, 0)),
    # waits
    "item": (lambda x: x[0, 0].item(), (0, 0, 1)),
    "float": (lambda x: float(x.sum()), (1, 52, 1)),
    "bool": (lambda x: bool((x[0] > 3).any()), (2, 20 + 5, 1)),
    "cpu": (lambda x: x.cpu(), (1, 48, 1)),
    'to("cpu")': (lambda x: x.to("cpu", torch.float64), (1, 48, 1)),
    "tolist": (lambda x: x.tolist(), (1, 48, 1)),
    "nonzero": (lambda x: x[0].nonzero(), (1, 16 + 24, 1)),
    "a mask": (lambda x: x[x > 9], (3, 60 + (12 + 32) + (32 + 16), 1)),
    "put at a mask": (lambda x: x.__setitem__(x > 9, VALUES[0, :2]), (3, 60 + 44 + 32 + 8 + 8, 1)),
    "masked_select": (lambda x: x.masked_select(x > 9), (2, 60 + 12 + 16, 1)),
    "unique": (lambda x: x[0].unique(), (1, 32, 1)),
    "bincount": (lambda x: INDEX.bincount(), (1, 16 + 24, 1)),
    "repeat_interleave": (lambda x: INDEX.repeat_interleave(INDEX), (2, 16 + 16 + 16 + 32, 1)),
    "with output_size": (
        lambda x: INDEX.repeat_interleave(INDEX, output_size=2),
        (2, 80, 0),
    ),
    "equal": (lambda x: torch.equal(x, x), (1, 96, 1)),
    "synchronize": (lambda x: torch.simulated.synchronize(), (0, 0, 1)),
}


@pytest.mark.parametrize("name", COSTS)
def test_costs(name: str) -> None:
    function, expected = COSTS[name]
    given = numbers()
    with measured() as cost:
        function(given)
    assert (cost.calls, cost.bytes, cost.waits) == expected, cost.table()


def test_measurements_nest_and_print() -> None:
    x = numbers()
    with measured() as outer:
        x.neg()
        with measured() as inner:
            x.sum().item()
    x.neg()
    assert (outer.calls, outer.bytes, outer.waits) == (2, 96 + 52, 1)
    assert (inner.calls, inner.bytes, inner.waits) == (1, 52, 1)
    [place] = inner.waits_at
    assert place.startswith("test_accelerator.py:")
    assert inner.table().splitlines() == [
        f"{'operator':<36}{'calls':>8}{'bytes':>16}{'waits':>7}",
        f"{'sum':<36}{1:>8}{52:>16}{0:>7}",
        f"{'_local_scalar_dense':<36}{0:>8}{0:>16}{1:>7}",
        f"{'total':<36}{1:>8}{52:>16}{1:>7}",
    ]


# --- what is built on operators ---------------------------------------------------------------


def trained(device: Any, optimizer: Callable[..., torch.optim.Optimizer]) -> dict[str, Tensor]:
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Conv2d(1, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.ReLU(), torch.nn.Flatten()
    )
    model.append(torch.nn.Linear(16, 3))
    x, y = torch.randn(8, 1, 4, 4).to(device), torch.arange(8).to(device) % 3
    model.to(device)
    steps = optimizer(model.parameters())
    for _ in range(3):
        steps.zero_grad()
        torch.nn.functional.cross_entropy(model(x), y).backward()
        steps.step()
    return model.state_dict()


@pytest.mark.parametrize(
    "optimizer",
    [
        lambda params: torch.optim.SGD(params, lr=0.1, momentum=0.9, foreach=True),
        lambda params: torch.optim.Adam(params, lr=0.1, foreach=True),
        lambda params: torch.optim.AdamW(params, lr=0.1, foreach=False),
    ],
    ids=["SGD", "Adam", "AdamW"],
)
def test_modules_and_optimizers(optimizer: Callable[..., Any]) -> None:
    got, expected = trained(DEVICE, optimizer), trained("cpu", optimizer)
    assert list(got) == list(expected)
    assert_equal_results(list(got.values()), list(expected.values()))


def test_state_dicts_are_copied_saved_and_loaded() -> None:
    model = torch.nn.Linear(3, 2).to("simulated")
    again = copy.deepcopy(model)
    again.weight.data.zero_()
    assert model.weight.any()
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    for device in (None, "cpu", DEVICE):
        file.seek(0)
        state = torch.load(file, weights_only=True, map_location=device)
        assert state["weight"].device == torch.device(device or DEVICE)
        again.load_state_dict(state)
        assert torch.equal(again.weight, model.weight)
    file = io.BytesIO()
    torch.save(torch.nn.Linear(3, 2).state_dict(), file)
    file.seek(0)
    assert torch.load(file, map_location="simulated")["bias"].device == DEVICE


def cubes(x: Tensor) -> Tensor:
    return (x**3).sum()


TRANSFORMED: dict[str, Callable[[Tensor], Any]] = {
    "grad": lambda x: torch.func.grad(cubes)(x),
    "jvp of grad": lambda x: torch.func.jvp(torch.func.grad(cubes), (x,), (x * 2,)),
    "hessian": lambda x: torch.func.hessian(cubes)(x[0]),
    "vmap": lambda x: torch.vmap(lambda row: row.cumsum(0) * row.max())(x),
    "vmap of grad": lambda x: torch.vmap(torch.func.grad(cubes))(x),
    "functional_call": lambda x: torch.func.functional_call(
        torch.nn.Linear(4, 3), {"weight": x, "bias": x[:, 0]}, (x,)
    ),
    "autograd": lambda x: torch.autograd.grad(cubes(x.requires_grad_()[1:] * x[:1]), x),
    "aot_eager": lambda x: torch.compile(torch.where, backend="aot_eager")(x > 3, x, x * 2),
    "eager": lambda x: torch.compile(lambda a: a.sin()[1:], backend="eager")(x),
}


@pytest.mark.parametrize("function", TRANSFORMED.values(), ids=TRANSFORMED)
def test_transforms(function: Callable[[Tensor], Any]) -> None:
    got, expected = function(numbers()), function(numbers().cpu())
    assert_equal_results(got, expected)
