"""The LPSGD and LPSGDM updates on lists of tensors, without any optimizer state."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .kernels.choice import uncompiled, update
from .kernels.hyperparameters import hyperparameters
from .kernels.tensors import Tensors


def lpsgd(params: Sequence[Tensor], grads: Sequence[Tensor], **options: Any) -> None:
    """Update `params` in place by one LPSGD step: `theta <- (1 - lr*wd) * theta - lr * g / (|g| + eps)^rho`.

    Args:
        params: parameters, of any shapes and floating dtypes, changed in place.
        grads: their gradients, of the same shapes.
        options: `lr`, `p`, `eps`, `weight_decay`, and if need be `maximize`, `grad_rms`, `foreach` and `fused`, as
            those of [`LPSGDM`][hf_lpsgd.LPSGDM]; `p` is the order of the norm, at least 2. A ValueError says so where
            `fused` is True and there is no fused implementation for a parameter's device.
    """
    _update(params, grads, None, **options)


def lpsgdm(
    params: Sequence[Tensor], grads: Sequence[Tensor], momentum_buffers: Sequence[Tensor], **options: Any
) -> None:
    """Update `params` and `momentum_buffers` in place: `m <- momentum*m + (1 - momentum)*g`, then LPSGD's step with m.

    Arguments are those of [`lpsgd`][hf_lpsgd.optim.functional.lpsgd], with `momentum` among the options, and
    `momentum_buffers`: the moving averages of the gradients, in float32, bfloat16 or the parameter's dtype.
    """
    _update(params, grads, momentum_buffers, **options)


@uncompiled  # type: ignore[untyped-decorator]
@torch.no_grad()
def _update(params: Any, grads: Any, buffers: Any, foreach: Any = None, fused: Any = None, **options: Any) -> None:
    update(Tensors(params, grads, buffers, range(len(params))), hyperparameters(**options), foreach, fused)
