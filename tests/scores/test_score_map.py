"""What all scores share: finite values, float32 at least, and `None` leaves."""

import pytest
import torch

import gprune as gp


def test_an_unfinite_value_is_seen_in_a_batch_and_ranks_last_in_a_trace() -> None:
    params = torch.tensor([[1.0, 2.0], [3.0, float("nan")]])
    with pytest.raises(ValueError, match="NaN or infinity"):
        torch.vmap(lambda p: gp.scores.taylor(p, torch.ones(2)))(params)
    compiled = torch.compile(gp.scores.taylor, fullgraph=True, backend="aot_eager")
    scores = compiled(params, torch.ones(2, 2))
    assert scores.isnan().tolist() == [[False, False], [False, True]]
    assert gp.lowest_unstructured(scores, amount=3).tolist() == [[False, False], [False, True]]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_multiplied_in_float32(dtype: torch.dtype) -> None:
    """Whose squares of small gradients are not zero."""
    params, grads = torch.full((3,), 1e-3, dtype=dtype), torch.full((3,), 1e-4, dtype=dtype)
    score = gp.scores.taylor(params, grads, squared=True)
    assert score.dtype == torch.float32
    assert (score > 0).all()
    diagonal = gp.scores.fisher(
        lambda p, x: (p * x).sum() * 1e-4, params, torch.ones(2, 3).to(dtype)
    )
    assert diagonal.dtype == torch.float32
    assert (diagonal > 0).all()
