"""Language models of transformers: pruned block by block, with the inputs that a text gives them.

The other files of this package see tensors by name. Here the network itself is loaded, because a
calibrated score and a rebuilt weight depend on its inputs. It runs in float32, which is fast and
exact enough on every CPU, or in float64 if a weight is float64. So it must fit into memory twice in
that dtype: as it is, and with the pruned weights.

Only the weights of the linear layers in the blocks are pruned. Each of them is compared with the
tensor of its name in the checkpoint before anything is pruned. So a weight that transformers
renames, merges or decodes when it loads it is not written back to the wrong place. The experts of a
mixture are not pruned, because transformers packs them into one tensor that is no linear layer.

It needs transformers, which is imported when a function is called.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial, reduce
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn

import gprune as gp
from gprune import reconstruct
from gprune.checkpoints.calibrating import BlockInput, block_function, find_blocks, first_inputs
from gprune.checkpoints.choosing import NamedTensors
from gprune.checkpoints.planning import Rebuilt
from gprune.checkpoints.reading import (
    WEIGHT_FILES,
    Checkpoint,
    CheckpointError,
    require_file,
    weight_file,
)
from gprune.checkpoints.scoring import no_progress
from gprune.trees import Tree

OFFLINE = {"local_files_only": True, "trust_remote_code": False}
"""Options with which transformers downloads nothing and runs no code of a folder."""

DEFAULT_LENGTH = 2_048
"""The most tokens that a sequence has by default."""

OUTSIDE = "outside of the linear layers of the blocks"
"""The reason that `left_out` gives for a chosen tensor that is not pruned."""

Amount: TypeAlias = int | float | tuple[int, int]
"""How many entries to prune (int), which fraction (float), or (n, m): n of every m are kept."""


class StoredWeight(NamedTuple):
    """Where a weight of a linear layer comes from.

    Attributes:
        name: its name in the checkpoint.
        dtype: its dtype there.
        dim: the dim of its inputs.
    """

    name: str
    dtype: torch.dtype
    dim: int


@dataclass(frozen=True)
class LinearBlock:
    """A block of a network as a function, and its weights to prune.

    Attributes:
        path: the path of the block in the network, such as `model.layers.0`.
        module: the block.
        weights: the weights to prune, by their paths in the block.
    """

    path: str
    module: nn.Module
    weights: dict[str, StoredWeight]

    def __call__(self, params: Tree, x: BlockInput) -> BlockInput:
        """Return the input of the next block."""
        return block_function(self.module)(params, x)

    def dim(self, path: str, leaf: Tensor) -> int:
        """Return the dim of the inputs of a weight to prune; 0 for another parameter."""
        return self.weights[path].dim if path in self.weights else 0

    def prunable(self, params: dict[str, Tensor]) -> dict[str, Tensor | None]:
        """Return the weights to prune, with `None` for other parameters."""
        return {path: leaf if path in self.weights else None for path, leaf in params.items()}


Method: TypeAlias = Callable[[LinearBlock, dict[str, Tensor], list[BlockInput]], tuple[Tree, Tree]]
"""A function of a block, its parameters and its inputs: new parameters and masks."""


def load(checkpoint: Checkpoint, weights: NamedTensors) -> nn.Module:
    """Load the language model of a folder, in float32, or in float64 if a weight is float64.

    Args:
        checkpoint: the folder.
        weights: the chosen tensors of the folder.

    Returns:
        The model, on the CPU, that uses no cache.

    Raises:
        CheckpointError: if the folder has no causal language model, or a quantized one, or
            transformers cannot load it whole.
    """
    from transformers import AutoModelForCausalLM

    config = _config(checkpoint)
    dtypes = [weight.dtype for weight in weights.values()]
    dtype = reduce(torch.promote_types, dtypes, torch.float32)
    with _loading(checkpoint.path, "model"):
        model, found = AutoModelForCausalLM.from_pretrained(
            checkpoint.path,
            config=config,
            dtype=dtype,
            use_safetensors=True,
            output_loading_info=True,
            **OFFLINE,
        )
    if missing := sorted(found["missing_keys"]):
        raise CheckpointError(
            f"{checkpoint.path} lacks {len(missing)} tensors of a {type(model).__name__}, such as "
            f"{missing[0]!r}, so transformers would make up random values for them"
        )
    # a cache would grow with every call of a block
    model.config.get_text_config().use_cache = False
    network: nn.Module = model.eval()
    return network


def read_text(
    path: Path, checkpoint: Checkpoint, *, tokens: int, length: int | None = None
) -> list[Tensor]:
    """Read the first tokens of a text, as sequences.

    Args:
        path: a text file in UTF-8.
        checkpoint: the folder with the tokenizer and the configuration of the model.
        tokens: how many tokens.
        length: how many tokens a sequence has. By default it is 2,048, or fewer if the model or
            `tokens` allows no more. The last sequence may be shorter.

    Returns:
        The sequences, each (1, length).

    Raises:
        CheckpointError: if the text is missing, is not UTF-8 or has fewer tokens, the length is
            more than the model allows, or transformers cannot load the tokenizer.
    """
    from transformers import AutoTokenizer

    config = _config(checkpoint)
    most = getattr(config.get_text_config(), "max_position_embeddings", None) or DEFAULT_LENGTH
    if length is None:
        length = min(DEFAULT_LENGTH, most, tokens)
    elif length > min(most, tokens):
        has = f"the limit is {most:,}" if length > most else f"there are {tokens:,} in all"
        raise CheckpointError(f"a sequence cannot have {length:,} tokens: {has}")
    require_file(path)
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise CheckpointError(
            f"{path} is not a text in UTF-8: byte {error.start:,} is invalid"
        ) from None
    with _loading(checkpoint.path, "tokenizer"):
        tokenizer = AutoTokenizer.from_pretrained(checkpoint.path, **OFFLINE)
        ids: Tensor = tokenizer(text, return_tensors="pt").input_ids[0]
    if len(ids) < tokens:
        raise CheckpointError(
            f"{path} has {len(ids):,} tokens, but {tokens:,} are asked for; give a longer text, or "
            f"ask for fewer by tokens={len(ids)} (--tokens {len(ids)})"
        )
    return [part.long().unsqueeze(0) for part in torch.split(ids[:tokens], length)]


def linear_blocks(
    model: nn.Module, checkpoint: Checkpoint, weights: NamedTensors
) -> list[LinearBlock]:
    """Find the blocks of a model and their weights to prune.

    Args:
        model: the model.
        checkpoint: the folder that it was loaded from.
        weights: the chosen tensors of the folder, by name. Those that are no weights of linear
            layers of a block are ignored.

    Returns:
        The blocks, in order.

    Raises:
        CheckpointError: if there are no blocks, none of their weights is to be pruned, or a weight
            of theirs is not in the checkpoint as it is in the model.
    """
    try:
        path, modules = find_blocks(model)
    except ValueError as error:
        raise CheckpointError(str(error)) from None
    blocks = []
    for number, module in enumerate(modules):
        found, where = {}, f"{path}.{number}"
        for layer_path, layer in module.named_modules():
            if (dim := _dim_of_inputs(layer)) is not None:
                weight = f"{layer_path}.weight"
                name = _name_in_checkpoint(model, checkpoint, f"{where}.{weight}")
                if name in weights:
                    found[weight] = StoredWeight(name, weights[name].dtype, dim)
        blocks.append(LinearBlock(where, module, found))
    if not any(block.weights for block in blocks):
        raise CheckpointError(
            f"there is nothing to prune: no chosen tensor is the weight of a linear layer in {path}"
        )
    return blocks


def left_out(
    reasons: dict[str, str], weights: NamedTensors, blocks: Sequence[LinearBlock]
) -> dict[str, str]:
    """Say why tensors are not pruned.

    Args:
        reasons: the reasons for the tensors that are not chosen, by name.
        weights: the chosen tensors, by name.
        blocks: the blocks of the model.

    Returns:
        The reason for each tensor that is not pruned, sorted by name.
    """
    pruned = {weight.name for block in blocks for weight in block.weights.values()}
    found = reasons | {name: OUTSIDE for name in weights if name not in pruned}
    return dict(sorted(found.items()))


def wanda(amount: Amount, *, refit: bool = False) -> Method:
    """Return the method that prunes by the weights times the norms of their inputs.

    Args:
        amount: how many inputs of each output to prune (int), the fraction of them (float, 0 to 1),
            or n and m.
        refit: whether what is kept is rebuilt by `gprune.reconstruct.refit`.

    Returns:
        A method for `prune`.
    """

    def method(block: LinearBlock, params: dict[str, Tensor], inputs: Any) -> tuple[Tree, Tree]:
        weights = block.prunable(params)
        grams = _grams(block, params, inputs) if refit else None
        if grams is None:
            norms = gp.scores.input_norms(block, params, inputs)
        else:  # the norms are on the diagonals
            norms = {path: _norms(block, path, weights, grams) for path in params}
        scores = gp.scores.wanda(weights, norms)
        how: dict[str, Any] = {"amount": amount}
        if isinstance(amount, tuple):
            how = {"n": amount[0], "m": amount[1], "pruning_method": gp.n_of_m}
        masks = gp.layerwise(weights, scores, dim=block.dim, **how)
        new = params if grams is None else reconstruct.refit(params, masks, grams, dim=block.dim)
        return new, masks

    return method


def sparsegpt(amount: Amount, *, refit: bool = False) -> Method:
    """Return the method of `gprune.reconstruct.sparsegpt`, which rebuilds what is kept.

    Args:
        amount: how many entries of each weight to prune (int), the fraction of them (float, 0 to
            1), or n and m.
        refit: whether what is kept is rebuilt by `gprune.reconstruct.refit` instead, from the
            weights before.

    Returns:
        A method for `prune`.
    """

    def method(block: LinearBlock, params: dict[str, Tensor], inputs: Any) -> tuple[Tree, Tree]:
        how: dict[str, Any] = {"amount": amount}
        if isinstance(amount, tuple):
            how = {"n": amount[0], "m": amount[1]}
        grams = _grams(block, params, inputs)
        new, masks = reconstruct.sparsegpt(params, grams, dim=block.dim, **how)
        if refit:
            new = reconstruct.refit(params, masks, grams, dim=block.dim)
        return new, masks

    return method


def prune(
    model: Any,
    blocks: Sequence[LinearBlock],
    batches: Sequence[Tensor],
    method: Method,
    advance: Callable[[int], object] = no_progress,
) -> Rebuilt:
    """Prune the blocks of a model in turn, each with what the pruned blocks before it return.

    Args:
        model: the model of transformers, from `load`. It is not changed.
        blocks: its blocks, from `linear_blocks`.
        batches: the sequences of tokens, from `read_text`.
        method: `wanda` or `sparsegpt` of an amount.
        advance: called with 1 after each block.

    Returns:
        The new weights and their masks, by their names in the checkpoint.

    Raises:
        CheckpointError: if the model does not know a token, does not pass its inputs from block to
            block, or a weight cannot be pruned.
    """
    num_known = model.get_input_embeddings().num_embeddings
    if (highest := max(int(batch.max()) for batch in batches)) >= num_known:
        raise CheckpointError(
            f"the text has token id {highest}, but the model knows {num_known} tokens"
        )
    try:
        inputs = first_inputs(model, [block.module for block in blocks], batches)
    except ValueError as error:
        raise CheckpointError(str(error)) from None
    prune_block = partial(_prune_block, method=method, advance=advance)
    params = [{k: p.detach() for k, p in b.module.named_parameters()} for b in blocks]
    new, masks = reconstruct.sequential(blocks, params, inputs, prune_block)
    rebuilt = Rebuilt({}, {})
    for block, leaves, kept in zip(blocks, new, masks, strict=True):
        for path, (name, dtype, _) in block.weights.items():
            rebuilt.weights[name] = leaves[path].to(dtype)
            rebuilt.masks[name] = kept[path]
    return rebuilt


def _prune_block(
    block: Any, params: Any, inputs: Any, *, method: Method, advance: Callable[[int], object]
) -> tuple[Tree, Tree]:
    """Prune a block. Round its new weights to the stored dtype, as later blocks must see them."""
    new, masks = dict(params), dict.fromkeys(params)
    if block.weights:
        try:
            rebuilt, masks = method(block, params, inputs)
        except ValueError as error:
            raise CheckpointError(f"{block.path}: {error}") from None
        for path, (_, dtype, _) in block.weights.items():
            new[path] = rebuilt[path].to(dtype).to(params[path].dtype)
    advance(1)
    return new, masks


def _grams(block: LinearBlock, params: dict[str, Tensor], inputs: Any) -> Tree:
    return gp.scores.input_gram(block, params, inputs, where=lambda path, _: path in block.weights)


def _norms(
    block: LinearBlock, path: str, weights: dict[str, Tensor | None], grams: Tree
) -> Tensor | None:
    """Return the norms of the inputs of a weight to prune, in its shape, from its Gram matrix."""
    weight = weights[path]
    if weight is None:
        return None
    norms: Tensor = grams[path].diagonal().sqrt()
    return (
        norms.expand(weight.shape)
        if block.dim(path, weight)
        else norms[:, None].expand(weight.shape)
    )


def _config(checkpoint: Checkpoint) -> Any:
    """Return the configuration of a model that can be pruned.

    Raises:
        CheckpointError: if the folder has none, or that of another kind of model.
    """
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    folder = checkpoint.path
    if not folder.is_dir() or weight_file(folder) != WEIGHT_FILES[0]:
        raise CheckpointError(f"{folder} is not a folder with a model of transformers")
    if not (folder / "config.json").exists():
        raise CheckpointError(f"{folder} has no config.json, so transformers cannot load it")
    with _loading(folder, "configuration"):
        config = AutoConfig.from_pretrained(folder, **OFFLINE)
    if getattr(config, "quantization_config", None) is not None:
        raise CheckpointError(
            f"{folder} has a quantized model; prune the checkpoint that it was made from"
        )
    names = set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values())
    found = config.architectures or [MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(config.model_type)]
    if not names & set(found):
        raise CheckpointError(
            f"{folder} has a {found[0] or config.model_type}, which is not a causal language model "
            "of transformers"
        )
    return config


@contextmanager
def _loading(folder: Path, what: str) -> Iterator[None]:
    """Silence transformers, and make one line of its errors.

    Raises:
        CheckpointError: in place of any error.
    """
    from transformers.utils import logging

    verbosity, has_bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    except Exception as error:  # a configuration from a file can make transformers raise any error
        reason = re.sub(r"\s+", " ", str(error)).strip() or type(error).__name__
        remedy = "; save it into the folder by save_pretrained" if what == "tokenizer" else ""
        raise CheckpointError(
            f"transformers cannot load the {what} of {folder}: {reason}{remedy}"
        ) from None
    finally:
        logging.set_verbosity(verbosity)
        if has_bars:
            logging.enable_progress_bar()


def _dim_of_inputs(layer: nn.Module) -> int | None:
    """Return the dim of the inputs of the weight of a linear layer; `None` for other modules."""
    from transformers.pytorch_utils import Conv1D

    if isinstance(layer, nn.Linear):
        return 1
    return 0 if isinstance(layer, Conv1D) else None


def _name_in_checkpoint(model: Any, checkpoint: Checkpoint, name: str) -> str:
    """Return the name that a weight of a model has in the checkpoint.

    Names in the file of a base model lack its prefix, as those of `transformer.h.0` of GPT-2 do.

    Raises:
        CheckpointError: if the checkpoint does not have the weight as it is.
    """
    weight = model.get_parameter(name)
    for candidate in (name, name.removeprefix(f"{model.base_model_prefix}.")):
        tensor = checkpoint.tensors.get(candidate)
        if tensor is None or tensor.shape != weight.shape:
            continue
        if torch.allclose(weight, tensor.to(weight.dtype), rtol=0, atol=0, equal_nan=True):
            return candidate
    raise CheckpointError(
        f"the weight {name!r} of the model is not in the checkpoint as it is, because transformers "
        "converts it when it loads it; such a model cannot be pruned with a text"
    )
