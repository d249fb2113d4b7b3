"""What a user writes, in strict types: the type checker reads it, and `test_layout.py` runs it."""

from collections.abc import Mapping
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

import gprune as gp
import gprune.adapter as prune
from gprune.pruners.gradual import GradualState

Params = dict[str, Tensor]


class Training(NamedTuple):
    params: Params
    masks: Params


def forward(params: Mapping[str, Tensor], x: Tensor) -> Tensor:
    return torch.tanh(x @ params["inner"].mT) @ params["outer"].mT


def loss_fn(params: Mapping[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
    return torch.nn.functional.mse_loss(forward(params, x), y)


@gp.pruning_method("unstructured")
def below(
    param: Tensor, scores: Tensor | None = None, *, mask: Tensor | None = None, threshold: float
) -> Tensor:
    ranked = param if scores is None else scores
    return ranked.abs() >= threshold


def experts_or_layers(path: str, leaf: Tensor) -> int | tuple[int, ...]:
    return 2 if "experts" in path else gp.input_dims(path, leaf)


def train(steps: int) -> Training:
    params: Params = {"inner": torch.randn(6, 4), "outer": torch.randn(2, 6)}
    due = partial(gp.schedules.every, begin=0, end=steps, freq=2)
    pruner = gp.pruners.gradual(gp.schedules.polynomial(0.5, begin=0, end=steps), due=due)
    state: GradualState = pruner.init(params)
    for _ in range(steps):
        x, y = torch.randn(8, 4), torch.randn(8, 2)
        grads: Params = torch.func.grad(loss_fn)(params, x, y)
        params = {name: p - 0.1 * grads[name] for name, p in params.items()}
        params, state = pruner.update(params, state, grads)
    return Training(params, state.masks)


def select(params: Params) -> tuple[Params, Params]:
    x, y = torch.randn(8, 4), torch.randn(8, 2)
    weights: Params = gp.prunable(params, "*er")
    scores: Params = gp.scores.snip(loss_fn, params, x, y)
    masks: Params = gp.global_unstructured(weights, scores, amount=0.25)
    masks = gp.layerwise(
        weights, masks=masks, sparsity=gp.allocation.uniform(weights, sparsity=0.5)
    )
    threshold: gp.Threshold = gp.find_threshold(weights, amount=3)
    masks = gp.intersect(masks, gp.masks_from_threshold(threshold, weights))
    masks = gp.layerwise(weights, masks=masks, sparsity=0.5, dim=experts_or_layers)
    one: Tensor = gp.l1_unstructured(params["inner"], mask=masks["inner"], sparsity=0.6)
    one = below(params["inner"], mask=one, threshold=0.01)
    masks = gp.intersect(
        masks, gp.global_unstructured(weights, pruning_method=below, threshold=0.01)
    )
    floored: Params = gp.global_unstructured(weights, sparsity=0.3, min_per_leaf=0.2)
    packed: Params = gp.pack_masks(gp.intersect(masks, floored))
    masks = gp.unpack_masks(packed, weights)
    count: Tensor = gp.num_pruned(masks)
    print(gp.summary(params, masks), int(count), gp.sparsity(masks).item(), one.shape)
    return gp.apply_masks(params, masks), masks


def migrate() -> dict[str, Tensor | None]:
    net = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 2))
    pairs: list[tuple[torch.nn.Module, str]] = [(net[0], "weight"), (net[1], "weight")]
    prune.global_unstructured(pairs, prune.L1Unstructured, amount=0.5)
    net = prune.prune_(net, sparsity=0.75)
    masks = prune.masks_of(net)
    prune.make_permanent_(net)
    zeros: Params = gp.masks_from_zeros(gp.prunable(prune.params_of(net), "*.weight"))
    optimizer = torch.optim.AdamW(net.parameters())
    prune.keep_zeros_(net, optimizer, where="*.weight").remove()
    return {**masks, **zeros}


if __name__ == "__main__":
    params, masks = select(train(10).params)
    migrate()
