"""Scratch: room for the intermediate results of one block after another, made once."""

from __future__ import annotations

import torch
from torch import Tensor

CPU = torch.device("cpu")


class Scratch:
    """Rooms by use, dtype and device; each holds one block and is used again for the next.

    Fresh memory costs a page fault every few thousand bytes, which is more than most of what is
    written to it costs.
    """

    def __init__(self) -> None:
        self._rooms: dict[tuple[str, torch.dtype, torch.device], Tensor] = {}

    def room(
        self, use: str, size: int, dtype: torch.dtype = torch.bool, device: torch.device = CPU
    ) -> Tensor:
        """Give room, with whatever it holds from before."""
        key = use, dtype, device
        if key not in self._rooms or self._rooms[key].numel() < size:
            self._rooms[key] = torch.empty(size, dtype=dtype, device=device)
        return self._rooms[key][:size]
