"""Schedules of p, and the tie between p and an LR scheduler.

A schedule is a pure function of the LR scheduler's step count and learning rate. So it has no state of its own: the
checkpoint of the LR scheduler holds all that a run needs to resume p.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple

from .lr_schedulers import (
    counts_evaluations,
    notice_other_owner,
    peak_lr,
    scheduler_step,
    steps_per_update,
    tells_steps,
    unwrap_scheduler,
)
from .notices import warn_user
from .optim.base import LpOptimizer
from .optim.grad_rms import FEWEST_UPDATES
from .optim.options import Choice, check_count

PSchedule = Literal["cosine", "linear", "lr", "constant"]
Granularity = Literal["step", "epoch"]

_TIE = "_hf_lpsgd_p_tie"

# Accelerate and DeepSpeed hold what they wrap as `optimizer`, torch's ZeroRedundancyOptimizer as `optim`.
_HELD_AS = ("optimizer", "optim", "base_optimizer")

# Wrappers of wrappers of optimizers; a bound, for objects that have every attribute.
_DEEPEST = 8

# Updates of one parameter after which an LR scheduler that has not moved is told.
_SEVERAL = 5

# A loss scaler skips optimizer steps, and some loops step the LR scheduler at those too.
_SKIPPED = 8

_REPLACED = (
    " Accelerate puts it in the place of an optimizer whose state DeepSpeed offloads. To keep yours, set "
    'accelerator.state.deepspeed_plugin.deepspeed_config["zero_force_ds_cpu_optimizer"] = False before prepare().'
)


class Place(NamedTuple):
    """Where a run is."""

    progress: float  # 0 at the first step after the warm-up, 1 at the last step of the run
    lr_share: float  # the learning rate in force over its peak, in [0, 1]


@dataclass(frozen=True)
class PScheduleRecord:
    """What there is to know about a p schedule: `p = 2 + (p_max - 2) * share(place)`.

    Attributes:
        share: from the place in the run to the share of `p_max - 2` that is left, in [0, 1].
        description: one line for tables.
        course: a clause for model cards, with a place for `{p_max}`.
        needs_horizon: whether it reads `Place.progress`, and so must know how long the run is.
        follows_lr: whether it reads `Place.lr_share`.
    """

    share: Callable[[Place], float]
    description: str
    course: str
    needs_horizon: bool = False
    follows_lr: bool = False


P_SCHEDULES: dict[str, PScheduleRecord] = {
    "cosine": PScheduleRecord(
        lambda place: (1.0 + math.cos(math.pi * place.progress)) / 2.0,
        "the paper's: p_max during the warm-up, then half a cosine down to 2 at the last step",
        "p starts at p_max = {p_max}, is held there during warm-up, and falls to 2 along half a cosine",
        needs_horizon=True,
    ),
    "linear": PScheduleRecord(
        lambda place: 1.0 - place.progress,
        "p_max during the warm-up, then a straight line down to 2 at the last step",
        "p starts at p_max = {p_max}, is held there during warm-up, and falls to 2 in a straight line",
        needs_horizon=True,
    ),
    "lr": PScheduleRecord(
        lambda place: place.lr_share,
        "p - 2 is proportional to the learning rate, with p_max at its peak; follows any LR schedule",
        "p - 2 is proportional to the learning rate, and p = p_max = {p_max} at its peak",
        follows_lr=True,
    ),
    "constant": PScheduleRecord(
        lambda place: 1.0,
        "p_max during the whole run",
        "p stays at p_max = {p_max}",
    ),
}
"""One record per p schedule, by the name that `tie_p_schedule` and `p_schedule=...` take."""

P_SCHEDULE = Choice("p_schedule", "how p goes from p_max to 2", P_SCHEDULES)
P_GRANULARITY = Choice("p_granularity", "whether p changes at each step or at each epoch", ("step", "epoch"))


def annealed_p(schedule: PSchedule, p_max: float, index: int, length: int) -> float:
    """The order of the norm at place `index` of `length` places.

    For `cosine` this is the paper's `p_s = 2 + (p_max - 2) * (1 + cos(pi * (s - 1)/(S - 1))) / 2` with `s = index + 1`
    and `S = length`. Before the first place the first value holds, after the last place the last one. If there is only
    one place, it has `p_max`. A schedule that follows the learning rate is taken at its peak.
    """
    return _p_at(P_SCHEDULES[schedule], p_max, Place(_progress(index, length), 1.0))


def p_following_lr(p_max: float, lr: float, peak_lr: float) -> float:
    """The order of the norm with `p - 2` proportional to the learning rate: `2 + (p_max - 2) * lr / peak_lr`.

    A learning rate above the peak gives `p_max` too, and so does a peak of 0.
    """
    return _p_at(P_SCHEDULES["lr"], p_max, Place(0.0, _lr_share(lr, peak_lr)))


def unwrap_optimizer(optimizer: Any) -> Any:
    """The innermost optimizer in the wrappers of Accelerate, DeepSpeed and torch.distributed.optim."""
    for _ in range(_DEEPEST):
        inner = next((held for name in _HELD_AS if (held := getattr(optimizer, name, None)) is not None), None)
        if isinstance(optimizer, LpOptimizer) or inner is None:
            break
        optimizer = inner
    return optimizer


def current_tie(optimizer: Any) -> PScheduleTie | None:
    """The tie that [`tie_p_schedule`][hf_lpsgd.tie_p_schedule] made for this optimizer, wrapped or not, or None."""
    return getattr(unwrap_optimizer(optimizer), _TIE, None)


@dataclass(eq=False)
class PScheduleTie:
    """The tie between an optimizer's p and an LR scheduler; [`tie_p_schedule`][hf_lpsgd.tie_p_schedule] makes it.

    Optimizer and LR scheduler are unwrapped. Lengths are in optimizer steps, each of which is `stride` steps of the LR
    scheduler. `by_trainer` says that the Trainer's callback made the tie, and not the user, and `moves_each_step`
    that the LR scheduler should move at each optimizer step, so that it is worth a warning if it does not.
    """

    optimizer: LpOptimizer
    lr_scheduler: Any
    schedule: PSchedule
    num_training_steps: int
    num_warmup_steps: int
    granularity: Granularity
    steps_per_epoch: int
    stride: int
    by_trainer: bool = False
    moves_each_step: bool = True

    _still: Counter[int] = field(default_factory=Counter, repr=False)
    _last_place: Any = field(default=None, repr=False)

    def __post_init__(self) -> None:
        self._handle = self.optimizer.register_step_pre_hook(self._before_step)
        self.optimizer._before_update = self._set_p

    def get_p(self) -> list[float]:
        """The p that belongs to the present state of the LR scheduler, one value per param group."""
        known = self.optimizer._every_group()
        return [self._p(group, _index(group, place, known)) for place, group in enumerate(self.optimizer.param_groups)]

    def remove(self) -> None:
        """Cut the tie; p stays as it is."""
        self._handle.remove()
        if self.optimizer._before_update == self._set_p:
            self.optimizer._before_update = None
        if getattr(self.optimizer, _TIE, None) is self:
            delattr(self.optimizer, _TIE)

    def is_moved_by(self, lr_scheduler: Any) -> bool:
        """Whether p follows when this LR scheduler, wrapped or not, is stepped."""
        record = P_SCHEDULES[self.schedule]
        if not record.needs_horizon and not record.follows_lr:
            return True
        stepped = unwrap_scheduler(lr_scheduler)
        members = getattr(stepped, "_schedulers", None) or ()  # ChainedScheduler, SequentialLR
        held = [stepped, *getattr(stepped, "__dict__", {}).values()]  # wrappers of other libraries hold one
        return any(one is self.lr_scheduler for one in held) or any(self.is_moved_by(member) for member in members)

    def _before_step(self, *_: Any) -> None:
        self._set_p()
        if self.moves_each_step:
            self._notice_stillness()

    def _set_p(self) -> None:
        loaded = self.optimizer._take_loaded_p()
        if loaded is not None:
            self._compare_with_loaded(*loaded)
        self._apply()

    def _apply(self) -> None:
        for group, p in zip(self.optimizer.param_groups, self.get_p(), strict=True):
            group["p"] = p

    def _p(self, group: dict[str, Any], index: int) -> float:
        record = P_SCHEDULES[self.schedule]
        progress, lr_share = 0.0, 1.0
        if record.needs_horizon:
            progress = self._progress(scheduler_step(self.lr_scheduler) // self.stride)
        if record.follows_lr:
            lr = float(group["lr"])
            # A group that was added later has the rate that it was added with. In the group, checkpoints hold it.
            group.setdefault("initial_lr", lr)
            lr_share = _lr_share(lr, peak_lr(self.lr_scheduler, group, index))
        return _p_at(record, float(group["p_max"]), Place(progress, lr_share))

    def _compare_with_loaded(self, loaded_p: float, p_max: float) -> None:
        """Warn where this schedule cannot have given the p at which the loaded state was saved."""
        record = P_SCHEDULES[self.schedule]
        if record.follows_lr:
            return
        step = scheduler_step(self.lr_scheduler) // self.stride if record.needs_horizon else 0
        now, before = (
            _p_at(record, p_max, Place(self._progress(max(at, 0)) if record.needs_horizon else 0.0, 1.0))
            for at in (step, step - _SKIPPED)
        )
        if not now - 1e-6 <= loaded_p <= before + 1e-6:
            warn_user(
                f"p goes from {loaded_p:.4g} in the loaded state to {now:.4g}: the p schedule {self.schedule!r} over "
                f"{self.num_training_steps} steps is not the one that the state was saved under, or its LR scheduler "
                "was not loaded with it. To go on as before, give the schedule, num_training_steps and "
                "num_warmup_steps of that run, and load both."
            )

    def _notice_stillness(self) -> None:
        # The first parameter, because ZeRO and layerwise training step a few parameters at a time.
        first = next((group["params"][0] for group in self.optimizer.param_groups if group["params"]), None)
        record = P_SCHEDULES[self.schedule]
        lrs = [float(group["lr"]) for group in self.optimizer.param_groups] if record.follows_lr else None
        made = scheduler_step(self.lr_scheduler)
        if record.needs_horizon and self._progress(made // self.stride) >= 1.0:
            return  # p is where it ends
        place = (made, lrs)
        if place != self._last_place:
            self._last_place = place
            self._still.clear()
        self._still[id(first)] += 1
        if self._still[id(first)] > _SEVERAL:
            self.moves_each_step = False  # it is said once
            p = self.optimizer.param_groups[0]["p"]
            warn_user(
                f"p is tied to a {type(self.lr_scheduler).__name__} that has not moved for {_SEVERAL} optimizer "
                f"steps, and stays at {p:.4g}. Call its step() after each optimizer step, or tie the LR scheduler "
                "that is stepped in its place. If it is stepped once per epoch, tell tie_p_schedule so by "
                "steps_per_epoch=1."
            )

    def _progress(self, step: int) -> float:
        if step < self.num_warmup_steps:
            return 0.0
        if self.granularity == "epoch":
            epochs = math.ceil(self.num_training_steps / self.steps_per_epoch)
            return _progress(step // self.steps_per_epoch, epochs)
        return _progress(step - self.num_warmup_steps, self.num_training_steps - self.num_warmup_steps)


def tie_p_schedule(
    optimizer: Any,
    lr_scheduler: Any,
    schedule: PSchedule = "cosine",
    *,
    num_training_steps: int | None = None,
    num_warmup_steps: int = 0,
    granularity: Granularity = "step",
    steps_per_epoch: int | None = None,
) -> PScheduleTie:
    """Let the p of an optimizer follow an LR scheduler.

    From now on each `optimizer.step()` first sets `group["p"]` in every param group. The value follows from the
    group's `p_max` and from the LR scheduler's step count and learning rate. So a checkpoint needs only the optimizer
    and the LR scheduler: once both are loaded, p continues where it was.

    Call it before the first step. A second call replaces the tie of the first. A deepcopy or a pickle of the optimizer
    has no tie, just as it has no LR scheduler.

    Args:
        optimizer: an [`LPSGD`][hf_lpsgd.LPSGD] or [`LPSGDM`][hf_lpsgd.LPSGDM], also as wrapped by Accelerate or
            DeepSpeed.
        lr_scheduler: its LR scheduler, of torch, transformers or DeepSpeed, also as wrapped by Accelerate.
        schedule: `"cosine"`, the paper's, from `p_max` to 2; `"linear"`; `"lr"`, with `p - 2` proportional to the
            learning rate, so that p follows any LR schedule; `"constant"`, at `p_max`.
        num_training_steps: length of the run, the same number that the LR scheduler was given. `cosine` and `linear`
            need it. At the last of these steps p is 2, and it stays there.
        num_warmup_steps: for how many of these steps `cosine` and `linear` first hold p at `p_max`.
        granularity: `"step"`, or `"epoch"`: p changes only between epochs, exactly by the paper's formula. A warm-up
            holds p at `p_max` and does not shift the formula.
        steps_per_epoch: LR scheduler steps per epoch. `granularity="epoch"` needs it. 1 says that the LR scheduler is
            stepped once per epoch; otherwise there is one warning if it has not moved for 5 optimizer steps.

    Returns:
        The tie. Its `remove()` ends it, and its `get_p()` tells the values for the next step.

    Raises:
        ValueError: an argument is not allowed, one that the schedule needs is missing, the optimizer is not LPSGD or
            LPSGDM, or the LR scheduler counts evaluations (ReduceLROnPlateau, GreedyLR) and the schedule needs steps.
    """
    base = unwrap_optimizer(optimizer)
    if not isinstance(base, LpOptimizer):
        raise ValueError(
            f"tie_p_schedule ties the p of LPSGD or LPSGDM, and this optimizer is {type(base).__name__}: it has no p."
            + (_REPLACED if type(base).__name__.startswith("DeepSpeedCPU") else "")
        )
    scheduler = unwrap_scheduler(lr_scheduler)
    replace(P_SCHEDULE, name="p schedule").check(schedule)
    replace(P_GRANULARITY, name="granularity").check(granularity)
    check_schedule(schedule, granularity, type(scheduler).__name__, counts_evaluations(scheduler))
    needed = "the p schedule needs it"
    record = P_SCHEDULES[schedule]
    with_horizon = record.needs_horizon
    check_count("num_training_steps", num_training_steps, 1, needed, optional=not with_horizon)
    check_count("num_warmup_steps", num_warmup_steps, 0, "0 is no warm-up")
    by_epochs = with_horizon and granularity == "epoch"
    check_count("steps_per_epoch", steps_per_epoch, 1, "granularity 'epoch' needs it", optional=not by_epochs)
    if with_horizon:
        scheduler_step(scheduler)  # which fails where the scheduler does not tell
        if num_warmup_steps >= (num_training_steps or 0):
            warn_user(
                f"p stays at p_max: num_warmup_steps is {num_warmup_steps}, and the whole run has "
                f"{num_training_steps} steps (num_training_steps)."
            )
    if record.follows_lr:
        notice_other_owner(scheduler, unwrap_optimizer(getattr(scheduler, "optimizer", base)), base)
        for group in base.param_groups:
            # ReduceLROnPlateau does not keep the rate that it began with. In the group, checkpoints hold it.
            is_fresh = not getattr(scheduler, "last_epoch", 0)
            group.setdefault("initial_lr", float(group["lr"] if is_fresh else base.defaults["lr"]))
    moves = not counts_evaluations(scheduler) and steps_per_epoch != 1 and (with_horizon or record.follows_lr)
    stride = steps_per_update(lr_scheduler)
    previous = current_tie(base)
    if previous is not None:
        previous.remove()
    horizon = (math.ceil((number or 0) / stride) for number in (num_training_steps, num_warmup_steps, steps_per_epoch))
    length, warmup, epoch = horizon
    tie = PScheduleTie(
        base,
        scheduler,
        schedule,
        max(length, 1),
        warmup,
        granularity,
        max(epoch, 1),
        stride,
        moves_each_step=moves and tells_steps(scheduler),
    )
    base._measurement.updates_wanted = max(FEWEST_UPDATES, warmup)
    base._measurement.is_tied = True
    setattr(base, _TIE, tie)
    tie._apply()
    return tie


def check_schedule(schedule: PSchedule, granularity: Granularity, lr_scheduler: str, counts_evaluations: bool) -> None:
    """Fail where a p schedule does not fit its granularity, or an LR scheduler (its name) that counts evaluations.

    Raises:
        ValueError: says what to use instead.
    """
    record = P_SCHEDULES[schedule]
    if record.follows_lr and granularity == "epoch":
        raise ValueError(
            f"The p schedule {schedule!r} follows the learning rate step by step and knows no epochs. Use the "
            "granularity 'step', or the p schedule 'cosine' or 'linear'."
        )
    if record.needs_horizon and counts_evaluations:
        raise ValueError(
            f"The p schedule {schedule!r} goes by training steps, and the LR scheduler {lr_scheduler} counts "
            "evaluations. Use the p schedule 'lr' (p falls when the learning rate does) or 'constant'."
        )


def _index(group: dict[str, Any], place: int, known: list[dict[str, Any]]) -> int:
    # DeepSpeed's ZeRO shows one group at a time while it steps.
    if place < len(known) and known[place] is group:
        return place
    return next(index for index, other in enumerate(known) if other is group)


def _p_at(record: PScheduleRecord, p_max: float, place: Place) -> float:
    return 2.0 + (p_max - 2.0) * record.share(place)


def _progress(index: int, length: int) -> float:
    return min(max(index, 0) / max(length - 1, 1), 1.0)


def _lr_share(lr: float, peak_lr: float) -> float:
    return min(max(lr / peak_lr, 0.0), 1.0) if peak_lr > 0 else 1.0
