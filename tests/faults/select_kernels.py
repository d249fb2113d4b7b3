"""Faults in `select`: the Triton kernels, and when they are used."""

from tests.faults import fault

INTERPRETED = "tests/select/test_kernels.py::test_in_the_interpreter"

FAULTS = [
    fault(
        "a kernel keeps what was pruned before",
        "select/kernels.py",
        "above = is_candidate & (keys > high)",
        "above = is_entry & (keys > high)",
        f"{INTERPRETED}[test_entries_beyond_2_to_the_31]",
    ),
    fault(
        "the lowest key of a bracket is outside",
        "select/kernels.py",
        "(keys >= low)",
        "(keys > low)",
        f"{INTERPRETED}[test_special_values]",
    ),
    fault(
        "NaNs have many keys in a kernel",
        "select/kernels.py",
        "keys = tl.minimum(bits & LARGEST, NAN)",
        "keys = bits & LARGEST",
        f"{INTERPRETED}[test_special_values]",
    ),
    fault(
        "the magnitude of the lowest integer wraps in a kernel",
        "select/kernels.py",
        "keys = bits.to(tl.int64)  #",
        "keys = bits  #",
        f"{INTERPRETED}[test_special_values]",
    ),
    fault(
        "tiles begin at 32-bit indices",
        "select/kernels.py",
        "first = (program - first_program) * TILE  #",
        "first = (program - first_program).to(tl.int32) * TILE  #",
        f"{INTERPRETED}[test_entries_beyond_2_to_the_31]",
    ),
    fault(
        "candidates are stored behind their slots",
        "select/kernels.py",
        "has_slot = inside & (place < num_free)",
        "has_slot = inside",
        f"{INTERPRETED}[test_too_few_slots]",
    ),
    fault(
        "the number of free slots wraps",
        "select/kernels.py",
        "tl.minimum(tl.maximum(end_slot - slot, 0), TILE)",
        "tl.minimum(end_slot - slot, TILE)",
        f"{INTERPRETED}[test_no_slots_are_left_after_2_to_the_31_too_many]",
    ),
    fault(
        "collected candidates stay in the order of the programs",
        "select/kernels.py",
        "bits = bits.index_select(0, order)",
        "bits = bits.clone()",
        f"{INTERPRETED}[test_public_functions]",
    ),
    fault(
        "queries of the same leaves share their labels",
        "select/kernels.py",
        "return query * ranked.starts[-1] + start",
        "return start",
        f"{INTERPRETED}[test_queries_of_the_same_leaves]",
    ),
    fault(
        "a leaf with gaps is read without them",
        "select/kernels.py",
        "bits = block.bits.contiguous()",
        "bits = block.bits",
        f"{INTERPRETED}[test_public_functions]",
    ),
    fault(
        "a number of entries that is odd is read as vectors",
        "select/kernels.py",
        "_address(block.prior), mask, block.bits.numel()",
        "_address(block.prior), mask",
        f"{INTERPRETED}[test_public_functions]",
    ),
    fault(
        "a kernel counts the keys above all bins in the last bin",
        "select/kernels.py",
        "row_counts + 1 + num_bins,",
        "row_counts + num_bins,",
        f"{INTERPRETED}[test_counting_is_one_launch_for_queries_of_the_same_bins]",
    ),
    fault(
        "a program counts its first tile again and again",
        "select/kernels.py",
        "first += TILE",
        "first += 0",
        f"{INTERPRETED}[test_counting_is_one_launch_for_queries_of_the_same_bins]",
    ),
    fault(
        "kernels are tried again after they failed",
        "select/accelerator.py",
        "_without_kernels.update(devices)",
        "_without_kernels.update([])",
        "tests/select/test_kernels.py::test_torch_operators_take_over_when_the_kernels_fail",
    ),
    fault(
        "a key far above all bins is below them",
        "select/kernels.py",
        "is_below = is_candidate & (numbers < lowest)",
        "is_below = is_candidate & (bins < 0)",
        f"{INTERPRETED}[test_keys_further_apart_than_int64_can_say]",
    ),
]
