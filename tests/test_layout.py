"""The layout: which module imports which, and that every module has a docstring."""

import ast
import runpy
from graphlib import TopologicalSorter
from pathlib import Path

import grimp
import pytest

import gprune

PACKAGE = Path(gprune.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))
# from the top: a module imports modules below it, and none of its own layer
LAYERS = [
    {"cli"},
    {"adapter", "checkpoints", "testing"},
    {"pruners", "scores"},
    {"prune", "summaries"},
    {"allocation", "methods", "schedules"},
    {"masks"},
    {"calls"},
    {"select"},
    {"inputs"},
    {"trees"},
]


def name(file: Path) -> str:
    return str(file.relative_to(PACKAGE))


@pytest.fixture(scope="module")
def imports() -> grimp.ImportGraph:
    """Also those within functions, but for the one that registers the rules of DTensors."""
    graph = grimp.build_graph("gprune", cache_dir=None)
    graph.remove_import(importer="gprune.inputs", imported="gprune.select.sharded")
    return graph


def test_every_module_has_a_layer() -> None:
    modules = {file.relative_to(PACKAGE).parts[0].removesuffix(".py") for file in FILES}
    assert modules == set().union(*LAYERS) | {"__init__"}


def test_modules_import_downwards(imports: grimp.ImportGraph) -> None:
    layers = [grimp.Layer(*layer, independent=True) for layer in LAYERS]
    wrong = imports.find_illegal_dependencies_for_layers(layers=layers, containers={"gprune"})
    assert not [(found.importer, found.imported) for found in wrong]


def test_no_circle_of_imports(imports: grimp.ImportGraph) -> None:
    modules = {m: imports.find_modules_directly_imported_by(m) for m in imports.modules}
    TopologicalSorter(modules).prepare()  # a CycleError names the circle


@pytest.mark.parametrize("file", FILES, ids=name)
def test_every_module_has_a_docstring(file: Path) -> None:
    docstring = ast.get_docstring(ast.parse(file.read_text())) or ""
    assert len(docstring.splitlines()[0]) > 20


def test_the_code_of_a_user_runs() -> None:
    """The type checker holds it to strict types."""
    runpy.run_path(str(Path(__file__).with_name("user_code.py")), run_name="__main__")
