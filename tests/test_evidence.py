"""The experiment of tests/bench/evidence.py, in small: every method ends at its sparsity."""

import pytest
import torch

import gprune as gp
from tests.bench import evidence


@pytest.mark.parametrize("name", evidence.METHODS)
def test_every_method_ends_at_its_sparsity(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also in the steps after the last due one, where nothing may come back."""
    monkeypatch.setattr(evidence, "FREQ", 2)
    torch.manual_seed(0)
    x, y = torch.randn(200, 40), torch.randint(10, (200,))
    data = evidence.Data(x, y, x, y)
    build, step = evidence.METHODS[name]
    run = evidence.started(build, [0], (0.8,), 16)
    run = evidence.train(run, build, step, data, 16, lambda: None)
    assert gp.sparsity(run.state.masks) == 0.8
