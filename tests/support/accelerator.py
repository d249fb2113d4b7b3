"""A simulated accelerator: a device of torch, written in Python, that counts what it does.

The idea:

1. A tensor of the device has a storage whose address is no memory, so no kernel of the CPU can read
   it by mistake. The data are in a storage of the CPU, which is an attribute of that storage.
   Views share the storage, and therefore the data.
2. torch makes most operators of simpler ones, as on a GPU. What arrives here are kernels.
3. A kernel takes CPU tensors over the data of its arguments, runs the operator on the CPU, and
   makes tensors of the device of the results. A result in an argument's memory is a view.
4. Tensors of the CPU are refused, except those without dimensions in element-wise operators.
5. Each kernel is counted by the rules of costs.py.

Importing this module registers the device, once in a process, as `simulated`.
"""

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import torchgen
from torch import Tensor
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

from tests.support.costs import Cost, count_call, count_operator, count_wait, measured, memory_of

__all__ = ["DEVICE", "Cost", "measured", "without_float64"]

NAME = "simulated"
NO_CHECK = "device_check: NoCheck"
_addresses = itertools.count(2**52, 2**36)  # above the addresses of programs, for 64 GiB each
_generator = torch.Generator(device="cpu")  # as a GPU has one of its own
_refused_dtypes: set[torch.dtype] = set()


@contextmanager
def without_float64() -> Iterator[None]:
    """Refuse float64 tensors on the device, as MPS does."""
    before = set(_refused_dtypes)
    _refused_dtypes.update((torch.float64, torch.complex128))
    try:
        yield
    finally:
        _refused_dtypes.intersection_update(before)


# --- tensors and their data -------------------------------------------------------------------


def is_on_device(x: Any) -> bool:
    return isinstance(x, Tensor) and x.device.type == NAME


def data_of(tensor: Tensor) -> Tensor:
    """Return a CPU tensor over the data of a tensor of the device, with its shape and strides."""
    data = tensor.untyped_storage()._simulated_data  # type: ignore[attr-defined]  # set here
    return torch.empty(0, dtype=tensor.dtype, device="cpu").set_(
        data, tensor.storage_offset(), tensor.shape, tensor.stride()
    )


def make_storage(data: torch.UntypedStorage) -> torch.UntypedStorage:
    """Return a storage of the device with these data."""
    size = data.nbytes()
    storage = torch._C._construct_storage_from_data_pointer(next(_addresses), DEVICE, size)
    storage._simulated_data = data  # torch keeps attributes for as long as the storage lives
    return storage


def place(tensor: Tensor, storage: torch.UntypedStorage, like: Tensor) -> None:
    """Give a tensor of the device this storage, with the offset, shape and strides of another."""
    torch.ops.aten.set_.source_Storage_storage_offset._op_dk(
        torch._C.DispatchKey.CPU,  # this kernel changes nothing but shapes
        tensor,
        storage,
        like.storage_offset(),
        like.shape,
        like.stride(),
    )


def wrap(host: Tensor, storage: torch.UntypedStorage | None = None) -> Tensor:
    """Return a tensor of the device with the data of a CPU tensor."""
    refuse_dtype(host.dtype)
    tensor = torch._C._acc.create_empty_tensor((0,), host.dtype)
    place(tensor, storage or make_storage(host.untyped_storage()), host)
    return tensor


def refuse_dtype(dtype: torch.dtype) -> None:
    if dtype in _refused_dtypes:
        name = str(dtype).removeprefix("torch.")
        raise TypeError(
            f"Cannot convert a MPS Tensor to {name} dtype as the MPS framework doesn't support "
            f"{name}. Please use float32 instead."
        )


# --- a kernel ---------------------------------------------------------------------------------


class Kernel:
    """One run of an operator: CPU tensors for its arguments, and tensors of the device back.

    Attributes:
        of_host: the tensor of the device for each CPU tensor, by identity.
        storages: the storage of the device for each CPU storage.
        hosts: the CPU tensors, so that none is freed and its identity used again.
        made: the results that are no argument, nor a view of one.
    """

    def __init__(self) -> None:
        self.of_host: dict[int, Tensor] = {}
        self.storages: dict[int, torch.UntypedStorage] = {}
        self.hosts: list[Tensor] = []
        self.made: list[Tensor] = []

    def to_host(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            return self.host_of(value) if is_on_device(value) else value
        if isinstance(value, (list, tuple)):
            return [self.to_host(x) for x in value]
        if isinstance(value, torch.UntypedStorage) and value.device.type == NAME:
            data = value._simulated_data  # type: ignore[attr-defined]  # set here
            self.storages[data._cdata] = value
            return data
        if isinstance(value, torch.device) and value.type == NAME:
            return torch.device("cpu")
        return value

    def host_of(self, tensor: Tensor) -> Tensor:
        host = data_of(tensor)
        self.of_host[id(host)] = tensor
        self.storages.setdefault(host.untyped_storage()._cdata, tensor.untyped_storage())
        self.hosts.append(host)
        return host

    def to_device(self, value: Any) -> Any:
        if isinstance(value, (list, tuple)):
            return type(value)(self.to_device(x) for x in value)
        if not isinstance(value, Tensor):
            return value
        if id(value) in self.of_host:
            return self.of_host[id(value)]
        data = value.untyped_storage()
        storage = self.storages.get(data._cdata)
        tensor = wrap(value, storage)
        if storage is None:
            self.made.append(tensor)
        self.of_host[id(value)] = tensor
        self.storages[data._cdata] = tensor.untyped_storage()
        self.hosts.append(value)
        return tensor

    def follow_changes_of_shape(self) -> None:
        """Give tensors whose CPU tensor was resized, or was given another storage, the same."""
        for host in self.hosts:
            tensor, data = self.of_host[id(host)], host.untyped_storage()
            storage = self.storages.get(data._cdata)
            if storage is None or storage.nbytes() != data.nbytes():
                storage = self.storages[data._cdata] = make_storage(data)
            is_same = tensor.untyped_storage()._cdata == storage._cdata
            if not is_same or placement(tensor) != placement(host):
                place(tensor, storage, host)


def placement(tensor: Tensor) -> tuple[Any, ...]:
    return tensor.storage_offset(), tensor.shape, tensor.stride()


def run(op: torch._ops.OpOverload, *args: Any, **kwargs: Any) -> Any:
    """Run an operator without a rule of its own: the fallback of the device."""
    given = named_arguments(op, args, kwargs)
    refuse_other_devices(op, given)
    if "generator" in kwargs_of(op):
        kwargs["generator"] = generator_of(kwargs.get("generator"))
    kernel = Kernel()
    host_args = [kernel.to_host(value) for value in args]
    host_kwargs = {name: kernel.to_host(value) for name, value in kwargs.items()}
    host_result = for_numbers(op, args)(*host_args, **host_kwargs)
    if op._schema.is_mutable:
        kernel.follow_changes_of_shape()
    result = kernel.to_device(host_result)
    is_view = not kernel.made and not op._schema.is_mutable and isinstance(result, (Tensor, list))
    if not is_view:
        count_operator(op, given, kernel.made)
    return result


@functools.cache
def kwargs_of(op: torch._ops.OpOverload) -> list[str]:
    return [argument.name for argument in op._schema.arguments if argument.kwarg_only]


def named_arguments(op: torch._ops.OpOverload, args: Any, kwargs: Any) -> dict[str, Any]:
    given = {a.name: value for a, value in zip(op._schema.arguments, args, strict=False)}
    return {**given, **kwargs}


def for_numbers(op: torch._ops.OpOverload, args: Any) -> torch._ops.OpOverload:
    """Return the overload for the Python numbers that torch hands over in place of tensors."""
    pairs = zip(op._schema.arguments, args, strict=False)
    numbers = [a.name for a, x in pairs if isinstance(x, (int, float)) and is_tensor(a)]
    return overload_for_numbers(op, tuple(numbers)) if numbers else op


@functools.cache
def overload_for_numbers(
    op: torch._ops.OpOverload, numbers: tuple[str, ...]
) -> torch._ops.OpOverload:
    names = [argument.name for argument in op._schema.arguments]
    for overload in op.overloadpacket.overloads():
        other = getattr(op.overloadpacket, overload)
        by_name = {argument.name: argument for argument in other._schema.arguments}
        if list(by_name) == names and all(
            is_tensor(argument) == is_tensor(by_name[argument.name])
            if argument.name not in numbers
            else str(by_name[argument.name].type) == "number"
            for argument in op._schema.arguments
        ):
            return other
    return op


def is_tensor(argument: torch.Argument) -> bool:
    return str(argument.type) == "Tensor"


def generator_of(generator: torch.Generator | None) -> torch.Generator:
    if generator is not None:
        raise RuntimeError(
            f"Expected a '{NAME}' device type for generator but found '{generator.device.type}'"
        )
    return _generator


# --- which devices may meet -------------------------------------------------------------------


@functools.cache
def elementwise_operators() -> frozenset[str]:
    """Return the operators of torch that check devices themselves: mostly TensorIterator's.

    These take a CPU tensor without dimensions for a number.
    """
    path = Path(torchgen.__file__).parent / "packaged/ATen/native/native_functions.yaml"
    entries = re.split(r"\n(?=- func: )", path.read_text())
    names = (re.match(r"- func: ([\w.]+)\(", entry) for entry in entries if NO_CHECK in entry)
    return frozenset(name[1] for name in names if name)


def refuse_other_devices(op: torch._ops.OpOverload, given: dict[str, Any]) -> None:
    """Raise an error if tensors of another device are among the arguments, as CUDA does.

    Args:
        op: the operator.
        given: its arguments by name. Numbers on the CPU are replaced by `None`.
    """
    for argument in op._schema.arguments:
        value = given.get(argument.name)
        others = [x for x in tensors_of(value) if not is_on_device(x)]
        if not others:
            continue
        is_written = argument.alias_info is not None and argument.alias_info.is_write
        is_index = op._schema.name == "aten::index" and argument.name == "indices"
        is_number = all(x.dim() == 0 and x.device.type == "cpu" for x in others)
        if is_written or not (is_index or (is_number and takes_numbers(op))):
            raise RuntimeError(
                "Expected all tensors to be on the same device, but found at least two devices, "
                f"{DEVICE} and {others[0].device}! (argument {argument.name} of {op})"
            )
        if isinstance(value, Tensor):
            given[argument.name] = None


@functools.cache
def takes_numbers(op: torch._ops.OpOverload) -> bool:
    name = op._schema.name.removeprefix("aten::")
    overload = op._schema.overload_name
    return (f"{name}.{overload}" if overload else name) in elementwise_operators()


def tensors_of(value: Any) -> list[Tensor]:
    values = value if isinstance(value, (list, tuple)) else [value]
    return [x for x in values if isinstance(x, Tensor)]


# --- operators with rules of their own --------------------------------------------------------


def copy(target: Tensor, source: Tensor, non_blocking: bool = False) -> Tensor:
    """Copy within the device, to it, or from it: then the host waits."""
    hosts = [data_of(x) if is_on_device(x) else x for x in (target, source)]
    hosts[0].copy_(hosts[1])
    if not is_on_device(target):
        count_wait("copy_")
    count_call("copy_", sum(memory_of(x) for x in (target, source) if is_on_device(x)))
    return target


def copy_from(source: Tensor, target: Tensor, non_blocking: bool = False) -> Tensor:
    return copy(target, source)


def index_put(
    target: Tensor, indices: Any, values: Tensor, accumulate: bool = False, unsafe: bool = False
) -> Tensor:
    """`target[indices] = values`, with masks and indices of the CPU as CUDA takes them."""
    if fills_one_mask(target, indices, values) and not accumulate:
        return target.masked_fill_(indices[0].to(DEVICE), values.reshape(()))
    chosen: list[Tensor | None] = []
    for index in indices:
        if index is None:
            chosen.append(None)
        elif index.dtype in (torch.bool, torch.uint8):
            chosen += index.nonzero().to(DEVICE).unbind(1)
        else:
            chosen.append(index.to(DEVICE))
    if values.dim() == 0 and is_on_device(target):
        values = values.to(DEVICE)
    op = torch.ops.aten._index_put_impl_.default
    return run(op, target, chosen, values, accumulate, unsafe)


def zero_tensor(
    size: Any, *, dtype: torch.dtype | None = None, device: Any = None, **kwargs: Any
) -> Tensor:
    """Return zeros for derivatives that are zero: they cost nothing, as torch has no memory."""
    return wrap(torch.zeros(size, dtype=dtype, device="cpu"))


def fills_one_mask(target: Tensor, indices: Any, values: Tensor) -> bool:
    """Whether one value is put at one mask: torch then fills the mask, which does not wait."""
    [mask, *more] = indices
    is_mask = mask is not None and mask.dtype == torch.bool and mask.shape == target.shape
    return is_mask and not more and values.numel() == 1


# --- registration -----------------------------------------------------------------------------


def copy_storages_in_python() -> None:
    """Replace what torch does where it would allocate memory of the device in C++.

    `copy.deepcopy` of a tensor clones its storage, and `torch.load` moves one to the device.
    """
    clone, move = torch.UntypedStorage.clone, torch.UntypedStorage.to

    def clone_storage(self: Any) -> Any:
        return make_storage(self.cpu()) if self.device.type == NAME else clone(self)

    def move_storage(self: Any, *, device: Any, non_blocking: bool = False) -> Any:
        is_arriving = torch.device(device).type == NAME != self.device.type
        return make_storage(self.clone()) if is_arriving else move(self, device=device)

    torch.UntypedStorage.clone = clone_storage
    torch.UntypedStorage.to = move_storage


def device_module() -> ModuleType:
    """Return `torch.simulated`, which torch asks for what it must know about the device."""
    module = ModuleType(f"torch.{NAME}")
    for name, function in {
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "set_device": lambda device: None,
        "synchronize": lambda device=None: count_wait("synchronize"),
        "get_amp_supported_dtype": lambda: [torch.float16, torch.bfloat16],
        "_is_in_bad_fork": lambda: False,
        "manual_seed": _generator.manual_seed,
        "manual_seed_all": _generator.manual_seed,
        "get_rng_state": lambda device=0: _generator.get_state(),
        "set_rng_state": lambda state, device=0: _generator.set_state(state),
    }.items():
        setattr(module, name, function)
    return module


def has_own_kernel(name: str) -> bool:
    """Whether a GPU has a kernel for what torch otherwise makes of simpler operators."""
    return name.startswith("aten::_foreach_") or name in (
        "aten::split_with_sizes_copy.out",
        "aten::convolution",
        "aten::convolution_backward",
        "aten::native_layer_norm",
        "aten::native_group_norm",
    )


def operator_named(name: str) -> torch._ops.OpOverload:
    packet, _, overload = name.removeprefix("aten::").partition(".")
    return getattr(getattr(torch.ops.aten, packet), overload or "default")


def register() -> list[torch.library.Library]:
    """Register the device, and return what must be kept for it to stay registered."""
    copy_storages_in_python()
    _setup_privateuseone_for_python_backend(NAME, backend_module=device_module())
    fallback = torch.library.Library("_", "IMPL")
    fallback.fallback(run, "PrivateUse1")
    aten = torch.library.Library("aten", "IMPL")
    for name in filter(has_own_kernel, torch._C._dispatch_get_all_op_names()):
        aten.impl(name, functools.partial(run, operator_named(name)), "PrivateUse1")
    aten.impl("copy_", copy, "PrivateUse1")
    aten.impl("_copy_from", copy_from, "PrivateUse1")
    aten.impl("_index_put_impl_", index_put, "PrivateUse1")
    aten.impl("_efficientzerotensor", zero_tensor, "PrivateUse1")
    return [fallback, aten]


_registered = register()
DEVICE = torch.device(f"{NAME}:0")
