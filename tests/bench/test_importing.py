"""What `import gprune` costs a program that has torch and optree already."""

from statistics import median

import pytest

from tests.bench.conftest import Report
from tests.bench.measure import python

pytestmark = pytest.mark.bench

IMPORT = """
import time, torch, optree
start = time.process_time()
import gprune
print(1e3 * (time.process_time() - start))
"""


def test_importing(report: Report) -> None:
    def milliseconds() -> float:
        return float(python(IMPORT, PYTHONDONTWRITEBYTECODE=""))  # the bytecode that pip writes

    milliseconds()
    value = median(milliseconds() for _ in range(9))
    report("import gprune after torch and optree, ms of processor time", value, at_most=50)
