"""Faults in the methods and the combinators."""

from tests.faults import fault

FAULTS = [
    fault(
        "channels that are pruned whole are candidates",
        "methods/structured.py",
        "return [mask.any(_other_dims(mask, dim % mask.dim())) for mask in leaves.masks]",
        "return [torch.ones_like(mask.any(_other_dims(mask, dim % mask.dim()))) for mask "
        "in leaves.masks]",
        "tests/methods/test_structured.py",
    ),
    fault(
        "the Frobenius norm is the 1-norm",
        "methods/structured.py",
        '2 if n == "fro" else n',
        '1 if n == "fro" else n',
        "tests/methods/test_structured.py",
    ),
    fault(
        "the first channels of a tie are kept",
        "methods/structured.py",
        "    channels = leaves._replace(scores=norms, ranked_by=norms, masks=alive)",
        "    norms = [x.flip(0) for x in norms]\n"
        "    channels = leaves._replace(scores=norms, ranked_by=norms, masks=alive)",
        "tests/methods/test_structured.py",
    ),
    fault(
        "padding of a group is a candidate",
        "methods/n_of_m.py",
        "        return _groups(torch.ones_like(scores, dtype=torch.bool), m, dim)\n",
        "        return None\n",
        "tests/methods/test_n_of_m.py",
    ),
    fault(
        "n are pruned, not kept",
        "methods/n_of_m.py",
        "(size - min(n, size)) / size",
        "min(n, size) / size",
        "tests/methods/test_n_of_m.py",
    ),
    fault(
        "groups of n of m lie along the last dim",
        "methods/n_of_m.py",
        "    moved = tensor.movedim(dim, -1)\n    return pad",
        "    moved = tensor\n    return pad",
        "tests/methods/test_n_of_m.py",
    ),
    fault(
        "blocks that are cut off are divided by the size of whole ones",
        "methods/blocks.py",
        "return sums / _tiles(torch.ones_like(exact), block).sum(-1)",
        "return sums / math.prod(block)",
        "tests/methods/test_blocks.py",
    ),
    fault(
        "blocks forget what single entries the prior has pruned",
        "methods/blocks.py",
        "    if not leaves.masks:\n        return masks\n",
        "    if masks:\n        return masks\n",
        "tests/methods/test_blocks.py",
    ),
    fault(
        "one group may keep too many",
        "methods/n_of_m.py",
        "if too_many.any():",
        "if too_many.sum() > 1:",
        "tests/methods/test_n_of_m.py",
    ),
    fault(
        "given scores are ranked by absolute value",
        "methods/lowest.py",
        "absolute = absolute or (leaves.scores is None and seed is None)",
        "absolute = True",
        "tests/methods/test_unstructured.py::test_methods_of_one_tensor",
    ),
    fault(
        "l1 ranks by the signed value",
        "methods/unstructured.py",
        "per_leaf=per_leaf, method=method, absolute=True",
        "per_leaf=per_leaf, method=method",
        "tests/methods/test_unstructured.py",
    ),
    fault(
        "layerwise takes the first amount for all leaves",
        "methods/lowest.py",
        "amounts = [as_scalar(one, name) for one in numbers]",
        "amounts = [as_scalar(numbers[0], name) for one in numbers]",
        "tests/methods/test_lowest.py::test_amounts_per_leaf_and_integer_amounts_per_group",
    ),
    fault(
        "a user's method brings back what the prior had pruned",
        "methods/method.py",
        "return torch.logical_and(prior, kept)",
        "return kept",
        "tests/methods/test_method.py::test_a_users_method_sees_the_whole_tree_once",
    ),
    fault(
        "dims are put back as they were taken",
        "methods/lowest.py",
        "back = sorted(range(len(order)), key=order.__getitem__)",
        "back = order",
        "tests/methods/test_lowest.py::test_every_group_is_a_tensor_of_its_own",
    ),
    fault(
        "random groups are pruned in flat order",
        "methods/lowest.py",
        'scores = operators.random_scores(scores, seed, "")',
        "scores = [leaf * 0 for leaf in scores]",
        "tests/methods/test_lowest.py::test_random_groups_are_the_lowest_of_random_scores",
    ),
    fault(
        "the inputs of a convolution are one dim of its weight",
        "methods/dims.py",
        "return tuple(range(1, leaf.dim())) or (0,)",
        "return tuple(range(1, leaf.dim()))[:1] or (0,)",
        "tests/methods/test_dims.py",
    ),
    fault(
        "groups of a single entry are accepted",
        "methods/dims.py",
        "any(shape[dim] != 1 for dim in dims)",
        "any(shape[dim] != 0 for dim in dims)",
        "tests/methods/test_dims.py",
    ),
    fault(
        "a user's method under layerwise is given all numbers",
        "methods/method.py",
        "key: value[i] if key in NUMBER_ARGUMENTS",
        "key: value[0] if key in NUMBER_ARGUMENTS",
        "tests/methods/test_method.py::test_a_users_method_is_given_the_number_of_its_leaf",
    ),
    fault(
        "an error of a user's method is taken for a wrong call",
        "prune.py",
        "        raise_with_path(error, leaves)\n"
        "    except TypeError:\n"
        "        check_arguments(method, arguments)\n"
        "        raise\n"
        "    return unflatten_like(leaves.treedef, leaves.flat, kept)\n"
        "\n"
        "\n"
        "@raise_on_all_ranks\n"
        "def layerwise",
        "        raise_with_path(error, leaves)\n"
        "    except TypeError:\n"
        "        check_arguments(method, arguments)\n"
        "        raise TypeError(method.__name__) from None\n"
        "    return unflatten_like(leaves.treedef, leaves.flat, kept)\n"
        "\n"
        "\n"
        "@raise_on_all_ranks\n"
        "def layerwise",
        "tests/methods/test_method.py::test_a_type_error_of_a_users_method_is_its_own",
    ),
    fault(
        "several thresholds give the masks of the first",
        "prune.py",
        "return [_masks_of_one(*pair, leaves) for pair in pairs]",
        "return [_masks_of_one(value[0], index[0], leaves) for _ in pairs]",
        "tests/test_prune.py",
    ),
    fault(
        "a method can be changed",
        "methods/method.py",
        "    def __setattr__(self, name: str, value: Any) -> None:\n",
        "    def _setattr(self, name: str, value: Any) -> None:\n",
        "tests/methods/test_method.py::"
        "test_a_method_is_a_small_object_that_stands_for_its_function",
    ),
    fault(
        "an error of a structured method does not name it",
        "methods/structured.py",
        "require_unsharded(leaves.ranked_by, method)",
        'require_unsharded(leaves.ranked_by, "a structured method")',
        "tests/select/test_ranks.py::test_what_cannot_be_sharded_is_refused",
    ),
    fault(
        "means of blocks on a device without float64",
        "methods/blocks.py",
        "scores.to(float64_device(scores.device)).to(torch.float64)",
        "scores.to(torch.float64)",
        "tests/guarantees/test_accelerator.py::test_float32_needs_no_float64_on_the_device",
    ),
    fault(
        "norms of channels on a device without float64",
        "methods/structured.py",
        "scores.to(float64_device(scores.device)).to(torch.float64)",
        "scores.to(torch.float64)",
        "tests/guarantees/test_accelerator.py::test_methods_that_need_float64_for_some_dtypes",
    ),
    fault(
        "masks of groups where the draws are",
        "methods/lowest.py",
        "mask.to(leaves.params[i].device)",
        "mask",
        "tests/guarantees/test_accelerator.py::test_methods_that_need_float64_for_some_dtypes",
    ),
    fault(
        "the masks of a batch share their memory",
        "methods/n_of_m.py",
        "part.clone() for part",
        "part for part",
        "tests/guarantees/test_small_leaves.py",
    ),
    fault(
        "a leaf without a prior mask hides those of its batch",
        "methods/n_of_m.py",
        "if all(prior is None",
        "if any(prior is None",
        "tests/guarantees/test_small_leaves.py",
    ),
    fault(
        "the leaves of a batch swap their masks",
        "methods/n_of_m.py",
        "zip(numbers, parts, strict=True)",
        "zip(numbers, parts[::-1], strict=True)",
        "tests/guarantees/test_small_leaves.py",
    ),
]
