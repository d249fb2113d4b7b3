"""Language models of transformers: which weights are pruned how, and models that cannot be."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import gprune as gp
from gprune import checkpoints
from gprune.checkpoints import CheckpointError
from tests.support import language_models
from tests.support.checkpoint_files import save
from tests.support.language_models import LENGTH, MODELS, TEXT, save_model, save_text

pytest.importorskip("transformers")  # of an extra of its own
pytestmark = pytest.mark.slow  # importing transformers takes seconds

from gprune.checkpoints import language  # noqa: E402  it imports transformers

TOKENS = 200  # three sequences and a shorter one

Params = dict[str, Tensor]


def pruned(folder: Path, method: Any, *, exclude: Any = ()) -> checkpoints.planning.Rebuilt:
    source = checkpoints.read(folder)
    weights = checkpoints.choose(source.tensors, exclude=exclude)
    text = save_text(folder.with_suffix(".txt"))
    batches = language.read_text(text, source, tokens=TOKENS)
    model = language.load(source, weights)
    return language.prune(model, language.linear_blocks(model, source, weights), batches, method)


# --- by hand: the whole network as one function, without walking its blocks -----------------------


def block_of(name: str) -> str:
    """`model.layers.0` of `model.layers.0.mlp.up_proj.weight`; the numbers have one digit."""
    return next(name[: i + 1] for i in range(len(name)) if name[i].isdigit())


def by_hand(model: Any, prune: Callable[..., tuple[Params, Params]]) -> tuple[Params, Params]:
    """Prune the matrices of block after block, with the network that has the pruned ones before."""
    from transformers.pytorch_utils import Conv1D

    model.eval()
    model.config.use_cache = False
    ids = torch.tensor(language_models.tokenizer()(TEXT).input_ids[:TOKENS])
    batches = [part.unsqueeze(0) for part in ids.split(LENGTH)]
    layers = {
        f"{name}.weight": layer
        for name, layer in model.named_modules()
        if isinstance(layer, torch.nn.Linear | Conv1D) and name != "lm_head"
    }
    dims = {name: 0 if isinstance(layer, Conv1D) else 1 for name, layer in layers.items()}
    found: tuple[Params, Params] = ({}, {})
    for block in sorted({block_of(name) for name in layers}):
        params = {
            name: p.detach().clone()
            for name, p in model.named_parameters()
            if name in layers and block_of(name) == block
        }

        def forward(params: Params, ids: Tensor) -> Tensor:
            return torch.func.functional_call(model, params, (ids,)).logits

        new, masks = prune(forward, params, batches, lambda path, leaf: dims[path])
        new = gp.apply_masks(new, masks)
        model.load_state_dict(new, strict=False)
        found[0].update(new)
        found[1].update(masks)
    return found


def wanda(
    forward: Any, params: Params, batches: Any, dim: Any, **how: Any
) -> tuple[Params, Params]:
    scores = gp.scores.wanda(params, gp.scores.input_norms(forward, params, batches))
    return params, gp.layerwise(params, scores, dim=dim, **(how or {"amount": 0.5}))


def wanda_2_4(forward: Any, params: Params, batches: Any, dim: Any) -> tuple[Params, Params]:
    return wanda(forward, params, batches, dim, pruning_method=gp.n_of_m, n=2, m=4)


def wanda_refit(forward: Any, params: Params, batches: Any, dim: Any) -> tuple[Params, Params]:
    grams = gp.scores.input_gram(forward, params, batches)
    _, masks = wanda(forward, params, batches, dim)
    return gp.reconstruct.refit(params, masks, grams, dim=dim), masks


def sparsegpt(
    forward: Any, params: Params, batches: Any, dim: Any, **how: Any
) -> tuple[Params, Params]:
    grams = gp.scores.input_gram(forward, params, batches)
    new, masks = gp.reconstruct.sparsegpt(params, grams, dim=dim, **(how or {"amount": 0.5}))
    return new, masks


def sparsegpt_refit(forward: Any, params: Params, batches: Any, dim: Any) -> tuple[Params, Params]:
    grams = gp.scores.input_gram(forward, params, batches)
    _, masks = gp.reconstruct.sparsegpt(params, grams, dim=dim, n=2, m=4)
    return gp.reconstruct.refit(params, masks, grams, dim=dim), masks


METHODS: dict[str, tuple[Any, Any]] = {
    "wanda": (language.wanda(0.5), wanda),
    "wanda 2:4": (language.wanda((2, 4)), wanda_2_4),
    "wanda refit": (language.wanda(0.5, refit=True), wanda_refit),
    "sparsegpt": (language.sparsegpt(0.5), sparsegpt),
    "sparsegpt 2:4 refit": (language.sparsegpt((2, 4), refit=True), sparsegpt_refit),
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", MODELS)
def test_the_masks_are_those_of_the_functions_called_by_hand(
    tmp_path: Path, kind: str, method: str
) -> None:
    model = MODELS[kind]()
    folder = save_model(tmp_path / "model", model)
    ours, theirs = METHODS[method]
    found = pruned(folder, ours)
    weights, masks = by_hand(model, theirs)
    assert found.masks.keys() == masks.keys()
    assert len(masks) >= 8
    for name, mask in masks.items():
        assert torch.equal(found.masks[name], mask), name
        torch.testing.assert_close(found.weights[name], weights[name], rtol=1e-4, atol=1e-5)


def test_wanda_prunes_as_much_of_each_output(tmp_path: Path) -> None:
    """The outputs of GPT-2's matrices are their columns."""
    for kind, dim in (("llama", 1), ("gpt2", 0)):
        folder = save_model(tmp_path / kind, MODELS[kind]())
        masks = pruned(folder, language.wanda(0.5)).masks
        assert all((mask.sum(dim) == mask.shape[dim] // 2).all() for mask in masks.values())
        masks = pruned(folder, language.wanda(3)).masks
        assert all((mask.sum(dim) == mask.shape[dim] - 3).all() for mask in masks.values())
        for method in (language.wanda((2, 4)), language.sparsegpt((2, 4))):
            masks = pruned(folder, method).masks
            rows = [mask if dim == 1 else mask.mT for mask in masks.values()]
            assert all((row.unflatten(1, (-1, 4)).sum(2) == 2).all() for row in rows)


def test_wanda_changes_no_kept_weight(tmp_path: Path) -> None:
    folder = save_model(tmp_path / "model", language_models.llama(torch.bfloat16))
    before = load_file(folder / "model.safetensors")
    found = pruned(folder, language.wanda(0.5))
    for name, mask in found.masks.items():
        assert found.weights[name].dtype == torch.bfloat16
        assert torch.equal(found.weights[name], torch.where(mask, before[name], 0))


def test_the_dtypes_of_the_file_stay(tmp_path: Path) -> None:
    """They may be several."""
    folder = save_model(tmp_path / "model", language_models.llama())
    tensors = load_file(folder / "model.safetensors")
    narrow = {name for name in tensors if "mlp" in name}
    tensors |= {name: tensors[name].bfloat16() for name in narrow}
    save(folder / "model.safetensors", tensors)
    found = pruned(folder, language.sparsegpt(0.5)).weights
    assert len(found) == 14
    dtypes = {True: torch.bfloat16, False: torch.float32}
    assert all(weight.dtype == dtypes[name in narrow] for name, weight in found.items())


def test_a_block_sees_the_rounded_weights_of_the_blocks_before_it(tmp_path: Path) -> None:
    """The model runs in float32, and its weights are stored in bfloat16."""

    def rounded(forward: Any, params: Params, batches: Any, dim: Any) -> tuple[Params, Params]:
        new, masks = sparsegpt(forward, params, batches, dim)
        return {name: weight.bfloat16().float() for name, weight in new.items()}, masks

    from transformers import LlamaForCausalLM

    folder = save_model(tmp_path / "model", language_models.llama(torch.bfloat16))
    found = pruned(folder, language.sparsegpt(0.5))
    weights, masks = by_hand(LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32), rounded)
    for name, mask in masks.items():
        assert torch.equal(found.masks[name], mask), name
        torch.testing.assert_close(found.weights[name].float(), weights[name], rtol=0.01, atol=1e-5)


def test_a_base_model_has_names_without_a_prefix(tmp_path: Path) -> None:
    """As the file of GPT-2 that its authors published."""
    folder = save_model(tmp_path / "model", language_models.gpt2())
    tensors = load_file(folder / "model.safetensors")
    bare = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}
    before = pruned(folder, language.wanda(0.5))
    save(folder / "model.safetensors", bare)
    found = pruned(folder, language.wanda(0.5))
    assert set(found.masks) == {name.removeprefix("transformer.") for name in before.masks}
    assert set(found.masks) < set(bare)
    assert all(
        torch.equal(found.masks[name.removeprefix("transformer.")], mask)
        for name, mask in before.masks.items()
    )


def test_only_chosen_weights_are_pruned(tmp_path: Path) -> None:
    """And the blocks after them see what the pruned ones and the others return."""
    folder = save_model(tmp_path / "model", language_models.llama())
    source = checkpoints.read(folder)
    globs = ["model.layers.0.*", "*.1.mlp.up_proj.weight"]
    weights = checkpoints.choose(source.tensors, exclude=globs)
    blocks = language.linear_blocks(language.load(source, weights), source, weights)
    reasons = checkpoints.left_out(source.tensors, exclude=globs)
    reasons = language.left_out(reasons, weights, blocks)
    found = pruned(folder, language.wanda(0.5), exclude=globs)
    assert len(found.masks) == 6
    assert all(name.startswith("model.layers.1.") for name in found.masks)
    assert set(found.masks) | set(reasons) == set(source.tensors)
    assert not set(found.masks) & set(reasons)
    assert list(reasons) == sorted(reasons)
    outside = {name for name, reason in reasons.items() if reason == language.OUTSIDE}
    assert outside == {"lm_head.weight", "model.embed_tokens.weight"}
    with pytest.raises(CheckpointError, match="nothing to prune"):
        pruned(folder, language.wanda(0.5), exclude=["model.layers.*"])


def test_packed_experts_are_left_out(tmp_path: Path) -> None:
    folder = save_model(tmp_path / "model", language_models.mixtral())
    found = pruned(folder, language.wanda(0.5)).masks
    names = {name.split(".", 3)[3] for name in found}
    assert names == {f"self_attn.{x}_proj.weight" for x in "qkvo"}
    assert len(found) == 8


def test_transformers_is_as_loud_as_before(tmp_path: Path, capfd: Any) -> None:
    from transformers.utils import logging

    folder = save_model(tmp_path / "model", language_models.llama())
    capfd.readouterr()
    before = logging.get_verbosity(), logging.is_progress_bar_enabled()
    pruned(folder, language.wanda(0.5))
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == before
    assert capfd.readouterr() == ("", "")


def test_the_text_is_read_in_sequences(tmp_path: Path) -> None:
    folder = save_model(tmp_path / "model", language_models.gpt2())
    source, text = checkpoints.read(folder), save_text(tmp_path / "x.txt", "ab" * 50)
    read = language.read_text
    assert [x.shape[1] for x in read(text, source, tokens=100)] == [64, 36]
    assert [x.shape[1] for x in read(text, source, tokens=40)] == [40]
    assert [x.shape[1] for x in read(text, source, tokens=100, length=50)] == [50, 50]
    first, second = read(text, source, tokens=4, length=2)
    assert torch.equal(first, second)
    assert first.tolist() == [language_models.tokenizer()("ab").input_ids]


@pytest.mark.parametrize(
    ("content", "options", "words"),
    [
        (b"ab" * 50, {"tokens": 101}, "has 100 tokens, but 101 are asked for"),
        (b"", {"tokens": 1}, "has 0 tokens, but 1 are"),
        (b"ab" * 50, {"tokens": 100, "length": 65}, "cannot have 65 tokens: the limit is 64"),
        (b"ab" * 50, {"tokens": 9, "length": 10}, "cannot have 10 tokens: there are 9 in all"),
        (b"ab\xff", {"tokens": 1}, "is not a text in UTF-8"),
    ],
)
def test_texts_that_cannot_be_used(
    tmp_path: Path, content: bytes, options: dict[str, int], words: str
) -> None:
    folder = save_model(tmp_path / "model", language_models.gpt2())
    (tmp_path / "x.txt").write_bytes(content)
    with pytest.raises(CheckpointError, match=words):
        language.read_text(tmp_path / "x.txt", checkpoints.read(folder), **options)  # type: ignore[arg-type]  # their types differ


def encoder(folder: Path) -> None:
    from transformers import BertConfig, BertModel

    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4}
    BertModel(BertConfig(vocab_size=256, num_hidden_layers=2, **sizes)).save_pretrained(folder)


def change_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def rename(folder: Path, change: Callable[[Params], Params]) -> None:
    save(folder / "model.safetensors", change(load_file(folder / "model.safetensors")))


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "encoder": (encoder, "has a BertModel, which is not a causal language model"),
    "quantized": (
        lambda folder: change_config(folder, quantization_config={"quant_method": "gptq"}),
        "has a quantized model",
    ),
    "no configuration": (lambda folder: (folder / "config.json").unlink(), "has no config.json"),
    "another configuration": (
        lambda folder: (folder / "config.json").write_text("{"),
        "transformers cannot load the configuration of",
    ),
    "unknown type": (
        lambda folder: change_config(folder, model_type="none"),
        "transformers cannot load the configuration of",
    ),
    "code of its own": (
        lambda folder: change_config(folder, model_type="none", auto_map={"AutoConfig": "x.Y"}),
        "transformers cannot load the configuration of .* contains custom code",
    ),
    "no tokenizer": (
        lambda folder: [path.unlink() for path in folder.glob("tok*")],
        "transformers cannot load the tokenizer of .* save it into the folder by save_pretrained",
    ),
    "a tensor is missing": (
        lambda folder: rename(
            folder, lambda t: {k: v for k, v in t.items() if k != "lm_head.weight"}
        ),
        "lacks 1 tensors of a LlamaForCausalLM, such as 'lm_head.weight'",
    ),
    "of PEFT": (
        lambda folder: (folder / "model.safetensors").rename(folder / "adapter_model.safetensors"),
        "is not a folder with a model of transformers",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_folders_that_cannot_be_used(tmp_path: Path, name: str) -> None:
    folder = save_model(tmp_path / "model", language_models.llama())
    change, words = BROKEN[name]
    change(folder)
    with pytest.raises(CheckpointError, match=words) as caught:
        pruned(folder, language.wanda(0.5))
    assert "\n" not in str(caught.value)


def test_a_weight_that_is_converted_when_it_is_loaded_is_refused(tmp_path: Path) -> None:
    folder = save_model(tmp_path / "model", language_models.llama())
    source = checkpoints.read(folder)
    weights = checkpoints.choose(source.tensors)
    model = language.load(source, weights)
    with torch.no_grad():
        model.get_parameter("model.layers.1.mlp.up_proj.weight")[0, 0] += 1
    words = r"'model\.layers\.1\.mlp\.up_proj\.weight' of the model is not in the checkpoint as it"
    with pytest.raises(CheckpointError, match=words):
        language.linear_blocks(model, source, weights)


def test_the_model_is_loaded_to_run_in_blocks(tmp_path: Path) -> None:
    folder = save_model(tmp_path / "model", language_models.llama(torch.bfloat16))
    source = checkpoints.read(folder)
    model: Any = language.load(source, checkpoints.choose(source.tensors))
    assert model.dtype == torch.float32
    assert not model.training
    assert not model.config.use_cache


def test_a_token_that_the_model_does_not_know(tmp_path: Path) -> None:
    folder = save_model(tmp_path / "model", language_models.gpt2())
    source = checkpoints.read(folder)
    weights = checkpoints.choose(source.tensors)
    model = language.load(source, weights)
    blocks = language.linear_blocks(model, source, weights)
    with pytest.raises(CheckpointError, match="has token id 256, but the model knows 256 tokens"):
        language.prune(model, blocks, [torch.tensor([[256]])], language.wanda(0.5))


def test_an_error_names_the_block(tmp_path: Path) -> None:
    folder = save_model(tmp_path / "model", language_models.llama())
    words = r"^model\.layers\.0: .*'mlp\.gate_proj\.weight'"
    with pytest.raises(CheckpointError, match=words):
        pruned(folder, language.wanda(33))  # of 32 inputs
