"""The LPSGD and LPSGDM updates on lists of tensors, without any optimizer state.

[`hf_lpsgd.optim.kernels`][] says what all implementations have in common.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from typing import Literal

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from ..notices import warn_user
from .kernels import FUSED_KERNELS, self_check, torch_ops
from .kernels.rounding import StochasticRounding
from .kernels.self_check import Dtypes
from .kernels.tensors import (
    PLAIN_TENSOR_TYPES,
    ParamGradBuffer,
    StepHyperparameters,
    SumOfSquares,
    local,
    share_memory_order,
)

_FOREACH_DEVICES = ("cuda", "xpu", "mtia")

# `single` is one tensor at a time.
Implementation = Literal["fused", "foreach", "single"]


def rescaling_exponent(p: float) -> float:
    """The exponent of the rescaling for the norm order `p`: `rho = (p - 2) / (p - 1)`, in [0, 1)."""
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
    grad_rms: float | None = None,
    lr_factor: float = 1.0,
    bounded: bool = True,
    squares: SumOfSquares | None = None,
    rounding: StochasticRounding | None = None,
    maximize: bool = False,
    foreach: bool | None = None,
    fused: bool | None = None,
) -> None:
    """Update `params` in place by one LPSGD step: `theta <- (1 - lr*wd) * theta - lr * g / (|g| + eps)^rho`.

    Args:
        params: parameters, of any shapes and floating dtypes, changed in place.
        grads: their gradients, of the same shapes.
        lr: learning rate. The fused implementation reads a tensor on the parameters' CUDA device there.
        p: order of the norm, at least 2. At 2 there is no rescaling, and it costs nothing.
        eps: added to `|g|` before the power.
        weight_decay: decoupled weight decay.
        grad_rms: reference size r of the gradient; the update is then `lr * g/r / (|g|/r)^rho` for `|g| <= r`. None is
            the paper's step, where r is 1 and nothing is bounded.
        lr_factor: the learning rate of the update over that of the decay, with `grad_rms`; 1 without it.
        bounded: with `grad_rms`, take r for the magnitude of a larger gradient, so that no element moves by more than
            `lr_factor * lr`.
        squares: gathers the sum of the squares of the gradients.
        rounding: round what is stored in bfloat16 or float16 by these random numbers; None rounds to nearest.
        maximize: ascend instead of descend.
        foreach: use the foreach implementation, or not; see `fused`.
        fused: use the fused implementation, or not. Where both are None, the best available one is used: fused on
            CUDA and on the CPU, otherwise foreach on accelerators, otherwise one tensor at a time. The fused
            implementation does not update float64 tensors, nor those whose parameter, gradient and buffer differ in
            memory order; the others update these.

    Raises:
        ValueError: `fused` is True and there is no fused implementation for a parameter's device, or `lr_factor` is
            not 1 and there is no `grad_rms`; nothing was changed.
    """
    hyper = _hyperparameters(lr, 0.0, p, eps, weight_decay, maximize, grad_rms, lr_factor, bounded, squares, rounding)
    _update(_triples(params, grads, [None] * len(params), rounding), hyper, foreach, fused)


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
    grad_rms: float | None = None,
    lr_factor: float = 1.0,
    bounded: bool = True,
    squares: SumOfSquares | None = None,
    rounding: StochasticRounding | None = None,
    maximize: bool = False,
    foreach: bool | None = None,
    fused: bool | None = None,
) -> None:
    """Update `params` and `momentum_buffers` in place by one LPSGDM step.

    `m <- momentum*m + (1 - momentum)*g`, then `theta <- (1 - lr*wd) * theta - lr * m / (|m| + eps)^rho`.

    All other arguments and the errors are those of [`lpsgd`][hf_lpsgd.optim.functional.lpsgd].

    Args:
        momentum_buffers: the moving averages of the gradients, shaped as `params`, in float32, bfloat16 or the
            parameter's dtype, changed in place.
        momentum: decay of the moving average, in [0, 1).
    """
    hyper = _hyperparameters(
        lr, momentum, p, eps, weight_decay, maximize, grad_rms, lr_factor, bounded, squares, rounding
    )
    _update(_triples(params, grads, momentum_buffers, rounding), hyper, foreach, fused)


def _triples(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    buffers: Sequence[Tensor | None],
    rounding: StochasticRounding | None = None,
) -> list[ParamGradBuffer]:
    numbers = range(len(params)) if rounding is None or rounding.numbers is None else rounding.numbers
    # For each parameter and step, so by what costs least.
    return [tuple.__new__(ParamGradBuffer, pieces) for pieces in zip(params, grads, buffers, numbers, strict=True)]


def _hyperparameters(
    lr: float | Tensor,
    momentum: float,
    p: float,
    eps: float,
    weight_decay: float,
    maximize: bool,
    grad_rms: float | None,
    lr_factor: float,
    bounded: bool,
    squares: SumOfSquares | None,
    rounding: StochasticRounding | None,
) -> StepHyperparameters:
    rho = rescaling_exponent(p)
    if grad_rms is None and lr_factor != 1:
        raise ValueError(f"Invalid lr_factor: {lr_factor} has no effect without grad_rms. Give grad_rms a number too.")
    # g/r / (|g|/r)^rho is g / |g|^rho times this.
    lr_scale = 1.0 if grad_rms is None else lr_factor * grad_rms ** (rho - 1.0)
    bound = math.inf if grad_rms is None or not bounded else grad_rms
    key = None if rounding is None else rounding.key
    return StepHyperparameters(lr, momentum, rho, eps, weight_decay, maximize, lr_scale, bound, squares, key)


@torch.no_grad()
def measure_ahead(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    buffers: Sequence[Tensor | None],
    momentum: float,
    squares: SumOfSquares,
) -> None:
    """Gather the squares that a step would gather, without making it."""
    torch_ops.measure_ahead([local(triple) for triple in _triples(params, grads, buffers)], momentum, squares)


def why_not_fused(device: torch.device) -> str | None:
    """Why there is no fused implementation for tensors on `device`, and what to do; None if there is one."""
    if device.type not in FUSED_KERNELS:
        return f"there is none for the device {device.type}, only for {' and '.join(FUSED_KERNELS)}"
    return FUSED_KERNELS[device.type].why_unavailable(device)


def default_implementation(device: torch.device) -> tuple[Implementation, str | None]:
    """What updates tensors on `device` where neither `foreach` nor `fused` is set, and why it is not fused, if so."""
    reason = why_not_fused(device)
    if reason is None:
        return "fused", None
    return "foreach" if device.type in _FOREACH_DEVICES else "single", reason


def implementation_for(device: torch.device, foreach: bool | None, fused: bool | None) -> Implementation:
    """What updates tensors on `device` with these options, where a fused implementation that is asked for exists."""
    if fused:
        return "fused"
    if foreach is None and fused is None:
        return default_implementation(device)[0]
    use_foreach = device.type in _FOREACH_DEVICES if foreach is None else foreach
    return "foreach" if use_foreach else "single"


def check_fused(device: torch.device, where: str = "", *, at_step: bool = False) -> None:
    """Fail where `fused=True` was asked for and tensors are on a device that has no fused implementation.

    Tensors on the device `meta` may be moved later, so they are let pass, but not `at_step`.
    """
    reason = None if device.type == "meta" and not at_step else why_not_fused(device)
    if reason is not None:
        raise ValueError(
            f"Invalid fused{where}: True. The fused implementation cannot be used: {reason}; or leave fused=None, and "
            "the best implementation available will be used."
        )


def _update(
    triples: list[ParamGradBuffer], hyper: StepHyperparameters, foreach: bool | None, fused: bool | None
) -> None:
    by_kind: dict[tuple[torch.device, tuple[torch.dtype | None, ...]], list[ParamGradBuffer]] = {}
    for triple in triples:
        param, grad, buffer, _ = triple
        kind = (param.device, (param.dtype, grad.dtype, None if buffer is None else buffer.dtype))
        by_kind.setdefault(kind, []).append(triple)
    if fused:
        for device, _ in by_kind:
            check_fused(device, at_step=True)
    for (device, dtypes), of_kind in by_kind.items():
        rest = [local(triple) for triple in of_kind]
        if fused or (fused is None and foreach is None and _is_fused_by_default(device)):
            rest = _update_by_kernel(device, dtypes, rest, hyper, is_demanded=bool(fused))
        if rest:
            use_foreach = device.type in _FOREACH_DEVICES if foreach is None else foreach
            torch_ops.step(rest, hyper, foreach=use_foreach)


def _update_by_kernel(
    device: torch.device,
    dtypes: tuple[torch.dtype | None, ...],
    triples: list[ParamGradBuffer],
    hyper: StepHyperparameters,
    is_demanded: bool,
) -> list[ParamGradBuffer]:
    """Update those of `triples` that the device's fused kernel can update, and return the others."""
    kernel = FUSED_KERNELS.get(device.type)
    if kernel is None or not kernel.supports(device, *dtypes):
        return triples
    fitting: list[ParamGradBuffer] = []
    others: list[ParamGradBuffer] = []
    for triple in triples:
        (fitting if _fits_kernel(triple) else others).append(triple)
    if not fitting:
        return others
    if (device, dtypes) not in _proved and not _prove(device, dtypes, is_demanded):
        return triples
    if not kernel.step(fitting, hyper):
        return triples
    for param, _, buffer, _ in fitting:
        increment_version(param)
        if buffer is not None:
            increment_version(buffer)
    return others


# What the kernels of this process compute wrongly, by device and dtypes; None where nothing was found.
_found_wrong: dict[tuple[torch.device, Dtypes], str | None] = {}
_proved: set[tuple[torch.device, Dtypes]] = set()


def why_distrusted(device: torch.device, dtypes: Dtypes) -> str | None:
    """What the fused kernel of `device` computes wrongly on tensors of these dtypes; None if nothing was found.

    The first call for a device and dtypes compares it with torch's own operations; later ones know.
    """
    key = (device, dtypes)
    if key not in _found_wrong:
        _found_wrong[key] = self_check.why_wrong(FUSED_KERNELS[device.type].step, device, dtypes)
    return _found_wrong[key]


def _prove(device: torch.device, dtypes: Dtypes, is_demanded: bool) -> bool:
    """Whether the kernel can be trusted with tensors of these dtypes; warns where it cannot."""
    if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        return False  # a capture cannot wait for results; it is proved by a step before or after
    is_known = (device, dtypes) in _found_wrong
    wrong = why_distrusted(device, dtypes)
    if wrong is None:
        _proved.add((device, dtypes))
        return True
    message = (
        f"the fused kernel of hf_lpsgd for {device.type} computes something else than torch here: {wrong}. Please "
        "report this, with the output of python -m hf_lpsgd --env"
    )
    if is_demanded:
        raise ValueError(f"Invalid fused: True. {message[0].upper()}{message[1:]}. Until then, leave fused=None.")
    if not is_known:
        warn_user(f"Torch's own operations are used: {message}.")
    return False


def _fits_kernel(triple: ParamGradBuffer) -> bool:
    """Whether a kernel that is given bare addresses can update it: plain tensors that share one memory order."""
    param, grad, buffer, _ = triple
    device, shape = param.device, param.shape
    try:
        for tensor in (param, grad) if buffer is None else (param, grad, buffer):
            if type(tensor) not in PLAIN_TENSOR_TYPES or tensor.device != device or tensor.shape != shape:
                return False
            if tensor.is_neg() or not tensor.data_ptr():
                return False
    except RuntimeError:  # tensors that torch.func maps or transforms have no data_ptr
        return False
    return share_memory_order(triple)


def _is_fused_by_default(device: torch.device) -> bool:
    if torch.compiler.is_compiling():  # a compiled graph has no use for bare addresses
        return False
    name, reason = default_implementation(device)
    if reason is not None and device.type == "cuda":
        _warn_of_slower(reason)
    return name == "fused"


@cache
def _warn_of_slower(reason: str) -> None:
    """Say once why the default implementation on CUDA is not the fastest."""
    warn_user(f"hf_lpsgd updates with the slower foreach implementation: {reason}")
