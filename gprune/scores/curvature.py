"""Curvature: diagonals of the Fisher information and of the Hessian, and the score they make."""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from typing import Any

import torch
from torch import Tensor

from gprune.scores.edge import require_positive, score_leaves, wide
from gprune.scores.losses import gradient_over_tensors, hessian_product
from gprune.scores.random import random
from gprune.trees import Tree, TreeDef, flatten, leaf_names, require_tensors, unflatten


def fisher(loss_fn: Callable[..., Tensor], params: Tree, *args: Any, chunk_size: int = 32) -> Tree:
    """Estimate the diagonal of the Fisher information: 1/N Σ_n (∂ℓ_n/∂θ)².

    It is the empirical Fisher, of the labels in the data, and approaches the diagonal of the
    Hessian of a negative log-likelihood where the model fits the data.

    Args:
        loss_fn: `loss_fn(params, *args)`, to a 0-dim floating point tensor. It is called with
            batches of one example, so the loss of a batch is the right function as it is; it must
            not draw at random, so put dropout in evaluation mode.
        params: pytree of floating point tensors of any shape; `None` stays `None`.
        *args: the examples, pytrees of tensors whose first dimension is N, and holes; what all
            examples share belongs into `loss_fn`.
        chunk_size: how many examples are differentiated at once. Memory grows by about the size
            of the parameters for each.

    Returns:
        Detached diagonal of that structure, in float32 at least, in the unit of the squared loss
        over that of the squared weight. Over several batches take its mean with `accumulate`.

    Raises:
        TypeError: if a leaf or the loss is not a floating point tensor.
        ValueError: if the loss is not 0-dim, there are no examples, or a gradient is not finite.

    Example:
        >>> fisher(lambda w, x: (w * x).sum(), torch.tensor([1.0]), torch.tensor([[1.0], [3.0]]))
        tensor([5.])

    References:
        Theis et al., 2018, arXiv:1801.05787, section 2.1.
    """
    gradient, theta, tree_of = gradient_over_tensors(loss_fn, params)
    examples, treedef = flatten(args)
    num_examples = _count(examples, treedef)
    require_positive(chunk_size, "chunk_size")

    def gradients(example: list[Any]) -> list[Tensor]:
        one = [None if x is None else x.unsqueeze(0) for x in example]
        return gradient(theta, *unflatten(treedef, one))

    def squares(chunk: list[Any]) -> list[Tensor]:
        dims = [None if x is None else 0 for x in chunk]
        grads = torch.vmap(gradients, in_dims=(dims,))(chunk)
        return [_sum_of_squares(wide(grad)) for grad in grads]

    total = [torch.zeros_like(wide(leaf)) for leaf in theta]
    for start in range(0, num_examples, chunk_size):
        chunk = [None if x is None else x[start : start + chunk_size] for x in examples]
        total = [t + sums for t, sums in zip(total, squares(chunk), strict=True)]
    return score_leaves(lambda total: total / num_examples, squared_gradients=tree_of(total))


def hessian_diagonal(
    loss_fn: Callable[..., Tensor],
    params: Tree,
    *args: Any,
    seed: int | Tensor,
    num_probes: int = 16,
) -> Tree:
    """Estimate the diagonal of the Hessian by Hutchinson's method: the mean of v ⊙ Hv.

    Each probe v has independent entries ±1, so the mean is the diagonal, and the error falls as
    1/√probes; it comes from what is beside the diagonal, and is none where nothing is.

    Args:
        loss_fn: `loss_fn(params, *args)`, to a 0-dim floating point tensor, twice differentiable by
            `torch.func`; it sees the whole tree.
        params: pytree of floating point tensors of any shape; `None` stays `None`.
        *args: what else the loss takes, such as a batch.
        seed: a 64-bit int or a 0-dim integer tensor.
        num_probes: how many products with the Hessian to take, each about four gradients.

    Returns:
        Detached diagonal of that structure, in float32 at least, in the unit of the loss over that
        of the squared weight; positive and negative.

    Raises:
        TypeError: if a leaf or the loss is not a floating point tensor, or the seed not an integer.
        ValueError: if the loss is not 0-dim, there is no probe, or a product is not finite.

    Example:
        >>> hessian_diagonal(lambda w: (w**3).sum() / 6, torch.tensor([1.0, -2.0]), seed=0)
        tensor([ 1., -2.])

    References:
        Bekas et al., 2007, doi:10.1016/j.apnum.2007.01.003; Yao et al., 2021, arXiv:2006.00719.
    """
    gradient, theta, tree_of = gradient_over_tensors(loss_fn, params)
    require_positive(num_probes, "num_probes")
    draws = random(torch.empty(num_probes, device="cpu"), seed=seed)
    total = [torch.zeros_like(wide(leaf)) for leaf in theta]
    for probe_seed in (draws * 2**53).to(torch.int64).unbind():
        v = _signs(theta, probe_seed)
        hv = hessian_product(gradient, theta, v, *args)
        total = [t + wide(a) * wide(b) for t, a, b in zip(total, v, hv, strict=True)]
    return score_leaves(lambda total: total / num_probes, hessian_products=tree_of(total))


def obd(params: Tree, diagonal: Tree) -> Tree:
    """Score each entry by the second-order change of the loss without it: θ² ⊙ h / 2.

    Args:
        params: pytree of floating point tensors of any shape; `None` stays `None`.
        diagonal: the diagonal h of the Hessian, of that structure and those shapes, from `fisher`
            or `hessian_diagonal`.

    Returns:
        Detached scores of that structure, in float32 at least, in the unit of the loss.

    Raises:
        TypeError: if a leaf is not a floating point tensor.
        ValueError: if a leaf of the diagonal is missing, does not fit or is not finite.

    Example:
        >>> obd([torch.tensor([2.0, 3.0])], [torch.tensor([1.0, 0.0])])
        [tensor([2., 0.])]

    References:
        LeCun et al., 1990, "Optimal Brain Damage", section 2.2.
    """
    return score_leaves(lambda weight, h: weight.square() * h / 2, params=params, diagonal=diagonal)


def _sum_of_squares(grads: Tensor) -> Tensor:
    """Sum over the examples, in one pass: the squares would need as much memory again."""
    first, *others = grads.unbind()
    return reduce(lambda total, grad: torch.addcmul(total, grad, grad), others, first.square())


def _signs(like: list[Tensor], seed: Tensor) -> list[Tensor]:
    """Draw +1 or -1 for each entry."""
    coins = random(like, seed=seed)
    return [
        torch.where(coin < 0.5, -1, 1).to(leaf.dtype)
        for coin, leaf in zip(coins, like, strict=True)
    ]


def _count(examples: list[Any], treedef: TreeDef) -> int:
    """Count the examples, of which every tensor must have as many."""
    require_tensors(examples, treedef, "args")
    names = leaf_names(treedef, "args")
    sizes = {n: tuple(x.shape[:1]) for n, x in zip(names, examples, strict=True) if x is not None}
    if len(set(sizes.values())) != 1 or not next(iter(sizes.values())):
        raise ValueError(f"args must share a first dimension of examples, got {sizes}")
    num_examples: int = next(iter(sizes.values()))[0]
    if num_examples == 0:
        raise ValueError("args hold no examples")
    return num_examples
