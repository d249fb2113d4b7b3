"""Show that the tests kill every fault of tests/faults.py: `python -m tests.mutations`.

The faults are applied one at a time to a copy in a temporary folder, where the tests that a fault
names must fail. First the same tests must pass without a fault. Every run draws its own examples;
they are those of the quick profile, but nothing is shrunk, since only the failure counts.

Exit code 1 if a fault survives, no longer applies, or breaks the tests otherwise than by a failure.
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
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from tests.faults import FAULTS, Fault

ROOT = Path(__file__).resolve().parent.parent
COPIED = ("gprune", "tests", "pyproject.toml")
TIMEOUT = 300

# appended to tests/conftest.py of the copy
WITHOUT_SHRINKING = """
from hypothesis import Phase

settings.register_profile(
    "mutations",
    settings.get_profile("quick"),
    phases=[Phase.explicit, Phase.generate],
    database=None,
)
settings.load_profile("mutations")
"""


class Result(NamedTuple):
    """What became of a fault.

    Attributes:
        verdict: "killed", "survived", "does not apply", "timed out", or "broken" if the tests
            could not run.
        by: the test that failed first, or what else there is to say.
        seconds: how long the tests took.
    """

    verdict: str
    by: str
    seconds: float


def times_found(fault: Fault, root: Path = ROOT) -> int:
    return (root / fault.file).read_text(encoding="utf-8").count(fault.old)


def mutated(fault: Fault, root: Path = ROOT) -> str:
    """Give the text of the file with the fault in it."""
    return (root / fault.file).read_text(encoding="utf-8").replace(fault.old, fault.new)


def copy_tree(source: Path, target: Path) -> None:
    for name in COPIED:
        if (source / name).is_dir():
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(source / name, target / name, ignore=ignored)
        else:
            shutil.copy(source / name, target / name)


def run_tests(folder: Path, tests: Sequence[str]) -> tuple[int, str]:
    """Run tests in a copy; give pytest's exit code (-1 if out of time) and its output."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(folder),
        "PYTHONDONTWRITEBYTECODE": "1",
        "HYPOTHESIS_PROFILE": "quick",
        "OMP_NUM_THREADS": "1",
    }
    options = ["-x", "-q", "-n", "0", "-p", "no:cacheprovider", "--tb=line"]
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


def judge(fault: Fault, pristine: Path) -> Result:
    """Run a fault's tests on a copy that has the fault."""
    found = times_found(fault, pristine)
    if found != 1:
        return Result("does not apply", f"its text is in {fault.file} {found} times", 0.0)
    with tempfile.TemporaryDirectory() as folder:
        copy_tree(pristine, Path(folder))
        (Path(folder) / fault.file).write_text(mutated(fault, pristine), encoding="utf-8")
        start = time.perf_counter()
        code, output = run_tests(Path(folder), fault.tests)
        seconds = time.perf_counter() - start
    if code == 0:
        return Result("survived", ", ".join(fault.tests), seconds)
    failed = re.search(r"^FAILED \S*?::(.+?)(?: - |$)", output, re.MULTILINE)
    if code == 1 and failed:
        return Result("killed", failed[1], seconds)
    return Result("timed out" if code == -1 else "broken", output.strip()[-500:], seconds)


def run_all(faults: Sequence[Fault], jobs: int, console: Console) -> dict[str, Result] | None:
    """Judge the faults; nothing comes of it if the tests fail without one."""
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
        code, output = run_tests(pristine, sorted({test for one in faults for test in one.tests}))
        if code:
            console.print(output[-3000:], markup=False, highlight=False)
            return None
        with ThreadPoolExecutor(jobs) as pool:
            futures = {pool.submit(judge, fault, pristine): fault for fault in faults}
            for future in as_completed(futures):
                name, result = futures[future].name, future.result()
                results[name] = result
                if result.verdict != "killed":
                    progress.console.print(f"{name}: {result.verdict}", style="bold red")
                progress.update(bar, advance=1, description=name)
    return results


def report(faults: Sequence[Fault], results: dict[str, Result]) -> Table:
    table = Table("fault", "file", "verdict", "by", "s")
    for fault in faults:
        verdict, by, seconds = results[fault.name]
        style = "green" if verdict == "killed" else "bold red"
        file = fault.file.removeprefix("gprune/")
        table.add_row(fault.name, file, f"[{style}]{verdict}[/]", escape(by), f"{seconds:.1f}")
    return table


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.mutations", description=__doc__)
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
    killed = sum(result.verdict == "killed" for result in results.values())
    seconds = time.perf_counter() - start
    console.print(f"{killed} of {len(faults)} faults killed in {seconds:.0f} s")
    return 0 if killed == len(faults) else 1


if __name__ == "__main__":
    sys.exit(main())
