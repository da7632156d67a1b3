"""`grad_rms="auto"`: the measurement of the reference size of the gradient.

It is the mean, over the first steps of a run, of the root mean square of what the step rescales: the gradient for
LPSGD, its moving average for LPSGDM. All elements of all param groups with `grad_rms="auto"` count, on all processes.
Then it is frozen, and takes the place of `"auto"` in the param groups.

An update is measured while it is made, so the number is that of the updates before; the first update measures each
group beforehand. An engine may make an update by several calls of `step`, a few parameters at a time, as DeepSpeed's
ZeRO does. All that the measurement knows are plain numbers in the param groups, so a checkpoint holds them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..notices import warn_user

AUTO = "auto"

# Updates that are measured at least, and all of them where there is no longer warm-up.
FEWEST_UPDATES = 20

# In a group: the sum of the root mean squares of the finished updates, the number of these updates, and the sum of
# squares and the number of elements of the update that may not be finished yet.
MEASURED = "grad_rms_measured"
_NOTHING = [0.0, 0, 0.0, 0]

# Below it, float32 cannot hold its reciprocal.
SMALLEST = 1e-30

# Most elements of a gradient are far below its root mean square. With a tenth of it, one learning rate serves every p.
SATURATION_MEASURED = 0.1

# AdamW moves most elements by a part of its learning rate. With this factor, its learning rates serve here too.
LR_FACTOR_MEASURED = 0.5

_DIGITS = 7  # so that engines that add up in another order find the same number


def rounded(number: float) -> float:
    return float(f"{number:.{_DIGITS}g}")


def root_mean_square(squares: float, count: float) -> float:
    return rounded(math.sqrt(squares / count))


def takes_part(group: dict[str, Any]) -> bool:
    """Whether the group's reference size is being measured."""
    return isinstance(group.get("grad_rms"), str) and group["grad_rms"] == AUTO


def reference_size(group: dict[str, Any]) -> float | None:
    """The group's reference size in force: a number, or the running mean of what was measured so far, if anything."""
    value = group.get("grad_rms")
    if not takes_part(group):
        return None if value is None else float(value)
    return _mean(*_with_the_last_update(group.get(MEASURED, _NOTHING)))


def size_before(group: dict[str, Any]) -> float | None:
    """The running mean over the finished updates, if there are any."""
    return _mean(*group[MEASURED][:2])


def saturation_of(group: dict[str, Any]) -> float:
    """The share of the group's reference size from which on an element moves by the most."""
    return _given(group.get("saturation"), SATURATION_MEASURED if MEASURED in group else 1.0)


def lr_factor_of(group: dict[str, Any]) -> float:
    """The most by which an element of the group moves, in units of lr."""
    return _given(group.get("lr_factor"), LR_FACTOR_MEASURED if MEASURED in group else 1.0)


def _given(value: float | None, otherwise: float) -> float:
    return otherwise if value is None else float(value)


def check_used(group: dict[str, Any], where: str) -> None:
    """Fail if the group holds an option that has a meaning with `grad_rms` only, and no `grad_rms`."""
    for name in ("saturation", "lr_factor"):
        if group.get("grad_rms") is None and group.get(name) is not None:
            raise ValueError(
                f"Invalid {name}{where}: {group[name]} has no effect without grad_rms. Give grad_rms='auto' or a "
                f"number too, or leave out {name}."
            )


def join(group: dict[str, Any], others: Sequence[dict[str, Any]]) -> None:
    """Let a group with `grad_rms="auto"` take part in the measurement of `others`, or take the number that it gave."""
    known = next((other for other in others if MEASURED in other), None)
    group[MEASURED] = list(known[MEASURED] if known is not None else _NOTHING)
    if known is not None and not takes_part(known):
        group["grad_rms"] = known["grad_rms"]


class Measurement:
    """The measurement in one optimizer."""

    def __init__(self) -> None:
        self.updates_wanted = FEWEST_UPDATES
        self.is_tied = False  # before that, engines make steps with gradients of zero, to make the state
        self._seen: set[int] = set()  # the first parameter of each call that belongs to the present update
        self._zeros = 0

    def begin_anew(self) -> None:
        """Forget the calls before: the groups were loaded."""
        self._seen = set()

    def begin_call(self, groups: Sequence[dict[str, Any]], first: Tensor | None) -> None:
        """Finish the update before, if this call begins a new one; freeze the number, if enough were measured.

        Args:
            groups: all groups that take part.
            first: the first parameter that this call updates.
        """
        if self._seen and id(first) not in self._seen:
            self._seen.add(id(first))
            return
        self._seen = {id(first)}
        total, updates = _with_the_last_update(groups[0][MEASURED])
        for group in groups:
            group[MEASURED] = [total, updates, 0.0, 0]
            if updates >= self.updates_wanted:
                group["grad_rms"] = _mean(total, updates)

    def end_call(self, groups: Sequence[dict[str, Any]], sums: Sequence[tuple[float, float]]) -> None:
        """Add what this call measured, on all processes together."""
        squares, count = math.fsum(squares for squares, _ in sums), sum(count for _, count in sums)
        if count == 0 or not math.isfinite(squares):
            return
        if math.sqrt(squares / count) < SMALLEST:
            self._tell_of_zero()
            return
        self._zeros = 0
        for group in groups:
            total, updates, squares_before, count_before = group[MEASURED]
            group[MEASURED] = [total, updates, squares_before + squares, count_before + int(count)]

    def _tell_of_zero(self) -> None:
        self._zeros += 1
        if self._zeros == (1 if self.is_tied else 2):
            warn_user(
                "All gradients of a step are zero, so grad_rms=auto cannot measure them, and waits for the next step. "
                "If this goes on, nothing is trained: look for a loss that does not depend on the parameters."
            )


def _with_the_last_update(measured: Sequence[float]) -> tuple[float, int]:
    """The sum of the root mean squares and the number of updates, with the one that may not be finished yet."""
    total, updates, squares, count = measured
    if count > 0:
        total, updates = total + root_mean_square(squares, count), updates + 1
    return total, int(updates)


def _mean(total: float, updates: int) -> float | None:
    return rounded(total / updates) if updates else None


def add_up(sums: Sequence[tuple[float, int]], device: torch.device | None) -> list[tuple[float, float]]:
    """The sums over all processes, by one all-reduce; where torch.distributed does not run, the sums themselves."""
    runs = torch.distributed.is_available() and torch.distributed.is_initialized()
    if not runs or torch.distributed.get_world_size() == 1:
        return [(squares, count) for squares, count in sums]
    on_device = _device_of_collectives(device)
    numbers = torch.tensor(list(sums), dtype=torch.float64, device=on_device)
    torch.distributed.all_reduce(numbers)
    return [(squares, count) for squares, count in numbers.tolist()]


def _device_of_collectives(device: torch.device | None) -> torch.device:
    backend = str(torch.distributed.get_backend())
    if "nccl" in backend and torch.cuda.is_available():
        return device if device is not None and device.type == "cuda" else torch.device("cuda")
    return torch.device("cpu") if device is None or "gloo" in backend else device
