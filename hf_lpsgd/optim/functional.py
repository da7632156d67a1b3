"""The LPSGD and LPSGDM updates on lists of tensors, without any optimizer state.

Every implementation computes in float32 (float64 for float64 parameters) whatever the dtypes of the parameter, the
gradient and the momentum buffer are, and rounds once, when it writes. What a step allocates stays below a constant,
whatever the size of the model.
"""

from __future__ import annotations

from types import ModuleType

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from .kernels import cpu, cuda, torch_ops
from .kernels.tensors import PLAIN, Scalars, Trio, local, share_memory_order

_FOREACH_DEVICES = ("cuda", "xpu", "mtia")
_FUSED: dict[str, ModuleType] = {"cpu": cpu, "cuda": cuda}


def rescaling_exponent(p: float) -> float:
    """The exponent of the rescaling for the norm order `p`, (p - 2) / (p - 1), in [0, 1)."""
    return float((p - 2.0) / (p - 1.0))


@torch.no_grad()
def lpsgd(
    params: list[Tensor],
    grads: list[Tensor],
    *,
    lr: float | Tensor,
    p: float,
    eps: float,
    weight_decay: float,
    maximize: bool = False,
    foreach: bool | None = None,
    fused: bool | None = None,
) -> None:
    """Update `params` in place by one LPSGD step: `theta <- (1 - lr*wd) * theta - lr * g / (|g| + eps)^rho`.

    Args:
        params: parameters, any shapes and floating dtypes, changed in place.
        grads: their gradients, of the same shapes.
        lr: learning rate; a tensor on the parameters' CUDA device is read there, by the fused implementation.
        p: order of the norm, at least 2; at 2 the rescaling is the identity and costs nothing.
        eps: added to `|g|` before the power.
        weight_decay: decoupled weight decay.
        maximize: ascend instead of descend.
        foreach: use the foreach implementation, or not; see `fused`.
        fused: use the fused implementation, or not. Where both are None the best one available is used: fused on CUDA
            and on the CPU, otherwise foreach on accelerators, otherwise one tensor at a time. Tensors that the fused
            implementation does not do (float64, or a parameter, gradient and buffer of different memory orders) are
            left to the others.

    Raises:
        ValueError: `fused` is True and there is no fused implementation for a parameter's device; nothing was changed.
    """
    scalars = Scalars(lr, 0.0, rescaling_exponent(p), eps, weight_decay, maximize)
    _update(list(zip(params, grads, [None] * len(params), strict=True)), scalars, foreach, fused)


@torch.no_grad()
def lpsgdm(
    params: list[Tensor],
    grads: list[Tensor],
    momentum_buffers: list[Tensor],
    *,
    lr: float | Tensor,
    momentum: float,
    p: float,
    eps: float,
    weight_decay: float,
    maximize: bool = False,
    foreach: bool | None = None,
    fused: bool | None = None,
) -> None:
    """Update `params` and `momentum_buffers` in place by one LPSGDM step.

    `m <- momentum*m + (1 - momentum)*g`, then `theta <- (1 - lr*wd) * theta - lr * m / (|m| + eps)^rho`.

    Args:
        momentum_buffers: the running means of the gradients, shaped as `params`, in float32 or the parameter's dtype,
            changed in place.
        momentum: decay of the running mean, in [0, 1).

    The other arguments and the errors are those of [`lpsgd`].
    """
    scalars = Scalars(lr, momentum, rescaling_exponent(p), eps, weight_decay, maximize)
    _update(list(zip(params, grads, momentum_buffers, strict=True)), scalars, foreach, fused)


def why_not_fused(device: torch.device) -> str | None:
    """Why there is no fused implementation for tensors on `device`, and what to do; None if there is one."""
    if device.type not in _FUSED:
        return f"there is none for the device {device.type}, only for {' and '.join(_FUSED)}"
    return _FUSED[device.type].problem(device)


def check_fused(device: torch.device, where: str = "") -> None:
    """Fail where `fused=True` was asked for and tensors are on a device that has no fused implementation.

    Args:
        device: the tensors' device; `meta` tells nothing and is let pass.
        where: said after the option's name, as " in param group 1".

    Raises:
        ValueError: says why, and what to do.
    """
    reason = None if device.type == "meta" else why_not_fused(device)
    if reason is not None:
        raise ValueError(
            f"Invalid fused{where}: True. The fused implementation cannot be used: {reason}; or leave fused=None, and "
            "the best implementation available will be used."
        )


def _update(trios: list[Trio], scalars: Scalars, foreach: bool | None, fused: bool | None) -> None:
    by_kind: dict[tuple, list[Trio]] = {}
    for trio in trios:
        param, grad, buffer = trio
        kind = (param.device, param.dtype, grad.dtype, None if buffer is None else buffer.dtype)
        by_kind.setdefault(kind, []).append(trio)
    if fused:
        for device, *_ in by_kind:
            check_fused(device)
    for (device, *dtypes), of_kind in by_kind.items():
        rest = [local(trio) for trio in of_kind]
        if fused or (fused is None and foreach is None and _is_fused_by_default(device)):
            kernel = _FUSED.get(device.type)
            if kernel is not None and kernel.supports(device, *dtypes):
                fitting: list[Trio] = []
                others: list[Trio] = []
                for trio in rest:
                    (fitting if _fits_kernel(trio) else others).append(trio)
                rest = others
                if fitting:
                    kernel.step(fitting, scalars)
                    for param, _, buffer in fitting:
                        increment_version(param)
                        if buffer is not None:
                            increment_version(buffer)
        if rest:
            use_foreach = device.type in _FOREACH_DEVICES if foreach is None else foreach
            torch_ops.step(rest, scalars, on_cpu=device.type == "cpu", foreach=use_foreach)


def _fits_kernel(trio: Trio) -> bool:
    """Whether a kernel that is given bare addresses can update it: plain tensors, laid out alike in memory."""
    param = trio[0]
    device, shape = param.device, param.shape
    try:
        for tensor in trio:
            if tensor is None:
                continue
            if type(tensor) not in PLAIN or tensor.device != device or tensor.shape != shape:
                return False
            if tensor.is_neg() or not tensor.data_ptr():
                return False
    except RuntimeError:  # of data_ptr, of the tensors that torch.func maps and transforms
        return False
    return share_memory_order(trio)


def _is_fused_by_default(device: torch.device) -> bool:
    if torch.compiler.is_compiling():  # which has no use for bare addresses
        return False
    reason = why_not_fused(device)
    if reason is not None and device.type == "cuda":
        cuda.warn_of(reason)
    return reason is None
