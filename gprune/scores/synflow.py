"""SynFlow: the flow of paths through each weight, from no data at all."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from gprune.masks import apply_masks, keep_all, with_holes
from gprune.prune import global_unstructured
from gprune.schedules import constant
from gprune.scores.edge import require_positive, score_leaves, wide
from gprune.scores.losses import over_tensors, require_floating
from gprune.trees import Tree, prunable


def synflow(
    forward: Callable[[Tree, Tensor], Tensor], params: Tree, input_shape: Sequence[int]
) -> Tree:
    """Score each entry by the paths through it: |θ| ⊙ ∂R/∂|θ|, where R = 1ᵀ (∏ₗ |θₗ|) 1.

    R is the sum of what the network makes of an input of ones with every parameter replaced by its
    absolute value. Where the network is linear in each layer for such positive signals (linear,
    convolution, pooling, ReLU), the scores into a neuron and out of it have equal sums.

    Args:
        forward: `forward(params, x)`, to a floating point tensor, the network; it sees the whole
            tree. Norms should be linear, as batch norm is in evaluation.
        params: pytree of floating point tensors of any shape; `None` stays `None`.
        input_shape: the shape of x, with a batch of one.

    Returns:
        Detached scores of that structure, in float32 at least (float64 parameters if products of
        many layers overflow), in the unit of R; never negative where R is linear in each layer.

    Raises:
        TypeError: if a leaf or the result of `forward` is not a floating point tensor.
        ValueError: if a score is not finite, or a size of the shape is not positive.

    Example:
        >>> params = [torch.tensor([[1.0, -2.0]]), torch.tensor([[3.0]])]
        >>> synflow(lambda p, x: x @ p[0].T @ p[1].T, params, (1, 2))
        [tensor([[3., 6.]]), tensor([[9.]])]

    References:
        Tanaka et al., 2020, arXiv:2006.05467, eq. 1 and 2.
    """
    network, theta, tree_of = over_tensors(forward, params)
    magnitudes = [wide(leaf).abs() for leaf in theta]
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


def iterative_synflow(
    forward: Callable[[Tree, Tensor], Tensor],
    params: Tree,
    input_shape: Sequence[int],
    *,
    sparsity: float,
    masks: Tree = None,
    rounds: int = 100,
) -> Tree:
    """Prune by SynFlow in rounds, 1 - (1 - sparsity)^(k/n) after round k of n.

    Scoring anew what is left is what keeps every layer alive: the scores of a layer sum to the same
    flow whatever its width, so its last weights are the most important of all.

    Args:
        forward: `forward(params, x)`, to a floating point tensor, the network; it sees the whole
            tree, masked.
        params: pytree of floating point tensors of any shape and holes.
        input_shape: the shape of x, with a batch of one.
        sparsity: fraction of the prunable entries that is pruned in the end, 0 to 1.
        masks: prior bool masks of that structure; a parameter whose mask is `None` is not pruned.
            By default everything is kept, and `prunable(params)` is what is pruned.
        rounds: n, how often to score and prune; the paper takes 100. With fewer, layers may be
            emptied near the sparsity at which one path is left.

    Returns:
        Masks of that structure, `None` where nothing is pruned.

    Raises:
        TypeError: if the sparsity is not a number, the rounds are not an int, or as in `synflow`.
        ValueError: if the sparsity or the rounds are out of range, or as in `synflow`.

    Example:
        >>> params = [torch.tensor([[1.0, -2.0]]), torch.tensor([[3.0]])]
        >>> forward = lambda p, x: x @ p[0].T @ p[1].T
        >>> iterative_synflow(forward, params, (1, 2), sparsity=1 / 3)
        [tensor([[False,  True]]), tensor([[True]])]

    References:
        Tanaka et al., 2020, arXiv:2006.05467, algorithm 1.
    """
    constant(sparsity)  # refuses what is no sparsity
    require_positive(rounds, "rounds")
    masks = keep_all(prunable(params)) if masks is None else masks
    weights = with_holes(params, masks, "masks")
    so_far = [1 - (1 - sparsity) ** (k / rounds) for k in range(1, rounds)]
    for now in [*so_far, sparsity]:
        scores = synflow(forward, apply_masks(params, masks), input_shape)
        masks = global_unstructured(weights, scores, masks=masks, sparsity=now)
    return masks
