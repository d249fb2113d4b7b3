"""Write the results of the benchmarks into README's tables: `python -m tests.bench.readme`."""

import json
from pathlib import Path

from tests.bench import evidence, layer_shuffle, minilm
from tests.bench.measure import replace

ROOT = Path(__file__).parents[2]


# the rest is in results.json; what misses its bound is always shown
SHOWN = [
    "torch.nn.utils.prune over gprune, amount 0.1",
    "torch.nn.utils.prune over gprune, amount 0.5",
    "torch.nn.utils.prune over gprune, amount 0.9",
    "torch over the adapter, whole call",
    "gprune over the floor",
    "peak memory beyond weights and masks, MiB",
    "training step with gradual over dense, averaged over a run",
    "8 GB checkpoint: memory beyond the largest tensor, MiB",
    "8 GB checkpoint: copying over pruning it",
]


def missed(figure: dict[str, float]) -> bool:
    value = figure["value"]
    return not figure.get("at_least", value) <= value <= figure.get("at_most", value)


def table() -> str:
    results = json.loads((ROOT / "tests" / "bench" / "results.json").read_text())
    machine, figures = results["machine"], results["figures"]
    rows = [
        f"{machine['processor']}, {machine['cores']} cores, {machine['threads']} threads, "
        f"torch {machine['torch']}, optree {machine['optree']}, Python {machine['python']}:",
        "",
        "| what | measured | bound |",
        "|---|---|---|",
    ]
    for name in SHOWN + [x for x, figure in figures.items() if missed(figure) and x not in SHOWN]:
        figure = figures[name]
        sign, bound = ("≤", "at_most") if "at_most" in figure else ("≥", "at_least")
        miss = ", missed" if missed(figure) else ""
        rows.append(f"| {name} | {figure['value']:g} | {sign} {figure[bound]:g}{miss} |")
    return "\n".join(rows) + "\n"


def main() -> None:
    readme = ROOT / "README.md"
    text = replace(readme.read_text(), "figures", table())
    for name, script in (
        ("layer shuffle", layer_shuffle),
        ("evidence", evidence),
        ("minilm", minilm),
    ):
        text = replace(text, name, script.table(json.loads(script.RESULTS.read_text())))
    readme.write_text(text)


if __name__ == "__main__":
    main()
