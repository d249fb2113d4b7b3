"""The table of every public score, method, combinator, mask function and schedule, as data.

A row says how a public callable is called, in one form for all, `call(params, scores, masks,
amount)`, and which contracts hold for it. `tests/guarantees/test_contracts.py` runs them, and fails
for a public callable without a row.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from hypothesis import strategies as st

import gprune as gp
from gprune.testing import SCORE_DTYPES
from tests.support import reference
from tests.support.cases import amounts, fractions, map_tensors

Call = Callable[[Any, Any, Any, Any], Any]

SELECTION = frozenset({"mask", "nested", "equivariant", "scale invariant"})
TRANSFORMS = frozenset({"compiles", "vmaps", "meta"})
SELECTION_AND_TRANSFORMS = SELECTION | TRANSFORMS
NOTHING: frozenset[str] = frozenset()


class Row(NamedTuple):
    """How one public callable is called.

    Attributes:
        name: what to call the row.
        public: the callable that the row is for.
        call: of params, scores, masks (each of the two may be `None`) and an amount.
        contracts: those that hold besides purity and determinism, which always do.
        ranked_by: for selections: what ranks, from params and scores, if it is neither the scores
            nor, for want of those, the magnitudes.
        separately: whether each leaf is ranked alone.
        k: how many go, from params, masks and amount, where `amount` does not mean it.
        amounts: the strategy for amounts, from the number of candidates.
        dtypes: of the leaves that are drawn.
        may_return_inputs: whether parameters are passed through.
        inductor: whether the row is among those that Inductor compiles.
        atol: tolerance of floating point results, compiled against eager.
        finite: whether the leaves that are drawn are finite, and small enough to multiply.
    """

    name: str
    public: Callable[..., Any]
    call: Call
    contracts: frozenset[str] = TRANSFORMS
    ranked_by: Callable[[Any, Any], Any] | None = None
    separately: bool = False
    k: Callable[[Any, Any, Any], int] | None = None
    amounts: Callable[[int], st.SearchStrategy[Any]] = amounts
    dtypes: tuple[torch.dtype, ...] = SCORE_DTYPES
    may_return_inputs: bool = False
    inductor: bool = False
    atol: float = 0.0
    finite: bool = False


# --- how they are called ----------------------------------------------------------------------

SEED = torch.tensor(3)
FLOATING = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
WHERE = ["a", "*weight*", "*0*"]


def number(amount: Any) -> torch.Tensor:
    """An amount, Python's or a tensor, as a float64 tensor."""
    return torch.ones((), dtype=torch.float64) * amount


def lift(
    combinator: Callable[..., Any], method: Any = gp.lowest_unstructured, **kwargs: Any
) -> Call:
    return lambda params, scores, masks, amount: combinator(
        params, scores, masks=masks, pruning_method=method, amount=amount, **kwargs
    )


def each(method: Callable[..., Any], **kwargs: Any) -> Call:
    """A direct call of a method on every leaf."""

    def call(params: Any, scores: Any, masks: Any, amount: Any) -> Any:
        def prune(leaf: Any, mask: Any, score: Any = None) -> torch.Tensor:
            return method(leaf, score, mask=mask, amount=amount, **kwargs)

        given = [] if scores is None else [scores]
        return map_tensors(prune, params, kept(params, masks), *given)

    return call


def prune_to(params: Any, scores: Any, masks: Any, amount: Any) -> Any:
    return gp.global_unstructured(params, scores, masks=masks, sparsity=amount)


def identity(param: torch.Tensor, scores: Any, *, mask: Any, amount: Any) -> torch.Tensor:
    return gp.identity(param, scores, mask=mask)


def prune_nothing(params: Any, scores: Any, masks: Any, amount: Any) -> Any:
    return gp.global_unstructured(params, scores, masks=masks, pruning_method=gp.identity)


@gp.pruning_method("unstructured")
def lowest_by_sorting(
    param: torch.Tensor, scores: torch.Tensor | None, *, mask: torch.Tensor, amount: Any
) -> torch.Tensor:
    """A user's method, in operations that every transform takes."""
    scores = param if scores is None else scores
    is_tensor = isinstance(amount, torch.Tensor)
    is_fraction = amount.is_floating_point() if is_tensor else isinstance(amount, float)
    k = (number(amount) * mask.sum()).round() if is_fraction else number(amount)
    order = scores.argsort(stable=True)
    order = order[(~mask)[order].byte().argsort(stable=True)]  # the candidates first
    return order.argsort() >= k  # keeps what the prior has pruned: the combinators see to that


@gp.pruning_method("unstructured")
def each_by_sorting(
    param: torch.Tensor, scores: torch.Tensor | None, *, mask: torch.Tensor, amount: Any
) -> torch.Tensor:
    scores = param if scores is None else scores
    flat = lowest_by_sorting(scores.reshape(-1), None, mask=mask.reshape(-1), amount=amount)
    return flat.reshape(scores.shape)


def partial(params: Any, scores: Any, masks: Any, amount: Any) -> Any:
    method = functools.partial(gp.l1_unstructured, amount=amount)
    return gp.global_unstructured(params, scores, masks=masks, pruning_method=method)


def above_floors(params: Any, scores: Any, masks: Any, amount: Any) -> Any:
    """Prune some of what may go if each leaf keeps two entries."""
    left = [mask.sum().cpu() for mask in leaves(kept(params, masks))]
    may_go = sum((number - 2).clamp(min=0) for number in left)
    fraction = number(amount) / (1 + number(amount))  # of a count too
    return gp.global_unstructured(
        params, scores, masks=masks, amount=(fraction * may_go).floor().long(), min_per_leaf=2
    )


def layerwise_with_a_tree(params: Any, scores: Any, masks: Any, amount: Any) -> Any:
    each_amount = map_tensors(lambda leaf: amount, params)
    return gp.layerwise(params, scores, masks=masks, amount=each_amount)


def threshold_at(amount: Any) -> gp.Threshold:
    """At a whole number, so that scores may be equal to it, and anywhere in the flat order."""
    return gp.Threshold((number(amount) * 3).round(), (number(amount) * 20).to(torch.int64))


def at_step(schedule: gp.schedules.Schedule) -> Call:
    return lambda params, scores, masks, amount: schedule(amount * 60)


def own(params: Any, scores: Any) -> Any:
    return params if scores is None else scores


def kept(params: Any, masks: Any) -> Any:
    return gp.keep_all(params) if masks is None else masks


def leaves(tree: Any) -> list[torch.Tensor]:
    return [leaf for leaf in gp.trees.flatten(tree)[0] if leaf is not None]


def cubes(params: Any, *args: torch.Tensor) -> torch.Tensor:
    """A loss with curvature, of any tree."""
    scale = sum(arg.mean() for arg in args) + 1
    return sum((leaf**3).sum() for leaf in leaves(params)) * scale


def examples(params: Any) -> torch.Tensor:
    return torch.arange(3.0, device=leaves(params)[0].device).to(leaves(params)[0].dtype)


def flow(params: Any, x: torch.Tensor) -> torch.Tensor:
    return x.sum() * sum(leaf.sum() for leaf in leaves(params))


def linear(params: Any, x: torch.Tensor) -> Any:
    return [
        torch.nn.functional.linear(x[: leaf.shape[1]].to(leaf.dtype), leaf)
        for leaf in leaves(params)
    ]


def linear_of_rows(params: Any, x: torch.Tensor) -> Any:
    return [
        torch.nn.functional.linear(x[:, : leaf.shape[1]].to(leaf.dtype), leaf)
        for leaf in leaves(params)
    ]


def rows_of(params: Any) -> Any:
    return map_tensors(lambda leaf: leaf.reshape(1, -1), params)


def norms(params: Any, scores: Any) -> Any:
    batches = [leaves(params)[0].new_ones(100) * i for i in range(1, 3)]
    return gp.scores.input_norms(linear, rows_of(params), batches)


def grams(params: Any, scores: Any) -> Any:
    """Of so many inputs that no Gram matrix is singular for want of them."""
    some = leaves(params)[0]
    batches = [some.new_ones(100, 100) * i for i in range(1, 3)]
    return gp.scores.input_gram(linear_of_rows, rows_of(params), batches)


def gram_of(leaf: torch.Tensor) -> torch.Tensor:
    """A Gram matrix of inputs that are alike, one for each entry of a leaf."""
    dtype = torch.promote_types(leaf.dtype, torch.float32)
    return 1 + torch.eye(leaf.numel(), dtype=dtype, device=leaf.device)


def rebuilt(function: Callable[..., Any], params: Any, *masks: Any, **kwargs: Any) -> Any:
    """Call a function of `gp.reconstruct` on a tree of single rows."""
    rows = [rows_of(tree) for tree in (params, *masks)]
    return function(*rows, map_tensors(gram_of, params), **kwargs)


def mean(params: Any, scores: Any) -> Any:
    return gp.scores.accumulate(lambda tree: tree, [params, own(params, scores)])


# --- what ranks -------------------------------------------------------------------------------


def by_magnitude(params: Any, scores: Any) -> Any:
    return gp.scores.magnitude(own(params, scores))


def by_draws(params: Any, scores: Any) -> Any:
    return gp.scores.random(params, seed=SEED)


def by_draws_of_each_leaf(params: Any, scores: Any) -> Any:
    return map_tensors(lambda leaf: gp.scores.random(leaf, seed=SEED), params)


# --- the table --------------------------------------------------------------------------------

TREES = [
    Row(
        "prunable",
        gp.prunable,
        lambda params, *_: gp.prunable(params),
        may_return_inputs=True,
    ),
    Row(
        "prunable by globs",
        gp.prunable,
        lambda params, *_: gp.keep_all(gp.prunable(params, WHERE)),
    ),
    Row(
        "prunable without some",
        gp.prunable,
        lambda params, *_: gp.keep_all(gp.prunable(params, exclude=WHERE)),
    ),
    Row(
        "prunable by predicate",
        gp.prunable,
        lambda params, *_: gp.keep_all(gp.prunable(params, lambda path, x: "weight" in path)),
    ),
    Row(
        "vmap_dims",
        gp.vmap_dims,
        lambda params, *_: gp.vmap_dims(params),
        frozenset({"compiles", "meta"}),  # it gives numbers: there is nothing to batch
    ),
]

METHODS = [
    Row(
        "lowest_unstructured",
        gp.lowest_unstructured,
        each(gp.lowest_unstructured),
        SELECTION_AND_TRANSFORMS,
        separately=True,
        inductor=True,
    ),
    Row(
        "l1_unstructured",
        gp.l1_unstructured,
        each(gp.l1_unstructured),
        SELECTION_AND_TRANSFORMS,
        ranked_by=by_magnitude,
        separately=True,
    ),
    Row(
        "random_unstructured",
        gp.random_unstructured,
        each(gp.random_unstructured, seed=SEED),
        SELECTION_AND_TRANSFORMS - {"equivariant"},  # the draw stays where it is
        ranked_by=by_draws_of_each_leaf,
        separately=True,
    ),
    Row("identity", gp.identity, each(identity), TRANSFORMS | {"mask"}, k=lambda *_: 0),
    Row(
        "pruning_method",
        gp.pruning_method,
        lift(gp.global_unstructured, lowest_by_sorting),
        SELECTION_AND_TRANSFORMS,
        ranked_by=own,
        dtypes=(torch.float32,),  # the leaves are joined, and so promoted to one dtype
        inductor=True,
    ),
]

# --- patterns: structured and semi-structured methods, whose counts have oracles of their own -----


def each_matrix(method: Callable[..., Any], **kwargs: Any) -> Call:
    """A method of tensors with two dimensions or more, on those leaves; the others are kept."""

    def masked(leaf: Any, score: Any, *, mask: Any, amount: Any) -> Any:
        if leaf.dim() < 2:
            return mask.clone()
        return method(leaf, score, mask=mask, amount=amount, **kwargs)

    return each(masked)


def two_of_four(param: torch.Tensor, scores: Any, *, mask: Any, amount: Any) -> torch.Tensor:
    if param.shape[0] == 1:  # a group of a single entry is an error
        return mask.clone()
    return gp.n_of_m(param, scores, mask=mask, n=2, m=4, dim=0)


def half_of_the_inputs(params: Any, scores: Any, masks: Any, amount: Any) -> Any:
    """On leaves with as many rows as entries, and two columns."""
    pairs = map_tensors(lambda leaf: torch.stack([leaf.reshape(-1)] * 2, 1), params)
    return gp.layerwise(pairs, amount=amount, dim=gp.input_dims)


def channels_of_layers(params: Any, scores: Any, masks: Any, amount: Any) -> Any:
    matrices = map_tensors(lambda leaf: leaf.reshape(-1, 1), params)
    if scores is not None:
        scores = map_tensors(lambda _, score: score.reshape(-1, 1), params, scores)
    if masks is not None:
        masks = map_tensors(lambda _, mask: mask.reshape(-1, 1), params, masks)
    method = functools.partial(gp.ln_structured, n=1, dim=0)
    return lift(gp.layerwise, method)(matrices, scores, masks, amount)


def checked(params: Any, scores: Any, masks: Any, amount: Any) -> Any:
    matrices = map_tensors(lambda leaf: leaf.reshape(-1).repeat(2), params)
    patterned = gp.layerwise(matrices, pruning_method=gp.n_of_m, n=1, m=2)
    gp.check_n_of_m(patterned, n=1, m=2)
    return patterned


WHOLE = frozenset({"nested"}) | TRANSFORMS  # what goes are channels, and blocks

PATTERNS = [
    Row(
        "input_dims",
        gp.input_dims,
        half_of_the_inputs,
        TRANSFORMS | {"nested"},
        amounts=lambda candidates: st.floats(0, 1),
    ),
    Row(
        "ln_structured",
        gp.ln_structured,
        each_matrix(gp.ln_structured, n=2, dim=-1),
        WHOLE,
        amounts=lambda candidates: st.floats(0, 1),
        inductor=True,
    ),
    Row(
        "ln_structured, nuclear",
        gp.ln_structured,
        lambda params, scores, masks, amount: gp.ln_structured(
            torch.arange(24.0).reshape(2, 3, 4).sin(), n="nuc", dim=1, amount=amount
        ),
        TRANSFORMS - {"meta"},  # it is given a tensor with values
        amounts=lambda candidates: st.floats(0, 1),
    ),
    Row(
        "layerwise, channels",
        gp.layerwise,
        channels_of_layers,
        WHOLE,
        amounts=lambda candidates: st.floats(0, 1),
    ),
    Row(
        "random_structured",
        gp.random_structured,
        each_matrix(gp.random_structured, dim=0, seed=SEED),
        WHOLE,
        amounts=lambda candidates: st.floats(0, 1),
    ),
    Row("n_of_m", gp.n_of_m, each_matrix(two_of_four), inductor=True),
    Row(
        "blocks",
        gp.blocks,
        each_matrix(gp.blocks, shape=(3, 2)),
        WHOLE,
        amounts=lambda candidates: st.floats(0, 1),
        inductor=True,
    ),
    Row("check_n_of_m", gp.check_n_of_m, checked, NOTHING),  # it reads values to check them
]

COMBINATORS = [
    Row(
        "global_unstructured",
        gp.global_unstructured,
        lift(gp.global_unstructured),
        SELECTION_AND_TRANSFORMS,
        inductor=True,
    ),
    Row(
        "global_unstructured without scores",
        gp.global_unstructured,
        lambda params, scores, masks, amount: lift(gp.global_unstructured)(
            params, None, masks, amount
        ),
        SELECTION_AND_TRANSFORMS,
        ranked_by=lambda params, scores: gp.scores.magnitude(params),
    ),
    Row(
        "global_unstructured to a sparsity",
        gp.global_unstructured,
        prune_to,
        SELECTION_AND_TRANSFORMS,
        k=lambda params, masks, amount: reference.count(params, masks, sparsity=amount),
        amounts=lambda candidates: fractions(),
    ),
    Row(
        "global_unstructured, l1",
        gp.global_unstructured,
        lift(gp.global_unstructured, gp.l1_unstructured),
        SELECTION_AND_TRANSFORMS,
        ranked_by=by_magnitude,
    ),
    Row(
        "global_unstructured, partial",
        gp.global_unstructured,
        partial,
        SELECTION_AND_TRANSFORMS,
        ranked_by=by_magnitude,
    ),
    Row(
        "global_unstructured, random",
        gp.global_unstructured,
        lift(gp.global_unstructured, gp.random_unstructured, seed=SEED),
        SELECTION_AND_TRANSFORMS - {"equivariant"},
        ranked_by=by_draws,
        inductor=True,
    ),
    Row(
        "global_unstructured, some of each leaf",
        gp.global_unstructured,
        above_floors,
        SELECTION - {"mask"} | {"compiles", "vmaps"},  # its order is in test_min_per_leaf.py
        inductor=True,
    ),
    Row(
        "global_unstructured, identity",
        gp.global_unstructured,
        prune_nothing,
        TRANSFORMS | {"mask"},
        k=lambda *_: 0,
    ),
    Row(
        "layerwise",
        gp.layerwise,
        lift(gp.layerwise),
        SELECTION_AND_TRANSFORMS,
        separately=True,
        inductor=True,
    ),
    Row(
        "layerwise with a tree of amounts",
        gp.layerwise,
        layerwise_with_a_tree,
        SELECTION_AND_TRANSFORMS,
        separately=True,
    ),
    Row(
        "layerwise, a user's method",
        gp.layerwise,
        lift(gp.layerwise, each_by_sorting),
        SELECTION_AND_TRANSFORMS,
        ranked_by=own,
        separately=True,
    ),
    Row(
        "find_threshold",
        gp.find_threshold,
        lambda params, scores, masks, amount: gp.find_threshold(
            params, scores, masks=masks, amount=amount
        ),
        inductor=True,
    ),
    Row(
        "masks_from_threshold",
        gp.masks_from_threshold,
        lambda params, scores, masks, amount: gp.masks_from_threshold(
            gp.find_threshold(params, scores, masks=masks, amount=amount),
            params,
            scores,
            masks=masks,
        ),
        SELECTION_AND_TRANSFORMS,
    ),
    Row(
        "Threshold",
        gp.Threshold,
        lambda params, scores, masks, amount: gp.masks_from_threshold(
            threshold_at(amount), params, scores, masks=masks
        ),
    ),
    Row(
        "num_to_prune",
        gp.num_to_prune,
        lambda params, scores, masks, amount: gp.num_to_prune(amount, 100),
        amounts=lambda candidates: amounts(100),
    ),
]

MASKS = [
    Row("keep_all", gp.keep_all, lambda params, *_: gp.keep_all(params)),
    Row("masks_from_zeros", gp.masks_from_zeros, lambda params, *_: gp.masks_from_zeros(params)),
    Row(
        "apply_masks",
        gp.apply_masks,
        lambda params, scores, masks, amount: gp.apply_masks(params, kept(params, masks)),
        inductor=True,
    ),
    Row(
        "straight_through",
        gp.straight_through,
        lambda params, scores, masks, amount: gp.straight_through(params, kept(params, masks)),
        inductor=True,
    ),
    Row(
        "straight_through, decay",
        gp.straight_through,
        lambda params, scores, masks, amount: gp.straight_through(
            params, kept(params, masks), decay=number(amount)
        ),
        inductor=True,
    ),
    Row(
        "straight_through, gradients with decay",
        gp.straight_through,
        lambda params, scores, masks, amount: torch.func.grad(
            lambda weights: cubes(
                gp.straight_through(weights, leaves(kept(params, masks)), decay=number(amount))
            )
        )(leaves(params)),
        dtypes=(torch.float32, torch.float64),
        inductor=True,
        atol=1e-5,
        finite=True,
    ),
    Row(
        "num_pruned",
        gp.num_pruned,
        lambda params, scores, masks, amount: gp.num_pruned(kept(params, masks)),
        inductor=True,
    ),
    Row(
        "sparsity",
        gp.sparsity,
        lambda params, scores, masks, amount: gp.sparsity(kept(params, masks)),
        inductor=True,
        atol=1e-15,
    ),
    Row(
        "summary",
        gp.summary,
        lambda params, scores, masks, amount: str(gp.summary(params, kept(params, masks))),
        NOTHING,  # it reads values to print them
    ),
    Row(
        "intersect",
        gp.intersect,
        lambda params, scores, masks, amount: gp.intersect(
            kept(params, masks), gp.keep_all(params)
        ),
        inductor=True,
    ),
    Row(
        "pack_masks",
        gp.pack_masks,
        lambda params, scores, masks, amount: gp.pack_masks(kept(params, masks)),
        inductor=True,
    ),
    Row(
        "unpack_masks",
        gp.unpack_masks,
        lambda params, scores, masks, amount: gp.unpack_masks(
            gp.pack_masks(kept(params, masks)), params
        ),
        TRANSFORMS | {"mask"},
        k=lambda *_: 0,  # what comes back is the prior mask
        inductor=True,
    ),
    Row(
        "agreement",
        gp.agreement,
        lambda params, scores, masks, amount: tuple(
            gp.agreement(kept(params, masks), gp.keep_all(params))
        ),
        inductor=True,
        atol=1e-15,
    ),
]


def scored(score: Callable[..., Any], call: Callable[[Any, Any], Any]) -> Row:
    """A score that computes in floating point, and takes nothing but finite numbers."""
    return Row(
        score.__name__,
        score,
        lambda params, scores, masks, amount: call(params, scores),
        dtypes=(torch.float32, torch.float64, torch.bfloat16, torch.float16),
        inductor=score in (gp.scores.snip, gp.scores.fisher, gp.scores.lamp),
        atol=1e-5,
        finite=True,
    )


SCORES = [
    Row(
        "magnitude",
        gp.scores.magnitude,
        lambda params, *_: gp.scores.magnitude(params),
        inductor=True,
    ),
    Row(
        "random",
        gp.scores.random,
        lambda params, scores, masks, amount: gp.scores.random(
            params, seed=(number(amount) * 100).to(torch.int64)
        ),
    ),
    scored(gp.scores.taylor, lambda params, scores: gp.scores.taylor(params, own(params, scores))),
    scored(gp.scores.snip, lambda params, scores: gp.scores.snip(cubes, params)),
    scored(gp.scores.grasp, lambda params, scores: gp.scores.grasp(cubes, params)),
    scored(gp.scores.synflow, lambda params, scores: gp.scores.synflow(flow, params, (1, 2))),
    scored(
        gp.scores.fisher,
        lambda params, scores: gp.scores.fisher(cubes, params, examples(params), chunk_size=2),
    ),
    scored(
        gp.scores.hessian_diagonal,
        lambda params, scores: gp.scores.hessian_diagonal(cubes, params, seed=SEED, num_probes=2),
    ),
    scored(gp.scores.obd, lambda params, scores: gp.scores.obd(params, own(params, scores))),
    scored(
        gp.scores.movement,
        lambda params, scores: gp.scores.movement(own(params, scores), params, params),
    ),
    scored(
        gp.scores.wanda,
        lambda params, scores: gp.scores.wanda(params, by_magnitude(params, scores)),
    ),
    scored(
        gp.scores.ria,
        lambda params, scores: gp.scores.ria(
            *(rows_of(tree) for tree in (params, by_magnitude(params, scores)))
        ),
    ),
    scored(
        gp.scores.normalize_l2,
        lambda params, scores: gp.scores.normalize_l2(by_magnitude(params, scores)),
    ),
    scored(gp.scores.lamp, lambda params, scores: gp.scores.lamp(params)),
    scored(gp.scores.accumulate, mean),
    scored(gp.scores.input_norms, norms),
    scored(gp.scores.input_gram, grams),
    scored(
        gp.scores.iterative_synflow,
        lambda params, scores: gp.scores.iterative_synflow(
            flow, params, (1, 2), sparsity=0.5, masks=gp.keep_all(params), rounds=3
        ),
    ),
]

RECONSTRUCT = [
    scored(
        gp.reconstruct.refit,
        lambda params, scores: rebuilt(
            gp.reconstruct.refit, params, gp.layerwise(params, scores, amount=0.5)
        ),
    ),
    scored(
        gp.reconstruct.swap,
        lambda params, scores: rebuilt(
            gp.reconstruct.swap, params, gp.layerwise(params, scores, amount=0.5), rounds=2
        ),
    ),
    Row(
        "sparsegpt",
        gp.reconstruct.sparsegpt,
        lambda params, scores, masks, amount: rebuilt(
            gp.reconstruct.sparsegpt, params, amount=0.5, block_size=2
        ),
        dtypes=(torch.float32, torch.float64, torch.bfloat16, torch.float16),
        atol=1e-5,
        finite=True,
    ),
    Row(
        "sequential",
        gp.reconstruct.sequential,
        lambda params, scores, masks, amount: gp.reconstruct.sequential(
            [lambda tree, x: x * 2],
            [params],
            [1.0],
            lambda block, tree, inputs: (tree, gp.layerwise(tree, scores, amount=0.5)),
        ),
    ),
]

SCHEDULES = [
    Row("constant", gp.schedules.constant, at_step(gp.schedules.constant(0.5))),
    Row("one_shot", gp.schedules.one_shot, at_step(gp.schedules.one_shot(0.5, step=20))),
    Row("linear", gp.schedules.linear, at_step(gp.schedules.linear(0.9, begin=5, end=40))),
    Row(
        "polynomial",
        gp.schedules.polynomial,
        at_step(gp.schedules.polynomial(0.9, begin=5, end=40, initial=0.1)),
        inductor=True,
        atol=1e-15,
    ),
    Row(
        "exponential",
        gp.schedules.exponential,
        at_step(gp.schedules.exponential(0.9, begin=5, end=40, initial=0.1)),
        inductor=True,
        atol=1e-15,
    ),
    Row(
        "cosine",
        gp.schedules.cosine,
        at_step(gp.schedules.cosine(0.0, begin=5, end=40, initial=0.3)),
        inductor=True,
        atol=1e-15,
    ),
    Row(
        "every",
        gp.schedules.every,
        lambda params, scores, masks, amount: gp.schedules.every(
            (number(amount) * 60).round(), begin=5, end=40, freq=7
        ),
        inductor=True,
    ),
]


def layerwise_by(allocate: Callable[..., Any]) -> Call:
    return lambda params, scores, masks, amount: gp.layerwise(
        params, scores, masks=masks, sparsity=allocate(params, sparsity=amount)
    )


def by_outliers(params: Any, scores: Any, sparsity: Any) -> Any:
    """A group for each last letter of a path."""
    return gp.allocation.owl(
        params,
        by_magnitude(params, scores),
        sparsity=sparsity,
        group=lambda path: path[-1:],
        outlier=1,
    )


ALLOCATION = [
    Row(
        "uniform",
        gp.allocation.uniform,
        lambda params, scores, masks, amount: gp.allocation.uniform(params, sparsity=amount),
        amounts=lambda candidates: fractions(),
    ),
    Row(
        "erdos_renyi",
        gp.allocation.erdos_renyi,
        lambda params, scores, masks, amount: gp.allocation.erdos_renyi(params, sparsity=amount),
        amounts=lambda candidates: fractions(),
        inductor=True,
    ),
    Row(
        "owl",
        gp.allocation.owl,
        lambda params, scores, masks, amount: by_outliers(params, scores, amount),
        amounts=lambda candidates: fractions(),
        dtypes=FLOATING,
        inductor=True,
        finite=True,
    ),
    Row(
        "layerwise, owl",
        gp.layerwise,
        lambda params, scores, masks, amount: gp.layerwise(
            params, scores, masks=masks, sparsity=by_outliers(params, scores, amount)
        ),
        WHOLE - {"meta"},  # a sparsity must have a value
        amounts=lambda candidates: fractions(),
        dtypes=FLOATING,
        finite=True,
    ),
    Row(
        "layerwise, uniform",
        gp.layerwise,
        layerwise_by(gp.allocation.uniform),
        WHOLE,
        amounts=lambda candidates: fractions(),
        inductor=True,
    ),
]

# --- pruners ----------------------------------------------------------------------------------


def always(step: torch.Tensor) -> torch.Tensor:
    return step >= 0


def one_update(build: Callable[[torch.Tensor], gp.pruners.Pruner]) -> Call:
    """Of all leaves, with the prior masks in the state; the parameters are the gradients too."""

    def call(params: Any, scores: Any, masks: Any, amount: Any) -> Any:
        pruner = build(number(amount))
        state = pruner.init(params)
        state = state if masks is None else state._replace(masks=masks)
        params, state = pruner.update(params, state, params, scores)
        return params, tuple(state)

    return call


EXCHANGED: dict[str, Any] = {"due": always, "seed": SEED, "where": "*"}

PRUNERS = [
    Row(
        "gradual",
        gp.pruners.gradual,
        one_update(lambda s: gp.pruners.gradual(lambda step: s + 0 * step, due=always, where="*")),
        amounts=lambda candidates: fractions(),
        inductor=True,
    ),
    Row(
        "gradual, Erdős-Rényi",
        gp.pruners.gradual,
        one_update(
            lambda s: gp.pruners.gradual(
                lambda step: s,
                due=always,
                where="*",
                allocation=gp.allocation.erdos_renyi,
                prune=gp.layerwise,
            )
        ),
        amounts=lambda candidates: fractions(),
    ),
    Row(
        "iterative",
        gp.pruners.iterative,
        one_update(lambda s: gp.pruners.iterative(s, due=always, rewind_to=1, where="*")),
        amounts=lambda candidates: fractions(),
        inductor=True,
    ),
    Row(
        "static_sparse",
        gp.pruners.static_sparse,
        one_update(lambda s: gp.pruners.static_sparse(s, seed=SEED, where="*")),
        amounts=lambda candidates: fractions(),
        may_return_inputs=True,  # the masks of its state
    ),
    Row(
        "sparse_evolution",
        gp.pruners.sparse_evolution,
        one_update(lambda s: gp.pruners.sparse_evolution(s, fraction=lambda step: s, **EXCHANGED)),
        TRANSFORMS - {"meta"},  # how many are exchanged depends on the masks
        amounts=lambda candidates: fractions(),
        inductor=True,
    ),
    Row(
        "rigl",
        gp.pruners.rigl,
        one_update(lambda s: gp.pruners.rigl(s, fraction=lambda step: s, **EXCHANGED)),
        TRANSFORMS - {"meta"},
        amounts=lambda candidates: fractions(),
        dtypes=FLOATING,  # of gradients
        inductor=True,
    ),
    Row(
        "Pruner",
        gp.pruners.Pruner,
        one_update(lambda s: gp.pruners.Pruner(*gp.pruners.static_sparse(s, seed=SEED, where="*"))),
        amounts=lambda candidates: fractions(),
        may_return_inputs=True,
    ),
]

ROWS = [
    *TREES,
    *METHODS,
    *PATTERNS,
    *COMBINATORS,
    *MASKS,
    *SCORES,
    *RECONSTRUCT,
    *SCHEDULES,
    *ALLOCATION,
    *PRUNERS,
]
