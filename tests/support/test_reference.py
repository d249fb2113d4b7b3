"""The oracles themselves, against cases worked out by hand."""

import math
from collections import OrderedDict

import pytest
import torch

from tests.support import reference

inf, nan = math.inf, math.nan


@pytest.mark.parametrize(
    ("amount", "candidates", "k"),
    [
        (3, 10, 3),
        (1, 10, 1),
        (1.0, 10, 10),
        (0.0, 10, 0),
        (0, 0, 0),
        (1.0, 0, 0),
        (0.25, 10, 2),  # 2.5 to even
        (0.35, 10, 4),  # 3.5 to even
        (0.5, 5, 2),
        (0.5, 7, 4),
        (0.3, 5, 2),  # 1.5 exactly, in float64
        (torch.tensor(0.3), 5, 2),  # 1.50000006
        (torch.tensor(0.7), 5, 3),  # float32 .7 is .699999988, so 3.49999994
        (torch.tensor(0.7, dtype=torch.float64), 5, 4),  # 3.5 to even
        (torch.tensor(0.1, dtype=torch.bfloat16), 1000, 100),  # .10009765625
        (torch.tensor(0.1, dtype=torch.bfloat16), 10_000, 1001),
        (torch.tensor(7, dtype=torch.uint8), 10, 7),
    ],
)
def test_num_to_prune(amount, candidates, k):
    assert reference.num_to_prune(amount, candidates) == k


@pytest.mark.parametrize(
    ("sparsity", "entries", "pruned", "k"),
    [
        (0.5, 10, 0, 5),
        (0.5, 10, 3, 2),
        (0.5, 10, 8, 0),  # nothing comes back
        (0.25, 10, 0, 2),
        (1, 10, 4, 6),  # an int is a fraction here
        (0, 10, 4, 0),
        (torch.tensor(0.9, dtype=torch.float64), 10, 0, 9),
        (0.5, 0, 0, 0),
    ],
)
def test_num_to_reach(sparsity, entries, pruned, k):
    assert reference.num_to_reach(sparsity, entries, pruned) == k


def test_masks_above_floors():
    params = [torch.tensor([1.0, 2.0, 3.0]), None, torch.tensor([4.0, 0.0])]
    assert reference.floors(params, 2) == [2, 0, 2]
    assert reference.floors(params, 9) == [3, 0, 2]
    assert reference.floors(params, 0.5) == [2, 0, 1]
    assert reference.floors(params, 0.1) == [1, 0, 1]
    assert reference.floors(params, 0.0) == [0, 0, 0]
    assert reference.most_to_prune(params, 1) == 3
    kept = reference.masks_above_floors(params, None, 3, 1)
    assert kept == [[False, False, True], None, [True, False]]
    prior = [torch.tensor([True, False, False]), None, torch.tensor([True, True])]
    assert reference.most_to_prune(params, 2, prior) == 0
    assert reference.most_to_prune(params, 1, prior) == 1
    kept = reference.masks_above_floors(params, None, 1, 1, prior)
    assert kept == [[True, False, False], None, [True, False]]


def test_count_takes_the_amount_of_candidates_and_the_sparsity_of_entries():
    params = {"a": torch.zeros(6), "none": None, "z": torch.zeros(2, 2)}
    masks = {"a": torch.tensor([0, 0, 1, 1, 1, 1]) > 0, "none": None, "z": torch.ones(2, 2) > 0}
    assert reference.num_entries(params) == 10
    assert reference.num_candidates(params) == 10
    assert reference.num_candidates(params, masks) == 8
    assert reference.count(params, masks, amount=0.5) == 4
    assert reference.count(params, masks, sparsity=0.5) == 3


def test_leaves_are_in_pytree_order_and_none_is_a_leaf():
    tree = {"b": torch.tensor([3]), "a": OrderedDict(z=torch.tensor([1]), y=torch.tensor([2]))}
    assert reference.lists(tree) == [[1], [2], [3]]
    assert reference.paths(tree) == ["['a']['z']", "['a']['y']", "['b']"]
    assert reference.lists([None, torch.zeros(2)]) == [None, [0.0, 0.0]]


def test_entries_are_read_row_by_row_whatever_the_layout():
    square = torch.tensor([[1, 2], [3, 4]])
    assert reference.entries(square.t()) == [1, 3, 2, 4]
    assert reference.entries(torch.tensor([5.0]).expand(2, 2)) == [5.0] * 4
    assert reference.entries(torch.tensor(1.001, dtype=torch.bfloat16)) == [1.0]


def test_ties_go_from_the_lowest_flat_index_across_leaves():
    params = [torch.ones(2), None, torch.ones(3)]
    assert reference.global_masks(params, params, 3) == [
        [False, False],
        None,
        [False, True, True],
    ]


def test_order_is_by_exact_value_across_dtypes():
    params = [
        torch.tensor([2**24 + 1], dtype=torch.int32),  # float32 would round it to 2**24
        torch.tensor([2.0**24]),
        torch.tensor([1 + 2**-52], dtype=torch.float64),
        torch.tensor([1.0], dtype=torch.bfloat16),
    ]
    kept = [reference.global_masks(params, params, k) for k in range(5)]
    assert kept == [
        [[True], [True], [True], [True]],
        [[True], [True], [True], [False]],
        [[True], [True], [False], [False]],
        [[True], [False], [False], [False]],
        [[False], [False], [False], [False]],
    ]


def test_nan_is_last_and_the_zeros_are_equal():
    params = {"x": torch.tensor([nan, inf, 0.0, -0.0, -inf, nan])}
    order = [index for index, _ in reference.ranking(reference.lists(params), [[True] * 6])]
    assert order == [4, 2, 3, 1, 0, 5]


def test_what_the_prior_pruned_is_no_candidate():
    params = {"x": torch.tensor([1.0, 2.0, 3.0, 4.0])}
    masks = {"x": torch.tensor([False, True, True, True])}
    assert reference.global_masks(params, params, 2, masks) == [[False, False, False, True]]


def test_scores_at_none_leaves_do_not_matter_and_no_scores_are_magnitudes():
    params = [None, torch.tensor([-3.0, 2.0])]
    assert reference.global_masks(params, [torch.tensor([-9.0]), params[1]], 1) == [
        None,
        [False, True],
    ]
    assert reference.global_masks(params, None, 1) == [None, [True, False]]


def test_layerwise_counts_each_leaf_alone():
    params = [torch.tensor([1.0, 2.0]), None, torch.tensor([4.0, 3.0])]
    assert reference.layerwise_masks(params, params, [1, None, 1]) == [
        [False, True],
        None,
        [True, False],
    ]


@pytest.mark.parametrize(
    ("k", "threshold"),
    [
        (0, (-inf, -1)),
        (1, (-inf, 3)),
        (2, (0.0, 1)),
        (3, (0.0, 2)),
        (4, (5.0, 4)),
    ],
)
def test_threshold_is_the_kth_of_the_ranking(k, threshold):
    params = [torch.tensor([nan, 0.0, -0.0]), torch.tensor([-inf, 5.0])]
    assert reference.threshold(params, params, k) == threshold
    assert reference.masks_from_threshold(
        reference.Threshold(*threshold), params, params
    ) == reference.global_masks(params, params, k)


def test_threshold_among_the_nans():
    params = [torch.tensor([nan, 0.0]), torch.tensor([nan, nan])]
    value, index = reference.threshold(params, params, 3)
    assert math.isnan(value)
    assert index == 2
    assert reference.masks_from_threshold(reference.Threshold(nan, 2), params, params) == [
        [False, False],
        [False, True],
    ]
    assert reference.masks_from_threshold(reference.Threshold(inf, 9), params, params) == [
        [True, False],
        [True, True],
    ]


def test_masks_from_a_threshold_between_two_scores():
    params = [torch.tensor([1.0, 1.0, 2.0], dtype=torch.bfloat16)]
    prior = [torch.tensor([True, False, True])]
    assert reference.masks_from_threshold(
        reference.Threshold(1.001, -1), params, params, prior
    ) == [[False, False, True]]
    assert reference.masks_from_threshold(reference.Threshold(1.0, 0), params, params) == [
        [False, True, True]
    ]


def test_magnitudes_of_integers_do_not_wrap():
    params = [torch.tensor([-128, 127], dtype=torch.int8), torch.tensor([-0.0, -inf])]
    assert reference.magnitude(params) == [[128, 127], [0.0, inf]]


def test_apply_masks_zeroes_what_is_masked_and_nothing_else():
    params = [torch.tensor([nan, inf, 3.0]), None, torch.tensor([4])]
    masks = [torch.tensor([False, False, True]), None, None]
    assert reference.apply_masks(params, masks) == [[0, 0, 3.0], None, [4]]


@pytest.mark.parametrize(
    ("schedule", "values"),
    [
        (reference.constant(0.5), [0.5, 0.5, 0.5, 0.5, 0.5]),
        (reference.one_shot(0.5, step=2), [0.0, 0.0, 0.5, 0.5, 0.5]),
        (reference.linear(0.75, begin=1, end=4), [0.0, 0.0, 0.25, 0.5, 0.75]),
        (reference.linear(0.75, begin=1, end=3, initial=0.25), [0.25, 0.25, 0.5, 0.75, 0.75]),
        (reference.polynomial(0.5, begin=0, end=4), [0.0, 0.2890625, 0.4375, 0.4921875, 0.5]),
        (
            reference.polynomial(0.75, begin=1, end=3, initial=0.25, power=2),
            [0.25, 0.25, 0.625, 0.75, 0.75],
        ),
    ],
)
def test_schedules(schedule, values):
    assert [schedule(step) for step in range(5)] == values
