"""Faults in the contracts of `gprune.testing` and of `tests/support`."""

from tests.faults import Fault, fault

FAULTS = [
    fault(
        "the contract forgets the prior masks",
        "testing/contracts.py",
        "leaf.mask & ~leaf.prior",
        "leaf.mask & ~leaf.mask",
        "tests/testing/test_contracts.py::test_mask_contract_sees_what_comes_back",
    ),
    fault(
        "the contract takes any tie",
        "testing/contracts.py",
        "[candidates].argsort(stable=True)",
        "[candidates].argsort(stable=True, descending=True)",
        "tests/testing/test_contracts.py::test_mask_contract",
    ),
    fault(
        "the contract does not count",
        "testing/contracts.py",
        "if pruned != k:",
        "if pruned > k:",
        "tests/testing/test_contracts.py::test_mask_contract",
    ),
    fault(
        "leaves that are ranked alone are ranked together",
        "testing/contracts.py",
        "for leaf in ranked] if separately else [ranked]",
        "for leaf in ranked] if False else [ranked]",
        "tests/testing/test_contracts.py::test_mask_contract_of_each_leaf",
    ),
    fault(
        "a leaf may be replaced",
        "testing/purity.py",
        'identity"] = id(leaf)',
        'identity"] = 0',
        "tests/testing/test_purity.py",
    ),
    fault(
        "changes of values are seen by their version alone",
        "testing/purity.py",
        "None if tensor.is_meta else str(tensor.tolist())",
        "None",
        "tests/testing/test_purity.py",
    ),
    Fault(
        "masks of a compiled function are not compared",
        "tests/support/transforms.py",
        "if not torch.allclose(a, b, *tolerance, equal_nan=True):",
        "if not (exact or torch.allclose(a, b, *tolerance, equal_nan=True)):",
        ("tests/support/test_transforms.py::test_compilation",),
    ),
    Fault(
        "dtypes of a compiled function may differ",
        "tests/support/transforms.py",
        'pairs["dtype"] = (got.dtype, expected.dtype)',
        'pairs["dtype"] = (None, None)',
        ("tests/support/test_transforms.py",),
    ),
]
