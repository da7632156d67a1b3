"""The LPSGD and LPSGDM updates on lists of tensors, without any optimizer state.

[`hf_lpsgd.optim.kernels`][] says what all implementations have in common.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .kernels.choice import update
from .kernels.hyperparameters import hyperparameters
from .kernels.tensors import Tensors

Switch = bool | None


@torch.no_grad()
def lpsgd(
    params: list[Tensor], grads: list[Tensor], *, foreach: Switch = None, fused: Switch = None, **options: Any
) -> None:
    """Update `params` in place by one LPSGD step: `theta <- (1 - lr*wd) * theta - lr * g / (|g| + eps)^rho`.

    Args:
        params: parameters, of any shapes and floating dtypes, changed in place.
        grads: their gradients, of the same shapes.
        foreach: as that of [`LPSGDM`][hf_lpsgd.LPSGDM], and `fused` likewise. The fused implementation does not update
            float64 tensors, nor those whose parameter, gradient and buffer differ in memory order; the others do. A
            ValueError says so where `fused` is True and there is none for a parameter's device.
        options: `lr`, `p`, `eps`, `weight_decay`, `maximize` and `grad_rms`, as those of LPSGD; `p` is the order of
            the norm, at least 2.
    """
    update(Tensors(params, grads, None, range(len(params))), hyperparameters(**options), foreach, fused)


@torch.no_grad()
def lpsgdm(
    params: list[Tensor],
    grads: list[Tensor],
    momentum_buffers: list[Tensor],
    *,
    foreach: Switch = None,
    fused: Switch = None,
    **options: Any,
) -> None:
    """Update `params` and `momentum_buffers` in place by one LPSGDM step.

    `m <- momentum*m + (1 - momentum)*g`, then `theta <- (1 - lr*wd) * theta - lr * m / (|m| + eps)^rho`.

    Arguments and errors are those of [`lpsgd`][hf_lpsgd.optim.functional.lpsgd], with `momentum` among the options,
    and `momentum_buffers`: the moving averages of the gradients, in float32, bfloat16 or the parameter's dtype.
    """
    update(Tensors(params, grads, momentum_buffers, range(len(params))), hyperparameters(**options), foreach, fused)
