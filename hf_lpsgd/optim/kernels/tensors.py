"""What a step works on: a parameter, its gradient and its momentum buffer, and views of them in memory order."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import Parameter

from .rounding import Key

# Tensors that are an address, a layout and numbers, and nothing else. DTensor and others are subclasses.
PLAIN_TENSOR_TYPES = (Tensor, Parameter)


class ParamGradBuffer(NamedTuple):
    """A parameter, its gradient and its momentum buffer (None for LPSGD)."""

    param: Tensor
    grad: Tensor
    buffer: Tensor | None
    number: int = 0  # of the parameter in its optimizer; its random numbers depend on it


class Block(NamedTuple):
    """Views of the same piece of a parameter, its gradient and its momentum buffer."""

    param: Tensor
    grad: Tensor
    buffer: Tensor | None
    number: int  # of the parameter
    start: int  # place of the first element in the parameter
    strides: tuple[int, ...]  # by which the place of an element grows along each dimension

    def places(self) -> Tensor:
        """Of the elements in the parameter, modulo 2^32, as int32."""
        places = torch.zeros((), dtype=torch.int64, device=self.param.device) + self.start
        for size, stride in zip(self.param.shape, self.strides, strict=True):
            along = torch.arange(size, dtype=torch.int64, device=self.param.device)
            places = places.unsqueeze(-1) + along * stride
        return places.to(torch.int32)


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
    rounding: Key | None = None  # of the step, for stochastic rounding; None rounds to nearest


def local(triple: ParamGradBuffer) -> ParamGradBuffer:
    """The shards of DTensors on this process. The update is element-wise, so each shard can be updated alone."""
    param, grad, buffer, number = triple
    if type(param) in PLAIN_TENSOR_TYPES or not hasattr(param, "to_local"):
        return triple
    from torch.distributed.tensor import DTensor

    assert isinstance(param, DTensor)
    assert isinstance(grad, DTensor)
    if grad.placements != param.placements:
        grad = grad.redistribute(param.device_mesh, param.placements)
    local_buffer = buffer.to_local() if isinstance(buffer, DTensor) else buffer
    return ParamGradBuffer(param.to_local(), grad.to_local(), local_buffer, number)


def share_memory_order(triple: ParamGradBuffer) -> bool:
    """Whether all tensors are dense and have the same memory order, so that one flat index serves them all."""
    param, grad, buffer, _ = triple
    if param.is_contiguous() and grad.is_contiguous() and (buffer is None or buffer.is_contiguous()):
        return True
    tensors = (param, grad) if buffer is None else (param, grad, buffer)
    return all(tensor.is_contiguous() for tensor in _in_memory_order(tensors))


def blocks(triples: Iterable[ParamGradBuffer], limit: int) -> Iterator[Block]:
    """Views of at most `limit` elements each, none empty, that together cover `triples`."""
    for triple in triples:
        param, grad, buffer, number = triple
        if not param.numel():
            continue
        tensors = [param, grad] if buffer is None else [param, grad, buffer]
        shared = share_memory_order(triple)
        # Where there is no common order in memory, places are those of a contiguous tensor of this shape.
        strides = param.stride() if shared else torch.empty(param.shape, device="meta").stride()
        if param.numel() <= limit:
            yield _block(tensors, number, 0, strides)
        elif shared:
            pieces = zip(*(torch.split(tensor.view(-1), limit) for tensor in _in_memory_order(tensors)), strict=True)
            for index, piece in enumerate(pieces):
                yield _block(piece, number, index * limit, (1,))
        else:
            yield from _halves(_block(tensors, number, 0, strides), limit)


def _block(tensors: Sequence[Tensor], number: int, start: int, strides: tuple[int, ...]) -> Block:
    param, grad, *buffer = tensors
    return Block(param, grad, buffer[0] if buffer else None, number, start, strides)


def _halves(block: Block, limit: int) -> Iterator[Block]:
    """Halve along the longest dimension until the pieces are small enough."""
    param, grad, buffer, number, start, strides = block
    if param.numel() <= limit:
        yield block
        return
    longest = max(range(param.dim()), key=lambda dim: param.shape[dim])
    half = (param.shape[longest] + 1) // 2
    tensors = [param, grad] if buffer is None else [param, grad, buffer]
    for index, piece in enumerate(zip(*(torch.split(tensor, half, longest) for tensor in tensors), strict=True)):
        yield from _halves(_block(piece, number, start + index * half * strides[longest], strides), limit)


def _in_memory_order(tensors: Sequence[Tensor]) -> list[Tensor]:
    order = sorted(range(tensors[0].dim()), key=tensors[0].stride, reverse=True)
    return [tensor.permute(order) for tensor in tensors]
