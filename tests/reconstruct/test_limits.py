"""What lies beyond the internal limits: each path on small matrices, against the ordinary one."""

from importlib import import_module

import pytest
import torch
from torch import Tensor

import gprune as gp

REFIT, SWAP, GRAM = (
    import_module(f"gprune.{name}")
    for name in ("reconstruct.refit", "reconstruct.swap", "scores.gram")
)


@pytest.fixture
def layer() -> tuple[Tensor, Tensor, Tensor]:
    """A weight, a mask whose rows keep from none to all, and a Gram matrix of correlated inputs."""
    torch.manual_seed(0)
    x = torch.randn(60, 24) @ torch.randn(24, 24) + torch.randn(60, 24)
    mask = torch.rand(20, 24) < torch.linspace(0, 1, 20).unsqueeze(1)
    return torch.randn(20, 24), mask, x.mT @ x


@pytest.mark.parametrize("limit", [1, 24**2, 3 * 24**2])
def test_rows_are_refitted_in_batches(
    limit: int, layer: tuple[Tensor, Tensor, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    at_once = gp.reconstruct.refit(*layer)
    monkeypatch.setattr(REFIT, "MAX_FACTORED", limit)
    torch.testing.assert_close(gp.reconstruct.refit(*layer), at_once)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_conjugate_gradients_solve_the_same(
    dtype: torch.dtype, layer: tuple[Tensor, Tensor, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    weight, mask, gram = layer
    args = (weight.to(dtype), mask, gram.to(dtype))
    by_cholesky = gp.reconstruct.refit(*args)
    monkeypatch.setattr(REFIT, "CHEAP_ITERATIONS", 0)
    by_gradients = gp.reconstruct.refit(*args)
    assert not torch.equal(by_gradients, by_cholesky), "the other way was not taken"
    tolerance = {torch.float32: 2e-4, torch.float64: 1e-10}[dtype]
    torch.testing.assert_close(by_gradients, by_cholesky, rtol=tolerance, atol=tolerance)


def test_conjugate_gradients_that_do_not_end_say_so(
    layer: tuple[Tensor, Tensor, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(REFIT, "CHEAP_ITERATIONS", 0)
    monkeypatch.setattr(REFIT, "MAX_ITERATIONS", 2)
    with pytest.warns(UserWarning, match="grams: refit stopped after 2 iterations"):
        gp.reconstruct.refit(*layer)


@pytest.mark.parametrize("limit", [1, 150, 500])
@pytest.mark.parametrize("m", [None, 4])
def test_rows_are_swapped_in_batches(
    limit: int,
    m: int | None,
    layer: tuple[Tensor, Tensor, Tensor],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    at_once = gp.reconstruct.swap(*layer, m=m)
    monkeypatch.setattr(SWAP, "MAX_PAIRS", limit)
    assert torch.equal(gp.reconstruct.swap(*layer, m=m), at_once)


@pytest.mark.parametrize("limit", [1, 1_000])
def test_inputs_of_a_convolution_are_unfolded_in_batches(
    limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    weight, x = torch.randn(2, 3, 2, 2), torch.randn(7, 3, 6, 5)

    def gram() -> Tensor:
        return gp.scores.input_gram(
            lambda weight, x: torch.nn.functional.conv2d(x, weight), weight, [x]
        )

    at_once = gram()
    calls = []
    unfold = GRAM._unfold
    monkeypatch.setattr(GRAM, "_unfold", lambda *args: calls.append(1) or unfold(*args))
    monkeypatch.setattr(GRAM, "MAX_UNFOLDED", limit)
    torch.testing.assert_close(gram(), at_once)
    assert len(calls) > 1
