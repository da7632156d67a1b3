"""What a step works on: a parameter, its gradient and its momentum buffer, and views of them in memory order."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import Parameter

# Tensors that are an address, a layout and numbers, and nothing else. DTensor and others are subclasses.
PLAIN_TENSOR_TYPES = (Tensor, Parameter)

# A parameter, its gradient and its momentum buffer (None for LPSGD): whole, or views of the same piece of each.
ParamGradBuffer = tuple[Tensor, Tensor, Tensor | None]


class SumOfSquares:
    """A sum of squares over elements of many tensors, on any devices, read only when it is asked for."""

    def __init__(self) -> None:
        self._parts: list[float | Tensor] = []
        self.count = 0

    def add(self, squares: float | Tensor, count: int) -> None:
        """Add the sum of the squares of `count` elements; a tensor of one element is not read yet."""
        self._parts.append(squares)
        self.count += count

    def total(self) -> float:
        """The sum so far."""
        return math.fsum(float(part) for part in self._parts)


class StepHyperparameters(NamedTuple):
    """The hyperparameters of one step of a param group."""

    lr: float | Tensor
    momentum: float  # unused where there are no buffers
    rho: float  # exponent of the rescaling, in [0, 1)
    eps: float
    weight_decay: float
    maximize: bool
    lr_scale: float = 1.0  # the learning rate of the update over that of the decay
    bound: float = math.inf  # magnitude at which the gradient, or its mean, is cut off for the update
    squares: SumOfSquares | None = None  # gathers the squares of the gradient, or of its mean, before the cut


def local(triple: ParamGradBuffer) -> ParamGradBuffer:
    """The shards of DTensors on this process. The update is element-wise, so each shard can be updated alone."""
    param, grad, buffer = triple
    if type(param) in PLAIN_TENSOR_TYPES or not hasattr(param, "to_local"):
        return triple
    from torch.distributed.tensor import DTensor

    assert isinstance(param, DTensor)
    assert isinstance(grad, DTensor)
    if grad.placements != param.placements:
        grad = grad.redistribute(param.device_mesh, param.placements)
    local_buffer = buffer.to_local() if isinstance(buffer, DTensor) else buffer
    return param.to_local(), grad.to_local(), local_buffer


def share_memory_order(triple: ParamGradBuffer) -> bool:
    """Whether all tensors are dense and have the same memory order, so that one flat index serves them all."""
    return _are_contiguous(triple) or _are_contiguous(_in_memory_order(triple))


def blocks(triples: Iterable[ParamGradBuffer], limit: int) -> Iterator[ParamGradBuffer]:
    """Views of at most `limit` elements each, none empty, that together cover `triples`."""
    for triple in triples:
        param = triple[0]
        if param.numel() <= limit:
            if param.numel() > 0:
                yield triple
        elif share_memory_order(triple):
            yield from _zip_pieces(
                [None if t is None else torch.split(t.view(-1), limit) for t in _in_memory_order(triple)]
            )
        else:
            # No common flat view: halve along the longest dimension until the pieces are small enough.
            longest = max(range(param.dim()), key=lambda dim: param.shape[dim])
            half = (param.shape[longest] + 1) // 2
            yield from blocks(
                _zip_pieces([None if t is None else torch.split(t, half, longest) for t in triple]), limit
            )


def _are_contiguous(triple: ParamGradBuffer) -> bool:
    param, grad, buffer = triple
    return param.is_contiguous() and grad.is_contiguous() and (buffer is None or buffer.is_contiguous())


def _in_memory_order(triple: ParamGradBuffer) -> ParamGradBuffer:
    param, grad, buffer = triple
    order = sorted(range(param.dim()), key=param.stride, reverse=True)
    return param.permute(order), grad.permute(order), None if buffer is None else buffer.permute(order)


def _zip_pieces(pieces: list[tuple[Tensor, ...] | None]) -> Iterator[ParamGradBuffer]:
    params, grads, buffers = pieces
    assert params is not None
    assert grads is not None
    yield from zip(params, grads, buffers or [None] * len(params), strict=True)
