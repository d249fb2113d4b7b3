"""Networks, batches and tolerances with which scores are compared with their oracles."""

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import strategies as st
from torch.nn import functional as F  # noqa: N812  torch's own name for it

from gprune.testing import param_trees
from tests.support import reference
from tests.support.cases import map_tensors
from tests.support.models import MODELS, Model

TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}
each_model = pytest.mark.parametrize("name", MODELS)
each_dtype = pytest.mark.parametrize("dtype", TOLERANCE, ids=str)


def cast(tree: Any, dtype: torch.dtype) -> Any:
    return reference.over(lambda leaf: leaf.to(dtype), tree)


def setting(name: str, dtype: torch.dtype) -> tuple[Model, Any, Any]:
    """A model, its parameters and its batch."""
    model = MODELS[name]
    x, y = model.batch()
    return model, cast(model.params(), dtype), (x.to(dtype), y)


def in_float64(model: Model, batch: Any) -> Callable[[Any], torch.Tensor]:
    x, y = batch
    return lambda params: model.loss(params, x.double(), y)


def assert_close(got: Any, want: Any, dtype: torch.dtype) -> None:
    """The largest error of each leaf, over its largest entry; dtype and `None` leaves too."""
    assert reference.structure(got) == reference.structure(want)
    for path, a, b in zip(
        reference.paths(want), reference.leaves(got), reference.leaves(want), strict=True
    ):
        if b is None:
            assert a is None, path
            continue
        assert (a.dtype, a.shape, a.requires_grad) == (dtype, b.shape, False), path
        error, largest = (a.double() - b).abs().max(), b.abs().max()
        assert error <= TOLERANCE[dtype] * largest, f"{path}: {error / largest:.2g}"


def draw(tree: Any, seed: int, dtype: torch.dtype) -> Any:
    generator = torch.Generator().manual_seed(seed)
    return reference.over(lambda x: torch.randn(x.shape, generator=generator).to(dtype), tree)


seeds = st.integers(0, 2**32 - 1)
finite_trees = param_trees(dtypes=[torch.float32, torch.float64]).map(
    lambda tree: map_tensors(lambda leaf: leaf.clamp(-8, 8).nan_to_num(), tree)
)


def layers(widths: list[int], seed: int, dtype: torch.dtype = torch.float64) -> list[torch.Tensor]:
    """Weights of a network, each output of variance one."""
    generator = torch.Generator().manual_seed(seed)
    shapes = itertools.pairwise(widths)
    return [torch.randn(b, a, generator=generator).to(dtype) / a**0.5 for a, b in shapes]


def network(weights: list[torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    for weight in weights[:-1]:
        x = F.relu(F.linear(x, weight))
    return F.linear(x, weights[-1])


def loss(weights: list[torch.Tensor], x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(network(weights, x), y)


def batch(widths: list[int], seed: int, size: int = 32) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(size, widths[0], generator=generator, dtype=torch.float64)
    return x, torch.randint(widths[-1], (size,), generator=generator)
