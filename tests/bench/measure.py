"""Measuring: both sides in one process, in turn; memory in a process of its own."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

Side = Callable[[], Any]


def medians(*sides: Side, rounds: int = 5) -> list[float]:
    """Run the sides in turn, once to warm up and then `rounds` times; give each one's median."""
    seconds: list[list[float]] = [[] for _ in sides]
    for side in sides:
        side()
    for _ in range(rounds):
        for side, times in zip(sides, seconds, strict=True):
            start = time.perf_counter()
            side()
            times.append(time.perf_counter() - start)
    return [median(times) for times in seconds]


def ratio(over: Side, under: Side, rounds: int = 5) -> float:
    """Give the median time of the first side over that of the second."""
    first, second = medians(over, under, rounds=rounds)
    return first / second


PEAK = """
def resident(field):
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(field))

{setup}
open("/proc/self/clear_refs", "w").write("5")  # the peak starts anew
before = resident("VmRSS")
kept = {call}
print(resident("VmHWM") - before)
"""


def peak(setup: str, call: str) -> float:
    """Give the peak growth of the resident set during a call, in MiB, in a fresh process.

    The setup should make a similar call first, so that code loaded on first use does not count.
    Freed memory is given back to the system at once, so that the order of frees does not count.
    """
    script = PEAK.format(setup=setup, call=call)
    return float(python(script, MALLOC_ARENA_MAX="1", MALLOC_MMAP_THRESHOLD_=str(2**17)))


def python(code: str, **environment: str) -> str:
    """Run a script in a fresh process; give what it prints."""
    import os

    done = subprocess.run(
        [sys.executable, "-c", code],
        check=True,
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
    )
    return done.stdout.strip()


def peak_anonymous(command: list[str]) -> float:
    """Run a command; give the peak of its anonymous resident memory, in MiB, sampled from outside.

    Pages of mapped files are not counted: the system takes them back when it needs them.
    """
    peak = 0
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        status = Path(f"/proc/{process.pid}/status")
        while process.poll() is None:
            lines = status.read_text().splitlines()
            found = [int(line.split()[1]) for line in lines if line.startswith("RssAnon")]
            peak = max(peak, *found, 0)
            time.sleep(0.002)
    assert process.returncode == 0
    return peak / 1024


def replace(text: str, name: str, section: str) -> str:
    """Put a section between the two comments of that name."""
    before, _, rest = text.partition(f"<!-- {name} -->\n")
    _, _, after = rest.partition(f"<!-- /{name} -->\n")
    return f"{before}<!-- {name} -->\n{section}<!-- /{name} -->\n{after}"
