"""The public face: its names, their documentation, and what importing it costs."""

import inspect
import subprocess
import sys
from types import ModuleType

import pytest
import torch

import gprune
import gprune.adapter
import gprune.allocation
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


@pytest.mark.parametrize(
    ("module", "name"),
    [(gprune, name) for name in TOP_LEVEL]
    + [(gprune.scores, name) for name in SCORES]
    + [(gprune.reconstruct, name) for name in RECONSTRUCT]
    + [(gprune.schedules, name) for name in SCHEDULES]
    + [(gprune.allocation, name) for name in ALLOCATION]
    + [(gprune.pruners, name) for name in PRUNERS]
    + [(gprune.adapter, name) for name in ADAPTER],
    ids=lambda value: value.__name__ if isinstance(value, ModuleType) else value,
)
def test_every_public_name_is_documented(module: ModuleType, name: str) -> None:
    thing = getattr(module, name)
    doc = inspect.getdoc(thing) or ""
    assert len(doc.splitlines()[0]) > 10
    if inspect.isfunction(inspect.unwrap(thing)):  # a function, or a pruning method of one
        sections = ["Args:", "Example:"]
        sections += ["Returns:"] if inspect.signature(thing).return_annotation != "None" else []
        if inspect.signature(thing).return_annotation is None:
            sections.remove("Returns:")
        assert not [section for section in sections if section not in doc]
        assert not [p for p in inspect.signature(thing).parameters if f"{p}:" not in doc]


@pytest.mark.slow
def test_importing_gprune_imports_no_optional_package() -> None:
    code = (
        "import sys, torch, optree; before = set(sys.modules); import gprune, gprune.adapter;"
        f"new = set(sys.modules) - before; bad = new & set({OPTIONAL}); assert not bad, bad;"
        "assert 'torch._dynamo' not in new and 'torch._inductor' not in new, 'heavy import'"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
