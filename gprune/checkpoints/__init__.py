"""Checkpoints on disk: pruned and reported file by file, never loaded.

A checkpoint is memory-mapped, so what is held is one block, one mask, and what the search holds; it
may be larger than memory. One search finds the cut, then every file is copied, with zeros written
where the masks say so. Nothing here is imported by `import gprune`; safetensors comes with the
extra `cli`.

    reading.py   a safetensors file or a Hugging Face folder -> mapped tensors, and their places
    states.py    a state dict saved by torch -> mapped tensors
    scoring.py   a weight -> its scores, block by block; all of them in a file of their own
    planning.py  weights and an amount -> where each of them is cut
    writing.py   a checkpoint and a plan -> its pruned copy, whole or not at all
    density.py   tensors -> how many of their entries are zero
"""

from gprune.checkpoints.density import density
from gprune.checkpoints.planning import Plan, choose, each_alone, plan, preview, together
from gprune.checkpoints.reading import Checkpoint, CheckpointError, read
from gprune.checkpoints.scoring import l2, lamp
from gprune.checkpoints.states import read_tensors
from gprune.checkpoints.writing import require_free, write

__all__ = [
    "Checkpoint",
    "CheckpointError",
    "read",
    "read_tensors",
    "choose",
    "l2",
    "lamp",
    "together",
    "each_alone",
    "Plan",
    "plan",
    "preview",
    "require_free",
    "write",
    "density",
]
