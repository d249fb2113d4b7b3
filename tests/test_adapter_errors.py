"""Torch's error behaviour by rows: the same class, a message that says more, nothing changed."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn.utils import prune as torch_prune

import gprune.adapter as prune
from tests.support.adapter_state import identities

L1 = torch_prune.L1Unstructured


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
    "parameters a string": (lambda s: (("ab", L1), {"amount": 1}), ["unpack"]),
    "a triple": (lambda s: (([(s.net[0], "weight", 1)], L1), {"amount": 1}), ["unpack"]),
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
