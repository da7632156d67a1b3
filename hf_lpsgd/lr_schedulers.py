"""What p needs to know of an LR scheduler of torch, transformers or DeepSpeed."""

from __future__ import annotations

from typing import Any

from torch.optim.lr_scheduler import LambdaLR, LRScheduler, OneCycleLR, ReduceLROnPlateau


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


def peak_lr(lr_scheduler: Any, group: dict[str, Any], index: int) -> float:
    """Return the highest learning rate that this scheduler gives the param group at `index`; 0 where it is not known.

    No function of the user is called: one that counts its calls would give other rates from then on.
    """
    if members := getattr(lr_scheduler, "_schedulers", None):
        peaks = [peak_lr(member, group, index) for member in members]
        is_in_turn = hasattr(lr_scheduler, "_milestones")  # SequentialLR; those of ChainedScheduler multiply the rate
        return max(peaks) if is_in_turn and all(peaks) else 0.0
    if isinstance(lr_scheduler, OneCycleLR):
        return float(group.get("max_lr", 0.0))
    # CyclicLR and most schedulers of DeepSpeed have max_lrs, its WarmupCosineLR has org_lrs.
    bounds = getattr(lr_scheduler, "max_lrs", None) or getattr(lr_scheduler, "org_lrs", None) or ()
    source: Any = lr_scheduler
    if isinstance(lr_scheduler, LambdaLR) and index < len(lr_scheduler.lr_lambdas):
        source = lr_scheduler.lr_lambdas[index]  # which may have any size
    module = str(getattr(getattr(source, "func", source), "__module__", ""))
    is_known = module.startswith(("torch.", "transformers."))
    if _counts_evaluations(lr_scheduler) or (isinstance(lr_scheduler, LRScheduler) and not is_known):
        return 0.0
    # LinearLR has two factors. timm's schedulers, which are not torch's, multiply by lr_scale.
    factors = [float(getattr(lr_scheduler, name, 1.0)) for name in ("start_factor", "end_factor")]
    scale = max(factors) if isinstance(lr_scheduler, LRScheduler) else float(group.get("lr_scale", 1.0))
    return float(bounds[index] if index < len(bounds) else group.get("initial_lr", 0.0) * scale)
