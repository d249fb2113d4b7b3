"""Whole modules: attach, detach, make permanent, read; and what copies and checkpoints keep."""

import copy
import io

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from torch import nn
from torch.func import functional_call
from torch.nn.utils import prune as torch_prune

import gprune as gp
import gprune.adapter as prune
from tests.support.adapter_state import assert_same_state, identities, num_zero

L1 = torch_prune.L1Unstructured


class Net(nn.Module):
    """An LSTM, a tied pair, a bias that is None, and a module under two names."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(7, 4)
        self.rnn = nn.LSTM(4, 3)
        self.inner = nn.Sequential(nn.Linear(3, 4), nn.Tanh())
        self.again = self.inner[0]
        self.head = nn.Linear(4, 7, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, x):
        y = self.rnn(self.embed(x))[0]
        return self.head(self.inner(y) + self.again(y))


def make(seed=0):
    torch.manual_seed(seed)
    return Net()


X = torch.arange(6).reshape(3, 2)


def some_masks(net, amount=0.5):
    params = gp.prunable({k: p.detach() for k, p in net.named_parameters()})
    return gp.global_unstructured(params, amount=amount)


def round_trip(thing):
    file = io.BytesIO()
    torch.save(thing, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def test_params_and_masks_of_a_plain_module():
    net = make()
    assert list(prune.params_of(net)) == list(dict(net.named_parameters()))
    assert all(prune.params_of(net)[k] is p for k, p in net.named_parameters())
    assert prune.masks_of(net) == dict.fromkeys(prune.params_of(net))


def test_attach_leaves_the_drop_ins_state():
    ours, theirs = make(), make()
    masks = some_masks(ours)
    assert prune.attach_masks_(ours, masks) is ours
    pairs = [
        (theirs.embed, "weight"),
        (theirs.rnn, "weight_ih_l0"),
        (theirs.rnn, "weight_hh_l0"),
        (theirs.inner[0], "weight"),
        (theirs.head, "weight"),
    ]
    prune.global_unstructured(pairs, L1, amount=0.5)
    assert_same_state(ours, theirs)
    assert torch.equal(ours(X), theirs(X))


@given(first=st.integers(0, 40), second=st.integers(0, 40))
def test_masks_come_back_as_they_went_in(first, second):
    net = make()
    params = {k: p.detach() for k, p in net.named_parameters()}
    kept = {
        "first": gp.global_unstructured(params, amount=first),
        "second": gp.global_unstructured(
            params, gp.scores.random(params, seed=second), amount=second
        ),
    }
    prune.attach_masks_(net, kept["first"])
    read = prune.masks_of(net)
    assert all(torch.equal(read[k], kept["first"][k]) for k in params)
    prune.attach_masks_(net, kept["second"])
    read = prune.masks_of(net)
    assert all(torch.equal(read[k], kept["first"][k] & kept["second"][k]) for k in params)
    assert {k: p.shape for k, p in prune.params_of(net).items()} == {
        k: p.shape for k, p in params.items()
    }


def test_absent_names_and_none_are_left_alone():
    net = make()
    prune.attach_masks_(net, {"rnn.weight_ih_l0": torch.ones(12, 4).bool(), "embed.weight": None})
    assert [n for n, _ in net.named_buffers()] == ["rnn.weight_ih_l0_mask"]
    before = identities(net)
    prune.attach_masks_(net, {})
    assert identities(net) == before


@pytest.mark.parametrize("name", ["embed.weight", "head.weight"])
def test_a_tied_parameter_is_masked_under_all_of_its_names(name):
    net = make()
    mask = torch.rand(7, 4) > 0.5
    prune.attach_masks_(net, {name: mask})
    assert torch.equal(net.embed.weight_mask, mask.float())
    assert torch.equal(net.head.weight_mask, mask.float())
    assert net.embed.weight_orig is net.head.weight_orig
    masks = prune.masks_of(net)
    assert torch.equal(masks["embed.weight"], mask)
    assert "head.weight" not in masks


def test_a_module_under_two_names_takes_masks_under_either():
    net = make()
    mask = torch.rand(4, 3) > 0.5
    prune.attach_masks_(net, {"again.weight": mask})
    assert len(net.again._forward_pre_hooks) == 1
    assert torch.equal(prune.masks_of(net)["inner.0.weight"], mask)


def test_two_names_in_one_module_are_both_masked():
    net = nn.Module()
    net.a = nn.Parameter(torch.ones(2))
    net.b = net.a
    prune.attach_masks_(net, {"b": torch.tensor([True, False])})
    assert net.a.tolist() == net.b.tolist() == [1, 0]
    assert list(prune.params_of(net)) == ["a"]


def test_a_parameter_that_only_looks_like_a_dense_one_keeps_its_name():
    net = nn.Module()
    net.scale_orig = nn.Parameter(torch.ones(2))
    assert list(prune.masks_of(net)) == ["scale_orig"]
    prune.attach_masks_(net, {"scale_orig": torch.tensor([True, False])})
    assert net.scale_orig.tolist() == [1, 0]
    assert list(prune.params_of(net)) == ["scale_orig"]


def test_whatever_a_soft_mask_does_not_zero_is_kept():
    net = nn.Linear(3, 1)
    torch_prune.custom_from_mask(net, "weight", torch.tensor([[0.5, 0.0, 2.0]]))
    assert prune.masks_of(net)["weight"].tolist() == [[True, False, True]]


def test_a_mask_for_each_of_two_names_is_their_intersection():
    net = make()
    a, b = torch.rand(7, 4) > 0.5, torch.rand(7, 4) > 0.5
    prune.attach_masks_(net, {"embed.weight": a, "head.weight": b})
    assert torch.equal(prune.masks_of(net)["embed.weight"], a & b)


def test_names_pruned_apart_by_torch_are_read_as_their_intersection():
    net = make()
    a, b = torch.rand(7, 4) > 0.5, torch.rand(7, 4) > 0.5
    torch_prune.custom_from_mask(net.head, "weight", b)
    assert torch.equal(prune.masks_of(net)["embed.weight"], b)
    torch_prune.custom_from_mask(net.embed, "weight", a)
    assert torch.equal(prune.masks_of(net)["embed.weight"], a & b)
    assert prune.params_of(net)["embed.weight"] is net.head.weight_orig


BAD = {
    "no mapping": ([torch.ones(1)], TypeError, "map parameter names"),
    "unknown": ({"inner.1.weight": torch.ones(1).bool()}, ValueError, "no such parameter"),
    "misspelt": ({"head.wieght": None}, ValueError, "did you mean 'head.weight'"),
    "orig": ({"head.weight_orig": None}, ValueError, "did you mean 'head.weight'"),
    "bias=None": ({"head.bias": torch.ones(7).bool()}, ValueError, r"masks\['head.bias'\]"),
    "shape": ({"head.weight": torch.ones(4, 7).bool()}, ValueError, r"\(4, 7\).*\(7, 4\)"),
    "dtype": ({"head.weight": torch.ones(7, 4)}, TypeError, "bool tensor, got torch.float32"),
    "no tensor": ({"head.weight": [True]}, TypeError, "bool tensor, got list"),
    "two": (
        {"head.weight": torch.ones(4, 7).bool(), "x": None},
        ValueError,
        r"(?s)\(7, 4\).*masks\['x'\]",
    ),
}


@pytest.mark.parametrize(("masks", "kind", "match"), BAD.values(), ids=BAD)
@pytest.mark.parametrize("pruned", [False, True])
def test_unfit_masks_are_refused_before_anything_changes(masks, kind, match, pruned):
    net = make()
    good = {"rnn.weight_ih_l0": torch.ones(12, 4).bool()}
    if pruned:
        prune.attach_masks_(net, some_masks(net))
    before = identities(net)
    with pytest.raises(kind, match=match):
        prune.attach_masks_(net, {**good, **masks} if isinstance(masks, dict) else masks)
    assert identities(net) == before


@pytest.mark.parametrize("library", [prune, torch_prune])
@pytest.mark.parametrize("rounds", [1, 3])
def test_detach_puts_everything_back(library, rounds):
    net, plain = make(), make()
    dense = {k: (p, p.data_ptr(), p.detach().clone()) for k, p in net.named_parameters()}
    pairs = [(m, n) for m in net.modules() for n, _ in m.named_parameters(recurse=False)]
    for _ in range(rounds):
        library.global_unstructured(pairs, L1, amount=0.3)
    assert prune.detach_masks_(net) is net
    assert not torch_prune.is_pruned(net)
    assert not list(net.named_buffers())
    after = dict(net.named_parameters())
    assert sorted(after) == sorted(dense)
    for key, (parameter, pointer, value) in dense.items():
        assert after[key] is parameter
        assert parameter.data_ptr() == pointer
        assert torch.equal(parameter, value)
    assert all(w is getattr(net.rnn, n) for w, n in zip(net.rnn._flat_weights, FLAT, strict=True))
    assert [vars(m).keys() for m in net.modules()] == [vars(m).keys() for m in plain.modules()]
    assert torch.equal(net(X), plain(X))
    net(X).sum().backward()
    assert all(p.grad is not None for p in net.parameters())
    prune.detach_masks_(net)  # nothing to do


FLAT = ["weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0"]


def test_detach_returns_infinite_and_nan_weights():
    net = nn.Linear(2, 1)
    with torch.no_grad():
        net.weight.copy_(torch.tensor([[torch.inf, torch.nan]]))
    prune.attach_masks_(net, {"weight": torch.tensor([[False, False]])})
    prune.detach_masks_(net)
    assert torch.isinf(net.weight[0, 0])
    assert torch.isnan(net.weight[0, 1])


def test_make_permanent_is_torchs_remove_everywhere():
    ours, theirs = make(), make()
    parameters = set(map(id, ours.parameters()))
    for net in (ours, theirs):
        prune.attach_masks_(net, some_masks(net))
        net(X)
    wanted = theirs(X)
    masks = prune.masks_of(ours)
    assert prune.make_permanent_(ours) is ours
    for module, name in [
        (theirs.embed, "weight"),
        (theirs.rnn, "weight_ih_l0"),
        (theirs.rnn, "weight_hh_l0"),
        (theirs.inner[0], "weight"),
        (theirs.head, "weight"),
    ]:
        torch_prune.remove(module, name)
    assert_same_state(ours, theirs)
    assert torch.equal(ours(X), wanted)
    assert set(map(id, ours.parameters())) == parameters
    for key, parameter in ours.named_parameters():
        if masks[key] is not None:
            assert not parameter[~masks[key]].any()


@pytest.mark.parametrize("mutate", [prune.detach_masks_, prune.make_permanent_])
def test_a_failure_of_the_last_module_changes_none(mutate):
    net = make()
    prune.attach_masks_(net, some_masks(net))
    del net.head._buffers["weight_mask"]
    before = identities(net)
    values = {k: (p, p.data_ptr()) for k, p in net.named_parameters()}
    with pytest.raises(AttributeError, match="weight_mask"):
        mutate(net)
    assert identities(net) == before
    for key, parameter in net.named_parameters():
        assert (parameter, parameter.data_ptr()) == values[key]


@pytest.mark.parametrize("library", [prune, torch_prune])
def test_functional_call_on_the_plain_module_agrees_with_the_adapted_one(library):
    net, plain = make(), make()
    pairs = [(m, "weight") for m in (net.embed, net.inner[0], net.head)]
    library.global_unstructured(pairs, L1, amount=9)
    params, masks = prune.params_of(net), prune.masks_of(net)
    assert params.keys() == masks.keys() == dict(plain.named_parameters()).keys()
    if library is torch_prune:  # torch has masked the two names of one parameter apart
        prune.attach_masks_(net, masks)
    out = functional_call(plain, gp.apply_masks(params, masks), (X,))
    assert torch.equal(out, net(X))

    def loss(params):
        return functional_call(plain, gp.apply_masks(params, masks), (X,)).square().sum()

    grads = torch.func.grad(loss)({k: p.detach() for k, p in params.items()})
    net(X).square().sum().backward()
    for key, parameter in params.items():
        torch.testing.assert_close(grads[key], parameter.grad)


def test_masks_survive_deepcopy_and_checkpoints():
    net = make()
    prune.attach_masks_(net, some_masks(net))
    masks = prune.masks_of(net)
    for twin in (copy.deepcopy(masks), round_trip(masks)):
        assert twin.keys() == masks.keys()
        assert [m is None for m in twin.values()] == [m is None for m in masks.values()]
        assert all(torch.equal(twin[k], m) for k, m in masks.items() if m is not None)
        assert_same_state(prune.attach_masks_(make(), twin), net)


def test_the_state_dict_of_an_adapted_module_survives_a_checkpoint():
    net, other = make(0), make(1)
    prune.attach_masks_(net, some_masks(net, 0.5))
    prune.attach_masks_(other, some_masks(other, 0.2))
    other.load_state_dict(round_trip(net.state_dict()))
    assert torch.equal(other(X), net(X))
    assert num_zero(other) == num_zero(net)
    assert all(
        (a is None and b is None) or torch.equal(a, b)
        for a, b in zip(prune.masks_of(net).values(), prune.masks_of(other).values(), strict=True)
    )


def test_an_adapted_module_can_be_copied_under_torchs_own_condition():
    net = make()
    prune.attach_masks_(net, some_masks(net))
    with pytest.raises(RuntimeError, match="deepcopy"):
        copy.deepcopy(net)
    with torch.no_grad():
        out = net(X)
    twin = copy.deepcopy(net)
    assert torch.equal(twin(X), out)
    before = num_zero(net)
    prune.global_unstructured([(twin.embed, "weight"), (twin.head, "weight")], L1, amount=3)
    assert num_zero(twin) == before + 6
    assert num_zero(net) == before
    prune.detach_masks_(twin)
    assert twin.embed.weight is twin.head.weight
    assert num_zero(net) == before


def test_a_module_that_contains_itself_is_read_once() -> None:
    net = nn.Sequential(nn.Linear(2, 2))
    net[0].parent = net
    prune.attach_masks_(net, {"0.weight": torch.tensor([[True, False], [True, True]])})
    assert set(prune.params_of(net)) == {"0.weight", "0.bias"}
    assert prune.masks_of(net)["0.weight"].tolist() == [[True, False], [True, True]]
