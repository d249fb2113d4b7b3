"""Show that the tests notice every fault of this folder: `python -m tests.faults`.

The faults are planted one at a time in a copy in a temporary folder, where the tests that a fault
names must fail. First the same tests must pass without a fault. Every run draws its own examples:
as many as in the quick profile without a fault, and eight times as many with one. They are not
shrunk, because only the failure counts.

The exit code is 1 if a fault survives, if it no longer applies, or if its tests break otherwise
than by a failure.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from tests.faults import Fault

FOLDER = Path(__file__).resolve().parent
ROOT = FOLDER.parents[1]
CODE = ("__init__", "__main__", "plant", "test_faults")
AREAS = sorted(path.stem for path in FOLDER.glob("*.py") if path.stem not in CODE)
FAULTS: list[Fault] = [
    fault for area in AREAS for fault in import_module(f"tests.faults.{area}").FAULTS
]
COPIED = ("gprune", "tests", "pyproject.toml")
TIMEOUT = 300
EXAMPLES = 25

# appended to tests/conftest.py of the copy
WITHOUT_SHRINKING = """
from hypothesis import Phase

settings.register_profile(
    "faults",
    settings.get_profile("quick"),
    max_examples=int(os.environ["EXAMPLES"]),
    phases=[Phase.explicit, Phase.generate],
    database=None,
)
settings.load_profile("faults")
"""


class Result(NamedTuple):
    """What became of a planted fault.

    Attributes:
        outcome: "killed", "survived", "does not apply", "timed out", or "broken" if the tests
            could not run.
        by: the test that failed first, or what else there is to say.
        seconds: how long the tests took.
    """

    outcome: str
    by: str
    seconds: float


def times_found(fault: Fault, root: Path = ROOT) -> int:
    return (root / fault.file).read_text(encoding="utf-8").count(fault.old)


def planted(fault: Fault, root: Path = ROOT) -> str:
    """Give the text of the file with the fault in it."""
    return (root / fault.file).read_text(encoding="utf-8").replace(fault.old, fault.new)


def copy_tree(source: Path, target: Path) -> None:
    for name in COPIED:
        if (source / name).is_dir():
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(source / name, target / name, ignore=ignored)
        else:
            shutil.copy(source / name, target / name)


def run_tests(folder: Path, tests: Sequence[str], examples: int) -> tuple[int, str]:
    """Run tests in a copy; give pytest's exit code (-1 if out of time) and its output."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(folder),
        "PYTHONDONTWRITEBYTECODE": "1",
        "HYPOTHESIS_PROFILE": "quick",
        "EXAMPLES": str(examples),
        "OMP_NUM_THREADS": "1",
    }
    options = [
        "-x",
        "-q",
        "-n",
        "0",
        "-m",
        "long or not long",
        "-p",
        "no:cacheprovider",
        "--tb=line",
    ]
    try:
        done = subprocess.run(
            [sys.executable, "-m", "pytest", *options, *tests],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=TIMEOUT,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return -1, ""
    return done.returncode, done.stdout + done.stderr


def plant(fault: Fault, pristine: Path) -> Result:
    """Run a fault's tests on a copy that has the fault."""
    found = times_found(fault, pristine)
    if found != 1:
        return Result("does not apply", f"its text is in {fault.file} {found} times", 0.0)
    with tempfile.TemporaryDirectory() as folder:
        copy_tree(pristine, Path(folder))
        (Path(folder) / fault.file).write_text(planted(fault, pristine), encoding="utf-8")
        start = time.perf_counter()
        code, output = run_tests(Path(folder), fault.tests, EXAMPLES * 8)
        seconds = time.perf_counter() - start
    if code == 0:
        return Result("survived", ", ".join(fault.tests), seconds)
    failed = re.search(r"^FAILED \S*?::(.+?)(?: - |$)", output, re.MULTILINE)
    if code == 1 and failed:
        return Result("killed", failed[1], seconds)
    return Result("timed out" if code == -1 else "broken", output.strip()[-500:], seconds)


def run_all(faults: Sequence[Fault], jobs: int, console: Console) -> dict[str, Result] | None:
    """Plant each fault; return nothing if the tests fail without any."""
    results: dict[str, Result] = {}
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()
    with (
        tempfile.TemporaryDirectory() as folder,
        Progress(*columns, TimeElapsedColumn(), console=console) as progress,
    ):
        pristine = Path(folder)
        copy_tree(ROOT, pristine)
        with (pristine / "tests" / "conftest.py").open("a", encoding="utf-8") as conftest:
            conftest.write(WITHOUT_SHRINKING)
        bar = progress.add_task("without a fault", total=len(faults))
        tests = sorted({test for one in faults for test in one.tests})
        code, output = run_tests(pristine, tests, EXAMPLES)
        if code:
            console.print(output[-3000:], markup=False, highlight=False)
            return None
        with ThreadPoolExecutor(jobs) as pool:
            futures = {pool.submit(plant, fault, pristine): fault for fault in faults}
            for future in as_completed(futures):
                name, result = futures[future].name, future.result()
                results[name] = result
                if result.outcome != "killed":
                    progress.console.print(f"{name}: {result.outcome}", style="bold red")
                progress.update(bar, advance=1, description=name)
    return results


def report(faults: Sequence[Fault], results: dict[str, Result]) -> Table:
    table = Table("fault", "file", "outcome", "by", "s")
    for fault in faults:
        outcome, by, seconds = results[fault.name]
        style = "green" if outcome == "killed" else "bold red"
        file = fault.file.removeprefix("gprune/")
        table.add_row(fault.name, file, f"[{style}]{outcome}[/]", escape(by), f"{seconds:.1f}")
    return table


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--only", action="append", metavar="NAME", help="this fault (repeatable)")
    parser.add_argument("--list", action="store_true", help="list the faults and run nothing")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="faults at a time")
    arguments = parser.parse_args()
    console = Console()
    faults = [one for one in FAULTS if not arguments.only or one.name in arguments.only]
    if unknown := set(arguments.only or []) - {one.name for one in faults}:
        parser.error(f"no such fault: {', '.join(sorted(unknown))}; see --list")
    if arguments.list:
        for one in faults:
            console.print(f"{one.name} ({one.file})", markup=False, highlight=False)
        return 0
    start = time.perf_counter()
    results = run_all(faults, arguments.jobs, console)
    if results is None:
        console.print("the tests fail without a fault, so nothing is shown", style="bold red")
        return 1
    console.print(report(faults, results))
    killed = sum(result.outcome == "killed" for result in results.values())
    seconds = time.perf_counter() - start
    console.print(f"{killed} of {len(faults)} faults killed in {seconds:.0f} s")
    return 0 if killed == len(faults) else 1
