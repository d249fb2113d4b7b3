"""The law of purity: nothing that goes in is modified, nothing that comes out is shared with it."""

import random
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import optree
import pytest
import torch
from hypothesis import given

import gprune as gp
from tests import reference
from tests.assertions import assert_masks, fail_if
from tests.cases import Case, cases


class Snapshot(NamedTuple):
    """Everything about a tensor that a pure function leaves alone."""

    entries: str
    version: int
    pointer: int
    stride: tuple[int, ...]
    requires_grad: bool
    grad: str

    @classmethod
    def of(cls, tensor: torch.Tensor) -> "Snapshot":
        return cls(
            repr(reference.entries(tensor)),
            tensor._version,
            tensor.data_ptr(),
            tensor.stride(),
            tensor.requires_grad,
            "None" if tensor.grad is None else repr((id(tensor.grad), tensor.grad.tolist())),
        )


def global_state() -> tuple[Any, ...]:
    return (
        torch.get_rng_state().tolist(),
        random.getstate(),
        repr(np.random.get_state()),  # noqa: NPY002
        torch.get_default_dtype(),
        torch.get_num_threads(),
        torch.is_grad_enabled(),
        torch.are_deterministic_algorithms_enabled(),
    )


CALLS: dict[str, Callable[[Case], Any]] = {
    "prunable": lambda case: gp.prunable(case.params),
    "vmap_dims": lambda case: gp.vmap_dims(case.params),
    "lowest": lambda case: case.masks_for(gp.global_unstructured),
    "l1": lambda case: gp.global_unstructured(
        case.params,
        case.scores,
        masks=case.masks,
        pruning_method=gp.l1_unstructured,
        **case.budget,
    ),
    "random": lambda case: gp.global_unstructured(
        case.params,
        masks=case.masks,
        pruning_method=gp.random_unstructured,
        seed=torch.tensor(3),
        **case.budget,
    ),
    "identity": lambda case: gp.global_unstructured(
        case.params, masks=case.masks, pruning_method=gp.identity
    ),
    "layerwise": lambda case: gp.layerwise(case.params, case.scores, masks=case.masks, amount=0.5),
    "find_cut": lambda case: case.masks_for(gp.find_cut),
    "masks_at": lambda case: gp.masks_at(
        gp.Cut(torch.tensor(1.0, dtype=torch.float64), torch.tensor(2)),
        case.params,
        case.scores,
        masks=case.masks,
    ),
    "keep_all": lambda case: gp.keep_all(case.params),
    "apply_masks": lambda case: gp.apply_masks(case.params, priors(case)),
    "straight_through": lambda case: gp.straight_through(case.params, priors(case)),
    "num_pruned": lambda case: gp.num_pruned(priors(case)),
    "sparsity": lambda case: gp.sparsity(priors(case)),
    "summary": lambda case: str(gp.summary(case.params, priors(case))),
    "intersect": lambda case: gp.intersect(priors(case), priors(case)),
    "magnitude": lambda case: gp.scores.magnitude(case.params),
    "random scores": lambda case: gp.scores.random(case.params, seed=3),
}


def priors(case: Case) -> Any:
    return gp.keep_all(case.params) if case.masks is None else case.masks


def require_gradients(tree: Any) -> None:
    """The first floating leaf has a gradient already, the others only want one."""
    for i, leaf in enumerate(optree.tree_leaves(tree)):
        if leaf.is_floating_point():
            leaf.requires_grad_()
            leaf.grad = torch.ones_like(leaf) if i == 0 else None


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_purity(call: Callable[[Case], Any]) -> None:
    @given(cases())
    def check(case: Case) -> None:
        require_gradients(case.params)
        require_gradients(case.scores)
        budget = list(case.budget.values())
        inputs = optree.tree_leaves((case.params, case.scores, case.masks))
        inputs += [number for number in budget if isinstance(number, torch.Tensor)]
        before, outside = [Snapshot.of(tensor) for tensor in inputs], global_state()
        call(case)
        after = [Snapshot.of(tensor) for tensor in inputs]
        fail_if(
            [
                f"tensor {i}: was {was}, is {now}"
                for i, (was, now) in enumerate(zip(before, after, strict=True))
                if was != now
            ]
        )
        assert global_state() == outside

    check()


@given(cases())
def test_masks_share_no_memory_with_the_priors_or_each_other(case: Case) -> None:
    budget = {"amount": 0}
    for prune in (gp.global_unstructured, gp.layerwise):
        masks = prune(case.params, case.scores, masks=case.masks, **budget)
        prior = reference.priors(case.params, case.masks)
        for mask in optree.tree_leaves(masks):
            mask.fill_(False)
            others = [other for other in optree.tree_leaves(masks) if other is not mask]
            assert mask.numel() == 0 or all(m.data_ptr() != mask.data_ptr() for m in others)
        again = prune(case.params, case.scores, masks=case.masks, **budget)
        assert_masks(again, prior, case.params)
