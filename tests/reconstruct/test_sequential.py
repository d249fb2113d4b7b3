"""Sequential calibration: every block sees what the pruned blocks before it put out."""

import gc
import itertools
import weakref
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F  # noqa: N812  torch's own name for it

import gprune as gp
from gprune.reconstruct import sequential, sparsegpt
from gprune.testing import assert_pure
from tests.support.assertions import assert_equal_masks, assert_same
from tests.support.scoring import seeds


def block(params: Any, x: torch.Tensor) -> torch.Tensor:
    return torch.tanh(F.linear(x, params["weight"], params["bias"]))


def network(widths: list[int], seed: int) -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    return [
        {
            "weight": torch.randn(b, a, generator=generator),
            "bias": torch.randn(b, generator=generator),
        }
        for a, b in itertools.pairwise(widths)
    ]


def data(width: int, batches: int, seed: int) -> list[torch.Tensor]:
    return list(torch.randn(batches, 12, width, generator=torch.Generator().manual_seed(seed)))


def without_masks(params: Any) -> Any:
    return dict.fromkeys(params)


def unpruned(block: Any, params: Any, inputs: list[torch.Tensor]) -> tuple[Any, Any]:
    return params, without_masks(params)


def prune_block(block: Any, params: Any, inputs: list[torch.Tensor]) -> tuple[Any, Any]:
    grams = gp.scores.input_gram(block, params, inputs)
    new, masks = sparsegpt(gp.prunable(params), grams, amount=0.5)
    return {**new, "bias": params["bias"]}, masks


@given(seeds, st.lists(st.integers(1, 4), min_size=2, max_size=5), st.integers(1, 3))
def test_each_block_is_pruned_on_the_outputs_of_the_pruned_blocks(
    seed: int, widths: list[int], batches: int
) -> None:
    """By a loop that is written out."""
    params, inputs = network(widths, seed), data(widths[0], batches, seed + 1)
    new, masks = sequential([block] * len(params), params, inputs, prune_block)
    xs = inputs
    wanted, wanted_masks = [], []
    for tree in params:
        pruned, mask = prune_block(block, tree, xs)
        wanted.append(pruned)
        wanted_masks.append(mask)
        xs = [block(pruned, x) for x in xs]
    assert_same(list(new), wanted)
    assert_equal_masks(list(masks), wanted_masks, wanted_masks)


def test_what_the_function_is_called_with() -> None:
    """The block itself, its own parameters, and the outputs of the new parameters before it."""
    doubled, tripled = (lambda p, x: p * x), (lambda p, x: p * x + 1)
    calls: list[Any] = []

    def record(block: Any, params: Any, inputs: Any) -> tuple[Any, Any]:
        calls.append((block, params, [float(x) for x in inputs]))
        return params * 10, params > 0

    params = [torch.tensor(2.0), torch.tensor(3.0)]
    inputs = [torch.tensor(1.0), torch.tensor(-1.0)]
    new, masks = sequential([doubled, tripled], params, inputs, record)
    assert calls == [(doubled, params[0], [1, -1]), (tripled, params[1], [20, -20])]
    assert [float(p) for p in new] == [20, 30]
    assert [mask.tolist() for mask in masks] == [True, True]


def test_blocks_of_one_tree_each_and_batches_of_any_type() -> None:
    """A batch may be a tuple, which the blocks hand on: hidden states and an attention mask."""

    def layer(params: Any, batch: tuple[torch.Tensor, torch.Tensor]) -> Any:
        x, attention = batch
        return F.linear(x, params) * attention, attention

    params = [torch.eye(3), 2 * torch.eye(3)]
    seen: list[Any] = []

    def keep(block: Any, params: Any, inputs: Any) -> tuple[Any, Any]:
        seen.extend(inputs)
        return params, None

    batch = torch.ones(2, 3), torch.tensor([[1.0], [0.0]])
    new, masks = sequential([layer, layer], params, [batch], keep)
    assert_same(list(new), params)
    assert list(masks) == [None, None]
    assert torch.equal(seen[1][0], torch.tensor([[1.0, 1, 1], [0, 0, 0]]))
    assert seen[1][1] is batch[1]


def test_the_inputs_of_one_block_are_in_memory_at_a_time() -> None:
    """Those of the block before are gone when the next is pruned, but those of the caller."""
    params, inputs = network([3] * 5, 0), data(3, 2, 1)
    alive: list[weakref.ref[torch.Tensor]] = []

    def prune(block: Any, params: Any, given: list[torch.Tensor]) -> tuple[Any, Any]:
        gc.collect()
        assert not any(ref() is not None for ref in alive)
        alive[:] = [weakref.ref(x) for x in given if not any(x is mine for mine in inputs)]
        return params, without_masks(params)

    sequential([block] * 4, params, inputs, prune)
    assert len(alive) == 2


def test_the_last_block_is_not_run_for_outputs_that_nobody_reads() -> None:
    runs: list[int] = []

    def counted(params: Any, x: torch.Tensor) -> torch.Tensor:
        runs.append(1)
        return block(params, x)

    params = network([3] * 4, 0)
    sequential([counted] * 3, params, data(3, 2, 1), unpruned)
    assert len(runs) == 2 * 2


def test_outputs_have_no_history() -> None:
    """Else every batch would keep what its gradient needs."""
    params = [
        {name: torch.nn.Parameter(p) for name, p in tree.items()} for tree in network([3] * 3, 0)
    ]
    flags: list[bool] = []

    def prune(block: Any, params: Any, inputs: list[torch.Tensor]) -> tuple[Any, Any]:
        flags.extend(x.requires_grad for x in inputs)
        return params, without_masks(params)

    sequential([block] * 2, params, data(3, 2, 1), prune)
    assert flags == [False] * 4


def test_a_generator_of_batches_is_read_once() -> None:
    params, inputs = network([3] * 3, 0), data(3, 2, 1)
    new, masks = sequential([block] * 2, params, iter(inputs), prune_block)
    wanted, wanted_masks = sequential([block] * 2, params, inputs, prune_block)
    assert_same(list(new), list(wanted))
    assert_same(list(masks), list(wanted_masks))


def test_inputs_do_not_change() -> None:
    assert_pure(
        lambda params, inputs: sequential([block] * 2, params, inputs, prune_block),
        network([3] * 3, 0),
        data(3, 2, 1),
        may_return_inputs=True,  # the biases
    )


# --- bad inputs ----------------------------------------------------------------------------------


@pytest.mark.parametrize("num_blocks", [0, 1, 3])
def test_blocks_and_parameters_must_be_as_many(num_blocks: int) -> None:
    with pytest.raises(ValueError, match=r"blocks|params"):
        sequential([block] * num_blocks, network([3] * 3, 0), data(3, 1, 1), prune_block)


def test_no_batches_are_refused() -> None:
    with pytest.raises(ValueError, match="batches"):
        sequential([block], network([3, 3], 0), [], prune_block)


def test_one_batch_in_place_of_batches_is_refused() -> None:
    """Its rows would be taken for batches."""
    with pytest.raises(TypeError, match="batches"):
        sequential([block], network([3, 3], 0), data(3, 1, 1)[0], prune_block)


def test_a_function_that_returns_no_pair_is_refused() -> None:
    with pytest.raises((TypeError, ValueError), match="prune_block"):
        sequential([block], network([3, 3], 0), data(3, 1, 1), lambda block, params, inputs: params)


def test_an_error_is_that_of_the_function() -> None:
    def fail(block: Any, params: Any, inputs: Any) -> Any:
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        sequential([block], network([3, 3], 0), data(3, 1, 1), fail)
