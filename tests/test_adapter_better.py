"""Where torch breaks, or is silent, and the adapter is not."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import prune as torch_prune

import gprune.adapter as prune
from tests.support.adapter_state import assert_same_state, identities, num_zero, values

L1 = torch_prune.L1Unstructured


def make():
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(4, 3), nn.LSTM(3, 2), nn.BatchNorm1d(2), nn.Linear(3, 2))


def pairs_of(net):
    return [(net[0], "weight"), (net[1], "weight_hh_l0"), (net[3], "weight")]


def pruned_from_a_list(amount=7):
    net = make()
    prune.global_unstructured(pairs_of(net), L1, amount=amount)
    return net


def test_a_generator_of_pairs():
    net = make()
    prune.global_unstructured((pair for pair in pairs_of(net)), L1, amount=7)
    assert_same_state(net, pruned_from_a_list())
    with pytest.raises(ValueError, match="non-empty"):
        torch_prune.global_unstructured((pair for pair in pairs_of(make())), L1, amount=7)


@pytest.mark.parametrize("kind", [set, frozenset, lambda pairs: dict.fromkeys(pairs).keys()])
def test_a_set_of_pairs(kind):
    net = make()
    prune.global_unstructured(kind(pairs_of(net)), L1, amount=7)
    assert num_zero(net) == 7
    assert_same_state(net, pruned_from_a_list())


def test_a_channels_last_weight():
    nets = [nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 3)) for _ in range(2)]
    nets[1].load_state_dict(nets[0].state_dict())
    nets[1].to(memory_format=torch.channels_last)
    for net in nets:
        for _ in range(2):
            prune.global_unstructured([(m, "weight") for m in net], L1, amount=40)
    assert num_zero(nets[1]) == 80
    for plain, last in zip(*nets, strict=True):
        assert torch.equal(plain.weight_mask, last.weight_mask)
        assert last.weight_orig.is_contiguous(memory_format=torch.channels_last)
    x = torch.randn(1, 3, 8, 8)
    torch.testing.assert_close(nets[0](x), nets[1](x))
    theirs = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
    with pytest.raises(RuntimeError, match="view"):
        torch_prune.global_unstructured([(theirs, "weight")], L1, amount=1)


@pytest.mark.parametrize("method", [L1, torch_prune.RandomUnstructured, torch_prune.Identity])
def test_a_transposed_weight_by_any_method(method):
    net = nn.Module()
    net.w = nn.Parameter(torch.randn(4, 5).t())
    kwargs = {} if method is torch_prune.Identity else {"amount": 6}
    prune.global_unstructured([(net, "w")], method, **kwargs)
    assert num_zero(net) == kwargs.get("amount", 0)
    if method is L1:
        assert net.w_orig[net.w_mask == 0].abs().max() < net.w_orig[net.w_mask == 1].abs().min()


def test_the_same_pair_twice_is_ranked_once():
    net, once = make(), make()
    pair = (net[0], "weight")
    for _ in range(2):
        prune.global_unstructured([pair, pairs_of(net)[2], pair], L1, amount=0.5)
        prune.global_unstructured([(once[0], "weight"), pairs_of(once)[2]], L1, amount=0.5)
    assert num_zero(net) == 9 + 4
    assert_same_state(net, once)
    theirs = make()
    twice = [(theirs[0], "weight")] * 2
    torch_prune.global_unstructured(twice, L1, amount=0.5)
    assert isinstance(theirs[0]._forward_pre_hooks.popitem()[1], torch_prune.PruningContainer)


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(5, 3)
        self.head = nn.Linear(3, 5, bias=False)
        self.head.weight = self.embed.weight
        with torch.no_grad():
            self.embed.weight.copy_(torch.arange(1.0, 16.0).reshape(5, 3))

    def pairs(self):
        return [(self.embed, "weight"), (self.head, "weight")]

    def forward(self, x):
        return self.head(self.embed(x))


def test_a_parameter_under_two_names_is_ranked_once():
    net = Tied()
    prune.global_unstructured(net.pairs(), L1, amount=4)
    for module in (net.embed, net.head):
        assert module.weight_mask.flatten().tolist() == [0] * 4 + [1] * 11
    assert net.embed.weight_orig is net.head.weight_orig
    prune.global_unstructured(net.pairs(), L1, amount=3)
    assert int((net.head.weight_mask == 0).sum()) == 7
    assert torch.equal(net.head.weight_mask, net.embed.weight_mask)
    net(torch.arange(5)).sum().backward()
    assert not net.embed.weight_orig.grad.flatten()[:7].any()
    theirs = Tied()
    torch_prune.global_unstructured(theirs.pairs(), L1, amount=4)
    assert int((theirs.embed.weight_mask == 0).sum()) == 2  # of the four asked


def test_a_name_that_is_pruned_already_shares_its_parameter_by_orig():
    net = Tied()
    prune.global_unstructured([(net.embed, "weight")], L1, amount=4)
    prune.global_unstructured(net.pairs(), L1, amount=2)
    for module in (net.embed, net.head):
        assert module.weight_mask.flatten().tolist() == [0] * 6 + [1] * 9


def test_two_prior_masks_leave_their_intersection_as_candidates():
    net = Tied()
    first, last = torch.ones(5, 3), torch.ones(5, 3)
    first[0], last[4] = 0, 0
    prune.custom_from_mask(net.embed, "weight", first)
    prune.custom_from_mask(net.head, "weight", last)
    with pytest.raises(ValueError, match="10 is more than the 9"):
        prune.global_unstructured(net.pairs(), L1, amount=10)
    prune.global_unstructured(net.pairs(), L1, amount=2)
    for module in (net.embed, net.head):
        assert module.weight_mask.flatten().tolist() == [0] * 5 + [1] * 7 + [0] * 3


@pytest.mark.parametrize("method", [L1, torch_prune.RandomUnstructured])
def test_tied_parameters_by_any_method(method):
    net = Tied()
    for _ in range(2):
        prune.global_unstructured(net.pairs(), method, amount=3)
    assert int((net.head.weight_mask == 0).sum()) == 6
    assert torch.equal(net.head.weight_mask, net.embed.weight_mask)


@pytest.mark.parametrize("names", [[0], [1], [0, 1]])
def test_scores_given_for_any_name_of_a_parameter_rank_it(names):
    net = Tied()
    descending = torch.arange(15.0, 0, -1).reshape(5, 3)
    scores = {net.pairs()[i]: descending.clone() for i in names}
    prune.global_unstructured(net.pairs(), L1, scores, amount=4)
    assert net.embed.weight_mask.flatten().tolist() == [1] * 11 + [0] * 4


def test_one_tensor_of_scores_may_hold_nan_for_two_names():
    net = Tied()
    scores = torch.arange(15.0).reshape(5, 3)
    scores[0, 0] = torch.nan
    prune.global_unstructured(net.pairs(), L1, dict.fromkeys(net.pairs(), scores), amount=4)
    assert net.embed.weight_mask.flatten().tolist() == [1] + [0] * 4 + [1] * 10


def test_two_different_scores_for_one_parameter_are_refused():
    net = Tied()
    embed, head = net.pairs()
    scores = {embed: torch.ones(5, 3), head: torch.zeros(5, 3)}
    with pytest.raises(ValueError, match=r"parameters\[1\] \(Linear, 'weight'\) differ"):
        prune.global_unstructured(net.pairs(), L1, scores, amount=4)


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


def test_scores_of_the_wrong_shape_are_refused_with_both_shapes():
    net = make()
    before = identities(net)
    pair = (net[0], "weight")
    for shape in ((4, 3), (12,), (7,), ()):
        with pytest.raises(ValueError, match=r"parameters\[0\] \(Linear, 'weight'\)") as info:
            prune.global_unstructured(pairs_of(net), L1, {pair: torch.rand(shape)}, amount=5)
        assert str(tuple(shape)) in str(info.value)
        assert "(3, 4)" in str(info.value)
    assert identities(net) == before
    theirs = make()
    silent = {(theirs[0], "weight"): torch.rand(4, 3)}
    torch_prune.global_unstructured(pairs_of(theirs), L1, silent, amount=5)


def test_mask_entries_between_zero_and_one_are_kept_and_no_candidates():
    soft = torch.tensor([[0.5, 1.0, 0.0, 1.0, 2.0]])
    results = []
    for library in (prune, torch_prune):
        net = nn.Linear(5, 1, bias=False)
        with torch.no_grad():
            net.weight.copy_(torch.tensor([[0.1, 0.4, 0.2, 0.3, 0.05]]))
        library.custom_from_mask(net, "weight", soft)
        library.global_unstructured([(net, "weight")], L1, amount=1)
        results.append(net.weight_mask.flatten().tolist())
    assert results[0] == [0.5, 1.0, 0.0, 0.0, 2.0]
    assert results[1] == [0.25, 1.0, 0.0, 0.0, 4.0]


def test_ties_go_by_the_lowest_index():
    net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    for module in net:
        nn.init.ones_(module.weight)
    prune.global_unstructured([(m, "weight") for m in net], L1, amount=5)
    masks = [m.weight_mask.flatten().tolist() for m in net]
    assert masks == [[0, 0, 0, 0], [0, 1, 1, 1]]


def test_pruning_leaves_the_global_generator_alone():
    net = make()
    torch.manual_seed(3)
    before = torch.get_rng_state()
    prune.global_unstructured(pairs_of(net), L1, amount=5)
    assert torch.equal(torch.get_rng_state(), before)
