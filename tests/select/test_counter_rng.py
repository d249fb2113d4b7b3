"""Draws are SplitMix64 in a stream of the seed and the leaf."""

import pytest
import torch

import gprune as gp
from gprune.select.counter_rng import draw, draw_integers, draw_leaves


def splitmix64(seed: int, count: int) -> list[int]:
    """Steele, Lea and Flood, 2014, figure 17, in Python's integers."""
    outputs = []
    for i in range(1, count + 1):
        z = (seed + i * 0x9E3779B97F4A7C15) % 2**64
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
        outputs.append(z ^ (z >> 31))
    return outputs


def test_the_oracle_itself() -> None:
    """The first outputs for the seed 1234567, as in the reference implementations."""
    assert splitmix64(1234567, 3) == [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
    ]


@pytest.mark.parametrize("seed", [0, 1, -1, 2**63 - 1, -(2**63)])
@pytest.mark.parametrize("leaf", [0, 1, 7])
def test_draws_are_splitmix64_in_a_stream_of_the_seed_and_the_leaf(seed: int, leaf: int) -> None:
    mixed = splitmix64(seed % 2**64, 1)[0]
    stream = splitmix64((mixed + (leaf - 1) * 0x9E3779B97F4A7C15) % 2**64, 1)[0]
    integers = [z >> 11 for z in splitmix64(stream, 9)]
    expected = [integer * 2.0**-53 for integer in integers]
    assert draw_integers(seed, leaf, torch.arange(9)).tolist() == integers
    assert draw(seed, leaf, torch.arange(9)).tolist() == expected
    assert draw(seed, leaf, torch.arange(4, 9)).tolist() == expected[4:]
    assert draw(seed, leaf, torch.tensor([[8, 0], [3, 3]])).tolist() == [
        [expected[8], expected[0]],
        [expected[3], expected[3]],
    ]


@pytest.mark.parametrize("seed", [0, -1, 2**63 - 1])
def test_many_leaves_are_drawn_at_once(seed: int) -> None:
    leaves, indices = [3, 0, 2**40], [torch.tensor([5, 0]), torch.arange(0), torch.arange(4)]
    pairs = zip(leaves, indices, strict=True)
    apart = [draw_integers(seed, leaf, index.clone()) for leaf, index in pairs]
    assert draw_leaves(seed, leaves, indices).equal(torch.cat(apart))


def test_draws_are_uniform_and_differ_between_leaves_and_seeds() -> None:
    scores = gp.scores.random([torch.empty(4000), torch.empty(4000)], seed=3)
    assert all(float(x.min()) >= 0 and float(x.max()) < 1 for x in scores)
    assert all(abs(float(x.mean()) - 0.5) < 0.03 for x in scores)
    assert not scores[0].equal(scores[1])
    assert not scores[0].equal(gp.scores.random([torch.empty(4000)], seed=4)[0])


def test_random_leaves_are_drawn_apart_also_layer_by_layer() -> None:
    params = [torch.zeros(100), torch.zeros(100)]
    masks = gp.layerwise(params, pruning_method=gp.random_unstructured, seed=0, amount=50)
    assert not masks[0].equal(masks[1])
    scores = gp.scores.random(params, seed=0)
    apart = gp.layerwise(params, scores, amount=50)
    assert all(a.equal(b) for a, b in zip(masks, apart, strict=True))
