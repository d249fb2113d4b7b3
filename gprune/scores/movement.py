"""Movement pruning: keep the weights that training moves away from zero."""

from __future__ import annotations

from gprune.scores.score_map import score_leaves
from gprune.trees import Tree


def movement(scores: Tree, params: Tree, grads: Tree) -> Tree:
    """Return the movement scores after one training step: S - θ ⊙ g.

    S are the scores so far, θ the weights and g their gradients. A step of gradient descent moves a
    weight along -g, so S grows if weights move away from zero and shrinks if they move towards it.
    Call it once in every training step, starting from zeros. The paper's learning rate of the
    scores is a common factor and is left out.

    Args:
        scores: the scores so far, of any sign, of the structure and the shapes of the parameters.
        params: the weights at this step, pytree of floating point tensors of any shape; `None`
            stays `None`.
        grads: the gradients at this step, of the loss at the masked weights, of that structure and
            those shapes.

    Returns:
        Detached scores of that structure, in float32 at least, in the unit of the loss. Scores may
        be negative.

    Raises:
        TypeError: if a leaf is not a floating point tensor.
        ValueError: if a leaf is missing, has another shape or is not finite.

    Example:
        >>> import torch, gprune as gp
        >>> weight, grad = torch.tensor([2.0, 2.0]), torch.tensor([-1.0, 1.0])
        >>> gp.scores.movement([torch.zeros(2)], [weight], [grad])
        [tensor([ 2., -2.])]

    References:
        Sanh et al., 2020, arXiv:2005.07683, section 4.
    """
    return score_leaves(lambda w, s, g: s - w * g, params=params, scores=scores, grads=grads)
