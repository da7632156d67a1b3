"""The wrappers that Accelerate, DeepSpeed and torch put around an optimizer and its LR scheduler."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from .optim.base import LpOptimizer
from .optim.shards import Partitions

# Where DeepSpeed's ZeRO optimizers (stage 1 and 2, bfloat16, stage 3) hold their flat partitions, and the parameters.
_OF_ZERO = {
    "single_partition_of_fp32_groups": "bit16_groups",
    "fp32_groups_flat_partition": "bf16_groups",
    "fp32_partitioned_groups_flat": "fp16_groups",
}


def unwrap_optimizer(optimizer: Any) -> Any:
    """Return the innermost optimizer in the wrappers of Accelerate, DeepSpeed and torch.distributed.optim."""
    *_, innermost = _unwrapped(optimizer)
    return innermost


def unwrap_scheduler(lr_scheduler: Any) -> Any:
    """Return the LR scheduler in the wrappers of Accelerate and DeepSpeed, and not one that it holds itself."""
    *_, innermost = _unwrapped(lr_scheduler, ("scheduler",))
    return innermost


def partitions_of(optimizer: Any, model: Any = None) -> Partitions | None:
    """Describe how a wrapper has divided the parameters of the optimizer among processes; None if none has.

    DeepSpeed's ZeRO, torch's ZeroRedundancyOptimizer and FSDP1 do: FSDP1 over the process group of the `model`, or
    over all processes where that is not given. FSDP2 gives DTensors, which say it themselves.
    """
    for wrapper in _unwrapped(optimizer):
        for partitions, held in _OF_ZERO.items():
            if hasattr(wrapper, partitions):
                return _of_zero(wrapper, getattr(wrapper, partitions), getattr(wrapper, held))
        if type(wrapper).__name__ == "ZeroRedundancyOptimizer":
            return Partitions(wrapper.process_group)
    params = [param for group in unwrap_optimizer(optimizer).param_groups for param in group["params"]]
    if any(hasattr(param, "_fsdp_flattened") or hasattr(param, "_shard_numel_padded") for param in params):
        padding = {id(param): getattr(param, "_shard_numel_padded", 0) for param in params}
        return Partitions(getattr(model, "process_group", torch.distributed.GroupMember.WORLD), padding)
    return None


def _of_zero(zero: Any, partitions: list[Any], params: list[Any]) -> Partitions:
    groups = getattr(zero, "real_dp_process_group", None)
    group = groups[0] if groups else zero.dp_process_group
    padding: dict[int, int] = {}
    if torch.distributed.get_rank(group) == 0:  # the sum over all processes counts
        for partition, held in zip(partitions, params, strict=False):
            elements = sum(getattr(param, "ds_numel", param.numel()) for param in held)
            padding[id(partition)] = partition.numel() * torch.distributed.get_world_size(group) - elements
    return Partitions(group, padding)


def _unwrapped(wrapper: Any, names: tuple[str, ...] = ("optimizer", "optim", "base_optimizer")) -> Iterator[Any]:
    """Yield a wrapper, and what it and those in it hold by one of these names, from the outside in."""
    for _ in range(8):  # a bound, for objects that have every attribute
        yield wrapper
        inner = next((held for name in names if (held := getattr(wrapper, name, None)) is not None), None)
        if inner is None or isinstance(wrapper, LpOptimizer | torch.optim.lr_scheduler.LRScheduler):
            return
        wrapper = inner
