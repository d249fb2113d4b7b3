"""Checkpoints on disk: prune and report them without loading them into memory.

    >>> import torch
    >>> from pathlib import Path
    >>> from tempfile import TemporaryDirectory
    >>> from safetensors.torch import save_file
    >>> from gprune import checkpoints
    >>> with TemporaryDirectory() as folder:
    ...     path, out = Path(folder, "model.safetensors"), Path(folder, "pruned.safetensors")
    ...     save_file({"fc.weight": torch.randn(20, 30), "fc.bias": torch.randn(20)}, path)
    ...     checkpoint = checkpoints.read(path)
    ...     weights = checkpoints.choose(checkpoint.tensors)
    ...     plan = checkpoints.plan(weights, amount=0.5, folder=Path(folder))
    ...     found = checkpoints.write(checkpoint, plan, out)
    >>> found.pruned.total.pruned
    300

The command `gprune prune` makes these calls. The names are in the order of the data flow:

    Checkpoint            a safetensors file or a Hugging Face folder, mapped into memory
    CheckpointError       raised if a checkpoint is invalid, or its copy may not be written
    read                  a path -> a checkpoint
    read_tensors          a path -> tensors by name, also of files that torch has saved
    choose                tensors -> the weights to prune
    left_out              tensors -> why the others are not chosen
    quantized             tensors -> which are codes of quantized weights
    group                 reasons by name -> names by reason
    l2                    a weight -> its scores |w| / ‖w‖₂, block by block
    lamp                  a weight -> its scores by `gprune.scores.lamp`
    global_thresholds     weights and an amount -> thresholds of one ranking over all weights
    layerwise_thresholds  weights and an amount -> thresholds of a ranking of each weight
    Plan                  the weights to prune and their thresholds
    plan                  weights and an amount -> a plan
    Outcome               how much of each weight is pruned, and how much is zero in the copy
    preview               a plan -> its outcome, without writing
    check_output_path     raise an error if a copy must not be written to a path
    write                 a checkpoint and a plan -> the pruned copy, written atomically
    density               tensors -> how many of their entries are zero
    uncounted             tensors -> why the zeros of some cannot be counted

Checkpoints are memory-mapped and may be larger than memory. What is held in memory is one block of
weights, one mask, and the buffers of the search; the score `lamp` needs memory for a whole weight.
One search finds the threshold of all weights, or one search for each weight finds its own. Then
every file is copied, and the bytes of pruned entries become zero.

Only language models that are pruned with the inputs of a text are loaded, by the submodule
`gprune.checkpoints.language`, which needs the extra `transformers`. `import gprune` imports nothing
of this package. It needs safetensors, from the extra `cli`.

    reading.py            a safetensors file or a Hugging Face folder -> mapped tensors
    states.py             a state dict saved by torch -> mapped tensors
    choosing.py           tensors -> the weights to prune, and why the others are left out
    scoring.py            a weight -> its scores, block by block, in a temporary file
    planning.py           weights and an amount -> a threshold for each weight
    calibrating.py        a network and batches -> its blocks as functions, and their inputs
    language.py           a language model, a text and an amount -> new weights and masks
    writing.py            a checkpoint and a plan -> the pruned copy
    density.py            tensors -> how many of their entries are zero
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
