"""Does it matter which weights of a layer are pruned? `python -m tests.bench.layer_shuffle`.

The sanity check of Frankle et al., 2021, "Pruning Neural Networks at Initialization: Why Are We
Missing the Mark?" (arXiv:2009.08576): train a network with the masks of each score, and again with
the entries of each mask permuted within its layer. Accuracy should fall for magnitude
after training, but not for scores at initialization.

The data are MNIST-1D (Greydanus, 2020, arXiv:2011.14439), which the package `mnist1d` makes offline
from a fixed seed. All networks of all seeds train side by side under `vmap`. Writes
layer_shuffle.json, from which `python -m tests.bench.pages` makes the table in RESULTS.md.
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.progress import Progress
from torch import Tensor
from torch.nn import functional as F  # noqa: N812  torch's own name for it

import gprune as gp
from gprune.trees import map_leaves
from tests.bench.conftest import THREADS, machine

RESULTS = Path(__file__).with_suffix(".json")
WIDTHS = (40, 100, 100, 10)
BATCH, RATE, SCORED = 100, 5e-3, 512

Params = dict[str, Any]


class Data(NamedTuple):
    x: Tensor
    y: Tensor
    x_test: Tensor
    y_test: Tensor


@cache
def mnist1d() -> Data:
    from mnist1d.data import get_dataset_args, make_dataset  # it imports scipy and matplotlib

    found = make_dataset(get_dataset_args())
    x, x_test = (torch.tensor(found[name], dtype=torch.float32) for name in ("x", "x_test"))
    return Data(x, torch.tensor(found["y"]), x_test, torch.tensor(found["y_test"]))


# --- the network ------------------------------------------------------------------------------


def initial(seed: int) -> Params:
    """He's initialization: weights of variance 2 / fan_in, biases zero."""
    generator = torch.Generator().manual_seed(seed)
    params: Params = {}
    for i, (fan_in, fan_out) in enumerate(itertools.pairwise(WIDTHS)):
        weight = torch.randn(fan_out, fan_in, generator=generator)
        params[f"{i}.weight"] = weight * (2 / fan_in) ** 0.5
        params[f"{i}.bias"] = torch.zeros(fan_out)
    return params


def forward(params: Params, x: Tensor) -> Tensor:
    last = len(WIDTHS) - 2
    for i in range(last):
        x = F.relu(F.linear(x, params[f"{i}.weight"], params[f"{i}.bias"]))
    return F.linear(x, params[f"{last}.weight"], params[f"{last}.bias"])


def loss(params: Params, x: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(forward(params, x), y)


def softened(params: Params, x: Tensor, y: Tensor) -> Tensor:
    """The loss in the code of GraSP's authors, which divides the logits by 200."""
    return F.cross_entropy(forward(params, x) / 200, y)


# --- the masks --------------------------------------------------------------------------------

Select = Callable[[Params, Params, Data, float, int], Any]


def by(score: Callable[[Params, Params, Data, int], Any]) -> Select:
    """Return a function that prunes once by a score of initial and trained parameters."""

    def select(params: Params, trained: Params, data: Data, sparsity: float, seed: int) -> Any:
        scores = score(params, trained, data, seed)
        return gp.global_unstructured(gp.prunable(params), scores, sparsity=sparsity)

    return select


def by_synflow(params: Params, trained: Params, data: Data, sparsity: float, seed: int) -> Any:
    return gp.scores.iterative_synflow(forward, params, (1, WIDTHS[0]), sparsity=sparsity)


def some(data: Data, seed: int) -> tuple[Tensor, Tensor]:
    """The examples that a score sees."""
    order = torch.randperm(len(data.x), generator=torch.Generator().manual_seed(seed))[:SCORED]
    return data.x[order], data.y[order]


METHODS: dict[str, Select] = {
    "magnitude after training": by(lambda p, trained, data, seed: gp.scores.magnitude(trained)),
    "SNIP": by(lambda p, trained, data, seed: gp.scores.snip(loss, p, *some(data, seed))),
    "GraSP": by(lambda p, trained, data, seed: gp.scores.grasp(loss, p, *some(data, seed))),
    "GraSP, logits / 200": by(
        lambda p, trained, data, seed: gp.scores.grasp(softened, p, *some(data, seed))
    ),
    "SynFlow": by_synflow,
    "magnitude at initialization": by(lambda p, trained, data, seed: gp.scores.magnitude(p)),
    "random": by(lambda p, trained, data, seed: gp.scores.random(p, seed=seed)),
}


def shuffled(masks: Any, seed: int) -> Any:
    """Permute the entries of each mask, so every layer keeps the same number of weights."""
    draws = gp.scores.random(masks, seed=seed)

    def permute(mask: Tensor | None, draw: Tensor | None) -> Tensor | None:
        if mask is None or draw is None:
            return None
        return mask.flatten()[draw.flatten().argsort()].reshape(mask.shape)

    return map_leaves(permute, masks, draws)


# --- training, all networks side by side ------------------------------------------------------


def stack(trees: list[Any]) -> Any:
    return map_leaves(lambda *ls: None if ls[0] is None else torch.stack(ls), *trees)


def train(
    params: Params, masks: Any, data: Data, seeds: list[int], steps: int, advance: Callable[[], Any]
) -> Params:
    """Adam with a rate that falls to zero; masks on the update, so what is pruned stays zero."""
    grad = torch.vmap(torch.func.grad(loss))
    generators = {seed: torch.Generator().manual_seed(seed) for seed in set(seeds)}
    params = gp.apply_masks(params, masks)
    first, second = ({k: torch.zeros_like(p) for k, p in params.items()} for _ in range(2))
    for step in range(1, steps + 1):
        drawn = {
            s: torch.randint(len(data.x), (BATCH,), generator=g) for s, g in generators.items()
        }
        order = torch.stack([drawn[seed] for seed in seeds])
        grads = grad(params, data.x[order], data.y[order])
        rate = RATE * (1 - (step - 1) / steps)
        for k, g in grads.items():
            first[k] = 0.9 * first[k] + 0.1 * g
            second[k] = 0.999 * second[k] + 0.001 * g.square()
            scale = (second[k] / (1 - 0.999**step)).sqrt() + 1e-8
            params[k] = params[k] - rate * first[k] / (1 - 0.9**step) / scale
        params = gp.apply_masks(params, masks)
        advance()
    return params


def accuracy(params: Params, data: Data) -> Tensor:
    """Return the test accuracy of each network, in percent."""
    logits = torch.vmap(forward, in_dims=(0, None))(params, data.x_test)
    return (logits.argmax(-1) == data.y_test).double().mean(-1) * 100


# --- the experiment ---------------------------------------------------------------------------


def run(num_seeds: int, steps: int, sparsity: float) -> dict[str, Any]:
    data, seeds = mnist1d(), list(range(num_seeds))
    starts = [initial(seed) for seed in seeds]
    with Progress() as progress:
        bar = progress.add_task("dense networks", total=2 * steps)
        dense = train(
            stack(starts),
            gp.keep_all(stack([gp.prunable(start) for start in starts])),
            data,
            seeds,
            steps,
            lambda: progress.advance(bar),
        )
        variants, networks, masks = [], [], []
        for seed, start in zip(seeds, starts, strict=True):
            trained = {k: p[seed] for k, p in dense.items()}
            for name, select in METHODS.items():
                kept = select(start, trained, data, sparsity, seed)
                variants += [(name, seed)]
                networks += [trained if name == "magnitude after training" else start] * 2
                masks += [kept, shuffled(kept, seed)]
        progress.update(bar, description="pruned networks")
        order = [seed for _, seed in variants for _ in range(2)]
        pruned = train(
            stack(networks), stack(masks), data, order, steps, lambda: progress.advance(bar)
        )
    pairs = accuracy(pruned, data).reshape(-1, 2)
    return {
        "seeds": num_seeds,
        "steps": steps,
        "sparsity": sparsity,
        "dense": spread(accuracy(dense, data)),
        "methods": {
            name: {
                "as scored": spread(pairs[mine, 0]),
                "shuffled": spread(pairs[mine, 1]),
                "difference": spread(pairs[mine, 1] - pairs[mine, 0]),
            }
            for name in METHODS
            for mine in [[i for i, (method, _) in enumerate(variants) if method == name]]
        },
    }


def spread(values: Tensor) -> list[float]:
    """Mean and standard deviation over seeds."""
    deviation = values.std().item() if len(values) > 1 else 0.0
    return [round(values.mean().item(), 1), round(deviation, 1)]


def table(results: dict[str, Any]) -> str:
    """The results in Markdown, as RESULTS.md has them: a group of columns for each sparsity."""
    runs = results["runs"]
    columns = [f"{run['sparsity']:.0%}: accuracy | shuffled | difference" for run in runs]
    lines = [
        f"{runs[0]['seeds']} seeds, {runs[0]['steps']} steps, in percent; dense: "
        f"{cell(runs[0]['dense'])}. {described(results['machine'])}:",
        "",
        f"| masks from | {' | '.join(columns)} |",
        "|---" * (1 + 3 * len(runs)) + "|",
    ]
    for name in runs[0]["methods"]:
        rows = [run["methods"][name] for run in runs]
        cells = [cell(row[x]) for row in rows for x in ("as scored", "shuffled", "difference")]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def cell(pair: list[float]) -> str:
    return f"{pair[0]:.1f} ± {pair[1]:.1f}"


def described(machine: dict[str, Any]) -> str:
    return f"{machine['processor']}, torch {machine['torch']}, Python {machine['python']}"


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench.layer_shuffle", description=__doc__
    )
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--sparsities", type=float, nargs="+", default=[0.8, 0.9])
    parser.add_argument("--dry", action="store_true", help="print the table and write nothing")
    arguments = parser.parse_args()
    torch.set_num_threads(THREADS)
    runs = [run(arguments.seeds, arguments.steps, sparsity) for sparsity in arguments.sparsities]
    results = {"machine": machine(), "runs": runs}
    print(table(results))
    if not arguments.dry:
        RESULTS.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
