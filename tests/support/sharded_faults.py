"""Calls on DTensors in which one rank is wrong: which call, what is wrong, on which rank.

`CALLS` has the calls, as functions of their arguments. `WRONG` has what may be wrong with the
arguments. `FAULTS` has the rows: a call, what is wrong, the wrong rank, and the error.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch.distributed.tensor import Shard

import gprune as gp
from tests.support.sharded_cases import mesh_of, place

HALF = gp.schedules.constant(0.5)


def always(step: torch.Tensor) -> bool:
    return True


def as_it_is(params: Any, *, sparsity: Any) -> Any:
    return sparsity


def loss_of(params: Any) -> torch.Tensor:
    return params["a"].square().sum()


def fail(*args: Any, **kwargs: Any) -> Any:
    raise RuntimeError("this rank fails")


class Given(NamedTuple):
    """The arguments of a call. Each call uses some of them."""

    params: Any
    grads: Any
    masks: Any
    state_masks: Any
    scores: Any = None
    amount: Any = 3
    threshold: Any = gp.Threshold(1.0, 3)
    seed: Any = 0
    where: Any = None
    due: Any = always
    schedule: Any = HALF
    score_fn: Any = gp.pruners.pruner.by_magnitude
    allocation: Any = as_it_is
    prune: Any = gp.global_unstructured
    loss: Any = loss_of
    keywords: Any = {}  # noqa: RUF012  a field of a named tuple is not shared by mistake


def leaf(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    whole = torch.arange(1.0, 1 + torch.Size(shape).numel()).view(shape).to(dtype)
    return place(whole, mesh_of((2,)), (Shard(0),))


def right() -> Given:
    """Give arguments with which no call fails: of two DTensors and a plain tensor."""
    params = {"a": leaf(6, 2), "b": leaf(5, 2), "c": torch.arange(1.0, 5.0).view(2, 2)}
    grads = {name: 0.5 * x for name, x in params.items()}
    return Given(params, grads, gp.keep_all(params), gp.keep_all(params))


# --- the calls ------------------------------------------------------------------------------------

DUE = ("gradual", "iterative", "sparse_evolution", "rigl")

PRUNERS: dict[str, Callable[[Given], gp.pruners.Pruner]] = {
    "gradual": lambda g: gp.pruners.gradual(
        g.schedule,
        due=g.due,
        where=g.where,
        score_fn=g.score_fn,
        allocation=g.allocation,
        prune=g.prune,
    ),
    "iterative": lambda g: gp.pruners.iterative(
        0.5, due=g.due, where=g.where, score_fn=g.score_fn, prune=g.prune
    ),
    "sparse_evolution": lambda g: gp.pruners.sparse_evolution(
        0.5,
        fraction=g.schedule,
        due=g.due,
        where=g.where,
        score_fn=g.score_fn,
        seed=g.seed,
        allocation=g.allocation,
    ),
    "rigl": lambda g: gp.pruners.rigl(
        0.5,
        fraction=g.schedule,
        due=g.due,
        where=g.where,
        score_fn=g.score_fn,
        seed=g.seed,
        allocation=g.allocation,
    ),
    "static_sparse": lambda g: gp.pruners.static_sparse(
        0.5, where=g.where, seed=g.seed, allocation=g.allocation
    ),
}


def init(build: Callable[[Given], gp.pruners.Pruner]) -> Callable[[Given], Any]:
    return lambda g: build(g).init(g.params)


def update(build: Callable[[Given], gp.pruners.Pruner]) -> Callable[[Given], Any]:
    """Make the call of a pruner's `update` with the state that all ranks have agreed on."""

    def call(g: Given) -> Any:
        state = build(right()).init(right().params)._replace(masks=g.state_masks)
        return build(g).update(g.params, state, g.grads, g.scores)

    return call


def not_due(build: Callable[[Given], gp.pruners.Pruner]) -> Callable[[Given], Any]:
    return lambda g: update(build)(g._replace(due=lambda step: False))


SENDING: dict[str, Callable[[Given], Any]] = {
    "global_unstructured": lambda g: gp.global_unstructured(
        g.params, g.scores, masks=g.masks, amount=g.amount, **g.keywords
    ),
    "layerwise": lambda g: gp.layerwise(
        g.params, g.scores, masks=g.masks, amount=g.amount, **g.keywords
    ),
    "find_threshold": lambda g: gp.find_threshold(
        g.params, g.scores, masks=g.masks, amount=g.amount
    ),
    "masks_from_threshold": lambda g: gp.masks_from_threshold(
        g.threshold, g.params, g.scores, masks=g.masks
    ),
    "lowest_unstructured": lambda g: gp.lowest_unstructured(
        g.params["a"], g.scores, mask=g.masks["a"], amount=g.amount, **g.keywords
    ),
    "l1_unstructured": lambda g: gp.l1_unstructured(
        g.params["a"], g.scores, mask=g.masks["a"], amount=g.amount, **g.keywords
    ),
    "random_unstructured": lambda g: gp.random_unstructured(
        g.params["a"], mask=g.masks["a"], amount=g.amount, seed=g.seed
    ),
    "identity": lambda g: gp.identity(g.params["a"], g.scores, mask=g.masks["a"], **g.keywords),
    "num_pruned": lambda g: gp.num_pruned(g.masks),
    "sparsity": lambda g: gp.sparsity(g.masks),
    "summary": lambda g: gp.summary(g.params, g.masks),
    "agreement": lambda g: gp.agreement(g.masks, right().masks),
    "check_n_of_m": lambda g: gp.check_n_of_m(g.masks, n=g.amount, m=3),
    "taylor": lambda g: gp.scores.taylor(g.params, g.grads),
    "obd": lambda g: gp.scores.obd(g.params, g.grads),
    "movement": lambda g: gp.scores.movement(g.params, g.params, g.grads),
    "normalize_l2": lambda g: gp.scores.normalize_l2(g.params),
    "wanda": lambda g: gp.scores.wanda(g.params, g.grads),
    "ria": lambda g: gp.scores.ria(g.params, g.grads, **g.keywords),
    "owl": lambda g: gp.allocation.owl(
        g.params, g.grads, **{"sparsity": 0.5, "group": len, **g.keywords}
    ),
    "snip": lambda g: gp.scores.snip(g.loss, g.params),
    "fisher": lambda g: gp.scores.fisher(lambda p, x: g.loss(p), g.params, torch.ones(2)),
    "accumulate": lambda g: gp.scores.accumulate(lambda grads: grads, [right().grads, g.grads]),
    **{
        f"init of {name}": init(PRUNERS[name])
        for name in ("static_sparse", "sparse_evolution", "rigl")
    },
    **{f"update of {name}": update(PRUNERS[name]) for name in DUE},
}

SILENT: dict[str, Callable[[Given], Any]] = {
    **{f"init of {name}": init(PRUNERS[name]) for name in ("gradual", "iterative")},
    "update of static_sparse": update(PRUNERS["static_sparse"]),
    **{f"update of {name}, not due": not_due(PRUNERS[name]) for name in DUE},
    "keep_all": lambda g: gp.keep_all(g.params),
    "masks_from_zeros": lambda g: gp.masks_from_zeros(g.params),
    "apply_masks": lambda g: gp.apply_masks(g.params, g.masks),
    "straight_through": lambda g: gp.straight_through(g.params, g.masks),
    "straight_through, decay": lambda g: gp.straight_through(g.params, g.masks, decay=0.5),
    "intersect": lambda g: gp.intersect(g.masks, right().masks),
    "prunable": lambda g: gp.prunable(g.params, g.where),
    "magnitude": lambda g: gp.scores.magnitude(g.params),
    "random": lambda g: gp.scores.random(g.params, seed=g.seed),
    "erdos_renyi": lambda g: gp.allocation.erdos_renyi(g.params, sparsity=g.amount / 10),
}
"""Calls that send no messages, so that the other ranks cannot know of an error."""

# --- what is wrong --------------------------------------------------------------------------------


def changed(field: str, **leaves: Any) -> Callable[[Given], Given]:
    """Replace leaves of a tree; a function makes the leaf, because a leaf needs the mesh."""

    def change(g: Given) -> Given:
        made = {name: make() for name, make in leaves.items()}
        return g._replace(**{field: {**getattr(g, field), **made}})

    return change


def without_b(field: str) -> Callable[[Given], Given]:
    return lambda g: g._replace(
        **{field: {name: x for name, x in getattr(g, field).items() if name != "b"}}
    )


def renamed_b(field: str) -> Callable[[Given], Given]:
    return lambda g: g._replace(
        **{field: {"z" if name == "b" else name: x for name, x in getattr(g, field).items()}}
    )


def given(**values: Any) -> Callable[[Given], Given]:
    return lambda g: g._replace(**values)


WRONG: dict[str, Callable[[Given], Given]] = {
    "params: text": changed("params", c=lambda: "text"),
    "params: float64": changed("params", b=lambda: leaf(5, 2, dtype=torch.float64)),
    "params: int64": changed("params", b=lambda: leaf(5, 2, dtype=torch.int64)),
    "params: a complex leaf": changed("params", b=lambda: leaf(5, 2, dtype=torch.complex64)),
    "params: another shape": changed("params", b=lambda: leaf(7, 2)),
    "params: a plain leaf": changed("params", b=lambda: torch.ones(5, 2)),
    "params: a leaf is missing": without_b("params"),
    "params: another path": renamed_b("params"),
    "params: a module": lambda g: g._replace(params=[torch.nn.Linear(2, 2), g.params["a"]]),
    "grads: float64": changed("grads", b=lambda: leaf(5, 2, dtype=torch.float64)),
    "grads: int64": changed("grads", b=lambda: leaf(5, 2, dtype=torch.int64)),
    "grads: another shape": changed("grads", b=lambda: leaf(7, 2)),
    "grads: a leaf is missing": without_b("grads"),
    "grads: a leaf is None": changed("grads", b=lambda: None),
    "grads: None": given(grads=None),
    "grads: NaN in a plain leaf": changed("grads", c=lambda: torch.full((2, 2), torch.nan)),
    "grads: infinity in a shard": changed("grads", a=lambda: leaf(6, 2) / 0),
    "masks: float32": changed("masks", b=lambda: leaf(5, 2)),
    "masks: a leaf is missing": without_b("masks"),
    "masks: another path": renamed_b("masks"),
    "masks: a leaf is None": changed("masks", b=lambda: None),
    "masks: a plain leaf": changed("masks", b=lambda: torch.ones(5, 2) > 0),
    "masks: a mask of numbers": changed("masks", a=lambda: leaf(6, 2)),
    "state: a mask of numbers": changed("state_masks", b=lambda: leaf(5, 2)),
    "state: a mask is missing": without_b("state_masks"),
    "state: a mask is None": changed("state_masks", b=lambda: None),
    "scores: text": given(scores="text"),
    "scores: another shape": lambda g: g._replace(scores={**g.params, "b": leaf(7, 2)}),
    "scores: only here": lambda g: g._replace(scores=g.params),
    "amount: text": given(amount="many"),
    "amount: too large": given(amount=10**6),
    "amount: negative": given(amount=-1),
    "amount: another": given(amount=2),
    "threshold: a number": given(threshold=1.0),
    "threshold: another": given(threshold=gp.Threshold(2.0, 3)),
    "seed: a float": given(seed=1.5),
    "seed: another": given(seed=1),
    "where: raises": given(where=fail),
    "where: another": given(where="a"),
    "due: raises": given(due=fail),
    "due: an int": given(due=lambda step: step % 5),
    "schedule: raises": given(schedule=fail),
    "schedule: another": given(schedule=gp.schedules.constant(0.25)),
    "fraction: 1.5": given(schedule=lambda step: 1.5),
    "schedule: text": given(schedule=lambda step: "half"),
    "score_fn: raises": given(score_fn=fail),
    "score_fn: another tree": given(score_fn=lambda params, grads: {"a": params["a"]}),
    "score_fn: only here": given(score_fn=lambda params, grads: params),
    "allocation: raises": given(allocation=fail),
    "prune: raises": given(prune=fail),
    "prune: another": given(prune=gp.layerwise),
    "loss: raises": given(loss=fail),
    "loss: an integer": given(loss=lambda params: torch.tensor(1)),
    "keywords: unknown": given(keywords={"temperature": 1}),
    "keywords: another method": given(keywords={"pruning_method": gp.l1_unstructured}),
    "keywords: another dim": given(keywords={"dim": 0}),
    "keywords: another power": given(keywords={"power": 1}),
    "keywords: no such dim": given(keywords={"dim": 2}),
    "keywords: another group": given(keywords={"group": lambda path: path}),
    "keywords: another outlier": given(keywords={"outlier": 4.0}),
    "keywords: a group raises": given(keywords={"group": fail}),
    "keywords: no method": given(keywords={"pruning_method": max}),
}


class Fault(NamedTuple):
    """A row of the table.

    Attributes:
        call: a key of `SENDING` or `SILENT`.
        wrong: a key of `WRONG`.
        rank: the wrong rank.
        error: the class of the error.
        text: a part of its text.
    """

    call: str
    wrong: str
    rank: int
    error: str
    text: str


PATHS = "the function or the paths of the leaves"
TENSORS = "the shapes, dtypes or placements of the tensors"
ARGUMENTS = "the amounts, seeds or other arguments"

FAULTS = [
    Fault("global_unstructured", "params: text", 0, "TypeError", "params['c'] must be a tensor or"),
    Fault("global_unstructured", "params: float64", 1, "ValueError", TENSORS),
    Fault("global_unstructured", "params: int64", 0, "ValueError", TENSORS),
    Fault("global_unstructured", "params: a complex leaf", 1, "TypeError", "params['b'] has dtype"),
    Fault("global_unstructured", "params: another shape", 0, "ValueError", "masks['b'] has shape"),
    Fault("global_unstructured", "params: a plain leaf", 1, "ValueError", "masks['b'] is placed"),
    Fault("global_unstructured", "params: a leaf is missing", 0, "ValueError", "masks must have"),
    Fault("global_unstructured", "params: another path", 1, "ValueError", "masks must have the"),
    Fault("global_unstructured", "params: a module", 0, "TypeError", "params must be a tree of"),
    Fault("global_unstructured", "masks: float32", 1, "TypeError", "masks['b'] has dtype"),
    Fault("global_unstructured", "masks: a leaf is missing", 0, "ValueError", "masks must have"),
    Fault("global_unstructured", "masks: another path", 1, "ValueError", "masks must have the"),
    Fault("layerwise", "masks: a leaf is None", 1, "ValueError", PATHS),
    Fault("layerwise", "masks: a plain leaf", 0, "ValueError", "masks['b'] is placed as None, its"),
    Fault("layerwise", "scores: text", 1, "TypeError", "scores must be tensors like params"),
    Fault("find_threshold", "scores: another shape", 1, "ValueError", "scores['b'] has shape (7,"),
    Fault("find_threshold", "scores: only here", 0, "ValueError", ARGUMENTS),
    Fault("find_threshold", "amount: text", 1, "TypeError", "amount must be an int or a float,"),
    Fault("masks_from_threshold", "threshold: a number", 0, "TypeError", "threshold must be a"),
    Fault("masks_from_threshold", "threshold: another", 1, "ValueError", ARGUMENTS),
    Fault("masks_from_threshold", "params: text", 1, "TypeError", "params['c'] must be a tensor"),
    Fault("lowest_unstructured", "masks: a mask of numbers", 0, "TypeError", "mask has dtype"),
    Fault("lowest_unstructured", "amount: too large", 0, "ValueError", ARGUMENTS),
    Fault("lowest_unstructured", "amount: negative", 1, "ValueError", ARGUMENTS),
    Fault("l1_unstructured", "amount: another", 1, "ValueError", ARGUMENTS),
    Fault("l1_unstructured", "keywords: unknown", 1, "TypeError", "l1_unstructured() got an"),
    Fault("l1_unstructured", "keywords: another method", 0, "TypeError", "l1_unstructured() got"),
    Fault("random_unstructured", "seed: a float", 1, "TypeError", "seed must be an int or a 0-dim"),
    Fault("random_unstructured", "seed: another", 0, "ValueError", ARGUMENTS),
    Fault("random_unstructured", "masks: a mask of numbers", 0, "TypeError", "mask has dtype"),
    Fault("identity", "keywords: no method", 1, "TypeError", "identity() got an unexpected"),
    Fault("identity", "scores: text", 1, "TypeError", "scores must be tensors like param, got"),
    Fault("identity", "scores: another shape", 0, "TypeError", "scores must be a tensor, got dict"),
    Fault("num_pruned", "masks: float32", 1, "TypeError", "masks['b'] has dtype"),
    Fault("num_pruned", "masks: a leaf is missing", 0, "ValueError", PATHS),
    Fault("num_pruned", "masks: another path", 1, "ValueError", PATHS),
    Fault("sparsity", "masks: a leaf is None", 1, "ValueError", PATHS),
    Fault("sparsity", "masks: a plain leaf", 0, "ValueError", TENSORS),
    Fault("sparsity", "masks: float32", 0, "TypeError", "masks['b'] has dtype"),
    Fault("summary", "params: another shape", 0, "ValueError", "masks['b'] has shape (5, 2), its"),
    Fault("summary", "params: a plain leaf", 1, "ValueError", "masks['b'] is placed as"),
    Fault("summary", "params: a leaf is missing", 0, "ValueError", "masks must have the structure"),
    Fault("agreement", "masks: a leaf is missing", 1, "ValueError", "others must have the"),
    Fault("agreement", "masks: another path", 0, "ValueError", "others must have the structure of"),
    Fault("agreement", "masks: a leaf is None", 1, "ValueError", "others['b'] is a tensor,"),
    Fault("check_n_of_m", "amount: text", 1, "TypeError", "n must be an int, got 'many'"),
    Fault("check_n_of_m", "amount: too large", 0, "ValueError", "n must be from 0 to m and m"),
    Fault("check_n_of_m", "amount: negative", 1, "ValueError", "n must be from 0 to m and m above"),
    Fault("taylor", "grads: float64", 0, "ValueError", TENSORS),
    Fault("taylor", "grads: int64", 1, "TypeError", "grads['b'] has dtype torch.int64:"),
    Fault("taylor", "grads: another shape", 0, "ValueError", "grads['b'] has shape (7, 2), its"),
    Fault("obd", "grads: a leaf is missing", 0, "ValueError", "diagonal must have the structure"),
    Fault("obd", "grads: a leaf is None", 1, "ValueError", "diagonal['b'] is None, its"),
    Fault("obd", "grads: None", 0, "ValueError", "diagonal must have the structure"),
    Fault("movement", "grads: NaN in a plain leaf", 0, "ValueError", "grads['c'] contains NaN or"),
    Fault("movement", "grads: infinity in a shard", 1, "ValueError", "grads['a'] contains NaN or"),
    Fault("movement", "params: float64", 0, "ValueError", TENSORS),
    Fault("normalize_l2", "params: int64", 0, "TypeError", "scores['b'] has dtype"),
    Fault("normalize_l2", "params: a complex leaf", 1, "TypeError", "scores['b'] has dtype"),
    Fault("normalize_l2", "params: another path", 1, "ValueError", PATHS),
    Fault("wanda", "params: a module", 1, "TypeError", "params must be a tree of tensors,"),
    Fault("wanda", "grads: float64", 0, "ValueError", TENSORS),
    Fault("wanda", "grads: int64", 1, "TypeError", "input_norms['b'] has dtype"),
    Fault("ria", "params: a module", 1, "TypeError", "params must be a tree of tensors,"),
    Fault("ria", "grads: float64", 0, "ValueError", TENSORS),
    Fault("ria", "grads: a leaf is None", 1, "ValueError", "params['b']: input_norms has seen no"),
    Fault("ria", "keywords: another dim", 0, "ValueError", ARGUMENTS),
    Fault("ria", "keywords: another power", 1, "ValueError", ARGUMENTS),
    Fault("ria", "keywords: no such dim", 1, "ValueError", "params['a']: dim 2 is out of range"),
    Fault("owl", "params: a module", 0, "TypeError", "params must be a tree of tensors,"),
    Fault("owl", "grads: another shape", 1, "ValueError", "scores['b'] has shape (7, 2), its"),
    Fault("owl", "grads: int64", 0, "ValueError", TENSORS),
    Fault("owl", "grads: NaN in a plain leaf", 0, "ValueError", "scores['c']: these scores"),
    Fault("owl", "grads: infinity in a shard", 1, "ValueError", "scores['a']: these scores"),
    Fault("owl", "keywords: another group", 0, "ValueError", ARGUMENTS),
    Fault("owl", "keywords: another outlier", 1, "ValueError", ARGUMENTS),
    Fault("owl", "keywords: a group raises", 0, "RuntimeError", "this rank fails"),
    Fault("snip", "loss: raises", 0, "RuntimeError", "this rank fails"),
    Fault("snip", "loss: an integer", 1, "TypeError", "loss_fn must return floating"),
    Fault("snip", "params: text", 0, "TypeError", "params['c'] must be a tensor or"),
    Fault("fisher", "loss: raises", 1, "RuntimeError", "this rank fails"),
    Fault("fisher", "loss: an integer", 0, "TypeError", "loss_fn must return floating"),
    Fault("fisher", "params: float64", 0, "ValueError", TENSORS),
    Fault("accumulate", "grads: another shape", 1, "ValueError", "grads['b'] has shape (7, 2),"),
    Fault("accumulate", "grads: a leaf is missing", 0, "ValueError", "grads must have the"),
    Fault("accumulate", "grads: a leaf is None", 1, "ValueError", "grads['b'] is None in some"),
    Fault("init of static_sparse", "where: raises", 0, "RuntimeError", "this rank fails"),
    Fault("init of static_sparse", "where: another", 1, "ValueError", PATHS),
    Fault("init of static_sparse", "allocation: raises", 0, "RuntimeError", "this rank fails"),
    Fault("init of sparse_evolution", "seed: another", 0, "ValueError", ARGUMENTS),
    Fault("init of sparse_evolution", "where: raises", 1, "RuntimeError", "this rank fails"),
    Fault("init of sparse_evolution", "where: another", 0, "ValueError", PATHS),
    Fault("init of rigl", "allocation: raises", 0, "RuntimeError", "this rank fails"),
    Fault("init of rigl", "params: int64", 1, "ValueError", PATHS),
    Fault("init of rigl", "params: a complex leaf", 0, "ValueError", PATHS),
    Fault("update of gradual", "due: raises", 1, "RuntimeError", "this rank fails"),
    Fault("update of gradual", "score_fn: raises", 0, "RuntimeError", "this rank fails"),
    Fault("update of gradual", "allocation: raises", 1, "RuntimeError", "this rank fails"),
    Fault("update of gradual", "grads: None", 0, "ValueError", PATHS),
    Fault("update of gradual", "grads: a leaf is missing", 0, "ValueError", PATHS),
    Fault("update of gradual", "grads: int64", 0, "ValueError", TENSORS),
    Fault("update of gradual", "grads: float64", 1, "ValueError", TENSORS),
    Fault("update of gradual", "schedule: raises", 1, "RuntimeError", "this rank fails"),
    Fault("update of gradual", "prune: raises", 0, "RuntimeError", "this rank fails"),
    Fault("update of iterative", "due: raises", 0, "RuntimeError", "this rank fails"),
    Fault("update of iterative", "score_fn: raises", 1, "RuntimeError", "this rank fails"),
    Fault("update of iterative", "grads: None", 1, "ValueError", PATHS),
    Fault("update of iterative", "grads: a leaf is missing", 1, "ValueError", PATHS),
    Fault("update of iterative", "grads: int64", 1, "ValueError", TENSORS),
    Fault("update of iterative", "grads: float64", 0, "ValueError", TENSORS),
    Fault("update of iterative", "prune: raises", 1, "RuntimeError", "this rank fails"),
    Fault("update of iterative", "state: a mask is missing", 1, "ValueError", "state.masks must"),
    Fault("update of iterative", "state: a mask of numbers", 0, "TypeError", "masks['b'] has"),
    Fault("update of sparse_evolution", "due: raises", 1, "RuntimeError", "this rank fails"),
    Fault("update of sparse_evolution", "score_fn: raises", 0, "RuntimeError", "this rank fails"),
    Fault("update of sparse_evolution", "grads: None", 0, "ValueError", PATHS),
    Fault("update of sparse_evolution", "grads: a leaf is missing", 0, "ValueError", PATHS),
    Fault("update of sparse_evolution", "grads: int64", 0, "ValueError", TENSORS),
    Fault("update of sparse_evolution", "grads: float64", 1, "ValueError", TENSORS),
    Fault("update of sparse_evolution", "schedule: raises", 1, "RuntimeError", "this rank fails"),
    Fault("update of sparse_evolution", "state: a mask is missing", 0, "ValueError", "state.masks"),
    Fault("update of sparse_evolution", "state: a mask is None", 1, "ValueError", PATHS),
    Fault("update of rigl", "due: raises", 0, "RuntimeError", "this rank fails"),
    Fault("update of rigl", "score_fn: raises", 1, "RuntimeError", "this rank fails"),
    Fault("update of rigl", "grads: None", 1, "TypeError", "rigl grows by gradients:"),
    Fault("update of rigl", "grads: a leaf is missing", 1, "ValueError", "grads must have the"),
    Fault("update of rigl", "grads: int64", 1, "TypeError", "grads['b'] has dtype torch.int64,"),
    Fault("update of rigl", "grads: float64", 0, "ValueError", TENSORS),
    Fault("update of rigl", "schedule: raises", 0, "RuntimeError", "this rank fails"),
    Fault("update of rigl", "state: a mask is missing", 1, "ValueError", "state.masks must have"),
    Fault("update of rigl", "due: an int", 1, "TypeError", "due must give a 0-dim bool"),
    Fault("update of gradual", "score_fn: another tree", 1, "ValueError", "scores must have the"),
    Fault("update of gradual", "score_fn: only here", 0, "ValueError", ARGUMENTS),
    Fault("update of gradual", "prune: another", 1, "ValueError", ARGUMENTS),
    Fault("update of rigl", "schedule: another", 0, "ValueError", ARGUMENTS),
    Fault("update of sparse_evolution", "schedule: text", 1, "TypeError", "fraction(step) must be"),
    Fault("init of gradual", "where: raises", 1, "RuntimeError", "this rank fails"),
    Fault("init of iterative", "where: raises", 0, "RuntimeError", "this rank fails"),
    Fault("update of static_sparse", "state: a mask is missing", 0, "ValueError", "masks must"),
    Fault("update of static_sparse", "state: a mask of numbers", 1, "TypeError", "masks['b'] has"),
    Fault("update of static_sparse", "params: another shape", 0, "ValueError", "masks['b'] has"),
    Fault("update of gradual, not due", "state: a mask of numbers", 0, "TypeError", "masks['b']"),
    Fault("update of gradual, not due", "params: another shape", 1, "ValueError", "masks['b'] has"),
    Fault("update of gradual, not due", "params: a plain leaf", 0, "ValueError", "masks['b'] is"),
    Fault("update of iterative, not due", "params: a leaf is missing", 0, "ValueError", "masks"),
    Fault("update of iterative, not due", "params: another path", 1, "ValueError", "masks must"),
    Fault("update of iterative, not due", "state: a mask of numbers", 1, "TypeError", "masks['b']"),
    Fault("update of sparse_evolution, not due", "params: text", 1, "TypeError", "params['c']"),
    Fault("update of sparse_evolution, not due", "params: another shape", 1, "ValueError", "masks"),
    Fault("update of sparse_evolution, not due", "params: a plain leaf", 0, "ValueError", "masks"),
    Fault("update of rigl, not due", "grads: another shape", 1, "ValueError", "grads['b'] has"),
    Fault("update of rigl, not due", "grads: a leaf is None", 1, "TypeError", "grads['b'] must be"),
    Fault("update of rigl, not due", "params: a leaf is missing", 0, "ValueError", "state.masks"),
    Fault("keep_all", "params: a module", 1, "TypeError", "params must be a tree of tensors,"),
    Fault("keep_all", "params: text", 1, "TypeError", "params['c'] must be a tensor or"),
    Fault("masks_from_zeros", "params: a module", 0, "TypeError", "params must be a tree of"),
    Fault("masks_from_zeros", "params: text", 1, "TypeError", "params['c'] must be a tensor or"),
    Fault("update of rigl", "fraction: 1.5", 0, "ValueError", "fraction(step) must be from 0 to 1"),
    Fault("apply_masks", "masks: a plain leaf", 1, "ValueError", "masks['b'] is placed as None,"),
    Fault("apply_masks", "params: a module", 0, "TypeError", "params must be a tree of tensors,"),
    Fault("apply_masks", "masks: float32", 1, "TypeError", "masks['b'] has dtype"),
    Fault("straight_through", "masks: a leaf is missing", 1, "ValueError", "masks must have the"),
    Fault("straight_through", "masks: another path", 0, "ValueError", "masks must have the"),
    Fault("straight_through", "masks: a plain leaf", 0, "ValueError", "masks['b'] is placed as"),
    Fault("straight_through, decay", "masks: float32", 1, "TypeError", "masks['b'] has dtype"),
    Fault("intersect", "masks: a leaf is None", 0, "ValueError", "masks[1]['b'] is a tensor,"),
    Fault("intersect", "masks: float32", 1, "TypeError", "masks[0]['b'] has dtype"),
    Fault("intersect", "masks: a leaf is missing", 0, "ValueError", "masks[1] must have the"),
    Fault("prunable", "where: raises", 0, "RuntimeError", "this rank fails"),
    Fault("magnitude", "params: a module", 0, "TypeError", "params must be a tree of tensors,"),
    Fault("magnitude", "params: text", 0, "TypeError", "params['c'] must be a tensor or"),
    Fault("random", "seed: a float", 0, "TypeError", "seed must be an int or a 0-dim"),
    Fault("random", "params: a module", 1, "TypeError", "params must be a tree of tensors,"),
    Fault("random", "params: text", 1, "TypeError", "params['c'] must be a tensor or"),
    Fault("erdos_renyi", "amount: too large", 0, "ValueError", "sparsity must be at most 1, got"),
    Fault("erdos_renyi", "amount: negative", 1, "ValueError", "sparsity must not be negative,"),
    Fault("erdos_renyi", "params: a module", 0, "TypeError", "params must be a tree of tensors,"),
]
