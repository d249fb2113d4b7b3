"""The layout: which files import which files and libraries, and where tests are."""

import ast
import runpy
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import grimp
import pytest

import gprune

PACKAGE = Path(gprune.__file__).parent
TESTS = Path(__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))
# from the top: a module imports modules below it, and none of its own layer
LAYERS = [
    {"__main__"},
    {"cli"},
    {"adapter", "checkpoints", "testing"},
    {"reconstruct"},
    {"pruners", "scores"},
    {"prune", "summaries"},
    {"allocation", "methods", "schedules"},
    {"masks"},
    {"sharding"},
    {"select"},
    {"inputs"},
    {"trees"},
]

# the files without a test file of their own, and which tests run their code
TESTED_ELSEWHERE = {
    "__main__.py": "two lines, run by tests/cli/test_app.py",
    "reconstruct/matrices.py": "layouts, in the tests of each function of reconstruct",
    "scores/observer.py": "which inputs are seen, in tests/scores/test_wanda.py and test_gram.py",
    "select/dtensors.py": "the operators of DTensors, in tests/guarantees/test_sharded.py",
    "sharding.py": "errors on all ranks, in tests/select/test_ranks.py",
}

# who may import what: folders and files of the package
LIBRARIES = {
    "optree": {"trees.py", "testing/strategies.py"},  # the latter registers a custom node
    "torch.library": {
        "select/operators.py",
        "select/dtensors.py",  # their rules
        "reconstruct/refit.py",
        "reconstruct/sparsegpt.py",
        "reconstruct/swap.py",
    },
    "transformers": {"checkpoints/language.py", "cli/calibrated.py"},  # imported when called
    "triton": {"select/kernels.py"},  # which is imported only where a GPU needs it
    "torch.distributed": {"select/dtensors.py", "select/ranks.py", "select/shards.py"},
    "hypothesis": {"testing/strategies.py"},
    "numpy": {"testing/purity.py", "testing/reports.py"},
}


def name(file: Path) -> str:
    return str(file.relative_to(PACKAGE))


@pytest.fixture(scope="module")
def imports() -> grimp.ImportGraph:
    """Also those within functions."""
    return grimp.build_graph("gprune", cache_dir=None)


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


def libraries(file: Path) -> Iterator[str]:
    """The modules that a file imports, and `torch.library` if it names it."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""
        elif isinstance(node, ast.Attribute) and ast.unparse(node) == "torch.library":
            yield "torch.library"


@pytest.mark.parametrize("library", LIBRARIES)
def test_a_library_is_imported_by_few_files(library: str) -> None:
    found = {
        name(file)
        for file in FILES
        if any(f"{module}.".startswith(f"{library}.") for module in libraries(file))
    }
    assert found == LIBRARIES[library]


@pytest.mark.parametrize("file", FILES, ids=name)
def test_no_behaviour_is_hidden(file: Path) -> None:
    """No context variables, and no functions that carry settings as attributes.

    `methods/method.py` is the exception: a pruning method is an object with a function's name.
    """
    tree = ast.parse(file.read_text())
    functions = {n.name for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)}
    for node in ast.walk(tree):
        assert not (isinstance(node, ast.Name) and node.id == "ContextVar")
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            owner = ast.unparse(node.value)
            assert owner not in functions, f"{owner}.{node.attr} is set"
            if name(file) != "methods/method.py":
                assert node.attr not in ("__name__", "__qualname__"), f"{owner} is renamed"


def test_every_file_has_its_tests_in_the_same_place() -> None:
    """`gprune/scores/snip.py` is tested by `tests/scores/test_snip.py`."""
    missing = {
        name(file)
        for file in FILES
        if not file.name.startswith("__init__")
        and not (TESTS / file.relative_to(PACKAGE)).with_name(f"test_{file.name}").exists()
    }
    assert missing == set(TESTED_ELSEWHERE)


def test_the_code_of_a_user_runs() -> None:
    """The type checker holds it to strict types."""
    runpy.run_path(str(TESTS / "user_code.py"), run_name="__main__")


FACTORIES = {"arange", "empty", "full", "linspace", "ones", "rand", "randn", "tensor", "zeros"}


def test_the_search_names_the_device_of_every_tensor_that_it_makes() -> None:
    """`torch.set_default_device` must not reach into it."""
    without = [
        f"{name(file)}:{call.lineno}"
        for file in FILES
        if name(file).startswith("select/")
        for call in ast.walk(ast.parse(file.read_text()))
        if isinstance(call, ast.Call)
        and isinstance(call.func, ast.Attribute)
        and isinstance(call.func.value, ast.Name)
        and (call.func.value.id, call.func.attr in FACTORIES) == ("torch", True)
        and "device" not in {keyword.arg for keyword in call.keywords}
    ]
    assert not without
