"""Whole modules: prune, attach, detach, make permanent, read; copies and checkpoints."""

import copy
import functools
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
from tests.support.assertions import assert_same

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


def test_a_copy_is_pruned_and_undone_apart():
    net = make()
    prune.attach_masks_(net, some_masks(net))
    twin = copy.deepcopy(net)
    assert torch.equal(twin(X), net(X))
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


# --- prune_ and prior_masks ---------------------------------------------------------------------

PRUNABLE = ["embed.weight", "inner.0.weight", "rnn.weight_hh_l0", "rnn.weight_ih_l0"]
NUM_ENTRIES = 28 + 12 + 36 + 48  # of PRUNABLE; the head shares the weight of the embedding


def num_pruned(net):
    """How many entries of the parameters are pruned; those of a tied one count once."""
    return int(gp.num_pruned(prune.masks_of(net)))


def pairs_of(net):
    return [
        (net.embed, "weight"),
        (net.rnn, "weight_ih_l0"),
        (net.rnn, "weight_hh_l0"),
        (net.inner[0], "weight"),
        (net.head, "weight"),
    ]


def by_name(net, pairs):
    """Scores by pair from scores by name."""
    names = dict(net.named_parameters(remove_duplicate=False))
    keys = [next(n for n, p in names.items() if p is getattr(*pair)) for pair in pairs]
    return dict(zip(keys, pairs, strict=True))


@pytest.mark.parametrize("amount", [0, 40, 0.25, 1.0])
def test_prune_leaves_the_drop_ins_state_round_by_round(amount):
    ours, theirs = make(), make()
    for _ in range(2 if amount != 1.0 else 1):
        assert prune.prune_(ours, amount=amount) is ours
        prune.global_unstructured(pairs_of(theirs), L1, amount=amount)
        assert_same_state(ours, theirs)
        assert torch.equal(ours(X), theirs(X))
    assert torch_prune.is_pruned(ours)


def test_prune_ranks_by_scores_as_the_drop_in_does():
    ours, theirs = make(), make()
    generator = torch.Generator().manual_seed(4)
    scores = {
        name: torch.rand(p.shape, generator=generator) for name, p in prune.params_of(ours).items()
    }
    pairs = by_name(theirs, pairs_of(theirs)[:4])
    prune.prune_(ours, scores, amount=50)
    prune.global_unstructured(
        pairs_of(theirs), L1, {pair: scores[name] for name, pair in pairs.items()}, amount=50
    )
    assert_same_state(ours, theirs)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=4))
def test_sparsity_is_of_all_prunable_entries_and_nothing_comes_back(sparsities):
    net, reached = make(), 0
    before = prune.prior_masks(net)
    for sparsity in sparsities:
        prune.prune_(net, sparsity=sparsity)
        reached = max(reached, round(sparsity * NUM_ENTRIES))
        assert num_pruned(net) == reached
        after = prune.masks_of(net)
        assert [name for name, mask in after.items() if mask is not None] == [
            name for name in after if name in PRUNABLE
        ]
        assert all((before[name] | ~after[name]).all() for name in PRUNABLE)
        before = after


def test_prune_ranks_the_dense_values_of_now():
    """Not those of the last forward, which is what the drop-in takes for want of scores."""
    net = nn.Linear(4, 1, bias=False)
    nn.init.ones_(net.weight)
    prune.prune_(net, amount=1)
    with torch.no_grad():
        net.weight_orig.copy_(torch.tensor([[1.0, 4.0, 2.0, 3.0]]))
    prune.prune_(net, amount=1)
    assert net.weight_mask.tolist() == [[0, 1, 0, 1]]


def test_where_says_what_is_pruned_and_what_counts():
    net = make()
    prune.prune_(net, sparsity=0.5, where="inner.*weight")
    assert num_pruned(net) == 6
    first = prune.masks_of(net)["inner.0.weight"]
    prune.prune_(net, sparsity=0.5, where=lambda path, leaf: path.startswith("rnn.w"))
    assert num_pruned(net) == 6 + 42
    assert torch.equal(prune.masks_of(net)["inner.0.weight"], first)
    prune.prune_(net, amount=3, where=["*.bias"])
    assert int((prune.masks_of(net)["inner.0.bias"] == 0).sum()) == 3
    prune.prune_(net, sparsity=0.5)  # of the 124: the bias does not count
    assert num_pruned(net) == 62 + 3


def test_prior_masks_leave_out_what_is_pruned_elsewhere():
    net = prune.prune_(make(), sparsity=0.5)
    weights = gp.prunable(prune.params_of(net), "inner.*weight")
    priors = prune.prior_masks(net, "inner.*weight")
    assert [name for name, mask in priors.items() if mask is not None] == ["inner.0.weight"]
    assert torch.equal(priors["inner.0.weight"], prune.masks_of(net)["inner.0.weight"])
    expected = gp.global_unstructured(weights, masks=priors, sparsity=0.9)
    assert_same(gp.global_unstructured(prune.params_of(net), masks=priors, sparsity=0.9), expected)
    prune.prune_(net, sparsity=0.9, where="inner.*weight")
    assert torch.equal(prune.masks_of(net)["inner.0.weight"], expected["inner.0.weight"])


def test_prune_by_another_method():
    @gp.pruning_method("unstructured")
    def negative(param, scores=None, *, mask=None, amount):
        return scores >= 0

    net = make()
    weights = gp.prunable({name: p.detach() for name, p in prune.params_of(net).items()})
    prune.prune_(net, amount=0.5, method=functools.partial(gp.random_unstructured, seed=3))
    expected = gp.global_unstructured(
        weights, pruning_method=gp.random_unstructured, amount=0.5, seed=3
    )
    masks = prune.masks_of(net)
    assert all(torch.equal(masks[name], expected[name]) for name in PRUNABLE)

    signs = {name: p.detach().sign() for name, p in prune.params_of(make()).items()}
    net = prune.prune_(make(), signs, amount=0, method=negative)
    masks = prune.masks_of(net)
    assert all(torch.equal(masks[name], signs[name] >= 0) for name in PRUNABLE)


def test_prune_with_a_floor_per_leaf():
    net, floor = make(), 4
    with torch.no_grad():
        net.embed.weight.mul_(1e-3)
    weights = gp.prunable({name: p.detach() for name, p in prune.params_of(net).items()})
    expected = gp.global_unstructured(weights, sparsity=0.7, min_per_leaf=floor)
    prune.prune_(net, sparsity=0.7, min_per_leaf=floor)
    masks = prune.masks_of(net)
    assert all(torch.equal(masks[name], expected[name]) for name in PRUNABLE)
    assert masks["embed.weight"].sum() == floor


def no_leaf(path, leaf):
    return False


@pytest.mark.parametrize("pruned", [False, True])
@pytest.mark.parametrize(
    ("scores", "kwargs", "kind", "match"),
    [
        (None, {}, TypeError, r"prune_\(\) takes exactly one of amount and sparsity, got neither"),
        (None, {"amount": 1, "sparsity": 0.5}, TypeError, "got both"),
        (None, {"amount": 125}, ValueError, "amount must be at most"),
        (None, {"sparsity": 80.0}, ValueError, "did you mean 0.8"),
        (None, {"amount": True}, TypeError, "amount must be an int or a float, got True"),
        (None, {"amount": 1, "where": 3}, TypeError, "where must be None, a glob"),
        (None, {"amount": 1, "where": "fc"}, ValueError, "no prunable .*; where='fc' chooses none"),
        (None, {"amount": 1, "where": no_leaf}, ValueError, "no prunable .*; where=<function no_l"),
        (None, {"amount": 1, "method": gp.n_of_m}, TypeError, r"prune_\(\) .* n_of_m .* attach_m"),
        (None, {"amount": {"a": 1}}, TypeError, r"prune_\(\) takes one amount .* attach_masks_"),
        (None, {"amount": 120, "min_per_leaf": 10}, ValueError, "min_per_leaf 10 allows at most"),
        (None, {"amount": 1, "min_per_leaf": -1}, ValueError, "min_per_leaf must not be negative"),
        (None, {"amount": 1, "method": L1}, TypeError, "L1Unstructured is a class"),
        ([1.0], {"amount": 1}, TypeError, "scores must map parameter names to tensors, got list"),
        (0.5, {}, TypeError, "got 0.5; pass a number by name: amount=0.5"),
        (None, {"amount": 1, "method": "l1"}, TypeError, "got 'l1'; pass one of gprune, such as"),
        ({}, {"amount": 1}, ValueError, r"scores\['again.bias'\]|scores\['embed.weight'\]"),
        ("transposed", {"amount": 1}, ValueError, r"scores\['embed.weight'\] has shape \(4, 7\)"),
        ("unknown", {"amount": 1}, ValueError, r"scores\['x'\]"),
    ],
)
def test_prune_refuses_before_anything_changes(pruned, scores, kwargs, kind, match):
    net = make()
    if pruned:
        prune.prune_(net, amount=3)
    before = identities(net)
    given_scores = scores
    if isinstance(scores, str):
        given_scores = {name: p.detach() for name, p in prune.params_of(net).items()}
        changed = {"x": X} if scores == "unknown" else {"embed.weight": torch.ones(4, 7)}
        given_scores |= changed
    with pytest.raises(kind, match=match):
        prune.prune_(net, given_scores, **kwargs)
    assert identities(net) == before


def test_a_module_is_a_module():
    for function in (prune.masks_of, prune.params_of, prune.prior_masks):
        with pytest.raises(TypeError, match=r"module must be a torch\.nn\.Module, got dict"):
            function({})
    with pytest.raises(TypeError, match=r"module must be a torch\.nn\.Module, got dict"):
        prune.prune_({}, amount=1)


def test_prior_masks_of_fresh_half_pruned_and_pruned_modules():
    net = make()
    params = prune.params_of(net)
    fresh = prune.prior_masks(net)
    assert list(fresh) == list(params)
    assert sorted(name for name, mask in fresh.items() if mask is not None) == PRUNABLE
    assert all(fresh[name].all() and fresh[name].dtype == torch.bool for name in PRUNABLE)
    assert all(fresh[name].shape == params[name].shape for name in PRUNABLE)

    mask, bias = torch.rand(4, 3) > 0.5, torch.rand(4) > 0.5
    prune.attach_masks_(net, {"inner.0.weight": mask, "inner.0.bias": bias})
    half = prune.prior_masks(net)
    assert torch.equal(half["inner.0.weight"], mask)
    assert half["inner.0.bias"] is None  # pruned already, but not prunable by default
    assert torch.equal(prune.prior_masks(net, "*.bias")["inner.0.bias"], bias)
    assert half["embed.weight"].all()
    assert half["rnn.bias_ih_l0"] is None
    only = prune.prior_masks(net, "rnn.bias*")
    assert sorted(name for name, mask in only.items() if mask is not None) == [
        "rnn.bias_hh_l0",
        "rnn.bias_ih_l0",
    ]

    prune.prune_(net, amount=0)
    pruned = prune.prior_masks(net)
    masks = prune.masks_of(net)
    assert sorted(name for name, m in pruned.items() if m is not None) == PRUNABLE
    assert all(torch.equal(pruned[name], masks[name]) for name in PRUNABLE)
    assert torch.equal(pruned["inner.0.weight"], mask)


@pytest.mark.parametrize("state", ["fresh", "half-pruned", "pruned"])
def test_prior_masks_go_into_the_pure_functions(state):
    """Parameters whose prior mask is `None` are not ranked, though they are tensors."""
    net = make()
    if state == "half-pruned":
        prune.attach_masks_(net, {"inner.0.weight": torch.rand(4, 3) > 0.5})
    elif state == "pruned":
        prune.prune_(net, amount=20)
    priors, before = prune.prior_masks(net), num_pruned(net)
    masks = gp.global_unstructured(prune.params_of(net), masks=priors, amount=0.1)
    assert [name for name, mask in masks.items() if mask is None] == [
        name for name, mask in priors.items() if mask is None
    ]
    more = round(0.1 * (NUM_ENTRIES - before))
    assert int(gp.num_pruned(masks)) == before + more
    assert num_pruned(prune.attach_masks_(net, masks)) == before + more
    assert all((priors[name] | ~masks[name]).all() for name in PRUNABLE)
    twin = make()
    if state == "fresh":
        assert_same_state(prune.attach_masks_(twin, masks), prune.prune_(make(), amount=0.1))


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_pruned_entries_become_zero_also_where_the_weight_is_not_finite(value: float) -> None:
    net = nn.Linear(2, 1)
    net.weight.data[:] = value
    prune.attach_masks_(net, {"weight": torch.tensor([[True, False]])})
    assert prune.make_permanent_(net).weight[0, 1] == 0
    assert not net.weight[0, 0].isfinite()


def test_a_module_without_values_is_named() -> None:
    with pytest.raises(TypeError, match=r"params\['0.bias'\] is not initialised yet"):
        prune.prune_(nn.Sequential(nn.LazyLinear(4)), sparsity=0.5)
