"""Small networks as pure functions, on which scores are compared with their oracles."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812  torch's own name for it

Params = dict[str, Any]


class Model(NamedTuple):
    """A network with parameters and data.

    Attributes:
        shapes: of the parameters, by name; `None` is a parameter that the network does without.
        forward: from parameters and a batch of inputs to logits.
        inputs: the shape of a batch of inputs.
        classes: how many logits there are.
    """

    shapes: dict[str, tuple[int, ...] | None]
    forward: Callable[[Params, Tensor], Tensor]
    inputs: tuple[int, ...]
    classes: int

    def params(self, seed: int = 0) -> Params:
        """Float32 values, so that they are the same in float64."""
        generator = torch.Generator().manual_seed(seed)
        return {
            name: shape and torch.randn(shape, generator=generator) / 2
            for name, shape in self.shapes.items()
        }

    def batch(self, seed: int = 1) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(self.inputs, generator=generator)
        return x, torch.randint(self.classes, self.inputs[:1], generator=generator)

    def loss(self, params: Params, x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(self.forward(params, x), y)


def mlp(params: Params, x: Tensor) -> Tensor:
    hidden = torch.tanh(F.linear(x, params["in.weight"], params["in.bias"]))
    return F.linear(hidden, params["out.weight"], params["out.bias"])


def conv(params: Params, x: Tensor) -> Tensor:
    """A strided, padded and dilated convolution, one in groups, and one in one dimension."""
    x = F.relu(F.conv2d(x, params["first"], params["bias"], stride=2, padding=1, dilation=2))
    x = F.relu(F.conv2d(x, weight=params["grouped"], groups=2, padding="same"))
    x = F.conv1d(x.flatten(2), params["line"], None, 2)
    return F.linear(x.flatten(1), params["out"])


def attention(params: Params, x: Tensor) -> Tensor:
    q, k, v = (F.linear(x, params[name]) for name in ("q", "k", "v"))
    weights = torch.softmax(q @ k.mT / q.shape[-1] ** 0.5, dim=-1)
    x = F.layer_norm(x + F.linear(weights @ v, params["o"]), x.shape[-1:], params["norm"])
    return F.linear(x.mean(1), params["head"])


MODELS = {
    "mlp": Model(
        {"in.weight": (5, 4), "in.bias": (5,), "out.weight": (3, 5), "out.bias": None},
        mlp,
        (6, 4),
        3,
    ),
    "conv": Model(
        {
            "first": (2, 1, 3, 3),
            "bias": (2,),
            "grouped": (4, 1, 1, 3),
            "line": (2, 4, 3),
            "out": (3, 8),
        },
        conv,
        (5, 1, 8, 8),
        3,
    ),
    "attention": Model(
        {"q": (3, 3), "k": (3, 3), "v": (3, 3), "o": (3, 3), "norm": (3,), "head": (2, 3)},
        attention,
        (4, 5, 3),
        2,
    ),
}
