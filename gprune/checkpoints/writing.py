"""Writing: the pruned copy of a checkpoint, whole or not at all.

Every byte is copied as it is, but for the entries that are pruned, whose bytes become zero. The
copy grows in a folder of its own beside its final place, reaches the disk, and is then renamed, so
whoever looks sees the old or the new. A failure removes that folder; a kill leaves it behind, under
a name that begins with a dot. A folder cannot be renamed over another: Linux exchanges the two at
once; elsewhere, between two renames, the one that is replaced is in there, whole.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from gprune.checkpoints.planning import Plan, row
from gprune.checkpoints.reading import INDEX, SINGLE, Checkpoint, CheckpointError, Shard
from gprune.checkpoints.scoring import Advance, write_blocks
from gprune.select.blocks import flat_blocks
from gprune.summaries import LeafSummary, Summary

COPIED = 2**22
"""Bytes that are copied at once."""

INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


def require_free(checkpoint: Checkpoint, out: Path, *, force: bool = False) -> None:
    """Refuse to write where a copy must not go.

    Args:
        checkpoint: what is copied.
        out: where to.
        force: whether what is there may be replaced.

    Raises:
        CheckpointError: if something is there already, and is no checkpoint of the same kind or is
            not to be replaced; or if there is no folder to write to.
    """
    here, there = checkpoint.path.resolve(), out.resolve()
    folder = checkpoint.path.is_dir()
    if not there.parent.is_dir():
        raise CheckpointError(f"{there.parent} is no folder")
    if folder and here in there.parents:
        raise CheckpointError(f"{out} is inside of {checkpoint.path}, which is copied")
    if not os.path.lexists(out):
        return
    if not force:
        raise CheckpointError(f"{out} exists; pass --force to replace it")
    alike = (out / INDEX).exists() or (out / SINGLE).exists() if folder else out.is_file()
    if not alike or there in here.parents:
        raise CheckpointError(f"{out} is no checkpoint of the same kind and is not replaced")


def write(
    checkpoint: Checkpoint,
    plan: Plan,
    out: Path,
    *,
    force: bool = False,
    advance: Advance = lambda num_bytes: None,
) -> Summary:
    """Write the pruned copy of a checkpoint.

    Args:
        checkpoint: what is copied.
        plan: where its weights are cut.
        out: where to; a folder if the checkpoint is one, with all the files that it has.
        force: whether what is there may be replaced.
        advance: told of every so many bytes of the safetensors files.

    Returns:
        What is pruned, weight by weight.

    Raises:
        CheckpointError: if the copy must not go there.
    """
    require_free(checkpoint, out, force=force)
    rows: list[LeafSummary] = []
    with _replacing(out, force) as fresh:
        if checkpoint.path.is_dir():
            _copy_others(checkpoint, fresh)
        for shard in checkpoint.shards:
            target = fresh / shard.path.name if checkpoint.path.is_dir() else fresh
            rows += _write_shard(shard, plan, target, advance)
    return Summary(tuple(sorted(rows, key=lambda leaf: leaf.path)))


def _copy_others(checkpoint: Checkpoint, fresh: Path) -> None:
    """Copy what a folder has besides: configuration, tokenizer and the like."""
    fresh.mkdir()
    for path in set(checkpoint.path.iterdir()) - {shard.path for shard in checkpoint.shards}:
        if path.is_dir():
            _refuse_loops(str(checkpoint.path), [path.name])
            shutil.copytree(path, fresh / path.name, ignore=_refuse_loops)
        else:
            shutil.copy(path, fresh / path.name)


def _refuse_loops(folder: str, names: list[str]) -> list[str]:
    """Refuse a link back to a folder that it is in, which would be copied over and over."""
    here = Path(folder).resolve()
    for name in names:
        if Path(folder, name).resolve() in (here, *here.parents):
            raise CheckpointError(f"{Path(folder, name)} is a link to a folder that it is in")
    return []


def _write_shard(shard: Shard, plan: Plan, target: Path, advance: Advance) -> list[LeafSummary]:
    """Copy a file, and mask on the way what the plan cuts."""
    rows = []
    with shard.path.open("rb") as source, target.open("xb") as file:
        for name, span in shard.spans.items():
            if name not in plan.cuts:
                continue
            _copy(source, file, span.start - source.tell(), advance)
            rows.append(_write_masked(file, name, plan, advance))
            source.seek(span.stop)
        _copy(source, file, shard.num_bytes - source.tell(), advance)
    shutil.copymode(shard.path, target)
    return rows


def _copy(source: BinaryIO, file: BinaryIO, num_bytes: int, advance: Advance) -> None:
    while num_bytes:
        piece = source.read(min(num_bytes, COPIED))
        if not piece:
            raise CheckpointError(f"{source.name} became shorter while it was read")
        file.write(piece)
        advance(len(piece))
        num_bytes -= len(piece)


def _write_masked(file: BinaryIO, name: str, plan: Plan, advance: Advance) -> LeafSummary:
    weight, mask = plan.weights[name], plan.mask(name)
    write_blocks(file, _masked(weight, mask, advance))
    return row(name, weight, mask)


def _masked(weight: Tensor, mask: Tensor, advance: Advance) -> Iterator[Tensor]:
    """Mask a weight block by block, as integers: the bits of what is kept, NaN or not, stay."""
    for block, kept in flat_blocks(weight.view(INTEGERS[weight.itemsize]), mask):
        yield block * kept
        advance(block.nbytes)


@contextmanager
def _replacing(out: Path, force: bool) -> Iterator[Path]:
    """Give a path to write a file or folder to, which takes the place of another in the end.

    Yields:
        A path where nothing is yet, on the same file system.

    Raises:
        CheckpointError: if something is there in the end that is not to be replaced.
    """
    out = out.absolute()
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as room:
        fresh, replaced = Path(room, "fresh"), Path(room, "replaced")
        yield fresh
        for path in (fresh, *fresh.rglob("*")):
            _sync(path)
        if not force and os.path.lexists(out):
            raise CheckpointError(f"{out} has come into being meanwhile; it is not replaced")
        if fresh.is_dir() and out.is_dir() and _exchange(fresh, out):
            _sync(out.parent)
            return
        try:
            if out.is_dir():
                out.rename(replaced)
            fresh.replace(out)
        except BaseException:
            if os.path.lexists(replaced) and not os.path.lexists(out):
                replaced.rename(out)
            raise
    _sync(out.parent)


def _exchange(one: Path, other: Path) -> bool:
    """Exchange what two names stand for, at once; say whether that is possible here."""
    rename = getattr(ctypes.CDLL(None), "renameat2", None)  # in Linux's C library alone
    if rename is None:
        return False
    here, exchange = -100, 2  # AT_FDCWD and RENAME_EXCHANGE
    return bool(rename(here, os.fsencode(one), here, os.fsencode(other), exchange) == 0)


def _sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
