"""Slow, obvious oracles for the guarantees: naive Python over lists, nothing from gprune.

A tree is flattened once, with ``None`` as a leaf, and every tensor becomes the flat list
of its entries in row-major order, read on its own dtype: Python compares the ints and floats it
gets exactly. The flat index counts the entries of all tensors, leaf after leaf.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import optree
import torch

Number = int | float
Lists = list[list[Number] | None]
MaskLists = list[list[bool] | None]


class Threshold(NamedTuple):
    """The score and the flat index of the last pruned entry."""

    value: float
    index: int


PRUNES_NOTHING = Threshold(-math.inf, -1)


def leaves(tree: Any) -> list[Any]:
    return optree.tree_leaves(tree, none_is_leaf=True)


def paths(tree: Any) -> list[str]:
    accessors = optree.tree_accessors(tree, none_is_leaf=True)
    return [accessor.codify("") or "(root)" for accessor in accessors]


def structure(tree: Any) -> Any:
    return optree.tree_structure(tree, none_is_leaf=True)


def entries(tensor: torch.Tensor) -> list[Any]:
    return tensor.detach().flatten().tolist()


def lists(tree: Any) -> list[Any]:
    return [None if leaf is None else entries(leaf) for leaf in leaves(tree)]


# --- counts ----------------------------------------------------------------------


def exact(number: Any) -> Number:
    return number.item() if isinstance(number, torch.Tensor) else number


def num_to_prune(amount: Any, candidates: int) -> int:
    """An int is that many; a float that fraction of the candidates, half to even."""
    amount = exact(amount)
    return amount if isinstance(amount, int) else round(amount * float(candidates))


def num_to_reach(sparsity: Any, entries: int, pruned: int) -> int:
    """How many more until `sparsity` of all entries are pruned; never fewer than none."""
    return max(0, round(float(exact(sparsity)) * float(entries)) - pruned)


def num_candidates(params: Any, masks: Any = None) -> int:
    return sum(sum(prior) for prior in priors(params, masks) if prior is not None)


def num_entries(params: Any) -> int:
    return sum(len(leaf) for leaf in lists(params) if leaf is not None)


def count(params: Any, masks: Any = None, *, amount: Any = None, sparsity: Any = None) -> int:
    """How many candidates the call prunes."""
    candidates = num_candidates(params, masks)
    if sparsity is None:
        return num_to_prune(amount, candidates)
    total = num_entries(params)
    return num_to_reach(sparsity, total, total - candidates)


# --- scores and prior masks, as lists -------------------------------------------------------


def magnitude(params: Any) -> Lists:
    """Absolute values; Python's ints are unbounded, so none wraps."""
    return [None if leaf is None else [abs(entry) for entry in leaf] for leaf in lists(params)]


def scores_of(params: Any, scores: Any) -> Lists:
    """The scores where params has a tensor, the magnitudes if there are no scores."""
    if scores is None:
        return magnitude(params)
    pairs = zip(leaves(params), leaves(scores), strict=True)
    return [None if param is None else entries(score) for param, score in pairs]


def priors(params: Any, masks: Any) -> MaskLists:
    """The prior masks; all True where there are none."""
    if masks is None:
        return [None if leaf is None else [True] * len(leaf) for leaf in lists(params)]
    return lists(masks)


# --- the order, the threshold and the masks -------------------------------------------------------


def rank(score: Number) -> tuple[bool, Number]:
    """Sorts numbers by exact value (-0.0 equals 0.0) and NaN after all of them."""
    return (True, 0) if math.isnan(score) else (False, score)


def ranking(scores: Lists, prior: MaskLists) -> list[tuple[int, Number]]:
    """The candidates as (flat index, score), in the order in which they are pruned."""
    flat_scores = [score for leaf in scores if leaf is not None for score in leaf]
    flat_prior = [keep for leaf in prior if leaf is not None for keep in leaf]
    candidates = [pair for pair in enumerate(flat_scores) if flat_prior[pair[0]]]
    return sorted(candidates, key=lambda pair: rank(pair[1]))


def unflatten(flat: list[bool], like: Sequence[list[Any] | None]) -> MaskLists:
    masks: MaskLists = []
    start = 0
    for leaf in like:
        if leaf is None:
            masks.append(None)
        else:
            masks.append(flat[start : start + len(leaf)])
            start += len(leaf)
    return masks


def prune(scores: Lists, prior: MaskLists, k: int) -> MaskLists:
    """Keeps what the prior kept, less the first k of the ranking."""
    flat = [keep for leaf in prior if leaf is not None for keep in leaf]
    for index, _ in ranking(scores, prior)[:k]:
        flat[index] = False
    return unflatten(flat, prior)


def global_masks(params: Any, scores: Any, k: int, masks: Any = None) -> MaskLists:
    """One ranking across the whole tree."""
    return prune(scores_of(params, scores), priors(params, masks), k)


def floors(params: Any, min_per_leaf: Any) -> list[int]:
    """How many entries each leaf must keep; a fraction above 0 keeps at least one."""
    number, result = exact(min_per_leaf), []
    for leaf in lists(params):
        size = 0 if leaf is None else len(leaf)
        if isinstance(number, float):
            wanted = round(number * size)
            wanted = 1 if number > 0 and wanted == 0 else wanted
        else:
            wanted = number
        result.append(min(wanted, size))
    return result


def most_to_prune(params: Any, min_per_leaf: Any, masks: Any = None) -> int:
    """How many candidates can go until every leaf is at its floor."""
    pairs = zip(priors(params, masks), floors(params, min_per_leaf), strict=True)
    return sum(max(0, sum(prior) - floor) for prior, floor in pairs if prior is not None)


def masks_above_floors(
    params: Any, scores: Any, k: int, min_per_leaf: Any, masks: Any = None
) -> MaskLists:
    """Entry by entry in the order of pruning; an entry of a leaf at its floor is passed over."""
    prior = priors(params, masks)
    flat = [keep for leaf in prior if leaf is not None for keep in leaf]
    leaf_of = [i for i, leaf in enumerate(prior) if leaf is not None for _ in leaf]
    left, least = [sum(leaf or []) for leaf in prior], floors(params, min_per_leaf)
    for index, _ in ranking(scores_of(params, scores), prior):
        leaf = leaf_of[index]
        if k > 0 and left[leaf] > least[leaf]:
            flat[index] = False
            left[leaf] -= 1
            k -= 1
    assert k == 0
    return unflatten(flat, prior)


def layerwise_masks(
    params: Any, scores: Any, ks: Sequence[int | None], masks: Any = None
) -> MaskLists:
    """One ranking per leaf, with its own count."""
    result: MaskLists = []
    for leaf, prior, k in zip(scores_of(params, scores), priors(params, masks), ks, strict=True):
        if leaf is None or prior is None or k is None:
            result.append(None)
        else:
            result.extend(prune([leaf], [prior], k))
    return result


def threshold(params: Any, scores: Any, k: int, masks: Any = None) -> Threshold:
    """The k-th of the ranking."""
    if k == 0:
        return PRUNES_NOTHING
    index, value = ranking(scores_of(params, scores), priors(params, masks))[k - 1]
    return Threshold(float(value), index)


def is_pruned_at(score: Number, index: int, at: Threshold) -> bool:
    if math.isnan(at.value):
        return not math.isnan(score) or index <= at.index
    return score < at.value or (score == at.value and index <= at.index)


def masks_from_threshold(at: Threshold, params: Any, scores: Any, masks: Any = None) -> MaskLists:
    """The formula of a threshold, entry by entry."""
    prior = priors(params, masks)
    flat_scores = [
        score for leaf in scores_of(params, scores) if leaf is not None for score in leaf
    ]
    flat_prior = [keep for leaf in prior if leaf is not None for keep in leaf]
    flat = [
        keep and not is_pruned_at(score, index, at)
        for index, (score, keep) in enumerate(zip(flat_scores, flat_prior, strict=True))
    ]
    return unflatten(flat, prior)


# --- masks ----------------------------------------------------------------------------------


def apply_masks(params: Any, masks: Any) -> Lists:
    """Zero where the mask is False; a parameter without a mask as it is."""
    result: Lists = []
    for param, mask in zip(leaves(params), leaves(masks), strict=True):
        if param is None:
            result.append(None)
        elif mask is None:
            result.append(entries(param))
        else:
            pairs = zip(entries(param), entries(mask), strict=True)
            result.append([entry if keep else 0 for entry, keep in pairs])
    return result


def decayed(params: Any, masks: Any, grads: Any, decay: float) -> Lists:
    """SR-STE: the gradients, plus the decay times each entry that is masked.

    Zhou et al., 2021, eq. 9. Where such an entry is not finite, the gradient is zero.
    """
    result: Lists = []
    for trees in zip(leaves(params), leaves(masks), leaves(grads), strict=True):
        param, mask, grad = trees
        if param is None or mask is None:
            result.append(None if grad is None else entries(grad))
            continue
        rows = zip(entries(param), entries(mask), entries(grad), strict=True)
        result.append(
            [g if keep else g + decay * w if math.isfinite(w) else 0.0 for w, keep, g in rows]
        )
    return result


# --- schedules ------------------------------------------------------------------------------


def constant(sparsity: float) -> Callable[[int], float]:
    return lambda step: sparsity


def one_shot(sparsity: float, *, step: int) -> Callable[[int], float]:
    at = step
    return lambda step: sparsity if step >= at else 0.0


def linear(
    sparsity: float, *, begin: int, end: int, initial: float = 0.0
) -> Callable[[int], float]:
    return polynomial(sparsity, begin=begin, end=end, initial=initial, power=1)


def polynomial(
    sparsity: float, *, begin: int, end: int, initial: float = 0.0, power: float = 3
) -> Callable[[int], float]:
    """Zhu & Gupta, 2017, arXiv:1710.01878, eq. 1, with the power as a parameter."""

    def at(step: int) -> float:
        if step < begin:
            return initial
        if step >= end:
            return sparsity
        remaining = 1 - (step - begin) / (end - begin)
        return sparsity + (initial - sparsity) * remaining**power

    return at


# --- scores ---------------------------------------------------------------------------------
#
# Of trees of tensors, in float64. A loss is a function of the parameters alone.


def doubled(tree: Any) -> Any:
    """A copy in float64, without a history."""
    return optree.tree_map(
        lambda leaf: (
            leaf.detach().clone().double()
            if isinstance(leaf, torch.Tensor) and leaf.is_floating_point()
            else leaf
        ),
        tree,
        none_is_leaf=True,
    )


def over(function: Callable[..., Any], *trees: Any) -> Any:
    """Map over the tensors; `None` leaves stay."""
    return optree.tree_map(
        lambda leaf, *rest: None if leaf is None else function(leaf, *rest),
        *trees,
        none_is_leaf=True,
    )


def tensors_of(tree: Any) -> list[torch.Tensor]:
    return [leaf for leaf in leaves(tree) if leaf is not None]


def like(tree: Any, tensors: Sequence[torch.Tensor]) -> Any:
    """The tensors in the places of those of the tree."""
    results = iter(tensors)
    return over(lambda leaf: next(results), tree)


def gradient(loss: Callable[[Any], torch.Tensor], params: Any) -> Any:
    variables = over(lambda leaf: leaf.clone().requires_grad_(), doubled(params))
    return like(params, torch.autograd.grad(loss(variables), tensors_of(variables)))


def hessian(loss: Callable[[Any], torch.Tensor], params: Any) -> torch.Tensor:
    """Row by row, over the entries of all leaves."""
    variables = over(lambda leaf: leaf.clone().requires_grad_(), doubled(params))
    tensors = tensors_of(variables)
    grads = torch.autograd.grad(loss(variables), tensors, create_graph=True)
    rows = [
        torch.cat(
            [
                (torch.zeros_like(x) if row is None else row).flatten()
                for row, x in zip(
                    torch.autograd.grad(entry, tensors, retain_graph=True, allow_unused=True),
                    tensors,
                    strict=True,
                )
            ]
        )
        for g in grads
        for entry in g.flatten()
    ]
    return torch.stack(rows)


def flat(tree: Any) -> torch.Tensor:
    return torch.cat([leaf.flatten() for leaf in tensors_of(tree)])


def unflat(vector: torch.Tensor, params: Any) -> Any:
    tensors = tensors_of(params)
    parts = vector.split([leaf.numel() for leaf in tensors])
    return like(params, [p.reshape(x.shape) for p, x in zip(parts, tensors, strict=True)])


def taylor(params: Any, grads: Any, squared: bool = False) -> Any:
    power = 2 if squared else 1
    return over(lambda w, g: (w * g).abs() ** power, doubled(params), doubled(grads))


def snip(loss: Callable[[Any], torch.Tensor], params: Any) -> Any:
    """By the definition: gates c on all weights, the derivative at c = 1."""
    weights = doubled(params)
    gates = over(lambda leaf: torch.ones_like(leaf).requires_grad_(), weights)
    gated = over(lambda c, w: c * w, gates, weights)
    grads = torch.autograd.grad(loss(gated), tensors_of(gates))
    return like(params, [g.abs() for g in grads])


def grasp(loss: Callable[[Any], torch.Tensor], params: Any) -> Any:
    product = hessian(loss, params) @ flat(gradient(loss, params))
    return unflat(flat(doubled(params)) * product, params)


def fisher(losses: Sequence[Callable[[Any], torch.Tensor]], params: Any) -> Any:
    """One loss for each example."""
    grads = [gradient(loss, params) for loss in losses]
    return over(lambda *gs: sum(g**2 for g in gs) / len(gs), *grads)


def hutchinson(
    loss: Callable[[Any], torch.Tensor], params: Any, probes: Sequence[torch.Tensor]
) -> Any:
    h = hessian(loss, params)
    return unflat(sum(v.double() * (h @ v.double()) for v in probes) / len(probes), params)


def obd(params: Any, diagonal: Any) -> Any:
    return over(lambda w, h: w**2 * h / 2, doubled(params), doubled(diagonal))


def movement(steps: Sequence[tuple[Any, Any]]) -> Any:
    """Of pairs of weights and gradients: minus the sum of their products."""
    products = [over(lambda w, g: w * g, doubled(w), doubled(g)) for w, g in steps]
    return over(lambda *ps: -sum(ps), *products)


def synflow(forward: Callable[[Any, Any], torch.Tensor], params: Any, shape: Sequence[int]) -> Any:
    positive = over(torch.abs, doubled(params))
    ones = torch.ones(tuple(shape), dtype=torch.float64)
    grads = gradient(lambda p: forward(p, ones).sum(), positive)
    return over(lambda w, g: w * g, positive, grads)


def synflow_by_removal(
    forward: Callable[[Any, Any], torch.Tensor], params: Any, shape: Sequence[int]
) -> Any:
    """What R loses with each weight, which is its score where R is linear in each weight."""
    positive = over(torch.abs, doubled(params))
    ones = torch.ones(tuple(shape), dtype=torch.float64)
    everything = flat(positive)
    r = forward(positive, ones).sum()
    scores = torch.zeros_like(everything)
    for i in range(len(everything)):
        without = everything.clone()
        without[i] = 0
        scores[i] = r - forward(unflat(without, params), ones).sum()
    return unflat(scores, params)


def removal_errors(layer: Callable[[torch.Tensor], torch.Tensor], weight: torch.Tensor) -> Any:
    """The squared error of a layer's output without each weight in its turn."""
    errors = torch.zeros(weight.numel(), dtype=torch.float64)
    output = layer(weight)
    for i in range(weight.numel()):
        without = weight.clone()
        without.view(-1)[i] = 0
        errors[i] = (layer(without) - output).square().sum()
    return errors.reshape(weight.shape)


def ria(
    weight: torch.Tensor, norms: torch.Tensor, power: float, inputs: Sequence[int]
) -> torch.Tensor:
    """Entry by entry: its row has its index in all dims but the inputs, its column in all but one.

    That one is the last dim that holds no inputs.
    """
    outputs = [dim for dim in range(weight.dim()) if dim not in inputs][-1:]
    places = list(itertools.product(*map(range, weight.shape)))
    value = {at: abs(weight[at].item()) for at in places}

    def share(at: tuple[int, ...], free: Sequence[int]) -> float:
        """The entry over the sum of those that differ from it in the free dims only."""
        fixed = [dim for dim in range(weight.dim()) if dim not in free]
        total = math.fsum(value[to] for to in places if all(to[d] == at[d] for d in fixed))
        return value[at] / total if total else 0.0

    scores = [(share(at, inputs) + share(at, outputs)) * norms[at].item() ** power for at in places]
    return torch.tensor(scores, dtype=torch.float64).reshape(weight.shape)


def normalize_l2(scores: Any) -> Any:
    def unit(leaf: torch.Tensor) -> torch.Tensor:
        norm = math.sqrt(math.fsum(x * x for x in entries(leaf)))
        return leaf / norm if norm else leaf

    return over(unit, doubled(scores))


def lamp(params: Any) -> Any:
    """Entry by entry: its square over those of all that are not before it in the order."""

    def shares(leaf: torch.Tensor) -> torch.Tensor:
        squares = [x * x for x in entries(leaf)]
        order = sorted(range(len(squares)), key=lambda i: (squares[i], i))
        result = [0.0] * len(squares)
        for place, i in enumerate(order):
            rest = math.fsum(squares[j] for j in order[place:])
            result[i] = squares[i] / rest if rest else 0.0
        return torch.tensor(result, dtype=torch.float64).reshape(leaf.shape)

    return over(shares, doubled(params))


def exponential(
    sparsity: float, *, begin: int, end: int, initial: float = 0.0
) -> Callable[[int], float]:
    """What is left is multiplied by the same factor at every step."""
    factor = ((1 - sparsity) / (1 - initial)) ** (1 / (end - begin))
    return lambda step: 1 - (1 - initial) * factor ** min(max(step - begin, 0), end - begin)


def cosine(
    sparsity: float, *, begin: int, end: int, initial: float = 0.0
) -> Callable[[int], float]:
    def at(step: int) -> float:
        angle = math.pi * min(max(step - begin, 0), end - begin) / (end - begin)
        return initial + (sparsity - initial) * (1 - math.cos(angle)) / 2

    return at
