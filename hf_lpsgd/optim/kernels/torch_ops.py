"""The step by torch's own operations: tensor by tensor, or with the foreach kernels on many tensors at a time.

Tensors are walked through in blocks, so that the temporaries of a step stay below a constant, whatever the size of the
model.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from .tensors import Scalars, Trio, blocks

# A block of a step on the CPU has a scratch of 1 MiB; on an accelerator it is large enough to fill the device, and the
# four float32 temporaries that a low-precision one needs take 32 MiB.
_CPU_BLOCK = 2**18
_DEVICE_BLOCK = 2**21


def step(trios: Iterable[Trio], scalars: Scalars, *, on_cpu: bool, foreach: bool) -> None:
    """Update tensors of one device and of the same dtypes in place.

    Args:
        trios: parameters, gradients and momentum buffers (or None), of any strides.
        scalars: the numbers of the step.
        on_cpu: whether they lie on the CPU.
        foreach: use the foreach kernels.
    """
    scalars = scalars._replace(lr=float(scalars.lr))
    limit = _CPU_BLOCK if on_cpu else _DEVICE_BLOCK
    batch: list[Trio] = []
    elements = 0
    for block in blocks(trios, limit):
        if not foreach:
            _single_tensor(block, scalars)
            continue
        size = block[0].numel()
        if elements + size > limit:
            _multi_tensor(batch, scalars)
            batch, elements = [], 0
        batch.append(block)
        elements += size
    if batch:
        _multi_tensor(batch, scalars)


def _compute_dtype(param: Tensor) -> torch.dtype:
    return torch.float64 if param.dtype == torch.float64 else torch.float32


def _single_tensor(block: Trio, scalars: Scalars) -> None:
    param, grad, buffer = block
    lr, momentum, rho, eps, weight_decay, maximize = scalars
    lr = float(lr)
    dtype = _compute_dtype(param)
    grad = grad.to(dtype)
    if maximize:
        grad = -grad
    mean = grad
    if buffer is not None:
        mean = buffer if buffer.dtype == dtype else buffer.to(dtype)
        mean.lerp_(grad, 1 - momentum)
        if mean is not buffer:
            buffer.copy_(mean)
    theta = param if param.dtype == dtype else param.to(dtype)
    if weight_decay != 0:
        theta.mul_(1 - lr * weight_decay)
    if rho == 0:
        theta.add_(mean, alpha=-lr)
    else:
        scale = mean.abs().add_(eps)
        if eps < torch.finfo(dtype).tiny:
            scale.clamp_min_(torch.finfo(dtype).tiny)
        scale.log2_().mul_(-rho).exp2_()
        theta.addcmul_(mean, scale, value=-lr)
    if theta is not param:
        param.copy_(theta)


def _multi_tensor(batch: list[Trio], scalars: Scalars) -> None:
    lr, momentum, rho, eps, weight_decay, maximize = scalars
    lr = float(lr)
    params = [param for param, _, _ in batch]
    dtype = _compute_dtype(params[0])
    grads = [grad.to(dtype) for _, grad, _ in batch]
    if maximize:
        grads = list(torch._foreach_neg(grads))
    means = grads
    buffers = [buffer for _, _, buffer in batch if buffer is not None]
    if buffers:
        means = [buffer.to(dtype) for buffer in buffers]
        torch._foreach_lerp_(means, grads, 1 - momentum)
        if buffers[0].dtype != dtype:
            torch._foreach_copy_(buffers, means)
    thetas = [param.to(dtype) for param in params]
    if weight_decay != 0:
        torch._foreach_mul_(thetas, 1 - lr * weight_decay)
    if rho == 0:
        torch._foreach_add_(thetas, means, alpha=-lr)
    else:
        scales = list(torch._foreach_abs(means))
        torch._foreach_add_(scales, eps)
        if eps < torch.finfo(dtype).tiny:
            torch._foreach_clamp_min_(scales, torch.finfo(dtype).tiny)
        if scales[0].device.type == "cpu":
            # There is no foreach exp2, and pow is many times as slow as log2 and exp2 on a CPU.
            for scale in scales:
                scale.log2_().mul_(-rho).exp2_()
        else:
            torch._foreach_pow_(scales, -rho)
        torch._foreach_addcmul_(thetas, means, scales, -lr)
    if params[0].dtype != dtype:
        torch._foreach_copy_(params, thetas)
