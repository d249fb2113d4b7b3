"""README and RESULTS.md: blocks and commands run, and figures come from the results."""

import json
import os
import re
import shlex
import subprocess
import sys
from codeop import compile_command
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from gprune.cli.app import app
from tests.bench import evidence, layer_shuffle, llm, minilm, pages
from tests.readme_blocks import ALONE, BLOCKS, COMMANDS, OUTPUTS, PYTHON, README, TOGETHER, run
from tests.support import language_models

ROOT = Path(__file__).parent.parent
TABLES = (ROOT / "tests" / "bench" / "RESULTS.md").read_text(encoding="utf-8")
PROSE = re.sub(r"^```.*?^```$", "", README, flags=re.M | re.S)


def section(page: str, name: str) -> str:
    return page.partition(f"<!-- {name} -->\n")[2].partition(f"<!-- /{name} -->\n")[0]


@pytest.mark.slow
@pytest.mark.parametrize("block", ALONE, ids=lambda block: block.strip().splitlines()[2][:40])
def test_python_block(block: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(block, tmp_path)
    printed = re.findall(r"^print\(.*\)  # (.*)$", block, re.M)
    output = capsys.readouterr().out
    assert all(text in output for text in printed)


@pytest.mark.parametrize("block", ALONE, ids=lambda block: block.strip().splitlines()[2][:40])
def test_python_block_can_be_pasted_at_a_prompt(block: str) -> None:
    """At a prompt, an indented block ends with an empty line."""
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
    # torch sometimes aborts a gloo process at its exit, after all work is done, so exit before that
    script.write_text(f"{block}\nimport os\n\nos._exit(0)\n")
    run = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    subprocess.run([*run, str(script)], check=True, env=environment)


def test_what_the_blocks_are() -> None:
    assert {language for language, _ in BLOCKS} == {"python", "text", "console", "bibtex"}
    assert len(PYTHON) == 6


def test_blocks_are_at_most_ten_lines() -> None:
    """Empty lines and imports not counted."""
    for block in PYTHON:
        lines = [line for line in block.splitlines() if line]
        assert len([line for line in lines if not re.match("import|from", line)]) <= 10


def test_the_first_block_prints_what_readme_shows(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(PYTHON[0], tmp_path)
    [shown] = OUTPUTS
    assert capsys.readouterr().out == shown


def test_the_two_commands_are_those_of_the_extras_and_of_ci() -> None:
    [commands] = COMMANDS
    demo, tests = commands.splitlines()
    assert demo == 'pip install -e ".[demo]" && gprune demo'
    assert tests == 'pip install -e ".[dev]" && pytest'
    assert tests in (ROOT / ".ci" / "run").read_text()


def test_the_command_for_language_models_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("transformers")  # of an extra of its own
    [command] = re.findall(r"`(gprune prune [^`]+)`", README)
    language_models.save_model(tmp_path / "model", language_models.llama())
    (tmp_path / "text.txt").write_text(language_models.TEXT * 70)
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, shlex.split(command)[1:])
    assert done.exit_code == 0, done.output
    assert (tmp_path / "pruned" / "model.safetensors").exists()


def test_readme_is_short() -> None:
    assert len(README.splitlines()) <= 170


def test_every_figure_of_readme_is_in_the_results() -> None:
    """Editing a figure by hand fails: they come from results.json and llm.json."""
    shown = section(README, "figures")
    assert shown == pages.quoted()
    numbers = re.findall(r"\[([\d.]+)\]\(tests/bench/RESULTS.md#([\w-]+)\)", shown)
    headings = re.findall(r"^#+ (.*)$", TABLES, re.M)
    anchors = {re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in headings}
    assert 1 <= len(numbers) <= 8
    assert {anchor for _, anchor in numbers} <= anchors


NUMBERS = {"2:4", "3.11", "2.10", "0.5", "90", "98", "2.0", "200,000"}
"""Numbers of README that are no results: versions, amounts, a pattern, the size of a row."""


def test_no_other_number_is_in_the_prose() -> None:
    rest = re.sub(r"\]\([^)]*\)", "]", PROSE.replace(section(README, "figures"), ""))
    found = set(re.findall(r"\d[\d.,:]*\d|\d", rest))
    assert {number for number in found if not re.fullmatch(r"0\d", number)} == NUMBERS
    assert "200,000 weights" in section(README, "figures")


@pytest.mark.parametrize("script", [evidence, layer_shuffle, minilm])
def test_the_tables_are_those_of_their_results(script: Any) -> None:
    name = script.RESULTS.stem.replace("_", " ")
    assert section(TABLES, name) == script.table(json.loads(script.RESULTS.read_text()))


def test_the_other_tables_are_those_of_their_results() -> None:
    assert section(TABLES, "figures") == pages.table()
    assert section(TABLES, "language model") == llm.page(llm.load())


def test_every_link_within_the_repository_leads_somewhere() -> None:
    links = re.findall(r"\]\(([^)#]+)", PROSE)
    assert all((ROOT / link).exists() for link in links if "://" not in link)
    assert len(links) >= 10


def test_every_notebook_is_listed() -> None:
    numbers = re.findall(r"\b(0\d) ", PROSE.partition("notebooks/`](notebooks):")[2])
    assert numbers == [path.name[:2] for path in sorted((ROOT / "notebooks").glob("*.ipynb"))]


def test_every_picture_is_in_the_repository() -> None:
    """It is committed, not only on one machine."""
    pictures = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", README)
    assert pictures
    assert all((ROOT / picture).stat().st_size < 400_000 for picture in pictures)
    if (ROOT / ".git").exists():
        tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
        assert set(pictures) <= set(tracked.stdout.splitlines())
