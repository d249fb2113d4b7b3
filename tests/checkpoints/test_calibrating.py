"""The blocks of networks as functions: what they are called with, and networks that have none."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gprune.checkpoints.calibrating import BlockInput, block_function, find_blocks, first_inputs


class Block(nn.Module):
    """Adds what its mask keeps of a linear layer; returns a tuple if it is asked to."""

    def __init__(self, returns_tuple: bool = False) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)
        self.returns_tuple = returns_tuple

    def forward(self, hidden_states: Tensor, mask: Tensor, *, scale: float = 1.0) -> Any:
        new = hidden_states + scale * self.fc(hidden_states) * mask
        return (new, "attention weights") if self.returns_tuple else new


def by_position(block: nn.Module, x: Tensor, number: int) -> Any:
    return block(x, torch.tensor(float(number)), scale=2.0)


def by_keyword(block: nn.Module, x: Tensor, number: int) -> Any:
    return block(mask=torch.tensor(float(number)), hidden_states=x)


class Network(nn.Module):
    """An embedding, blocks with a mask of their own each, and a head that must not run."""

    def __init__(self, call: Callable[..., Any] = by_position, returns_tuple: bool = False) -> None:
        super().__init__()
        self.embedding = nn.Embedding(10, 4)
        self.heads = nn.ModuleList([nn.Linear(4, 2), nn.Linear(4, 2)])
        self.blocks = nn.ModuleList([Block(returns_tuple) for _ in range(3)])
        self.call = call

    def hidden(self, ids: Tensor) -> Tensor:
        x = self.embedding(ids)
        for number, block in enumerate(self.blocks):
            output = self.call(block, x, number)
            x = output[0] if isinstance(output, tuple) else output
        return x

    def forward(self, ids: Tensor) -> Tensor:
        self.hidden(ids)
        raise AssertionError("the head runs")


BATCHES = [torch.tensor([[1, 2, 3]]), torch.tensor([[4, 5, 9], [0, 7, 8]])]


@pytest.mark.parametrize("returns_tuple", [False, True])
@pytest.mark.parametrize("call", [by_position, by_keyword])
def test_the_functions_in_turn_are_the_network(
    call: Callable[..., Any], returns_tuple: bool
) -> None:
    model = Network(call, returns_tuple)
    inputs = first_inputs(model, model.blocks, iter(BATCHES))
    assert [len(x.others) for x in inputs] == [3, 3]
    for x, ids in zip(inputs, BATCHES, strict=True):
        assert torch.equal(x.hidden, model.embedding(ids))
        assert not x.hidden.requires_grad
        for block in model.blocks:
            x = block_function(block)(dict(block.named_parameters()), x)
        assert torch.equal(x.hidden, model.hidden(ids))
        assert x.others == []


def test_a_block_is_a_function_of_its_parameters() -> None:
    model = Network()
    [x] = first_inputs(model, model.blocks, BATCHES[:1])
    x = x._replace(others=x.others[1:])  # the mask of the first block is zero
    zeros = {name: torch.zeros_like(p) for name, p in model.blocks[1].named_parameters()}
    assert torch.equal(block_function(model.blocks[1])(zeros, x).hidden, x.hidden)
    new = block_function(model.blocks[1])(dict(model.blocks[1].named_parameters()), x)
    assert isinstance(new, BlockInput)
    assert not torch.equal(new.hidden, x.hidden)


class Unusual(Network):
    """Calls its blocks in another way than one after the other."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how

    def forward(self, ids: Tensor) -> Any:
        x, mask = self.embedding(ids), torch.ones(())
        first, second, third = self.blocks
        match self.how:
            case "none":
                return x
            case "first missing":
                return third(second(x, mask), mask)
            case "last missing":
                return second(first(x, mask), mask)
            case "one twice":
                return first(first(x, mask), mask)
            case "something between":
                return second(2 * first(x, mask), mask)
            case "other name":
                return first.forward(x, mask), self.blocks[0](mask=mask)
            case _:
                raise RuntimeError("a bug in the network")


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("none", "did not call block 0 of its 3 blocks"),
        ("first missing", "called block 1 of its 3 blocks when it was the turn of block 0"),
        ("last missing", "did not call block 2 of its 3 blocks"),
        ("one twice", "called block 0 of its 3 blocks when it was the turn of block 1"),
        ("something between", "called block 1 with other hidden states than block 0 had returned"),
        ("other name", "called block 0 without hidden states"),
        ("error", "a bug in the network"),
    ],
)
def test_networks_that_do_not_call_their_blocks_in_turn(how: str, words: str) -> None:
    model = Unusual(how)
    with pytest.raises(RuntimeError if how == "error" else ValueError, match=words):
        first_inputs(model, model.blocks, BATCHES)
    for block in model.blocks:
        assert not block._forward_pre_hooks
        assert not block._forward_hooks


def test_no_hook_is_left() -> None:
    model = Network()
    first_inputs(model, model.blocks, BATCHES)
    assert not any(block._forward_pre_hooks or block._forward_hooks for block in model.blocks)


class Mixture(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.ModuleList([nn.Linear(2, 2) for _ in range(8)])


def test_the_blocks_are_the_longest_list_of_one_class() -> None:
    assert find_blocks(Network())[0] == "blocks"
    model = nn.Module()
    model.body = nn.Module()
    model.body.layers = nn.ModuleList([Mixture(), Mixture()])
    model.mixed = nn.ModuleList([nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2)])
    model.empty = nn.ModuleList()
    name, blocks = find_blocks(model)
    assert (name, blocks) == ("body.layers", model.body.layers), "not the experts of a block"


def test_a_network_without_blocks() -> None:
    with pytest.raises(ValueError, match="Sequential has no ModuleList of blocks of one class"):
        find_blocks(nn.Sequential(nn.Linear(2, 2), nn.ModuleList([nn.ReLU(), nn.Tanh()])))
