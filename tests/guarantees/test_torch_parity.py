"""The drop-in against the installed `torch.nn.utils.prune`: same state, outputs and gradients."""

import inspect
from dataclasses import dataclass, field

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from torch import nn
from torch.nn.utils import parameters_to_vector
from torch.nn.utils import prune as torch_prune

import gprune.adapter as prune
from tests.support.adapter_state import assert_same_state, num_zero

LAYERS = {
    "linear": (lambda: nn.Linear(4, 3), (2, 4)),
    "no bias": (lambda: nn.Linear(3, 2, bias=False), (2, 3)),
    "nested": (
        lambda: nn.Sequential(nn.Linear(4, 3), nn.Sequential(nn.Tanh(), nn.Linear(3, 2))),
        (2, 4),
    ),
    "conv1d": (lambda: nn.Conv1d(2, 3, 2), (1, 2, 4)),
    "conv2d": (lambda: nn.Conv2d(2, 3, 2), (1, 2, 4, 4)),
    "conv3d": (lambda: nn.Conv3d(1, 2, 2), (1, 1, 3, 3, 3)),
    "embedding": (lambda: nn.Embedding(5, 3), None),
    "lstm": (lambda: nn.LSTM(3, 2), (2, 1, 3)),
    "lstm 2": (lambda: nn.LSTM(2, 2, num_layers=2, bidirectional=True), (2, 1, 2)),
}


class Net(nn.Module):
    """Blocks side by side, so that any draw of them runs."""

    def __init__(self, kinds):
        super().__init__()
        self.kinds = kinds
        self.blocks = nn.ModuleList(LAYERS[kind][0]() for kind in kinds)

    def forward(self, seed):
        generator = torch.Generator().manual_seed(seed)
        total = 0.0
        for kind, block in zip(self.kinds, self.blocks, strict=True):
            shape = LAYERS[kind][1]
            dtype = next(block.parameters()).dtype
            x = torch.arange(4) if shape is None else torch.randn(shape, generator=generator)
            y = block(x if shape is None else x.to(dtype))
            total = total + (y[0] if isinstance(y, tuple) else y).double().square().sum()
        return total


@dataclass
class Round:
    pairs: list  # (index of the module in net.modules(), name)
    amount: int | float
    scored: list  # the pairs that have importance scores
    between: str
    score_dtype: torch.dtype
    score_seed: int = field(default=0)


@st.composite
def plans(draw):
    """A network to build and up to four rounds of pruning it."""
    kinds = draw(st.lists(st.sampled_from(sorted(LAYERS)), min_size=1, max_size=3))
    seed = draw(st.integers(0, 2**16))
    dtype = draw(st.sampled_from([torch.float32, torch.float64]))
    names = [
        (index, name)
        for index, module in enumerate(build(kinds, seed, dtype).modules())
        for name, _ in module.named_parameters(recurse=False)
    ]
    rounds = []
    for _ in range(draw(st.integers(1, 4))):
        pairs = draw(st.lists(st.sampled_from(names), min_size=1, max_size=6, unique=True))
        rounds.append(
            Round(
                pairs=pairs,
                amount=draw(st.one_of(st.integers(0, 5), st.floats(0, 1))),
                scored=draw(st.lists(st.sampled_from(pairs), unique=True)),
                between=draw(st.sampled_from(["nothing", "step", "forward", "step and forward"])),
                score_dtype=draw(st.sampled_from([torch.float32, torch.float64])),
                score_seed=draw(st.integers(0, 2**16)),
            )
        )
    return kinds, seed, dtype, rounds


def build(kinds, seed, dtype, ties=False):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = Net(kinds).to(dtype)
        with torch.no_grad():
            for parameter in net.parameters():
                parameter.copy_(torch.randn(parameter.shape))
                if ties:
                    parameter.copy_(parameter.round())
    return net


def arguments(net, plan, ties=False):
    """The pairs and scores of one round, in this copy of the network."""
    modules = list(net.modules())
    generator = torch.Generator().manual_seed(plan.score_seed)
    scores = {}
    for index, name in plan.scored:
        shape = getattr(modules[index], name).shape
        score = torch.randn(shape, generator=generator, dtype=plan.score_dtype)
        scores[modules[index], name] = score.round() if ties else score
    return [(modules[index], name) for index, name in plan.pairs], scores


def candidates(pairs, scores):
    """Absolute scores of what is not pruned, as torch ranks them."""
    with torch.no_grad():
        values = [scores.get(pair, getattr(*pair)).abs().double().flatten() for pair in pairs]
        kept = [
            getattr(m, f"{n}_mask", torch.ones_like(getattr(m, n))).flatten() == 1 for m, n in pairs
        ]
        return torch.cat(values)[torch.cat(kept)]


def unique_boundary(values, k):
    """Whether one set of k lowest scores is the only one."""
    ordered = values.sort().values
    return k in (0, len(ordered)) or bool(ordered[k - 1] != ordered[k])


def move_on(net, what):
    """Between rounds a user trains: the dense weights change, `weight` is stale until a forward."""
    if "step" in what:
        with torch.no_grad():
            for index, parameter in enumerate(net.parameters()):
                parameter.mul_(1.0 + 0.25 * index).add_(0.125)
    if "forward" in what:
        net(1)


def assert_same_behaviour(ours, theirs):
    results = []
    for net in (ours, theirs):
        net.zero_grad()
        loss = net(7)
        loss.backward()
        results.append((loss, {n: p.grad for n, p in net.named_parameters()}))
    (loss, grads), (wanted, wanted_grads) = results
    assert torch.equal(loss, wanted)
    assert list(grads) == list(wanted_grads)
    for name, grad in grads.items():
        other = wanted_grads[name]
        assert (grad is None) == (other is None), name
        assert grad is None or torch.equal(grad, other), name


@given(plan=plans(), ties=st.booleans())
def test_every_round_leaves_what_torch_leaves(plan, ties):
    kinds, seed, dtype, rounds = plan
    ours = build(kinds, seed, dtype, ties)
    theirs = build(kinds, seed, dtype, ties)
    dense = {id(p) for p in ours.parameters()}
    for round_ in rounds:
        pairs, scores = arguments(ours, round_, ties)
        their_pairs, their_scores = arguments(theirs, round_, ties)
        values = candidates(pairs, scores)
        if isinstance(round_.amount, int):
            round_.amount = min(round_.amount, len(values))
            k = round_.amount
        else:
            k = round(round_.amount * len(values))
        before = num_zero(ours)
        prune.global_unstructured(pairs, prune.L1Unstructured, scores, amount=round_.amount)
        torch_prune.global_unstructured(
            their_pairs, torch_prune.L1Unstructured, their_scores, amount=round_.amount
        )
        assert num_zero(ours) == before + k
        assert {id(p) for p in ours.parameters()} == dense
        assert num_zero(theirs) == before + k
        if not unique_boundary(values, k):  # ours are the lowest indices, torch's any: go on as one
            ours.load_state_dict(theirs.state_dict())
            ours(1), theirs(1)
        assert_same_state(ours, theirs)
        assert_same_behaviour(ours, theirs)
        move_on(ours, round_.between)
        move_on(theirs, round_.between)


def documented_example(library):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(10, 4), nn.Linear(4, 1))
    pairs = ((net[0], "weight"), (net[1], "weight"))
    library.global_unstructured(pairs, pruning_method=library.L1Unstructured, amount=10)
    return net


def test_the_documented_example_prints_ten(capsys):
    net = documented_example(prune)
    print(sum(parameters_to_vector(net.buffers()) == 0))
    assert capsys.readouterr().out == "tensor(10)\n"
    assert_same_state(net, documented_example(torch_prune))
    assert torch_prune.is_pruned(net)


def test_public_names_are_torchs_and_our_own():
    torchs = {
        name
        for name, value in vars(torch_prune).items()
        if not name.startswith("_") and getattr(value, "__module__", "") == torch_prune.__name__
    }
    ours = {"attach_masks_", "detach_masks_", "make_permanent_", "masks_of"}
    ours |= {"params_of", "prior_masks", "project_", "prune_"}
    ours |= {"recalibrate_batchnorm", "recalibrate_batchnorm_"}
    assert set(prune.__all__) == torchs | ours
    assert list(prune.__all__) == sorted(prune.__all__)
    for name in torchs - {"global_unstructured", "remove"}:
        assert getattr(prune, name) is getattr(torch_prune, name), name


def test_every_other_name_of_torchs_module_comes_from_torch():
    missing = [name for name in vars(torch_prune) if not hasattr(prune, name)]
    assert not missing
    assert prune._compute_nparams_toprune is torch_prune._compute_nparams_toprune
    with pytest.raises(AttributeError, match="no attribute 'l2_unstructured'"):
        _ = prune.l2_unstructured


def test_the_signature_is_torchs():
    def shape(function):
        parameters = inspect.signature(function).parameters.values()
        return [(p.name, p.kind, p.default) for p in parameters]

    for name in ("global_unstructured", "remove"):
        assert shape(getattr(prune, name)) == shape(getattr(torch_prune, name))


class LargeWeights(torch_prune.BasePruningMethod):
    """No amount: prunes what is above a threshold."""

    PRUNING_TYPE = "unstructured"

    def __init__(self, threshold):
        self.threshold = threshold

    def compute_mask(self, t, default_mask):
        assert t.dim() == 1
        mask = default_mask.clone()
        mask[t.abs() > self.threshold] = 0
        return mask


class Soft(torch_prune.BasePruningMethod):
    """Masks that are not zero or one."""

    PRUNING_TYPE = "unstructured"

    def compute_mask(self, t, default_mask):
        return torch.where(t > 0, default_mask, default_mask * 0)


class OwnL1(torch_prune.L1Unstructured):
    """A subclass with a rule of its own: the largest go."""

    def compute_mask(self, t, default_mask):
        return super().compute_mask(1 / t, default_mask)


class Noisy(torch_prune.BasePruningMethod):
    """Draws from the global generator, more than once."""

    PRUNING_TYPE = "unstructured"

    def compute_mask(self, t, default_mask):
        return default_mask * (torch.rand_like(t) + torch.rand(1) > 0.8)


def a_factory(**kwargs):
    return torch_prune.L1Unstructured(**kwargs)


METHODS = {
    "Identity": (torch_prune.Identity, {}),
    "RandomUnstructured int": (torch_prune.RandomUnstructured, {"amount": 9}),
    "RandomUnstructured float": (torch_prune.RandomUnstructured, {"amount": 0.3}),
    "no amount": (LargeWeights, {"threshold": 0.4}),
    "no arguments": (Soft, {}),
    "subclass of L1": (OwnL1, {"amount": 5}),
    "global generator": (Noisy, {}),
    "function that returns a method": (a_factory, {"amount": 0.25}),
    "global type is refused elsewhere": (torch_prune.L1Unstructured, {"amount": 0}),
}


@pytest.mark.parametrize(("method", "kwargs"), METHODS.values(), ids=METHODS)
@pytest.mark.parametrize("scored", [False, True])
def test_any_method_does_what_it_does_in_torch(method, kwargs, scored):
    nets = [build(["linear", "lstm", "embedding"], 3, torch.float32) for _ in range(2)]
    draws = []
    for net, library in zip(nets, (prune, torch_prune), strict=True):
        torch.manual_seed(5)
        for _ in range(3):
            pairs = [
                (module, name)
                for module in net.modules()
                for name in ("weight", "weight_hh_l0")
                if isinstance(getattr(module, name, None), torch.Tensor)
            ]
            scores = {pairs[0]: torch.linspace(-1, 1, 12).reshape(3, 4)} if scored else None
            library.global_unstructured(pairs, method, scores, **kwargs)
        draws.append(torch.rand(3))
    assert_same_state(*nets)
    assert_same_behaviour(*nets)
    assert torch.equal(*draws)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.complex64, torch.int64])
def test_other_dtypes_are_ranked_as_in_torch(dtype):
    values = torch.tensor([3.0, -0.5, 2.0, -7.0, 1.0, 0.25])
    nets = []
    for library in (prune, torch_prune):
        net = nn.ParameterDict({"w": nn.Parameter((4 * values).to(dtype), requires_grad=False)})
        for amount in (2, 0.5):
            library.global_unstructured([(net, "w")], library.L1Unstructured, amount=amount)
        nets.append(net)
    assert num_zero(nets[0]) == 4
    assert_same_state(*nets)


def test_int64_beyond_float64_is_ranked_exactly():
    net = nn.Module()
    net.w = nn.Parameter(torch.tensor([2**60 + 1, -(2**60), -(2**60) - 2]), requires_grad=False)
    prune.global_unstructured([(net, "w")], prune.L1Unstructured, amount=1)
    assert net.w_mask.tolist() == [1, 0, 1]


def test_a_buffer_that_looks_like_a_mask_is_taken_as_one_as_in_torch():
    nets = []
    for library in (prune, torch_prune):
        net = nn.Module()
        net.w = nn.Parameter(torch.tensor([3.0, 2.0, 1.0, 0.5]))
        net.register_buffer("w_mask", torch.tensor([1.0, 1.0, 0.0, 0.5]), persistent=False)
        library.global_unstructured([(net, "w")], library.L1Unstructured, amount=1)
        nets.append(net)
    assert nets[0].w_mask.tolist() == [1, 0, 0, 0.5]
    assert_same_state(*nets)
