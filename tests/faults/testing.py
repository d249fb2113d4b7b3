"""Faults in the contracts of `gprune.testing`."""

from tests.faults import fault

FAULTS = [
    fault(
        "the contract forgets the prior masks",
        "testing/mask_checks.py",
        "for index in (mask & ~before).nonzero().tolist()",
        "for index in (mask & before & ~before).nonzero().tolist()",
        "tests/testing/test_contracts.py::test_mask_contract_sees_what_comes_back",
    ),
    fault(
        "the contract takes any tie",
        "testing/mask_checks.py",
        "argsort(stable=True)",
        "argsort(stable=True, descending=True)",
        "tests/testing/test_contracts.py::test_mask_contract",
    ),
    fault(
        "the contract does not count",
        "testing/mask_checks.py",
        "if k is not None and pruned != k:",
        "if k is not None and pruned > k:",
        "tests/testing/test_contracts.py::test_mask_contract",
    ),
    fault(
        "rankings of each leaf are given the numbers of the first",
        "testing/mask_checks.py",
        "if leaf is not None][i]",
        "if leaf is not None][0]",
        "tests/testing/test_mask_checks.py::test_mask_contract_of_each_leaf",
    ),
    fault(
        "a result that is an input is accepted",
        "testing/purity.py",
        "rows if a is not b]",
        "rows if a is None]",
        "tests/testing/test_purity.py",
    ),
    fault(
        "changes of values are seen by their version alone",
        "testing/purity.py",
        "and _bits(now) != _bits(then):",
        "and False:",
        "tests/testing/test_purity.py",
    ),
    fault(
        "masks of a compiled function are not compared",
        "testing/transforms.py",
        "if not torch.allclose(a, b, *tolerance, equal_nan=True):",
        "if not (exact or torch.allclose(a, b, *tolerance, equal_nan=True)):",
        "tests/testing/test_transforms.py::test_compilation",
    ),
    fault(
        "dtypes of a compiled function may differ",
        "testing/transforms.py",
        "(tuple(got.shape), got.dtype), (tuple(expected.shape), expected.dtype)",
        "(tuple(got.shape), None), (tuple(expected.shape), None)",
        "tests/testing/test_transforms.py",
    ),
]
