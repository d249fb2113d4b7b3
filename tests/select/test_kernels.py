"""The Triton kernels: in the interpreter, compiled for GPUs that are not here, and when they fail.

What they find is tested by interpreted_kernels.py, in a process of its own: the interpreter must be
chosen before Triton is imported.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pytest
import torch

import gprune as gp
from gprune.select import accelerator
from gprune.select.keys import FORMATS
from tests.support.limits import Limits, patched

pytest.importorskip("triton")

CASES = Path(__file__).with_name("interpreted_kernels.py")
NAMES = re.findall(r"^def (test_\w+)", CASES.read_text(encoding="utf-8"), re.MULTILINE)


@pytest.fixture(scope="module")
def interpreted() -> str:
    """What pytest says about the tests in the interpreter."""
    options = ["-n", "0", "-q", "-rA", "-p", "no:cacheprovider", "--tb=short"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, str(CASES)],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_in_the_interpreter(interpreted: str, name: str) -> None:
    has_failed = re.search(rf"^(FAILED|ERROR) \S+::{name}\b", interpreted, re.MULTILINE)
    has_passed = re.search(rf"^PASSED \S+::{name}\b", interpreted, re.MULTILINE)
    assert has_passed and not has_failed, interpreted[-20_000:]


# --- where they run -----------------------------------------------------------------------------


def test_importing_gprune_does_not_import_triton() -> None:
    code = "import gprune, sys; sys.exit('triton' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("has_triton", [True, False])
def test_devices_with_kernels(has_triton: bool) -> None:
    """Graphics cards of both makers are of the type `cuda`."""
    found = mock.Mock() if has_triton else None
    with mock.patch.object(accelerator.importlib.util, "find_spec", return_value=found):
        assert accelerator.has_kernels(torch.device("cuda:1")) == has_triton
        for other in ("cpu", "mps", "xpu"):
            assert not accelerator.has_kernels(torch.device(other))


@pytest.fixture
def failing_kernels() -> Iterator[None]:
    """Kernels on the CPU, for which Triton cannot compile without its interpreter."""

    def has_kernels(device: torch.device) -> bool:
        return device not in accelerator._without_kernels

    with (
        mock.patch.object(accelerator, "has_kernels", has_kernels),
        mock.patch.object(accelerator, "_without_kernels", set()),
        patched(Limits(on_accelerator=True)),
    ):
        yield


def test_torch_operators_take_over_when_the_kernels_fail(failing_kernels: None) -> None:
    """With one warning for each device."""
    weights = [torch.randn(1000, generator=torch.Generator().manual_seed(0))]
    with pytest.warns(RuntimeWarning, match="kernels fail on cpu, so torch operators") as warned:
        first = gp.global_unstructured(weights, amount=500)
        second = gp.global_unstructured(weights, amount=500)
    assert len(warned) == 1
    expected = weights[0].abs() > weights[0].abs().sort().values[499]
    assert first[0].equal(expected) and second[0].equal(expected)
    assert not accelerator.has_kernels(torch.device("cpu"))


def test_too_little_memory_is_no_failure_of_the_kernels(failing_kernels: None) -> None:
    from gprune.select import kernels

    error = torch.OutOfMemoryError("CUDA out of memory")
    with (
        mock.patch.object(kernels, "divide", side_effect=error),
        pytest.raises(torch.OutOfMemoryError),
    ):
        gp.global_unstructured([torch.randn(1000)], amount=500)
    assert accelerator.has_kernels(torch.device("cpu"))
