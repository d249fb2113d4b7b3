"""Random scores: uniform draws that differ between seeds and leaves."""

import torch

import gprune as gp


def test_random_scores_differ_between_seeds_and_leaves() -> None:
    params = {"a": torch.zeros(1000), "b": torch.zeros(1000)}
    one, other = gp.scores.random(params, seed=1), gp.scores.random(params, seed=2)
    draws = [one["a"], one["b"], other["a"], other["b"]]
    for i, left in enumerate(draws):
        for right in draws[:i]:
            assert (left == right).double().mean() < 0.01
    masks = gp.global_unstructured(
        params, pruning_method=gp.random_unstructured, seed=1, amount=0.5
    )
    assert 420 < int(gp.num_pruned({"a": masks["a"]})) < 580  # five standard deviations of 15.8


def test_random_scores_are_uniform_multiples_of_2_to_the_minus_53() -> None:
    draws = gp.scores.random([torch.zeros(100, 100)], seed=1)[0]
    assert draws.dtype == torch.float64
    assert ((draws >= 0) & (draws < 1)).all()
    assert torch.equal(draws * 2**53, (draws * 2**53).round())
    assert abs(draws.mean() - 0.5) < 5 * 12**-0.5 / 100  # five standard deviations
    assert draws.unique().numel() == 10_000
