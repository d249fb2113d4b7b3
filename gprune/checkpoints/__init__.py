"""Checkpoints on disk: prune and report them without loading them into memory.

Checkpoints are memory-mapped and may be larger than memory. What is held in memory is one block of
weights, one mask, and the buffers of the search; the score `lamp` needs memory for a whole weight.
One search finds the threshold of all weights, or one search for each weight finds its own. Then
every file is copied, and the bytes of pruned entries become zero.

Only language models that are pruned with the inputs of a text are loaded, by the submodule
`language`.

`import gprune` imports nothing of this package. It needs safetensors, from the extra `cli`, and
`language` needs the extra `transformers`.

    reading.py      a safetensors file or a Hugging Face folder -> mapped tensors, their byte ranges
    states.py       a state dict saved by torch -> mapped tensors
    scoring.py      a weight -> its scores, block by block, in a temporary file
    choosing.py     tensors -> the weights to prune, and why the others are left out
    planning.py     weights and an amount -> a threshold for each weight
    calibrating.py  a network and batches -> its blocks as functions, and their inputs
    language.py     a language model, a text and an amount -> new weights and masks
    writing.py      a checkpoint and a plan -> the pruned copy, written atomically
    density.py      tensors -> how many of their entries are zero
"""

from gprune.checkpoints.choosing import choose, group, left_out, quantized
from gprune.checkpoints.density import density, uncounted
from gprune.checkpoints.planning import (
    Outcome,
    Plan,
    global_thresholds,
    layerwise_thresholds,
    plan,
    preview,
)
from gprune.checkpoints.reading import Checkpoint, CheckpointError, read
from gprune.checkpoints.scoring import l2, lamp
from gprune.checkpoints.states import read_tensors
from gprune.checkpoints.writing import check_output_path, write

__all__ = [
    "Checkpoint",
    "CheckpointError",
    "read",
    "read_tensors",
    "choose",
    "left_out",
    "quantized",
    "group",
    "l2",
    "lamp",
    "global_thresholds",
    "layerwise_thresholds",
    "Plan",
    "Outcome",
    "plan",
    "preview",
    "check_output_path",
    "write",
    "density",
    "uncounted",
]
