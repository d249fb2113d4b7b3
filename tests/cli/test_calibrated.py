"""`gprune prune --calibrate` from end to end: a folder that loads as it is, and bad options."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from gprune import checkpoints
from gprune.cli.calibrated import resolve_options
from tests.support import language_models
from tests.support.checkpoint_commands import assert_refused, example, prune, run
from tests.support.checkpoint_files import contents, save, zeroed
from tests.support.language_models import save_model, save_text

NEEDS_TEXT = {
    "--score wanda": ("--score", "wanda"),
    "--method sparsegpt": ("--method", "sparsegpt"),
    "--method rows": ("--method", "rows"),
    "--refit": ("--refit",),
    "--tokens": ("--tokens", "9"),
    "--length": ("--length", "9"),
    "an amount n:m": ("--amount", "2:4"),
}


@pytest.mark.parametrize("option", NEEDS_TEXT)
def test_options_that_need_a_text(tmp_path: Path, option: str) -> None:
    source = save(tmp_path / "x.safetensors", example())
    done = prune(source, tmp_path / "y.safetensors", *NEEDS_TEXT[option])
    assert_refused(done)
    assert f"{option} can only be used with --calibrate TEXT" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["x.safetensors"]


@pytest.mark.parametrize("amount", ["2:", ":4", "2:4:8", "-2:4", "2:x", "a half"])
def test_amounts_that_are_none(tmp_path: Path, amount: str) -> None:
    done = prune(save(tmp_path / "x.safetensors", example()), tmp_path / "y", f"--amount={amount}")
    assert_refused(done)
    assert f"got {amount!r}" in done.stderr


def test_scores_and_methods_with_a_text() -> None:
    wanda, sparsegpt = {"score": "wanda", "method": "rows"}, {"score": None, "method": "sparsegpt"}
    assert resolve_options("wanda", None) == resolve_options("wanda", "rows") == wanda
    assert resolve_options(None, "sparsegpt") == sparsegpt
    for score, method in [
        (None, None),
        ("magnitude", None),
        ("magnitude", "rows"),
        ("wanda", "global"),
        ("wanda", "layerwise"),
        (None, "rows"),
    ]:
        with pytest.raises(checkpoints.CheckpointError, match="--calibrate is for --score wanda"):
            resolve_options(score, method)
    with pytest.raises(checkpoints.CheckpointError, match="leave out --score"):
        resolve_options("wanda", "sparsegpt")


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder beside its text."""
    pytest.importorskip("transformers")  # of an extra of its own
    folder = tmp_path_factory.mktemp("language")
    save_text(folder / "text.txt")
    return save_model(folder / "model", language_models.llama(torch.bfloat16))


def calibrate(model: Path, out: Path, *options: Any, amount: Any = 0.5) -> Any:
    text = "--calibrate", model.parent / "text.txt", "--tokens", 300
    return prune(model, out, *text, *options, amount=amount)


def density(folder: Path) -> dict[str, float]:
    rows = json.loads(run("report", folder, "--json").stdout)["tensors"]
    return {row["name"]: row["density"] for row in rows}


@pytest.mark.slow
@pytest.mark.parametrize(
    "options", [("--score", "wanda"), ("--method", "sparsegpt"), ("--score", "wanda", "--refit")]
)
@pytest.mark.parametrize("amount", ["0.5", "2:4"])
def test_the_folder_loads_as_it_is(
    tmp_path: Path, llama: Path, options: tuple[str, ...], amount: str
) -> None:
    from transformers import AutoModelForCausalLM

    out = tmp_path / "out"
    done = calibrate(llama, out, *options, "--json", amount=amount)
    assert (done.exit_code, done.stderr) == (0, "")
    printed = json.loads(done.stdout)
    pruned = {row["name"]: row["pruned"] / row["entries"] for row in printed["tensors"]}
    assert len(pruned) == 14
    assert set(pruned.values()) == {0.5}
    assert printed["amount"] == (amount if ":" in amount else 0.5)
    assert printed["written"]
    assert printed["refit"] is ("--refit" in options)
    assert printed["tokens"] == 300
    assert printed["left_out"]["lm_head.weight"] == "outside of the linear layers of the blocks"

    was, now = contents(llama), contents(out)
    assert {name for name in was if was[name] != now[name]} == {"model.safetensors"}
    assert was.keys() == now.keys()
    before, after = load_file(llama / "model.safetensors"), load_file(out / "model.safetensors")
    kept = {name: after[name] != 0 for name in pruned}
    if options == ("--score", "wanda"):
        assert now["model.safetensors"] == zeroed(was["model.safetensors"], kept)
    for name, tensor in before.items():
        assert after[name].dtype == tensor.dtype
        is_equal = torch.equal(
            after[name], torch.where(kept.get(name, torch.tensor(1.0)) != 0, tensor, 0)
        )
        assert is_equal == (options == ("--score", "wanda") or name not in pruned)
    model = AutoModelForCausalLM.from_pretrained(out)
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in after.items())


@pytest.mark.slow
def test_shards_are_kept(tmp_path: Path) -> None:
    pytest.importorskip("transformers")  # of an extra of its own, too
    save_text(tmp_path / "text.txt")
    model = save_model(tmp_path / "model", language_models.gpt2(), max_shard_size="60KB")
    shards = sorted(path.name for path in model.glob("*.safetensors"))
    assert len(shards) > 1
    shown = calibrate(model, tmp_path / "out", "--score", "wanda", "--length", 50)
    assert (shown.exit_code, shown.stderr) == (0, "")
    assert "transformer.h.0.attn.c_attn.weight" in shown.stdout
    assert "2 outside of the linear layers of the blocks: transformer.wpe.weight" in shown.stdout
    assert "Written to" in shown.stdout
    assert sorted(path.name for path in (tmp_path / "out").glob("*.safetensors")) == shards
    matrices = {name: d for name, d in density(tmp_path / "out").items() if ".c_" in name}
    assert {d for name, d in matrices.items() if name.endswith("weight")} == {0.5}


@pytest.mark.slow
def test_a_dry_run_counts_and_writes_nothing(tmp_path: Path, llama: Path) -> None:
    done = calibrate(llama, tmp_path / "out", "--method", "sparsegpt", "--dry-run", "--json")
    total = json.loads(done.stdout)["total"]
    assert total == {"entries": 15_360, "pruned": 7_680, "zeros": 7_680, "density": 0.5}
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_too_few_tokens_are_a_warning_of_one_line(tmp_path: Path, llama: Path) -> None:
    done = calibrate(llama, tmp_path / "out", "--method", "sparsegpt", "--tokens", 40)
    assert done.exit_code == 0
    lines = done.stderr.splitlines()
    assert lines == [line for line in lines if line.startswith("gprune: warning: ")]
    assert len(lines) == len(set(lines)) == 1
    assert "has 48 inputs and got 40 rows" in lines[0]


@pytest.mark.slow
def test_bad_input_changes_nothing(tmp_path: Path, llama: Path) -> None:
    folder = shutil.copytree(llama, tmp_path / "model")
    save_text(tmp_path / "text.txt")
    gguf = tmp_path / "gguf"
    gguf.mkdir()
    (gguf / "model.gguf").write_bytes(b"GGUF\x03" + bytes(40))
    (gguf / "config.json").write_text("{}")
    before = contents(tmp_path)
    wanda = "--score", "wanda"
    for model, options, words in [
        (folder, (*wanda, "--tokens", 999), "has 312 tokens, but 999 are asked for"),
        (folder, (*wanda, "--calibrate", tmp_path / "none"), "No such file or directory"),
        (folder, (*wanda, "--exclude", "model.layers.*"), "nothing to prune"),
        (folder, (*wanda, "--amount", "33"), "model.layers.0"),
        (folder, (*wanda, "--amount", "5:4"), "n must be from 0 to m"),
        (folder, (*wanda, "--amount", "80.0"), "got 80.0"),
        (folder, ("--score", "lamp"), "--calibrate is for --score wanda"),
        (folder / "model.safetensors", wanda, "is not a folder with a model of transformers"),
        (gguf, wanda, "model.gguf is a GGUF file; prune the checkpoint that it was made from"),
    ]:
        done = calibrate(model, tmp_path / "out", *options)
        assert_refused(done)
        assert words in done.stderr
    assert contents(tmp_path) == before


@pytest.mark.slow
def test_the_bar_has_a_step_for_each_block(
    tmp_path: Path, llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gprune.cli import calibrated as command

    bars = []

    def step_bar() -> Any:
        bars.append(make())
        return bars[0]

    make = command.step_bar
    monkeypatch.setattr(command, "step_bar", step_bar)
    assert calibrate(llama, tmp_path / "out", "--score", "wanda").exit_code == 0
    [task] = bars[0].tasks
    assert (task.completed, task.total) == (2, 2)
    assert bars[0].disable
    assert bars[0].console.stderr
