"""The adapter under `fully_shard`: what one process does to a whole module, bit for bit."""

from __future__ import annotations

import copy
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import nn
from torch.distributed.fsdp import (
    FullyShardedDataParallel,
    MixedPrecisionPolicy,
    fully_shard,
)
from torch.distributed.tensor import DTensor, Shard, distribute_tensor
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    parallelize_module,
)

import gprune as gp
from gprune import adapter
from tests.support.sharded_cases import all_well, mesh_of


class Net(nn.Module):
    """Rows that two ranks share unevenly, a matrix of one row, and two names of one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(7, 6)
        self.up = nn.Linear(6, 6)
        self.tied = nn.Linear(6, 7, bias=False)
        self.tied.weight = self.embed.weight
        self.out = nn.Linear(7, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.tied(torch.tanh(self.up(self.embed(x)))))


def make(seed: int = 0) -> Net:
    torch.manual_seed(seed)
    return Net()


def shard(net: nn.Module, **kwargs: Any) -> nn.Module:
    mesh = mesh_of((2,))
    fully_shard(net.up, mesh=mesh, **kwargs)
    return fully_shard(net, mesh=mesh, **kwargs)


def train(net: nn.Module, optimizer: torch.optim.Optimizer, steps: int = 3) -> None:
    """All ranks see the same batch, so that the mean of the gradients is each of them exactly."""
    for seed in range(steps):
        x = torch.randint(7, (5,), generator=torch.Generator().manual_seed(seed))
        net(x).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()


def full(value: Any) -> Any:
    return value.full_tensor() if isinstance(value, DTensor) else value


def differences(what: str, got: dict[str, Any], expected: dict[str, Any]) -> list[str]:
    """Name the tensors that are not those of one process."""
    if list(got) != list(expected):
        return [f"{what}: names are {list(got)}, expected {list(expected)}"]
    pairs = [(name, full(got[name]), expected[name]) for name in got]
    return [
        f"{what}[{name}]: is {a}, expected {b}"
        for name, a, b in pairs
        if not (a is b is None or torch.equal(a, b))
    ]


def compared(step: str, net: nn.Module, one: nn.Module) -> list[str]:
    """Compare a sharded module with that of one process: names, values and masks."""
    net.reshard()
    return [
        *differences(f"{step}: state", net.state_dict(), one.state_dict()),
        *differences(f"{step}: masks", adapter.masks_of(net), adapter.masks_of(one)),
    ]


def check_training(order: str, optimizer: Any, evaluate: bool) -> list[str]:
    net, one = make(), make()
    if order == "prune first":
        adapter.prune_(net, sparsity=0.5)
        shard(net)
    else:
        shard(net)
        adapter.prune_(net, sparsity=0.5)
    adapter.prune_(one, sparsity=0.5)
    problems = compared("pruned", net, one)
    ours, theirs = optimizer(net.parameters()), optimizer(one.parameters())
    if evaluate:  # leaves the parameters of the outermost module whole
        net(torch.arange(5))
    adapter.project_(ours, net)
    adapter.project_(theirs, one)
    for name, change in {
        "trained": lambda module: module,
        "pruned further": lambda module: adapter.prune_(module, sparsity=0.75),
        "made permanent": adapter.make_permanent_,
    }.items():
        if evaluate:
            net(torch.arange(5))
        for module, steps in ((net, ours), (one, theirs)):
            change(module)
            train(module, steps)
        problems += compared(name, net, one)
    left = int(gp.num_pruned(gp.masks_from_zeros(gp.prunable(adapter.params_of(net)))))
    return [
        *problems,
        *([] if left == gp.num_to_prune(0.75, 7 * 6 + 36 + 7) else [f"{left} zeros"]),
    ]


def adam(params: Any) -> torch.optim.Optimizer:
    return torch.optim.Adam(params, lr=0.1, weight_decay=0.01)


def momentum(params: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(params, lr=0.1, momentum=0.9)


@pytest.mark.parametrize("order", ["prune first", "shard first"])
def test_pruned_training_is_that_of_one_process(order: str) -> None:
    all_well(2, check_training, order, adam, False)


@pytest.mark.slow
@pytest.mark.parametrize("order", ["prune first", "shard first"])
def test_whole_parameters_that_an_evaluation_leaves_are_sharded_again(order: str) -> None:
    all_well(2, check_training, order, momentum, True)


def check_resume() -> list[str]:
    """Saved whole and loaded into a new sharded module, training goes on as without the break."""
    net = shard(adapter.prune_(make(), sparsity=0.5))
    optimizer = adam(net.parameters())
    adapter.project_(optimizer, net)
    train(net, optimizer)
    saved = copy.deepcopy((net.state_dict(), optimizer.state_dict()))
    train(net, optimizer, 2)
    new = make(1)
    shard(adapter.attach_masks_(new, gp.keep_all(gp.prunable(adapter.params_of(new)))))
    resumed = adam(new.parameters())
    new.load_state_dict(saved[0])
    resumed.load_state_dict(saved[1])
    adapter.project_(resumed, new)
    problems = differences("loaded", adapter.masks_of(new), whole_masks(net))
    train(new, resumed, 2)
    return problems + differences("resumed", new.state_dict(), whole_state(net))


def whole_masks(net: nn.Module) -> dict[str, Any]:
    return {name: full(mask) for name, mask in adapter.masks_of(net).items()}


def whole_state(net: nn.Module) -> dict[str, Any]:
    return {name: full(value) for name, value in net.state_dict().items()}


def test_training_resumes_from_the_state_dicts() -> None:
    all_well(2, check_resume)


def check_detaching() -> list[str]:
    net, one = shard(make()), make()
    adapter.attach_masks_(net, whole := adapter.masks_of(adapter.prune_(make(), sparsity=0.5)))
    problems = differences("attached", adapter.masks_of(net), whole)
    adapter.detach_masks_(net)
    order = dict.fromkeys(net.state_dict())
    problems += differences("detached", net.state_dict(), {k: one.state_dict()[k] for k in order})
    optimizer, theirs = adam(net.parameters()), adam(one.parameters())
    train(net, optimizer)
    train(one, theirs)
    return problems + differences(
        "trained", net.state_dict(), {k: one.state_dict()[k] for k in order}
    )


def test_whole_masks_are_attached_and_detached() -> None:
    all_well(2, check_detaching)


def check_mixed_precision(order: str) -> list[str]:
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    net = make()
    if order == "prune first":
        shard(adapter.prune_(net, sparsity=0.5), mp_policy=policy)
    else:
        adapter.prune_(shard(net, mp_policy=policy), sparsity=0.5)
    masks = whole_masks(net)
    optimizer = adam(net.parameters())
    adapter.project_(optimizer, net)
    train(net, optimizer)
    adapter.make_permanent_(net)
    train(net, optimizer)
    params = {name: full(value) for name, value in adapter.params_of(net).items()}
    zeros = gp.masks_from_zeros(params)
    return [
        f"{name} has other zeros than its mask"
        for name, mask in masks.items()
        if mask is not None and not torch.equal(mask, zeros[name])
    ]


@pytest.mark.slow
@pytest.mark.parametrize("order", ["prune first", "shard first"])
def test_mixed_precision(order: str) -> None:
    all_well(2, check_mixed_precision, order)


def mlp() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 4))


def parallelize(net: nn.Module) -> nn.Module:
    plan = {"0": ColwiseParallel(), "2": RowwiseParallel()}
    return parallelize_module(net, mesh_of((2, 2))["tp"], plan)


def check_tensor_parallel() -> list[str]:
    """Tensor parallelism, then pruning, then `fully_shard`."""
    net, one = parallelize(mlp()), adapter.prune_(mlp(), sparsity=0.5)
    fully_shard(adapter.prune_(net, sparsity=0.5), mesh=mesh_of((2, 2))["dp"])
    problems = differences("pruned", adapter.masks_of(net), adapter.masks_of(one))
    masks = adapter.masks_of(one)
    optimizer = adam(net.parameters())
    adapter.project_(optimizer, net)
    for permanent in (False, True):
        if permanent:
            adapter.make_permanent_(net)
        for seed in range(3):
            x = torch.randn(4, 8, generator=torch.Generator().manual_seed(seed))
            net(x).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
        params = {name: full(value) for name, value in adapter.params_of(net).items()}
        zeros = gp.masks_from_zeros(params)
        problems += [
            f"{name} has other zeros than its mask"
            for name, mask in masks.items()
            if mask is not None and not torch.equal(mask, zeros[name])
        ]
    return problems


@pytest.mark.slow
def test_tensor_parallel_inside_fully_shard() -> None:
    all_well(4, check_tensor_parallel)


class Attention(nn.Module):
    """`out_proj` is used and not called, so the attention recomputes its masked weight."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = nn.functional.one_hot(x % 4).float()[None]
        return self.attention(x, x, x, need_weights=False)[0]


def check_attention(order: str) -> list[str]:
    torch.manual_seed(0)
    one = Attention()
    net = copy.deepcopy(one)
    if order == "prune first":
        fully_shard(adapter.prune_(net, sparsity=0.5), mesh=mesh_of((2,)))
    else:
        adapter.prune_(fully_shard(net, mesh=mesh_of((2,))), sparsity=0.5)
    adapter.prune_(one, sparsity=0.5)
    ours, theirs = adam(net.parameters()), adam(one.parameters())
    adapter.project_(ours, net)
    adapter.project_(theirs, one)
    train(net, ours)
    train(one, theirs)
    return compared("trained", net, one)


@pytest.mark.parametrize("order", ["prune first", "shard first"])
def test_attention(order: str) -> None:
    all_well(2, check_attention, order)


def check_dtensors() -> list[str]:
    """Parameters that are DTensors without `fully_shard`, pruned by whole masks and by pairs."""
    net, one = mlp(), mlp()
    for name in ("0", "2"):
        layer = net.get_submodule(name)
        parts = distribute_tensor(layer.weight.detach(), mesh_of((2,)), [Shard(0)])
        layer.weight = nn.Parameter(parts)
    masks = adapter.masks_of(adapter.prune_(mlp(), sparsity=0.25))
    problems = []
    for step, change in {
        "attached": lambda module: adapter.attach_masks_(module, masks),
        "pruned": lambda module: adapter.prune_(module, sparsity=0.5),
        "pairs": lambda module: adapter.global_unstructured(
            [(module[0], "weight"), (module[2], "weight")], adapter.L1Unstructured, amount=5
        ),
        "removed": lambda module: adapter.remove(module[0], "weight"),
        "made permanent": adapter.make_permanent_,
    }.items():
        for module in (net, one):
            change(module)
        problems += differences(f"{step}: state", net.state_dict(), one.state_dict())
        problems += differences(f"{step}: masks", adapter.masks_of(net), adapter.masks_of(one))
    return problems


def test_parameters_that_are_dtensors() -> None:
    all_well(2, check_dtensors)


def fine_tune(net: nn.Module, wrapped: nn.Module, sync: Any) -> dict[str, torch.Tensor]:
    """Train with everything at once; return the moving average of the weights."""
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.1)
    adapter.keep_zeros_(wrapped, optimizer)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    average = {name: value.detach().clone() for name, value in net.state_dict().items()}
    for seed in range(6):
        x = torch.randint(7, (5,), generator=torch.Generator().manual_seed(seed))
        with sync(seed % 2 == 1), torch.autocast("cpu", dtype=torch.bfloat16):
            loss = wrapped(x).square().mean() * (float("inf") if seed == 3 else 1)
            scaler.scale(loss).backward()
        if seed % 2:
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
            for name, value in net.state_dict().items():
                average[name].lerp_(value.detach(), 0.5)
    return average


def sparse() -> Net:
    return adapter.make_permanent_(adapter.prune_(make(), sparsity=0.5))


def check_keep_zeros(kind: str) -> list[str]:
    """Two ranks with one batch: gradients accumulated, autocast, a skipped step, an average."""
    net, one = sparse(), sparse()
    zeros = {name: value == 0 for name, value in one.state_dict().items()}
    if kind == "DDP":
        wrapped: Any = nn.parallel.DistributedDataParallel(net)

        def sync(last: bool) -> Any:
            return nullcontext() if last else wrapped.no_sync()
    else:
        wrapped = shard(net)

        def sync(last: bool) -> Any:
            net.set_requires_gradient_sync(last)
            return nullcontext()

    average = fine_tune(net, wrapped, sync)
    expected = fine_tune(one, one, lambda last: nullcontext())
    return [
        *differences("state", net.state_dict(), one.state_dict()),
        *differences("average", average, expected),
        *[
            f"zeros of {name}: {tree[name]}"
            for tree in (one.state_dict(), expected)
            for name in ("embed.weight", "up.weight", "tied.weight", "out.weight")
            if not torch.equal(tree[name] == 0, zeros[name])
        ],
    ]


@pytest.mark.parametrize("kind", ["DDP", "FSDP2"])
def test_zeros_are_kept_as_in_one_process(kind: str) -> None:
    all_well(2, check_keep_zeros, kind)


def check_keep_zeros_of_a_module_that_is_sharded_later() -> list[str]:
    """As Accelerate does: `fully_shard` comes later, and the optimizer gets the new parameters."""
    net = sparse()
    zeros = {name: value == 0 for name, value in net.state_dict().items()}
    optimizer = adam(net.parameters())
    adapter.keep_zeros_(net, optimizer)
    shard(net)
    optimizer.param_groups[0]["params"] = list(net.parameters())
    train(net, optimizer)
    found = {name: full(value) == 0 for name, value in net.state_dict().items()}
    return differences("zeros", found, zeros)


def test_zeros_are_kept_in_a_module_that_is_sharded_later() -> None:
    all_well(2, check_keep_zeros_of_a_module_that_is_sharded_later)


def check_refused() -> list[str]:
    problems = []
    mesh = mesh_of((2,))
    net = shard(make())
    whole = adapter.masks_of(adapter.prune_(make(), sparsity=0.5))
    stale = adam(make().parameters())
    pruned = shard(adapter.prune_(make(), sparsity=0.5))
    part = fully_shard(nn.Sequential(mlp(), nn.Linear(4, 8)), mesh=mesh)
    whole_part = shard(make())
    blocked = shard(make())
    blocked.out.weight_mask = "taken"
    calls = {
        "drop-in": (
            net,
            lambda: adapter.global_unstructured(
                [(net.up, "weight")], adapter.L1Unstructured, amount=1
            ),
            "prune before fully_shard",
        ),
        "drop-in, while a part is whole": (
            whole_part,
            lambda: adapter.global_unstructured(
                [(whole_part.out, "weight")], adapter.L1Unstructured, amount=1
            ),
            "prune before fully_shard",
        ),
        "part that is whole": (
            whole_part,
            lambda: adapter.prune_(whole_part.out, amount=1),
            "part of a larger module",
        ),
        "part to detach": (
            pruned,
            lambda: adapter.detach_masks_(pruned.out),
            "part of a larger module",
        ),
        "part to make permanent": (
            pruned,
            lambda: adapter.make_permanent_(pruned.out),
            "part of a larger module",
        ),
        "one tensor to make permanent": (
            pruned,
            lambda: adapter.remove(pruned.up, "weight"),
            "call make_permanent_",
        ),
        "half-way": (
            blocked,
            lambda: adapter.attach_masks_(blocked, whole),
            "attribute 'weight_mask' already exists",
        ),
        "optimizer": (pruned, lambda: adapter.project_(stale, pruned), "updates none of"),
        "part": (part, lambda: adapter.prune_(part[0], amount=1), "part of a larger module"),
        "shape": (
            net,
            lambda: adapter.attach_masks_(net, {**whole, "out.weight": torch.ones(2, 2) > 0}),
            "out.weight",
        ),
    }
    for name, (module, call, words) in calls.items():
        before = whole_state(module)
        if module is whole_part:
            module(torch.arange(5))
        try:
            call()
            problems.append(f"{name}: is not refused")
        except (ValueError, KeyError) as error:
            problems += [] if words in str(error) else [f"{name}: {error}"]
        problems += differences(name, module.state_dict(), before)
    for module in (net, pruned, whole_part, blocked):
        module(torch.arange(5)).sum().backward()
    part(torch.randn(2, 8)).sum().backward()
    return problems


def test_what_cannot_work_is_refused_and_nothing_has_changed() -> None:
    all_well(2, check_refused)


def keep(net: nn.Module) -> Any:
    """Give the mask of a sharded weight, which `attach_masks_` gathers from all ranks."""
    return gp.keep_all(adapter.params_of(net)["up.weight"])


ON_ONE_RANK = {
    "where": lambda net, wrong: adapter.prune_(net, amount=1, where=3 if wrong else None),
    "amount": lambda net, wrong: adapter.prune_(net, amount=2.0 if wrong else 0.5),
    "two numbers": lambda net, wrong: adapter.prune_(
        net, amount=1, sparsity=0.5 if wrong else None
    ),
    "scores": lambda net, wrong: adapter.prune_(net, 3 if wrong else None, amount=1),
    "where of zeros": lambda net, wrong: adapter.keep_zeros_(
        net, adam(net.parameters()), where=3 if wrong else None
    ),
    "optimizer": lambda net, wrong: adapter.keep_zeros_(
        net, None if wrong else adam(net.parameters())
    ),
    "optimizer of other parameters": lambda net, wrong: adapter.keep_zeros_(
        net, adam((sparse() if wrong else net).parameters())
    ),
    "name of a mask": lambda net, wrong: adapter.attach_masks_(
        net, {"other.weight" if wrong else "up.weight": keep(net)}
    ),
    "shape of a mask": lambda net, wrong: adapter.attach_masks_(
        net, {"up.weight": torch.ones(2) > 0 if wrong else keep(net)}
    ),
    "no mask": lambda net, wrong: adapter.attach_masks_(
        net, {"up.weight": None if wrong else keep(net)}
    ),
    "list of masks": lambda net, wrong: adapter.attach_masks_(
        net, [keep(net)] if wrong else {"up.weight": keep(net)}
    ),
}
"""Calls of which one rank makes a wrong one."""


def check_on_one_rank(name: str) -> list[str]:
    net = shard(sparse())
    before = whole_state(net)
    try:
        ON_ONE_RANK[name](net, torch.distributed.get_rank() == 1)
    except (TypeError, ValueError):
        return differences(name, net.state_dict(), before)
    return ["no error"]


@pytest.mark.parametrize("name", ON_ONE_RANK)
def test_an_error_on_one_rank_is_raised_on_all(name: str) -> None:
    all_well(2, check_on_one_rank, name)


def check_flat_parameters(use_orig_params: bool) -> list[str]:
    one, net = adapter.prune_(mlp(), sparsity=0.5), adapter.prune_(mlp(), sparsity=0.5)
    wrapped = FullyShardedDataParallel(
        net, use_orig_params=use_orig_params, device_id=torch.device("cpu")
    )
    optimizer = adam(wrapped.parameters())
    x = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))
    problems = [] if torch.equal(wrapped(x), one(x)) else ["the order that works does not"]
    calls = {
        "prune_": lambda: adapter.prune_(wrapped, sparsity=0.5),
        "attach_masks_": lambda: adapter.attach_masks_(wrapped, {}),
        "project_": lambda: adapter.project_(optimizer, wrapped),
        "keep_zeros_": lambda: adapter.keep_zeros_(nn.Sequential(wrapped), optimizer),
    }
    for name, call in calls.items():
        try:
            call()
        except ValueError as error:
            if "FullyShardedDataParallel (FSDP1)" not in str(error):
                problems.append(f"{name}: {error}")
        else:
            problems.append(f"{name} is not refused")
    return problems


@pytest.mark.slow
@pytest.mark.parametrize("use_orig_params", [False, True])
@pytest.mark.filterwarnings("ignore")
def test_flat_parameters_are_refused(use_orig_params: bool) -> None:
    all_well(2, check_flat_parameters, use_orig_params)


def check_refused_tensor_parallel() -> list[str]:
    net = fully_shard(parallelize(mlp()), mesh=mesh_of((2, 2))["dp"])
    try:
        adapter.prune_(net, sparsity=0.5)
    except ValueError as error:
        net(torch.randn(4, 8)).sum().backward()
        return [] if "prune before fully_shard" in str(error) else [str(error)]
    return ["is not refused"]


@pytest.mark.slow
def test_pruning_after_tensor_parallelism_and_fully_shard_is_refused() -> None:
    all_well(4, check_refused_tensor_parallel)
