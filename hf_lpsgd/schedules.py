"""Schedules of p, and the tie between p and an LR scheduler.

A schedule is a pure function of the LR scheduler's step count and learning rate. So it has no state of its own: the
checkpoint of the LR scheduler holds all that a run needs to resume p.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple

from .lr_schedulers import counts_evaluations, peak_lr, steps_made, steps_per_update, unwrap_scheduler
from .notices import warn_user
from .optim.base import LpOptimizer
from .optim.options import Option, check_count
from .wrappers import partitions_of, unwrap_optimizer

PSchedule = Literal["cosine", "linear", "lr", "constant"]
Granularity = Literal["step", "epoch"]

# Updates after which an LR scheduler that has not moved is worth a warning.
_SEVERAL = 5

# A loss scaler skips optimizer steps, and some loops step the LR scheduler at those too.
_SKIPPED = 8


class Place(NamedTuple):
    """Where a run is."""

    progress: float  # 0 at the first step after the warm-up, 1 at the last step of the run
    lr_share: float  # the learning rate in force over its peak, in [0, 1]


@dataclass(frozen=True)
class PScheduleRecord:
    """What there is to know about a p schedule: `p = 2 + (p_max - 2) * share(place)`.

    Attributes:
        share: gives the share of `p_max - 2` that is left at a place in the run, in [0, 1].
        description: a line for tables.
        course: a clause for model cards, with a place for `{p_max}`.
        needs_horizon: whether it reads `Place.progress`, and so must know how long the run is.
        follows_lr: whether it reads `Place.lr_share`.
    """

    share: Callable[[Place], float]
    description: str
    course: str
    needs_horizon: bool = False
    follows_lr: bool = False

    def p_at(self, p_max: float, place: Place) -> float:
        """Return p at a place in the run."""
        return 2.0 + (p_max - 2.0) * self.share(place)


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

P_SCHEDULE = Option("p_schedule", "how p goes from p_max to 2", values=P_SCHEDULES)
P_GRANULARITY = Option("p_granularity", "whether p changes at each step or at each epoch", values=("step", "epoch"))


def annealed_p(schedule: PSchedule, p_max: float, index: int, length: int) -> float:
    """Return p at step `index` of the `length` steps of a run without warm-up, at the peak of the learning rate.

    For `cosine` this is the paper's `p_s = 2 + (p_max - 2) * (1 + cos(pi * (s - 1)/(S - 1))) / 2` with `s = index + 1`
    and `S = length`. p stays at its last value after the last step. A run of one step has `p_max`.
    """
    return P_SCHEDULES[schedule].p_at(p_max, Place(_progress_at(index, length), 1.0))


def current_tie(optimizer: Any) -> PScheduleTie | None:
    """Return the tie that [`tie_p_schedule`][hf_lpsgd.tie_p_schedule] made for this optimizer, wrapped or not."""
    tie = getattr(unwrap_optimizer(optimizer), "tie", None)
    return tie if isinstance(tie, PScheduleTie) else None


@dataclass(eq=False)
class PScheduleTie:
    """Ties an optimizer's p to an LR scheduler; [`tie_p_schedule`][hf_lpsgd.tie_p_schedule] makes it.

    Lengths are in optimizer steps. Each of these is `stride` steps of the LR scheduler.
    """

    optimizer: LpOptimizer
    lr_scheduler: Any
    schedule: PSchedule
    num_training_steps: int
    num_warmup_steps: int
    granularity: Granularity
    steps_per_epoch: int
    stride: int
    moves_each_step: bool  # and is worth a warning if it does not
    by_trainer: bool = False  # the Trainer's callback made it, and not the user

    _still: int = field(default=0, repr=False)
    _last_place: Any = field(default=None, repr=False)

    def get_p(self) -> list[float]:
        """Return the p that belongs to the present state of the LR scheduler, one value per param group."""
        return [self.p_of(group, index) for index, group in enumerate(self.optimizer.every_group())]

    def remove(self) -> None:
        """Cut the tie; p is `p_max` from then on."""
        if self.optimizer.tie is self:
            self.optimizer.tie = None

    def is_moved_by(self, lr_scheduler: Any) -> bool:
        """Say whether p follows when this LR scheduler, wrapped or not, is stepped."""
        stepped = unwrap_scheduler(lr_scheduler)
        members = getattr(stepped, "_schedulers", None) or ()  # ChainedScheduler, SequentialLR
        held = [stepped, *getattr(stepped, "__dict__", {}).values()]  # wrappers of other libraries hold one
        is_constant = not self._record.needs_horizon and not self._record.follows_lr
        return is_constant or any(one is self.lr_scheduler for one in held) or any(map(self.is_moved_by, members))

    def p_of(self, group: dict[str, Any], index: int) -> float:
        """Return the p of the param group at `index`, now."""
        lr_share = 1.0
        if self._record.follows_lr:
            lr = float(group["lr"])
            # A group that was added later has the rate that it was added with. In the group, checkpoints hold it.
            group.setdefault("initial_lr", lr)
            peak = peak_lr(self.lr_scheduler, group, index)
            lr_share = min(max(lr / peak, 0.0), 1.0) if peak > 0 else 1.0
        return self._record.p_at(float(group["p_max"]), Place(self._progress(), lr_share))

    def is_past_warmup(self) -> bool:
        """Say whether the warm-up is over; it is where the LR scheduler does not count steps."""
        return steps_made(self.lr_scheduler) is None or self._step() >= self.num_warmup_steps

    def why_other_than(self, p: float, p_max: float) -> str | None:
        """Say why this schedule cannot have given the p at which a state was saved; None if it can."""
        places = [Place(self._progress(before), 1.0) for before in (0, _SKIPPED)]
        least, most = (self._record.p_at(p_max, place) for place in places)
        if self._record.follows_lr or least - 1e-6 <= p <= most + 1e-6:
            return None
        return (
            f"the p schedule {self.schedule!r} over {self.num_training_steps} steps is not the one that the state was "
            "saved under, or its LR scheduler was not loaded with it. To go on as before, give the schedule, "
            "num_training_steps and num_warmup_steps of that run, and load both"
        )

    def begin_update(self) -> None:
        """Warn once where the LR scheduler, and with it p, has not moved for several updates."""
        if not self.moves_each_step or (self._record.needs_horizon and self._progress() >= 1.0):
            return  # at the end of the run p rests
        groups = self.optimizer.every_group() if self._record.follows_lr else ()
        place = (steps_made(self.lr_scheduler), [float(group["lr"]) for group in groups])
        self._still = self._still + 1 if place == self._last_place else 1
        self._last_place = place
        if self._still > _SEVERAL:
            self.moves_each_step = False
            warn_user(
                f"p is tied to a {type(self.lr_scheduler).__name__} that has not moved for {_SEVERAL} optimizer "
                f"steps, and stays at {self.optimizer.param_groups[0]['p']:.4g}. Call its step() after each optimizer "
                "step, or tie the LR scheduler that is stepped in its place. If it is stepped once per epoch, give "
                "tie_p_schedule steps_per_epoch=1."
            )

    @property
    def _record(self) -> PScheduleRecord:
        return P_SCHEDULES[self.schedule]

    def _step(self) -> int:
        return (steps_made(self.lr_scheduler) or 0) // self.stride

    def _progress(self, before: int = 0) -> float:
        """Return how far the run was `before` steps ago, as `Place.progress`."""
        step = self._step() - before
        if step < self.num_warmup_steps:
            return 0.0
        if self.granularity == "epoch":
            epochs = math.ceil(self.num_training_steps / self.steps_per_epoch)
            return _progress_at(step // self.steps_per_epoch, epochs)
        return _progress_at(step - self.num_warmup_steps, self.num_training_steps - self.num_warmup_steps)


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

    From now on each `optimizer.step()` first sets `group["p"]` in every param group, from the group's `p_max` and from
    the LR scheduler's step count and learning rate. So a checkpoint needs only the optimizer and the LR scheduler: p
    continues where it was once both are loaded.

    Call it before the first step. A second call replaces the tie. A deepcopy or a pickle of the optimizer has none.

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
        The tie. Its `remove()` ends it, and its `get_p()` gives the values for the next step.

    Raises:
        ValueError: an argument is not allowed, one that the schedule needs is missing, the optimizer is not LPSGD or
            LPSGDM, or the LR scheduler counts evaluations (ReduceLROnPlateau, GreedyLR) and the schedule needs steps.
    """
    base, scheduler = unwrap_optimizer(optimizer), unwrap_scheduler(lr_scheduler)
    if not isinstance(base, LpOptimizer):
        raise ValueError(
            f"tie_p_schedule ties the p of LPSGD or LPSGDM, and this optimizer is {type(base).__name__}: it has no p. "
            "(For an optimizer that DeepSpeed offloads, Accelerate puts DeepSpeed's own into its place, unless the "
            "DeepSpeed config has zero_force_ds_cpu_optimizer: false.)"
        )
    replace(P_SCHEDULE, name="p schedule").check(schedule)
    replace(P_GRANULARITY, name="granularity").check(granularity)
    name = type(scheduler).__name__
    check_schedule(schedule, granularity, name if counts_evaluations(scheduler) else None)
    record, counts_steps = P_SCHEDULES[schedule], steps_made(scheduler) is not None
    by_epochs = record.needs_horizon and granularity == "epoch"
    optional = not record.needs_horizon
    check_count("num_training_steps", num_training_steps, 1, "the p schedule needs it", optional=optional)
    check_count("num_warmup_steps", num_warmup_steps, 0, "0 is no warm-up")
    check_count("steps_per_epoch", steps_per_epoch, 1, "granularity 'epoch' needs it", optional=not by_epochs)
    if record.needs_horizon and not counts_steps:
        raise ValueError(
            f"The LR scheduler {name} does not tell how many steps it has made (last_epoch), which the p schedule "
            f"{schedule!r} goes by. Use the p schedule 'lr' or 'constant', or a scheduler of torch or transformers."
        )
    if record.needs_horizon and num_warmup_steps >= (num_training_steps or 0):
        warn_user(
            f"p stays at p_max: num_warmup_steps is {num_warmup_steps}, and the whole run has {num_training_steps} "
            "steps (num_training_steps)."
        )
    owner = unwrap_optimizer(getattr(scheduler, "optimizer", base))
    groups = [id(group) for group in getattr(owner, "param_groups", base.param_groups)]
    if record.follows_lr and not any(id(group) in groups for group in base.param_groups):
        warn_user(
            f"p follows the learning rate of this optimizer, which the LR scheduler {name} does not set: it was made "
            f"for another {type(owner).__name__}. Give the LR scheduler of this one."
        )
    for group in base.every_group() if record.follows_lr else ():
        # ReduceLROnPlateau does not keep the rate that it began with. In the group, checkpoints hold it.
        is_fresh = not getattr(scheduler, "last_epoch", 0)
        group.setdefault("initial_lr", float(group["lr"] if is_fresh else base.defaults["lr"]))
    stride = steps_per_update(lr_scheduler)
    length, warmup, epoch = (
        math.ceil((number or 0) / stride) for number in (num_training_steps, num_warmup_steps, steps_per_epoch)
    )
    moves = counts_steps and steps_per_epoch != 1 and (record.needs_horizon or record.follows_lr)
    tie = PScheduleTie(base, scheduler, schedule, length, warmup, granularity, max(epoch, 1), stride, moves)
    base.tie, base.partitions = tie, partitions_of(optimizer) or base.partitions
    return tie


def check_schedule(schedule: PSchedule, granularity: Granularity, counts_evaluations: str | None) -> None:
    """Fail where a p schedule does not fit its granularity, or the LR scheduler, named if it counts evaluations."""
    record = P_SCHEDULES[schedule]
    if record.follows_lr and granularity == "epoch":
        raise ValueError(
            f"The p schedule {schedule!r} follows the learning rate step by step and knows no epochs. Use the "
            "granularity 'step', or the p schedule 'cosine' or 'linear'."
        )
    if record.needs_horizon and counts_evaluations is not None:
        raise ValueError(
            f"The p schedule {schedule!r} goes by training steps, and the LR scheduler {counts_evaluations} "
            "counts evaluations. Use the p schedule 'lr' (p falls when the learning rate does) or 'constant'."
        )


def _progress_at(index: int, length: int) -> float:
    return min(max(index, 0) / max(length - 1, 1), 1.0)
