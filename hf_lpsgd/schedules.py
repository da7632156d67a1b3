"""Schedules of p, and the tie between p and an LR scheduler.

A schedule is a pure function of the LR scheduler's step count and learning rate. So it has no state of its own: the
checkpoint of the LR scheduler holds all that a run needs to resume p.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple

from .lr_schedulers import peak_lr, steps_made, steps_per_update
from .notices import warn_user
from .optim.base import LpOptimizer
from .optim.options import Option
from .optim.p_in_force import LARGEST_LR, largest_lr
from .wrappers import partitions_of, unwrap_optimizer, unwrap_scheduler

PSchedule = Literal["cosine", "linear", "lr", "constant"]
Granularity = Literal["step", "epoch"]

_SEVERAL = 5  # updates after which an LR scheduler that has not moved is worth a warning
_SKIPPED = 8  # updates that a loss scaler may skip in a loop that steps the LR scheduler all the same


class Place(NamedTuple):
    """Where a run is."""

    progress: float  # 0 at the first step after the warm-up, 1 at the last step of the run
    lr_share: float  # the learning rate in force over its peak, in [0, 1]


@dataclass(frozen=True)
class PScheduleRecord:
    """What there is to know about a p schedule: `p = 2 + (p_max - 2) * share(place)`."""

    share: Callable[[Place], float]  # of `p_max - 2` that is left at a place in the run, in [0, 1]
    description: str  # a clause for tables and model cards, with a place for `{p_max}`
    needs_horizon: bool = False  # whether it reads `Place.progress`, and so must know how long the run is
    follows_lr: bool = False  # whether it reads `Place.lr_share`

    def p_at(self, p_max: float, place: Place) -> float:
        """Return p at a place in the run."""
        return 2.0 + (p_max - 2.0) * self.share(place)


P_SCHEDULES: dict[str, PScheduleRecord] = {
    "cosine": PScheduleRecord(
        lambda place: (1.0 + math.cos(math.pi * place.progress)) / 2.0,
        "p starts at {p_max}, is held there during warm-up, and falls to 2 along half a cosine",
        needs_horizon=True,
    ),
    "linear": PScheduleRecord(
        lambda place: 1.0 - place.progress,
        "p starts at {p_max}, is held there during warm-up, and falls to 2 in a straight line",
        needs_horizon=True,
    ),
    "lr": PScheduleRecord(
        lambda place: place.lr_share,
        "p - 2 is proportional to the learning rate, and p = {p_max} at its peak",
        follows_lr=True,
    ),
    "constant": PScheduleRecord(lambda place: 1.0, "p stays at {p_max}"),
}
"""One record per p schedule, by the name that `tie_p_schedule` and `p_schedule=...` take."""

P_SCHEDULE = Option("p_schedule", "how p goes from p_max to 2; cosine is the paper's", values=P_SCHEDULES)
P_GRANULARITY = Option("p_granularity", "whether p changes at each step or at each epoch", values=("step", "epoch"))


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
    record: PScheduleRecord = field(repr=False)
    num_training_steps: int
    num_warmup_steps: int
    granularity: Granularity
    steps_per_epoch: int
    stride: int
    moves_each_step: bool  # and is worth a warning if it does not
    by_trainer: bool = False  # the Trainer's callback made it, and not the user

    _still: float = field(default=0, repr=False)  # updates at which the LR scheduler has not moved
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
        is_constant = not self.record.needs_horizon and not self.record.follows_lr
        return is_constant or any(one is self.lr_scheduler for one in held) or any(map(self.is_moved_by, members))

    def p_of(self, group: dict[str, Any], index: int) -> float:
        """Return the p of the param group at `index`, now."""
        lr_share = 1.0
        if self.record.follows_lr:
            # States of older versions, and groups that were added later, took no note of the largest rate.
            peak = peak_lr(self.lr_scheduler, group, index)
            group.setdefault(LARGEST_LR, peak or float(group.get("initial_lr", group["lr"])))
            peak = max(peak, largest_lr(group))
            lr_share = max(float(group["lr"]) / peak, 0.0) if peak > 0 else 1.0
        return self.record.p_at(float(group["p_max"]), Place(self._progress(), lr_share))

    def is_past_warmup(self) -> bool:
        """Say whether the warm-up is over; it is where the LR scheduler does not count steps."""
        return steps_made(self.lr_scheduler) is None or self._step() >= self.num_warmup_steps

    def why_other_than(self, p: float, p_max: float) -> str | None:
        """Say why this schedule cannot have given the p at which a state was saved; None if it can."""
        places = [Place(self._progress(before), 1.0) for before in (0, _SKIPPED)]
        least, most = (self.record.p_at(p_max, place) for place in places)
        if self.record.follows_lr or least - 1e-6 <= p <= most + 1e-6:
            return None
        return (
            f"the p schedule {self.schedule!r} over {self.num_training_steps} steps is not that of the saved run, or "
            "its LR scheduler was not loaded with it. To go on as before, give its p schedule and steps, and load both"
        )

    def begin_update(self) -> None:
        """Warn once where the LR scheduler, and with it p, does not move for several updates."""
        if not self.moves_each_step or (self.record.needs_horizon and self._progress() >= 1.0):
            return  # at the end of the run p rests
        groups = self.optimizer.every_group() if self.record.follows_lr else ()
        place = (steps_made(self.lr_scheduler), [float(group["lr"]) for group in groups])
        # It may miss a few, but not half of them, as where it is stepped once per epoch and these are short.
        self._still = self._still + 1 if place == self._last_place else max(self._still - 0.5, 0)
        self._last_place = place
        if self._still >= _SEVERAL:
            self.moves_each_step = False
            warn_user(
                f"p is tied to a {type(self.lr_scheduler).__name__} that has not moved at {_SEVERAL} or more "
                f"optimizer steps, and p is {self.optimizer.param_groups[0]['p']:.4g}. Step it after each optimizer "
                "step, or tie the LR scheduler that is stepped. If it is stepped once per epoch, give "
                "num_training_steps and num_warmup_steps in epochs, as to the LR scheduler, and steps_per_epoch=1."
            )

    def _step(self) -> int:
        return (steps_made(self.lr_scheduler) or 0) // self.stride

    def _progress(self, before: int = 0) -> float:
        """Return how far the run was `before` steps ago, as `Place.progress`."""
        step = self._step() - before
        if step < self.num_warmup_steps:
            return 0.0
        index, length = step - self.num_warmup_steps, self.num_training_steps - self.num_warmup_steps
        if self.granularity == "epoch":
            index = step // self.steps_per_epoch
            length = math.ceil(self.num_training_steps / self.steps_per_epoch)
        return min(index / max(length - 1, 1), 1.0)


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

    Each `optimizer.step()` first sets `group["p"]` in every param group, from the group's `p_max` and from the LR
    scheduler's step count and learning rate. So p continues where it was once a checkpoint of both is loaded.

    Call it before the first step. A second call replaces the tie. A deepcopy or a pickle of the optimizer has none.

    Args:
        optimizer: an [`LPSGD`][hf_lpsgd.LPSGD] or [`LPSGDM`][hf_lpsgd.LPSGDM], wrapped by an engine or not.
        lr_scheduler: its LR scheduler, of torch, transformers or DeepSpeed, wrapped by Accelerate or not.
        schedule: `"cosine"`, the paper's, from `p_max` to 2; `"linear"`; `"lr"`, with `p - 2` proportional to the
            learning rate, so that p follows any LR schedule; `"constant"`, at `p_max`.
        num_training_steps: length of the run, as the LR scheduler was given it. `cosine` and `linear` need it: p is 2
            at the last of these steps, and stays there. `lr` looks for the peak of the learning rate in it.
        num_warmup_steps: for how many of these steps `cosine` and `linear` first hold p at `p_max`.
        granularity: `"step"`, or `"epoch"`: p changes only between epochs, exactly by the paper's formula. A warm-up
            holds p at `p_max` and does not shift the formula.
        steps_per_epoch: LR scheduler steps per epoch. `granularity="epoch"` needs it. 1 says that the LR scheduler is
            stepped once per epoch; otherwise there is one warning if it has not moved at 5 optimizer steps.

    Returns:
        The tie. Its `remove()` ends it, and its `get_p()` gives the values for the next step.

    Raises:
        ValueError: an argument is not allowed or is missing, the optimizer is not LPSGD or LPSGDM, or `cosine` or
            `linear` meet an LR scheduler that counts evaluations, as ReduceLROnPlateau and GreedyLR do, or nothing.
    """
    base, scheduler = unwrap_optimizer(optimizer), unwrap_scheduler(lr_scheduler)
    if hasattr(scheduler, "param_groups"):
        second = f"the second is an optimizer here, {type(scheduler).__name__}"
        raise ValueError(f"tie_p_schedule takes an optimizer and then its LR scheduler, but {second}: swap them.")
    if not isinstance(base, LpOptimizer):
        raise ValueError(
            f"tie_p_schedule ties the p of LPSGD or LPSGDM, and this optimizer is {type(base).__name__}: it has no p. "
            "DeepSpeed offloads one of its own, unless its config has zero_force_ds_cpu_optimizer: false."
        )
    replace(P_SCHEDULE, name="p schedule").check(schedule)
    replace(P_GRANULARITY, name="granularity").check(granularity)
    name, counts_steps = type(scheduler).__name__, steps_made(scheduler) is not None
    check_schedule(schedule, granularity, None if counts_steps else name)
    record = P_SCHEDULES[schedule]
    note = f"p schedule {schedule!r}, granularity {granularity!r}"
    for argument, count, low, is_needed in (
        ("num_training_steps", num_training_steps, 1, record.needs_horizon),
        ("num_warmup_steps", num_warmup_steps, 0, True),
        ("steps_per_epoch", steps_per_epoch, 1, record.needs_horizon and granularity == "epoch"),
    ):
        Option(argument, "", low, whole=True, values=() if is_needed else (None,), note=note).check(count)
    if record.follows_lr:
        owner = unwrap_optimizer(getattr(scheduler, "optimizer", base))
        groups = getattr(owner, "param_groups", base.param_groups)
        if not any(group is other for group in base.param_groups for other in groups):
            warn_user(
                f"p follows the learning rate of this optimizer, which the LR scheduler {name} does not set: it was "
                f"made for another {type(owner).__name__}. Give the LR scheduler of this one."
            )
    stride, counts = steps_per_update(lr_scheduler), (num_training_steps, num_warmup_steps, steps_per_epoch)
    length, warmup, epoch = (math.ceil((count or 0) / stride) for count in counts)
    moves = counts_steps and steps_per_epoch != 1 and (record.needs_horizon or record.follows_lr)
    tie = PScheduleTie(base, scheduler, schedule, record, length, warmup, granularity, max(epoch, 1), stride, moves)
    for index, group in enumerate(base.every_group() if record.follows_lr else ()):
        if steps_made(scheduler) == 0:  # the scheduler is not asked yet: a state may be loaded
            group[LARGEST_LR] = float(group["lr"])
        else:
            tie.p_of(group, index)  # takes note of the rate now, so that every kind of checkpoint finds it
    base.tie, base.partitions = tie, partitions_of(optimizer) or base.partitions
    return tie


def check_schedule(schedule: PSchedule, granularity: Granularity, uncounted: str | None) -> None:
    """Fail where a p schedule does not fit its granularity, or the LR scheduler, named if it counts no steps."""
    record = P_SCHEDULES[schedule]
    if record.follows_lr and granularity == "epoch":
        raise ValueError(
            f"The p schedule {schedule!r} follows the learning rate step by step and knows no epochs. Use the "
            "granularity 'step', or the p schedule 'cosine' or 'linear'."
        )
    if record.needs_horizon and uncounted is not None:
        raise ValueError(
            f"The p schedule {schedule!r} goes by training steps, and the LR scheduler {uncounted} does not count "
            "them. Use the p schedule 'lr' (p falls when the learning rate does) or 'constant'."
        )
