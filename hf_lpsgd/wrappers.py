"""The wrappers that Accelerate, DeepSpeed and torch put around an optimizer."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from .optim.base import LpOptimizer
from .optim.shards import Partitions

# Accelerate and DeepSpeed hold what they wrap as `optimizer`, torch's ZeroRedundancyOptimizer as `optim`.
_HELD_AS = ("optimizer", "optim", "base_optimizer")

# Wrappers of wrappers; a bound, for objects that have every attribute.
DEEPEST = 8

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
        if isinstance(wrapper, LpOptimizer):
            params = [param for group in wrapper.param_groups for param in group["params"]]
            if any(hasattr(param, "_fsdp_flattened") or hasattr(param, "_shard_numel_padded") for param in params):
                from torch.distributed import GroupMember

                padding = {id(param): getattr(param, "_shard_numel_padded", 0) for param in params}
                return Partitions(getattr(model, "process_group", GroupMember.WORLD), padding)
    return None


def _of_zero(zero: Any, partitions: list[Any], params: list[Any]) -> Partitions:
    from torch.distributed import get_rank, get_world_size

    groups = getattr(zero, "real_dp_process_group", None)
    group = groups[0] if groups else zero.dp_process_group
    padding: dict[int, int] = {}
    if get_rank(group) == 0:  # the sum over all processes counts
        for partition, held in zip(partitions, params, strict=False):
            elements = sum(getattr(param, "ds_numel", param.numel()) for param in held)
            padding[id(partition)] = partition.numel() * get_world_size(group) - elements
    return Partitions(group, padding)


def _unwrapped(optimizer: Any) -> Iterator[Any]:
    """Yield the optimizer, and what its wrappers hold, from the outside in."""
    for _ in range(DEEPEST):
        yield optimizer
        inner = next((held for name in _HELD_AS if (held := getattr(optimizer, name, None)) is not None), None)
        if isinstance(optimizer, LpOptimizer) or inner is None:
            return
        optimizer = inner
