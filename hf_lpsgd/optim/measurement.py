"""`grad_rms="auto"`: the measurement of the reference size of the gradient.

It is the mean, over the first updates of a run, of the root mean square of what the step rescales: the gradient for
LPSGD, its moving average for LPSGDM. All elements of all param groups with `grad_rms="auto"` count. Then it is frozen,
and takes the place of `"auto"` in the param groups. An update is measured while it is made, so the number in force is
that of the updates before, and the first one only measures. An engine may make an update by several calls of `step`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

AUTO = "auto"
FEWEST_UPDATES = 20  # that are measured; more where the warm-up is longer

# In a param group, where checkpoints hold it: the sum of the root mean squares of the finished updates, the number of
# these updates, and the sum of squares and the number of elements of the update that may not be finished yet.
MEASURED = "grad_rms_measured"
_NOTHING = (0.0, 0, 0.0, 0)

_SMALLEST = 1e-30  # below it, float32 cannot hold its reciprocal


def is_measuring(group: dict[str, Any]) -> bool:
    """Say whether the group's reference size is still being measured."""
    return group.get("grad_rms") == AUTO


def reference_size(group: dict[str, Any]) -> float | None:
    """Return the group's reference size: a number, or the mean of what was measured so far, if anything."""
    if not is_measuring(group):
        return None if group.get("grad_rms") is None else float(group["grad_rms"])
    return _mean(*_finished(*group.get(MEASURED, _NOTHING)))


class Measurement:
    """The measurement in one optimizer; the param groups hold it for checkpoints only."""

    def __init__(self, groups: Sequence[dict[str, Any]] = ()) -> None:
        known = next((group for group in groups if MEASURED in group), None)
        self._record: list[Any] = list(_NOTHING if known is None else known[MEASURED])
        is_frozen = any(group.get("grad_rms") == self.size for group in groups if MEASURED in group)
        self._frozen = self.size if is_frozen else None

    @property
    def size(self) -> float | None:
        """The size in force while it is measured: the mean over the finished updates, None before there is one."""
        return _mean(*self._record[:2])

    def join(self, group: dict[str, Any]) -> None:
        """Let a group take part, or take the number that is already frozen."""
        group[MEASURED] = list(self._record)
        if self._frozen is not None:
            group["grad_rms"] = self._frozen

    def begin(self, groups: Sequence[dict[str, Any]], *, is_new: bool, is_past_warmup: bool) -> bool:
        """Begin an update if it `is_new`, or go on with one, and say whether it is to be measured."""
        measuring = list(filter(is_measuring, groups))
        if not measuring:
            return False
        if is_new and self._record[3]:
            self._record = [*_finished(*self._record), 0.0, 0]
            if self._record[1] >= FEWEST_UPDATES and is_past_warmup:
                self._frozen = self.size
        for group in measuring:
            self.join(group)
        return self._frozen is None

    def end(self, groups: Iterable[dict[str, Any]], squares: float, count: int) -> None:
        """End a call of `step` that found this sum of squares over all elements, and write it into the groups."""
        if count == 0 or not math.isfinite(squares) or math.sqrt(squares / count) < _SMALLEST:
            return
        self._record[2:] = [self._record[2] + squares, self._record[3] + count]
        for group in filter(is_measuring, groups):
            self.join(group)


def _finished(total: float, updates: int, squares: float, count: int) -> tuple[float, int]:
    """Return the sum over the updates and their number, with the one that may not be finished yet."""
    return (total + _rounded(math.sqrt(squares / count)), updates + 1) if count else (total, updates)


def _mean(total: float, updates: int) -> float | None:
    return _rounded(total / updates) if updates else None


def _rounded(number: float) -> float:
    return float(f"{number:.7g}")  # so that engines that add up in another order find the same number
