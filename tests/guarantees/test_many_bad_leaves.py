"""An error about thousands of leaves names ten of them, and takes no longer than it must."""

import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest
import torch
from torch import Tensor

import gprune as gp
from gprune import adapter
from tests.support.pruning import HALF, every

MANY = 4000


def all_leaves(leaf: Any) -> list[Any]:
    return [leaf] * MANY


WEIGHTS = all_leaves(torch.ones(3, 2))
MASKS = all_leaves(torch.ones(3, 2, dtype=torch.bool))
VECTORS = all_leaves(torch.ones(2))
FLOAT8 = all_leaves(torch.zeros(3, 2).to(torch.float8_e4m3fn))
HUGE = all_leaves(torch.full((3, 2), 1e38))
NANS = all_leaves(torch.full((3, 2), torch.nan))
RIGL = gp.pruners.rigl(0.5, fraction=HALF, due=every(3), seed=1)
STATE = RIGL.init(WEIGHTS)


def loss(params: Any, *_: Any) -> Tensor:
    first: Tensor = params[0]
    return first.sum()


def attach(count: int, mask: Any) -> Any:
    module = torch.nn.Module()
    for i in range(count):
        module.register_parameter(f"weight{i}", torch.nn.Parameter(torch.ones(3, 2)))
    return adapter.attach_masks_(module, {f"weight{i}": mask for i in range(MANY)})


CALLS: dict[str, Callable[[], Any]] = {
    "float masks": lambda: gp.global_unstructured(WEIGHTS, masks=WEIGHTS, amount=1),
    "masks of other shapes": lambda: gp.layerwise(WEIGHTS, masks=VECTORS, amount=1),
    "scores that are masks": lambda: gp.global_unstructured(WEIGHTS, MASKS, amount=1),
    "parameters of bool": lambda: gp.find_threshold(MASKS, amount=1),
    "strings": lambda: gp.keep_all(all_leaves("weight")),
    "apply_masks": lambda: gp.apply_masks(WEIGHTS, WEIGHTS),
    "apply_masks, shapes": lambda: gp.apply_masks(VECTORS, MASKS),
    "num_pruned": lambda: gp.num_pruned(WEIGHTS),
    "agreement": lambda: gp.agreement(MASKS, all_leaves(None)),
    "straight_through": lambda: gp.straight_through(FLOAT8, MASKS),
    "check_n_of_m": lambda: gp.check_n_of_m(MASKS, n=1, m=2),
    "check_n_of_m, no such dim": lambda: gp.check_n_of_m(MASKS, n=1, m=2, dim=2),
    "check_n_of_m, dims by paths": lambda: gp.check_n_of_m(MASKS, n=1, m=2, dim=lambda *_: 1),
    "amounts": lambda: gp.layerwise(WEIGHTS, amount=all_leaves(None)),
    "magnitude": lambda: gp.scores.magnitude(FLOAT8),
    "lamp of masks": lambda: gp.scores.lamp(MASKS),
    "lamp of NaN": lambda: gp.scores.lamp(NANS),
    "obd that overflows": lambda: gp.scores.obd(HUGE, HUGE),
    "taylor of other shapes": lambda: gp.scores.taylor(WEIGHTS, VECTORS),
    "wanda": lambda: gp.scores.wanda(WEIGHTS, all_leaves(None)),
    "ria": lambda: gp.scores.ria(WEIGHTS, all_leaves(None)),
    "accumulate": lambda: gp.scores.accumulate(lambda batch: batch, [WEIGHTS, all_leaves(None)]),
    "fisher of examples": lambda: gp.scores.fisher(
        loss, torch.ones(2), [torch.ones(2), *all_leaves(torch.ones(3))][:MANY]
    ),
    "rigl with gradients of bool": lambda: RIGL.update(WEIGHTS, STATE, MASKS),
    "rigl with gradients of other shapes": lambda: RIGL.update(WEIGHTS, STATE, VECTORS),
    "erdos_renyi": lambda: gp.allocation.erdos_renyi(
        {"a": torch.ones(2, 2)}, sparsity=0.5, overrides={f"weight{i}": 0.5 for i in range(MANY)}
    ),
    "attach_masks_": lambda: attach(MANY, torch.ones(2, dtype=torch.bool)),
    "attach_masks_, unknown names": lambda: attach(0, torch.ones(2, dtype=torch.bool)),
}


def error_and_path_calls(call: Callable[[], Any]) -> tuple[Exception, int]:
    """Return the error that a call raises, and how often it computed the paths of a tree."""
    codes = {function.__code__ for function in (gp.trees.leaf_names, gp.trees.dotted_paths)}
    num_calls = 0

    def count(frame: FrameType, event: str, arg: Any) -> None:
        nonlocal num_calls
        num_calls += event == "call" and frame.f_code in codes

    sys.setprofile(count)
    try:
        call()
    except (TypeError, ValueError) as error:
        return error, num_calls
    finally:
        sys.setprofile(None)
    raise AssertionError("no error was raised")


@pytest.mark.parametrize("name", CALLS)
def test_an_error_names_ten_leaves_and_computes_paths_once(name: str) -> None:
    error, num_calls = error_and_path_calls(CALLS[name])
    assert f"... and {MANY - 10:,} more" in str(error)
    assert len(str(error)) < 2000
    assert num_calls <= 2  # of one tree or of two


def test_structures_that_differ_are_not_shown_in_full() -> None:
    with pytest.raises(ValueError, match="must have the structure") as caught:
        gp.apply_masks(WEIGHTS, tuple(MASKS))
    assert len(str(caught.value)) < 2000


def test_ten_leaves_are_named_without_a_count() -> None:
    with pytest.raises(TypeError) as caught:
        gp.num_pruned(WEIGHTS[:10])
    assert str(caught.value).count("has dtype") == 10
    assert "more" not in str(caught.value)
