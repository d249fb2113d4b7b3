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
from typing import NamedTuple
from unittest import mock

import pytest
import torch

import gprune as gp
from gprune.select import accelerator
from gprune.select.keys import FORMATS
from gprune.select.search import MAX_ACCELERATOR_BITS
from tests.support.limits import Limits, patched

pytest.importorskip("triton")  # comes with torch on Linux only

CASES = Path(__file__).with_name("interpreted_kernels.py")
NAMES = re.findall(r"^def (test_\w+)", CASES.read_text(encoding="utf-8"), re.MULTILINE)


@pytest.mark.long
@pytest.mark.parametrize("name", NAMES)
def test_in_the_interpreter(name: str) -> None:
    options = ["-n", "0", "-q", "-p", "no:cacheprovider", "--tb=short"]
    profile = os.environ.get("HYPOTHESIS_PROFILE", "quick")  # also in CI: the interpreter is slow
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, f"{CASES}::{name}"],
        env={
            **os.environ,
            "TRITON_INTERPRET": "1",
            "HYPOTHESIS_PROFILE": profile,
            "PYTEST_ADDOPTS": "",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-20_000:]


# --- compilation --------------------------------------------------------------------------------

TARGETS = {"sm_80": ("cuda", 80, 32), "sm_90": ("cuda", 90, 32), "gfx942": ("hip", "gfx942", 64)}


class Compiled(NamedTuple):
    """A kernel that is compiled for a GPU.

    Attributes:
        triton_ir: the text of Triton's first representation.
        assembly: the text of the instructions, PTX or AMD's.
        shared: how many bytes of shared memory a program has.
        registers: how many registers a thread has.
        spilled: how much a thread keeps in memory for want of registers; bytes, or AMD's registers.
    """

    triton_ir: str
    assembly: str
    shared: int
    registers: int
    spilled: int


def compiled(
    name: str, target: str, dtype: torch.dtype, folder: Path, **switches: bool
) -> Compiled:
    """Compile a kernel for a target, with its compile-time constants for scores of a dtype."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from gprune.select import kernels

    kernel, form = getattr(kernels, name), FORMATS[dtype]
    constants = {**kernels.constants_of(form), **switches, "TILE": kernels.TILE}
    if name == "count_tiles":
        constants |= {"NUM_TILES": kernels.NUM_TILES, "NUM_BINS": 2**MAX_ACCELERATOR_BITS}
    names = kernel.arg_names
    of_bits = f"*i{form.num_bits}"
    types = {x: of_bits if x == "slot_bits" else "*i64" for x in names if x not in constants}
    source = ASTSource(
        kernel,
        {x: types.get(x, "constexpr") for x in names},
        {(names.index(x),): value for x, value in constants.items()},
        {(names.index(x),): [["tt.divisibility", 16]] for x in types},
    )
    with mock.patch.dict(os.environ, {"TRITON_CACHE_DIR": str(folder)}):
        made = triton.compile(
            source, target=GPUTarget(*TARGETS[target]), options={"num_warps": kernels.NUM_WARPS}
        )
    if target == "gfx942":
        text = made.asm["amdgcn"]
        numbers = dict(re.findall(r"\.(vgpr_count|\w+_spill_count): +(\d+)", text))
        spilled = int(numbers["vgpr_spill_count"]) + int(numbers["sgpr_spill_count"])
        return Compiled(
            made.asm["ttir"], text, made.metadata.shared, int(numbers["vgpr_count"]), spilled
        )
    (folder / "kernel.ptx").write_text(made.asm["ptx"])
    assembler = Path(triton.__file__).parent / "backends/nvidia/bin/ptxas"
    said = subprocess.run(
        [
            assembler,
            "-v",
            f"--gpu-name={ARCHITECTURES[target]}",
            "kernel.ptx",
            "-o",
            "kernel.cubin",
        ],
        cwd=folder,
        capture_output=True,
        text=True,
        check=True,
    ).stderr
    spilled = sum(map(int, re.findall(r"(\d+) bytes spill", said)))
    registers = re.search(r"(\d+) registers", said)
    assert registers
    return Compiled(
        made.asm["ttir"], made.asm["ptx"], made.metadata.shared, int(registers[1]), spilled
    )


ARCHITECTURES = {"sm_80": "sm_80", "sm_90": "sm_90a"}
"""The names of the assembler; Triton makes instructions that only `sm_90a` has."""

MAX_REGISTERS = {"sm_80": 96, "sm_90": 96, "gfx942": 128}
"""With so many, two programs of eight warps fit on a multiprocessor at a time."""


COMPILED_DTYPES = [torch.float32, torch.bfloat16, torch.float64, torch.int32]


@pytest.mark.long
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("is_aligned", [True, False])
@pytest.mark.parametrize("has_prior", [True, False])
@pytest.mark.parametrize("dtype", COMPILED_DTYPES)
def test_dividing_compiles(
    target: str, is_aligned: bool, has_prior: bool, dtype: torch.dtype, tmp_path: Path
) -> None:
    """For GPUs that are not here. Aligned memory is read and written by vector instructions."""
    switches = {"ABSOLUTE": True, "HAS_PRIOR": has_prior, "HAS_MASK": True}
    made = compiled("divide_tile", target, dtype, tmp_path, **switches, IS_ALIGNED=is_aligned)
    print(target, dtype, is_aligned, has_prior, *made[2:])
    assert made.spilled == 0
    assert made.shared <= 48 * 2**10  # what a program may have without asking for more
    assert made.registers <= MAX_REGISTERS[target]
    stores_bytes = re.search(r"st\.global\.b8|store_byte", made.assembly)
    assert (stores_bytes is None) == is_aligned
    assert re.search(r"arith\.muli .*: i64", made.triton_ir)
    assert not re.search(r"arith\.muli .*: i32", made.triton_ir)  # else 2^31 entries overflow


@pytest.mark.long
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("dtype", COMPILED_DTYPES)
def test_counting_compiles(target: str, dtype: torch.dtype, tmp_path: Path) -> None:
    """The histogram of a program fits into the memory that its threads share."""
    switches = {"ABSOLUTE": True, "HAS_PRIOR": True, "IS_ALIGNED": True}
    made = compiled("count_tiles", target, dtype, tmp_path, **switches)
    print(target, dtype, *made[2:])
    assert made.spilled == 0
    assert made.shared <= 48 * 2**10
    assert made.registers <= 256  # else not even one program of eight warps fits
    assert not re.search(r"arith\.muli .*: i32", made.triton_ir)


# --- where they run -----------------------------------------------------------------------------


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
    """With one warning."""
    weights = [torch.randn(1000, generator=torch.Generator().manual_seed(0))]
    expected = weights[0].abs() > weights[0].abs().sort().values[499]
    with pytest.warns(RuntimeWarning, match="kernels fail on cpu, so torch operators"):
        [mask] = gp.global_unstructured(weights, amount=500)
    assert mask.equal(expected)
    [mask] = gp.global_unstructured(weights, amount=500)  # a second warning would be an error
    assert mask.equal(expected)
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
