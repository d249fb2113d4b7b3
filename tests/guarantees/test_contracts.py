"""Every public callable keeps its contracts: the rows of public_rows.py."""

import textwrap
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given, reject, settings
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

import gprune as gp
from gprune.testing import assert_mask_contract, assert_pure, param_trees, prior_masks, scores_for
from tests.support import reference
from tests.support.assertions import assert_same
from tests.support.cases import map_tensors
from tests.support.contracts import assert_equivariant, assert_nested, assert_scale_invariant
from tests.support.public import examples_per_row, public_callables
from tests.support.public_rows import ROWS, Row
from tests.support.transforms import assert_compiles, assert_meta, assert_vmaps


def rows(contract: str | None = None) -> Any:
    """Run a test on every row that has the contract."""
    chosen = [row for row in ROWS if contract is None or contract in row.contracts]
    return pytest.mark.parametrize("row", chosen, ids=[row.name for row in chosen])


per_row = settings(max_examples=examples_per_row())


# --- no row, no entry -------------------------------------------------------------------------


def test_every_public_callable_has_a_row() -> None:
    covered = {row.public for row in ROWS}
    missing = [name for name, function in public_callables() if function not in covered]
    assert not missing, f"no row in tests/support/public_rows.py: {', '.join(missing)}"


def test_the_table_itself() -> None:
    names = [row.name for row in ROWS]
    assert len(names) == len(set(names))
    found = {name for name, _ in public_callables()}
    assert {"global_unstructured", "scores.random", "schedules.constant"} <= found
    assert len(found) >= 26
    assert len([row for row in ROWS if row.inductor]) >= 12


# --- purity and determinism, on drawn trees ---------------------------------------------------


class Inputs(NamedTuple):
    params: Any
    scores: Any
    masks: Any
    amount: Any


def candidates(row: Row, params: Any, masks: Any) -> int:
    """How many candidates there are; in the smallest leaf, where each is ranked alone."""
    if not row.separately:
        return reference.num_candidates(params, masks)
    return min(sum(prior) for prior in reference.priors(params, masks) if prior is not None)


@st.composite
def inputs_for(draw: st.DrawFn, row: Row) -> Inputs:
    params = draw(param_trees(dtypes=row.dtypes))
    scores = draw(st.none() | scores_for(params, dtypes=row.dtypes))
    if row.finite:
        params, scores = (
            map_tensors(lambda x: x.clamp(-8, 8).nan_to_num(), t) for t in (params, scores)
        )
    masks = draw(st.none() | prior_masks(params))
    return Inputs(params, scores, masks, draw(row.amounts(candidates(row, params, masks))))


def require_gradients(tree: Any) -> None:
    """The first floating leaf has a gradient already, the others only want one."""
    for i, leaf in enumerate(gp.trees.flatten(tree)[0]):
        if leaf is not None and leaf.is_floating_point():
            leaf.requires_grad_()
            leaf.grad = torch.ones_like(leaf) if i == 0 else None


@rows()
def test_pure_and_deterministic(row: Row) -> None:
    @per_row
    @given(inputs_for(row))
    def check(inputs: Inputs) -> None:
        require_gradients(inputs.params)
        require_gradients(inputs.scores)
        result = assert_pure(row.call, *inputs, may_return_inputs=row.may_return_inputs)
        assert_same(row.call(*inputs), result)

    check()


# --- the guarantees of masks, on drawn trees ---------------------------------------------------


@rows("mask")
def test_masks(row: Row) -> None:
    @per_row
    @given(inputs_for(row))
    def check(inputs: Inputs) -> None:
        params, scores, masks, amount = inputs
        deciding = row.ranked_by(params, scores) if row.ranked_by else scores
        k = row.k(params, masks, amount) if row.k else amount

        def prune(params: Any, deciding: Any, masks: Any, amount: Any) -> Any:
            return row.call(params, scores, masks, inputs.amount)

        assert_mask_contract(prune, params, deciding, masks, amount=k, separately=row.separately)

    check()


@rows("nested")
def test_nested(row: Row) -> None:
    @per_row
    @given(inputs_for(row), st.data())
    def check(inputs: Inputs, data: st.DataObject) -> None:
        many = row.amounts is not Row._field_defaults["amounts"]
        most = candidates(row, inputs.params, inputs.masks)
        one = st.floats(0, 1) if many else st.integers(0, most)
        amounts = sorted(data.draw(st.tuples(one, one, one)))
        assert_nested(row.call, *inputs[:3], amounts=amounts)

    check()


@st.composite
def distinct(draw: st.DrawFn, params: Any) -> Any:
    """Float32 leaves of these shapes, no two entries of the same magnitude."""
    order = draw(st.permutations(range(reference.num_entries(params))))
    flat = iter([(-1.0) ** entry * entry for entry in order])
    return map_tensors(
        lambda leaf: torch.tensor([next(flat) for _ in range(leaf.numel())]).reshape(leaf.shape),
        params,
    )


@rows("equivariant")
def test_equivariant(row: Row) -> None:
    @per_row
    @given(inputs_for(row), st.data())
    def check(inputs: Inputs, data: st.DataObject) -> None:
        params, scores, masks, amount = inputs
        if scores is None:
            params = data.draw(distinct(params))
        else:
            scores = data.draw(distinct(params))
            params = map_tensors(lambda leaf: leaf.abs(), scores)
        ranked_by = row.ranked_by and row.ranked_by(params, scores)
        assert_equivariant(row.call, params, scores, masks, ranked_by=ranked_by, amount=amount)

    check()


@rows("scale invariant")
def test_scale_invariant(row: Row) -> None:
    @per_row
    @given(inputs_for(row), st.sampled_from([0.25, 2.0, 1024.0]))
    def check(inputs: Inputs, factor: float) -> None:
        try:
            assert_scale_invariant(row.call, *inputs[:3], factor=factor, amount=inputs.amount)
        except ValueError as error:
            if "not exact" not in str(error):
                raise
            reject()  # a score at the end of its dtype's range

    check()


# --- transforms, on one tree ------------------------------------------------------------------


class Layer(NamedTuple):
    weight: Any
    bias: Any


def example(seed: int) -> dict[str, Any]:
    """Inputs with ties, `None` leaves, a prior, and a norm of which nothing is prunable."""
    generator = torch.Generator().manual_seed(seed)

    def integers(*shape: int) -> torch.Tensor:
        return torch.randint(-3, 4, shape, generator=generator).float()

    def tree() -> Any:
        return {
            "norm": {"weight": None, "bias": None},
            "head": [integers(6)],  # filled in before "fc", and after it in the flat order
            "fc": Layer(integers(4, 5), None),
        }

    params = tree()
    return {
        "params": params,
        "scores": tree(),
        "masks": map_tensors(lambda leaf: leaf > -3, params),
        "amount": torch.rand((), generator=generator, dtype=torch.float64),
    }


EXAMPLES = [example(seed) for seed in range(3)]


def of_one_tree(*chosen: Row) -> Callable[[Any], Any]:
    def function(inputs: Any) -> Any:
        arguments = [inputs[name] for name in Inputs._fields]
        return {row.name: row.call(*arguments) for row in chosen}

    return function


COMPILES_SLOWLY = {
    "gradual",
    "gradual, Erdős-Rényi",
    "iterative",
    "static_sparse",
    "sparse_evolution",
    "rigl",
    "Pruner",
    "iterative_synflow",
    "grasp",
    "fisher",
    "hessian_diagonal",
    "accumulate",
    "input_norms",
    "input_gram",
    "swap",
    "sparsegpt",
    "straight_through, gradients with decay",
    "global_unstructured to a sparsity",
    "global_unstructured without scores",
    "global_unstructured, l1",
    "global_unstructured, partial",
    "global_unstructured, random",
    "global_unstructured, some of each leaf",
    "layerwise with a tree of amounts",
    "layerwise, a user's method",
    "layerwise, channels",
    "layerwise, uniform",
    "layerwise, owl",
    "masks_from_threshold",
    "pruning_method",
    "random_structured",
    "ln_structured, nuclear",
    "erdos_renyi",
    "uniform",
    "Threshold",
    "input_dims",
    "random_unstructured",
    "l1_unstructured",
    "wanda",
    "movement",
}
"""Rows whose compilation is a long test. A row of the same kind that compiles faster is not."""


def compiled_rows() -> list[Any]:
    chosen = [row for row in ROWS if "compiles" in row.contracts]
    assert {row.name for row in chosen} >= COMPILES_SLOWLY
    long = {name: [pytest.mark.long] for name in COMPILES_SLOWLY}
    return [pytest.param(row, id=row.name, marks=long.get(row.name, [])) for row in chosen]


@pytest.mark.slow
@pytest.mark.parametrize("row", compiled_rows())
def test_compiles_once_for_all_tensors(row: Row) -> None:
    assert_compiles(of_one_tree(row), EXAMPLES, atol=row.atol)


MARKS = {
    "num_to_prune": [],
    "global_unstructured": [pytest.mark.slow],
    "polynomial": [pytest.mark.slow],
    "layerwise": [pytest.mark.long],
    "find_threshold": [pytest.mark.long],
    "random": [pytest.mark.long],
}


@pytest.mark.parametrize("name", [pytest.param(name, marks=marks) for name, marks in MARKS.items()])
def test_compiles_twice_for_python_numbers(name: str) -> None:
    [row] = [row for row in ROWS if row.name == name]
    inputs = [{**EXAMPLES[0], "amount": i / 20} for i in range(20)]
    assert_compiles(of_one_tree(row), inputs, atol=row.atol, max_graphs=2)


A_FEW = ["global_unstructured", "apply_masks", "sparsity"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "names", [A_FEW, pytest.param(None, marks=pytest.mark.long)], ids=["a few", "all"]
)
def test_compiles_with_inductor(names: list[str] | None) -> None:
    """Several rows in one graph, which Inductor may fuse as it likes."""
    chosen = [row for row in ROWS if row.inductor and (names is None or row.name in names)]
    assert len(chosen) >= (12 if names is None else len(names))
    assert_compiles(of_one_tree(*chosen), EXAMPLES, "inductor", atol=1e-12)


@rows("vmaps")
def test_vmaps(row: Row) -> None:
    batch = gp.trees.map_leaves(
        lambda *leaves: None if leaves[0] is None else torch.stack(leaves), *EXAMPLES
    )
    assert_vmaps(of_one_tree(row), batch, atol=row.atol)


@rows("meta")
def test_meta(row: Row) -> None:
    trees, amount = EXAMPLES[0], EXAMPLES[0]["amount"]
    function = of_one_tree(row)  # an amount must have a value: only the trees go to meta
    assert_meta(lambda x: function({**x, "amount": amount}), {**trees, "amount": None})


@pytest.mark.slow
@rows("compiles")
def test_fake_tensors(row: Row) -> None:
    """Structures, shapes and dtypes without values, as shape propagation asks for them."""
    function = of_one_tree(row)
    expected, treedef = gp.trees.flatten(function(EXAMPLES[0]))
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:  # the seed of the rows is real
        fakes = gp.trees.map_leaves(lambda x: x if x is None else mode.from_tensor(x), EXAMPLES[0])
        got, other = gp.trees.flatten(function(fakes))
    assert other == treedef
    for ours, wanted in zip(got, expected, strict=True):
        if isinstance(wanted, torch.Tensor):
            assert isinstance(ours, FakeTensor)
            assert (ours.shape, ours.dtype) == (wanted.shape, wanted.dtype)
        else:
            assert ours == wanted


# --- what a user sees of a broken selector ------------------------------------------------------


def at_most_threshold(params: Any, scores: Any, masks: Any, amount: float) -> Any:
    """Compare with the k-th lowest score: wrong under ties."""
    leaves = gp.trees.flatten(scores)[0]
    flat = torch.cat([leaf.flatten() for leaf in leaves if leaf is not None])
    k = int(gp.num_to_prune(amount, flat.numel()))
    threshold = flat.sort().values[k - 1] if k else -1
    return gp.trees.map_leaves(lambda x: None if x is None else ~(x <= threshold), scores)


def test_a_threshold_that_is_wrong_under_ties_is_caught_and_shrunk() -> None:
    """To at most three entries in all, in a message whose source reproduces it."""

    @settings(deadline=None, max_examples=1000, database=None)
    @given(param_trees(dtypes=[torch.float32]))
    def check(params: Any) -> None:
        assert_mask_contract(at_most_threshold, params, gp.scores.magnitude(params), amount=0.5)

    with pytest.raises(AssertionError, match="candidates are pruned, must be") as broken:
        check()
    message = str(broken.value)
    assert message.startswith("at_most_threshold breaks assert_mask_contract:")
    scope: dict[str, Any] = {}
    repro = message[message.index("import torch") : message.index("\n  assert_mask_contract(")]
    exec(textwrap.dedent("  " + repro), scope)
    leaves = [x for x in gp.trees.flatten(scope["params"])[0] if x is not None]
    assert sum(leaf.numel() for leaf in leaves) <= 3  # nearly always one leaf of two
