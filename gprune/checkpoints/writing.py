"""Writing: the pruned copy of a checkpoint, which is put in place atomically.

All bytes are copied, and those of pruned entries become zero. The kept entries of a weight change
only if it has been rebuilt. The copy is written to a temporary folder beside its final path, synced
to disk, and then renamed. So readers never see a part of a checkpoint. After an error the temporary
folder is removed. After a kill it stays, with a name that begins with a dot.

A folder cannot be renamed over another one. Linux exchanges two folders atomically. Elsewhere two
renames are needed, and between them the old folder is complete inside the temporary one.
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

from gprune.checkpoints.planning import Outcome, Plan, Rebuilt, count_entries, outcome
from gprune.checkpoints.reading import Checkpoint, CheckpointError, Shard, weight_file
from gprune.checkpoints.scoring import Advance, no_progress, write_blocks
from gprune.select.blocks import flat_blocks
from gprune.summaries import LeafSummary

COPY_BYTES = 2**22
"""How many bytes are copied at a time."""

INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}
"""Integer dtypes by size in bytes."""


def check_output_path(checkpoint: Checkpoint, out: Path, *, force: bool = False) -> None:
    """Raise an error if the copy of a checkpoint must not be written to a path.

    Args:
        checkpoint: the checkpoint to copy.
        out: the path of the copy.
        force: whether an existing checkpoint of the same kind may be replaced.

    Raises:
        CheckpointError: if the path exists and may not be replaced, if its folder does not exist,
            if it is inside the checkpoint, or if the folder of the checkpoint has something that
            cannot be copied: a device, or a link to nothing or to a folder that contains it.

    Example:
        >>> import torch
        >>> from pathlib import Path
        >>> from tempfile import TemporaryDirectory
        >>> from safetensors.torch import save_file
        >>> from gprune import checkpoints
        >>> with TemporaryDirectory() as folder:
        ...     path = Path(folder, "model.safetensors")
        ...     save_file({"fc.weight": torch.ones(2, 3)}, path)
        ...     checkpoint = checkpoints.read(path)
        ...     checkpoints.check_output_path(checkpoint, Path(folder, "pruned.safetensors"))
        ...     checkpoints.check_output_path(checkpoint, path)
        Traceback (most recent call last):
        gprune.checkpoints.reading.CheckpointError: ... exists; pass --force to replace it
    """
    here, there = _real_path(checkpoint.path), _real_path(out)
    folder = checkpoint.path.is_dir()
    if not there.parent.is_dir():
        raise CheckpointError(f"{there.parent} is not a folder")
    if folder and here in there.parents:
        raise CheckpointError(f"{out} is inside {checkpoint.path}, which is to be copied")
    if folder:
        _require_copyable(checkpoint.path, [here])
    if not os.path.lexists(out):
        return
    if not force:
        raise CheckpointError(f"{out} exists; pass --force to replace it")
    is_same_kind = _has_weights(out) if folder else out.is_file()
    if not is_same_kind or there in here.parents:
        raise CheckpointError(f"{out} is not a checkpoint of the same kind, so it is not replaced")


def write(
    checkpoint: Checkpoint,
    plan: Plan | Rebuilt,
    out: Path,
    *,
    force: bool = False,
    advance: Advance = no_progress,
) -> Outcome:
    """Write the pruned copy of a checkpoint, and return how much of it is pruned.

    The bytes of pruned entries become zero. Kept entries change only if `plan` has new weights. The
    copy is written beside its final path, and then renamed, so it is complete or absent.

    Args:
        checkpoint: the checkpoint to copy.
        plan: the weights to prune and their thresholds, or new weights and their masks.
        out: the path of the copy. If the checkpoint is a folder, so is the copy, and it has all
            other files of the folder too.
        force: whether an existing checkpoint of the same kind may be replaced.
        advance: called with the number of bytes of the safetensors files after they are written.

    Returns:
        How much of each weight is pruned, and how much of it is zero in the copy.

    Raises:
        CheckpointError: if the copy must not be written to that path.
        OSError: if the system fails. A note says so if the path has not changed.

    Example:
        >>> import torch
        >>> from pathlib import Path
        >>> from tempfile import TemporaryDirectory
        >>> from safetensors.torch import save_file
        >>> from gprune import checkpoints
        >>> with TemporaryDirectory() as folder:
        ...     path, out = Path(folder, "model.safetensors"), Path(folder, "pruned.safetensors")
        ...     save_file({"fc.weight": torch.tensor([[0.1, -2.0], [3.0, 0.4]])}, path)
        ...     checkpoint = checkpoints.read(path)
        ...     weights = checkpoints.choose(checkpoint.tensors)
        ...     plan = checkpoints.plan(weights, amount=0.5, folder=Path(folder))
        ...     found = checkpoints.write(checkpoint, plan, out)
        ...     pruned = checkpoints.read(out).tensors["fc.weight"]
        >>> found.pruned.total.pruned, pruned
        (2, tensor([[ 0., -2.],
                [ 3.,  0.]]))
    """
    check_output_path(checkpoint, out, force=force)
    rows: list[tuple[LeafSummary, LeafSummary]] = []
    with _write_then_rename(out, force) as fresh:
        if checkpoint.path.is_dir():
            _copy_others(checkpoint, fresh)
        for shard in checkpoint.shards:
            target = fresh / shard.path.name if checkpoint.path.is_dir() else fresh
            rows += _write_shard(shard, plan, target, advance)
    return outcome(rows)


def _copy_others(checkpoint: Checkpoint, fresh: Path) -> None:
    """Copy the other files of a folder: configuration, tokenizer and the like."""
    fresh.mkdir()
    for path in set(checkpoint.path.iterdir()) - {shard.path for shard in checkpoint.shards}:
        if path.is_dir():
            shutil.copytree(path, fresh / path.name)
        else:
            shutil.copy(path, fresh / path.name)


def _has_weights(folder: Path) -> bool:
    try:
        weight_file(folder)
    except (CheckpointError, NotADirectoryError):
        return False
    return True


def _require_copyable(folder: Path, above: list[Path]) -> None:
    """Raise an error if a folder has something whose copy would fail or never end.

    Args:
        folder: the folder.
        above: the folders that are walked through, links resolved, the last of which is this one.

    Raises:
        CheckpointError: if a path is a device, a pipe or a link to nothing, or is a link to a
            folder that contains it.
    """
    for path in sorted(folder.iterdir()):
        target = _real_path(path)
        link = f"a link to {target}, which is " if path.is_symlink() else ""
        if path.is_dir():
            if any(target in (here, *here.parents) for here in above):
                raise CheckpointError(f"{path} is a link to a folder that contains it")
            _require_copyable(path, [*above, target])
        elif not path.is_file():
            raise CheckpointError(f"{path} is {link}not a file or a folder, so it cannot be copied")


def _real_path(path: Path) -> Path:
    """Resolve all links of a path; `Path.resolve` raises an error for a link to itself."""
    return Path(os.path.realpath(path))


def _write_shard(
    shard: Shard, plan: Plan | Rebuilt, target: Path, advance: Advance
) -> list[tuple[LeafSummary, LeafSummary]]:
    """Copy a file, with the weights of the plan, and set their pruned entries to zero."""
    rows = []
    with shard.path.open("rb") as source, target.open("xb") as file:
        for name, span in shard.spans.items():
            if name not in plan.weights:
                continue
            _copy(source, file, span.start - source.tell(), advance)
            weight, mask = plan.weights[name], plan.mask(name)
            write_blocks(file, _masked(weight, mask, advance))
            rows.append(count_entries(name, weight, mask))
            source.seek(span.stop)
        _copy(source, file, shard.num_bytes - source.tell(), advance)
    shutil.copymode(shard.path, target)
    return rows


def _copy(source: BinaryIO, file: BinaryIO, num_bytes: int, advance: Advance) -> None:
    while num_bytes:
        piece = source.read(min(num_bytes, COPY_BYTES))
        if not piece:
            raise CheckpointError(f"{source.name} became shorter while it was being read")
        file.write(piece)
        advance(len(piece))
        num_bytes -= len(piece)


def _masked(weight: Tensor, mask: Tensor, advance: Advance) -> Iterator[Tensor]:
    """Mask a weight block by block, as integers, which keeps the bits of kept NaNs."""
    for block, kept in flat_blocks(weight.view(INTEGERS[weight.itemsize]), mask):
        yield block * kept
        advance(block.nbytes)


@contextmanager
def _write_then_rename(out: Path, force: bool) -> Iterator[Path]:
    """Yield a temporary path to write a file or folder to, and rename it to the final path.

    Yields:
        A path on the same file system, where nothing exists.

    Raises:
        CheckpointError: if the final path has come to exist and may not be replaced.
        OSError: if the system fails. A note says so if the final path has not changed.
    """
    out = out.absolute()
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as temporary:
        fresh, replaced = Path(temporary, "fresh"), Path(temporary, "replaced")
        try:
            yield fresh
            for path in (fresh, *fresh.rglob("*")):
                _sync(path)
            if not force and os.path.lexists(out):
                raise CheckpointError(f"{out} was created in the meantime, so it is not replaced")
            if not (fresh.is_dir() and out.is_dir() and _exchange(fresh, out)):
                _rename(fresh, out, replaced)
        except OSError as error:
            if not os.path.lexists(replaced):
                error.add_note(f"{out} has not changed")
            raise
    _sync(out.parent)


def _rename(fresh: Path, out: Path, replaced: Path) -> None:
    """Rename the new checkpoint to its final path; an old folder there is moved away before."""
    try:
        if out.is_dir():
            out.rename(replaced)
        fresh.replace(out)
    except BaseException:
        if os.path.lexists(replaced) and not os.path.lexists(out):
            replaced.rename(out)
        raise


def _exchange(one: Path, other: Path) -> bool:
    """Exchange two paths atomically, and return whether the system can do that."""
    rename = getattr(ctypes.CDLL(None), "renameat2", None)  # only in Linux's C library
    if rename is None:
        return False
    here, exchange = -100, 2  # AT_FDCWD and RENAME_EXCHANGE
    return bool(rename(here, os.fsencode(one), here, os.fsencode(other), exchange) == 0)


def _sync(path: Path) -> None:
    """Wait until the contents of a file, or the entries of a folder, are on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
