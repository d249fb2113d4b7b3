"""Small faults in gprune, each with the tests that must kill it; tests/mutations.py applies them.

A fault is one edit that a tired hand could make. It changes a result, never only the time that one
takes: a worse guess of the search is no fault. One that survives asks for a property, not for its
removal from here.
"""

from typing import NamedTuple


class Fault(NamedTuple):
    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]


EXACT = "tests/test_laws.py::test_exactness"
PAIRS = "tests/test_laws.py::test_every_pair_of_dtypes"
STREAM = "tests/test_laws.py::test_exactness_of_the_streaming_search"
ANY_CUT = "tests/test_laws.py::test_masks_at_any_cut"
BETWEEN = "tests/test_laws.py::test_a_cut_between_neighbours_is_rounded_down"
PASS = "tests/test_selection.py::test_a_pass_divides_at_both_ends_of_its_bracket"
PADDING = "tests/test_selection.py::test_what_pads_a_block_is_nowhere"
KNOWN = "tests/test_selection.py::test_what_is_learnt_from_a_bracket_that_missed"
COUNT = "tests/test_laws.py::test_num_to_prune"
FLOAT64 = "tests/test_laws.py::test_a_python_float_counts_in_float64"
SPARSITY = "tests/test_laws.py::test_sparsity_counts_all_entries"
DIGITS = "tests/test_laws.py::test_digits_are_counted_among_the_candidates"
HALVES = "tests/test_laws.py::test_halves_go_to_the_even_neighbour"
SEVERAL = "tests/test_laws.py::test_exactness_of_several_cuts"
SIZES = "tests/test_laws.py::test_masks_do_not_depend_on_the_sizes_of_the_search"
LAYERWISE = "tests/test_laws.py::test_layerwise"
LARGE = "tests/test_large.py::test_a_large_leaf_beside_small_ones"
OTHER_LAYOUT = "tests/test_large.py::test_a_large_leaf_in_another_layout"
GROUPS = "tests/test_methods.py::test_every_group_is_a_tensor_of_its_own"
DIM = "tests/test_dim.py"
METHODS = "tests/test_methods.py"
MASKS = "tests/test_masks.py"
SCHEDULES = "tests/test_schedules.py"
ADAPTER_MASKS = "tests/test_adapter_masks.py"
ADAPTER_BETTER = "tests/test_adapter_better.py"
SHARDED = "tests/test_sharded.py::test_global[2]"
SHARDED_COUNTS = "tests/test_sharded.py::test_every_count"
BOXES = "tests/test_sharded.py::test_boxes[2]"
MESHES = "tests/test_sharded.py::test_boxes[4]"
RANKS = "tests/test_sharded_ranks.py"
ONE_RANK = f"{RANKS}::test_what_is_wrong_on_one_rank_is_raised_on_all"
REFUSED = f"{RANKS}::test_what_cannot_be_sharded_is_refused"


def fault(name: str, file: str, old: str, new: str, *tests: str) -> Fault:
    return Fault(name, f"gprune/{file}", old, new, tests)


FAULTS = [
    # --- the law of counts ---
    fault(
        "int for round in an amount",
        "selection/amounts.py",
        "return round(number * candidates)",
        "return int(number * candidates)",
        COUNT,
    ),
    fault(
        "halves of an amount rounded up",
        "selection/amounts.py",
        "return round(number * candidates)",
        "return math.floor(number * candidates + 0.5)",
        HALVES,
    ),
    fault(
        "an amount multiplied in float32",
        "selection/amounts.py",
        "return round(number * candidates)",
        "return round((torch.tensor(number, dtype=torch.float32) * candidates).item())",
        COUNT,
    ),
    fault(
        "a Python float taken as float32",
        "selection/amounts.py",
        'dtype=torch.float64, device="cpu").mul(_as_float(number, name))',
        'dtype=torch.float32, device="cpu").mul(_as_float(number, name))',
        FLOAT64,
    ),
    fault(
        "int for round in a sparsity",
        "selection/amounts.py",
        "round(number * entries)",
        "int(number * entries)",
        HALVES,
    ),
    fault(
        "a sparsity of the candidates",
        "selection/amounts.py",
        "round(number * entries)",
        "round(number * candidates)",
        SPARSITY,
    ),
    fault(
        "what is pruned comes back to a lower sparsity",
        "selection/amounts.py",
        "return max(0, round(number * entries) - (entries - candidates))",
        "return round(number * entries) - (entries - candidates)",
        SPARSITY,
    ),
    fault(
        "an amount above 1 is let pass",
        "selection/amounts.py",
        "if number > 1:",
        "if number > 100:",
        "tests/test_compile.py::test_wrong_values_raise_the_same_error_compiled",
    ),
    fault(
        "all of the candidates are refused",
        "selection/amounts.py",
        "if number > candidates:",
        "if number >= candidates:",
        COUNT,
    ),
    # --- keys ---
    fault(
        "NaN ranks lowest",
        "selection/keys.py",
        "negative = (bits < 0) & (magnitude < space.nan)",
        "negative = (bits < 0) | (magnitude == space.nan)",
        f"{LARGE}[sixty percent NaN]",
    ),
    fault(
        "NaNs of different bits have different keys",
        "selection/keys.py",
        "torch.bitwise_and(bits, space.largest).clamp_max_(space.nan)",
        "torch.bitwise_and(bits, space.largest)",
        LARGE,
    ),
    fault(
        "negative NaNs rank lowest",
        "selection/keys.py",
        "return self.infinity - self.largest",
        "return 0",
        LARGE,
    ),
    fault(
        "one negative NaN ranks lowest",
        "selection/keys.py",
        "return self.infinity - self.largest",
        "return self.infinity - self.largest + 1",
        LARGE,
    ),
    fault(
        "-0.0 is below a bracket that starts at 0.0",
        "selection/keys.py",
        "least if least > 0 else least - 1",
        "least if least >= 0 else least - 1",
        f"{LARGE}[zeros of either sign]",
        KNOWN,
        STREAM,
    ),
    fault(
        "0.0 is above a bracket that ends at 0.0",
        "selection/keys.py",
        "greatest if greatest >= 0 else greatest - 1",
        "greatest if greatest > 0 else greatest - 1",
        f"{LARGE}[zeros of either sign]",
        KNOWN,
        STREAM,
    ),
    fault(
        "a bracket starts at what was rounded down",
        "selection/keys.py",
        "least += 0 if exact else 1",
        "least += 0",
        BETWEEN,
        ANY_CUT,
        KNOWN,
        STREAM,
    ),
    fault(
        "a cut rounded up into bfloat16",
        "selection/keys.py",
        "    if rounded.item() > value:\n        key -= 1\n",
        "    if rounded.item() < value:\n        key += 1\n",
        BETWEEN,
        ANY_CUT,
        STREAM,
    ),
    fault(
        "a bracket that ends at NaN leaves some NaNs out",
        "selection/keys.py",
        "return least, space.largest if math.isnan(high) else greatest",
        "return least, greatest",
        EXACT,
    ),
    fault(
        "keys keep the sign that absolute values drop",
        "selection/keys.py",
        "    if absolute:\n        return magnitude\n",
        "",
        EXACT,
    ),
    fault(
        "the magnitude of an integer wraps",
        "scores/magnitude.py",
        "(leaf.detach().to(torch.int64) if integer else leaf.detach()).abs()",
        "(leaf.detach().abs().to(torch.int64) if integer else leaf.detach().abs())",
        "tests/test_laws.py::test_the_magnitude_of_the_lowest_integer_does_not_wrap",
    ),
    fault(
        "int32 ranked as float32",
        "selection/keys.py",
        "torch.int32: DOUBLE",
        "torch.int32: SINGLE",
        PAIRS,
        LARGE,
    ),
    fault(
        "bfloat16 beside float16 compared in float16",
        "selection/keys.py",
        "return DOUBLE if DOUBLE in spaces else SINGLE",
        "return DOUBLE if DOUBLE in spaces else min(spaces, key=lambda space: space.bits)",
        PAIRS,
    ),
    fault(
        "int64 just beyond float64 is let pass",
        "selection/keys.py",
        "LARGEST_INT64 = 2**53",
        "LARGEST_INT64 = 2**53 + 1",
        "tests/test_laws.py::test_int64_beyond_float64_is_refused",
    ),
    # --- the stream of chunks ---
    fault(
        "a leaf of one entry is skipped",
        "selection/ranking.py",
        "scores.numel() == 0:\n                continue",
        "scores.numel() <= 1:\n                continue",
        EXACT,
    ),
    fault(
        "leaves that are not small are joined too",
        "selection/ranking.py",
        "if pieces and self._joins(pieces[-1], leaf):",
        "if pieces and leaf % 7:",
        LARGE,
    ),
    fault(
        "leaves of different dtypes are joined",
        "selection/ranking.py",
        "return small and alike and",
        "return small and",
        PAIRS,
    ),
    fault(
        "an empty leaf shifts the masks behind it",
        "selection/ranking.py",
        "sizes = [self.scores[leaf].numel() for leaf in piece]",
        "sizes = [self.scores[leaf].numel() for leaf in piece if self.scores[leaf].numel()]",
        EXACT,
    ),
    fault(
        "every block of a leaf starts where the leaf does",
        "selection/ranking.py",
        "yield Chunk(self.offsets[leaf] + at, scores",
        "yield Chunk(self.offsets[leaf], scores",
        STREAM,
    ),
    fault(
        "short blocks advance by a whole one",
        "selection/ranking.py",
        "            at += size",
        "            at += BLOCK",
        OTHER_LAYOUT,
    ),
    fault(
        "columns for rows of another layout",
        "selection/ranking.py",
        "tensor.unbind(0) for tensor in tensors",
        "tensor.unbind(-1) for tensor in tensors",
        STREAM,
    ),
    # --- a pass ---
    fault(
        "> for >= at the lower end of a bracket",
        "selection/passes.py",
        "torch.ge(raw, bounds[0]",
        "torch.gt(raw, bounds[0]",
        KNOWN,
        PASS,
    ),
    fault(
        ">= for > at the upper end of a bracket",
        "selection/passes.py",
        "torch.gt(raw, bounds[1]",
        "torch.ge(raw, bounds[1]",
        PASS,
    ),
    fault(
        "the prior is not applied to what is above",
        "selection/passes.py",
        "        flags.words(above).bitwise_and_(flags.words(prior))\n",
        "",
        PASS,
    ),
    fault(
        "the prior is not applied to what is inside",
        "selection/passes.py",
        "        flags.words(between).bitwise_and_(flags.words(prior))\n",
        "",
        PASS,
    ),
    fault(
        "padding is counted where there is no prior",
        "selection/passes.py",
        "    elif size < whole:",
        "    elif size > whole:",
        PADDING,
    ),
    fault(
        "padding is counted where there is a prior",
        "selection/passes.py",
        "        prior[size:] = False\n",
        "        prior[size:] = True\n",
        PASS,
    ),
    fault(
        "flags are written to an address that is no word's",
        "selection/passes.py",
        " and chunk.at % flags.WORD == 0",
        "",
        OTHER_LAYOUT,
    ),
    fault(
        "bytes of flags overflow",
        "selection/flags.py",
        "LANE = 128",
        "LANE = 256",
        LARGE,
    ),
    fault(
        "the last flags are not counted",
        "selection/flags.py",
        " + flags[lanes * WORD :].sum()",
        "",
        EXACT,
    ),
    # --- the search ---
    fault(
        "one too few",
        "selection/operators.py",
        "return prune(ranking, k)",
        "return prune(ranking, max(0, k - 1))",
        EXACT,
    ),
    fault(
        "ties go from the highest index",
        "selection/search.py",
        "int(positions[keys == key][tied - 1])",
        "int(positions[keys == key][-tied])",
        EXACT,
    ),
    fault(
        "one tie too many",
        "selection/search.py",
        "tied = nth - int((keys < key).sum())",
        "tied = min(nth - int((keys < key).sum()) + 1, int((keys == key).sum()))",
        EXACT,
    ),
    fault(
        "the last tie is kept",
        "selection/search.py",
        "(seen.keys == key) & (seen.positions > index)",
        "(seen.keys == key) & (seen.positions >= index)",
        EXACT,
    ),
    fault(
        "the rank at a heavy score counts what is below it",
        "selection/search.py",
        "digits.index_of_tie(ranking, low, seen.counts, nth), False",
        "digits.index_of_tie(ranking, low, seen.counts, seen.inside), False",
        STREAM,
    ),
    fault(
        "the greatest key of those below a bracket is off by one",
        "selection/search.py",
        "return _Known(known.least, low - 1,",
        "return _Known(known.least, low - 2,",
        KNOWN,
    ),
    fault(
        "the least key of those above a bracket is off by one",
        "selection/search.py",
        "return _Known(high + 1, known.most,",
        "return _Known(high + 2, known.most,",
        KNOWN,
    ),
    fault(
        "those above a bracket are not counted from the least",
        "selection/search.py",
        "known.before + known.among - behind)",
        "known.among - behind)",
        KNOWN,
    ),
    # --- digits ---
    fault(
        "the digit behind the k-th candidate's",
        "selection/digits.py",
        "torch.searchsorted(below, k)",
        "torch.searchsorted(below, k, right=True)",
        DIGITS,
        STREAM,
    ),
    fault(
        "digits count what the prior has pruned",
        "selection/digits.py",
        "counted = counted if chunk.prior is None else counted & chunk.prior",
        "counted = counted if chunk.prior is None else counted",
        DIGITS,
        STREAM,
    ),
    fault(
        "ties count what the prior has pruned",
        "selection/digits.py",
        "return equal if chunk.prior is None else equal & chunk.prior",
        "return equal",
        DIGITS,
        STREAM,
    ),
    fault(
        "the last tie of a block looked for in the next",
        "selection/digits.py",
        "number = bisect_left(ends, nth)",
        "number = bisect_left(ends, nth + 1)",
        DIGITS,
        STREAM,
    ),
    # --- several cuts ---
    fault(
        "several cuts: the bins forget the prior",
        "selection/several.py",
        "        if chunk.prior is not None:",
        "        if False:",
        SEVERAL,
    ),
    fault(
        "several cuts: the rank within a bin is the rank among all",
        "selection/several.py",
        "nth = k - int(behind[number] - counts[number])",
        "nth = min(k, int(counts[number]))",
        SEVERAL,
    ),
    fault(
        "several cuts: what is collected for one serves all",
        "selection/several.py",
        "own = collected.bins == number",
        "own = collected.bins >= 0",
        SEVERAL,
    ),
    fault(
        "several cuts: a shift too few",
        "selection/several.py",
        ".bit_length() - BITS)",
        ".bit_length() - BITS - 1)",
        SEVERAL,
    ),
    fault(
        "several cuts: what is above the range wraps",
        "selection/several.py",
        "raw.clamp_(least, greatest)",
        "raw.clamp_(least, None)",
        SEVERAL,
    ),
    fault(
        "several cuts: collected at the index in the block",
        "selection/several.py",
        "places + chunk.start, bins.index",
        "places, bins.index",
        SEVERAL,
    ),
    fault(
        "several cuts: the first for all",
        "selection/batching.py",
        "calls = [masks_at(*cut, scores",
        "cuts = list(cuts)\n            calls = [masks_at(*cuts[0], scores",
        SEVERAL,
    ),
    # --- marking ---
    fault(
        "> for >= behind the index of a cut",
        "selection/marking.py",
        "torch.ge(raw[behind:], least",
        "torch.gt(raw[behind:], least",
        ANY_CUT,
        STREAM,
    ),
    fault(
        "the index of a cut is kept",
        "selection/marking.py",
        "max(0, index + 1 - chunk.start)",
        "max(0, index - chunk.start)",
        ANY_CUT,
        STREAM,
    ),
    fault(
        "ties up to the index of a cut stay",
        "selection/marking.py",
        "torch.gt(raw[:behind], greatest",
        "torch.ge(raw[:behind], greatest",
        ANY_CUT,
        STREAM,
    ),
    fault(
        "masks at a cut drop the prior",
        "selection/marking.py",
        "            verdict.mul_(chunk.prior)\n",
        "            verdict.mul_(1)\n",
        ANY_CUT,
    ),
    # --- random draws ---
    fault(
        "all leaves have the same draws",
        "selection/draws.py",
        "_mix(_mix((seed + GAMMA) % WORD) + leaf * GAMMA)",
        "_mix(_mix((seed + GAMMA) % WORD))",
        METHODS,
    ),
    fault(
        "draws come from the global generator",
        "selection/draws.py",
        "return draw(seed, leaf, torch.arange(start, stop, dtype=torch.int64, device=device))",
        "return torch.rand(stop - start, dtype=torch.float64, device=device)",
        METHODS,
    ),
    fault(
        "draws are signed",
        "selection/draws.py",
        "return torch.bitwise_and(z >> places, 2 ** (64 - places) - 1)",
        "return z >> places",
        METHODS,
    ),
    fault(
        "every block has the draws of the first",
        "selection/ranking.py",
        "places = torch.arange(at, at + size, device=scores.device)",
        "places = torch.arange(0, size, device=scores.device)",
        SIZES,
    ),
    fault(
        "a leaf alone has the draws of the first",
        "selection/ranking.py",
        "            self.first + leaf,\n",
        "            self.first,\n",
        METHODS,
    ),
    # --- operators ---
    fault(
        "vmap takes the first dimension for the batch",
        "selection/batching.py",
        "arg.select(in_dim, i)",
        "arg.select(0, i)",
        METHODS,
    ),
    fault(
        "vmap takes the first element for every one",
        "selection/batching.py",
        "arg.select(in_dim, i)",
        "arg.select(in_dim, 0)",
        METHODS,
    ),
    fault(
        "models side by side forget the prior",
        "selection/batching.py",
        "prior = [_joined(priors)] if priors else []",
        "prior: list[Tensor] = []",
        METHODS,
    ),
    fault(
        "models side by side are taken along the first dimension",
        "selection/batching.py",
        "leaf.movedim(dim, 0)",
        "leaf",
        METHODS,
    ),
    fault(
        "fake draws have the dtype of the parameter",
        "selection/operators.py",
        "return [torch.empty(x.shape, dtype=torch.float64, device=x.device) for x in leaves]",
        "return [torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in leaves]",
        "tests/test_transforms.py::test_opcheck",
    ),
    fault(
        "a step that is not due returns the prior itself",
        "selection/operators.py",
        "[mask.clone(memory_format=torch.contiguous_format) for mask in ranking.masks]",
        "[mask for mask in ranking.masks]",
        METHODS,
    ),
    # --- methods and combinators ---
    fault(
        "given scores are ranked by absolute value",
        "unstructured.py",
        "absolute = leaves.unscored",
        "absolute = True",
        EXACT,
    ),
    fault(
        "l1 ranks by the signed value",
        "unstructured.py",
        '"l1_unstructured", amount, sparsity, dim, absolute=True)',
        '"l1_unstructured", amount, sparsity, dim, absolute=leaves.unscored)',
        METHODS,
    ),
    fault(
        "layerwise takes the first amount for all leaves",
        "comparison.py",
        "amounts = [as_scalar(one, name) for one in numbers]",
        "amounts = [as_scalar(numbers[0], name) for one in numbers]",
        LAYERWISE,
    ),
    fault(
        "a user's method brings back what the prior had pruned",
        "combinators.py",
        "return torch.logical_and(prior, kept)",
        "return kept",
        METHODS,
    ),
    # --- comparison groups ---
    fault(
        "groups are pruned by a fraction of their entries",
        "selection/rows.py",
        "resolve(amount, size, number, sparsity)",
        "resolve(amount, size, min(size, number + 1), sparsity)",
        GROUPS,
        DIM,
    ),
    fault(
        "a tie too few in a group",
        "selection/rows.py",
        "ties.cumsum(1) > tied[some]",
        "ties.cumsum(1) >= tied[some]",
        GROUPS,
        DIM,
    ),
    fault(
        "a group ranks what the prior has pruned",
        "selection/rows.py",
        "keys = keys.where(prior, torch.iinfo(keys.dtype).max)",
        "keys = keys.where(prior, 0)",
        GROUPS,
        DIM,
    ),
    fault(
        "a block of rows has the keys of the first",
        "selection/rows.py",
        "scores = ranking.scores[0][rows]",
        "scores = ranking.scores[0][: rows.stop - rows.start]",
        GROUPS,
        DIM,
    ),
    fault(
        "dims are put back as they were taken",
        "comparison.py",
        "back = sorted(range(len(order)), key=order.__getitem__)",
        "back = order",
        GROUPS,
        DIM,
    ),
    fault(
        "random groups are pruned in flat order",
        "comparison.py",
        "leaves._replace(scores=operators.random_scores(leaves.scores, seed))",
        "leaves._replace(scores=[leaf * 0 for leaf in leaves.scores])",
        GROUPS,
        DIM,
    ),
    # --- leaves ---
    fault(
        "prior masks are not taken at the places of the leaves",
        "leaves.py",
        "priors = [priors[i] for i in places if priors]",
        "priors = [mask for mask in priors if mask is not None][::-1]",
        EXACT,
    ),
    fault(
        "scores at holes shift the others",
        "leaves.py",
        "chosen = [ranked[i].detach() for i in places]",
        "chosen = [leaf.detach() for leaf in ranked if leaf is not None][: len(places)]",
        "tests/test_laws.py::test_scores_at_holes_do_not_matter",
    ),
    fault(
        "a mask at a hole is let pass",
        "leaves.py",
        'return None if other is None else "is a tensor, its parameter is None (not prunable)"',
        "return None",
        MASKS,
    ),
    # --- masks ---
    fault(
        "* for where",
        "masks.py",
        "lambda leaf, mask: torch.where(mask, leaf, leaf.new_zeros(()))",
        "lambda leaf, mask: leaf * mask",
        MASKS,
    ),
    fault(
        "straight through lets NaN through",
        "masks.py",
        "torch.nan_to_num(leaf - leaf.detach())",
        "leaf - leaf.detach()",
        MASKS,
    ),
    fault(
        "straight through has the gradient of the mask",
        "masks.py",
        "torch.where(mask, leaf, torch.nan_to_num(leaf - leaf.detach()))",
        "torch.where(mask, leaf, 0)",
        MASKS,
    ),
    fault(
        "pruned entries counted in float32",
        "masks.py",
        "(mask.numel() - mask.sum(dtype=torch.int64))",
        "(mask.numel() - mask.sum(dtype=torch.float32)).to(torch.int64)",
        MASKS,
    ),
    fault(
        "union for intersection",
        "masks.py",
        "(a & b).contiguous()",
        "(a | b).contiguous()",
        MASKS,
    ),
    # --- trees ---
    fault(
        "keys in the order of insertion under a trace",
        "trees.py",
        "list(tree) if kind is OrderedDict else optree.utils.total_order_sorted(tree)",
        "list(tree)",
        "tests/test_compile.py::test_every_container_traces",
    ),
    fault(
        "a trace forgets the order of insertion",
        "trees.py",
        "ordered = {key: values[key] for key in order}",
        "ordered = {key: values[key] for key in keys}",
        MASKS,
    ),
    fault(
        "holes take the masks of the leaves behind them",
        "trees.py",
        "[None if leaf is None else next(results) for leaf in leaves]",
        "[next(results, None) for leaf in leaves]",
        EXACT,
    ),
    fault(
        "all globs must match",
        "trees.py",
        "any(pattern.match(path) for pattern in patterns)",
        "all(pattern.match(path) for pattern in patterns)",
        MASKS,
    ),
    # --- schedules ---
    fault(
        "a schedule is not clamped",
        "schedules.py",
        "(end - begin)).clamp(0, 1)",
        "(end - begin))",
        SCHEDULES,
    ),
    fault(
        "the power is always three",
        "schedules.py",
        "* (1 - t) ** power",
        "* (1 - t) ** 3",
        SCHEDULES,
    ),
    fault(
        "one shot a step late",
        "schedules.py",
        "(_float64(step) >= due)",
        "(_float64(step) > due)",
        SCHEDULES,
    ),
    fault(
        "schedules in float32",
        "schedules.py",
        "(end - begin)).clamp(0, 1)",
        "(end - begin)).clamp(0, 1).float().double()",
        SCHEDULES,
    ),
    # --- the adapter ---
    fault(
        "a soft prior is squared",
        "adapter/drop_in.py",
        "torch.ones_like(mask) if multiplied or prior is None else prior",
        "torch.ones_like(mask) if prior is None else prior",
        ADAPTER_BETTER,
    ),
    fault(
        "soft entries are candidates",
        "adapter/drop_in.py",
        "kept = [prior == 1 for prior",
        "kept = [prior != 0 for prior",
        ADAPTER_BETTER,
    ),
    fault(
        "pairs ranked in another order",
        "adapter/drop_in.py",
        "return list(weights.values())",
        "return list(weights.values())[::-1]",
        ADAPTER_BETTER,
    ),
    fault(
        "a failure is not rolled back",
        "adapter/state.py",
        "        for restore in undo:\n            restore()\n",
        "",
        ADAPTER_BETTER,
    ),
    fault(
        "a failure leaves the data of the dense parameter masked",
        "adapter/state.py",
        "            parameter.data = values",
        "            parameter.data = parameter.data",
        ADAPTER_MASKS,
    ),
    fault(
        "detach restores masked values",
        "adapter/state.py",
        '    dense = module.get_parameter(f"{name}_orig")\n',
        '    dense = module.get_parameter(f"{name}_orig")\n'
        '    dense.data = dense.data * getattr(module, f"{name}_mask")\n',
        ADAPTER_MASKS,
    ),
    fault(
        "the second mask of a tied parameter replaces the first",
        "adapter/modules.py",
        "mask if known is None else known & mask",
        "mask",
        ADAPTER_MASKS,
    ),
    fault(
        "a tied parameter has its last name",
        "adapter/modules.py",
        "first.setdefault(id(site.dense), site)",
        "first[id(site.dense)] = site",
        ADAPTER_MASKS,
    ),
    # --- sharded ---
    fault(
        "the entries before a place do not fill the dims inside",
        "selection/boxes.py",
        "count += min(max(at, 0), length) * volume",
        "count += min(max(at, 0), length)",
        BOXES,
    ),
    fault(
        "a box begins where its leaf does",
        "selection/boxes.py",
        "found = (entries % length + first) * stride + found",
        "found = (entries % length) * stride + found",
        BOXES,
    ),
    fault(
        "any dim of a box joins the one outside it",
        "selection/boxes.py",
        "if dims and length == full:",
        "if dims:",
        BOXES,
    ),
    fault(
        "strided shards are taken for boxes",
        "selection/sharded/layouts.py",
        "if length and first != reached:",
        "if length and first < 0:",
        BOXES,
    ),
    fault(
        "every replica is counted",
        "selection/sharded/layouts.py",
        "placed is not None or at == 0",
        "placed is not None or at >= 0",
        SHARDED,
    ),
    fault(
        "leaves on different meshes",
        "selection/sharded/layouts.py",
        "if leaf.device_mesh != mesh:",
        "if leaf.device_mesh is None:",
        REFUSED,
    ),
    fault(
        "indices of the tree lack what lies before their leaf",
        "selection/sharded/parts.py",
        "            + self.starts[leaf]\n",
        "",
        SHARDED,
    ),
    fault(
        "a part ends before the index of the cut",
        "selection/sharded/parts.py",
        "box.before(index + 1 - start)",
        "box.before(index - start)",
        SHARDED,
    ),
    fault(
        "a descent forgets the bins below",
        "selection/sharded/descent.py",
        "before = int(behind[number] - counts[number])",
        "before = 0",
        SHARDED,
    ),
    fault(
        "a descent counts what is beyond its bounds",
        "selection/sharded/descent.py",
        "values[(values >= goal.low) & (values <= goal.high)]",
        "values[values <= goal.high]",
        SHARDED,
    ),
    fault(
        "a bracket below the cut counts half",
        "selection/sharded/search.py",
        "nth=task.k - below - inside",
        "nth=task.k - below",
        SHARDED_COUNTS,
    ),
    fault(
        "ties are those of the bracket",
        "selection/sharded/search.py",
        "seen.positions[seen.keys == key]",
        "seen.positions",
        SHARDED,
    ),
    fault(
        "pruned candidates tie",
        "selection/sharded/search.py",
        "equal = equal if chunk.prior is None else equal & chunk.prior",
        "equal = equal",
        SHARDED_COUNTS,
    ),
    fault(
        "the entry at the cut is kept",
        "selection/sharded/shards.py",
        "(seen.positions > last)",
        "(seen.positions >= last)",
        SHARDED,
    ),
    fault(
        "ties in replicas are kept",
        "selection/sharded/shards.py",
        "_mark(shards.others, copied, cut.value, cut.index)",
        "_mark(shards.others, copied, cut.value, -1)",
        SHARDED,
    ),
    fault(
        "pruned replicas are counted by every rank",
        "selection/sharded/shards.py",
        "masks = shards.own.ranking.scores",
        "masks = shards.scores",
        SHARDED,
    ),
    fault(
        "local shards of any shape",
        "selection/sharded/shards.py",
        "if tuple(own.shape) != box.size:",
        "if own.dim() != len(box.size):",
        REFUSED,
    ),
    fault(
        "ranks prune by amounts of their own",
        "selection/sharded/ranks.py",
        "if high != -low]",
        "if high > 2**60]",
        ONE_RANK,
    ),
    fault(
        "a rank that fails counts nothing",
        "selection/sharded/ranks.py",
        "found = self._meet(phase, [int(failure is not None), *counts]",
        "found = self._meet(phase, [0, *counts]",
        f"{RANKS}::test_a_rank_that_fails_within_the_search_fails_on_all",
    ),
    fault(
        "shards draw as if they were whole",
        "selection/sharded/operators.py",
        "box.places(torch.arange(like.numel(), device=like.device))",
        "torch.arange(like.numel(), device=like.device)",
        SHARDED,
    ),
    fault(
        "shards are ranked by draws as if they were whole",
        "selection/ranking.py",
        "places = self.boxes[leaf].places(places) if self.boxes else places",
        "places = places + 0",
        SHARDED,
    ),
    fault(
        "holes are no part of the structure",
        "calls.py",
        "if leaf is not None)",
        "if True)",
        ONE_RANK,
    ),
    fault(
        "masks may be placed in another way",
        "leaves.py",
        "if _placing(other) != _placing(leaf):",
        "if False:",
        REFUSED,
    ),
]
