"""What a step works on: tensors, the numbers that all implementations read, and views of tensors in memory order."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import Parameter

# Tensors that are an address, a layout and numbers, and nothing else. DTensor and others are subclasses.
PLAIN_TENSOR_TYPES = frozenset([Tensor, Parameter])

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
        return [self.params, self.grads] if self.buffers is None else [self.params, self.grads, self.buffers]

    @property
    def dtypes(self) -> Dtypes:
        """Return the dtypes of the first parameter, gradient and buffer."""
        return tuple([None if column is None else column[0].dtype for column in self[:3]])

    def select(self, indices: Sequence[int]) -> Tensors:
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
        self._parts: dict[torch.device, list[Tensor]] = {}

    def add(self, squares: float | Tensor, count: int) -> None:
        """Add the sum of the squares of `count` elements; a tensor of one element is not read yet."""
        self.count += count
        part = torch.as_tensor(squares, dtype=torch.float64, device="cpu") if isinstance(squares, float) else squares
        self._parts.setdefault(part.device, []).append(part)

    def total(self) -> float:
        """Return the sum so far; each device is read once. It is nan for tensors that have no values."""
        if torch.device("meta") in self._parts:
            return math.nan
        return math.fsum(number for parts in self._parts.values() for number in torch.stack(parts).tolist())


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
        strides = row[0].stride()
        if not share_memory_order(*row):  # then places are those of a contiguous tensor of this shape
            strides = torch.empty(row[0].shape, device="meta").stride()
        elif row[0].numel() > limit:
            row, strides = [tensor.view(-1) for tensor in _in_memory_order(row)], (1,)
        yield from _pieces(Block(row, number, 0, strides), limit)


def _pieces(block: Block, limit: int) -> Iterator[Block]:
    """Cut flat tensors by `limit`, and halve others along the longest dimension until the pieces are small enough."""
    param = block.tensors[0]
    if param.numel() > limit:
        longest = max(range(param.dim()), key=param.size)
        is_flat = param.dim() == 1 and all(map(Tensor.is_contiguous, block.tensors))
        size = limit if is_flat else (param.shape[longest] + 1) // 2
        for index, tensors in enumerate(zip(*(torch.split(t, size, longest) for t in block.tensors), strict=True)):
            start = block.start + index * size * block.strides[longest]
            yield from _pieces(block._replace(tensors=tensors, start=start), limit)
    elif param.numel():
        yield block


def share_memory_order(*tensors: Tensor) -> bool:
    """Say whether all are dense and have the same memory order, so that one flat index serves them all."""
    return all(map(Tensor.is_contiguous, tensors)) or all(map(Tensor.is_contiguous, _in_memory_order(tensors)))


def _in_memory_order(tensors: Sequence[Tensor]) -> list[Tensor]:
    first = tensors[0]
    order = sorted(range(first.dim()), key=first.stride, reverse=True)
    return [tensor.permute(order) for tensor in tensors]


def local(tensor: Any) -> Tensor:
    """Return the shard of a DTensor that this process holds, and any other tensor as it is."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor  # type: ignore[no-any-return]


def _local(param: Any, grad: Any, *buffer: Any) -> tuple[Tensor, ...]:
    if hasattr(param, "placements") and grad.placements != param.placements:
        grad = grad.redistribute(param.device_mesh, param.placements)
    return tuple(map(local, (param, grad, *buffer)))
