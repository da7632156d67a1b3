"""What a step works on: the tensors of one parameter, their local shards, and views of them in memory order."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from torch import Tensor
from torch.nn import Parameter

# Tensors that are no more than an address, a layout and numbers; DTensor and others are subclasses.
PLAIN = (Tensor, Parameter)

# A parameter, its gradient and, for LPSGDM, its momentum buffer; whole tensors or views of corresponding pieces.
Trio = tuple[Tensor, Tensor, Tensor | None]


class Scalars(NamedTuple):
    """The numbers of a step.

    Attributes:
        lr: learning rate, a number or a tensor of one element.
        momentum: decay of the running mean, in [0, 1); of no meaning where there are no buffers.
        rho: exponent of the rescaling, in [0, 1).
        eps: added to the magnitude before the power.
        weight_decay: decoupled weight decay.
        maximize: ascend instead of descend.
    """

    lr: float | Tensor
    momentum: float
    rho: float
    eps: float
    weight_decay: float
    maximize: bool


def local(trio: Trio) -> Trio:
    """The shards that this process holds; the update is element-wise, so each shard can be updated alone."""
    param, grad, buffer = trio
    if type(param) in PLAIN or not hasattr(param, "to_local"):
        return trio
    from torch.distributed.tensor import DTensor

    assert isinstance(param, DTensor)
    assert isinstance(grad, DTensor)
    if grad.placements != param.placements:
        grad = grad.redistribute(param.device_mesh, param.placements)
    local_buffer = buffer.to_local() if isinstance(buffer, DTensor) else buffer
    return param.to_local(), grad.to_local(), local_buffer


def share_memory_order(trio: Trio) -> bool:
    """Whether all lie in memory densely and in the same order, so that they can be walked through side by side."""
    return _are_contiguous(trio) or _are_contiguous(_in_memory_order(trio))


def blocks(trios: Iterable[Trio], limit: int) -> Iterator[Trio]:
    """Views of at most `limit` elements that cover `trios`, none of them empty."""
    for trio in trios:
        param = trio[0]
        if param.numel() <= limit:
            if param.numel() > 0:
                yield trio
        elif share_memory_order(trio):
            yield from _zip_pieces([None if t is None else t.view(-1).split(limit) for t in _in_memory_order(trio)])
        else:
            # No common flat view: halve along the longest dimension until the pieces are small enough.
            longest = max(range(param.dim()), key=lambda dim: param.shape[dim])
            half = (param.shape[longest] + 1) // 2
            yield from blocks(_zip_pieces([None if t is None else t.split(half, longest) for t in trio]), limit)


def _are_contiguous(trio: Trio) -> bool:
    param, grad, buffer = trio
    return param.is_contiguous() and grad.is_contiguous() and (buffer is None or buffer.is_contiguous())


def _in_memory_order(trio: Trio) -> Trio:
    param, grad, buffer = trio
    order = sorted(range(param.dim()), key=param.stride, reverse=True)
    return param.permute(order), grad.permute(order), None if buffer is None else buffer.permute(order)


def _zip_pieces(pieces: list[tuple[Tensor, ...] | None]) -> Iterator[Trio]:
    params, grads, buffers = pieces
    assert params is not None
    assert grads is not None
    yield from zip(params, grads, buffers or [None] * len(params), strict=True)
