"""The public face: its names, their documentation, and what importing it costs."""

import doctest
import inspect
import pydoc
import re
import subprocess
import sys
from types import ModuleType
from typing import Any

import pytest
import torch

import gprune
import gprune.adapter
import gprune.allocation
import gprune.checkpoints
import gprune.pruners
import gprune.schedules
import gprune.scores
import gprune.testing

OPTIONAL = [
    "hypothesis",
    "numpy",
    "sklearn",
    "matplotlib",
    "rich",
    "typer",
    "safetensors",
    "transformers",
    "triton",
]

TOP_LEVEL = [
    "prunable",
    "vmap_dims",
    "lowest_unstructured",
    "l1_unstructured",
    "random_unstructured",
    "identity",
    "ln_structured",
    "random_structured",
    "n_of_m",
    "blocks",
    "input_dims",
    "pruning_method",
    "global_unstructured",
    "layerwise",
    "Threshold",
    "find_threshold",
    "masks_from_threshold",
    "num_to_prune",
    "keep_all",
    "masks_from_zeros",
    "apply_masks",
    "straight_through",
    "num_pruned",
    "sparsity",
    "summary",
    "intersect",
    "agreement",
    "check_n_of_m",
    "pack_masks",
    "unpack_masks",
    "scores",
    "reconstruct",
    "schedules",
    "allocation",
    "pruners",
]
SCORES = ["magnitude", "random", "taylor", "snip", "grasp", "synflow", "iterative_synflow"]
SCORES += ["fisher", "hessian_diagonal", "obd", "movement", "wanda", "ria", "input_norms"]
SCORES += ["input_gram", "normalize_l2", "lamp", "accumulate"]
RECONSTRUCT = ["refit", "sparsegpt", "swap", "sequential"]
ALLOCATION = ["uniform", "erdos_renyi", "owl"]
PRUNERS = ["Pruner", "gradual", "iterative", "rigl", "sparse_evolution", "static_sparse"]
SCHEDULES = ["constant", "one_shot", "linear", "polynomial", "exponential", "cosine", "every"]
ADAPTER = ["attach_masks_", "detach_masks_", "global_unstructured", "keep_zeros_"]
ADAPTER += ["make_permanent_"]
ADAPTER += ["masks_of", "params_of", "prior_masks", "project_", "prune_", "remove"]
ADAPTER += ["recalibrate_batchnorm", "recalibrate_batchnorm_"]
TESTING = ["SCORE_DTYPES", "param_trees", "scores_for", "prior_masks", "tensors"]
TESTING += ["assert_pure", "assert_mask_contract"]


def test_top_level_names() -> None:
    assert gprune.__all__ == TOP_LEVEL
    assert gprune.scores.__all__ == SCORES
    assert gprune.reconstruct.__all__ == RECONSTRUCT
    assert sorted(gprune.allocation.__all__) == sorted(ALLOCATION)
    assert gprune.pruners.__all__ == PRUNERS
    assert sorted(gprune.schedules.__all__) == sorted(SCHEDULES)
    assert gprune.testing.__all__ == TESTING
    ours = set(gprune.adapter.__all__) - set(dir(torch.nn.utils.prune))
    assert ours | {"global_unstructured", "remove"} == set(ADAPTER)


PACKAGES = [gprune, gprune.scores, gprune.reconstruct, gprune.schedules, gprune.allocation]
PACKAGES += [gprune.pruners, gprune.adapter, gprune.checkpoints, gprune.testing]
OURS = [
    (package, name)
    for package in PACKAGES
    for name in package.__all__
    if package is not gprune.adapter or name in ADAPTER  # the others are torch's
    if name != "SCORE_DTYPES"  # a tuple
]


def listed(package: ModuleType) -> list[str]:
    """The names that begin a line of a list in the docstring of a package, such as `name  text`."""
    return re.findall(r"^    ([\w.]+)  +[^ ]", package.__doc__ or "", re.M)


@pytest.mark.parametrize("package", PACKAGES, ids=lambda package: package.__name__)
def test_every_public_name_is_two_steps_from_help_of_gprune(package: ModuleType) -> None:
    """`help(gprune)` lists the packages, and the docstring of a package lists its names."""
    first_step = {name.removeprefix("gprune.") for name in listed(gprune)}
    assert package is gprune or package.__name__.removeprefix("gprune.") in first_step
    names = [name for name in listed(package) if "." not in name]
    assert sorted(names) == sorted(package.__all__)


def name_of(value: Any) -> str:
    return value.__name__ if isinstance(value, ModuleType) else str(value)


@pytest.mark.parametrize(("module", "name"), OURS, ids=name_of)
def test_every_example_can_be_pasted(module: ModuleType, name: str) -> None:
    """It imports what it needs, since a reader of `help` has imported nothing."""
    doc = inspect.getdoc(getattr(module, name)) or ""
    example = doctest.DocTestParser().get_doctest(doc, {}, name, None, None)
    assert example.examples
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS)
    assert runner.run(example).failed == 0


@pytest.mark.parametrize(("module", "name"), OURS, ids=name_of)
def test_every_public_name_is_documented(module: ModuleType, name: str) -> None:
    thing = getattr(module, name)
    doc = inspect.getdoc(thing) or ""
    assert len(doc.splitlines()[0]) > 10
    if inspect.isfunction(inspect.unwrap(thing)):  # a function, or a pruning method of one
        signature = inspect.signature(thing)
        sections = ["Args:", "Example:"]
        sections += ["Returns:"] if signature.return_annotation != "None" else []
        text = doc.replace("Yields:", "Returns:")
        assert not [section for section in sections if section not in text]
        assert not [p for p in signature.parameters if f"{p}:" not in doc]
    assert not [field for field in getattr(thing, "_fields", ()) if f"{field}:" not in doc]


def test_help_shows_the_arguments_of_a_pruning_method() -> None:
    shown = pydoc.plain(pydoc.render_doc(gprune.n_of_m))
    assert "n_of_m(param: 'Tensor', scores: 'Tensor | None' = None, *, mask" in shown


@pytest.mark.slow
def test_importing_gprune_imports_no_optional_package() -> None:
    code = (
        "import sys, torch, optree; before = set(sys.modules); import gprune, gprune.adapter;"
        f"new = set(sys.modules) - before; bad = new & set({OPTIONAL}); assert not bad, bad;"
        "assert 'torch._dynamo' not in new and 'torch._inductor' not in new, 'heavy import';"
        "assert 'gprune.reconstruct' not in new, 'imported when it is used';"
        "assert 'reconstruct' in dir(gprune); gprune.reconstruct.refit"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.slow
def test_a_missing_hypothesis_is_named_with_its_extra() -> None:
    code = "import sys; sys.modules['hypothesis'] = None; import gprune.testing"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert 'gprune.testing needs hypothesis: pip install "gprune[testing]"' in done.stderr
