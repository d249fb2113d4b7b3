"""Faults in `trees.py` and `inputs.py`."""

from tests.faults import fault

FAULTS = [
    fault(
        "prior masks are not taken at the places of the leaves",
        "inputs.py",
        "prior_list = [] if masks is None else [priors[i] for i in ranked_indices]",
        "prior_list = [] if masks is None else [x for x in priors if x is not None][::-1]",
        "tests/test_inputs.py",
    ),
    fault(
        "scores at `None` leaves shift the others",
        "inputs.py",
        "= None if scores is None else [given[i].detach() for i in ranked_indices]",
        "= None if scores is None else [x.detach() for x in given if x is not "
        "None][: len(ranked_indices)]",
        "tests/test_inputs.py::test_scores_and_amounts_at_leaves_that_are_not_ranked_do_not_matter",
    ),
    fault(
        "a mask at a `None` leaf is accepted",
        "inputs.py",
        'return None if leaf is None else f"is a tensor, {param_name} is None (not prunable)"',
        "return None",
        "tests/test_masks.py::test_a_mask_at_a_none_leaf_is_refused",
    ),
    fault(
        "keys in the order of insertion under a trace",
        "trees.py",
        "list(tree) if kind is OrderedDict else optree.utils.total_order_sorted(tree)",
        "list(tree)",
        "tests/guarantees/test_compile.py::test_every_container_traces",
    ),
    fault(
        "a trace forgets the order of insertion",
        "trees.py",
        "ordered = {key: values[key] for key in order}",
        "ordered = {key: values[key] for key in keys}",
        "tests/test_masks.py::test_dicts_keep_the_order_of_insertion",
    ),
    fault(
        "`None` leaves take the masks of the leaves behind them",
        "trees.py",
        "[None if leaf is None else next(results) for leaf in leaves]",
        "[next(results, None) for leaf in leaves]",
        "tests/test_masks.py",
        "tests/test_inputs.py",
    ),
    fault(
        "all globs must match",
        "trees.py",
        "any(pattern.match(path) for pattern in patterns)",
        "all(pattern.match(path) for pattern in patterns)",
        "tests/test_trees.py::test_prunable",
    ),
    fault(
        "an error speaks of scores that were not given",
        "inputs.py",
        'tree = "params" if error.tree == "scores" and leaves.scores is None else error.tree',
        "tree = error.tree",
        "tests/test_inputs.py::test_an_error_about_what_ranks_names_the_tree_that_was_given",
    ),
    fault(
        "masks may be placed in another way",
        "inputs.py",
        "if _placement(leaf) != _placement(param):",
        "if False:",
        "tests/select/test_ranks.py::test_what_cannot_be_sharded_is_refused",
    ),
    fault(
        "a leaf without a prior mask is ranked",
        "inputs.py",
        "if param is None or priors[i] is None:",
        "if param is None:",
        "tests/test_inputs.py",
    ),
    fault(
        "an error names every leaf",
        "trees.py",
        "for item in wrong[:MOST_NAMED]",
        "for item in wrong",
        "tests/guarantees/test_many_bad_leaves.py",
    ),
    fault(
        "the paths of all leaves are computed for each leaf",
        "methods/n_of_m.py",
        'lambda found: f"{names[found[0]]}{found[1]}"',
        "lambda found: f\"{leaf_names(treedef, 'masks')[found[0]]}{found[1]}\"",
        "tests/guarantees/test_many_bad_leaves.py",
    ),
]
