"""Sums over the shards of parameters: the only thing for which an optimizer communicates.

Replicas (DDP) see the same gradients and need no exchange. A DTensor says itself which processes hold its shards. The
partitions of an engine (ZeRO, FSDP1) do not, so whoever ties the optimizer hands their description over.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Partitions(NamedTuple):
    """How an engine has divided the parameters of an optimizer among the processes of a `group`."""

    group: Any
    padding: Mapping[int, int] = MappingProxyType({})  # by its identity, the elements of a partition that are none


def groups_of(param: Tensor, partitions: Partitions | None) -> tuple[Any, ...]:
    """Return the process groups over which the shards of a parameter lie: one for each dimension of a mesh."""
    if hasattr(param, "device_mesh") and hasattr(param, "placements"):
        dims = [dim for dim, placement in enumerate(param.placements) if not placement.is_replicate()]
        return tuple(param.device_mesh.get_group(dim) for dim in dims)
    return () if partitions is None else (partitions.group,)


def add_up(groups: tuple[Any, ...], squares: float, count: int, device: torch.device | None) -> tuple[float, int]:
    """Return a sum of squares and its number of elements over all shards."""
    for group in groups:
        backend = str(torch.distributed.get_backend(group))
        if "nccl" in backend and (device is None or device.type != "cuda"):
            device = torch.device("cuda")
        on = torch.device("cpu") if "gloo" in backend else device
        numbers = torch.tensor([squares, count], dtype=torch.float64, device=on)
        torch.distributed.all_reduce(numbers, group=group)
        squares, count = float(numbers[0]), int(numbers[1])
    return squares, count
