"""Guarantee: an error of one rank is raised on all ranks, or on that rank alone if none waits.

The rows are data: see `tests.support.sharded_faults`.
"""

from __future__ import annotations

import time

import pytest
import torch

from tests.support.assertions import fail_if
from tests.support.sharded_faults import FAULTS, SENDING, SILENT, WRONG, Fault, right
from tests.support.workers import started

pytestmark = pytest.mark.slow

PATIENCE = 10
"""Seconds within which all ranks must have raised the error."""


def outcomes(faults: list[Fault]) -> list[tuple[str, str, float]]:
    """Give what each faulty call raises on this rank, and how many seconds it takes."""
    return [outcome(fault) for fault in faults]


def outcome(fault: Fault) -> tuple[str, str, float]:
    arguments = right()
    if torch.distributed.get_rank() == fault.rank:
        arguments = WRONG[fault.wrong](arguments)
    call = {**SENDING, **SILENT}[fault.call]
    start, kind, text = time.perf_counter(), "", ""
    try:
        call(arguments)
    except Exception as error:
        kind, text = type(error).__name__, str(error)
    return kind, text, time.perf_counter() - start


@pytest.mark.parametrize("call", [*SENDING, *SILENT])
def test_an_error_of_one_rank(call: str) -> None:
    faults = [fault for fault in FAULTS if fault.call == call]
    workers, problems = started(2, PATIENCE), []
    answers = workers.run(outcomes, faults)
    if not all(isinstance(answer, list) for answer in answers):
        workers.stop()
        raise AssertionError(f"{call}: {answers}")
    for fault, *both in zip(faults, *answers, strict=True):
        mine, other = both[fault.rank], both[1 - fault.rank]
        expected = mine[:2] if call in SENDING else ("", "")
        if mine[0] != fault.error or fault.text not in mine[1] or other[:2] != expected:
            problems.append(f"{fault} raises {mine} there and {other} on the other rank")
        if max(mine[2], other[2]) > PATIENCE:
            problems.append(f"{fault} takes {mine[2]} s and {other[2]} s")
    if problems:
        workers.stop()  # a rank that still waits for the other would confuse the next test
    fail_if(problems)


def test_the_table_has_all_calls_and_all_that_may_be_wrong() -> None:
    assert {fault.call for fault in FAULTS} == {*SENDING, *SILENT}
    assert {fault.wrong for fault in FAULTS} == {*WRONG}
    assert {fault.rank for fault in FAULTS} == {0, 1}
    assert len(FAULTS) == len({(fault.call, fault.wrong) for fault in FAULTS}) >= 60
