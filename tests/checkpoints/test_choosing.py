"""Which tensors are pruned: globs, quantized layouts, and buffers that are not weights."""

import json
from pathlib import Path

import pytest
import torch

from gprune.checkpoints import choose, left_out, quantized
from tests.support.checkpoint_commands import assert_refused, example, prune
from tests.support.checkpoint_files import Tensors, contents, save

I8, U8, I16, I32, U32 = torch.int8, torch.uint8, torch.int16, torch.int32, torch.uint32
F16, F32, E4M3, E5M2 = torch.float16, torch.float32, torch.float8_e4m3fn, torch.float8_e5m2
E8M0, FP4 = torch.float8_e8m0fnu, torch.float4_e2m1fn_x2

# the tensors of one layer as each library saves them, and which of them holds the entries
QUANTIZED: dict[str, tuple[str, dict[str, torch.dtype]]] = {
    "GPTQ": ("qweight", {"qweight": I32, "qzeros": I32, "scales": F16, "g_idx": I32}),
    "AWQ": ("qweight", {"qweight": I32, "qzeros": I32, "scales": F16}),
    "compressed-tensors": (
        "weight_packed",
        {"weight_packed": I32, "weight_scale": F16, "weight_zero_point": I32},
    ),
    "NVFP4": (
        "weight_packed",
        {"weight_packed": U8, "weight_scale": E4M3, "weight_global_scale": F32},
    ),
    "INT8": ("weight", {"weight": I8, "weight_scale": F32, "input_scale": F32}),
    "ModelOpt FP4": ("weight", {"weight": U8, "weight_scale": E4M3, "weight_scale_2": F32}),
    "DeepSeek FP8": ("weight", {"weight": E4M3, "weight_scale_inv": F32}),
    "FBGEMM FP8": ("weight", {"weight": E4M3, "weight_scale": F32, "input_scale_ub": F32}),
    "ComfyUI FP8": ("weight", {"weight": E5M2, "scale_weight": F32}),
    "FP8 without scales": ("weight", {"weight": E5M2}),
    "MX": ("weight", {"weight": FP4, "weight_scale": E8M0}),
    "bitsandbytes 8-bit": ("weight", {"weight": I8, "SCB": F32, "weight_format": U8}),
    "bitsandbytes 4-bit": (
        "weight",
        {"weight": U8, "weight.absmax": F32, "weight.quant_map": F32, "weight.nested_absmax": F32},
    ),
    "EETQ": ("weight", {"weight": I8, "weight_scales": F16}),
    "MLX": ("weight", {"weight": U32, "scales": F16, "biases": F16}),
    "MXFP4": ("w_blocks", {"w_blocks": U8, "w_scales": U8, "w_bias": F16}),
    "HQQ": ("W_q", {"W_q": U8, "scale": F16, "zero": F16}),
    "quanto": ("weight._data", {"weight._data": I8, "weight._scale": F16, "input_scale": F16}),
    "torchao": ("_weight_qdata", {"_weight_qdata": I8, "_weight_scale": F16}),
    "AQLM": ("codes", {"codes": I16, "codebooks": F16, "scales": F16}),
    "VPTQ": ("indices", {"indices": I16, "centroids.weight": F16}),
    "EXL2": ("q_weight", {"q_weight": I32, "q_scale": I32, "q_scale_max": F16}),
    "EXL3": ("trellis", {"trellis": I16, "suh": F16, "svh": F16}),
    "QuIP#": ("Qidxs", {"Qidxs": I16, "SU": F16, "SV": F16}),
    "Marlin": ("B", {"B": I32, "s": F16}),
}
VECTORS = {"g_idx", "suh", "SU", "weight.quant_map"}


def layer(dtypes: dict[str, torch.dtype]) -> Tensors:
    """A tensor of each dtype, and a matrix that is not quantized."""
    bits = torch.arange(1, 129, dtype=U8).reshape(4, 32)
    tensors = {}
    for name, dtype in dtypes.items():
        tensor = bits.view(dtype).clone()
        tensors[f"layers.0.up.{name}"] = tensor.flatten() if name in VECTORS else tensor
    return tensors | {"head.weight": torch.ones(2, 3)}


@pytest.mark.parametrize("name", QUANTIZED)
def test_a_quantized_weight_is_refused_by_name(name: str) -> None:
    """A code of 0 is not the value 0, and weights that lose their scale are all zero."""
    codes, dtypes = QUANTIZED[name]
    tensors = layer(dtypes)
    assert list(quantized(tensors)) == [f"layers.0.up.{codes}"]
    with pytest.raises(ValueError, match=f"layers.0.up.{codes}.*--exclude") as raised:
        choose(tensors)
    assert next(iter(quantized(tensors).values())) in str(raised.value)


@pytest.mark.parametrize("name", QUANTIZED)
def test_scales_are_not_ranked_where_the_codes_are_left_out(name: str) -> None:
    codes, dtypes = QUANTIZED[name]
    tensors = layer(dtypes)
    assert list(choose(tensors, exclude=[f"layers*.{codes}"])) == ["head.weight"]


def test_the_command_refuses_a_quantized_file(tmp_path: Path) -> None:
    source = save(tmp_path / "x.safetensors", layer(QUANTIZED["DeepSeek FP8"][1]))
    before = contents(tmp_path)
    done = prune(source, tmp_path / "y.safetensors", amount=0.2)
    assert_refused(done)
    assert "'layers.0.up.weight' (FP8)" in done.stderr
    assert contents(tmp_path) == before
    done = prune(source, tmp_path / "y.safetensors", "--exclude", "layers*", "--json", amount=0.2)
    assert [row["name"] for row in json.loads(done.stdout)["tensors"]] == ["head.weight"]


def test_buffers_of_constants_are_no_weights() -> None:
    """The causal masks of an old GPT-2 file, and others that models save."""
    square = torch.ones(8, 8)
    weights = {
        *("wte.weight", "wpe.weight", "h.0.attn.c_attn.weight", "mask_decoder.conv.weight"),
        *(
            "index.weight",
            "filter.weight",
            "experts.gate_up_proj",
            "fc.weight_v",
            "rnn.weight_hh_l0",
        ),
        "parametrizations.weight.original1",
    }
    others = {
        *("h.0.attn.bias", "h.0.attn.causal_mask", "blocks.0.attn_mask", "sa.heads.0.tril"),
        *("rotary_emb.cos_cached", "rotary_emb.sin_cached", "freqs_cis", "pos_encoder.pe"),
        *("alibi", "anchors", "anchor_grid", "stft.forward_basis_buffer", "mel_scale.fb"),
        *("experts.gate_up_proj_bias", "cls_token", "pos_embed", "layer_scale", "logit_scale"),
        *("relative_coords_table", "pool.filt", "up.lowpass.filter", "mel_filters"),
        *("fc.weight_g", "parametrizations.weight.original0", "rotation.hadamard"),
    }
    tensors = dict.fromkeys(weights | others, square)
    assert set(choose(tensors)) == weights
    assert set(left_out(tensors)) == others


def test_a_whole_name_is_taken_whatever_it_says() -> None:
    tensors = dict.fromkeys(["a.pos_embed", "a.mask", "a.weight"], torch.ones(2, 2))
    assert set(choose(tensors, include=["a.*"])) == {"a.weight"}
    assert set(choose(tensors, include=["a.mask", "a.pos_embed"])) == {"a.mask", "a.pos_embed"}


def test_what_is_left_out_is_printed_with_the_reason(tmp_path: Path) -> None:
    tensors = example() | {
        "h.attn.bias": torch.ones(1, 1, 4, 4).tril(),
        "position_ids": torch.arange(4)[None],
        "empty": torch.ones(0, 2),
        "skipped.weight": torch.ones(2, 2),
    }
    source, out = save(tmp_path / "x.safetensors", tensors), tmp_path / "y.safetensors"
    done = prune(source, out, "--exclude", "skipped.*", "--json")
    reasons = json.loads(done.stdout)["left_out"]
    want = {
        "h.attn.bias": "bias",
        "position_ids": "int64",
        "empty": "without entries",
        "skipped.weight": "--exclude",
        "layer0.bias": "fewer than two dimensions",
    }
    assert reasons.keys() == want.keys()
    assert all(word in reasons[name] for name, word in want.items())
    shown = prune(source, out, "--exclude", "skipped.*", "--force").stdout
    assert all(f"1 {reason}: {name}\n" in shown for name, reason in reasons.items())


@pytest.mark.parametrize(
    ("options", "pruned"),
    [
        ((), {"layer0.weight", "layer0.wide", "layer1.weight", "layer1.wide"}),
        (("--include", "layer0.*"), {"layer0.weight", "layer0.wide"}),
        (
            ("--include", "*1.wide", "--include", "layer0.w*"),
            {"layer0.weight", "layer0.wide", "layer1.wide"},
        ),
        (("--exclude", "*.wide", "--exclude", "layer1.b*"), {"layer0.weight", "layer1.weight"}),
        (("--include", "layer1.*", "--exclude", "*.weight"), {"layer1.wide"}),
    ],
)
def test_globs_choose(tmp_path: Path, options: tuple[str, ...], pruned: set[str]) -> None:
    source = save(tmp_path / "x.safetensors", example(0) | example(1))
    done = prune(source, tmp_path / "y.safetensors", "--json", *options)
    assert {row["name"] for row in json.loads(done.stdout)["tensors"]} == pruned
