"""Running statistics after pruning: their values, what they leave alone, and errors."""

import copy

import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.optim.swa_utils import update_bn

import gprune as gp
from gprune import adapter


class Net(nn.Module):
    """A convolution, dropout, three batch norms, one of which runs in training alone."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv1d(2, 4, 3)
        self.norm = nn.BatchNorm1d(4, momentum=0.3)
        self.drop = nn.Dropout(0.5)
        self.fc = nn.Linear(12, 5)
        self.last = nn.BatchNorm1d(5)
        self.auxiliary = nn.BatchNorm1d(5)
        self.stateless = nn.BatchNorm1d(5, track_running_stats=False)

    def forward(self, x, shift=0.0):
        y = self.last(self.fc(self.drop(self.norm(self.conv(x + shift)).relu()).flatten(1)))
        return self.stateless(self.auxiliary(y) if self.training else y)


def make(seed=0):
    torch.manual_seed(seed)
    net = Net()
    for _ in range(3):
        net(torch.randn(7, 2, 5))
    return net


def make_batches(*sizes):
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(size, 2, 5, generator=generator) for size in sizes]


BATCHES = make_batches(6, 6, 4)


def state(module):
    return {key: value.clone() for key, value in module.state_dict().items()}


def settings(module):
    return [(m.training, getattr(m, "momentum", None)) for m in module.modules()]


def equal(left, right):
    return left.keys() == right.keys() and all(torch.equal(left[k], right[k]) for k in left)


@pytest.mark.parametrize("training", [True, False])
def test_the_statistics_are_the_averages_over_the_batches(training):
    net = adapter.prune_(make(), sparsity=0.7).train(training)
    net.drop.train(not training)
    before, as_set = state(net), settings(net)
    assert adapter.recalibrate_batchnorm_(net, BATCHES) is net
    assert settings(net) == as_set
    with torch.no_grad():
        inputs = [net.conv(x) for x in BATCHES]
        mean = torch.stack([x.mean((0, 2)) for x in inputs]).mean(0)
        var = torch.stack([x.transpose(0, 1).flatten(1).var(1) for x in inputs]).mean(0)
    torch.testing.assert_close(net.norm.running_mean, mean)
    torch.testing.assert_close(net.norm.running_var, var)
    assert net.norm.num_batches_tracked == 3
    after = state(net)
    changed = {key for key in after if not torch.equal(after[key], before[key])}
    assert {key.rpartition(".")[0] for key in changed} == {"norm", "last"}  # others as they were
    update_bn(BATCHES, theirs := copy.deepcopy(net).requires_grad_(False))
    torch.testing.assert_close(net.norm.running_mean, theirs.norm.running_mean)
    assert not torch.allclose(net.last.running_var, theirs.last.running_var)  # dropout was on


@pytest.mark.parametrize(
    "wrap",
    [
        lambda x: [x, torch.ones(len(x))],
        lambda x: (x, torch.ones(len(x))),
        lambda x: {"x": x},
        lambda x: {"x": x - 1, "shift": 1.0},
    ],
)
def test_batches_are_tensors_or_start_with_one_or_are_named_arguments(wrap):
    net, expected = make(), adapter.recalibrate_batchnorm_(make(), BATCHES)
    adapter.recalibrate_batchnorm_(net, (wrap(x) for x in BATCHES))
    torch.testing.assert_close(state(net), state(expected))


def test_the_pure_function_gives_the_same_buffers_and_changes_nothing():
    net, pruned = make(), adapter.prune_(make(), sparsity=0.7)
    params = gp.apply_masks(adapter.params_of(pruned), adapter.masks_of(pruned))
    given = {key: value.clone() for key, value in net.named_buffers()}
    buffers = dict(given)
    for value in net.buffers():
        value.zero_()  # those of the module are not used
    before, as_set, kept = state(net), settings(net), {k: v.clone() for k, v in given.items()}
    new = adapter.recalibrate_batchnorm(net, params, buffers, BATCHES)
    assert equal(state(net), before)
    assert settings(net) == as_set
    assert equal(given, kept)
    assert all(buffers[key] is value for key, value in given.items())
    adapter.recalibrate_batchnorm_(pruned, BATCHES)
    assert new.keys() == given.keys()
    assert all(torch.equal(new[key], pruned.get_buffer(key)) for key in new)
    assert not {id(value) for key, value in new.items() if key.startswith("norm")} & set(
        map(id, given.values())
    )
    net.eval()
    out = functional_call(net, (params, new), (BATCHES[0],))
    assert torch.equal(out, pruned.eval()(BATCHES[0]))


def failing():
    yield BATCHES[0]
    raise RuntimeError("no more")


WRONG = {
    "no batch": ([], ValueError, "batches is empty"),
    "a tensor": (BATCHES[0], TypeError, "got one Tensor; put it into a list"),
    "no iterable": (None, TypeError, "batches must be an iterable of batches, got NoneType"),
    "one mapping": ({"x": BATCHES[0]}, TypeError, "got one dict; put it into a list"),
    "a failure": (failing(), RuntimeError, "no more"),
    "one value": ([*make_batches(6), torch.zeros(1, 2, 3)], ValueError, "more than 1 value"),
    "NaN": ([*BATCHES, torch.full((6, 2, 5), torch.nan)], ValueError, "norm 'norm' are not finite"),
}


@pytest.mark.parametrize("pure", [True, False])
@pytest.mark.parametrize("row", WRONG)
def test_an_error_changes_nothing(row, pure):
    batches, kind, match = WRONG[row]
    batches = failing() if row == "a failure" else batches
    net = make()
    params, buffers = dict(net.named_parameters()), dict(net.named_buffers())
    before, as_set = state(net), settings(net)
    arguments = (net, params, buffers, batches) if pure else (net, batches)
    function = adapter.recalibrate_batchnorm if pure else adapter.recalibrate_batchnorm_
    with pytest.raises(kind, match=match):
        function(*arguments)
    assert equal(state(net), before)
    assert settings(net) == as_set


def test_what_cannot_be_recalibrated_is_refused():
    for module in (nn.Linear(2, 2), nn.BatchNorm1d(2, track_running_stats=False)):
        with pytest.raises(ValueError, match="no batch norm with running statistics"):
            adapter.recalibrate_batchnorm_(module, [torch.ones(2, 2)])
    with pytest.raises(TypeError, match="module must be"):
        adapter.recalibrate_batchnorm_({}, BATCHES)
    net = make()
    buffers = dict(net.named_buffers())
    del buffers["last.running_var"]
    with pytest.raises(ValueError, match=r"buffers has no 'last\.running_var'"):
        adapter.recalibrate_batchnorm(net, dict(net.named_parameters()), buffers, BATCHES)


def test_a_batch_norm_alone():
    norm = adapter.recalibrate_batchnorm_(nn.BatchNorm1d(2), [torch.tensor([[1.0, 2], [3, 6]])])
    assert norm.running_mean.tolist() == [2, 4]
    assert norm.running_var.tolist() == [2, 8]
