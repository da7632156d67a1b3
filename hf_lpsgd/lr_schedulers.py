"""What p needs to know of an LR scheduler of torch, transformers or DeepSpeed."""

from __future__ import annotations

import copy
import math
from bisect import bisect_right
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from torch.optim.lr_scheduler import LambdaLR, LRScheduler, OneCycleLR, ReduceLROnPlateau

_PROBES = 1_000  # rates that are looked at in one round
_FAR = 100_000  # steps that are looked at where nobody says how long the run is


def _counts_evaluations(lr_scheduler: Any) -> bool:
    """Say whether each step of an LR scheduler is an evaluation."""
    # GreedyLR is transformers', which this module does not import.
    return isinstance(lr_scheduler, ReduceLROnPlateau) or type(lr_scheduler).__name__ == "GreedyLR"


def steps_made(lr_scheduler: Any) -> int | None:
    """Return how many training steps an LR scheduler has made; None where it does not count them."""
    if _counts_evaluations(lr_scheduler):
        return None
    if hasattr(lr_scheduler, "last_epoch"):
        return max(int(lr_scheduler.last_epoch), 0)
    if hasattr(lr_scheduler, "last_batch_iteration"):  # DeepSpeed's schedulers, which count from -1
        return max(int(lr_scheduler.last_batch_iteration) + 1, 0)
    members = getattr(lr_scheduler, "_schedulers", None)  # ChainedScheduler
    return steps_made(members[0]) if members else None


def steps_per_update(lr_scheduler: Any) -> int:
    """Return how many steps the LR scheduler makes per optimizer step; more than one where Accelerate prepared it."""
    wrapper = type(lr_scheduler).__name__
    if wrapper != "AcceleratedScheduler" or lr_scheduler.split_batches or not lr_scheduler.step_with_optimizer:
        return 1
    from accelerate.state import AcceleratorState

    return int(AcceleratorState().num_processes)  # each process stands for a step


def peak_lr(lr_scheduler: Any, group: dict[str, Any], index: int, steps: int | None) -> float:
    """Return the highest learning rate that this scheduler gives the param group at `index` in a run of `steps` steps.

    It is 0 where nobody can know it ahead, as where `steps` is None and the rate never falls.
    """
    rate_of = _rate_of(lr_scheduler, group, index) or (lambda step: 0.0)

    def rate_at(step: int) -> float:
        with suppress(Exception):  # of the user's own function, which may know no step beyond the run
            return float(rate_of(step))
        return -math.inf

    first, end, top, stride = 0, steps or _FAR, 0, 0
    while stride != 1:  # then look more closely around the highest
        stride = max((end - first) // _PROBES, 1)
        top = max(range(first, end, stride), key=rate_at)
        first, end = max(top - stride, 0), min(top + stride, end)
    return rate_at(top) if math.isfinite(rate_at(top)) and (steps or top < _FAR - 1) else 0.0


def _rate_of(lr_scheduler: Any, group: dict[str, Any], index: int) -> Callable[[int], Any] | None:
    """Return what gives the group's rate at a step, or a bound of it; it leaves the scheduler as it is."""
    members, milestones = (getattr(lr_scheduler, name, None) for name in ("_schedulers", "_milestones"))
    if members:
        rates: list[Any] = [_rate_of(member, group, index) for member in members]
        starts, initial = [0, *(milestones or ())], group.get("initial_lr")
        if milestones is None:  # ChainedScheduler, whose members multiply the rate
            return lambda step: initial * math.prod(rate(step) / initial for rate in rates)
        return lambda step: rates[at := bisect_right(starts, step) - 1](step - starts[at])
    base_lrs = getattr(lr_scheduler, "base_lrs", ())[index : index + 1]
    # A subclass that overrides get_lr gives other rates than the closed form that it inherits.
    kind = next((cls for cls in type(lr_scheduler).__mro__ if "get_lr" in vars(cls)), object)
    if kind is LambdaLR and base_lrs:
        factor = copy.copy(lr_scheduler.lr_lambdas[index])  # which may be an object that counts its calls
        return lambda step: base_lrs[0] * factor(step)
    if "_get_closed_form_lr" in vars(kind) and base_lrs:
        twin = copy.copy(lr_scheduler)
        twin.base_lrs = base_lrs
        return lambda step: vars(twin).update(last_epoch=step) or twin._get_closed_form_lr()[0]
    if _counts_evaluations(lr_scheduler):
        return None
    # CyclicLR and most schedulers of DeepSpeed have max_lrs, its WarmupCosineLR has org_lrs.
    bounds: Any = getattr(lr_scheduler, "max_lrs", None) or getattr(lr_scheduler, "org_lrs", ())
    bounds = bounds[index : index + 1]
    if isinstance(lr_scheduler, OneCycleLR):
        bounds = [group["max_lr"]] if "max_lr" in group else []
    elif not bounds and kind.__module__ == LRScheduler.__module__:
        bounds = base_lrs  # with which MultiplicativeLR and CosineAnnealingWarmRestarts begin
    elif not bounds and not isinstance(lr_scheduler, LRScheduler) and "initial_lr" in group:
        bounds = [float(group["initial_lr"]) * float(group.get("lr_scale", 1.0))]  # as timm's schedulers have it
    return (lambda step: bounds[0]) if bounds else None
