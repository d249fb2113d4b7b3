"""Checkpoints that are broken, or made to do harm."""

import json
import os
import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from tests.support.checkpoint_files import raw


def entry(**changes: Any) -> dict[str, Any]:
    return {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]} | changes


def of(**entries: Any) -> bytes:
    """A safetensors file of any entries, with 16 bytes of data."""
    return raw(json.dumps(entries), bytes(16))


GOOD = of(a=entry())
NONE: dict[str, Any] = {"data_offsets": [16, 16]}
FILES = {
    "empty": b"",
    "half a length": GOOD[:4],
    "truncated header": GOOD[:30],
    "header longer than the file": b"\xff\x00\x00\x00\x00\x00\x00\x00{}",
    "header of 2^63 bytes": (2**63).to_bytes(8, "little") + b"{}",
    "header of 2^64 - 1 bytes": b"\xff" * 8 + b"{}",
    "truncated data": GOOD[:-1],
    "bytes behind the data": GOOD + b"\0",
    "header that is no JSON": raw("{'a': 1}", bytes(16)),
    "header that is no object": raw("[1, 2]", bytes(16)),
    "header of NaN": raw('{"a": NaN}', bytes(16)),
    "deep header": raw("[" * 100_000),
    "header that is no text": raw("{}", b"").replace(b"{}", b"\xff\xfe"),
    "offsets past the end": of(a=entry(shape=[2, 4], data_offsets=[0, 32])),
    "offsets far past the end": of(a=entry(data_offsets=[2**62, 2**62 + 16])),
    "negative offset": of(a=entry(data_offsets=[-8, 8])),
    "negative size": of(a=entry(shape=[-2, -2])),
    "offsets in reverse": of(a=entry(data_offsets=[16, 0])),
    "overlapping tensors": of(a=entry(), b=entry(shape=[2], data_offsets=[8, 16])),
    "the same bytes twice": of(a=entry(), b=entry()),
    "gap between tensors": of(
        a=entry(shape=[1], data_offsets=[0, 4]), b=entry(shape=[1], data_offsets=[12, 16])
    ),
    "shape of another size": of(a=entry(shape=[2, 3])),
    "shape that overflows": of(a=entry(shape=[2**32, 2**32])),
    "unknown dtype": of(a=entry(dtype="F31")),
    "name twice": raw(
        '{"a":' + json.dumps(entry()) + ',"a":' + json.dumps(entry(shape=[2], data_offsets=[0, 8]))
        + "}",
        bytes(16),
    ),
    "an entry that is a list": raw('{"a": ["F32", [2, 2], [0, 16]]}', bytes(16)),
    "an empty tensor of 2^124 bytes": of(a=entry(), b=entry(shape=[0, 2**62, 2**62], **NONE)),
    "an empty tensor of 2^64 - 1 rows": of(a=entry(), b=entry(shape=[0, 2**64 - 1], **NONE)),
    "picture": b"\x89PNG\r\n\x1a\n" + bytes(100),
    "zip": b"PK\x03\x04" + bytes(100),
}  # fmt: skip  # one line a file


class Harm:
    """A pickle that runs a command when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def saved(value: Any, **options: Any) -> Callable[[Path], None]:
    return lambda path: torch.save(value, path, **options)


def written(data: bytes) -> Callable[[Path], Any]:
    return lambda path: path.write_bytes(data)


def harm(path: Path) -> None:
    torch.save({"a": torch.ones(2), "b": Harm(path.parent / "harmed")}, path)


def bare_harm(path: Path) -> None:
    path.write_bytes(pickle.dumps(Harm(path.parent / "harmed")))


def truncated(path: Path) -> None:
    torch.save({"a": torch.ones(1000)}, path)
    path.write_bytes(path.read_bytes()[:2000])


def quantized(path: Path) -> None:
    with warnings.catch_warnings():  # that it is deprecated
        warnings.simplefilter("ignore")
        torch.save({"a": torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8)}, path)


def endless(path: Path) -> None:
    inner: dict[str, Any] = {"a": torch.ones(2)}
    inner["x"] = inner
    torch.save(inner, path)


def exponential(path: Path) -> None:
    """Forty dicts with two names each are 2^40 names."""
    inner: dict[str, Any] = {"a": torch.ones(2)}
    for _ in range(40):
        inner = {"a": inner, "b": inner}
    torch.save(inner, path)


STATES: dict[str, Callable[[Path], Any]] = {
    "a pickle with a reduce": harm,
    "a bare pickle with a reduce": bare_harm,
    "a module": saved(torch.nn.Linear(2, 2)),
    "a tensor": saved(torch.ones(2)),
    "an epoch": saved({"a": torch.ones(2), "epoch": 3}),
    "names that are numbers": saved({1: torch.ones(2)}),
    "a sparse tensor": saved({"a": torch.eye(2).to_sparse()}),
    "the old format of no state dict": saved([1], _use_new_zipfile_serialization=False),
    "two state dicts": saved({"g": {"a": torch.ones(2)}, "d": {"a": torch.ones(1)}, "epoch": 3}),
    "a name that two tensors have": saved({"a": {"b": torch.ones(2)}, "a.b": torch.ones(2)}),
    "a name that two tensors have, in turn": saved(
        {"a.b": torch.ones(2), "a": {"b": torch.ones(2)}}
    ),
    "an optimizer alone": saved(
        {"optimizer": {"state": {0: {"step": torch.ones(())}}}, "epoch": 3}
    ),
    "a mask of another shape": saved({"w_orig": torch.ones(2, 2), "w_mask": torch.ones(3)}),
    "a weight that is there twice": saved(dict.fromkeys(["w", "w_orig", "w_mask"], torch.ones(2))),
    "a meta tensor": saved({"a": torch.ones(2, device="meta")}),
    "a quantized tensor": quantized,
    "a dict that contains itself": endless,
    "dicts with the same dicts in them": exponential,
    "truncated": truncated,
    "empty": written(b""),
    "picture": written(FILES["picture"]),
    "zip": written(FILES["zip"]),
}


def index(weight_map: Any) -> bytes:
    return json.dumps({"weight_map": weight_map}).encode()


SHARDS = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
INDICES = {
    "a name with ../": index({"a": "../x.safetensors", "b": SHARDS[1]}),
    "an absolute name": index({"a": "/etc/passwd", "b": SHARDS[1]}),
    "a name in another folder": index({"a": "1_Pooling/config.json", "b": SHARDS[1]}),
    "the name ..": index({"a": "..", "b": SHARDS[1]}),
    "no name": index({"a": "", "b": SHARDS[1]}),
    "a name with a zero byte": index({"a": "x\0", "b": SHARDS[1]}),
    "a name too long for a file": index({"a": "x" * 300, "b": SHARDS[1]}),
    "a name that is a number": index({"a": 1, "b": SHARDS[1]}),
    "a name that is a list": index({"a": ["x"], "b": SHARDS[1]}),
    "a missing file": index({"a": "none.safetensors", "b": SHARDS[1]}),
    "a foreign file": index({"a": "config.json", "b": SHARDS[1]}),
    "a tensor that is nowhere": index({"a": SHARDS[0], "b": SHARDS[1], "c": SHARDS[1]}),
    "a tensor that is elsewhere": index({"a": SHARDS[1], "b": SHARDS[0]}),
    "an unnamed tensor": index({"b": SHARDS[0]}),
    "nothing": index({}),
    "a list": index([1]),
    "no map": b"{}",
    "no JSON": b"{",
    "deep JSON": b"[" * 100_000,
    "no text": b"\xff\xfe",
}
