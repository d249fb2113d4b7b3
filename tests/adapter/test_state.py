"""What pruning leaves in a module when it fails: nothing."""

import copy

import pytest
import torch
from torch.nn.utils import prune as torch_prune

import gprune.adapter as prune
from tests.support.adapter_cases import L1, make, pairs_of
from tests.support.adapter_state import identities, num_zero, values


@pytest.mark.parametrize("rounds", [0, 1, 2])
@pytest.mark.parametrize("method", [L1, torch_prune.RandomUnstructured])
def test_a_failure_on_the_last_pair_leaves_every_module_untouched(rounds, method):
    net = make()
    for _ in range(rounds):
        prune.global_unstructured(pairs_of(net), L1, amount=3)
    before, tensors = identities(net), copy.copy(values(net))
    state = {key: value.clone() for key, value in net.state_dict().items()}
    pairs = [*pairs_of(net), (net[2], "running_mean")]
    with pytest.raises(TypeError, match="running_mean"):
        prune.global_unstructured(pairs, method, amount=5)
    assert identities(net) == before
    assert all(tensors[key] is value for key, value in values(net).items())
    assert list(net.state_dict()) == list(state)
    assert all(torch.equal(state[key], value) for key, value in net.state_dict().items())
    prune.global_unstructured(pairs_of(net), method, amount=5)
    assert num_zero(net) == 3 * rounds + 5

    theirs = make()
    with pytest.raises(TypeError):
        torch_prune.global_unstructured(
            [*pairs_of(theirs), (theirs[2], "running_mean")], L1, amount=5
        )
    assert torch_prune.is_pruned(theirs)


def test_an_interrupt_leaves_every_module_untouched(monkeypatch):
    net = make()
    before = identities(net)

    def register(name, tensor, persistent=True):
        raise KeyboardInterrupt

    monkeypatch.setattr(net[3], "register_buffer", register)
    before = identities(net)
    with pytest.raises(KeyboardInterrupt):
        prune.global_unstructured(pairs_of(net), L1, amount=5)
    assert identities(net) == before
