"""The list of faults does not rot: each applies exactly once, parses, and names tests that exist.

That the tests kill them is shown by `python -m tests.mutations`, which takes minutes.
"""

import ast

import pytest

from tests.faults import FAULTS, Fault
from tests.mutations import ROOT, mutated, times_found


def test_faults_have_names_of_their_own() -> None:
    assert len({fault.name for fault in FAULTS}) == len(FAULTS) >= 30


def test_readme_says_how_many_they_are() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert f"the tests kill {len(FAULTS)} of {len(FAULTS)}" in readme


@pytest.mark.parametrize("fault", FAULTS, ids=[fault.name for fault in FAULTS])
def test_every_fault_applies_and_parses(fault: Fault) -> None:
    assert times_found(fault) == 1
    before, after = (ROOT / fault.file).read_text(encoding="utf-8"), mutated(fault)
    assert ast.dump(ast.parse(after)) != ast.dump(ast.parse(before))


@pytest.mark.parametrize("fault", FAULTS, ids=[fault.name for fault in FAULTS])
def test_every_fault_names_tests_that_exist(fault: Fault) -> None:
    assert fault.tests
    for test in fault.tests:
        file, _, name = test.partition("[")[0].partition("::")
        text = (ROOT / file).read_text(encoding="utf-8")
        assert f"\ndef {name}(" in text if name else "\ndef test_" in text
