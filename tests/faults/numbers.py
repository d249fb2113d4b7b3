"""Faults in `schedules.py` and `allocation.py`."""

from tests.faults import fault

FAULTS = [
    fault(
        "a floor is no floor",
        "allocation.py",
        "min(min_kept, most) if s is None",
        "0 if s is None",
        "tests/test_allocation.py",
    ),
    fault(
        "the last glob wins",
        "allocation.py",
        "(overrides[glob] for glob in overrides if",
        "(overrides[glob] for glob in reversed(overrides) if",
        "tests/test_allocation.py",
    ),
    fault(
        "the plain form counts the kernel",
        "allocation.py",
        "leaf.shape if kernel else leaf.shape[:2]",
        "leaf.shape",
        "tests/test_allocation.py",
    ),
    fault(
        "the exponential ramp is linear in the density",
        "schedules.py",
        "((1 - self.initial) / (1 - self.sparsity)) ** (1 - t)",
        "1 + (1 - t) * ((1 - self.initial) / (1 - self.sparsity) - 1)",
        "tests/test_schedules.py",
    ),
    fault(
        "the wave is a whole one",
        "schedules.py",
        "torch.cos(math.pi * _progress",
        "torch.cos(2 * math.pi * _progress",
        "tests/test_schedules.py",
    ),
    fault(
        "every counts from step 0",
        "schedules.py",
        "torch.remainder(at - begin, freq)",
        "torch.remainder(at, freq)",
        "tests/test_schedules.py",
    ),
    fault(
        "the end is not due",
        "schedules.py",
        "(at <= end)",
        "(at < end)",
        "tests/test_schedules.py",
    ),
    fault(
        "a schedule is not clamped",
        "schedules.py",
        "(end - begin)).clamp(0, 1)",
        "(end - begin))",
        "tests/test_schedules.py",
    ),
    fault(
        "the power is always three",
        "schedules.py",
        "* (1 - t) ** self.power",
        "* (1 - t) ** 3",
        "tests/test_schedules.py",
    ),
    fault(
        "one shot a step late",
        "schedules.py",
        "(_float64(step) >= self.end)",
        "(_float64(step) > self.end)",
        "tests/test_schedules.py",
    ),
    fault(
        "schedules in float32",
        "schedules.py",
        "(end - begin)).clamp(0, 1)",
        "(end - begin)).clamp(0, 1).float().double()",
        "tests/test_schedules.py",
    ),
]
