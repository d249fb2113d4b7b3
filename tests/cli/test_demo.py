"""`gprune demo` from end to end at few steps, with and without a compiler."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from gprune.cli.app import app

ENTRIES = 64 * 300 + 300 * 100 + 100 * 10
ROW = re.compile(
    r"(?P<run>dense|gradual|one-shot|random) +(?P<asked>\d+)% +(?P<pruned>[\d,]+) +"
    r"(?P<expected>[\d,]+) +(?P<accuracy>[\d.]+)%(?P<densities>( +[\d.]+%){3})"
)
RUNS = {("dense", 0)} | {
    (method, asked) for asked in (90, 98) for method in ("gradual", "one-shot", "random")
}
COMPILER = shutil.which(os.environ.get("CXX", "g++"))


def run_demo(folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run `gprune demo` as a user would, with the package that the tests themselves import."""
    root = str(Path(__file__).parents[2])
    path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
    plain = {k: v for k, v in os.environ.items() if k not in ("FORCE_COLOR", "PYTHONWARNINGS")}
    return subprocess.run(
        [sys.executable, "-m", "gprune.cli", "demo", "--steps", "45"],
        cwd=folder,
        env={**plain, "COLUMNS": "80", "PYTHONPATH": path, **environment},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def assert_demo_delivers(demo: subprocess.CompletedProcess[str], folder: Path) -> None:
    from matplotlib.image import imread  # takes a second to import

    assert demo.returncode == 0, demo.stdout + demo.stderr
    assert "Warning" not in demo.stderr
    assert max(map(len, demo.stdout.splitlines()[:20])) <= 80, "the table breaks in a terminal"

    rows = [row.groupdict() for row in ROW.finditer(demo.stdout)]
    assert {(row["run"], int(row["asked"])) for row in rows} == RUNS
    for row in rows:
        asked = round(int(row["asked"]) / 100 * ENTRIES)
        assert row["pruned"] == row["expected"] == f"{asked:,}", row
        first, second, third = (float(d) for d in row["densities"].replace("%", "").split())
        kept = (64 * 300 * first + 300 * 100 * second + 100 * 10 * third) / 100
        assert kept == pytest.approx(ENTRIES - asked, abs=5), "densities do not add up"

    assert "Counts: every run pruned exactly what was asked." in demo.stdout
    assert "Compilations of the step: 1 for all 7 runs" in demo.stdout
    assert "the masks agree" in demo.stdout
    assert re.search(r"torch \d.* Python \d.*: \d+ s", demo.stdout)

    picture = folder / "gprune-demo.png"
    pixels = imread(picture)[..., :3]
    assert picture.stat().st_size < 400_000
    assert 0.01 < (pixels.min(axis=-1) < 0.9).mean() < 0.5, "blank, or no paper left"


@pytest.mark.long
@pytest.mark.skipif(not COMPILER, reason="needs a C++ compiler")
def test_demo_with_inductor(tmp_path: Path) -> None:
    demo = run_demo(tmp_path)
    assert_demo_delivers(demo, tmp_path)
    assert "(backend inductor)" in demo.stdout


@pytest.mark.long
def test_demo_without_compiler(tmp_path: Path) -> None:
    # the cache of another run could hold what the trial would compile
    demo = run_demo(tmp_path, CXX=str(tmp_path / "none"), TORCHINDUCTOR_CACHE_DIR=str(tmp_path))
    assert_demo_delivers(demo, tmp_path)
    assert "(backend aot_eager)" in demo.stdout
    line = 'No C++ compiler: the same step runs with backend="aot_eager".'
    assert demo.stdout.splitlines().count(line) == 1


def test_too_few_steps_are_refused() -> None:
    shown = CliRunner().invoke(app, ["demo", "--steps", "3"])
    assert shown.exit_code == 2


def test_the_files_that_pytest_does_not_collect_have_no_examples() -> None:
    """`addopts` in pyproject.toml names them, so no doctest of theirs would run."""
    files = list((Path(__file__).parents[2] / "gprune" / "cli").glob("demo*"))
    assert len(files) == 3
    assert not [file.name for file in files if ">>>" in file.read_text(encoding="utf-8")]
