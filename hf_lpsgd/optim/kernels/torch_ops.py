"""The step by torch's own operations: one tensor at a time, or many tensors at a time by the foreach kernels.

Tensors are updated in blocks. So the temporaries of a step stay below a constant, whatever the size of the model.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .hyperparameters import Hyperparameters
from .rounding import FLOAT8, ROUNDED, from_float8, key_of_parameter, random_numbers, rounded
from .tensors import Block, Tensors, blocks

# Elements of a block. On a CPU a temporary takes 1 MiB. On an accelerator a block is large enough to fill the device,
# and the four float32 temporaries of a low-precision step take 32 MiB.
_CPU_BLOCK = 2**18
_DEVICE_BLOCK = 2**21

# Of threads that make the first call of one of MKL's functions at once, one can get wrong values (pytorch #188792).
torch.ones(1, dtype=torch.float32, device="cpu").log2_().exp2_()

# Others, such as MPS, lack float64.
_HAVE_FLOAT64 = ("cpu", "cuda")


def step(tensors: Tensors, hyper: Hyperparameters, *, foreach: bool) -> bool:
    """Update tensors of one device and of the same dtypes, of any strides, in place; always True."""
    hyper = hyper._replace(lr=float(hyper.lr))  # a tensor on a device is read once
    limit = _CPU_BLOCK if tensors.params[0].device.type == "cpu" else _DEVICE_BLOCK
    batch: list[Block] = []
    elements = 0
    for block in blocks(tensors, limit):
        size = block.tensors[0].numel()
        if batch and (not foreach or elements + size > limit):
            _update(batch, hyper, foreach)
            batch, elements = [], 0
        batch.append(block)
        elements += size
    if batch:
        _update(batch, hyper, foreach)
    return True


def _update(batch: list[Block], hyper: Hyperparameters, foreach: bool) -> None:
    """Update the blocks of a batch; without `foreach` there is one."""

    def apply(operation: str, first: Sequence[Tensor], *others: Any, **options: Any) -> Sequence[Tensor]:
        if foreach:
            return getattr(torch, f"_foreach_{operation}")(first, *others, **options)  # type: ignore[no-any-return]
        # Not a foreach call on one tensor: torch.vmap maps none, and on CUDA they may round otherwise.
        return [getattr(first[0], operation)(*(o[0] if isinstance(o, list) else o for o in others), **options)]

    def write(targets: list[Tensor], values: list[Tensor], unit: float = 1.0) -> None:
        if hyper.rounding is None or targets[0].dtype not in ROUNDED:
            apply("copy_", targets, values)
            return
        for target, value, numbers in zip(targets, values, random, strict=True):
            target.copy_(rounded(value, numbers, target.dtype, unit))

    params, grads, *momentum = (list(column) for column in zip(*(block.tensors for block in batch), strict=True))
    dtype = torch.float64 if params[0].dtype == torch.float64 else torch.float32
    random = []
    if hyper.rounding is not None and any(column[0].dtype in ROUNDED for column in (params, *momentum)):
        random = [random_numbers(key_of_parameter(hyper.rounding, block.number), block.places()) for block in batch]
    means = [grad.to(dtype) for grad in grads]
    if hyper.sign < 0:
        means = list(apply("neg", means))
    for buffers in momentum:
        is_float8 = buffers[0].dtype == FLOAT8
        unit = hyper.momentum_unit if is_float8 else 1.0
        grads, means = means, [from_float8(one, unit, dtype) if is_float8 else one.to(dtype) for one in buffers]
        apply("lerp_", means, grads, hyper.grad_weight)
        if buffers[0].dtype != dtype:
            write(buffers, means, unit)
    if hyper.squares is not None:
        for mean in means:
            wide = torch.float64 if mean.device.type in _HAVE_FLOAT64 else torch.float32
            hyper.squares.add(torch.linalg.vector_norm(mean, dtype=wide).square(), mean.numel())
    if hyper.bound < math.inf:
        means = [mean.clamp(-hyper.bound, hyper.bound) for mean in means]
    thetas = [param.to(dtype) for param in params]
    if hyper.weight_decay != 0:
        apply("mul_", thetas, 1 - hyper.lr * hyper.weight_decay)
    update_lr = float(hyper.lr * hyper.lr_scale)
    if hyper.rho == 0:
        apply("add_", thetas, means, alpha=-update_lr)
    else:
        scales = list(apply("abs", means))
        apply("add_", scales, hyper.eps)
        if hyper.eps < torch.finfo(dtype).tiny:
            apply("clamp_min_", scales, torch.finfo(dtype).tiny)
        if foreach and scales[0].device.type != "cpu":
            apply("pow_", scales, -hyper.rho)
        else:  # pow is many times as slow as log2 and exp2 on a CPU, and there is no foreach exp2
            for scale in scales:
                scale.log2_().mul_(-hyper.rho).exp2_()
        apply("addcmul_", thetas, means, scales, value=-update_lr)
    if params[0].dtype != dtype:
        write(params, thetas)
