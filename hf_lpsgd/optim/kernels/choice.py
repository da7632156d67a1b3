"""What updates tensors: the implementations, the choice of one, and whether a fused kernel is trusted."""

from operator import attrgetter
from typing import Protocol

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from ...notices import warn_once, warn_user
from . import cpu, cuda, self_check, torch_ops
from .hyperparameters import Hyperparameters
from .rounding import FLOAT8
from .tensors import PLAIN_TENSOR_TYPES, Dtypes, Tensors, share_memory_order

_FOREACH_DEVICES = ("cuda", "xpu", "mtia")

# What torch.compile is to leave as it is. torch.optim's own does not import the compiler before the first call.
uncompiled = getattr(torch, "_disable_dynamo", torch.compiler.disable)


class FusedKernel(Protocol):
    """The interface of a fused kernel; a module can have it."""

    # Why it cannot be used on a device, and what to do; None if it can.
    def why_unavailable(self, device: torch.device) -> str | None: ...
    # Whether it updates a parameter, a gradient and a momentum buffer (None: no buffer) of these dtypes.
    def supports(self, device: torch.device, *dtypes: torch.dtype | None) -> bool: ...
    # Updates all tensors and returns True, or changes nothing and returns False: it cannot be used just now.
    def step(self, tensors: Tensors, hyper: Hyperparameters) -> bool: ...


FUSED_KERNELS: dict[str, FusedKernel] = {"cpu": cpu, "cuda": cuda}


def why_not_fused(device: torch.device) -> str | None:
    """Say why there is no fused implementation for tensors on `device`, and what to do; None if there is one."""
    if device.type not in FUSED_KERNELS:
        return f"there is none for the device {device.type}, only for {' and '.join(FUSED_KERNELS)}"
    return FUSED_KERNELS[device.type].why_unavailable(device)


def implementation_for(device: torch.device, foreach: bool | None = None, fused: bool | None = None) -> str:
    """Name what updates tensors on `device` with these options: fused, foreach or, one tensor at a time, single."""
    if fused or (fused is None and foreach is None and why_not_fused(device) is None):
        return "fused"
    return "foreach" if (device.type in _FOREACH_DEVICES if foreach is None else foreach) else "single"


def check_fused(device: torch.device, where: str = "", *, at_step: bool = False) -> None:
    """Fail where `fused=True` is requested for tensors on a device without a fused implementation."""
    # Tensors on the device meta may be moved before the step.
    if (device.type != "meta" or at_step) and (reason := why_not_fused(device)):
        raise ValueError(f"Invalid fused{where}: True. It cannot be used: {reason}; or leave fused=None.")


def update(tensors: Tensors, hyper: Hyperparameters, foreach: bool | None, fused: bool | None) -> None:
    """Update tensors of any devices and dtypes in place, by the implementation that is requested, or the best one."""
    if not PLAIN_TENSOR_TYPES.issuperset(map(type, tensors.params)):
        tensors = tensors.local()
    if not all(map(Tensor.numel, tensors.params)):  # as in shards of small tensors
        tensors = tensors.select([index for index, param in enumerate(tensors.params) if param.numel()])
    if fused:
        for device in {param.device for param in tensors.params}:
            check_fused(device, at_step=True)
    may_fuse = fused or (fused is None and foreach is None)
    for same in _by_kind(tensors) if tensors.params else ():
        device = same.params[0].device
        if FLOAT8 in same.dtypes and hyper.rounding is None:
            raise ValueError("A momentum in uint8 holds float8, which needs rounding='stochastic'.")
        reason = why_not_fused(device) if may_fuse else None
        if may_fuse and reason is None:
            same = _update_by_kernel(device, same, hyper, bool(fused))
        elif reason is not None and device.type == "cuda":
            warn_once(f"hf_lpsgd updates with the slower foreach implementation: {reason}")
        if same.params:
            torch_ops.step(same, hyper, foreach=implementation_for(device, foreach, fused=False) == "foreach")


# Many small tensors take as long as what Python does for each of them, so `map` calls functions that are written in C.
_device, _dtype, _shape = attrgetter("device"), attrgetter("dtype"), attrgetter("shape")


def _by_kind(tensors: Tensors) -> list[Tensors]:
    """Return the tensors, divided by the device of the parameter and the dtypes."""
    devices, dtypes = list(map(_device, tensors.params)), [list(map(_dtype, column)) for column in tensors.columns]
    if all(len(set(values)) == 1 for values in (devices, *dtypes)):
        return [tensors]
    places: dict[tuple[object, ...], list[int]] = {}
    for index, kind in enumerate(zip(devices, *dtypes, strict=True)):
        places.setdefault(kind, []).append(index)
    return [tensors.select(indices) for indices in places.values()]


def _update_by_kernel(device: torch.device, tensors: Tensors, hyper: Hyperparameters, is_demanded: bool) -> Tensors:
    """Update by the device's fused kernel the tensors that it supports, if it is trusted, and return the others."""
    kernel = FUSED_KERNELS[device.type]
    if not kernel.supports(device, *tensors.dtypes):
        return tensors
    fitting, others = tensors, tensors.select([])
    if not _fit(tensors):
        fit = [_fit(tensors.select([index])) for index in range(len(tensors.params))]
        fitting = tensors.select([index for index, fits in enumerate(fit) if fits])
        others = tensors.select([index for index, fits in enumerate(fit) if not fits])
    if not fitting.params or not _is_trusted(device, fitting.dtypes, is_demanded) or not kernel.step(fitting, hyper):
        return tensors
    increment_version([tensor for column in fitting.columns[::2] for tensor in column])  # but the gradients
    return others


def _fit(tensors: Tensors) -> bool:
    """Say whether bare addresses tell all: plain tensors on one device, each row of one shape and memory order."""
    columns = tensors.columns
    device, shapes = tensors.params[0].get_device(), list(map(_shape, tensors.params))
    try:
        for column in columns:
            if not PLAIN_TENSOR_TYPES.issuperset(map(type, column)) or set(map(Tensor.get_device, column)) != {device}:
                return False
            if any(map(Tensor.is_neg, column)) or not all(map(Tensor.data_ptr, column)):
                return False
            if column is not tensors.params and list(map(_shape, column)) != shapes:
                return False
    except RuntimeError:  # tensors that torch.func maps or transforms have no data_ptr
        return False
    return all(all(map(Tensor.is_contiguous, column)) for column in columns) or all(map(share_memory_order, *columns))


# What the kernels of this process compute wrongly, by device and dtypes; None where nothing was found.
_found_wrong: dict[tuple[torch.device, Dtypes], str | None] = {}


def why_distrusted(device: torch.device, dtypes: Dtypes) -> str | None:
    """Say what the kernel of `device` computes wrongly on such tensors, by a comparison made once; None if nothing."""
    key = (device, dtypes)
    if key not in _found_wrong:
        _found_wrong[key] = self_check.why_wrong(FUSED_KERNELS[device.type].step, device, dtypes)
    return _found_wrong[key]


def _is_trusted(device: torch.device, dtypes: Dtypes, is_demanded: bool) -> bool:
    """Say whether the kernel is trusted with tensors of these dtypes; warn once where it is not."""
    is_known = (device, dtypes) in _found_wrong
    if not is_known and device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        return False  # a capture cannot wait for results; a step before or after it checks the kernel
    wrong = why_distrusted(device, dtypes)
    found = f"fused kernel for {device.type} is wrong: {wrong}. Please report what python -m hf_lpsgd --env says"
    if wrong is not None and is_demanded:
        raise ValueError(f"Invalid fused: True. The {found}. Until then, leave fused=None.")
    if wrong is not None and not is_known:
        warn_user(f"hf_lpsgd updates by torch's own operations: the {found}.")
    return wrong is None
