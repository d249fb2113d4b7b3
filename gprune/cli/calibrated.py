"""`gprune prune --calibrate`: prune a language model with the inputs that a text gives it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from gprune import checkpoints, num_to_prune
from gprune.checkpoints import CheckpointError, language
from gprune.checkpoints.language import Amount
from gprune.cli.printing import one_line_warnings, progress_bar, step_bar
from gprune.methods.n_of_m import check_pattern

TOKENS = 16_384
"""How many tokens of the text are read by default."""

METHODS = {"wanda": language.wanda, "sparsegpt": language.sparsegpt}


def resolve_options(score: str | None, method: str | None) -> dict[str, str | None]:
    """Check that a score and a method can be used with a text, and return both.

    Args:
        score: the option of that name, if it is given.
        method: the option of that name, if it is given.

    Returns:
        The `score` and the `method` for `prune`. SparseGPT has its own score, so it is `None`.

    Raises:
        CheckpointError: if a text cannot be used with them.
    """
    if method == "sparsegpt" and score is None:
        return {"score": None, "method": method}
    if score == "wanda" and method in (None, "rows"):
        return {"score": score, "method": "rows"}
    if method == "sparsegpt":
        raise CheckpointError("--method sparsegpt has a score of its own; leave out --score")
    raise CheckpointError(
        "--calibrate is for --score wanda, with --method rows, and for --method sparsegpt"
    )


def prune(
    checkpoint: Path,
    out: Path,
    *,
    amount: Amount,
    text: Path,
    tokens: int,
    length: int | None,
    include: Sequence[str],
    exclude: Sequence[str],
    score: str | None,
    method: str,
    refit: bool,
    force: bool,
    dry_run: bool,
) -> tuple[checkpoints.Outcome, dict[str, str]]:
    """Write a pruned copy of a language model, and show progress bars.

    Args:
        checkpoint: a Hugging Face folder that transformers loads.
        out: the path of the copy.
        amount: how many inputs of each output to prune (int), the fraction of them (float, 0 to 1),
            or n and m. For SparseGPT how many entries of each weight.
        text: a text file in UTF-8.
        tokens: how many tokens of it are read.
        length: how many tokens a sequence has, or `None` for the default of `read_text`.
        include: globs of names. If there are any, only tensors that one of them matches are pruned.
        exclude: globs of names. Tensors that one of them matches are not pruned.
        score: from `resolve_options`.
        method: from `resolve_options`.
        refit: whether what is kept is rebuilt.
        force: whether an existing checkpoint at `out` may be replaced.
        dry_run: whether to write nothing.

    Returns:
        How much of each tensor is pruned, and why the other tensors are left out.
    """
    import transformers  # noqa: F401  so that its absence is the first error

    source = checkpoints.read(checkpoint)
    checkpoints.check_output_path(source, out, force=force)
    weights = checkpoints.choose(source.tensors, include=include, exclude=exclude)
    if isinstance(amount, tuple):
        check_pattern(*amount)
    else:
        num_to_prune(amount, max(weight.numel() for weight in weights.values()))  # checks it
    batches = language.read_text(text, source, tokens=tokens, length=length)
    model = language.load(source, weights)
    blocks = language.linear_blocks(model, source, weights)
    reasons = checkpoints.left_out(source.tensors, include=include, exclude=exclude)
    reasons = language.left_out(reasons, weights, blocks)
    prune_block = METHODS[score or method](amount, refit=refit)
    with one_line_warnings(), step_bar() as bar:
        advance = partial(bar.advance, bar.add_task("prune blocks", total=len(blocks)))
        rebuilt = language.prune(model, blocks, batches, prune_block, advance)
    if dry_run:
        return checkpoints.preview(rebuilt), reasons
    with progress_bar() as bar:
        write = partial(bar.advance, bar.add_task("write", total=source.num_bytes))
        return checkpoints.write(source, rebuilt, out, force=force, advance=write), reasons
