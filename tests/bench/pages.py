"""Write the results into RESULTS.md, and a few into README: `python -m tests.bench.pages`."""

import json
from pathlib import Path
from typing import Any

from tests.bench import evidence, layer_shuffle, llm, minilm
from tests.bench.measure import replace

ROOT = Path(__file__).parents[2]
README, RESULTS = ROOT / "README.md", ROOT / "tests" / "bench" / "RESULTS.md"
PAGE = "tests/bench/RESULTS.md"

# Sentences of README, and the names in results.json of their figures.
QUOTED = {
    "`torch.nn.utils.prune` takes {} times as long as gprune, and numpy by hand {} times. gprune "
    "takes {} MiB of memory beyond weights and masks.": [
        "torch.nn.utils.prune over gprune, amount 0.5",
        "numpy by hand over gprune",
        "peak memory beyond weights and masks, MiB",
    ],
    "For 30,000 weights gprune takes {} times as long as `cat` and `kthvalue` by hand, and for "
    "200,000 weights {} times.": [
        "30,000 weights over cat, abs and kthvalue by hand",
        "200,000 weights over cat, abs and kthvalue by hand",
    ],
}


def results() -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((ROOT / "tests" / "bench" / "results.json").read_text())
    return loaded


def missed(figure: dict[str, Any]) -> bool:
    value = figure["value"]
    return not figure.get("at_least", value) <= value <= figure.get("at_most", value)


def machine() -> str:
    found = results()["machine"]
    return (
        f"{found['processor']}, {found['cores']} cores, {found['threads']} threads, "
        f"torch {found['torch']}, optree {found['optree']}, Python {found['python']}"
    )


def table() -> str:
    """Give the table of all figures with their bounds."""
    rows = [f"Last on {machine()}:", ""]
    rows += ["| what | measured | bound | processor |", "|---|---|---|---|"]
    for name, figure in results()["figures"].items():
        sign, bound = ("≤", "at_most") if "at_most" in figure else ("≥", "at_least")
        miss = ", missed" if missed(figure) else ""
        cells = name, f"{figure['value']:g}", f"{sign} {figure[bound]:g}{miss}"
        rows.append(f"| {' | '.join(cells)} | {figure['processor']} |")
    return "\n".join(rows) + "\n"


def quoted() -> str:
    """Give README's figures, each with a link to all."""
    figures = results()["figures"]
    lines = [f"Measured on {machine()}; by default for 50 million weights, half pruned:"]
    for sentence, names in QUOTED.items():
        values = (f"[{figures[name]['value']:g}]({PAGE}#figures)" for name in names)
        lines.append(f"- {sentence.format(*values)}")
    of_language_model = f"{PAGE}#a-language-model-pruned-without-training"
    dense, by_magnitude, best = (
        f"[{perplexity(method):g}]({of_language_model})"
        for method in ("dense", "magnitude by row", "Wanda + swap + refit")
    )
    lines.append(
        f"- The perplexity of SmolLM2-135M is {dense}. With half of the weights of its blocks "
        f"pruned it is {by_magnitude} by magnitude in each row, and {best} by Wanda, `swap` and "
        "`refit`."
    )
    return "\n".join(lines) + "\n"


def perplexity(method: str) -> float:
    """Give the perplexity of the language model, half pruned unless it is dense."""
    sparsity = "0" if method == "dense" else "0.5"
    [found] = [
        row["perplexity"]
        for row in llm.load()["rows"]
        if (row["method"], row["sparsity"], row["seed"]) == (method, sparsity, 0)
    ]
    return round(float(found), 1)


def main() -> None:
    text = replace(RESULTS.read_text(), "figures", table())
    for name, script in (
        ("layer shuffle", layer_shuffle),
        ("evidence", evidence),
        ("minilm", minilm),
    ):
        text = replace(text, name, script.table(json.loads(script.RESULTS.read_text())))
    RESULTS.write_text(replace(text, "language model", llm.page(llm.load())))
    README.write_text(replace(README.read_text(), "figures", quoted()))


if __name__ == "__main__":
    main()
