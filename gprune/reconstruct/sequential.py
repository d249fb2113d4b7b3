"""Sequential pruning: the blocks in turn, each with the outputs of the pruned blocks before it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import torch

from gprune.masks import apply_masks
from gprune.scores.losses import require_function
from gprune.scores.score_map import require_batches
from gprune.trees import Tree

Block: TypeAlias = Callable[[Tree, Any], Any]
"""A function `block(params, x)` that returns the input of the next block."""


def sequential(
    blocks: Sequence[Block],
    params: Sequence[Tree],
    batches: Iterable[Any],
    prune_block: Callable[[Block, Tree, list[Any]], tuple[Tree, Tree]],
) -> tuple[list[Tree], list[Tree]]:
    """Prune the blocks of a network in turn, each with the outputs of the pruned ones before it.

    So every block can make up for the errors of the blocks before it, and the statistics of only
    one block are in memory at a time. After a block has been pruned, it is called once on every
    batch, to make the inputs of the next block. All other calls are those of `prune_block`.

    Args:
        blocks: the functions `block(params, x)`, in order. Their results are the inputs of the next
            block, of any type.
        params: the parameters of each block, pytrees.
        batches: the inputs of the first block, read once. All of them are kept in memory.
        prune_block: `prune_block(block, params, inputs)`, with the list of the inputs of the block.
            It returns the new parameters of the block and its masks.

    Returns:
        Two lists with one tree for each block: the new parameters, with the masks applied, and the
        masks.

    Raises:
        TypeError: if a block or `prune_block` is not a function, `params` is a dict, `batches` is
            one batch, or `prune_block` does not return a pair.
        ValueError: if `blocks` and `params` differ in length, or there is no batch.

    Example:
        >>> import torch, gprune as gp
        >>> def block(params, x):
        ...     return torch.relu(torch.nn.functional.linear(x, params))
        >>> def prune_block(block, params, inputs):
        ...     scores = gp.scores.wanda(params, gp.scores.input_norms(block, params, inputs))
        ...     masks = gp.layerwise(params, scores, amount=0.5, dim=gp.input_dims)
        ...     grams = gp.scores.input_gram(block, params, inputs)
        ...     return gp.reconstruct.refit(params, masks, grams), masks
        >>> weights, inputs = [torch.rand(4, 4), torch.rand(2, 4)], [torch.rand(8, 4)]
        >>> params, masks = gp.reconstruct.sequential([block, block], weights, inputs, prune_block)
        >>> [int(mask.sum()) for mask in masks]
        [8, 4]

    References:
        Frantar & Alistarh, 2023, arXiv:2301.00774, section 3.3 and appendix: layer by layer, each
        with the inputs that the compressed layers before it give.
    """
    require_batches(batches)
    require_function(prune_block, "prune_block")
    if isinstance(params, Mapping):
        raise TypeError(
            f"params must be a list with one tree for each block, got a {type(params).__name__}"
        )
    blocks, params = list(blocks), list(params)
    for number, block in enumerate(blocks):
        require_function(block, f"blocks[{number}]")
    if len(blocks) != len(params):
        raise ValueError(
            f"params must have one tree for each of the {len(blocks)} blocks, got {len(params)}"
        )
    inputs = list(batches)
    if not inputs:
        raise ValueError("batches is empty: there are no inputs to measure")
    new_params, masks = [], []
    for number, (block, tree) in enumerate(zip(blocks, params, strict=True)):
        result = prune_block(block, tree, list(inputs))
        if not isinstance(result, tuple) or len(result) != 2:
            raise TypeError(f"prune_block must return (params, masks), got {type(result).__name__}")
        new_params.append(apply_masks(*result))
        masks.append(result[1])
        if number + 1 < len(blocks):
            with torch.no_grad():
                for i in range(len(inputs)):  # in place: one set of inputs is in memory at a time
                    inputs[i] = block(new_params[-1], inputs[i])
    return new_params, masks
