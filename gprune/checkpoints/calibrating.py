"""The blocks of a network as functions, and the inputs of the first one on a calibration set.

`gprune.reconstruct.sequential` prunes blocks one after the other. A language model is an embedding,
a list of blocks of one class, and a head. The embedding runs once, to make the inputs of the first
block, and the head does not run at all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from gprune.trees import Tree


class BlockInput(NamedTuple):
    """What a block of a network is called with.

    Attributes:
        hidden: the hidden states, which every block changes.
        others: the keyword arguments that all blocks get alike, such as position embeddings.
    """

    hidden: Tensor
    others: dict[str, Any]


class _FirstBlockReachedError(Exception):
    """Raised to end a forward pass at the first block."""


def find_blocks(model: nn.Module) -> tuple[str, nn.ModuleList]:
    """Return the blocks of a network: its longest `ModuleList` of modules of one class.

    Args:
        model: the network.

    Returns:
        The dotted path of the list, and the list.

    Raises:
        ValueError: if there is none.
    """
    lists = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len({type(block) for block in module}) == 1
    ]
    if not lists:
        raise ValueError(f"{type(model).__name__} has no ModuleList of blocks of one class")
    return max(lists, key=lambda found: len(found[1]))


def first_inputs(
    model: nn.Module, blocks: nn.ModuleList, batches: Iterable[Tensor]
) -> list[BlockInput]:
    """Return what a network calls its first block with, for each batch.

    The forward pass ends at the first block. No module is changed.

    Args:
        model: the network, which is called with each batch.
        blocks: its blocks.
        batches: what the network is called with, such as token ids, (sequences, tokens).

    Returns:
        The arguments of the first block for each batch.

    Raises:
        ValueError: if the network does not call its first block.
    """
    found: list[BlockInput] = []

    def record(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        hidden, *_ = args or (kwargs["hidden_states"],)
        others = {name: value for name, value in kwargs.items() if name != "hidden_states"}
        found.append(BlockInput(hidden, others))
        raise _FirstBlockReachedError

    handle = blocks[0].register_forward_pre_hook(record, with_kwargs=True)
    try:
        for batch in batches:
            try:
                with torch.no_grad():
                    model(batch)
            except _FirstBlockReachedError:
                continue
            raise ValueError(f"{type(model).__name__} did not call its first block")
    finally:
        handle.remove()
    return found


def block_function(block: nn.Module) -> Callable[[Tree, BlockInput], BlockInput]:
    """Return a block as a function of its parameters and its input, for `sequential`.

    Args:
        block: the module, which is not changed.

    Returns:
        A function `(params, input) -> input of the next block`.
    """

    def call(params: Tree, x: BlockInput) -> BlockInput:
        output = torch.func.functional_call(block, params, (x.hidden,), x.others)
        return x._replace(hidden=output[0] if isinstance(output, tuple) else output)

    return call
