"""Write the figures of results.json into README's table: `python -m tests.bench.readme`."""

import json
from pathlib import Path

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


def main() -> None:
    readme = ROOT / "README.md"
    before, _, rest = readme.read_text().partition("<!-- figures -->\n")
    _, _, after = rest.partition("<!-- /figures -->\n")
    readme.write_text(f"{before}<!-- figures -->\n{table()}<!-- /figures -->\n{after}")


if __name__ == "__main__":
    main()
