"""The LPSGD and LPSGDM updates on lists of tensors, without any optimizer state.

Every implementation computes in float32 (float64 for float64 parameters) whatever the dtypes of the parameter, the
gradient and the momentum buffer are, and rounds once, when it writes. Tensors are walked through in blocks, so that
the temporaries of a step stay below a constant, whatever the size of the model.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

# A block of a step on the CPU has a scratch of 1 MiB; on an accelerator it is large enough to fill the device, and the
# four float32 temporaries that a low-precision one needs take 32 MiB.
_CPU_BLOCK = 2**18
_DEVICE_BLOCK = 2**21

_FOREACH_DEVICES = ("cuda", "xpu", "mtia")

# One block: views of the parameter, of the gradient and, for LPSGDM, of the momentum buffer.
_Block = tuple[Tensor, Tensor, Tensor | None]


def rescaling_exponent(p: float) -> float:
    """The exponent of the rescaling for the norm order `p`, (p - 2) / (p - 1), in [0, 1)."""
    return (p - 2.0) / (p - 1.0)


@torch.no_grad()
def lpsgd(
    params: list[Tensor],
    grads: list[Tensor],
    *,
    lr: float,
    p: float,
    eps: float,
    weight_decay: float,
    maximize: bool = False,
    foreach: bool | None = None,
) -> None:
    """Update `params` in place by one LPSGD step: `theta <- (1 - lr*wd) * theta - lr * g / (|g| + eps)^rho`.

    Args:
        params: parameters, any shapes and floating dtypes, changed in place.
        grads: their gradients, of the same shapes.
        lr: learning rate.
        p: order of the norm, at least 2; at 2 the rescaling is the identity and costs nothing.
        eps: added to `|g|` before the power.
        weight_decay: decoupled weight decay.
        maximize: ascend instead of descend.
        foreach: use the foreach kernels; `None` uses them where they pay, on accelerators.
    """
    _update(params, grads, [None] * len(params), lr, 0.0, p, eps, weight_decay, maximize, foreach)


@torch.no_grad()
def lpsgdm(
    params: list[Tensor],
    grads: list[Tensor],
    momentum_buffers: list[Tensor],
    *,
    lr: float,
    momentum: float,
    p: float,
    eps: float,
    weight_decay: float,
    maximize: bool = False,
    foreach: bool | None = None,
) -> None:
    """Update `params` and `momentum_buffers` in place by one LPSGDM step.

    `m <- momentum*m + (1 - momentum)*g`, then `theta <- (1 - lr*wd) * theta - lr * m / (|m| + eps)^rho`.

    Args:
        momentum_buffers: the running means of the gradients, shaped as `params`, changed in place.
        momentum: decay of the running mean, in [0, 1).

    The other arguments are those of [`lpsgd`].
    """
    buffers: list[Tensor | None] = list(momentum_buffers)
    _update(params, grads, buffers, lr, momentum, p, eps, weight_decay, maximize, foreach)


def _update(
    params: list[Tensor],
    grads: list[Tensor],
    buffers: list[Tensor | None],
    lr: float,
    momentum: float,
    p: float,
    eps: float,
    weight_decay: float,
    maximize: bool,
    foreach: bool | None,
) -> None:
    exponent = rescaling_exponent(p)
    by_kind: dict[tuple, list[_Block]] = {}
    for param, grad, buffer in zip(params, grads, buffers, strict=True):
        kind = (param.device, *(None if t is None else t.dtype for t in (param, grad, buffer)))
        by_kind.setdefault(kind, []).append((param, grad, buffer))
    for (device, *_), tensors_of_kind in by_kind.items():
        on_cpu = device.type == "cpu"
        use_foreach = device.type in _FOREACH_DEVICES if foreach is None else foreach
        step = _multi_tensor if use_foreach else _single_tensor
        limit = _CPU_BLOCK if on_cpu else _DEVICE_BLOCK
        batch: list[_Block] = []
        elements = 0
        for block in _blocks(map(_local, tensors_of_kind), limit):
            size = block[0].numel()
            if batch and (not use_foreach or elements + size > limit):
                step(batch, lr, momentum, exponent, eps, weight_decay, maximize)
                batch, elements = [], 0
            batch.append(block)
            elements += size
        if batch:
            step(batch, lr, momentum, exponent, eps, weight_decay, maximize)


def _local(tensors: _Block) -> _Block:
    """The shards that this process holds; the update is element-wise, so each shard can be updated alone."""
    param, grad, buffer = tensors
    if not hasattr(param, "to_local"):
        return tensors
    from torch.distributed.tensor import DTensor

    assert isinstance(param, DTensor)
    assert isinstance(grad, DTensor)
    if grad.placements != param.placements:
        grad = grad.redistribute(param.device_mesh, param.placements)
    local_buffer = buffer.to_local() if isinstance(buffer, DTensor) else buffer
    return param.to_local(), grad.to_local(), local_buffer


def _blocks(tensors: Iterable[_Block], limit: int) -> Iterator[_Block]:
    """Views of at most `limit` elements that cover `tensors`."""
    for block in tensors:
        param = block[0]
        if param.numel() <= limit:
            if param.numel() > 0:
                yield block
            continue
        order = sorted(range(param.dim()), key=param.stride, reverse=True)
        ordered = [None if t is None else t.permute(order) for t in block]
        if all(t is None or t.is_contiguous() for t in ordered):
            yield from _zip_pieces([None if t is None else t.view(-1).split(limit) for t in ordered])
        else:
            # No common flat view: halve along the longest dimension until the pieces are small enough.
            longest = max(range(param.dim()), key=lambda dim: param.shape[dim])
            half = (param.shape[longest] + 1) // 2
            yield from _blocks(_zip_pieces([None if t is None else t.split(half, longest) for t in block]), limit)


def _zip_pieces(pieces: list[tuple[Tensor, ...] | None]) -> Iterator[_Block]:
    params, grads, buffers = pieces
    assert params is not None
    assert grads is not None
    yield from zip(params, grads, buffers or [None] * len(params), strict=True)


def _compute_dtype(param: Tensor) -> torch.dtype:
    return torch.float64 if param.dtype == torch.float64 else torch.float32


def _single_tensor(
    batch: list[_Block], lr: float, momentum: float, rho: float, eps: float, weight_decay: float, maximize: bool
) -> None:
    ((param, grad, buffer),) = batch
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


def _multi_tensor(
    batch: list[_Block], lr: float, momentum: float, rho: float, eps: float, weight_decay: float, maximize: bool
) -> None:
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
            # There is no foreach exp2, and pow is 30 times as slow as log2 and exp2 on a CPU.
            for scale in scales:
                scale.log2_().mul_(-rho).exp2_()
        else:
            torch._foreach_pow_(scales, -rho)
        torch._foreach_addcmul_(thetas, means, scales, -lr)
    if params[0].dtype != dtype:
        torch._foreach_copy_(params, thetas)
