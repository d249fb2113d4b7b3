"""Random walks through the adapter, and through torch, beside a model in plain Python.

A walk prunes, masks, trains, saves, loads, copies and undoes in any order. After each step the
module must be what the model says: for each name of each parameter its dense values, which flat
positions are pruned, and what it showed last (a pruned tensor is made anew by a forward or by a
mask, and is stale in between). The walk on `torch.nn.utils.prune` itself holds the model to torch;
the one on `gprune.adapter` makes the same steps and those that torch has not.
"""

import copy
import io
import random
from contextlib import contextmanager
from math import isclose
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import Phase, settings
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)
from torch import nn
from torch.func import functional_call
from torch.nn.utils import prune as torch_prune

import gprune.adapter as prune
from tests.support.adapter_state import hook_chain, identities

RATE = 0.25


class Net(nn.Module):
    """A convolution, nested containers, and two weights of one shape that may be one."""

    def __init__(self, tied=False):
        super().__init__()
        self.conv = nn.Conv1d(1, 2, 2)
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(4, 2), nn.Tanh())
        self.tail = nn.Sequential(
            nn.Linear(2, 2, bias=False),
            nn.Sequential(nn.Tanh(), nn.Linear(2, 2, bias=False)),
        )
        if tied:
            self.tail[1][1].weight = self.tail[0].weight
        self.double()

    def forward(self, x):
        return self.tail(self.body(self.conv(x)))


X = torch.tensor([[[1.0, -0.5, 0.25]], [[0.5, 2.0, -1.0]]], dtype=torch.float64)
PLAIN = Net()  # only its forward is used, with tensors from the model
SHAPES = {path: p.shape for path, p in PLAIN.named_parameters()}
SIZES = {path: shape.numel() for path, shape in SHAPES.items()}
PATHS = list(SHAPES)
TIED = ["tail.0.weight", "tail.1.1.weight"]


class Model:
    """What must be pruned, in sets and lists. `first` leads from each name to its parameter's."""

    def __init__(self, tied, dense):
        self.first = {path: path for path in PATHS}
        if tied:
            self.first[TIED[1]] = TIED[0]
        self.dense = {key: list(dense[key]) for key in self.first.values()}
        self.pruned: dict[str, set[int] | None] = dict.fromkeys(PATHS)  # None is no mask at all
        self.last: dict[str, list[float]] = {}
        self.rounds = dict.fromkeys(PATHS, 0)

    def names(self, key):
        return [path for path in PATHS if self.first[path] == key]

    def masked(self, path):
        gone = self.pruned[path] or ()
        return [0.0 if i in gone else v for i, v in enumerate(self.dense[self.first[path]])]

    def shown(self, path):
        return self.masked(path) if self.pruned[path] is None else self.last[path]

    def adapted(self):
        return [path for path in PATHS if self.pruned[path] is not None]

    def gone(self, paths):
        """Return what is pruned under any of these names."""
        return set().union(*(self.pruned[path] or () for path in paths))

    def ranking(self, paths, scores, largest_first):
        """Return the candidates by magnitude of score, then by their place in the pairs."""
        found = []
        for key in dict.fromkeys(self.first[path] for path in paths):
            names = [path for path in paths if self.first[path] == key]
            values, gone = scores.get(key, self.shown(names[0])), self.gone(names)
            found += [(abs(v), key, i) for i, v in enumerate(values) if i not in gone]
        return sorted(found, key=lambda candidate: candidate[0], reverse=largest_first)

    def prune(self, paths, chosen):
        """Mask every name by what is chosen, and by what the other names given have lost."""
        for path in dict.fromkeys(paths):
            gone = self.gone(p for p in paths if self.first[p] == self.first[path])
            self.mask(path, gone | {i for _, key, i in chosen if key == self.first[path]})

    def mask(self, path, positions):
        self.pruned[path] = (self.pruned[path] or set()) | positions
        self.rounds[path] += 1
        self.last[path] = self.masked(path)

    def refresh(self):
        self.last = {path: self.masked(path) for path in self.adapted()}

    def detach(self, path):
        self.pruned[path] = None
        self.rounds[path] = 0

    def make_permanent(self, path):
        self.dense[self.first[path]] = self.masked(path)
        self.detach(path)

    def load(self, saved):
        """Take over what a state dict holds; what the module shows stays as it was."""
        self.dense, self.pruned = copy.deepcopy((saved.dense, saved.pruned))


class Subject:
    """A module, its model, and the parameters that it must keep."""

    def __init__(self, net, model):
        self.net = net
        self.model = model
        self.parameters = {key: self.dense(key) for key in model.dense}
        self.lost: dict[str, set[int]] = {path: set() for path in PATHS}

    def site(self, path):
        owner, _, name = path.rpartition(".")
        return self.net.get_submodule(owner), name

    def dense(self, path):
        owner, name = self.site(path)
        return owner._parameters[name if self.model.pruned[path] is None else f"{name}_orig"]

    def zeros(self, path):
        owner, name = self.site(path)
        return {i for i, m in enumerate(flat(owner._buffers.get(f"{name}_mask"))) if m == 0}


def plain_subject(tied, dense):
    net = Net(tied)
    with torch.no_grad():
        for key, parameter in net.named_parameters():
            parameter.copy_(tensor(key, dense[key]))
    return Subject(net, Model(tied, dense))


def starting_values(ties, offset=0):
    """Return values of changing sign, with zeros and ties or else of distinct magnitudes."""
    count = iter(range(offset, 1000))
    numbers = (((-1) ** i) * (7 * i % 3 if ties else 1 + 7 * i % 29) / 32 for i in count)
    return {path: [next(numbers) for _ in range(size)] for path, size in SIZES.items()}


def tensor(path, values):
    return torch.tensor(values, dtype=torch.float64).reshape(SHAPES[path])


def kept(path, gone):
    return tensor(path, [i not in gone for i in range(SIZES[path])]).bool()


def flat(values):
    return [] if values is None else values.detach().flatten().tolist()


def saved(thing):
    file = io.BytesIO()
    torch.save(thing, file)
    return file.getvalue()


def loaded(content):
    return torch.load(io.BytesIO(content), weights_only=True)


def surroundings():
    return (
        torch.get_rng_state().numpy().tobytes(),
        random.getstate(),
        torch.get_default_dtype(),
        torch.get_num_threads(),
        torch.is_grad_enabled(),
    )


class Largest(torch_prune.L1Unstructured):
    """Prunes the other end: the engine serves the class, but no subclass, of `L1Unstructured`."""

    def compute_mask(self, t, default_mask):
        ranks = t.abs().argsort(descending=True).argsort()
        return super().compute_mask(ranks, default_mask)


class InterruptionError(Exception):
    pass


@contextmanager
def interruption(owner, name):
    """Make the write of one mask fail."""

    def register_buffer(key, *args, **kwargs):
        if key == f"{name}_mask":
            raise InterruptionError
        type(owner).register_buffer(owner, key, *args, **kwargs)

    owner.register_buffer = register_buffer
    try:
        yield
    finally:
        del owner.register_buffer


def positions(path):
    return st.sets(st.integers(0, SIZES[path] - 1), min_size=1)


def some_scores(path):
    return st.lists(st.integers(-2, 2), min_size=SIZES[path], max_size=SIZES[path])


def by_path(strategy):
    """Return dicts of at least one path."""
    return st.fixed_dictionaries({}, optional={p: strategy(p) for p in PATHS}).filter(len)


one_path = st.sampled_from(PATHS) | st.sampled_from(TIED)  # half of the time what may be one
pairs = st.lists(one_path, min_size=1, max_size=8) | st.permutations(PATHS)
amounts = st.integers(0, 6) | st.floats(0, 1)
masks = by_path(lambda path: st.none() | positions(path))
scores = by_path(some_scores)


def is_adapted(walk):
    return bool(walk.model.adapted())


class Walk(RuleBasedStateMachine):
    """The steps that torch can make."""

    library: Any = torch_prune
    checkpoints = Bundle("checkpoints")

    # What the two libraries differ in: pairs of one parameter, ties, the way back.

    def accepted(self, paths):
        """Return the pairs to prune. torch ranks a parameter as often as it is given."""
        return list({self.model.first[path]: path for path in paths}.values())

    def settled(self, k, ranking, method):
        """Return the k to ask for. Of a tie torch may prune any, so that k does not split one."""
        while 0 < k < len(ranking) and ranking[k - 1][0] == ranking[k][0]:
            k -= 1
        return k

    def refuses(self, scored, paths):
        """Return whether scores of other pairs alone are refused. torch ignores them."""
        return False

    def release(self):
        """Leave no mask behind."""
        for path in self.model.adapted():
            self.call(torch_prune.remove, *self.now.site(path))
            self.model.make_permanent(path)

    @property
    def net(self):
        return self.now.net

    @property
    def model(self):
        return self.now.model

    def call(self, function, *args, **kwargs):
        before = surroundings()
        try:
            return function(*args, **kwargs)
        finally:
            assert surroundings() == before

    def save(self):
        return saved(self.net.state_dict()), copy.deepcopy(self.model)

    @contextmanager
    def refused(self, kind):
        before = identities(self.net)
        with pytest.raises(kind):
            yield
        assert identities(self.net) == before

    @initialize(target=checkpoints, tied=st.booleans(), ties=st.booleans())
    def start(self, tied, ties):
        self.tied, self.ties = tied, ties
        self.now = plain_subject(tied, starting_values(ties))
        self.others = []
        self.may_return = False
        return self.save()

    @rule(paths=pairs, amount=amounts)
    def prune_the_smallest(self, paths, amount):
        self.prune(paths, amount, {}, torch_prune.L1Unstructured)

    @rule(paths=pairs, amount=amounts, scores=scores)
    def prune_by_scores(self, paths, amount, scores):
        self.prune(paths, amount, scores, torch_prune.L1Unstructured)

    @rule(paths=pairs, amount=amounts, scores=st.just({}) | scores)
    def prune_the_largest(self, paths, amount, scores):
        self.prune(paths, amount, scores, Largest)

    @rule(rounds=st.lists(st.tuples(pairs, amounts), min_size=2, max_size=3))
    def prune_and_train_in_turn(self, rounds):
        # The last update is never shown: what the next round ranks is what stood before it.
        for paths, amount in rounds:
            self.prune(paths, amount, {}, torch_prune.L1Unstructured)
            self.train(steps=1)

    def prune(self, paths, amount, scores, method):
        paths = self.accepted(paths)
        by_key = {self.model.first[p]: scores[p] for p in reversed(paths) if p in scores}
        given = {p: by_key.get(self.model.first[p], s) for p, s in scores.items()}
        ranking = self.model.ranking(paths, by_key, method is Largest)
        k = amount if isinstance(amount, int) else round(amount * len(ranking))
        fits = k <= len(ranking)
        if fits and k != (settled := self.settled(k, ranking, method)):
            amount = k = settled
        arguments = {
            "parameters": [self.now.site(path) for path in paths],
            "pruning_method": method,
            "importance_scores": {self.now.site(p): tensor(p, s) for p, s in given.items()},
            "amount": amount,
        }
        if not fits or self.refuses(given, paths):
            with self.refused(ValueError):
                self.call(self.library.global_unstructured, **arguments)
            return
        self.call(self.library.global_unstructured, **arguments)
        self.model.prune(paths, ranking[:k])

    @rule(masks=by_path(positions))
    def custom_from_mask(self, masks):
        for path, gone in masks.items():  # each name apart, also if they are of one parameter
            self.multiply(path, gone)

    def multiply(self, path, gone):
        self.call(self.library.custom_from_mask, *self.now.site(path), kept(path, gone).double())
        self.model.mask(path, gone)

    @precondition(is_adapted)
    @rule(path=one_path)
    def remove(self, path):
        if self.model.pruned[path] is None:
            with self.refused(ValueError):
                self.call(self.library.remove, *self.now.site(path))
            return
        self.call(self.library.remove, *self.now.site(path))
        self.model.make_permanent(path)
        self.may_return = True

    @rule(grad=st.booleans())
    def forward(self, grad):
        with torch.set_grad_enabled(grad):
            out = self.net(X)
        expected = {path: tensor(path, self.model.masked(path)) for path in PATHS}
        torch.testing.assert_close(out.detach(), functional_call(PLAIN, expected, (X,)).detach())
        self.model.refresh()

    @rule(steps=st.integers(1, 2))
    def train(self, steps):
        optimizer = torch.optim.SGD(self.net.parameters(), lr=RATE)
        for _ in range(steps):
            weights = {p: tensor(p, self.model.masked(p)).requires_grad_() for p in PATHS}
            functional_call(PLAIN, weights, (X,)).sum().backward()
            optimizer.zero_grad()
            self.net(X).sum().backward()
            self.model.refresh()
            optimizer.step()
            self.learn({path: flat(weight.grad) for path, weight in weights.items()})

    def learn(self, gradients):
        """Take over the dense values of the module, which must have followed these gradients."""
        for key, old in self.model.dense.items():
            new = flat(self.now.parameters[key])
            for i, value in enumerate(old):
                alive = [p for p in self.model.names(key) if i not in (self.model.pruned[p] or ())]
                expected = value - RATE * sum(gradients[path][i] for path in alive)
                fits = isclose(new[i], expected, abs_tol=1e-9) if alive else new[i] == value
                assert fits, f"{key}[{i}] is {new[i]} after a step, expected {expected}"
            self.model.dense[key] = new

    @rule(target=checkpoints)
    def save_again(self):
        return self.save()

    @rule(checkpoint=checkpoints, into_a_fresh_module=st.booleans())
    def load(self, checkpoint, into_a_fresh_module):
        content, then = checkpoint
        if into_a_fresh_module:
            self.now = plain_subject(self.tied, starting_values(self.ties, offset=3))
        if self.model.adapted() != then.adapted():
            self.release()
            for path in then.adapted():
                self.multiply(path, set())
        self.net.load_state_dict(loaded(content))
        self.model.load(then)
        self.may_return = True

    @rule(go_on_with_the_copy=st.booleans())
    def deepcopy(self, go_on_with_the_copy):
        self.forward(grad=False)  # torch copies no tensor that has a history
        twin = Subject(self.call(copy.deepcopy, self.net), copy.deepcopy(self.model))
        assert not {*map(id, twin.net.parameters())} & {*map(id, self.net.parameters())}
        self.others = [twin]
        if go_on_with_the_copy:
            self.now, self.others = twin, [self.now]

    @invariant()
    def agrees(self):
        for subject in [self.now, *self.others]:
            self.check(subject)
        self.check_that_nothing_pruned_comes_back()

    def check(self, subject):
        for path in PATHS:
            check_site(subject, path)
        net, model, adapted = subject.net, subject.model, subject.model.adapted()
        keys = {p for p in PATHS if p not in adapted}
        keys |= {f"{path}{suffix}" for path in adapted for suffix in ("_orig", "_mask")}
        assert net.state_dict().keys() == keys
        parameters = sorted(map(id, subject.parameters.values()))
        assert sorted(map(id, net.parameters())) == parameters
        modules = dict(net.named_modules())
        assert sum(len(m._forward_pre_hooks) for m in modules.values()) == len(adapted)
        read = self.call(lambda: [self.library.is_pruned(m) for m in modules.values()])
        inside = [f"{prefix}." if prefix else "" for prefix in modules]
        assert read == [any(path.startswith(i) for path in adapted) for i in inside]
        assert {k: flat(p) for k, p in subject.parameters.items()} == model.dense
        shown = {path: flat(getattr(*subject.site(path))) for path in PATHS}
        assert shown == {path: model.shown(path) for path in PATHS}

    def check_that_nothing_pruned_comes_back(self):
        before, self.now.lost = self.now.lost, {path: self.now.zeros(path) for path in PATHS}
        back = {path: before[path] - self.now.lost[path] for path in PATHS}
        assert self.may_return or not any(back.values()), back
        self.may_return = False


def check_site(subject, path):
    owner, name = subject.site(path)
    dense, gone = subject.parameters[subject.model.first[path]], subject.model.pruned[path]
    hooks = [hook_chain(h) for h in owner._forward_pre_hooks.values() if h._tensor_name == name]
    assert subject.dense(path) is dense, f"{path} is another Parameter"
    assert dense.requires_grad
    assert dense.is_leaf
    if gone is None:
        assert not hooks, path
        assert not {f"{name}_orig", f"{name}_mask"} & {*owner._parameters, *owner._buffers}
        assert name not in vars(owner)
        return
    assert name not in owner._parameters
    mask, rounds = owner._buffers[f"{name}_mask"], subject.model.rounds[path]
    assert (mask.dtype, mask.shape, mask.requires_grad) == (dense.dtype, dense.shape, False)
    assert flat(mask) == [float(i not in gone) for i in range(SIZES[path])], path
    one = (torch_prune.CustomFromMask, name, [])
    assert hooks == [one if rounds == 1 else (torch_prune.PruningContainer, name, [one] * rounds)]


class AdapterWalk(Walk):
    """The same steps through the adapter, and its own."""

    library = prune

    def accepted(self, paths):
        return paths

    def settled(self, k, ranking, method):
        return super().settled(k, ranking, method) if method is Largest else k

    def refuses(self, scored, paths):
        return bool(scored) and not set(scored) & set(paths)

    def release(self):
        assert self.call(prune.detach_masks_, self.net) is self.net
        for path in PATHS:
            self.model.detach(path)

    @precondition(is_adapted)
    @rule(permanently=st.booleans())
    def leave(self, permanently):
        if permanently:
            assert self.call(prune.make_permanent_, self.net) is self.net
            for path in self.model.adapted():
                self.model.make_permanent(path)
        else:
            self.release()
        self.may_return = True

    @rule(masks=masks)
    def attach(self, masks):
        keep = {p: None if gone is None else kept(p, gone) for p, gone in masks.items()}
        assert self.call(prune.attach_masks_, self.net, keep) is self.net
        attach_to_model(self.model, masks)

    @precondition(is_adapted)
    @rule()
    def rebuild_from_params_and_masks(self):
        params = {k: p.detach() for k, p in prune.params_of(self.net).items()}
        params, masks = loaded(saved((params, prune.masks_of(self.net))))
        dense = {path: flat(params[self.model.first[path]]) for path in PATHS}
        gone = {k: self.model.gone(self.model.names(k)) for k, m in masks.items() if m is not None}
        self.now = plain_subject(self.tied, dense)
        self.call(prune.attach_masks_, self.net, masks)
        attach_to_model(self.model, gone)

    @rule(paths=pairs, way=st.sampled_from(["prune", "attach", "detach", "make permanent"]))
    def be_interrupted(self, paths, way):
        if way in ("prune", "attach"):
            self.interrupt_the_way_in(paths, way)
        elif self.model.adapted():
            self.interrupt_the_way_out(way)

    def interrupt_the_way_in(self, paths, way):
        with interruption(*self.now.site(paths[-1])), self.refused(InterruptionError):
            if way == "prune":
                sites = [self.now.site(path) for path in paths]
                method = torch_prune.L1Unstructured
                self.call(prune.global_unstructured, sites, method, amount=1.0)
            else:
                nothing = {path: torch.zeros(SHAPES[path]).bool() for path in paths}
                self.call(prune.attach_masks_, self.net, nothing)

    def interrupt_the_way_out(self, way):
        owner, name = self.now.site(self.model.adapted()[-1])
        mask = owner._buffers.pop(f"{name}_mask")
        with self.refused(AttributeError):
            self.call(prune.detach_masks_ if way == "detach" else prune.make_permanent_, self.net)
        owner.register_buffer(f"{name}_mask", mask)

    def check(self, subject):
        super().check(subject)
        model = subject.model
        params = self.call(prune.params_of, subject.net)
        assert params.keys() == model.dense.keys()
        assert all(params[key] is p for key, p in subject.parameters.items())
        read = self.call(prune.masks_of, subject.net)
        assert read.keys() == model.dense.keys()
        for key, mask in read.items():
            names = [path for path in model.names(key) if path in model.adapted()]
            assert (mask is None) == (not names), key
            if mask is not None:
                gone = model.gone(names)
                assert (mask.dtype, mask.shape) == (torch.bool, SHAPES[key])
                assert flat(mask) == [i not in gone for i in range(SIZES[key])], key


def attach_to_model(model, masks):
    """Every name of a parameter gets what is pruned under any name that is given."""
    given = {path: gone for path, gone in masks.items() if gone is not None}
    for key in dict.fromkeys(model.first[path] for path in given):
        names = model.names(key)
        gone = set().union(*(given.get(name, ()) for name in names))
        for name in names:
            model.mask(name, gone)


TestAdapter = pytest.mark.slow(AdapterWalk.TestCase)
TestTorch = pytest.mark.slow(Walk.TestCase)
# A walk has many ways to go: beyond the quick profile there are twice as many as of other examples.
EXAMPLES = settings.default.max_examples
WALKS = EXAMPLES if EXAMPLES <= 25 else min(2 * EXAMPLES, 1_000)
TestAdapter.settings = TestTorch.settings = settings(
    max_examples=WALKS,
    stateful_step_count=20,
    report_multiple_bugs=False,
    phases=set(Phase) - {Phase.explain},
)
