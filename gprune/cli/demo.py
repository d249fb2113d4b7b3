"""`gprune demo`: dense, gradual, one-shot and random runs of one compiled training step."""

from __future__ import annotations

import copy
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import Progress
from torch._dynamo.utils import counters
from torch.nn.utils import prune as torch_prune

import gprune as gp
from gprune import adapter
from gprune.cli import demo_report as report
from gprune.cli import demo_training as training
from gprune.cli.demo_training import LAYERS, Digits, Params, Run, Step

SPARSITIES = (0.9, 0.98)


def run(steps: int, picture: Path) -> bool:
    """Train and prune, print the results, and write the picture.

    Args:
        steps: training steps of each run.
        picture: the path of the picture.

    Returns:
        Whether the counts, the masks and the number of compilations are as expected.
    """
    start = time.perf_counter()
    console = Console()
    with one_thread():
        data = training.load(steps)
        with console.status("Compiling the step"):
            backend, trouble = choose_backend()
            already = num_compilations()
            step = compiled_step(backend, data)
        compiling = time.perf_counter() - start
        if trouble:
            console.print(trouble, soft_wrap=True, highlight=False)
        runs = all_runs(step, data, console)
        compilations = num_compilations() - already
        differing = compare_with_torch(runs[0].state.params, SPARSITIES[0])
    report.draw(runs, picture)

    exact = all(one.num_pruned == one.num_expected for one in runs)
    console.print(report.table(runs))
    for line in (
        f"Counts: {'every run pruned exactly what was asked' if exact else 'NOT as asked'}.",
        f"Compilations of the step: {compilations} for all {len(runs)} runs (backend {backend}).",
        f"{SPARSITIES[0]:.0%} pruned by gprune.adapter and by torch.nn.utils.prune: "
        + (f"the masks DIFFER in {differing} entries." if differing else "the masks agree."),
        f"Picture: {picture}",
        f"{versions()}: {time.perf_counter() - start:.0f} s, {compiling:.0f} s of it compiling.",
    ):
        console.print(line, soft_wrap=True, highlight=False)
    return exact and compilations == 1 and not differing


@contextmanager
def one_thread() -> Iterator[None]:
    """Let torch use one thread: it is faster for small tensors, and results do not vary.

    Yields:
        Nothing.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def choose_backend() -> tuple[str, str]:
    """Choose Inductor if it can compile on this machine.

    The only way to know is to compile something: a compiler may be installed without headers. That
    costs little time, because the step later uses what Inductor loads and builds here.

    Returns:
        The backend, and a message if it is not Inductor.
    """
    try:
        torch.compile(lambda x: x + 1)(torch.zeros(1))
    except RuntimeError as error:  # Dynamo wraps all errors of Inductor in it
        reason = str(error).partition("\n")[0]
        missing = "InvalidCxxCompiler" in reason
        reason = "No C++ compiler" if missing else f"Inductor fails here ({reason})"
        return "aot_eager", f'{reason}: the same step runs with backend="aot_eager".'
    return "inductor", ""


def compiled_step(backend: str, data: Digits) -> Step:
    """Compile the step, with a first call whose result is not used."""
    step = torch.compile(training.make_step(), fullgraph=True, backend=backend)
    batch = data.batches[0]
    nothing = gp.schedules.constant(0.0)(0)
    step(*training.initial(), nothing, data.train_x[batch], data.train_y[batch])
    return step


def num_compilations() -> int:
    """Return how many graphs this process has compiled: with `fullgraph`, one per compilation."""
    return int(counters["stats"]["unique_graphs"])


def all_runs(step: Step, data: Digits, console: Console) -> list[Run]:
    """Train the dense run, and for each sparsity a gradual, a one-shot and a random run.

    The gradual runs start from the dense run after a third of the steps, and reach their sparsity
    after two thirds. The other runs start from the dense run after two thirds. So all runs have the
    same number of steps to recover. Each curve begins at the point of the dense run where the run
    starts.

    Args:
        step: the compiled step.
        data: the images and the batches.
        console: where the progress bar is shown.

    Returns:
        The runs, the dense one first.
    """
    total = len(data.batches)
    begin, end = total // 3, 2 * total // 3
    to_begin, to_end, rest = range(begin), range(begin, end), range(end, total)
    nothing = gp.schedules.constant(0.0)
    with Progress(console=console) as progress:
        gradual_steps = len(SPARSITIES) * (total - begin)
        at_once_steps = 2 * len(SPARSITIES) * (total - end)
        task = progress.add_task("dense", total=total + gradual_steps + at_once_steps)

        def on_step() -> None:
            progress.advance(task)

        before, start = training.train(step, training.initial(), nothing, to_begin, data, on_step)
        after, middle = training.train(step, before, nothing, to_end, data, on_step)
        dense, tail = training.train(step, after, nothing, rest, data, on_step)
        runs = [Run("dense", 0.0, dense, start + middle + tail)]
        for sparsity in SPARSITIES:
            cubic = gp.schedules.polynomial(sparsity, begin=begin, end=end)
            at_once = gp.schedules.one_shot(sparsity, step=end)
            at_random = training.prune_at_random(after, sparsity)
            for method, state, schedule, steps, fork in (
                ("gradual", before, cubic, range(begin, total), start[-1]),
                ("one-shot", after, at_once, rest, middle[-1]),
                ("random", at_random, nothing, rest, middle[-1]),
            ):
                progress.update(task, description=f"{method} {sparsity:.0%}")
                final, records = training.train(step, state, schedule, steps, data, on_step)
                runs.append(Run(method, sparsity, final, [fork, *records]))
    return runs


def compare_with_torch(params: Params, amount: float) -> int:
    """Prune one module with the adapter and with torch.

    Args:
        params: the trained parameters.
        amount: the fraction to prune.

    Returns:
        The number of entries in which the masks differ.
    """
    ours = training.network()
    ours.load_state_dict(params)
    theirs = copy.deepcopy(ours)
    for module, prune in ((ours, adapter), (theirs, torch_prune)):
        pairs = [(module.get_submodule(layer), "weight") for layer in LAYERS]
        prune.global_unstructured(pairs, pruning_method=torch_prune.L1Unstructured, amount=amount)
    masks = dict(ours.named_buffers())
    return sum(int((masks[name] != mask).sum()) for name, mask in theirs.named_buffers())


def versions() -> str:
    """Return the versions that the results were computed with."""
    try:
        ours = version("gprune")
    except PackageNotFoundError:
        ours = "(not installed)"
    return (
        f"gprune {ours}, torch {torch.__version__}, scikit-learn {version('scikit-learn')}, "
        f"Python {platform.python_version()}"
    )
