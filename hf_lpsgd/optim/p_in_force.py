"""The order p of the norm that is in force in each param group: what the tie says, and without a tie `p_max`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from ..notices import warn_user

_NO_TIE = "no LR scheduler is tied to this optimizer. Call hf_lpsgd.tie_p_schedule, or set p_max if p is to stay"


LARGEST_LR = "largest_lr"  # in a param group whose p follows its learning rate, where checkpoints hold it


def largest_lr(group: dict[str, Any]) -> float:
    """Return the largest learning rate that the group has had, and take note of the present one."""
    group[LARGEST_LR] = max(float(group["lr"]), group.get(LARGEST_LR, 0.0))
    return float(group[LARGEST_LR])


class Tie(Protocol):
    """What p follows. The optimizer asks it at the beginning of each update."""

    def p_of(self, group: dict[str, Any], index: int) -> float: ...  # of the param group at `index`, now
    def is_past_warmup(self) -> bool: ...  # over which `grad_rms="auto"` measures
    def begin_update(self) -> None: ...  # takes note that an update begins
    # Why a state that was saved at this p, with this p_max, is not of this run; None if it can be.
    def why_other_than(self, p: float, p_max: float) -> str | None: ...


def write_p(
    groups: Sequence[dict[str, Any]], tie: Tie | None, written: dict[int, float], loaded_p_max: dict[int, float]
) -> None:
    """Write p into all param groups of an optimizer; by their places, what was `written` before, and p_max as loaded.

    Where the p of a group is that of a loaded state, or was written by someone else, and no such run can have had it,
    there is a warning.
    """
    for index, group in enumerate(groups):
        p = float(group["p_max"]) if tie is None else tie.p_of(group, index)
        found = float(group["p"])
        if written.get(index) != found:
            p_max = loaded_p_max.get(index, float(group["p_max"]))
            reason = _NO_TIE if found not in (p, p_max) else None
            if tie is not None:
                reason = tie.why_other_than(found, p_max)
            if reason is not None:
                warn_user(f"p goes from {found:.4g} in the param group to {p:.4g}: {reason}.")
        written[index] = group["p"] = p
