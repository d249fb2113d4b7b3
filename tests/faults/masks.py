"""Faults in `masks.py` and `summaries.py`."""

from tests.faults import fault

FAULTS = [
    fault(
        "a packed mask has its first entry in the highest bit",
        "masks.py",
        "torch.ones_like(bits) << bits",
        "torch.full_like(bits, 128) >> bits",
        "tests/test_masks.py::test_packed_masks_are_bits_and_come_back",
    ),
    fault(
        "the last bits of a packed mask are lost",
        "masks.py",
        "missing := -entries.numel() % 8",
        "missing := -(entries.numel() % 8)",
        "tests/test_masks.py::test_packed_masks_are_bits_and_come_back",
    ),
    fault(
        "Jaccard is taken over all entries",
        "summaries.py",
        "either = either.clamp(min=1)",
        "either = torch.tensor([a.numel() for a, _ in pairs])",
        "tests/test_summaries.py",
    ),
    fault(
        "* for where",
        "masks.py",
        "lambda leaf, mask: torch.where(mask, leaf, leaf.new_zeros(()))",
        "lambda leaf, mask: leaf * mask",
        "tests/test_masks.py",
    ),
    fault(
        "straight through lets NaN through",
        "masks.py",
        "torch.nan_to_num(leaf - leaf.detach())",
        "leaf - leaf.detach()",
        "tests/test_masks.py",
    ),
    fault(
        "straight through has the gradient of the mask",
        "masks.py",
        "torch.where(mask, leaf, torch.nan_to_num(leaf - leaf.detach()))",
        "torch.where(mask, leaf, 0)",
        "tests/test_masks.py",
    ),
    fault(
        "pruned entries counted in float32",
        "masks.py",
        "(mask.numel() - mask.count_nonzero()).to(device)",
        "(mask.numel() - mask.sum(dtype=torch.float32)).to(torch.int64)",
        "tests/test_masks.py",
    ),
    fault(
        "negative weights count as zeros",
        "masks.py",
        "(leaf != 0).contiguous()",
        "(leaf > 0).contiguous()",
        "tests/test_masks.py::test_masks_from_zeros",
    ),
    fault(
        "union for intersection",
        "masks.py",
        "(a & b).contiguous()",
        "(a | b).contiguous()",
        "tests/test_masks.py",
    ),
    fault(
        "entries of leaves that are not prunable are in the total",
        "summaries.py",
        "[leaf for leaf in self.leaves if leaf.prunable]",
        "list(self.leaves)",
        "tests/test_summaries.py::test_summary",
    ),
    fault(
        "errors about two trees of masks name the first",
        "masks.py",
        "_check(ours, theirs, treedef, names[1], other_masks=names[0])",
        "_check(ours, theirs, treedef, names[0], other_masks=names[0])",
        "tests/test_masks.py::test_an_error_of_intersect_names_the_trees",
        "tests/test_summaries.py::test_an_error_of_agreement_names_the_trees",
    ),
]
