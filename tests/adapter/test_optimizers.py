"""Zeros that survive: `project_`, for every optimizer, before and after pruning is permanent."""

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import prune as torch_prune

from gprune import adapter

OPTIMIZERS: list[Any] = [
    lambda params: torch.optim.SGD(params, lr=0.1),
    lambda params: torch.optim.SGD(params, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.1),
    lambda params: torch.optim.Adam(params, lr=0.1, amsgrad=True),
    lambda params: torch.optim.AdamW(params, lr=0.1, foreach=True),
    lambda params: torch.optim.RMSprop(params, lr=0.1, centered=True, momentum=0.5),
    lambda params: torch.optim.Adagrad(params, lr=0.1, initial_accumulator_value=1.0),
]


def pruned(num_pruned: int = 32) -> nn.Module:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 1))
    adapter.global_unstructured([(net[0], "weight")], adapter.L1Unstructured, amount=num_pruned)
    return net


def train(net: nn.Module, optimizer: torch.optim.Optimizer, steps: int = 5) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        net(torch.randn(16, 8)).square().mean().backward()
        optimizer.step()


def num_zeros(net: nn.Module) -> int:
    return int((adapter.params_of(net)["0.weight"] == 0).sum())


@pytest.mark.parametrize("make", OPTIMIZERS)
def test_zeros_survive_steps_and_permanence(make: Any) -> None:
    net = pruned()
    optimizer = make(net.parameters())
    train(net, optimizer)  # moments that know nothing of masks
    adapter.project_(optimizer, net)
    for permanent in (False, True):
        if permanent:
            adapter.make_permanent_(net)
        train(net, optimizer)
        weight = adapter.params_of(net)["0.weight"]
        masked = weight == 0
        assert int(masked.sum()) == 32
        state = optimizer.state[weight]
        moments = [x for name, x in state.items() if name != "step" and x is not None]
        assert all((moment[masked] == 0).all() for moment in moments)
        assert "step" not in state or state["step"] > 0
        assert all((moment[~masked] != 0).any() for moment in moments)


def test_torch_alone_keeps_none_of_them() -> None:
    net = pruned()
    optimizer = torch.optim.Adam(net.parameters(), lr=0.1)
    train(net, optimizer)
    torch_prune.remove(net[0], "weight")
    assert num_zeros(net) == 32
    train(net, optimizer)
    assert num_zeros(net) == 0


def test_masks_of_later_rounds_are_followed_and_a_removed_hook_is_gone() -> None:
    net = pruned(16)
    optimizer = torch.optim.Adam(net.parameters(), lr=0.1)
    handle = adapter.project_(optimizer, net)
    train(net, optimizer)
    assert num_zeros(net) == 16
    adapter.global_unstructured([(net[0], "weight")], adapter.L1Unstructured, amount=16)
    train(net, optimizer)
    assert num_zeros(net) == 32
    handle.remove()
    adapter.make_permanent_(net)
    train(net, optimizer)
    assert num_zeros(net) == 0


def test_what_is_pruned_and_made_permanent_between_two_steps_is_projected_by_another_call() -> None:
    net = pruned(16)
    optimizer = torch.optim.Adam(net.parameters(), lr=0.1)
    adapter.project_(optimizer, net)
    train(net, optimizer)
    adapter.global_unstructured([(net[0], "weight")], adapter.L1Unstructured, amount=16)
    adapter.project_(optimizer, net)
    adapter.make_permanent_(net)
    train(net, optimizer)
    assert num_zeros(net) == 32


def test_a_pruned_scalar_keeps_its_count_of_steps() -> None:
    class Scale(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.tensor(2.0))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * self.scale

    net = adapter.attach_masks_(Scale(), {"scale": torch.tensor(False)})
    optimizer = torch.optim.Adam(net.parameters())
    adapter.project_(optimizer, net)
    net(torch.ones(2)).sum().backward()
    optimizer.step()
    assert optimizer.state[net.scale_orig]["step"] == 1
    assert net.scale_orig == 0


@pytest.mark.parametrize(
    ("optimizer", "module", "error", "words"),
    [
        (None, nn.Linear(1, 1), TypeError, "optimizer must be"),
        (torch.optim.SGD([torch.ones(1)]), None, TypeError, "module must be"),
        (torch.optim.SGD([torch.ones(1)]), nn.Linear(1, 1), ValueError, "no pruned parameter"),
    ],
)
def test_bad_input(optimizer: Any, module: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        adapter.project_(optimizer, module)
