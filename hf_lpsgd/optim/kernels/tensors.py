"""What a step works on: tensors, the numbers that all implementations read, and views of tensors in memory order."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import Parameter

# Tensors that are an address, a layout and numbers, and nothing else. DTensor and others are subclasses.
PLAIN_TENSOR_TYPES = (Tensor, Parameter)

# Of parameters, gradients and momentum buffers; None where there are no buffers.
Dtypes = tuple[torch.dtype | None, ...]


class Tensors(NamedTuple):
    """Parameters with their gradients and momentum buffers, in lists of the same length."""

    params: Sequence[Tensor]
    grads: Sequence[Tensor]
    buffers: Sequence[Tensor] | None  # None for LPSGD
    numbers: Sequence[int]  # of the parameters in their optimizer; the random numbers of a parameter depend on it

    @property
    def columns(self) -> list[Sequence[Tensor]]:
        """Return the parameters, the gradients and, if there are any, the buffers."""
        return [self.params, self.grads] if self.buffers is None else [self.params, self.grads, self.buffers]

    @property
    def dtypes(self) -> Dtypes:
        """Return the dtypes of the first parameter, gradient and buffer."""
        return tuple([None if column is None else column[0].dtype for column in self[:3]])

    def select(self, indices: Sequence[int]) -> Tensors:
        """Return the rows at these places."""
        columns = [None if column is None else [column[index] for index in indices] for column in self]
        return Tensors(*columns)  # type: ignore[arg-type]

    def local(self) -> Tensors:
        """Return the shards of DTensors on this process; the update is element-wise, so each can be updated alone."""
        rows = [_local(*row) for row in zip(*self.columns, strict=True)]
        params, grads, *buffers = zip(*rows, strict=True)
        return Tensors(params, grads, buffers[0] if buffers else None, self.numbers)


class SumOfSquares:
    """A sum of squares over elements of many tensors, on any devices."""

    def __init__(self) -> None:
        self.count = 0
        self._numbers: list[float] = []
        self._on_devices: dict[torch.device, list[Tensor]] = {}

    def add(self, squares: float | Tensor, count: int) -> None:
        """Add the sum of the squares of `count` elements; a tensor of one element is not read yet."""
        self.count += count
        if isinstance(squares, Tensor):
            self._on_devices.setdefault(squares.device, []).append(squares)
        else:
            self._numbers.append(squares)

    def total(self) -> float:
        """Return the sum so far; each device is read once."""
        read = [number for parts in self._on_devices.values() for number in torch.stack(parts).tolist()]
        return math.fsum([*self._numbers, *read])


class Block(NamedTuple):
    """Views of the same piece of a parameter, its gradient and, if there is one, its momentum buffer."""

    tensors: Sequence[Tensor]
    number: int  # of the parameter
    start: int  # place of the first element in the parameter
    strides: tuple[int, ...]  # by which the place of an element grows along each dimension

    def places(self) -> Tensor:
        """Return the places of the elements in the parameter, modulo 2^32, as int32."""
        param = self.tensors[0]
        places = torch.zeros((), dtype=torch.int64, device=param.device) + self.start
        for size, stride in zip(param.shape, self.strides, strict=True):
            along = torch.arange(size, dtype=torch.int64, device=param.device)
            places = places.unsqueeze(-1) + along * stride
        return places.to(torch.int32)


def blocks(tensors: Tensors, limit: int) -> Iterator[Block]:
    """Yield views of at most `limit` elements each, none empty, that together cover `tensors`."""
    for *row, number in zip(*tensors.columns, tensors.numbers, strict=True):
        param = row[0]
        if not param.numel():
            continue
        shared = share_memory_order(*row)
        if shared and param.numel() > limit:
            pieces = zip(*(torch.split(tensor.view(-1), limit) for tensor in _in_memory_order(row)), strict=True)
            for index, piece in enumerate(pieces):
                yield Block(piece, number, index * limit, (1,))
        else:
            # Where there is no common order in memory, places are those of a contiguous tensor of this shape.
            strides = param.stride() if shared else torch.empty(param.shape, device="meta").stride()
            yield from _halves(Block(row, number, 0, strides), limit)


def _halves(block: Block, limit: int) -> Iterator[Block]:
    """Halve along the longest dimension until the pieces are small enough."""
    param = block.tensors[0]
    if param.numel() <= limit:
        yield block
        return
    longest = max(range(param.dim()), key=param.size)
    half = (param.shape[longest] + 1) // 2
    for index, piece in enumerate(zip(*(torch.split(tensor, half, longest) for tensor in block.tensors), strict=True)):
        start = block.start + index * half * block.strides[longest]
        yield from _halves(block._replace(tensors=piece, start=start), limit)


def share_memory_order(*tensors: Tensor) -> bool:
    """Say whether all are dense and have the same memory order, so that one flat index serves them all."""
    return all(map(Tensor.is_contiguous, tensors)) or all(map(Tensor.is_contiguous, _in_memory_order(tensors)))


def _in_memory_order(tensors: Sequence[Tensor]) -> list[Tensor]:
    first = tensors[0]
    order = sorted(range(first.dim()), key=first.stride, reverse=True)
    return [tensor.permute(order) for tensor in tensors]


def _local(param: Tensor, grad: Tensor, *buffer: Tensor) -> tuple[Tensor, ...]:
    if type(param) in PLAIN_TENSOR_TYPES or not hasattr(param, "to_local"):
        return param, grad, *buffer
    from torch.distributed.tensor import DTensor

    assert isinstance(param, DTensor)
    assert isinstance(grad, DTensor)
    if grad.placements != param.placements:
        grad = grad.redistribute(param.device_mesh, param.placements)
    return tuple([tensor.to_local() if isinstance(tensor, DTensor) else tensor for tensor in (param, grad, *buffer)])
