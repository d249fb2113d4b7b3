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


def between_markers(name: str, text: str) -> None:
    """Replace what README has between the markers of a name."""
    readme = ROOT / "README.md"
    before, _, rest = readme.read_text().partition(f"<!-- {name} -->\n")
    _, _, after = rest.partition(f"<!-- /{name} -->\n")
    readme.write_text(f"{before}<!-- {name} -->\n{text}<!-- /{name} -->\n{after}")


def main() -> None:
    between_markers("figures", table())


if __name__ == "__main__":
    main()
