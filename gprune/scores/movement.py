"""Movement pruning: keep the weights that training moves away from zero."""

from __future__ import annotations

from gprune.scores.edge import score_leaves
from gprune.trees import Tree


def movement(scores: Tree, params: Tree, grads: Tree) -> Tree:
    """Take one step of the movement scores: S ← S - θ ⊙ g.

    A step of gradient descent moves a weight by -g, so S grows where weights move away from zero
    and shrinks where they move towards it. Call it once per training step, starting from zeros; the
    learning rate of the scores is a common factor and is left out.

    Args:
        scores: the scores so far, of the structure and the shapes of the parameters.
        params: the weights of this step, pytree of floating point tensors of any shape; `None`
            stays `None`.
        grads: the gradients of this step in the masked forward pass, likewise.

    Returns:
        Detached scores of that structure, in float32 at least, in the unit of the loss; positive
        and negative.

    Raises:
        TypeError: if a leaf is not a floating point tensor.
        ValueError: if a leaf is missing, does not fit or is not finite.

    Example:
        >>> import torch
        >>> movement([torch.zeros(2)], [torch.tensor([2.0, 2.0])], [torch.tensor([-1.0, 1.0])])
        [tensor([ 2., -2.])]

    References:
        Sanh et al., 2020, arXiv:2005.07683, section 4.
    """
    return score_leaves(lambda w, s, g: s - w * g, params=params, scores=scores, grads=grads)
