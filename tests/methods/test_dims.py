"""Which dims make up a comparison group: ints, tuples and functions, for layers of any kind."""

from typing import Any

import pytest
import torch

import gprune as gp


@pytest.mark.parametrize(
    ("dim", "error", "words"),
    [
        (2, ValueError, r"dim 2 is out of range for a leaf of shape \(2, 3\)"),
        (-3, ValueError, "dim -3 is out of range"),
        ((0, -2), ValueError, "each dim once"),
        ("x", TypeError, "an int, a tuple of ints, or a function .* got 'x'"),
        (True, TypeError, "an int"),
        ((), TypeError, "an int"),
        (1.0, TypeError, "an int"),
    ],
)
def test_bad_dims(dim: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        gp.lowest_unstructured(torch.ones(2, 3), amount=1, dim=dim)


def test_a_global_ranking_has_no_groups() -> None:
    with pytest.raises(ValueError, match="use layerwise"):
        gp.global_unstructured([torch.ones(2, 3)], amount=1, dim=-1)


NETWORK = {
    "c1": torch.randn(16, 32, 1, 1, generator=torch.Generator().manual_seed(1)),
    "c3": torch.randn(16, 32, 3, 3, generator=torch.Generator().manual_seed(2)),
    "fc": torch.randn(10, 32, generator=torch.Generator().manual_seed(3)),
}


def test_wanda_and_two_of_four_prune_half_of_every_layer() -> None:
    wanda = gp.layerwise(NETWORK, amount=0.5, dim=gp.input_dims)
    for name, mask in wanda.items():
        weight = NETWORK[name].flatten(1)
        half = weight.shape[1] // 2
        lowest = weight.abs().argsort(1)[:, :half]
        assert mask.flatten(1).equal(torch.ones_like(weight).scatter(1, lowest, 0).bool()), name
    patterned = gp.layerwise(NETWORK, pruning_method=gp.n_of_m, n=2, m=4)
    for mask in patterned.values():
        groups = mask.movedim(1, -1).reshape(-1, 4)
        assert (groups.sum(1) == 2).all()
    gp.check_n_of_m(patterned, n=2, m=4)


def test_dims_of_inputs() -> None:
    shapes = {(5,): (0,), (2, 3): (1,), (2, 3, 4): (1, 2), (2, 3, 4, 5): (1, 2, 3)}
    for shape, dims in shapes.items():
        assert gp.input_dims("any.path", torch.ones(shape)) == dims


def test_a_function_is_given_the_path_and_the_leaf() -> None:
    params = {"up": [torch.rand(2, 3), None], "down": {"w": torch.rand(3, 2)}}
    seen = []

    def dims(path: str, leaf: torch.Tensor) -> int | tuple[int, ...]:
        seen.append((path, tuple(leaf.shape)))
        return (0,) if path == "up.0" else -1

    masks = gp.layerwise(params, amount=1, dim=dims)
    assert seen == [("down.w", (3, 2)), ("up.0", (2, 3))]
    assert masks["up"][0].sum(0).tolist() == [1, 1, 1]
    assert masks["down"]["w"].sum(1).tolist() == [1, 1, 1]
    seen.clear()
    gp.lowest_unstructured(torch.rand(2, 3), amount=1, dim=dims)
    assert seen == [("", (2, 3))]


def test_scores_may_differ_from_the_leaf_that_the_function_is_given() -> None:
    """The function sees the parameter, and not its scores."""
    seen = []

    def dims(path: str, leaf: torch.Tensor) -> int:
        seen.append(leaf.dtype)
        return 1

    param = torch.rand(2, 3, dtype=torch.float64)
    gp.layerwise([param], [torch.rand(2, 3)], amount=1, dim=dims)
    gp.layerwise([param], [torch.rand(2, 3)], pruning_method=gp.n_of_m, n=1, m=2, dim=dims)
    assert seen == [torch.float64] * 2


def test_groups_of_a_single_entry_are_an_error_but_for_empty_leaves() -> None:
    """The last dim of a 1x1 convolution is the width of its kernel."""
    with pytest.raises(ValueError, match=r"params\['c1'\]: .* dim 3 is a single entry.*prunable"):
        gp.layerwise(NETWORK, amount=0.5, dim=-1)
    with pytest.raises(ValueError, match=r"params\['c1'\]: .* dim 3 is a single entry.*prunable"):
        gp.layerwise(NETWORK, pruning_method=gp.n_of_m, n=2, m=4, dim=lambda path, x: x.dim() - 1)
    with pytest.raises(ValueError, match=r"masks\['c1'\]: .* dim 3 is a single entry"):
        gp.check_n_of_m(gp.keep_all({"c1": NETWORK["c1"]}), n=4, m=4, dim=3)
    empty = torch.ones(0, 1)
    assert gp.lowest_unstructured(empty, amount=0.5, dim=1).shape == (0, 1)
    assert gp.n_of_m(empty, n=2, m=4).shape == (0, 1)
    assert gp.n_of_m(torch.ones(3, 1), n=1, m=1).all()
