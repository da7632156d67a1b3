"""Schedules of p, each a pure function of an LR scheduler's step count and learning rate.

Nothing here has a state of its own: what a run needs to resume p is in the LR scheduler's checkpoint.
"""

from __future__ import annotations

import math
from numbers import Integral
from typing import Any, Literal, get_args

from torch.optim import Optimizer
from torch.optim.lr_scheduler import OneCycleLR, ReduceLROnPlateau

from .optim.base import LpOptimizer

PSchedule = Literal["cosine", "linear", "lr", "constant"]
Granularity = Literal["step", "epoch"]

P_SCHEDULES: tuple[str, ...] = get_args(PSchedule)
GRANULARITIES: tuple[str, ...] = get_args(Granularity)

# Schedules that need to know how long the run is.
_WITH_HORIZON = ("cosine", "linear")

_TIE = "_hf_lpsgd_p_tie"

# Wrappers of wrappers of optimizers and schedulers; a bound, for objects that have every attribute.
_DEEPEST = 8

_REPLACED = (
    " Accelerate puts it in the place of an optimizer whose state DeepSpeed offloads. To keep yours, set "
    'accelerator.state.deepspeed_plugin.deepspeed_config["zero_force_ds_cpu_optimizer"] = False before prepare().'
)


def annealed_p(schedule: str, p_max: float, index: int, length: int) -> float:
    """The order of the norm at place `index` of `length` places.

    For `cosine` this is the paper's `p_s = 2 + (p_max - 2) * (1 + cos(pi * (s - 1)/(S - 1))) / 2` with `s = index + 1`
    and `S = length`, `linear` goes straight from `p_max` to 2 over the same places, and `constant` is `p_max`.

    Args:
        schedule: `cosine`, `linear` or `constant`.
        p_max: value at the first place, at least 2.
        index: place, from 0; beyond the last place the last value holds, before the first the first.
        length: number of places. Where it is 1, the only place has `p_max`.

    Returns:
        A value in [2, p_max].
    """
    if schedule == "constant":
        return p_max
    progress = min(max(index, 0) / max(length - 1, 1), 1.0)
    share = (1.0 + math.cos(math.pi * progress)) / 2.0 if schedule == "cosine" else 1.0 - progress
    return 2.0 + (p_max - 2.0) * share


def p_following_lr(p_max: float, lr: float, peak_lr: float) -> float:
    """The order of the norm with `p - 2` in proportion to the learning rate: `2 + (p_max - 2) * lr / peak_lr`.

    Args:
        p_max: value at the peak, at least 2; a learning rate above the peak does not go beyond it.
        lr: learning rate in force.
        peak_lr: learning rate at which p is `p_max`; where it is 0, p is `p_max`.
    """
    share = min(max(lr / peak_lr, 0.0), 1.0) if peak_lr > 0 else 1.0
    return 2.0 + (p_max - 2.0) * share


def unwrap_optimizer(optimizer: Any) -> Any:
    """The innermost optimizer of Accelerate's and DeepSpeed's wrappers, which hold it as `.optimizer`."""
    for _ in range(_DEEPEST):
        inner = getattr(optimizer, "optimizer", None)
        if isinstance(optimizer, LpOptimizer) or inner is None:
            break
        optimizer = inner
    return optimizer


def unwrap_scheduler(lr_scheduler: Any) -> Any:
    """The innermost scheduler of Accelerate's and DeepSpeed's wrappers, which hold it as `.scheduler`."""
    for _ in range(_DEEPEST):
        inner = getattr(lr_scheduler, "scheduler", None)
        if inner is None:
            break
        lr_scheduler = inner
    return lr_scheduler


def current_tie(optimizer: Any) -> PScheduleTie | None:
    """The tie by which [`tie_p_schedule`] governs the `p` of this optimizer, wrapped or not; None if there is none."""
    return getattr(unwrap_optimizer(optimizer), _TIE, None)


class PScheduleTie:
    """What [`tie_p_schedule`] returns: the tie between an optimizer's p and an LR scheduler.

    Attributes:
        optimizer: the LPSGD or LPSGDM optimizer, unwrapped.
        by_trainer: whether the Trainer's callback made it, and not the user.
        lr_scheduler: the LR scheduler that p follows, unwrapped.
    """

    def __init__(
        self,
        optimizer: LpOptimizer,
        lr_scheduler: Any,
        schedule: str,
        num_training_steps: int,
        num_warmup_steps: int,
        granularity: str,
        steps_per_epoch: int,
        stride: int,
    ) -> None:
        self.optimizer = optimizer
        self.lr_scheduler = lr_scheduler
        self.schedule = schedule
        self.num_training_steps = math.ceil(num_training_steps / stride)
        self.num_warmup_steps = math.ceil(num_warmup_steps / stride)
        self.granularity = granularity
        self.steps_per_epoch = math.ceil(steps_per_epoch / stride)
        self._stride = stride
        self.by_trainer = False
        self._handle = optimizer.register_step_pre_hook(self._before_step)

    def get_p(self) -> list[float]:
        """The value of p that the LR scheduler's present state calls for, one for each param group."""
        return [self._p(group, index) for index, group in enumerate(self.optimizer.param_groups)]

    def remove(self) -> None:
        """Cut the tie; p stays as it is."""
        self._handle.remove()
        if getattr(self.optimizer, _TIE, None) is self:
            delattr(self.optimizer, _TIE)

    def _before_step(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._apply()

    def _apply(self) -> None:
        for group, p in zip(self.optimizer.param_groups, self.get_p(), strict=True):
            group["p"] = p

    def _p(self, group: dict[str, Any], index: int) -> float:
        p_max = group["p_max"]
        if self.schedule == "constant":
            return p_max
        if self.schedule == "lr":
            default = self.optimizer.defaults["lr"]
            return p_following_lr(p_max, float(group["lr"]), _peak_lr(self.lr_scheduler, group, index, default))
        step = scheduler_step(self.lr_scheduler) // self._stride
        if step < self.num_warmup_steps:
            return p_max
        if self.granularity == "epoch":
            epochs = math.ceil(self.num_training_steps / self.steps_per_epoch)
            return annealed_p(self.schedule, p_max, step // self.steps_per_epoch, epochs)
        length = self.num_training_steps - self.num_warmup_steps
        return annealed_p(self.schedule, p_max, step - self.num_warmup_steps, length)


def tie_p_schedule(
    optimizer: Any,
    lr_scheduler: Any,
    schedule: str = "cosine",
    *,
    num_training_steps: int | None = None,
    num_warmup_steps: int = 0,
    granularity: str = "step",
    steps_per_epoch: int | None = None,
) -> PScheduleTie:
    """Let the p of an optimizer follow an LR scheduler.

    From now on each `optimizer.step()` first sets `group["p"]` in every param group from the group's `p_max` and the
    LR scheduler's own step count and learning rate. There is nothing to save besides the optimizer and the LR
    scheduler: after both are loaded, p goes on where it was. Tying again replaces the tie there was. A deepcopy or a
    pickle of the optimizer is not tied, as it is not the LR scheduler's either. Tie before the first step.

    Args:
        optimizer: an [`LPSGD`] or [`LPSGDM`], also as wrapped by Accelerate or DeepSpeed.
        lr_scheduler: its LR scheduler, of torch, transformers or DeepSpeed, also as wrapped by Accelerate.
        schedule: `"cosine"`, the paper's, from `p_max` to 2; `"linear"`; `"lr"`, with `p - 2` in proportion to the
            learning rate over its peak, so that p follows any LR curve; `"constant"`, at `p_max`.
        num_training_steps: the run's length, the number the LR scheduler itself was given; `cosine` and `linear` need
            it. At the last of these steps p is 2, and it stays there.
        num_warmup_steps: for how many of these steps `cosine` and `linear` hold p at `p_max` first.
        granularity: `"step"`, or `"epoch"`, for which p changes only from epoch to epoch, by the paper's formula to
            the letter (a warm-up holds p at `p_max` and leaves the formula as it is).
        steps_per_epoch: LR scheduler steps in an epoch; `granularity="epoch"` needs it.

    Returns:
        The tie, whose `remove()` ends it and whose `get_p()` tells the values for the next step.

    Raises:
        ValueError: an argument is not one of the allowed, one that the schedule needs is missing, or the LR scheduler
            counts evaluations (ReduceLROnPlateau, GreedyLR) where the schedule needs steps.
    """
    base = unwrap_optimizer(optimizer)
    if not isinstance(base, LpOptimizer):
        raise ValueError(
            f"tie_p_schedule ties the p of LPSGD or LPSGDM, and this optimizer is {type(base).__name__}: it has no p."
            + (_REPLACED if type(base).__name__.startswith("DeepSpeedCPU") else "")
        )
    scheduler = unwrap_scheduler(lr_scheduler)
    check_choice("p schedule", schedule, P_SCHEDULES)
    check_choice("granularity", granularity, GRANULARITIES)
    check_granularity(schedule, granularity)
    needed = "the p schedule needs it"
    with_horizon = schedule in _WITH_HORIZON
    _check_count("num_training_steps", num_training_steps, 1, needed, optional=not with_horizon)
    _check_count("num_warmup_steps", num_warmup_steps, 0, "0 is no warm-up")
    by_epochs = with_horizon and granularity == "epoch"
    _check_count("steps_per_epoch", steps_per_epoch, 1, "granularity 'epoch' needs it", optional=not by_epochs)
    if with_horizon:
        check_scheduler_counts_steps(type(scheduler).__name__, schedule, _counts_evaluations(scheduler))
        scheduler_step(scheduler)
    elif schedule == "lr":
        for group in base.param_groups:
            # ReduceLROnPlateau leaves no trace of where it started; in the group, the checkpoint carries it.
            group.setdefault("initial_lr", _first_lr(group, base, scheduler))
    stride = steps_per_update(lr_scheduler)
    previous = current_tie(base)
    if previous is not None:
        previous.remove()
    tie = PScheduleTie(
        base,
        scheduler,
        schedule,
        int(num_training_steps or 1),
        int(num_warmup_steps),
        granularity,
        int(steps_per_epoch or 1),
        stride,
    )
    setattr(base, _TIE, tie)
    tie._apply()
    return tie


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


def steps_per_update(lr_scheduler: Any) -> int:
    """How many steps the LR scheduler makes for one optimizer step.

    It is 1, but for a scheduler that Accelerate prepared without `split_batches`: that one makes as many steps as
    there are processes.
    """
    wrapper = type(lr_scheduler).__name__
    if wrapper != "AcceleratedScheduler" or lr_scheduler.split_batches or not lr_scheduler.step_with_optimizer:
        return 1
    from accelerate.state import AcceleratorState

    return AcceleratorState().num_processes


def check_choice(name: str, value: Any, allowed: tuple[str, ...]) -> None:
    """Fail unless `value` is one of `allowed`.

    Raises:
        ValueError: names the option, the value and what is allowed.
    """
    if value not in allowed:
        raise ValueError(f"Invalid {name}: {value!r}. It must be one of {', '.join(allowed)}.")


def check_granularity(schedule: str, granularity: str) -> None:
    """Fail where p should follow the learning rate, which may change at each step, from epoch to epoch only.

    Raises:
        ValueError: says what to use instead.
    """
    if schedule == "lr" and granularity == "epoch":
        raise ValueError(
            "The p schedule 'lr' follows the learning rate step by step and knows no epochs. Use the granularity "
            "'step', or the p schedule 'cosine' or 'linear'."
        )


def check_scheduler_counts_steps(scheduler_name: str, schedule: str, counts_evaluations: bool) -> None:
    """Fail where a schedule of p that goes by steps meets an LR scheduler that counts evaluations.

    Raises:
        ValueError: says which p schedules work with this LR scheduler.
    """
    if schedule in _WITH_HORIZON and counts_evaluations:
        raise ValueError(
            f"The p schedule {schedule!r} goes by training steps, and the LR scheduler {scheduler_name} counts "
            "evaluations. Use the p schedule 'lr' (p falls when the learning rate does) or 'constant'."
        )


def _peak_lr(lr_scheduler: Any, group: dict[str, Any], index: int, default: float) -> float:
    """The learning rate that this scheduler gives param group `index` at its highest."""
    members = getattr(lr_scheduler, "_schedulers", None)  # ChainedScheduler, SequentialLR
    if members:
        return max(_peak_lr(member, group, index, default) for member in members)
    if isinstance(lr_scheduler, OneCycleLR):  # whose initial_lr is not its peak
        return float(group["max_lr"])
    # CyclicLR and most of DeepSpeed's have the one, DeepSpeed's WarmupCosineLR the other.
    peaks = getattr(lr_scheduler, "max_lrs", None) or getattr(lr_scheduler, "org_lrs", None)
    if peaks and not _counts_evaluations(lr_scheduler):
        return float(peaks[min(index, len(peaks) - 1)])
    return float(group.get("initial_lr", default))


def _counts_evaluations(lr_scheduler: Any) -> bool:
    # GreedyLR is transformers', which this module does not import.
    return isinstance(lr_scheduler, ReduceLROnPlateau) or type(lr_scheduler).__name__ == "GreedyLR"


def _first_lr(group: dict[str, Any], optimizer: LpOptimizer, lr_scheduler: Any) -> float:
    is_fresh = not getattr(lr_scheduler, "last_epoch", 0)
    return float(group["lr"] if is_fresh else optimizer.defaults["lr"])


def _check_count(name: str, value: Any, low: int, why: str, *, optional: bool = False) -> None:
    if optional and value is None:
        return
    if isinstance(value, bool) or not isinstance(value, Integral) or int(value) < low:
        raise ValueError(f"Invalid {name}: {value!r}. It must be an integer of at least {low}: {why}.")
