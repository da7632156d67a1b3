"""The step by torch's own operations: one tensor at a time, or many tensors at a time by the foreach kernels.

Tensors are updated in blocks. So the temporaries of a step stay below a constant, whatever the size of the model.
"""

from __future__ import annotations

import math

import torch

from .rounding import ROUNDED, key_of_parameter, random_numbers, rounded
from .tensors import Block, ParamGradBuffer, StepHyperparameters, SumOfSquares, blocks

# Elements of a block. On a CPU a temporary takes 1 MiB. On an accelerator a block is large enough to fill the device,
# and the four float32 temporaries of a low-precision step take 32 MiB.
_CPU_BLOCK = 2**18
_DEVICE_BLOCK = 2**21


def step(triples: list[ParamGradBuffer], hyper: StepHyperparameters, *, foreach: bool) -> None:
    """Update tensors of one device and of the same dtypes in place.

    Args:
        triples: parameters, gradients and momentum buffers (or None), of any strides.
        hyper: the hyperparameters of the step.
        foreach: use the foreach kernels.
    """
    lr = float(hyper.lr)  # a tensor on a device is read once
    dtype = torch.float64 if triples[0][0].dtype == torch.float64 else torch.float32
    limit = _CPU_BLOCK if triples[0][0].device.type == "cpu" else _DEVICE_BLOCK
    batch: list[Block] = []
    elements = 0
    for block in blocks(triples, limit):
        if not foreach:
            _single_tensor(block, hyper, lr, dtype)
            continue
        size = block[0].numel()
        if elements + size > limit:
            _multi_tensor(batch, hyper, lr, dtype)
            batch, elements = [], 0
        batch.append(block)
        elements += size
    if batch:
        _multi_tensor(batch, hyper, lr, dtype)


def _single_tensor(block: Block, hyper: StepHyperparameters, lr: float, dtype: torch.dtype) -> None:
    param, grad, buffer = block[:3]
    _, momentum, rho, eps, weight_decay, maximize, lr_scale, bound, squares, _ = hyper
    random = _random(block, hyper)
    grad = grad.to(dtype)
    if maximize:
        grad = -grad
    mean = grad
    if buffer is not None:
        mean = buffer if buffer.dtype == dtype else buffer.to(dtype)
        mean.lerp_(grad, 1 - momentum)
        if mean is not buffer:
            _write(buffer, mean, random)
    if squares is not None:
        squares.add(_squares(mean), mean.numel())
    if bound < math.inf:
        mean = mean.clamp(-bound, bound)
    update_lr = lr * lr_scale
    theta = param if param.dtype == dtype else param.to(dtype)
    if weight_decay != 0:
        theta.mul_(1 - lr * weight_decay)
    if rho == 0:
        theta.add_(mean, alpha=-update_lr)
    else:
        scale = mean.abs().add_(eps)
        if eps < torch.finfo(dtype).tiny:
            scale.clamp_min_(torch.finfo(dtype).tiny)
        scale.log2_().mul_(-rho).exp2_()
        theta.addcmul_(mean, scale, value=-update_lr)
    if theta is not param:
        _write(param, theta, random)


def _random(block: Block, hyper: StepHyperparameters) -> torch.Tensor | None:
    """The random numbers of a block, if anything in it is rounded by them."""
    has_use = any(tensor is not None and tensor.dtype in ROUNDED for tensor in (block.param, block.buffer))
    if hyper.rounding is None or not has_use:
        return None
    return random_numbers(key_of_parameter(hyper.rounding, block.number), block.places())


def _write(target: torch.Tensor, values: torch.Tensor, random: torch.Tensor | None) -> None:
    target.copy_(values if random is None or target.dtype not in ROUNDED else rounded(values, random, target.dtype))


def measure_ahead(triples: list[ParamGradBuffer], momentum: float, squares: SumOfSquares) -> None:
    """Gather the squares that a step of `triples` would gather, and change nothing."""
    for _, grad, buffer, *_ in blocks(triples, _CPU_BLOCK):
        dtype = torch.promote_types(grad.dtype, torch.float32)
        mean = grad.to(dtype)
        if buffer is not None:
            mean = buffer.to(dtype).lerp(mean, 1 - momentum)
        squares.add(_squares(mean), mean.numel())


def _squares(tensor: torch.Tensor) -> torch.Tensor:
    norm: torch.Tensor = torch.linalg.vector_norm(tensor, dtype=torch.float64)
    return norm.square()


def _multi_tensor(batch: list[Block], hyper: StepHyperparameters, lr: float, dtype: torch.dtype) -> None:
    _, momentum, rho, eps, weight_decay, maximize, lr_scale, bound, squares, _ = hyper
    params = [block.param for block in batch]
    grads = [block.grad.to(dtype) for block in batch]
    random = [_random(block, hyper) for block in batch]
    if maximize:
        grads = list(torch._foreach_neg(grads))
    means = grads
    buffers = [block.buffer for block in batch if block.buffer is not None]
    if buffers:
        means = [buffer.to(dtype) for buffer in buffers]
        torch._foreach_lerp_(means, grads, 1 - momentum)
        if buffers[0].dtype != dtype:
            _write_all(buffers, means, random)
    if squares is not None:
        for mean in means:
            squares.add(_squares(mean), mean.numel())
    if bound < math.inf:
        means = [mean.clamp(-bound, bound) for mean in means]
    update_lr = lr * lr_scale
    thetas = [param.to(dtype) for param in params]
    if weight_decay != 0:
        torch._foreach_mul_(thetas, 1 - lr * weight_decay)
    if rho == 0:
        torch._foreach_add_(thetas, means, alpha=-update_lr)
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
        torch._foreach_addcmul_(thetas, means, scales, -update_lr)
    if params[0].dtype != dtype:
        _write_all(params, thetas, random)


def _write_all(targets: list[torch.Tensor], values: list[torch.Tensor], random: list[torch.Tensor | None]) -> None:
    if random[0] is None:
        torch._foreach_copy_(targets, values)
        return
    for target, value, numbers in zip(targets, values, random, strict=True):
        _write(target, value, numbers)
