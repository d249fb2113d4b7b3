"""Curvature: diagonals of the Fisher information and of the Hessian, and a score from them."""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from typing import Any

import torch
from torch import Tensor

from gprune.scores.losses import gradient_function, hessian_product
from gprune.scores.random import random
from gprune.scores.score_map import require_positive, score_leaves, upcast
from gprune.sharding import raise_on_all_ranks
from gprune.trees import (
    Tree,
    TreeDef,
    describe_first,
    flatten,
    leaf_names,
    require_tensors,
    unflatten,
)


@raise_on_all_ranks
def fisher(loss_fn: Callable[..., Tensor], params: Tree, *args: Any, chunk_size: int = 32) -> Tree:
    """Estimate the diagonal of the Fisher information: 1/N Σ_n (∂ℓ_n/∂θ)².

    N is the number of examples, and ℓ_n the loss of example n. This is the empirical Fisher, which
    uses the labels in the data. For a negative log-likelihood and a model that fits the data, it
    approximates the diagonal of the Hessian.

    Args:
        loss_fn: `loss_fn(params, *args)`, to a 0-dim floating point tensor. It is called with
            batches of one example, so pass the loss function of a batch. It must not draw random
            numbers, so put dropout in evaluation mode.
        params: pytree of floating point tensors of any shape; `None` stays `None`.
        *args: the examples: pytrees of tensors whose first dimension is N, and `None`s. What
            all examples share is not passed here: let `loss_fn` close over it.
        chunk_size: how many examples are differentiated at once. Each needs about as much memory
            as the parameters.

    Returns:
        Detached diagonal of that structure, in float32 at least. Its unit is the squared unit of
        the loss divided by the squared unit of the weight. For several batches, average it with
        `accumulate`.

    Raises:
        TypeError: if a leaf or the loss is not a floating point tensor.
        ValueError: if the loss is not 0-dim, there are no examples, or a gradient is not finite.

    Example:
        >>> import torch, gprune as gp
        >>> loss_fn = lambda w, x: (w * x).sum()
        >>> gp.scores.fisher(loss_fn, torch.tensor([1.0]), torch.tensor([[1.0], [3.0]]))
        tensor([5.])

    References:
        Theis et al., 2018, arXiv:1801.05787, section 2.1.
    """
    gradient, theta, tree_of = gradient_function(loss_fn, params)
    examples, treedef = flatten(args)
    num_examples = _count(examples, treedef)
    require_positive(chunk_size, "chunk_size")

    def gradients(example: list[Any]) -> list[Tensor]:
        one = [None if x is None else x.unsqueeze(0) for x in example]
        return gradient(theta, *unflatten(treedef, one))

    def squares(chunk: list[Any]) -> list[Tensor]:
        dims = [None if x is None else 0 for x in chunk]
        grads = torch.vmap(gradients, in_dims=(dims,))(chunk)
        return [_sum_of_squares(upcast(grad)) for grad in grads]

    total = [torch.zeros_like(upcast(leaf)) for leaf in theta]
    for start in range(0, num_examples, chunk_size):
        chunk = [None if x is None else x[start : start + chunk_size] for x in examples]
        total = [t + sums for t, sums in zip(total, squares(chunk), strict=True)]
    return score_leaves(lambda total: total / num_examples, squared_gradients=tree_of(total))


@raise_on_all_ranks
def hessian_diagonal(
    loss_fn: Callable[..., Tensor],
    params: Tree,
    *args: Any,
    seed: int | Tensor,
    num_probes: int = 16,
) -> Tree:
    """Estimate the diagonal of the Hessian by Hutchinson's method: the mean of v ⊙ Hv.

    H is the Hessian of the loss. Each probe v has independent entries ±1, so the expected value is
    the diagonal. The error falls as 1/√probes. It comes from the off-diagonal entries of H: if they
    are 0, it is 0. The probes are drawn on the CPU if the device has no float64.

    Args:
        loss_fn: `loss_fn(params, *args)`, to a 0-dim floating point tensor, twice differentiable by
            `torch.func`. It is called with the whole tree.
        params: pytree of floating point tensors of any shape; `None` stays `None`.
        *args: the other arguments of the loss, such as a batch.
        seed: a 64-bit int or a 0-dim integer tensor.
        num_probes: the number of products with the Hessian. Each costs about four gradients.

    Returns:
        Detached diagonal of that structure, in float32 at least, in the unit of the loss over that
        of the squared weight. Entries may be negative.

    Raises:
        TypeError: if a leaf or the loss is not a floating point tensor, or the seed not an integer.
        ValueError: if the loss is not 0-dim, there is no probe, or a product is not finite.

    Example:
        >>> import torch, gprune as gp
        >>> loss_fn = lambda w: (w**3).sum() / 6  # H = diag(w)
        >>> gp.scores.hessian_diagonal(loss_fn, torch.tensor([1.0, -2.0]), seed=0)
        tensor([ 1., -2.])

    References:
        Bekas et al., 2007, doi:10.1016/j.apnum.2007.01.003 (the estimator).
        Yao et al., 2021, arXiv:2006.00719 (for networks).
    """
    gradient, theta, tree_of = gradient_function(loss_fn, params)
    require_positive(num_probes, "num_probes")
    draws = random(torch.empty(num_probes, device="cpu"), seed=seed)
    total = [torch.zeros_like(upcast(leaf)) for leaf in theta]
    for probe_seed in (draws * 2**53).to(torch.int64).unbind():
        v = _signs(theta, probe_seed)
        hv = hessian_product(gradient, theta, v, *args)
        total = [t + upcast(a) * upcast(b) for t, a, b in zip(total, v, hv, strict=True)]
    return score_leaves(lambda total: total / num_probes, hessian_products=tree_of(total))


def obd(params: Tree, diagonal: Tree) -> Tree:
    """Score each entry by the second-order change of the loss if it is removed: θ² ⊙ h / 2.

    θ are the weights, and h is the diagonal of the Hessian of the loss.

    Args:
        params: pytree of floating point tensors of any shape; `None` stays `None`.
        diagonal: the diagonal h of the Hessian, of that structure and those shapes, from `fisher`
            or `hessian_diagonal`. Entries may be negative, and so are their scores: removing such a
            weight lowers the loss.

    Returns:
        Detached scores of that structure, in float32 at least, in the unit of the loss.

    Raises:
        TypeError: if a leaf is not a floating point tensor.
        ValueError: if a leaf of the diagonal is missing, has another shape or is not finite.

    Example:
        >>> import torch, gprune as gp
        >>> gp.scores.obd([torch.tensor([2.0, 3.0])], [torch.tensor([1.0, 0.0])])
        [tensor([2., 0.])]

    References:
        LeCun et al., 1990, "Optimal Brain Damage", section 2.2.
    """
    return score_leaves(lambda weight, h: weight.square() * h / 2, params=params, diagonal=diagonal)


def _sum_of_squares(grads: Tensor) -> Tensor:
    """Sum the squares over the examples without storing the squares themselves."""
    first, *others = grads.unbind()
    return reduce(lambda total, grad: torch.addcmul(total, grad, grad), others, first.square())


def _signs(like: list[Tensor], seed: Tensor) -> list[Tensor]:
    """Draw +1 or -1 for each entry."""
    coins = random(like, seed=seed)
    return [
        torch.where(coin < 0.5, -1, 1).to(leaf.device, leaf.dtype)
        for coin, leaf in zip(coins, like, strict=True)
    ]


def _count(examples: list[Any], treedef: TreeDef) -> int:
    """Return the number of examples: the size of the first dim, equal in all tensors."""
    require_tensors(examples, treedef, "args")
    sizes = {i: tuple(x.shape[:1]) for i, x in enumerate(examples) if x is not None}
    if len(set(sizes.values())) != 1 or not next(iter(sizes.values())):
        names = leaf_names(treedef, "args")
        found = describe_first(list(sizes), lambda i: f"{names[i]}: {sizes[i]}", ", ")
        raise ValueError(
            "all tensors in args must have the same first dimension, the number of examples, "
            f"got {{{found}}}"
        )
    num_examples: int = next(iter(sizes.values()))[0]
    if num_examples == 0:
        raise ValueError("args contain no examples: their first dimension is 0")
    return num_examples
