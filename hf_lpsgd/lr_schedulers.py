"""What p needs to know of an LR scheduler of torch, transformers or DeepSpeed."""

from __future__ import annotations

import copy
from contextlib import suppress
from typing import Any

from torch.optim.lr_scheduler import LambdaLR, LRScheduler, OneCycleLR, ReduceLROnPlateau

_PROBES = 1_000  # rates that are looked at before a closer look around the highest
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

    def rate_at(step: int) -> float:
        with suppress(Exception):  # of the user's own function, which may know no step beyond the run
            return float(_rate_at(lr_scheduler, group, index, step))
        return 0.0

    end = steps or _FAR
    stride = end // _PROBES + 1
    near = max(range(0, end, stride), key=rate_at)
    top = max(range(max(near - stride, 0), min(near + stride, end)), key=rate_at)
    return rate_at(top) if steps or top < _FAR - 1 else 0.0


def _rate_at(lr_scheduler: Any, group: dict[str, Any], index: int, step: int) -> Any:
    """Return the group's rate at a step, or a bound of it; 0, or any error, where it is not known."""
    # A subclass that overrides get_lr gives other rates than the closed form that it inherits.
    kind = next((cls for cls in type(lr_scheduler).__mro__ if "get_lr" in vars(cls)), object)
    if kind is LambdaLR:
        factor = copy.copy(lr_scheduler.lr_lambdas[index])  # which may be an object that counts its calls
        return lr_scheduler.base_lrs[index] * factor(step)
    if "_get_closed_form_lr" in vars(kind):
        twin = copy.copy(lr_scheduler)
        twin.base_lrs, twin.last_epoch = twin.base_lrs[index : index + 1], step
        return twin._get_closed_form_lr()[0]
    if hasattr(lr_scheduler, "_milestones"):  # SequentialLR, which as a rule begins with a warm-up to it
        return group["initial_lr"]
    if isinstance(lr_scheduler, OneCycleLR):
        return group["max_lr"]
    # CyclicLR and most schedulers of DeepSpeed have max_lrs, its WarmupCosineLR has org_lrs.
    bounds = getattr(lr_scheduler, "max_lrs", None) or getattr(lr_scheduler, "org_lrs", None)
    if bounds and not _counts_evaluations(lr_scheduler):
        return bounds[index]
    if isinstance(lr_scheduler, LRScheduler) or _counts_evaluations(lr_scheduler):
        return 0.0
    return group["initial_lr"] * group.get("lr_scale", 1.0)  # as timm's schedulers have it
