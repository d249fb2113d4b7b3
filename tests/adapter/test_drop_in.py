"""The drop-in: torch's errors with more said, and no silence where torch is silent."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn.utils import prune as torch_prune

import gprune as gp
import gprune.adapter as prune
from tests.support.adapter_cases import L1, make, pairs_of
from tests.support.adapter_state import assert_same_state, identities, num_zero


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


class NotAMethod:
    PRUNING_TYPE = "unstructured"


class Untyped(torch_prune.BasePruningMethod):
    def compute_mask(self, t, default_mask):
        return default_mask


class NoMask(torch_prune.BasePruningMethod):
    PRUNING_TYPE = "unstructured"


class WrongSize(torch_prune.BasePruningMethod):
    PRUNING_TYPE = "unstructured"

    def compute_mask(self, t, default_mask):
        return torch.ones(len(t) + 1)


def setup():
    net = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 2, bias=False))
    return SimpleNamespace(net=net, pairs=[(net[0], "weight"), (net[2], "weight")])


def pairs_first(*arguments, **kwargs):
    return lambda s: ((s.pairs, *arguments), kwargs)


def with_pair(module, name):
    return lambda s: (([*s.pairs, (module(s.net), name)], L1), {"amount": 2})


# name: (what is called, parts of the message that it must have)
ROWS = {
    "parameters not iterable": (
        lambda s: ((3, L1), {"amount": 1}),
        ["parameters", "iterable", "int"],
    ),
    "parameters a module": (lambda s: ((s.net[0], L1), {"amount": 1}), ["parameters", "Linear"]),
    "parameters empty": (lambda s: (([], L1), {"amount": 1}), ["at least one", "none"]),
    "parameters not pairs": (lambda s: (([s.net[0]], L1), {"amount": 1}), ["Linear"]),
    "parameters a string": (lambda s: (("ab", L1), {"amount": 1}), ["pair", "got 'a'"]),
    "a triple": (
        lambda s: (([(s.net[0], "weight", 1)], L1), {"amount": 1}),
        ["Linear, 'weight', int"],
    ),
    "scores a list": (pairs_first(L1, [1], amount=1), ["importance_scores", "dict", "list"]),
    "scores an empty list": (pairs_first(L1, [], amount=1), ["importance_scores", "dict", "list"]),
    "structured": (pairs_first(torch_prune.LnStructured, amount=1, n=1), ["unstructured", "LnStr"]),
    "a method of type global": (
        pairs_first(torch_prune.CustomFromMask, mask=torch.ones(1)),
        ["unstructured", "global"],
    ),
    "no BasePruningMethod": (pairs_first(NotAMethod), ["BasePruningMethod", "NotAMethod"]),
    "an object without a type": (pairs_first(SimpleNamespace), ["PRUNING_TYPE", "unstructured"]),
    "a method without a type": (pairs_first(Untyped), ["PRUNING_TYPE", "Untyped"]),
    "a method that is None": (pairs_first(lambda: None), ["NoneType", "PRUNING_TYPE"]),
    "an abstract method": (pairs_first(NoMask), ["compute_mask"]),
    "a function of torch": (pairs_first(torch_prune.l1_unstructured, amount=1), ["module"]),
    "a method that is a string": (pairs_first("l1", amount=1), ["str"]),
    "a mask of the wrong size": (pairs_first(WrongSize), ["18", "19"]),
    "amount a string": (pairs_first(L1, amount="3"), ["amount", "3"]),
    "amount None": (pairs_first(L1, amount=None), ["amount", "None"]),
    "amount a tensor": (pairs_first(L1, amount=torch.tensor(1)), ["amount"]),
    "amount True": (pairs_first(L1, amount=True), ["amount", "True"]),
    "amount negative": (pairs_first(L1, amount=-1), ["amount", "-1"]),
    "amount a negative float": (pairs_first(L1, amount=-0.5), ["amount", "-0.5"]),
    "amount above 1": (pairs_first(L1, amount=1.5), ["amount", "1.5"]),
    "amount infinite": (pairs_first(L1, amount=float("inf")), ["amount", "inf"]),
    "amount NaN": (pairs_first(L1, amount=float("nan")), ["amount", "NaN", "[0, 1]"]),
    "amount above the candidates": (pairs_first(L1, amount=19), ["19", "18", "fraction"]),
    "amount above the candidates, random": (
        pairs_first(torch_prune.RandomUnstructured, amount=19),
        ["19", "18"],
    ),
    "amount missing": (pairs_first(L1), ["amount"]),
    "an unknown argument": (pairs_first(L1, amount=1, fraction=0.5), ["fraction"]),
    "missing attribute": (
        with_pair(lambda n: n[0], "wieght"),
        ["parameters[2]", "Linear", "wieght"],
    ),
    "bias=None": (with_pair(lambda n: n[2], "bias"), ["parameters[2]", "Linear", "bias", "None"]),
    "not a module": (with_pair(lambda n: None, "weight"), ["parameters[2]", "NoneType", "weight"]),
    "a name that is no string": (with_pair(lambda n: n[0], 1), ["attribute name", "string"]),
    "a buffer": (with_pair(lambda n: n[1], "running_mean"), ["running_mean", "Parameter"]),
}


def caught(library, row):
    s = setup()
    before = identities(s.net)
    arguments, kwargs = ROWS[row][0](s)
    with pytest.raises(Exception) as info:  # noqa: PT011 torch says which
        library.global_unstructured(*arguments, **kwargs)
    return type(info.value), str(info.value), identities(s.net) == before


@pytest.mark.parametrize("row", ROWS)
def test_an_error_is_of_torchs_class_says_more_and_changes_nothing(row):
    kind, message, unchanged = caught(prune, row)
    assert kind is caught(torch_prune, row)[0]
    assert [part for part in ROWS[row][1] if part not in message] == []
    assert unchanged


NO_PAIRS = {
    "parameters": (nn.Module.parameters, ValueError, "Parameter"),
    "parameters of two rows": (lambda net: net[3].parameters(), TypeError, "Parameter"),
    "named parameters": (nn.Module.named_parameters, TypeError, r"\('[\w.]+', Parameter\)"),
    "a state dict": (nn.Module.state_dict, ValueError, r"'[\w.]+'"),
    "names": (lambda net: [("0", "weight")], AttributeError, r"\('0', 'weight'\)"),
    "modules": (lambda net: net[0].modules(), TypeError, "Linear"),
}


@pytest.mark.parametrize(("of", "kind", "got"), NO_PAIRS.values(), ids=NO_PAIRS)
def test_what_are_no_pairs_are_told_how_to_make_them(of, kind, got):
    net = make()
    with pytest.raises(kind, match=rf"parameters\[0\] must be a pair .* got {got}; make pairs"):
        prune.global_unstructured(of(net), L1, amount=1)
    with pytest.raises(kind):
        torch_prune.global_unstructured(of(net), L1, amount=1)


@pytest.mark.parametrize("method", [gp.l1_unstructured, L1(1)], ids=["of gprune", "instance"])
def test_a_method_that_is_no_class_is_refused(method):
    net = make()
    with pytest.raises(TypeError, match="pruning_method must be a class, such as L1Unstructured"):
        prune.global_unstructured([(net[0], "weight")], method, amount=1)
    assert not torch_prune.is_pruned(net)


def test_scores_of_other_pairs_alone_are_refused():
    net, other = make(), make()
    scores = {pair: getattr(*pair).detach().flip(0) for pair in pairs_of(net)[:1]}
    elsewhere = {(other[0], "weight"): torch.rand(3, 4)}
    before = identities(net)
    for wrong in (elsewhere, {"0.weight": torch.rand(3, 4)}):
        with pytest.raises(ValueError, match=r"has 1 keys, and none .* got .{3,20}$"):
            prune.global_unstructured(pairs_of(net), L1, wrong, amount=5)
        assert identities(net) == before
    prune.global_unstructured(pairs_of(net), L1, scores | elsewhere, amount=5)
    torch_prune.global_unstructured(
        pairs_of(other), L1, {pairs_of(other)[0]: next(iter(scores.values()))}, amount=5
    )
    assert_same_state(net, other)


@pytest.mark.parametrize("dotted", [True, False])
def test_scores_may_be_given_for_a_dotted_name_or_for_what_it_names(dotted):
    net = nn.Sequential(nn.Linear(3, 1))
    key = (net, "0.weight") if dotted else (net[0], "weight")
    scores = {key: torch.tensor([[2.0, 1.0, 3.0]])}
    prune.global_unstructured([(net, "0.weight")], L1, scores, amount=1)
    assert net[0].weight_mask.tolist() == [[1, 0, 1]]


def test_a_dotted_name_of_nothing_is_an_attribute_error():
    with pytest.raises(AttributeError, match=r"'3\.wieght'\): there is no such tensor"):
        prune.global_unstructured([(make(), "3.wieght")], L1, amount=1)
    with pytest.raises(AttributeError, match=r"'9\.weight'\): there is no such tensor"):
        prune.global_unstructured([(make(), "9.weight")], L1, amount=1)


def test_amount_above_what_remains_counts_earlier_rounds():
    s = setup()
    prune.global_unstructured(s.pairs, L1, amount=10)
    before = identities(s.net)
    for library in (prune, torch_prune):
        with pytest.raises(ValueError, match=r"9.*8"):
            library.global_unstructured(s.pairs, L1, amount=9)
    assert identities(s.net) == before
    prune.global_unstructured(s.pairs, L1, amount=8)
    assert not s.net[0].weight.any()


def test_a_bool_is_no_amount():
    s = setup()
    with pytest.raises(TypeError, match="amount must be an int or a float, got False"):
        prune.global_unstructured(s.pairs, L1, amount=False)


@pytest.mark.parametrize("score", [None, [1.0], 3], ids=repr)
def test_a_score_that_is_no_tensor_is_a_type_error(score):
    s = setup()
    with pytest.raises(TypeError, match=r"parameters\[1\] \(Linear, 'weight'\) must be a tensor"):
        prune.global_unstructured(s.pairs, L1, {s.pairs[1]: score}, amount=1)
    with pytest.raises(AttributeError):
        torch_prune.global_unstructured(s.pairs, L1, {s.pairs[1]: score}, amount=1)


def test_a_foreign_attribute_in_the_place_of_the_mask_is_refused():
    s = setup()
    s.net[2].weight_mask = torch.ones(3)
    with pytest.raises(ValueError, match=r"weight_mask must be of shape \(2, 3\), got \(3,\)"):
        prune.global_unstructured(s.pairs, L1, amount=1)


def test_a_module_that_has_left_the_meta_device_is_pruned_further() -> None:
    """Its masked weight is still there until the next forward."""
    pairs = [(pruned := nn.Linear(4, 4), "weight")]
    prune.global_unstructured(pairs, prune.L1Unstructured, amount=4)
    with torch.device("meta"):
        net = nn.Linear(4, 4)
        prune.global_unstructured([(net, "weight")], prune.L1Unstructured, amount=4)
    net.to_empty(device="cpu").load_state_dict(pruned.state_dict())
    for module in (pruned, net):
        prune.global_unstructured([(module, "weight")], prune.L1Unstructured, amount=4)
    assert int(net.weight_mask.sum()) == 8
    assert net.weight_mask.equal(pruned.weight_mask)
