"""A checkpoint of 8 GB: the memory that pruning it takes, and its speed against copying it."""

from __future__ import annotations

import os
import shutil
import sys
import time
from pathlib import Path

import pytest

from tests.bench.conftest import Report
from tests.bench.measure import peak_anonymous
from tests.support.checkpoint_files import save_large

pytestmark = pytest.mark.bench

SHAPE = 8192, 16384
LARGEST = SHAPE[0] * SHAPE[1] * 2 / 2**20


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """32 matrices of 256 MiB in four files, 8 GiB in all."""
    folder = tmp_path_factory.mktemp("large")
    if shutil.disk_usage(folder).free < 30 * 2**30:
        pytest.skip("needs 30 GiB of disk")
    return save_large(folder / "model", num_shards=4, per_shard=8, shape=SHAPE)


def copied(model: Path) -> float:
    """Seconds to read the folder, to write it and to wait until it is on the disk."""
    out = model.with_name("copy")
    start = time.perf_counter()
    shutil.copytree(model, out)
    for path in out.iterdir():
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)
    seconds = time.perf_counter() - start
    shutil.rmtree(out)
    return seconds


def test_pruning_8_gigabytes(model: Path, report: Report) -> None:
    out = model.with_name("out")
    before = copied(model)
    start = time.perf_counter()
    command = [sys.executable, "-m", "gprune", "prune", str(model), "-o", str(out)]
    peak = peak_anonymous([*command, "--amount", "0.5", "--json"])
    seconds = time.perf_counter() - start
    assert sorted(x.name for x in out.iterdir()) == sorted(x.name for x in model.iterdir())
    shutil.rmtree(out)
    copying = (before + copied(model)) / 2  # the disk is shared: before and after
    report("8 GB checkpoint: memory beyond the largest tensor, MiB", peak - LARGEST, at_most=512)
    report("8 GB checkpoint: copying over pruning it", copying / seconds, at_least=0.25)
