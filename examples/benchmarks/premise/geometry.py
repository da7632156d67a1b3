"""What an lp norm promises at a point of training: the paper's premise, measured.

With the gradient g and the diagonal h of the Hessian, a step in the lp norm, of the best length, lowers the quadratic
model of the loss by at least `|g|_q^2 / (2 |h|_s)`, where `q = p/(p-1)` and `s = p/(p-2)`. The p of the largest
promise is the best p there. The model knows neither the noise of the gradient nor what lies off the Hessian's
diagonal.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn

ORDERS = (2.0, 2.5, 3.0, 4.0, 6.0, 10.0, 20.0, 50.0, 100.0, 1000.0)
"""Orders p that are compared; the last stands for the limit, sign descent."""


def gradient_and_curvature(
    loss: Callable[[], Tensor], params: Sequence[Tensor], probes: int = 4, generator: torch.Generator | None = None
) -> tuple[list[Tensor], list[Tensor]]:
    """The gradient of a loss, and an estimate of the diagonal of its Hessian.

    The estimate is Hutchinson's: the mean over `probes` of `z * (H z)`, with signs z drawn at random. It is exact for
    a diagonal Hessian, and without bias for any other. Norms of it are too large, though, and its spread as well, as
    long as the error of an element is not small beside the element: compare two numbers of probes. A probe costs about
    two gradients, and the memory is that of a second backward pass.

    Args:
        loss: returns the loss, a scalar, that depends on `params`; it is called once.
        params: tensors that require a gradient. One that the loss does not depend on has zeros for both.
        probes: number of random vectors, at least 1.
        generator: on the CPU, for the random signs; None for torch's default.

    Returns:
        Two lists of tensors with the shapes of `params`.
    """
    if probes < 1:
        raise ValueError(f"probes is a number of random vectors of at least 1, not {probes}")
    # The fused forms of attention have no second derivative.
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH), torch.enable_grad():
        value = loss()
        found = torch.autograd.grad(value, params, create_graph=True, allow_unused=True)
        gradient = _with_zeros(found, params)
        curvature = [torch.zeros_like(param) for param in params]
        curved = [index for index, g in enumerate(gradient) if g.requires_grad]
        for number in range(probes if curved else 0):
            signs = [_signs(params[index], generator) for index in curved]
            products = torch.autograd.grad(
                [gradient[index] for index in curved],
                [params[index] for index in curved],
                signs,
                retain_graph=number + 1 < probes,
                allow_unused=True,
            )
            for index, sign, product in zip(curved, signs, products, strict=True):
                if product is not None:
                    curvature[index] += sign * product / probes
    return [g.detach() for g in gradient], curvature


def probe(
    model: nn.Module, losses: Sequence[Callable[[], Tensor]], probes: int = 4, seed: int = 0
) -> tuple[list[list[Tensor]], list[Tensor]]:
    """The gradient of each loss, and the curvature of the first. Nothing of a training is changed by it.

    Args:
        model: its trainable parameters are those of the gradients. Its buffers, such as the statistics of batch norm,
            are put back, as are torch's random numbers.
        losses: each returns a loss of `model`, a scalar, and is called once.
        probes: number of random vectors for the curvature, at least 1.
        seed: of these vectors, and of what is random in the model, such as dropout.

    Returns:
        One list of tensors for each loss, and the list of the curvature.
    """
    params = [param for param in model.parameters() if param.requires_grad]
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    with torch.random.fork_rng(devices={param.device.index for param in params if param.is_cuda}):
        torch.manual_seed(seed)
        gradient, curvature = gradient_and_curvature(losses[0], params, probes, torch.Generator().manual_seed(seed))
        gradients = [gradient]
        for loss in losses[1:]:
            gradients.append(_with_zeros(torch.autograd.grad(loss(), params, allow_unused=True), params))
    with torch.no_grad():
        for name, buffer in model.named_buffers():
            buffer.copy_(buffers[name])
    return gradients, curvature


def _with_zeros(found: Sequence[Tensor | None], params: Sequence[Tensor]) -> list[Tensor]:
    return [torch.zeros_like(param) if g is None else g for g, param in zip(found, params, strict=True)]


def _signs(like: Tensor, generator: torch.Generator | None) -> Tensor:
    signs = torch.randint(0, 2, like.shape, generator=generator, dtype=torch.int8)
    return signs.to(like.device).mul(2).sub(1).to(like.dtype)


def _detached(tensors: Iterable[Tensor]) -> list[Tensor]:
    return [tensor.detach() for tensor in tensors]


def _largest(pieces: list[Tensor]) -> float:
    """The largest magnitude, or nan where there is one that is not finite."""
    largest = [float(piece.abs().max()) for piece in pieces if piece.numel()]
    return max(largest) if largest and all(map(math.isfinite, largest)) else math.nan


def _log_norm(pieces: list[Tensor], order: float) -> float:
    largest = _largest(pieces)
    if math.isinf(order):
        return math.log(largest)
    total = math.fsum(float((piece.double().abs() / largest).pow(order).sum()) for piece in pieces)
    return math.log(largest) + math.log(total) / order


def promised_decrease(
    gradient: Iterable[Tensor], curvature: Iterable[Tensor], orders: Iterable[float] = ORDERS
) -> dict[float, float]:
    """The decrease of the loss that each order p promises, `|g|_q^2 / (2 |h|_s)`, as a share of the largest promise.

    Args:
        gradient: g, in pieces.
        curvature: the diagonal h of the Hessian, in pieces; its absolute value counts.
        orders: the values of p, at least 2.

    Returns:
        By p, a number up to 1, which is that of the best p. Empty where the gradient or the curvature is all zero, or
        not finite.
    """
    g, h = _detached(gradient), _detached(curvature)
    if not (_largest(g) > 0 and _largest(h) > 0):
        return {}
    logs = {}
    for p in orders:
        s = p / (p - 2) if p > 2 else math.inf
        logs[p] = 2 * _log_norm(g, p / (p - 1)) - _log_norm(h, s)
    largest = max(logs.values())
    return {p: math.exp(value - largest) for p, value in logs.items()}


def spread(tensors: Iterable[Tensor]) -> float:
    """The ratio of the root mean square to the mean of the absolute values.

    It is 1 where all are alike in size, and nan where one is not finite or all are zero.
    """
    pieces = _detached(tensors)
    largest = _largest(pieces)
    if not largest > 0:
        return math.nan
    count = sum(piece.numel() for piece in pieces)
    squares = math.fsum(float((piece.double() / largest).square().sum()) for piece in pieces)
    average = math.fsum(float((piece.double() / largest).abs().sum()) for piece in pieces) / count
    return math.sqrt(squares / count) / average


def noise_to_signal(gradients: Sequence[Sequence[Tensor]]) -> float:
    """The variance of a batch's gradient, summed over its elements, in units of the squared norm of the true gradient.

    Of the squared norm of the batches' mean, the share that is noise is taken off. Where nothing is left, it is inf.

    Args:
        gradients: the gradients of at least two batches.
    """
    number = len(gradients)
    if number < 2:
        raise ValueError("noise_to_signal needs the gradients of at least 2 batches")
    signal = noise = 0.0
    for pieces in zip(*gradients, strict=True):
        stacked = torch.stack([piece.double() for piece in pieces])
        signal += float(stacked.mean(0).square().sum())
        noise += float(stacked.var(0).sum())
    signal -= noise / number
    return noise / signal if signal > 0 else math.inf
