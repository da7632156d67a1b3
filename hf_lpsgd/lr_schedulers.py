"""What p needs to know of an LR scheduler of torch, transformers or DeepSpeed, as the user made it or wrapped."""

from __future__ import annotations

from typing import Any

from torch.optim.lr_scheduler import LRScheduler, OneCycleLR, ReduceLROnPlateau

from .notices import warn_user

# Wrappers of wrappers; a bound, for objects that have every attribute.
_DEEPEST = 8


def unwrap_scheduler(lr_scheduler: Any) -> Any:
    """The innermost scheduler of Accelerate's and DeepSpeed's wrappers, which hold it as `.scheduler`."""
    for _ in range(_DEEPEST):
        inner = getattr(lr_scheduler, "scheduler", None)
        if inner is None:
            break
        lr_scheduler = inner
    return lr_scheduler


def scheduler_step(lr_scheduler: Any) -> int:
    """How many steps an (unwrapped) LR scheduler has made.

    Raises:
        ValueError: the scheduler does not tell.
    """
    if hasattr(lr_scheduler, "last_epoch"):
        return max(int(lr_scheduler.last_epoch), 0)
    if hasattr(lr_scheduler, "last_batch_iteration"):  # DeepSpeed's schedulers, which count from -1
        return max(int(lr_scheduler.last_batch_iteration) + 1, 0)
    members = getattr(lr_scheduler, "_schedulers", None)  # ChainedScheduler
    if members:
        return scheduler_step(members[0])
    raise ValueError(
        f"The LR scheduler {type(lr_scheduler).__name__} does not tell how many steps it has made (last_epoch), which "
        "the p schedules 'cosine' and 'linear' go by. Use the p schedule 'lr' or 'constant', or a scheduler of torch "
        "or transformers."
    )


def tells_steps(lr_scheduler: Any) -> bool:
    """Whether `scheduler_step` knows how many steps it has made."""
    try:
        scheduler_step(lr_scheduler)
    except ValueError:
        return False
    return True


def steps_per_update(lr_scheduler: Any) -> int:
    """How many steps the LR scheduler makes per optimizer step.

    It is 1, except for a scheduler that Accelerate prepared without `split_batches`. That one makes one step per
    process.
    """
    wrapper = type(lr_scheduler).__name__
    if wrapper != "AcceleratedScheduler" or lr_scheduler.split_batches or not lr_scheduler.step_with_optimizer:
        return 1
    from accelerate.state import AcceleratorState

    return int(AcceleratorState().num_processes)


def peak_lr(lr_scheduler: Any, group: dict[str, Any], index: int) -> float:
    """The learning rate that this scheduler gives a param group, the one at `index`, at its highest."""
    members = getattr(lr_scheduler, "_schedulers", None)  # ChainedScheduler, SequentialLR
    if members:
        return max(peak_lr(member, group, index) for member in members)
    if isinstance(lr_scheduler, OneCycleLR) and "max_lr" in group:  # whose initial_lr is not its peak
        return float(group["max_lr"])
    # CyclicLR and most schedulers of DeepSpeed have max_lrs, its WarmupCosineLR has org_lrs.
    peaks = getattr(lr_scheduler, "max_lrs", None) or getattr(lr_scheduler, "org_lrs", None) or ()
    if index < len(peaks) and not counts_evaluations(lr_scheduler):
        return float(peaks[index])
    peak = float(group["initial_lr"])
    # timm's schedulers multiply by it. Those of torch do not know it.
    return peak if isinstance(lr_scheduler, LRScheduler) else peak * float(group.get("lr_scale", 1.0))


def counts_evaluations(lr_scheduler: Any) -> bool:
    # GreedyLR is transformers', which this module does not import.
    return isinstance(lr_scheduler, ReduceLROnPlateau) or type(lr_scheduler).__name__ == "GreedyLR"


def notice_other_owner(lr_scheduler: Any, owner: Any, optimizer: Any) -> None:
    """Warn where an LR scheduler was made for another optimizer, its `owner`, and so sets no rate of this one."""
    groups = getattr(owner, "param_groups", optimizer.param_groups)
    if owner is not optimizer and not any(group is own for group in groups for own in optimizer.param_groups):
        warn_user(
            f"p follows the learning rate of this optimizer, which the LR scheduler {type(lr_scheduler).__name__} "
            f"does not set: it was made for another {type(owner).__name__}. Give the LR scheduler of this one."
        )
