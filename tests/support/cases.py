"""What the guarantees are tested on: parameters with scores, prior masks and how much to prune."""

from typing import Any, NamedTuple

import optree
import torch
from hypothesis import strategies as st

import gprune as gp
from gprune.testing import SCORE_DTYPES, param_trees, prior_masks, scores_for
from tests.support import reference

METHODS: list[dict[str, Any]] = [
    {"pruning_method": gp.lowest_unstructured},
    {"pruning_method": gp.l1_unstructured},
    {"pruning_method": gp.random_unstructured, "seed": 7},
]
"""The unstructured methods, as keyword arguments of a combinator."""


def map_tensors(function: Any, *trees: Any) -> Any:
    """Map over the leaves that are tensors in the first tree."""
    return optree.tree_map(
        lambda leaf, *rest: None if leaf is None else function(leaf, *rest),
        *trees,
        none_is_leaf=True,
    )


class Case(NamedTuple):
    params: Any
    scores: Any
    masks: Any
    budget: dict[str, Any]

    @property
    def k(self) -> int:
        """How many candidates the call must prune."""
        return reference.count(self.params, self.masks, **self.budget)

    def masks_for(self, prune: Any) -> Any:
        return prune(self.params, self.scores, masks=self.masks, **self.budget)


FLOAT_DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]


def amounts(candidates: int) -> st.SearchStrategy[Any]:
    """Ints in [0, candidates] and floats in [0, 1], also in 0-dim tensors of every dtype for them.

    Often 0, all candidates, and fractions halfway between two counts.
    """
    integers = [dtype for dtype in SCORE_DTYPES if not dtype.is_floating_point]
    wide_enough = [dtype for dtype in integers if torch.iinfo(dtype).max >= candidates]
    counts = st.integers(0, candidates)
    fractions = st.one_of(
        counts.map(lambda k: k / max(candidates, 1)),
        counts.map(lambda k: min((k + 0.5) / max(candidates, 1), 1.0)),
        st.floats(0.0, 1.0),
    )
    return st.one_of(
        counts,
        fractions,
        st.builds(torch.tensor, counts, dtype=st.sampled_from(wide_enough)),
        st.builds(torch.tensor, fractions, dtype=st.sampled_from(FLOAT_DTYPES)),
    )


def fractions() -> st.SearchStrategy[Any]:
    """A sparsity: a float in [0, 1], the ints 0 and 1, or a 0-dim tensor of these."""
    dtypes = st.sampled_from(FLOAT_DTYPES)
    floats = st.floats(0.0, 1.0) | st.integers(0, 16).map(lambda k: k / 16)
    return st.one_of(floats, st.sampled_from([0, 1]), st.builds(torch.tensor, floats, dtype=dtypes))


def budgets(candidates: int) -> st.SearchStrategy[dict[str, Any]]:
    """How much to prune; mostly neither nothing nor everything, where that is possible."""
    inside = amounts(candidates)
    if candidates > 1:
        inside = st.integers(1, candidates - 1)
    return st.one_of(
        st.fixed_dictionaries({"amount": inside}),
        st.fixed_dictionaries({"amount": amounts(candidates)}),
        st.fixed_dictionaries({"sparsity": fractions()}),
    )


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """A call of `global_unstructured`: scores or magnitudes, with or without prior masks."""
    params = draw(param_trees())
    scores = draw(st.none() | scores_for(params))
    masks = draw(st.none() | prior_masks(params))
    return Case(params, scores, masks, draw(budgets(reference.num_candidates(params, masks))))


@st.composite
def layerwise_cases(draw: st.DrawFn) -> tuple[Case, list[int | None]]:
    """A call of `layerwise`, one budget for all leaves or a tree of them, and each leaf's count."""
    params = draw(param_trees())
    scores = draw(st.none() | scores_for(params))
    masks = draw(st.none() | prior_masks(params))
    priors = [[p] if p is not None else None for p in reference.leaves(masks)]
    if masks is None:
        priors = [None for _ in reference.leaves(params)]
    places = [i for i, leaf in enumerate(reference.leaves(params)) if leaf is not None]
    leaves = [[leaf] for leaf in reference.leaves(params)]
    candidates = {i: reference.num_candidates(leaves[i], priors[i]) for i in places}
    name = draw(st.sampled_from(["amount", "sparsity"]))
    if draw(st.booleans()):
        one = draw(amounts(min(candidates.values())) if name == "amount" else fractions())
        each = dict.fromkeys(places, one)
        budget = {name: one}
    else:
        each = {
            i: draw(amounts(n) if name == "amount" else fractions()) for i, n in candidates.items()
        }
        numbers = [each.get(i) for i in range(len(leaves))]
        budget = {name: optree.tree_unflatten(reference.structure(params), numbers)}
    ks = [
        reference.count(leaves[i], priors[i], **{name: each[i]}) if i in each else None
        for i in range(len(leaves))
    ]
    return Case(params, scores, masks, budget), ks
