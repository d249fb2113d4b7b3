"""Write the results of the benchmarks into README's tables: `python -m tests.bench.readme`."""

import json
from pathlib import Path

from tests.bench import evidence, layer_shuffle, minilm

ROOT = Path(__file__).parents[2]


def table() -> str:
    results = json.loads((ROOT / "tests" / "bench" / "results.json").read_text())
    machine = results["machine"]
    rows = [
        f"{machine['processor']}, {machine['cores']} cores, {machine['threads']} threads, "
        f"torch {machine['torch']}, optree {machine['optree']}, Python {machine['python']}:",
        "",
        "| what | measured | bound |",
        "|---|---|---|",
    ]
    for name, figure in results["figures"].items():
        sign, bound = ("≤", "at_most") if "at_most" in figure else ("≥", "at_least")
        rows.append(f"| {name} | {figure['value']:g} | {sign} {figure[bound]:g} |")
    return "\n".join(rows) + "\n"


def replace(text: str, name: str, table: str) -> str:
    """Put a table between the two comments of that name."""
    before, _, rest = text.partition(f"<!-- {name} -->\n")
    _, _, after = rest.partition(f"<!-- /{name} -->\n")
    return f"{before}<!-- {name} -->\n{table}<!-- /{name} -->\n{after}"


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
