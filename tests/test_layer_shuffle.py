"""The sanity check of tests/bench/layer_shuffle.py, in small."""

import pytest
import torch

import gprune as gp
from tests.bench import layer_shuffle
from tests.support import reference


def test_a_shuffle_keeps_the_count_of_each_layer_and_moves_the_rest() -> None:
    masks = {"a": torch.arange(100).reshape(4, 25) < 30, "b": None, "c": torch.ones(3).bool()}
    shuffled = layer_shuffle.shuffled(masks, seed=1)
    assert [leaf.sum() for leaf in reference.tensors_of(shuffled)] == [30, 3]
    assert shuffled["b"] is None
    assert not torch.equal(shuffled["a"], masks["a"])


@pytest.mark.long
def test_training_keeps_what_is_pruned_at_zero() -> None:
    data, start = layer_shuffle.mnist1d(), layer_shuffle.initial(0)
    masks = gp.global_unstructured(gp.prunable(start), sparsity=0.8)
    one = [layer_shuffle.stack([tree]) for tree in (start, masks)]
    trained = layer_shuffle.train(*one, data, [0], 3, lambda: None)
    weight, mask = trained["0.weight"][0], masks["0.weight"]
    assert (weight[~mask] == 0).all()
    assert (weight[mask] != start["0.weight"][mask]).all()


@pytest.mark.long
def test_the_experiment_in_small() -> None:
    results = layer_shuffle.run(num_seeds=2, steps=2, sparsity=0.5)
    assert list(results["methods"]) == list(layer_shuffle.METHODS)
    text = layer_shuffle.table({"machine": layer_shuffle.machine(), "runs": [results]})
    assert text.count("±") == 1 + 3 * len(layer_shuffle.METHODS)
