"""Models that pruners prune, step by step."""

import functools
from collections.abc import Callable
from typing import Any

import torch
from hypothesis import strategies as st

import gprune as gp
from gprune.testing import tensors
from tests.support.assertions import assert_same

FLOATS = [torch.float32, torch.float64, torch.bfloat16]
SHAPES = st.sampled_from([(3, 4), (8, 2), (2, 3, 2), (1, 5)])


def every(freq: int, begin: int = 0, end: int = 10**6) -> Any:
    return functools.partial(gp.schedules.every, begin=begin, end=end, freq=freq)


def always(step: torch.Tensor) -> torch.Tensor:
    return step >= 0


@st.composite
def models(draw: st.DrawFn) -> dict[str, Any]:
    """Two or three weights with ties, NaN and infinities, and a bias that is not pruned."""
    leaves = tensors(dtypes=FLOATS, shapes=SHAPES)
    weights = draw(st.lists(leaves, min_size=2, max_size=3))
    return {"bias": torch.ones(3)} | {f"w{i}": weight for i, weight in enumerate(weights)}


def like(draw: Any, params: Any) -> Any:
    """Gradients, or the parameters some steps later."""
    return {
        name: draw(tensors(dtypes=[leaf.dtype], shapes=st.just(tuple(leaf.shape))))
        for name, leaf in params.items()
    }


def pruned_in_each(masks: Any) -> dict[str, int]:
    return {name: int((~mask).sum()) for name, mask in masks.items() if mask is not None}


def assert_masked(params: Any, masks: Any) -> None:
    assert masks["bias"] is None
    assert all((params[n][~mask] == 0).all() for n, mask in masks.items() if mask is not None)


def assert_exchanged(
    before: Any, state: Any, trained: Any, params: Any, grown_by: Any, rule: Callable[..., Any]
) -> None:
    """Every leaf has the masks of the paper's rule, as many as before, and new weights at zero."""
    assert pruned_in_each(state.masks) == pruned_in_each(before.masks)
    for name, mask in state.masks.items():
        if mask is not None:
            lists = [tree[name].flatten().tolist() for tree in (trained, before.masks, grown_by)]
            assert mask.flatten().tolist() == rule(*lists)
    kept = {n: m if m is None else m & before.masks[n] for n, m in state.masks.items()}
    assert_same(params, gp.apply_masks(trained, kept))


GOLDEN_WEIGHT = torch.tensor([[5.0, -1.0, 2.0, -4.0, 0.0, 0.0, 0.0, 0.0]])
HALF = gp.schedules.constant(0.5)
