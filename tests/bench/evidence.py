"""What pruning costs in accuracy, on MNIST-1D: `python -m tests.bench.evidence`.

A small MLP (Greydanus & Kobak, 2024, arXiv:2011.14439: 40-100-100-10) is trained by every pruner at
four sparsities and several seeds. All models of a method train at once, by `vmap` over sparsities
and seeds; every step is the same pure function, with a functional Adam. Writes evidence.json, from
which `python -m tests.bench.pages` makes the table in RESULTS.md. `mnist1d` makes the data offline.
"""

import argparse
import functools
import json
import math
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import optree
import torch
from rich.progress import Progress

import gprune as gp
from tests.bench.conftest import processor

RESULTS = Path(__file__).parent / "evidence.json"
SPARSITIES = (0.8, 0.9, 0.95, 0.98)
BATCH, FREQ, LEARNING_RATE = 100, 50, 5e-3

Tree = Any
Builder = Callable[[torch.Tensor, torch.Tensor, int], gp.pruners.Pruner]


class Data(NamedTuple):
    x: torch.Tensor
    y: torch.Tensor
    x_test: torch.Tensor
    y_test: torch.Tensor


def mnist1d() -> Data:
    from mnist1d.data import get_dataset_args, make_dataset  # it imports scipy and matplotlib

    found = make_dataset(get_dataset_args())
    x, x_test = (torch.tensor(found[name], dtype=torch.float32) for name in ("x", "x_test"))
    y, y_test = (torch.tensor(found[name]) for name in ("y", "y_test"))
    return Data(x, y, x_test, y_test)


# --- the model, the loss, Adam --------------------------------------------------------------------


def initial(seed: int) -> Tree:
    """He's initialization, for layers of 40-100-100-10."""
    generator = torch.Generator().manual_seed(seed)
    params = {}
    for i, (fan_in, fan_out) in enumerate([(40, 100), (100, 100), (100, 10)]):
        weight = torch.randn(fan_out, fan_in, generator=generator) * math.sqrt(2 / fan_in)
        params[f"fc{i}"] = {"weight": weight, "bias": torch.zeros(fan_out)}
    return params


def forward(params: Tree, x: torch.Tensor) -> torch.Tensor:
    for i in range(3):
        x = torch.nn.functional.linear(x, params[f"fc{i}"]["weight"], params[f"fc{i}"]["bias"])
        x = torch.relu(x) if i < 2 else x
    return x


def loss_fn(params: Tree, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.cross_entropy(forward(params, x), y)


def straight_through_loss(params: Tree, x: torch.Tensor, y: torch.Tensor, masks: Tree) -> Any:
    return loss_fn(gp.straight_through(params, masks), x, y)


class Moments(NamedTuple):
    mu: Tree
    nu: Tree


def adam(
    params: Tree, moments: Moments, grads: Tree, t: torch.Tensor, rate: torch.Tensor
) -> tuple[Tree, Moments]:
    """Kingma & Ba, 2015, arXiv:1412.6980, algorithm 1; t counts from 1."""
    mu = optree.tree_map(lambda m, g: 0.9 * m + 0.1 * g, moments.mu, grads)
    nu = optree.tree_map(lambda v, g: 0.999 * v + 0.001 * g * g, moments.nu, grads)
    params = optree.tree_map(
        lambda p, m, v: p - rate * (m / (1 - 0.9**t)) / ((v / (1 - 0.999**t)).sqrt() + 1e-8),
        params,
        mu,
        nu,
    )
    return params, Moments(mu, nu)


def sparse_step(
    pruner: gp.pruners.Pruner, params: Tree, moments: Moments, state: Any, *batch: torch.Tensor
) -> tuple[Tree, Moments, Any]:
    """Train with masked gradients and prune; keep the moments only of weights that stay kept."""
    x, y, t, rate = batch
    grads = torch.func.grad(loss_fn)(params, x, y)
    masked = gp.apply_masks(grads, state.masks)
    params, moments = adam(params, moments, masked, t, rate)
    params, new = pruner.update(params, state, grads)
    stay = gp.intersect(state.masks, new.masks)
    return params, Moments(*(gp.apply_masks(tree, stay) for tree in moments)), new


def straight_through_step(
    pruner: gp.pruners.Pruner, params: Tree, moments: Moments, state: Any, *batch: torch.Tensor
) -> tuple[Tree, Moments, Any]:
    """All weights train all the time, and only the forward pass is masked."""
    x, y, t, rate = batch
    grads = torch.func.grad(straight_through_loss)(params, x, y, state.masks)
    params, moments = adam(params, moments, grads, t, rate)
    _, new = pruner.update(params, state)  # its parameters are unused: pruned weights train
    return params, moments, new


# --- the methods ----------------------------------------------------------------------------------


def every(steps: int) -> Any:
    return functools.partial(gp.schedules.every, begin=0, end=steps * 3 // 4, freq=FREQ)


def cubic(sparsity: torch.Tensor, steps: int) -> gp.schedules.Schedule:
    shape = gp.schedules.polynomial(1.0, begin=0, end=steps * 3 // 4)
    return lambda step: sparsity * shape(step)


def one_shot(sparsity: torch.Tensor, seed: torch.Tensor, steps: int) -> gp.pruners.Pruner:
    shape = gp.schedules.one_shot(1.0, step=steps // 2)
    return gp.pruners.gradual(lambda step: sparsity * shape(step), due=lambda t: t == steps // 2)


def gradual(sparsity: torch.Tensor, seed: torch.Tensor, steps: int, **by: Any) -> gp.pruners.Pruner:
    return gp.pruners.gradual(cubic(sparsity, steps), due=every(steps), **by)


def exchanging(
    build: Any, sparsity: torch.Tensor, seed: torch.Tensor, steps: int
) -> gp.pruners.Pruner:
    fraction = gp.schedules.cosine(0.0, begin=0, end=steps * 3 // 4, initial=0.3)
    return build(sparsity, fraction=fraction, due=every(steps), seed=seed)


def static(sparsity: torch.Tensor, seed: torch.Tensor, steps: int) -> gp.pruners.Pruner:
    return gp.pruners.static_sparse(sparsity, seed=seed)


def afresh(weights: Tree, scores: Tree, *, masks: Tree, sparsity: torch.Tensor) -> Tree:
    """Choose among all weights anew; return the prior masks if the sparsity is 0."""
    fresh = gp.global_unstructured(weights, scores, sparsity=sparsity)
    return gp.trees.map_leaves(
        lambda new, old: None if new is None else torch.where(sparsity > 0, new, old), fresh, masks
    )


LAYERWISE: dict[str, Any] = {"prune": gp.layerwise}
METHODS: dict[str, tuple[Builder, Any]] = {
    "one-shot, half-way": (one_shot, sparse_step),
    "gradual, global": (gradual, sparse_step),
    "gradual, layerwise": (functools.partial(gradual, **LAYERWISE), sparse_step),
    "gradual, ERK": (
        functools.partial(gradual, **LAYERWISE, allocation=gp.allocation.erdos_renyi),
        sparse_step,
    ),
    "gradual, straight-through": (
        functools.partial(gradual, prune=afresh),
        straight_through_step,
    ),
    "static sparse, ERK": (static, sparse_step),
    "SET, ERK": (functools.partial(exchanging, gp.pruners.sparse_evolution), sparse_step),
    "RigL, ERK": (functools.partial(exchanging, gp.pruners.rigl), sparse_step),
}


# --- training many models at once -----------------------------------------------------------------


def stacked(trees: list[Tree]) -> Tree:
    return gp.trees.map_leaves(
        lambda *leaves: None if leaves[0] is None else torch.stack(leaves), *trees
    )


def element(tree: Tree, i: int) -> Tree:
    return gp.trees.map_leaves(lambda leaf: None if leaf is None else leaf[i], tree)


def zeros(params: Tree) -> Moments:
    return Moments(*(optree.tree_map(torch.zeros_like, params) for _ in range(2)))


class Run(NamedTuple):
    """One model per sparsity and seed, in that order."""

    params: Tree
    sparsity: torch.Tensor
    seed: torch.Tensor
    state: Any


def started(build: Builder, seeds: list[int], sparsities: tuple[float, ...], steps: int) -> Run:
    pairs = [(sparsity, seed) for sparsity in sparsities for seed in seeds]
    params = stacked([initial(seed) for _, seed in pairs])
    sparsity = torch.tensor([pair[0] for pair in pairs], dtype=torch.float64)
    seed = torch.tensor([pair[1] for pair in pairs])
    states = [
        build(s, n, steps).init(element(params, i))
        for i, (s, n) in enumerate(zip(sparsity, seed, strict=True))
    ]
    state = stacked(states)._replace(step=states[0].step)
    return Run(params, sparsity, seed, state)


def train(
    run: Run, build: Builder, step: Any, data: Data, steps: int, tick: Callable[[], None]
) -> Run:
    """Adam with a cosine learning rate; every model sees its own batches, drawn by its seed."""
    params, moments, state = run.params, zeros(run.params), run.state
    params = gp.apply_masks(params, state.masks)
    dims = gp.vmap_dims(params), gp.vmap_dims(moments), gp.vmap_dims(state)._replace(step=None)

    def one(s: Any, n: Any, p: Any, m: Any, st: Any, *batch: torch.Tensor) -> Any:
        return step(build(s, n, steps), p, m, st, *batch)

    many = torch.vmap(one, in_dims=(0, 0, *dims, 0, 0, None, None), out_dims=dims)
    generators = [torch.Generator().manual_seed(1000 + int(n)) for n in run.seed]
    for number in range(steps):
        rows = torch.stack([torch.randint(len(data.x), (BATCH,), generator=g) for g in generators])
        rate = torch.tensor(LEARNING_RATE * (1 + math.cos(math.pi * number / steps)) / 2)
        batch = data.x[rows], data.y[rows], torch.tensor(number + 1.0), rate
        params, moments, state = many(run.sparsity, run.seed, params, moments, state, *batch)
        tick()
    return run._replace(params=params, state=state)


def accuracies(params: Tree, masks: Tree, data: Data) -> list[float]:
    """Test accuracy of each model, in percent."""
    outputs = torch.vmap(forward, in_dims=(0, None))(gp.apply_masks(params, masks), data.x_test)
    return (outputs.argmax(-1) == data.y_test).double().mean(1).mul(100).tolist()


# --- lottery tickets ------------------------------------------------------------------------------

AMOUNT = 1 - 0.02 ** (1 / 17)  # of what is left, in each of 17 rounds
ROUNDS = {7: 0.8, 10: 0.9, 13: 0.95, 17: 0.98}


def rewinding(sparsity: torch.Tensor, seed: torch.Tensor, steps: int) -> gp.pruners.Pruner:
    """Prunes and rewinds in the first step of every round but the first."""
    due = functools.partial(gp.schedules.every, begin=steps, end=10**9, freq=steps)
    return gp.pruners.iterative(AMOUNT, due=due)


def winning(
    seeds: list[int], data: Data, steps: int, tick: Callable[[], None]
) -> tuple[list[float], Tree]:
    """Find the tickets of all sparsities: their accuracies, trained alone, and their masks."""
    run = started(rewinding, seeds, (0.0,), steps)
    accurate, masks = [], []
    for number in range(max(ROUNDS) + 1):
        run = train(run, rewinding, sparse_step, data, steps, tick)
        if number in ROUNDS:
            masks.append(run.state.masks)
            accurate += accuracies(run.params, run.state.masks, data)
    joined = gp.trees.map_leaves(
        lambda *leaves: None if leaves[0] is None else torch.cat(leaves), *masks
    )
    return accurate, joined


def as_many_at_random(params: Tree, masks: Tree, seed: int) -> Tree:
    num_pruned = gp.trees.map_leaves(lambda m: None if m is None else (~m).sum(), masks)
    weights = gp.prunable(params)
    draw = {"pruning_method": gp.random_unstructured, "seed": seed}
    return gp.layerwise(weights, amount=num_pruned, **draw)


def tickets(
    seeds: list[int], data: Data, steps: int, tick: Callable[[], None]
) -> dict[str, list[float]]:
    """Winning tickets, their masks on new weights, and as many weights of each layer at random."""
    found = {}
    found["lottery ticket"], masks = winning(seeds, data, steps, tick)
    run = started(static, seeds, SPARSITIES, steps)
    ticket = run._replace(state=run.state._replace(masks=masks))
    renewed = ticket._replace(params=stacked([initial(500 + int(n)) for n in run.seed]))
    random = [
        as_many_at_random(element(run.params, i), element(masks, i), 900 + int(n))
        for i, n in enumerate(run.seed)
    ]
    shuffled = run._replace(state=run.state._replace(masks=stacked(random)))
    for name, one in {"ticket, new weights": renewed, "random ticket": shuffled}.items():
        after = train(one, static, sparse_step, data, steps, tick)
        found[name] = accuracies(after.params, after.state.masks, data)
    return found


# --- the report -----------------------------------------------------------------------------------


def measure(num_seeds: int, steps: int) -> dict[str, Any]:
    seeds, data, start = list(range(num_seeds)), mnist1d(), time.perf_counter()
    runs = 1 + len(METHODS) + max(ROUNDS) + 1 + 2
    found: dict[str, list[float]] = {}
    with Progress() as progress:
        task = progress.add_task("training", total=runs * steps)
        tick = functools.partial(progress.advance, task)
        dense = started(static, seeds, (0.0,), steps)
        dense = train(dense, static, sparse_step, data, steps, tick)
        found["dense"] = accuracies(dense.params, dense.state.masks, data) * len(SPARSITIES)
        for name, (build, step) in METHODS.items():
            progress.update(task, description=name)
            run = started(build, seeds, SPARSITIES, steps)
            run = train(run, build, step, data, steps, tick)
            found[name] = accuracies(run.params, run.state.masks, data)
        progress.update(task, description="lottery tickets")
        found |= tickets(seeds, data, steps, tick)
    return {
        "machine": {
            "processor": processor(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "optree": optree.__version__,
            "python": platform.python_version(),
        },
        "seconds": round(time.perf_counter() - start),
        "steps": steps,
        "seeds": num_seeds,
        "accuracy": {name: by_sparsity(values, num_seeds) for name, values in found.items()},
    }


def by_sparsity(values: list[float], num_seeds: int) -> dict[str, list[float]]:
    return {
        f"{100 * s:g} %": [round(x, 2) for x in values[i * num_seeds : (i + 1) * num_seeds]]
        for i, s in enumerate(SPARSITIES)
    }


def table(results: dict[str, Any]) -> str:
    machine = results["machine"]
    columns = [f"{100 * s:g} %" for s in SPARSITIES]
    rows = [
        f"Test accuracy in percent, mean ± standard deviation of {results['seeds']} seeds, "
        f"{results['steps']} steps each; {machine['processor']}, {machine['cores']} cores, "
        f"{machine['threads']} threads, torch {machine['torch']}, Python {machine['python']}, "
        f"{results['seconds']} s in all:",
        "",
        f"| method | {' | '.join(columns)} |",
        f"|---|{'---|' * len(columns)}",
    ]
    for name, accuracy in results["accuracy"].items():
        cells = [
            f"{statistics.mean(accuracy[c]):.1f} ± {statistics.stdev(accuracy[c]):.1f}"
            for c in columns
        ]
        rows.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(rows) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5, help="models of each kind, at least 2")
    parser.add_argument("--steps", type=int, default=1500, help="of training, for each model")
    parser.add_argument("--dry", action="store_true", help="print the table, write nothing")
    arguments = parser.parse_args()
    results = measure(arguments.seeds, arguments.steps)
    print(table(results))
    if not arguments.dry:
        RESULTS.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
