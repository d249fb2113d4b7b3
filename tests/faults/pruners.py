"""Faults in the pruners."""

from tests.faults import fault

FAULTS = [
    fault(
        "gradual prunes at every step",
        "pruners/gradual.py",
        "sparsity = zero_unless(is_due(due, state.step), target, name)",
        "sparsity = target",
        "tests/pruners/test_gradual.py",
    ),
    fault(
        "gradual is one step ahead of its schedule",
        "pruners/gradual.py",
        "sparsity=schedule(state.step))",
        "sparsity=schedule(state.step + 1))",
        "tests/pruners/test_gradual.py",
    ),
    fault(
        "iterative rewinds to the parameters themselves",
        "pruners/iterative.py",
        "leaf.detach().clone()",
        "leaf.detach()",
        "tests/pruners/test_iterative.py",
    ),
    fault(
        "late rewinding is one step late",
        "pruners/iterative.py",
        "is_rewind_step = state.step + 1 == rewind_to",
        "is_rewind_step = state.step == rewind_to",
        "tests/pruners/test_iterative.py",
    ),
    fault(
        "iterative does not rewind",
        "pruners/iterative.py",
        "params = _choose(ends_round, rewind_params, params)",
        "params = _choose(ends_round, params, params)",
        "tests/pruners/test_iterative.py",
    ),
    fault(
        "SET grows what it has just dropped",
        "pruners/sparse_evolution.py",
        "None if mask is None else ~mask, state.masks)",
        "None if mask is None else ~mask, survivors)",
        "tests/pruners/test_sparse_evolution.py",
    ),
    fault(
        "SET exchanges more than can grow",
        "pruners/sparse_evolution.py",
        "torch.minimum(k, mask.numel() - num_kept)",
        "k",
        "tests/pruners/test_sparse_evolution.py",
    ),
    fault(
        "SET grows the same at every step",
        "pruners/sparse_evolution.py",
        "((state.step + 1) << 32)",
        "0 * state.step",
        "tests/pruners/test_sparse_evolution.py",
    ),
    fault(
        "what SET has grown keeps its old value",
        "pruners/sparse_evolution.py",
        "return apply_masks(params, survivors)",
        "return apply_masks(params, masks)",
        "tests/pruners/test_sparse_evolution.py",
    ),
    fault(
        "RigL grows the signed gradient",
        "pruners/rigl.py",
        "-grad.abs()",
        "-grad",
        "tests/pruners/test_rigl.py",
    ),
    fault(
        "RigL never takes back what it dropped",
        "pruners/rigl.py",
        "None if mask is None else ~mask, survivors)",
        "None if mask is None else ~mask, state.masks)",
        "tests/pruners/test_rigl.py",
    ),
    fault(
        "what RigL has grown keeps its old value",
        "pruners/rigl.py",
        "intersect(state.masks, masks)",
        "masks",
        "tests/pruners/test_rigl.py",
    ),
    fault(
        "the number that is exchanged is rounded down",
        "pruners/pruner.py",
        "(exact * n.to(exact.device)).round()",
        "(exact * n.to(exact.device)).floor()",
        "tests/pruners/test_sparse_evolution.py",
        "tests/pruners/test_rigl.py",
    ),
]
