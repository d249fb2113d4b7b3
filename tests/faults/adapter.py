"""Faults in the adapter."""

from tests.faults import fault

FAULTS = [
    fault(
        "moments are not projected",
        "adapter/optimizers.py",
        "for tensor in (parameter, *of_its_shape):",
        "for tensor in (parameter,):",
        "tests/adapter/test_optimizers.py",
    ),
    fault(
        "the count of steps is projected too",
        "adapter/optimizers.py",
        'if name != "step" and isinstance',
        "if isinstance",
        "tests/adapter/test_optimizers.py",
    ),
    fault(
        "masks of later rounds are not seen",
        "adapter/optimizers.py",
        "        known.update(_masks_by_parameter(module))\n",
        "",
        "tests/adapter/test_optimizers.py",
    ),
    fault(
        "a soft prior is squared",
        "adapter/drop_in.py",
        "torch.ones_like(mask) if multiplied or prior is None else prior",
        "torch.ones_like(mask) if prior is None else prior",
        "tests/adapter/test_drop_in.py",
    ),
    fault(
        "soft entries are candidates",
        "adapter/drop_in.py",
        "kept = [prior == 1 for prior",
        "kept = [prior != 0 for prior",
        "tests/adapter/test_drop_in.py",
    ),
    fault(
        "pairs ranked in another order",
        "adapter/drop_in.py",
        "return list(weights.values())",
        "return list(weights.values())[::-1]",
        "tests/adapter/test_drop_in.py",
    ),
    fault(
        "a failure is not rolled back",
        "adapter/state.py",
        "        for restore in undo:\n            restore()\n",
        "",
        "tests/adapter/test_state.py",
    ),
    fault(
        "a failure leaves the data of the dense parameter masked",
        "adapter/state.py",
        "            parameter.data = values",
        "            parameter.data = parameter.data",
        "tests/adapter/test_modules.py",
    ),
    fault(
        "detach restores masked values",
        "adapter/state.py",
        '    dense = module.get_parameter(f"{name}_orig")\n',
        '    dense = module.get_parameter(f"{name}_orig")\n'
        '    dense.data = dense.data * getattr(module, f"{name}_mask")\n',
        "tests/adapter/test_modules.py",
    ),
    fault(
        "the second mask of a tied parameter replaces the first",
        "adapter/modules.py",
        "mask if known is None else known & mask",
        "mask",
        "tests/adapter/test_modules.py",
    ),
    fault(
        "a tied parameter has its last name",
        "adapter/modules.py",
        "first.setdefault(id(site.dense), site)",
        "first[id(site.dense)] = site",
        "tests/adapter/test_modules.py",
    ),
    fault(
        "what is pruned elsewhere has a prior mask",
        "adapter/modules.py",
        "name: mask if mask is None or pruned[name] is None else pruned[name]",
        "name: mask if pruned[name] is None else pruned[name]",
        "tests/adapter/test_modules.py::test_prior_masks_leave_out_what_is_pruned_elsewhere",
    ),
]
