"""`gprune demo` from end to end at few steps."""

import os
import re
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


def run_demo(folder: Path) -> subprocess.CompletedProcess[str]:
    """Run `gprune demo` as a user would, with the package that the tests themselves import."""
    root = str(Path(__file__).parents[2])
    path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
    plain = {k: v for k, v in os.environ.items() if k not in ("FORCE_COLOR", "PYTHONWARNINGS")}
    return subprocess.run(
        [sys.executable, "-m", "gprune", "demo", "--steps", "45"],
        cwd=folder,
        env={**plain, "COLUMNS": "80", "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.mark.slow
def test_demo(tmp_path: Path) -> None:
    from matplotlib.image import imread  # takes a second to import

    demo = run_demo(tmp_path)
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

    assert re.search(r"torch \d.* Python \d.*: \d+ s", demo.stdout)

    picture = tmp_path / "gprune-demo.png"
    pixels = imread(picture)[..., :3]
    assert picture.stat().st_size < 400_000
    assert 0.01 < (pixels.min(axis=-1) < 0.9).mean() < 0.5, "blank, or no paper left"


def test_too_few_steps_are_refused() -> None:
    shown = CliRunner().invoke(app, ["demo", "--steps", "3"])
    assert shown.exit_code == 2


def test_the_file_that_pytest_does_not_collect_has_no_examples() -> None:
    """`addopts` in pyproject.toml names it, so no doctest in it would run."""
    file = Path(__file__).parents[2] / "gprune" / "cli" / "demo.py"
    assert ">>>" not in file.read_text(encoding="utf-8")


@pytest.mark.parametrize("picture", ["x.jpg", "nowhere/x.png"])
def test_a_picture_that_cannot_be_written(picture: str, tmp_path: Path) -> None:
    """The error comes before the training."""
    done = CliRunner().invoke(app, ["demo", "--picture", str(tmp_path / picture)])
    assert done.exit_code == 2
    assert "must end in .png" in " ".join(done.stderr.replace("│", " ").split())
