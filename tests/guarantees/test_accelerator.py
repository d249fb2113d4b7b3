"""On an accelerator everything gives what it gives on the CPU, bit by bit, where the leaves are.

The accelerator is the simulated one of tests/support/accelerator.py. It runs the kernels of the
CPU, so that even sums of floats are the same. `GPRUNE_TEST_DEVICE=cuda` runs the tests on a GPU,
where sums of floats may differ.
"""

import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from torch import nn

import gprune as gp
from gprune import adapter
from gprune.testing import assert_pure
from tests.guarantees.test_contracts import EXAMPLES, inputs_for, of_one_tree
from tests.support import accelerator
from tests.support.accelerator import without_float64
from tests.support.assertions import assert_same
from tests.support.cases import METHODS, Case, cases, map_tensors
from tests.support.limits import Limits, limits, patched
from tests.support.pruning import HALF, every
from tests.support.public import examples_per_row
from tests.support.public_rows import ROWS, Row
from tests.support.transforms import assert_compiles, assert_vmaps

CPU = torch.device("cpu")
DEVICE = torch.empty(0, device=os.environ.get("GPRUNE_TEST_DEVICE", str(accelerator.DEVICE))).device
INPUTS = ("params", "scores", "masks")

OWN_TENSORS = {"ln_structured, nuclear"}
"""Rows that make their tensors themselves, on the CPU."""

NUMBERS_OF_MASKS = {"num_pruned", "sparsity", "agreement"}
"""Rows whose numbers are on the device of the masks. All other numbers are on the CPU."""

ONE_DEVICE = {"pruning_method", "fisher", "input_norms", "input_gram"}
"""Rows with a function of the user that combines all leaves, which is then on one device."""

OWN_FLOAT64 = {"pruning_method", "layerwise, a user's method"}
"""Rows with a method of the user that calculates in float64, with an amount on the CPU."""

ZEROS_OF_ANY_SIGN = {"grasp"}
"""Rows with derivatives that torch knows to be zero, and the accelerator multiplies by -0.0."""


def rows(chosen: Callable[[Row], bool] = lambda row: True) -> Any:
    """Run a test on every row that is chosen."""
    return pytest.mark.parametrize(
        "row",
        [
            pytest.param(
                row,
                id=row.name,
            )
            for row in ROWS
            if row.name not in OWN_TENSORS and chosen(row)
        ],
    )


def to_device(tree: Any) -> Any:
    return map_tensors(lambda leaf: leaf.to(DEVICE), tree)


def on_two_devices(tree: Any, first: int) -> Any:
    """Every second leaf on the accelerator, the first of them at this place."""
    leaves, treedef = gp.trees.flatten(tree)
    places = [i for i, leaf in enumerate(leaves) if leaf is not None]
    moved = {i: leaves[i].to(DEVICE) for i in places[first::2]}
    return gp.trees.unflatten(treedef, [moved.get(i, leaf) for i, leaf in enumerate(leaves)])


def tensors(tree: Any) -> list[torch.Tensor]:
    return [leaf for leaf in gp.trees.flatten(tree)[0] if isinstance(leaf, torch.Tensor)]


def assert_same_on_cpu(got: Any, expected: Any) -> None:
    """Bit by bit, after a copy to the CPU."""
    leaves, treedef = gp.trees.flatten(got)
    copied = [leaf.cpu() if isinstance(leaf, torch.Tensor) else leaf for leaf in leaves]
    assert_same(gp.trees.unflatten(treedef, copied), expected)


def trees_like(result: Any, params: Any) -> Iterator[Any]:
    """Find the trees of the parameters' structure in a result, such as masks in a state."""
    if gp.trees.flatten(result)[1] == gp.trees.flatten(params)[1]:
        yield result
    elif isinstance(result, tuple):
        for part in result:
            yield from trees_like(part, params)


def assert_where_the_leaves_are(result: Any, params: Any) -> None:
    for tree in trees_like(result, params):
        pairs = zip(gp.trees.flatten(tree)[0], gp.trees.flatten(params)[0], strict=True)
        for leaf, param in pairs:
            if isinstance(leaf, torch.Tensor) and leaf.shape == param.shape:
                assert leaf.device == param.device


def test_the_tables_of_exceptions() -> None:
    names = {row.name for row in ROWS}
    assert names >= OWN_TENSORS | NUMBERS_OF_MASKS | ONE_DEVICE | OWN_FLOAT64 | ZEROS_OF_ANY_SIGN


# --- every row --------------------------------------------------------------------------------


@rows()
def test_the_same_as_on_the_cpu(row: Row) -> None:
    """And pure: what is given stays as it is, and shares no memory with what is returned."""
    *trees, amount = (EXAMPLES[0][name] for name in (*INPUTS, "amount"))
    moved = [to_device(tree) for tree in trees]
    got = assert_pure(row.call, *moved, amount, may_return_inputs=row.may_return_inputs)
    assert_same_on_cpu(got, row.call(*trees, amount))
    assert_where_the_leaves_are(got, moved[0])
    for tensor in tensors(got):
        is_there = tensor.dim() > 0 or row.name in NUMBERS_OF_MASKS
        assert tensor.device == (DEVICE if is_there else CPU)


@rows(lambda row: row.name not in ONE_DEVICE)
@pytest.mark.parametrize("first", [0, pytest.param(1, marks=pytest.mark.long)])
def test_trees_on_two_devices(row: Row, first: int) -> None:
    *trees, amount = (EXAMPLES[1][name] for name in (*INPUTS, "amount"))
    mixed = [on_two_devices(tree, first) for tree in trees]
    assert {leaf.device for leaf in tensors(mixed[0])} == {CPU, DEVICE}
    got = row.call(*mixed, amount)
    assert_same_on_cpu(got, row.call(*trees, amount))
    assert_where_the_leaves_are(got, mixed[0])


@rows(lambda row: row.name not in OWN_FLOAT64)
def test_float32_needs_no_float64_on_the_device(row: Row) -> None:
    """As on MPS, which has none. Only results in float64 are on the CPU then."""
    *trees, amount = (EXAMPLES[2][name] for name in (*INPUTS, "amount"))
    moved = [to_device(tree) for tree in trees]
    with without_float64():
        got = row.call(*moved, amount)
    assert_same_on_cpu(got, row.call(*trees, amount))
    for tensor in tensors(got):
        is_there = tensor.dim() > 0 or row.name in NUMBERS_OF_MASKS
        has_float64 = tensor.dtype == torch.float64
        assert tensor.device == (DEVICE if is_there and not has_float64 else CPU)


METHODS_IN_FLOAT64: dict[str, dict[str, Any]] = {
    "ln_structured": {"pruning_method": gp.ln_structured, "n": 1, "dim": 0, "amount": 0.4},
    "blocks": {"pruning_method": gp.blocks, "shape": (2, 2), "amount": 0.4},
    "random_unstructured": {
        "pruning_method": gp.random_unstructured,
        "seed": 1,
        "dim": 0,
        "amount": 0.4,
    },
}


@pytest.mark.parametrize("dtype", [torch.float16, torch.int16], ids=str)
@pytest.mark.parametrize("has_masks", [False, True])
@pytest.mark.parametrize("name", METHODS_IN_FLOAT64)
def test_methods_that_need_float64_for_some_dtypes(
    name: str, has_masks: bool, dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    params = {"a": (100 * torch.randn(6, 5)).to(dtype), "b": (100 * torch.randn(4, 7)).to(dtype)}
    masks = map_tensors(lambda leaf: torch.rand(leaf.shape) < 0.7, params) if has_masks else None
    with without_float64():
        moved = None if masks is None else to_device(masks)
        got = gp.layerwise(to_device(params), masks=moved, **METHODS_IN_FLOAT64[name])
    assert_same_on_cpu(got, gp.layerwise(params, masks=masks, **METHODS_IN_FLOAT64[name]))
    assert {leaf.device for leaf in tensors(got)} == {DEVICE}


@pytest.mark.long
@rows()
def test_the_same_on_drawn_trees(row: Row) -> None:
    @settings(max_examples=examples_per_row())
    @given(inputs_for(row))
    def check(inputs: Any) -> None:
        *trees, amount = inputs
        got = row.call(*(to_device(tree) for tree in trees), amount)
        expected = row.call(*trees, amount)
        if row.name in ZEROS_OF_ANY_SIGN:
            got, expected = (map_tensors(lambda x: x + 0, tree) for tree in (got, expected))
        assert_same_on_cpu(got, expected)

    check()


def example_on_device(number: int) -> dict[str, Any]:
    """The amount stays on the CPU, as amounts and steps mostly are."""
    moved = {name: to_device(EXAMPLES[number][name]) for name in INPUTS}
    return {**moved, "amount": EXAMPLES[number]["amount"]}


@pytest.mark.long
@rows(lambda row: "compiles" in row.contracts)
def test_compiles_once(row: Row) -> None:
    inputs = [example_on_device(i) for i in range(len(EXAMPLES))]
    assert_compiles(of_one_tree(row), inputs, atol=row.atol)


@pytest.mark.long
@rows(lambda row: "vmaps" in row.contracts and row.name not in OWN_FLOAT64)
def test_vmaps(row: Row) -> None:
    batch = gp.trees.map_leaves(
        lambda *leaves: None if leaves[0] is None else torch.stack(leaves), *EXAMPLES
    )
    moved = {name: to_device(batch[name]) for name in INPUTS}
    assert_vmaps(of_one_tree(row), {**moved, "amount": batch["amount"]}, atol=row.atol)


# --- selection --------------------------------------------------------------------------------


PLACEMENTS: dict[str, Callable[[Any], Any]] = {
    "on the device": to_device,
    "the first on the device": lambda tree: on_two_devices(tree, 0),
    "the first on the CPU": lambda tree: on_two_devices(tree, 1),
}


@pytest.mark.parametrize("place", PLACEMENTS.values(), ids=PLACEMENTS)
def test_a_search_by_many_paths(place: Callable[[Any], Any]) -> None:
    @settings(max_examples=examples_per_row())
    @given(cases(), limits())
    def check(case: Case, small: Limits) -> None:
        params, scores, masks = map(place, (case.params, case.scores, case.masks))
        with patched(small):
            got = gp.global_unstructured(params, scores, masks=masks, **case.budget)
        assert_same_on_cpu(got, case.masks_for(gp.global_unstructured))
        assert_where_the_leaves_are(got, params)

    check()


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method["pruning_method"].__name__)
@pytest.mark.parametrize("prune", [gp.global_unstructured, gp.layerwise])
@pytest.mark.parametrize("place", PLACEMENTS.values(), ids=PLACEMENTS)
def test_leaves_of_several_blocks(place: Any, prune: Any, method: dict[str, Any]) -> None:
    torch.manual_seed(0)
    params = {"large": torch.randn(1_100_000).round(decimals=2), "small": torch.randn(300, 100)}
    got = prune(place(params), amount=0.3, **method)
    expected = prune(params, amount=0.3, **method)
    for name, mask in expected.items():
        assert torch.equal(got[name].cpu(), mask)


def test_an_amount_and_a_threshold_may_be_on_the_device() -> None:
    params, amount = EXAMPLES[0]["params"], EXAMPLES[0]["amount"]
    expected = gp.global_unstructured(params, amount=amount)
    moved = to_device(params)
    assert_same_on_cpu(gp.global_unstructured(moved, amount=amount.to(DEVICE)), expected)
    assert_same_on_cpu(gp.global_unstructured(params, amount=amount.to(DEVICE)), expected)
    threshold = gp.Threshold(*map(to_device, gp.find_threshold(params, amount=amount)))
    assert_same_on_cpu(gp.masks_from_threshold(threshold, moved), expected)
    assert_same_on_cpu(gp.masks_from_threshold(threshold, params), expected)


@pytest.mark.parametrize("name", ["scores", "masks"])
def test_other_devices_than_the_parameters_are_errors(name: str) -> None:
    params = to_device({"w": torch.ones(3)})
    tree = {"w": torch.ones(3, dtype=torch.bool if name == "masks" else torch.float32)}
    with pytest.raises(ValueError, match="is on cpu, its parameter is on simulated:0"):
        gp.global_unstructured(params, amount=1, **{name: tree})


def test_a_method_of_the_user_needs_one_device() -> None:
    [row] = [row for row in ROWS if row.name == "pruning_method"]
    mixed = [on_two_devices(EXAMPLES[0][name], 0) for name in INPUTS]
    with pytest.raises(ValueError, match="needs all leaves on one device, got cpu and simulated:0"):
        row.call(*mixed, 1)


# --- training ---------------------------------------------------------------------------------

PRUNERS: dict[str, Callable[[], gp.pruners.Pruner]] = {
    "gradual": lambda: gp.pruners.gradual(
        gp.schedules.polynomial(0.9, begin=0, end=9), due=every(3)
    ),
    "iterative": lambda: gp.pruners.iterative(0.3, due=every(3), rewind_to=2),
    "static_sparse": lambda: gp.pruners.static_sparse(0.5, seed=1),
    "sparse_evolution": lambda: gp.pruners.sparse_evolution(
        0.5, fraction=HALF, due=every(3), seed=1
    ),
    "rigl": lambda: gp.pruners.rigl(0.5, fraction=HALF, due=every(3), seed=1),
}


def trained(pruner: gp.pruners.Pruner, device: torch.device) -> Any:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 4))
    x = torch.randn(32, 8)
    y = x[:, :4].argmax(1).to(device)
    model, x = model.to(device), x.to(device)
    params = {name: p.detach() for name, p in model.named_parameters()}
    state = pruner.init(params)

    def loss(params: Any) -> torch.Tensor:
        return nn.functional.cross_entropy(torch.func.functional_call(model, params, (x,)), y)

    for _ in range(8):
        grads = torch.func.grad(loss)(params)
        params = {name: p - 0.1 * grads[name] for name, p in params.items()}
        params, state = pruner.update(params, state, grads)
    return params, tuple(state)


@pytest.mark.parametrize("name", PRUNERS)
def test_a_run_of_a_pruner(name: str) -> None:
    got = trained(PRUNERS[name](), DEVICE)
    assert_same_on_cpu(got, trained(PRUNERS[name](), CPU))
    assert {leaf.device for leaf in tensors(got) if leaf.dim()} == {DEVICE}


def pruned_module(device: torch.device, prune: Callable[[nn.Module], Any]) -> Any:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 4)).to(device)
    x = torch.randn(32, 8).to(device)
    torch.manual_seed(1)  # from here on, the device draws what the CPU draws
    prune(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()
        adapter.project_(optimizer, model)
    masks, state = adapter.masks_of(model), dict(model.state_dict())
    adapter.make_permanent_(model)
    return masks, state, dict(model.state_dict()), model(x).detach()


def by_pairs(method: Any, **kwargs: Any) -> Callable[[nn.Module], Any]:
    def prune(model: nn.Module) -> None:
        pairs = [(model[0], "weight"), (model[2], "weight"), (model[2], "bias")]
        adapter.global_unstructured(pairs, method, **kwargs)

    return prune


ADAPTERS: dict[str, Callable[[nn.Module], Any]] = {
    "prune_": lambda model: adapter.prune_(adapter.prune_(model, sparsity=0.3), sparsity=0.6),
    "drop-in, l1": by_pairs(adapter.L1Unstructured, amount=0.5),
    "drop-in, random": by_pairs(adapter.RandomUnstructured, amount=20),
    "torch's ln_structured": lambda model: adapter.ln_structured(
        model[0], "weight", amount=0.5, n=2, dim=0
    ),
}


@pytest.mark.parametrize("name", ADAPTERS)
def test_modules(name: str) -> None:
    got = pruned_module(DEVICE, ADAPTERS[name])
    assert_same_on_cpu(got, pruned_module(CPU, ADAPTERS[name]))
    assert {leaf.device for leaf in tensors(got)} == {DEVICE}


def test_masks_follow_a_module_to_the_device() -> None:
    model = adapter.prune_(nn.Linear(6, 4), amount=7)
    x, mask = torch.randn(3, 6), adapter.masks_of(model)["weight"]
    expected = model(x)
    model.to(DEVICE)
    assert_same_on_cpu(model(x.to(DEVICE)).detach(), expected.detach())
    adapter.prune_(model, sparsity=0.5)
    now = adapter.masks_of(model)["weight"]
    assert now.device == DEVICE
    assert not (now.cpu() & ~mask).any()


def test_zeros_are_kept_in_a_module_that_is_moved_later() -> None:
    model = adapter.make_permanent_(adapter.prune_(nn.Linear(6, 4), amount=7))
    zeros = model.weight == 0
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    adapter.keep_zeros_(model, optimizer)
    model.to(DEVICE)
    optimizer.param_groups[0]["params"] = list(model.parameters())
    for _ in range(2):
        model(torch.randn(3, 6).to(DEVICE)).square().mean().backward()
        optimizer.step()
    assert torch.equal(model.weight.cpu() == 0, zeros)
