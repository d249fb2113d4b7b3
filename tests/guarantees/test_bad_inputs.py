"""Bad input never yields a mask: the rows of tests/support/bad_inputs.py, and arbitrary objects."""

import contextlib
import decimal
import fractions
import functools
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import gprune as gp
from gprune.testing import assert_pure, param_trees, prior_masks, scores_for, tensors
from tests.support.bad_inputs import BAD, LIFTED, Bad
from tests.support.cases import amounts
from tests.support.public import examples_per_row, public_callables


@pytest.mark.parametrize("row", BAD, ids=[row.name for row in BAD])
def test_bad_input(row: Bad) -> None:
    """The right class, all the words, and nothing modified."""

    def raised(args: Any, kwargs: Any) -> Exception:
        with pytest.raises(row.error) as caught:
            row.function(*args, **kwargs)
        return caught.value

    error = assert_pure(raised, *row.inputs())
    assert type(error) is row.error
    assert [word for word in row.words if word not in str(error)] == [], str(error)


def test_the_table_itself() -> None:
    assert [name for name, times in Counter(row.name for row in BAD).items() if times > 1] == []
    assert all(row.words for row in BAD)
    cannot_fail = {"Threshold", "pruners.Pruner"}  # pairs of anything
    covered = {row.function for row in BAD}
    missing = {name for name, function in public_callables() if function not in covered}
    assert missing == cannot_fail


# --- what is not bad --------------------------------------------------------------------------


@pytest.mark.parametrize("prune", [function for function, _ in LIFTED])
def test_only_empty_or_fully_pruned_leaves_are_fine(prune: Callable[..., Any]) -> None:
    empty = {"a": torch.ones(0), "b": torch.ones(2, 0)}
    gone = [torch.ones(3), torch.tensor(1.0)]
    masks = [torch.zeros(3).bool(), torch.tensor(False)]
    for amount in (0, 0.0, 0.5, 1.0):
        prune(empty, amount=amount)
        prune(gone, masks=masks, amount=amount)
    for sparsity in (0, 0.5, 1):
        prune(empty, sparsity=sparsity)
        prune(gone, masks=masks, sparsity=sparsity)
    with pytest.raises(ValueError, match="amount"):
        prune(empty, amount=1)


def test_an_int_is_compared_with_the_candidates_that_are_left() -> None:
    mask = torch.tensor([False, False, True, True])
    pruned = gp.lowest_unstructured(torch.arange(4.0), mask=mask, amount=2)
    assert pruned.tolist() == [False] * 4


# --- arbitrary objects ------------------------------------------------------------------------


class Evil:
    """Neither to be compared nor to be asked for its truth."""

    def __eq__(self, other: object) -> bool:
        raise TypeError("compared")

    def __bool__(self) -> bool:
        raise TypeError("asked for its truth")

    __hash__ = object.__hash__


def odd_tensors() -> st.SearchStrategy[torch.Tensor]:
    """Tensors of dtypes, devices and layouts that nobody prunes."""
    makers: list[Callable[[], torch.Tensor]] = [
        lambda: torch.tensor([True, False]),
        lambda: torch.tensor([1j]),
        lambda: torch.ones(2, dtype=torch.uint16),
        lambda: torch.ones(2).to(torch.float8_e4m3fn),
        lambda: torch.ones(2, device="meta"),
        lambda: torch.eye(2).to_sparse(),
        lambda: torch.ones(2, 2).to_mkldnn(),
        lambda: torch.nested.nested_tensor([torch.ones(2)], layout=torch.jagged),
        lambda: torch.nn.UninitializedParameter(),
        lambda: torch.nn.Parameter(torch.ones(2)),
        lambda: torch.ones(2, requires_grad=True) * 2,
        lambda: torch.full((2,), 2**60),
    ]
    return st.sampled_from(makers).map(lambda make: make())


def things() -> st.SearchStrategy[Any]:
    """Objects that are no tensors."""
    makers: list[Callable[[], Any]] = [
        Evil,
        object,
        lambda: iter([1, 2]),
        lambda: torch.nn.Linear(1, 1),
        lambda: np.ones(2),
        lambda: np.float32(0.5),
        lambda: np.int64(1),
        lambda: np.bool_(True),
        lambda: fractions.Fraction(1, 2),
        lambda: fractions.Fraction(10**400),
        lambda: decimal.Decimal("0.5"),
        lambda: torch.float32,
        lambda: torch.Size([2]),
        lambda: len,
        lambda: int,
        lambda: ...,
        lambda: NotImplemented,
        lambda: range(3),
        lambda: defaultdict(list),
        lambda: gp.scores,
    ]
    return st.sampled_from(makers).map(lambda make: make())


def numbers() -> st.SearchStrategy[Any]:
    return st.one_of(
        st.integers(),
        st.floats(),
        st.complex_numbers(),
        st.booleans(),
        st.sampled_from([0, 1, 0.5, 2, -1, 2**63, -(2**63) - 1, 10**400]),
    )


def keys() -> st.SearchStrategy[Any]:
    return st.one_of(st.text(max_size=2), st.integers(0, 3), st.none(), st.tuples(st.booleans()))


def anything() -> st.SearchStrategy[Any]:
    """Any Python object, alone or in containers."""
    single = st.one_of(
        st.none(),
        numbers(),
        st.text(max_size=3),
        st.binary(max_size=3),
        tensors(),
        odd_tensors(),
        things(),
    )
    return st.recursive(
        single,
        lambda inside: st.one_of(
            st.lists(inside, max_size=3),
            st.lists(inside, max_size=3).map(tuple),
            st.dictionaries(keys(), inside, max_size=3),
            st.dictionaries(keys(), inside, max_size=2).map(OrderedDict),
            st.sets(numbers() | st.text(max_size=1), max_size=2),
        ),
        max_leaves=6,
    )


class Good:
    """What a valid call is drawn with; a fuzzed one replaces some of it by anything."""

    def __init__(self, draw: Any) -> None:
        self.draw = draw

    @functools.cached_property
    def params(self) -> Any:
        return self.draw(param_trees())

    def of(self, name: str) -> Any:
        strategies: dict[str, Callable[[], st.SearchStrategy[Any]]] = {
            "params": lambda: st.just(self.params),
            "tree": lambda: st.just(self.params),
            "scores": lambda: st.none() | scores_for(self.params),
            "masks": lambda: st.none() | prior_masks(self.params),
            "packed": lambda: prior_masks(self.params).map(gp.pack_masks),
            "amount": lambda: amounts(4),
            "sparsity": lambda: st.floats(0, 1),
            "seed": lambda: st.integers(0, 9),
            "where": lambda: st.sampled_from([None, "*", ["*a*"], lambda path, leaf: True]),
            "pruning_method": lambda: st.sampled_from(
                [gp.lowest_unstructured, gp.random_unstructured, gp.identity]
            ),
            "threshold": lambda: st.builds(gp.Threshold, st.floats(), st.integers(-1, 9)),
            "tensor": lambda: st.just(torch.arange(4.0)),
            "score": lambda: st.none() | st.just(torch.arange(4.0)),
            "mask": lambda: st.none() | st.just(torch.ones(4).bool()),
            "path": lambda: st.sampled_from(["", "fc.weight"]),
            "count": lambda: st.integers(0, 20),
            "kind": lambda: st.just("unstructured"),
            "step": lambda: st.integers(0, 9),
            "power": lambda: st.floats(0.5, 3),
            "dim": lambda: st.integers(-1, 2) | st.just(gp.input_dims),
            "grads": lambda: st.just(self.params),
            "batches": lambda: st.lists(st.just(torch.arange(4.0)), max_size=2),
            "flag": st.booleans,
            "rounds": lambda: st.integers(0, 3),
            "overrides": lambda: st.sampled_from([None, {"*": 0.5}, {"*a*": 0}]),
            "kernel": lambda: st.booleans(),
            "function": lambda: st.sampled_from([len, lambda step: step >= 0, gp.layerwise]),
            "group": lambda: st.sampled_from([len, lambda path: path[:1]]),
            "matrix": lambda: st.just(torch.arange(12.0).reshape(4, 3)),
            "gram": lambda: st.just(torch.eye(3)) | st.just(torch.ones(3, 3)),
            "norm": lambda: st.sampled_from([1, 2, 0.5, float("inf"), "fro"]),
            "shape": lambda: st.sampled_from([(1,), (2,), (2, 2), [5], (1, 4)]),
        }
        return self.draw(strategies[name]())


# the kinds of the positional arguments, and those of the keyword arguments
BUDGET = {"amount": "amount", "sparsity": "sparsity"}
LIFTED_KEYWORDS = {"masks": "masks", "pruning_method": "pruning_method", "seed": "seed", **BUDGET}
LIFTED_KEYWORDS["dim"] = "dim"
LIFTED_KEYWORDS["min_per_leaf"] = "amount"
RAMP = {"begin": "step", "end": "step", "initial": "sparsity"}
ALLOCATED = {"sparsity": "sparsity", "overrides": "overrides", "min_kept": "count"}
EXCHANGED = {"fraction": "function", "due": "function", "seed": "seed"}
CALLS: dict[Callable[..., Any], tuple[list[str], dict[str, str]]] = {
    gp.prunable: (["params", "where"], {"exclude": "where"}),
    gp.vmap_dims: (["params", "dim"], {}),
    gp.input_dims: (["path", "tensor"], {}),
    gp.lowest_unstructured: (["tensor", "score"], {"mask": "mask", **BUDGET, "dim": "dim"}),
    gp.l1_unstructured: (["tensor", "score"], {"mask": "mask", **BUDGET, "dim": "dim"}),
    gp.random_unstructured: (
        ["tensor", "score"],
        {"mask": "mask", "seed": "seed", **BUDGET, "dim": "dim"},
    ),
    gp.identity: (["tensor", "score"], {"mask": "mask"}),
    gp.ln_structured: (["matrix"], {**BUDGET, "n": "norm", "dim": "dim"}),
    gp.random_structured: (["matrix"], {**BUDGET, "seed": "seed", "dim": "dim"}),
    gp.n_of_m: (["tensor", "score"], {"mask": "mask", "n": "count", "m": "count", "dim": "dim"}),
    gp.blocks: (["matrix"], {**BUDGET, "shape": "shape"}),
    gp.check_n_of_m: (["masks"], {"n": "count", "m": "count", "dim": "dim"}),
    gp.pruning_method: (["kind"], {}),
    gp.global_unstructured: (["params", "scores"], LIFTED_KEYWORDS),
    gp.layerwise: (["params", "scores"], LIFTED_KEYWORDS),
    gp.Threshold: (["amount", "count"], {}),
    gp.find_threshold: (["params", "scores"], {"masks": "masks", **BUDGET}),
    gp.masks_from_threshold: (["threshold", "params", "scores"], {"masks": "masks"}),
    gp.num_to_prune: (["amount", "count"], {}),
    gp.keep_all: (["params"], {}),
    gp.masks_from_zeros: (["params"], {}),
    gp.apply_masks: (["params", "masks"], {}),
    gp.straight_through: (["params", "masks"], {"decay": "power"}),
    gp.num_pruned: (["masks"], {}),
    gp.sparsity: (["masks"], {}),
    gp.summary: (["params", "masks"], {}),
    gp.intersect: (["masks", "masks"], {}),
    gp.pack_masks: (["masks"], {}),
    gp.unpack_masks: (["packed", "params"], {}),
    gp.scores.magnitude: (["params"], {}),
    gp.scores.random: (["params"], {"seed": "seed"}),
    gp.scores.taylor: (["params", "grads"], {"squared": "flag"}),
    gp.scores.snip: (["loss_fn", "params"], {}),
    gp.scores.grasp: (["loss_fn", "params"], {}),
    gp.scores.synflow: (["loss_fn", "params", "shape"], {}),
    gp.scores.iterative_synflow: (
        ["loss_fn", "params", "shape"],
        {"sparsity": "sparsity", "masks": "masks", "rounds": "rounds"},
    ),
    gp.scores.fisher: (["loss_fn", "params", "tensor"], {"chunk_size": "rounds"}),
    gp.scores.hessian_diagonal: (["loss_fn", "params"], {"seed": "seed", "num_probes": "rounds"}),
    gp.scores.obd: (["params", "grads"], {}),
    gp.scores.movement: (["params", "grads", "grads"], {}),
    gp.scores.wanda: (["params", "grads"], {}),
    gp.scores.ria: (["params", "grads"], {"power": "power", "dim": "dim"}),
    gp.scores.input_norms: (["loss_fn", "params", "batches"], {}),
    gp.scores.input_gram: (["loss_fn", "params", "batches"], {"where": "where"}),
    gp.reconstruct.refit: (["matrix", "masks", "gram"], {"damping": "power", "dim": "dim"}),
    gp.reconstruct.sparsegpt: (
        ["matrix", "gram"],
        {**BUDGET, "n": "count", "m": "count", "block_size": "rounds", "dim": "dim"},
    ),
    gp.reconstruct.swap: (
        ["matrix", "masks", "gram"],
        {"rounds": "rounds", "m": "count", "dim": "dim"},
    ),
    gp.reconstruct.sequential: (["batches", "batches", "batches", "function"], {}),
    gp.scores.normalize_l2: (["params"], {}),
    gp.scores.lamp: (["params"], {}),
    gp.scores.accumulate: (["grad_fn", "batches"], {"progress": "progress"}),
    gp.schedules.constant: (["sparsity"], {}),
    gp.schedules.one_shot: (["sparsity"], {"step": "step"}),
    gp.schedules.linear: (["sparsity"], RAMP),
    gp.schedules.polynomial: (["sparsity"], {"power": "power", **RAMP}),
    gp.schedules.exponential: (["sparsity"], RAMP),
    gp.schedules.cosine: (["sparsity"], RAMP),
    gp.schedules.every: (["step"], {"begin": "step", "end": "step", "freq": "count"}),
    gp.agreement: (["masks", "masks"], {}),
    gp.pruners.Pruner: (["function", "function"], {}),
    gp.pruners.gradual: (["function"], {"due": "function", "prune": "function"}),
    gp.pruners.iterative: (["amount"], {"due": "function", "rewind_to": "count"}),
    gp.pruners.static_sparse: (["sparsity"], {"seed": "seed"}),
    gp.pruners.sparse_evolution: (["sparsity"], EXCHANGED),
    gp.pruners.rigl: (["sparsity"], EXCHANGED),
    gp.allocation.uniform: (["params"], ALLOCATED),
    gp.allocation.erdos_renyi: (["params"], {**ALLOCATED, "kernel": "kernel"}),
    gp.allocation.owl: (
        ["params", "scores"],
        {"sparsity": "sparsity", "group": "group", "outlier": "power", "width": "sparsity"},
    ),
}


def any_loss(params: Any, *args: Any) -> torch.Tensor:
    return sum((leaf**3).sum() for leaf in gp.trees.flatten(params)[0] if leaf is not None)


FUNCTIONS = {"loss_fn": any_loss, "grad_fn": lambda batch: batch, "progress": lambda done: None}


@pytest.mark.slow
@pytest.mark.parametrize(("name", "function"), list(public_callables()))
def test_anything_gives_a_result_or_a_type_or_value_error(
    name: str, function: Callable[..., Any]
) -> None:
    positional, keyword = CALLS[function]

    @settings(max_examples=examples_per_row())
    @given(st.data())
    def check(data: st.DataObject) -> None:
        good = Good(data.draw)

        def argument(kind: str) -> Any:
            if kind in FUNCTIONS:  # what a user's function raises is the user's
                return data.draw(st.sampled_from([FUNCTIONS[kind], None, "f", 3]))
            return good.of(kind) if data.draw(st.booleans()) else data.draw(anything())

        args = [argument(kind) for kind in positional]
        chosen = [name for name in keyword if data.draw(st.booleans())]
        kwargs = {name: argument(keyword[name]) for name in chosen}
        with contextlib.suppress(TypeError, ValueError, IndexError):  # the last as torch's methods
            function(*args, **kwargs)

    check()
