"""The blocks of a network as functions, and the inputs of the first one on a calibration set.

`gprune.reconstruct.sequential` prunes blocks one after the other. A language model is an embedding,
a list of blocks of one class, and a head. The embedding runs once, to make the inputs of the first
block, and the head does not run at all.

A block gets other arguments besides the hidden states, such as a mask and position embeddings.
They may differ between blocks, as in networks where only some blocks attend to all positions. So
the dense network runs once up to its last block, and the arguments of every block are recorded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from gprune.trees import Tree


class Arguments(NamedTuple):
    """The arguments of a block, without the hidden states.

    Attributes:
        is_keyword: whether the hidden states are passed as `hidden_states=`, not as the first
            argument.
        args: the other positional arguments.
        kwargs: the other keyword arguments.
    """

    is_keyword: bool
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


class BlockInput(NamedTuple):
    """What a block of a network is called with.

    Attributes:
        hidden: the hidden states, which every block changes.
        others: the other arguments of this block and of each block after it, in order.
    """

    hidden: Tensor
    others: list[Arguments]


class _LastBlockReachedError(Exception):
    """Raised to end a forward pass at the last block."""


def find_blocks(model: nn.Module) -> tuple[str, nn.ModuleList]:
    """Return the blocks of a network: its longest `ModuleList` of modules of one class.

    A list inside such a list does not count, such as the experts of a block.

    Args:
        model: the network.

    Returns:
        The dotted path of the list, and the list.

    Raises:
        ValueError: if there is none.
    """
    lists = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len({type(block) for block in module}) == 1
    }
    if not lists:
        raise ValueError(f"{type(model).__name__} has no ModuleList of blocks of one class")
    outer = {
        name: blocks
        for name, blocks in lists.items()
        if not any(name.startswith(f"{other}.") for other in lists)
    }
    return max(outer.items(), key=lambda item: len(item[1]))


def first_inputs(
    model: nn.Module, blocks: Sequence[nn.Module] | nn.ModuleList, batches: Iterable[Tensor]
) -> list[BlockInput]:
    """Return the inputs of the first block of a network for each batch.

    The network runs up to its last block, so that the other arguments of all blocks are known.

    Args:
        model: the network, which is called with each batch. It must not use a cache.
        blocks: its blocks.
        batches: what the network is called with, such as token ids, (sequences, tokens).

    Returns:
        The hidden states that the first block gets for each batch, and the other arguments of all
        blocks.

    Raises:
        ValueError: if the network does not call each block once and in order, with the hidden
            states that the block before has returned.
    """
    recorder = _Recorder(type(model).__name__, len(blocks))
    handles = []
    try:
        for number, block in enumerate(blocks):
            enter, leave = partial(recorder.enter, number), recorder.leave
            handles.append(block.register_forward_pre_hook(enter, with_kwargs=True))
            handles.append(block.register_forward_hook(leave))
        return [recorder.run(model, batch) for batch in batches]
    finally:
        for handle in handles:
            handle.remove()


class _Recorder:
    """Records the calls of the blocks in a forward pass, as hooks of the blocks.

    Attributes:
        name: what errors call the network.
        num_blocks: the number of blocks.
        first: the hidden states that the first block has got.
        last: the hidden states that the latest block has returned.
        others: the other arguments of the blocks that have been called.
    """

    def __init__(self, name: str, num_blocks: int) -> None:
        self.name = name
        self.num_blocks = num_blocks
        self.first: Tensor | None = None
        self.last: Tensor | None = None
        self.others: list[Arguments] = []

    def run(self, model: nn.Module, batch: Tensor) -> BlockInput:
        """Run the network up to its last block, and return the input of its first block."""
        self.first, self.last, self.others = None, None, []
        try:
            with torch.no_grad():
                model(batch)
        except _LastBlockReachedError:
            assert self.first is not None
            return BlockInput(self.first, self.others)
        finally:
            self.last = None
        number = len(self.others)
        raise ValueError(f"{self.name} did not call block {number} of its {self.num_blocks} blocks")

    def enter(
        self, number: int, block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        """Record the arguments of a block, and end the forward pass at the last block."""
        if number != len(self.others):
            raise ValueError(
                f"{self.name} called block {number} of its {self.num_blocks} blocks when it was "
                f"the turn of block {len(self.others)}"
            )
        if not args and "hidden_states" not in kwargs:
            raise ValueError(f"{self.name} called block {number} without hidden states")
        hidden = args[0] if args else kwargs["hidden_states"]
        others = {name: value for name, value in kwargs.items() if args or name != "hidden_states"}
        if number == 0:
            self.first = hidden
        elif self.last is not hidden and not torch.equal(self.last, hidden):  # type: ignore[arg-type]  # block 0 has set it
            raise ValueError(
                f"{self.name} called block {number} with other hidden states than block "
                f"{number - 1} had returned"
            )
        self.others.append(Arguments(not args, args[1:], others))
        if number + 1 == self.num_blocks:
            raise _LastBlockReachedError

    def leave(self, block: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """Record what a block has returned."""
        self.last = _hidden_states(output)


def block_function(block: nn.Module) -> Callable[[Tree, BlockInput], BlockInput]:
    """Return a block as a function of its parameters and its input, for `sequential`.

    Args:
        block: the module, which is not changed.

    Returns:
        A function `(params, input) -> input of the next block`.
    """

    def call(params: Tree, x: BlockInput) -> BlockInput:
        (is_keyword, args, kwargs), *after = x.others
        if is_keyword:
            kwargs = {"hidden_states": x.hidden, **kwargs}
        else:
            args = (x.hidden, *args)
        output = torch.func.functional_call(block, params, args, kwargs)
        return BlockInput(_hidden_states(output), after)

    return call


def _hidden_states(output: Any) -> Tensor:
    """Return the hidden states from the output of a block, which may be a tuple with them first."""
    hidden: Tensor = output[0] if isinstance(output, tuple) else output
    return hidden
