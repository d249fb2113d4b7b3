"""Small faults in gprune, each with the tests that must fail when it is there.

Every file of this folder that has a list `FAULTS` is the table of one area. `plant.py` plants the
faults one at a time and runs their tests: `python -m tests.faults`.

A fault is one edit that anyone could make by mistake. It changes a result, and not only the time
that the result takes. If the tests do not notice a fault, write a test; do not delete the fault.
"""

from typing import NamedTuple


class Fault(NamedTuple):
    """One edit of one file.

    Attributes:
        name: what is wrong with the edit in place.
        file: the file, from the root of the repository.
        old: a text that is in the file exactly once.
        new: the text that replaces it.
        tests: the tests that must fail, as pytest takes them.
    """

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]


def fault(name: str, file: str, old: str, new: str, *tests: str) -> Fault:
    """Make a fault in a file of the package."""
    return Fault(name, f"gprune/{file}", old, new, tests)
