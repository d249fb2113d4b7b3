"""The training of `gprune demo`: digits, a small network, and one pure step for all runs."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import torch
from sklearn.datasets import load_digits  # type: ignore[import-untyped]  # it has no types
from sklearn.model_selection import train_test_split  # type: ignore[import-untyped]  # it has no types
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value
from torch.nn.functional import cross_entropy

import gprune as gp

Params: TypeAlias = dict[str, Tensor]
Masks: TypeAlias = dict[str, Any]
"""A mask for each weight, `None` for each bias."""

LAYERS = ("fc1", "fc2", "fc3")
BATCH = 128
RECORDS = 50  # approximate number of points of each curve


class Digits(NamedTuple):
    """scikit-learn's 1,797 handwritten digits, 8 by 8 pixels from 0 to 1.

    Attributes:
        train_x: (1437, 64) float32.
        train_y: (1437,) int64.
        test_x: (360, 64) float32.
        test_y: (360,) int64.
        batches: (steps, BATCH) int64, the training images of each step, the same in every run.
    """

    train_x: Tensor
    train_y: Tensor
    test_x: Tensor
    test_y: Tensor
    batches: Tensor


class State(NamedTuple):
    """The state of the training: arguments and results of a step.

    Attributes:
        params: the parameters, zero where they are pruned.
        momentum: one tensor for each of them.
        masks: the masks of the weights.
    """

    params: Params
    momentum: Params
    masks: Masks


class Record(NamedTuple):
    """A point of the curves.

    Attributes:
        step: the number of steps so far.
        accuracy: the fraction of the test images that are classified correctly.
        densities: the fraction of the weights that is kept, for each layer.
    """

    step: int
    accuracy: float
    densities: tuple[float, ...]


class Run(NamedTuple):
    """One training run.

    Attributes:
        method: dense, gradual, one-shot or random.
        sparsity: the target sparsity.
        state: the state after the last step.
        records: the points of its curves.
    """

    method: str
    sparsity: float
    state: State
    records: list[Record]

    @property
    def num_pruned(self) -> int:
        """The number of weights that are pruned at the end."""
        return int(gp.num_pruned(self.state.masks))

    @property
    def num_expected(self) -> int:
        """The number of weights that must be pruned at the end."""
        entries = sum(mask.numel() for mask in self.state.masks.values() if mask is not None)
        return int(gp.num_to_prune(self.sparsity, entries))


Step: TypeAlias = Callable[..., tuple[Params, Params, Masks, Tensor]]


def load(steps: int) -> Digits:
    """Load the images from inside scikit-learn, split them, and draw the batches of each step."""
    images, labels = load_digits(return_X_y=True)
    split = train_test_split(images / 16, labels, test_size=360, random_state=0, stratify=labels)
    train_x, test_x = (torch.tensor(part, dtype=torch.float32) for part in split[:2])
    train_y, test_y = (torch.tensor(part, dtype=torch.int64) for part in split[2:])
    generator = torch.Generator().manual_seed(0)
    batches = torch.randint(len(train_x), (steps, BATCH), generator=generator)
    return Digits(train_x, train_y, test_x, test_y, batches)


def network(device: str = "cpu") -> nn.Sequential:
    """Build the 64-300-100-10 network; on `"meta"` without data, for `functional_call`."""
    return nn.Sequential(
        OrderedDict(
            fc1=nn.Linear(64, 300, device=device),
            relu1=nn.ReLU(),
            fc2=nn.Linear(300, 100, device=device),
            relu2=nn.ReLU(),
            fc3=nn.Linear(100, 10, device=device),
        )
    )


def initial() -> State:
    """Return the first state: torch's initialisation with a fixed seed, nothing pruned."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        params = {name: value.detach() for name, value in network().named_parameters()}
    momentum = {name: torch.zeros_like(value) for name, value in params.items()}
    return State(params, momentum, gp.keep_all(gp.prunable(params)))


def make_step() -> Step:
    """Build the training step of all runs: gradient, momentum, masks, masked update."""
    shapes = network("meta")

    def loss_of(params: Params, x: Tensor, y: Tensor) -> Tensor:
        return cross_entropy(functional_call(shapes, params, (x,)), y)

    def step(
        params: Params, momentum: Params, masks: Masks, sparsity: Tensor, x: Tensor, y: Tensor
    ) -> tuple[Params, Params, Masks, Tensor]:
        gradients, loss = grad_and_value(loss_of)(params, x, y)
        momentum = {name: 0.9 * momentum[name] + gradients[name] for name in params}
        params = {name: params[name] - 0.1 * momentum[name] for name in params}
        masks = gp.global_unstructured(gp.prunable(params), masks=masks, sparsity=sparsity)
        return gp.apply_masks(params, masks), momentum, masks, loss

    return step


def train(
    step: Step,
    state: State,
    schedule: gp.schedules.Schedule,
    steps: range,
    data: Digits,
    on_step: Callable[[], None],
) -> tuple[State, list[Record]]:
    """Train for a range of steps.

    Args:
        step: the step function, compiled or not.
        state: the state to start from. It is not changed.
        schedule: the sparsity at each step.
        steps: the numbers of the steps.
        data: the images and the batches.
        on_step: called after each step.

    Returns:
        The state after the last step, and the points of the curves.
    """
    every = max(1, len(data.batches) // RECORDS)
    records = []
    for number in steps:
        batch = data.batches[number]
        *new, _ = step(*state, schedule(number), data.train_x[batch], data.train_y[batch])
        state = State(*new)
        done = number + 1
        # also after the first step, where one-shot pruning loses most of its accuracy
        if done % every == 0 or number == steps.start or done == steps.stop:
            records.append(Record(done, accuracy(state.params, data), densities(state.masks)))
        on_step()
    return state, records


def prune_at_random(state: State, sparsity: float) -> State:
    """Prune once at random, with a fixed seed."""
    masks = gp.global_unstructured(
        gp.prunable(state.params),
        masks=state.masks,
        pruning_method=gp.random_unstructured,
        sparsity=sparsity,
        seed=0,
    )
    return State(gp.apply_masks(state.params, masks), state.momentum, masks)


@torch.no_grad()
def accuracy(params: Params, data: Digits) -> float:
    """Return the fraction of the test images that are classified correctly, in eager mode."""
    guesses = functional_call(network("meta"), params, (data.test_x,)).argmax(1)
    return float((guesses == data.test_y).double().mean())


def densities(masks: Masks) -> tuple[float, ...]:
    """Return the fraction of the weights that is kept, for each layer."""
    return tuple(masks[f"{layer}.weight"].double().mean().item() for layer in LAYERS)
