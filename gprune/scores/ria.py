"""RIA: the weight relative to its row and its column, times a power of the norm of its inputs."""

from __future__ import annotations

import torch
from torch import Tensor

from gprune.inputs import LeafError, Leaves, float64_device, raise_with_path
from gprune.methods.dims import DimFunction, dims_per_leaf, input_dims
from gprune.scores.score_map import (
    NORMS_ARE_MAGNITUDES,
    floating_leaves,
    require_norms,
    scale_to_one,
    score_leaves,
)
from gprune.select.counts import as_nonnegative
from gprune.sharding import check_same_leaves, raise_on_all_ranks
from gprune.trees import Tree, leaves_like, tensor_paths


@raise_on_all_ranks
def ria(
    params: Tree,
    input_norms: Tree,
    *,
    power: float = 0.5,
    dim: int | tuple[int, ...] | DimFunction = input_dims,
) -> Tree:
    """Score by relative importance and input norm: (|W_ij|/Σ_j|W_ij| + |W_ij|/Σ_i|W_ij|) ‖X_j‖₂ᵃ.

    W_ij is the weight from input j to output i, X_j has that input of all examples, and a is
    `power`. The first sum is over the inputs of an output (a row), the second over the outputs of
    an input (a column). So the last remaining weights of an input or of an output score high, and
    no channel loses all of its weights early. 0 / 0 counts as 0. The sums are computed in float64,
    on the CPU if the device has no float64, and need 8 bytes for each entry of the largest leaf.

    The dims in `dim` hold the inputs of one output. Of the other dims, the last one holds the
    outputs. The dims before it are separate layers, over which nothing is summed, such as the
    experts of a weight (experts, outputs, inputs) with dim 2. A leaf without another dim has one
    output, so its second term is 1.

    In a grouped convolution each group has inputs of its own, but the shape of the weight does not
    show the groups. So a column is summed over the outputs of all groups, although these have
    different inputs. To sum within each group, make the groups a dim of their own, as in the second
    example.

    Args:
        params: pytree of floating point tensors of any shape; `None` stays `None`. Parameters that
            `input_norms` has not observed must be `None`: pass `prunable(params)`, and leave out
            with `exclude` what the error names.
        input_norms: the norms of the inputs, from the function `input_norms`: of that structure
            and those shapes, not negative.
        power: the exponent a of the norms, not negative. 0 ignores the inputs.
        dim: the dims of the inputs: an int, a tuple of ints, or a function `(path, leaf)` that
            returns one of these. By default `gprune.input_dims`, which says what other layouts
            need.

    Returns:
        Detached scores of that structure, in float32 at least, in the unit of the inputs to that
        power. The paper compares the weights of each output:
        `layerwise(weights, scores, amount=0.5, dim=gprune.input_dims)`.

    Raises:
        TypeError: if a leaf is not a floating point tensor, or `power` or a dim has the wrong type.
        ValueError: if the norms of a leaf are missing, have another shape, are not finite or are
            negative, `power` is negative or not finite, or a leaf does not have a dim.

    Example:
        >>> import torch, gprune as gp
        >>> weight = torch.tensor([[2.0, -2.0], [0.0, 6.0]])
        >>> gp.scores.ria(weight, torch.tensor([[4.0, 1.0], [4.0, 1.0]]))
        tensor([[3.0000, 0.7500],
                [0.0000, 1.7500]])
        >>> weight, norms = torch.ones(6, 2, 3, 3), torch.ones(6, 2, 3, 3)  # of 3 groups
        >>> weight, norms = weight.unflatten(0, (3, 2)), norms.unflatten(0, (3, 2))
        >>> gp.scores.ria(weight, norms, dim=(2, 3, 4)).flatten(0, 1).shape
        torch.Size([6, 2, 3, 3])

    References:
        Zhang et al., 2024, "Plug-and-Play: An Efficient Post-training Pruning Method for Large
        Language Models", ICLR, https://openreview.net/forum?id=Tr0lPx9woF, section 3.
    """
    power = as_nonnegative(power, "power")
    leaves, treedef = floating_leaves(params, "params")
    require_norms(leaves, leaves_like(input_norms, treedef, "input_norms"), treedef)
    tensors = [leaf for leaf in leaves if leaf is not None]
    scored = Leaves(tensors, None, tensors, [], leaves, treedef)
    try:
        dims_of_tensors = dims_per_leaf(dim, scored)
    except LeafError as error:
        raise_with_path(error, scored)
    # a sum over shards sends messages, so all ranks must sum over the same dims of the same leaves
    check_same_leaves("ria", tensors, lambda: tensor_paths(treedef, leaves), power, dims_of_tensors)
    dims = iter(dims_of_tensors)

    def equation(leaf: Tensor, norm: Tensor, inputs: list[int]) -> Tensor:
        exact = scale_to_one(leaf.to(float64_device(leaf.device)).to(torch.float64)).abs()
        outputs = [dim for dim in range(leaf.dim()) if dim not in inputs][-1:]
        shares = _shares(exact, inputs) + _shares(exact, outputs)
        return shares.to(leaf.dtype).to(leaf.device) * norm**power

    return score_leaves(
        equation,
        magnitudes=NORMS_ARE_MAGNITUDES,
        per_leaf=[None if leaf is None else next(dims) for leaf in leaves],
        params=params,
        input_norms=input_norms,
    )


def _shares(exact: Tensor, dims: list[int]) -> Tensor:
    """Return each entry divided by the sum over some dims; without dims, by itself."""
    sums = exact.sum(dims, keepdim=True) if dims else exact
    return exact / torch.where(sums == 0, 1, sums)  # of a DTensor the shards are added up
