"""SynFlow: score a weight by the sum of all paths through it, each the product of its weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from gprune.masks import apply_masks, keep_all, prunable_params
from gprune.prune import global_unstructured
from gprune.schedules import constant
from gprune.scores.losses import flatten_function, require_floating
from gprune.scores.score_map import require_positive, score_leaves, upcast
from gprune.sharding import raise_on_all_ranks
from gprune.trees import Tree, prunable


@raise_on_all_ranks
def synflow(
    forward: Callable[[Tree, Tensor], Tensor], params: Tree, input_shape: Sequence[int]
) -> Tree:
    """Score each entry by the paths through it: |θ| ⊙ ∂R/∂|θ|, where R = 1ᵀ (∏ₗ |θₗ|) 1.

    R is the sum of the network's outputs for an input of ones, with every parameter replaced by its
    absolute value. Layers that are linear for positive signals (linear, convolution, pooling,
    ReLU) conserve the score: the scores into a neuron and out of it have the same sum.

    Args:
        forward: the network: `forward(params, x)`, to a floating point tensor. It is called with
            the whole tree. Norms should be linear, as batch norm is in evaluation mode.
        params: pytree of floating point tensors of any shape; `None` stays `None`.
        input_shape: the shape of x, with a batch of one.

    Returns:
        Detached scores of that structure, in float32 at least, in the unit of R. They are not
        negative if R is linear in each layer. If products over many layers overflow, use float64
        parameters.

    Raises:
        TypeError: if a leaf or the result of `forward` is not a floating point tensor.
        ValueError: if a score is not finite, or a size in `input_shape` is not positive.

    Example:
        >>> import torch, gprune as gp
        >>> params = [torch.tensor([[1.0, -2.0]]), torch.tensor([[3.0]])]
        >>> gp.scores.synflow(lambda p, x: x @ p[0].T @ p[1].T, params, (1, 2))
        [tensor([[3., 6.]]), tensor([[9.]])]

    References:
        Tanaka et al., 2020, arXiv:2006.05467, eq. 1 and 2.
    """
    network, theta, tree_of = flatten_function(forward, params, "forward")
    magnitudes = [upcast(leaf).abs() for leaf in theta]
    dtype = max((leaf.dtype for leaf in magnitudes), key=lambda dtype: dtype.itemsize)
    for size in input_shape:
        require_positive(size, "every size of input_shape")
    ones = torch.ones(tuple(input_shape), dtype=dtype, device=theta[0].device)

    def r(magnitudes: list[Tensor]) -> Tensor:
        output: Tensor = network(magnitudes, ones)
        require_floating(output, "forward")
        return output.sum()

    flow = torch.func.grad(r)(magnitudes)
    return score_leaves(lambda weight, flow: weight.abs() * flow, params=params, flow=tree_of(flow))


@raise_on_all_ranks
def iterative_synflow(
    forward: Callable[[Tree, Tensor], Tensor],
    params: Tree,
    input_shape: Sequence[int],
    *,
    sparsity: float,
    masks: Tree = None,
    rounds: int = 100,
) -> Tree:
    """Return the masks of SynFlow after n rounds; round k prunes to 1 - (1 - sparsity)^(k/n).

    Each round scores the weights that are left. So layers are rarely emptied: the scores of all
    layers have the same sum, so the last weights of a layer are the most important of all.

    Args:
        forward: the network: `forward(params, x)`, to a floating point tensor. It is called with
            the whole tree, masked.
        params: pytree of floating point tensors of any shape and `None`s.
        input_shape: the shape of x, with a batch of one.
        sparsity: fraction of the prunable entries that is pruned after the last round, 0 to 1.
        masks: prior bool masks of that structure; a parameter whose mask is `None` is not pruned.
            By default `prunable(params)` says what is pruned, and nothing is pruned yet.
        rounds: n, the number of rounds; the paper uses 100. With fewer rounds and a very high
            sparsity, a layer may lose all of its weights.

    Returns:
        Bool masks of that structure, `True` = keep, `None` where nothing is pruned.

    Raises:
        TypeError: if the sparsity is not a number or the rounds are not an int; also those of
            `synflow`.
        ValueError: if the sparsity or the rounds are out of range; also those of `synflow`.

    Example:
        >>> import torch, gprune as gp
        >>> params = [torch.tensor([[1.0, -2.0]]), torch.tensor([[3.0]])]
        >>> forward = lambda p, x: x @ p[0].T @ p[1].T
        >>> gp.scores.iterative_synflow(forward, params, (1, 2), sparsity=1 / 3)
        [tensor([[False,  True]]), tensor([[True]])]

    References:
        Tanaka et al., 2020, arXiv:2006.05467, algorithm 1.
    """
    constant(sparsity)  # raises if the sparsity is out of range
    require_positive(rounds, "rounds")
    masks = keep_all(prunable(params)) if masks is None else masks
    weights = prunable_params(params, masks, "masks")
    so_far = [1 - (1 - sparsity) ** (k / rounds) for k in range(1, rounds)]
    for now in [*so_far, sparsity]:
        scores = synflow(forward, apply_masks(params, masks), input_shape)
        masks = global_unstructured(weights, scores, masks=masks, sparsity=now)
    return masks
