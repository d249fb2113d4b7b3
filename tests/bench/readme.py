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


def write(marker: str, text: str) -> None:
    """Put a text between README's comments of that name."""
    readme = ROOT / "README.md"
    before, _, rest = readme.read_text().partition(f"<!-- {marker} -->\n")
    _, _, after = rest.partition(f"<!-- /{marker} -->\n")
    readme.write_text(f"{before}<!-- {marker} -->\n{text}<!-- /{marker} -->\n{after}")


if __name__ == "__main__":
    write("figures", table())
