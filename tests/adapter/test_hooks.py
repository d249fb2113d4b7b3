"""Copies of pruned modules, weights that are used without a call, and parametrized weights."""

import copy
import functools
import gc
import io
import pickle
import warnings
import weakref

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations
from torch.nn.utils import prune as torch_prune
from torch.optim.swa_utils import AveragedModel

import gprune as gp
import gprune.adapter as prune
from tests.support.adapter_state import assert_same_state, identities, num_zero, values

L1 = torch_prune.L1Unstructured


class Net(nn.Module):
    """An LSTM, which keeps its weights in a list too, a tied pair, and a batch norm."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(7, 4)
        self.rnn = nn.LSTM(4, 4)
        self.body = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
        self.head = nn.Linear(4, 7, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, x):
        return self.head(self.body(self.rnn(self.embed(x))[0].reshape(-1, 4)))


X = torch.arange(6).reshape(3, 2)


def make(seed=0):
    torch.manual_seed(seed)
    return Net()


def by_pairs(net, amount):
    pairs = [(net.embed, "weight"), (net.rnn, "weight_hh_l0"), (net.body[0], "weight")]
    prune.global_unstructured([*pairs, (net.head, "weight")], L1, amount=amount)


def by_masks(net, amount):
    params = gp.prunable({k: p.detach() for k, p in prune.params_of(net).items()})
    masks = gp.global_unstructured(params, masks=prune.prior_masks(net), amount=amount)
    prune.attach_masks_(net, masks)


WAYS = {
    "global_unstructured": by_pairs,
    "prune_": lambda net, amount: prune.prune_(net, amount=amount),
    "attach_masks_": by_masks,
}


def step(net, x=X, rate=0.1):
    """One step of gradient descent; return the loss before it."""
    loss = net(x).square().mean()
    net.zero_grad()
    loss.backward()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter -= rate * parameter.grad
    return loss.detach()


def through_pickle(net):
    return pickle.loads(pickle.dumps(net))


def through_a_file(net):
    file = io.BytesIO()
    torch.save(net, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


# --- copies -------------------------------------------------------------------------------------


@pytest.mark.parametrize("when", ["pruned", "after a forward", "after a step", "loaded"])
@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_a_pruned_module_can_be_copied(way, when):
    net = make()
    for _ in range(2):  # the second round makes containers
        way(net, 10)
    if when == "after a forward":
        net(X)
    elif when == "after a step":
        step(net)
    elif when == "loaded":
        net, saved = make(1), net.state_dict()
        way(net, 0)
        net.load_state_dict(saved)
    assert_independent_copy(copy.deepcopy(net), net)
    assert_independent_copy(copy.deepcopy(copy.deepcopy(net)), net)


@pytest.mark.parametrize("copied", [through_pickle, through_a_file])
def test_a_pruned_module_and_its_copy_can_be_pickled(copied):
    net = prune.prune_(prune.prune_(make(), amount=10), amount=10)
    step(net)
    for original in (net, copy.deepcopy(net), copied(net)):
        assert_independent_copy(copied(original), original)
        assert_independent_copy(copy.deepcopy(copied(original)), original)


def assert_independent_copy(twin, net):
    """Both are pruned alike, and train alike without a change in the other."""
    assert not {id(t) for t in values(twin).values()} & {id(t) for t in values(net).values()}
    assert twin.head.weight_orig is twin.embed.weight_orig
    assert torch_prune.is_pruned(twin)
    losses = [step(net), step(net)]
    assert [step(twin), step(twin)] == losses
    assert num_zero(twin) == num_zero(net) > 0


def test_a_copy_has_the_state_of_its_original():
    net = prune.prune_(nn.Sequential(nn.Linear(4, 3), nn.Conv1d(2, 3, 2)), sparsity=0.5)
    twin = copy.deepcopy(net)
    assert_same_state(twin, net)
    with torch.no_grad():
        net[0].weight_orig.mul_(2)  # the masked weight is stale until the next forward
    assert torch.equal(net[0].weight, twin[0].weight)
    assert torch.equal(copy.deepcopy(net)[0].weight, 2 * twin[0].weight)


def test_the_masked_weights_of_a_copy_are_computed_from_its_own_parameters():
    net = prune.prune_(nn.Sequential(nn.Linear(3, 3)), amount=4)
    twin = copy.deepcopy(net)
    twin[0].weight.sum().backward()  # before any forward
    assert torch.equal(twin[0].weight_orig.grad, twin[0].weight_mask)
    assert net[0].weight_orig.grad is None


@pytest.mark.parametrize("first", [True, False])
def test_a_module_that_torch_has_pruned_too_can_be_copied(first):
    net = make()
    if first:
        torch_prune.l1_unstructured(net.body[0], "weight", amount=2)
    prune.prune_(net, amount=3)
    if not first:
        torch_prune.l1_unstructured(net.body[0], "weight", amount=2)
    twin = copy.deepcopy(net)
    assert num_zero(twin) == num_zero(net)
    assert step(twin) == step(net)


def test_an_average_of_a_pruned_module_is_pruned():
    net = prune.prune_(make(), sparsity=0.5)
    average = AveragedModel(net, use_buffers=True)
    dense = [net.body[0].weight_orig.detach().clone()]
    average.update_parameters(net)
    for _ in range(2):
        step(net)
        average.update_parameters(net)
        dense.append(net.body[0].weight_orig.detach().clone())
    average(X)
    mask = net.body[0].weight_mask
    torch.testing.assert_close(average.module.body[0].weight, torch.stack(dense).mean(0) * mask)
    assert copy.deepcopy(average).module.body[0].weight.count_nonzero() == mask.sum()


def test_layers_that_torch_copies_are_pruned_alike():
    torch.manual_seed(0)
    layer = prune.prune_(nn.TransformerEncoderLayer(4, 2, 8, 0.0), sparsity=0.5)
    encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    x = torch.randn(3, 2, 4)
    assert torch.equal(encoder(x), layer(layer(x)))
    assert num_zero(encoder) == 2 * num_zero(layer)


def test_a_parametrized_module_can_be_copied():
    net = parametrizations.weight_norm(nn.Linear(8, 2))
    prune.global_unstructured([(net, "parametrizations.weight.original1")], L1, amount=5)
    twin = copy.deepcopy(net)
    assert int((twin.weight == 0).sum()) == 5
    assert torch.equal(twin.weight, net.weight)


def test_a_pruned_module_is_freed_without_the_garbage_collector():
    net = prune.prune_(nn.Linear(3, 3), amount=4)
    alive = weakref.ref(net)
    gc.disable()
    try:
        del net
        assert alive() is None
    finally:
        gc.enable()


def test_masks_of_earlier_rounds_are_released():
    net = nn.Linear(8, 8)
    for num_rounds in range(1, 5):
        prune.prune_(net, amount=3)
        hook = next(iter(net._forward_pre_hooks.values()))
        held = [mask for mask in (vars(h).get("mask") for h in rounds(hook)) if mask is not None]
        assert len(rounds(hook)) == num_rounds
        assert len(held) <= 1
        assert num_zero(net) == 3 * num_rounds


def rounds(hook):
    return list(hook) if isinstance(hook, torch_prune.PruningContainer) else [hook]


# --- weights that are used without a call -------------------------------------------------------

ATTENTION = torch.randn(5, 2, 8, generator=torch.Generator().manual_seed(2))


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.attention = nn.MultiheadAttention(8, 2)
        self.out = nn.Linear(8, 3)

    def forward(self, x):
        return self.out(self.attention(x, x, x)[0])


def attention_pairs(net):
    return [
        (net.attention, "in_proj_weight"),
        (net.attention.out_proj, "weight"),
        (net.out, "weight"),
    ]


def attention_masks(net):
    weight = net.attention.out_proj.weight
    return {"attention.out_proj.weight": weight.abs() > weight.abs().median()}


OWNERS = {
    "prune_": lambda net: prune.prune_(net, sparsity=0.5),
    "attach_masks_": lambda net: prune.attach_masks_(net, attention_masks(net)),
    "the owner in another pair": lambda net: prune.global_unstructured(
        attention_pairs(net), L1, amount=0.5
    ),
    "a dotted name": lambda net: prune.global_unstructured(
        [(net.attention, "out_proj.weight")], L1, amount=0.5
    ),
    "a longer name": lambda net: prune.global_unstructured(
        [(net, "attention.out_proj.weight")], L1, amount=0.5
    ),
}


@pytest.mark.parametrize("way", OWNERS.values(), ids=OWNERS)
def test_the_output_projection_of_an_attention_is_recomputed(way):
    net, plain = Attention(), Attention()
    for _ in range(2):
        way(net)
    hooks = [hook for m in net.modules() for hook in m._forward_pre_hooks.values()]
    assert len([hook for hook in hooks if not isinstance(hook, torch_prune.BasePruningMethod)]) == 1
    for _ in range(3):
        params = gp.apply_masks(prune.params_of(net), prune.masks_of(net))
        expected = torch.func.functional_call(plain, params, (ATTENTION,))
        assert torch.equal(net(ATTENTION), expected)
        step(net, ATTENTION)
    twin = through_pickle(copy.deepcopy(net))
    assert torch.equal(twin(ATTENTION), net(ATTENTION))
    twin.load_state_dict({k: 2 * v for k, v in net.state_dict().items() if "mask" not in k}, False)
    assert not torch.equal(twin(ATTENTION), net(ATTENTION))
    expected = net(ATTENTION)
    prune.make_permanent_(net)
    assert torch.equal(net(ATTENTION), expected)
    assert not any(m._forward_pre_hooks for m in net.modules())


def test_torch_does_not_recompute_it():
    net = Attention()
    torch_prune.l1_unstructured(net.attention.out_proj, "weight", amount=0.5)
    net(ATTENTION).sum().backward()
    with pytest.raises(RuntimeError, match="second time"):
        net(ATTENTION).sum().backward()


def test_without_its_owner_it_is_pruned_as_by_torch_with_one_warning():
    net, theirs = Attention(), Attention()
    pairs = [(net.attention.out_proj, "weight"), (net.attention.out_proj, "bias")]
    with pytest.warns(UserWarning, match=r'\(attention, "out_proj.weight"\)') as seen:
        prune.global_unstructured(pairs, L1, amount=9)
    assert len(seen) == 1
    assert seen[0].filename == __file__
    torch_prune.global_unstructured(
        [(theirs.attention.out_proj, "weight"), (theirs.attention.out_proj, "bias")], L1, amount=9
    )
    assert_same_state(net, theirs)
    prune.global_unstructured(pairs, L1, amount=9)  # no other warning
    with pytest.warns(UserWarning, match="out_proj"):
        prune.prune_(Attention().attention.out_proj, amount=1)


def test_a_warning_that_is_an_error_changes_nothing():
    net = Attention()
    with pytest.raises(UserWarning):  # the tests make errors of warnings
        prune.global_unstructured([(net.attention.out_proj, "weight")], L1, amount=9)
    assert not torch_prune.is_pruned(net)


@pytest.mark.parametrize("undo", [prune.detach_masks_, prune.make_permanent_, torch_prune.remove])
def test_an_attention_whose_pruning_is_undone_runs(undo):
    net = Attention()
    prune.global_unstructured([(net.attention, "out_proj.weight")], L1, amount=9)
    undo(net.attention.out_proj, "weight") if undo is torch_prune.remove else undo(net)
    for _ in range(2):
        net(ATTENTION).sum().backward()
    assert not prune.masks_of(net)["attention.out_proj.weight"]


class Lists(nn.Module):
    """Weights in children that have no forward, one of them inside another."""

    def __init__(self):
        super().__init__()
        self.list = nn.ParameterList([nn.Parameter(torch.randn(3, 3))])
        self.nested = nn.ModuleList([nn.ParameterDict({"w": nn.Parameter(torch.randn(3, 3))})])
        self.holder = nn.Module()
        self.holder.weight = nn.Parameter(torch.randn(3, 3))

    def forward(self, x):
        return x @ self.list[0] @ self.nested[0]["w"] @ self.holder.weight


@pytest.mark.parametrize("copied", [False, True])
def test_children_without_a_forward_are_recomputed(copied):
    net = prune.prune_(Lists(), sparsity=0.5)
    net = copy.deepcopy(net) if copied else net
    x = torch.randn(2, 3)
    for _ in range(2):
        net(x).sum().backward()
    state = {
        name: 10 * value if name.endswith("_orig") else value
        for name, value in net.state_dict().items()
    }
    before = net(x)
    net.load_state_dict(state)
    torch.testing.assert_close(net(x), 1000 * before)
    prune.make_permanent_(net)
    assert not net._forward_pre_hooks
    torch.testing.assert_close(net(x), 1000 * before)


class UsesAWeight(nn.Module):
    """As some attentions do: the child is never called."""

    def __init__(self):
        super().__init__()
        self.proj = nn.Linear(8, 8)

    def forward(self, x):
        return nn.functional.linear(x, self.proj.weight, self.proj.bias)


@pytest.mark.parametrize("afterwards", [True, False])
def test_a_dotted_name_serves_any_module_that_does_not_call_its_child(afterwards):
    net = UsesAWeight()
    if afterwards:
        prune.prune_(net, amount=9)
        prune.global_unstructured([(net, "proj.weight")], prune.Identity)
    else:
        prune.global_unstructured([(net, "proj.weight")], L1, amount=9)
    assert num_zero(net) == 9
    for _ in range(2):
        net(ATTENTION).sum().backward()
    with torch.no_grad():
        net.proj.weight_orig.zero_()
    assert torch.equal(net(ATTENTION), net.proj.bias.expand(5, 2, 8))
    assert prune.remove(net, "proj.weight") is net
    assert not net._forward_pre_hooks
    with pytest.raises(ValueError, match="has to be pruned"):
        prune.remove(net, "proj.weight")


# --- parametrized weights -----------------------------------------------------------------------


def old(function):
    @functools.wraps(function)
    def parametrize(module):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            return function(module)

    return parametrize


NORMS = {
    "old weight_norm": (old(nn.utils.weight_norm), "weight_v"),
    "old spectral_norm": (old(nn.utils.spectral_norm), "weight_orig"),
    "weight_norm": (parametrizations.weight_norm, "parametrizations.weight.original1"),
    "spectral_norm": (parametrizations.spectral_norm, "parametrizations.weight.original"),
}


@pytest.mark.parametrize(("norm", "tensor"), NORMS.values(), ids=NORMS)
@pytest.mark.parametrize("layer", [lambda: nn.Linear(6, 4), lambda: nn.Conv1d(6, 4, 2)])
def test_a_parametrized_weight_is_pruned_through_rounds_saving_and_removal(norm, tensor, layer):
    torch.manual_seed(0)
    net, other = (nn.Sequential(norm(layer())) for _ in range(2))
    x = torch.randn(5, 6, 3) if isinstance(net[0], nn.Conv1d) else torch.randn(5, 6)
    for num_rounds in range(1, 4):
        prune.global_unstructured([(net[0], tensor)], L1, amount=3)
        step(net, x)
        step(net, x)
        net(x)
        pruned = ~prune.masks_of(net)[f"0.{tensor}"]
        assert int(pruned.sum()) == 3 * num_rounds
        assert torch.equal(net[0].weight == 0, pruned)
    net.eval()
    other.eval()
    prune.attach_masks_(other, {f"0.{tensor}": torch.ones_like(pruned)})
    other.load_state_dict(net.state_dict())
    out = net(x)
    assert torch.equal(other(x), out)
    assert prune.remove(net[0], tensor) is net[0]
    assert sorted(net.state_dict()) == sorted(nn.Sequential(norm(layer())).state_dict())
    torch.testing.assert_close(net(x), out)
    assert torch.equal(net[0].weight == 0, pruned)


@pytest.mark.parametrize(("norm", "tensor"), NORMS.values(), ids=NORMS)
def test_a_whole_module_is_pruned_in_its_directions_alone(norm, tensor):
    net = prune.prune_(nn.Sequential(norm(nn.Conv1d(3, 2, 5))), amount=9)
    masks = {path: mask for path, mask in prune.masks_of(net).items() if mask is not None}
    assert list(masks) == [f"0.{tensor}"]
    net(torch.ones(1, 3, 5))
    assert torch.equal(net[0].weight != 0, masks[f"0.{tensor}"])


def test_a_parametrization_that_changes_nothing_is_named_too():
    net = nn.Linear(4, 3)
    nn.utils.parametrize.register_parametrization(net, "weight", nn.Identity())
    with pytest.raises(TypeError, match=r"'parametrizations\.weight\.original'\) instead"):
        prune.global_unstructured([(net, "weight")], L1, amount=1)
    assert not torch_prune.is_pruned(net)


@pytest.mark.parametrize(("norm", "tensor"), NORMS.values(), ids=NORMS)
def test_the_tensor_to_prune_instead_is_named(norm, tensor):
    net = nn.Sequential(nn.Linear(4, 4), norm(nn.Linear(4, 3)))
    with pytest.raises(TypeError, match=rf"parameters\[1\].*'{tensor}'\) instead"):
        prune.global_unstructured([(net[0], "weight"), (net[1], "weight")], L1, amount=1)
    with pytest.raises(ValueError, match=rf"computed from '1\.{tensor}'; mask that"):
        prune.attach_masks_(net, {"1.weight": torch.ones(3, 4).bool()})
    assert not torch_prune.is_pruned(net)


@pytest.mark.parametrize(("norm", "tensor"), NORMS.values(), ids=NORMS)
def test_a_norm_of_nothing_is_refused(norm, tensor):
    """torch divides by the norm, and 0 / 0 is NaN."""
    net = nn.Sequential(norm(nn.Conv1d(2, 3, 4)))
    rows = torch.arange(3).reshape(3, 1, 1).expand(3, 2, 4)
    prune.attach_masks_(net, {f"0.{tensor}": rows > 0} if "spectral" in norm.__name__ else {})
    before = identities(net)
    mask = rows == 0 if "spectral" in norm.__name__ else rows != 1
    with pytest.raises(ValueError, match="would be NaN"):
        prune.attach_masks_(net, {f"0.{tensor}": mask})
    assert identities(net) == before


class Product(nn.Module):
    def forward(self, left, right):
        return left @ right

    def right_inverse(self, weight):
        return weight, torch.eye(weight.shape[1])


def test_all_tensors_of_another_parametrization_are_named():
    net = nn.Linear(4, 3)
    nn.utils.parametrize.register_parametrization(net, "weight", Product())
    with pytest.raises(TypeError, match=r"weight\.original0' and 'parametrizations\.weight\.orig"):
        prune.global_unstructured([(net, "weight")], L1, amount=1)
