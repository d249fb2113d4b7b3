"""The tables of faults stay true: each applies exactly once, parses, and names tests that exist.

That the tests notice them is shown by `python -m tests.faults`, which takes minutes.
"""

import ast

import pytest

from tests.faults import Fault
from tests.faults.plant import FAULTS, ROOT, planted, times_found

each_fault = pytest.mark.parametrize("fault", FAULTS, ids=[fault.name for fault in FAULTS])


def test_names_are_unique() -> None:
    assert len({fault.name for fault in FAULTS}) == len(FAULTS)


def test_faults_do_not_become_fewer() -> None:
    assert len(FAULTS) >= 350


@pytest.mark.slow
@each_fault
def test_a_fault_applies_and_parses(fault: Fault) -> None:
    assert times_found(fault) == 1
    before, after = (ROOT / fault.file).read_text(encoding="utf-8"), planted(fault)
    assert ast.dump(ast.parse(after)) != ast.dump(ast.parse(before))


@each_fault
def test_a_fault_names_tests_that_exist(fault: Fault) -> None:
    assert fault.tests
    for test in fault.tests:
        file, _, name = test.partition("[")[0].partition("::")
        text = (ROOT / file).read_text(encoding="utf-8")
        assert f"\ndef {name}(" in text if name else "\ndef test_" in text
