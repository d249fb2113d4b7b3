"""Taylor scores: the first-order change of the loss when a weight is set to zero."""

from __future__ import annotations

from torch import Tensor

from gprune.scores.score_map import score_leaves
from gprune.trees import Tree


def taylor(params: Tree, grads: Tree, *, squared: bool = False) -> Tree:
    """Score each entry by the first-order change of the loss if it is removed: |θ ⊙ g| or (θ ⊙ g)².

    θ are the weights, and g the gradients of the loss. Both forms give the same ranking. The square
    is the importance of the paper, which sums it over the weights of a channel.

    Args:
        params: pytree of floating point tensors of any shape; `None` stays `None`.
        grads: the gradients of the loss, of that structure and those shapes; `accumulate` gives
            their mean over batches.
        squared: whether to square instead of taking the absolute value.

    Returns:
        Detached scores of that structure, in float32 at least, in the unit of the loss, or of its
        square.

    Raises:
        TypeError: if a leaf is not a floating point tensor.
        ValueError: if a gradient is missing, has another shape or is not finite.

    Example:
        >>> import torch, gprune as gp
        >>> gp.scores.taylor([torch.tensor([2.0, 3.0])], [torch.tensor([-0.5, 0.0])])
        [tensor([1., 0.])]

    References:
        Molchanov et al., 2019, arXiv:1906.10771, section 3.
    """

    def equation(weight: Tensor, grad: Tensor) -> Tensor:
        change = weight * grad
        return change.square() if squared else change.abs()

    return score_leaves(equation, params=params, grads=grads)
