"""The order p of the norm in force in each param group: what the tie says, or without one `p_schedule`, or `p_max`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from ..notices import warn_once, warn_user
from .options import P_FOLLOWS

_NO_TIE = "no LR scheduler is tied to this optimizer. Call hf_lpsgd.tie_p_schedule, or set p_max if p is to stay"
_STAYS = (
    "The learning rate falls, and p stays at p_max: nothing ties it to the rate. Give p_schedule='lr' where the "
    "optimizer is made, or call hf_lpsgd.tie_p_schedule ('constant' if p is to stay). --optim ties it by itself."
)

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


class Untied:
    """What p follows without a tie: the learning rate of its group, where `p_schedule` says so, or else nothing."""

    def __init__(self) -> None:
        self._is_rising: dict[int, bool] = {}  # by the place of the group, where p follows the rate
        self._rates: dict[int, tuple[float, float]] = {}  # the largest so far, and p_max then, where p does not

    def p_of(self, group: dict[str, Any], index: int) -> float:
        """Return p_max, or less where p follows a learning rate that has fallen."""
        p_max = float(group["p_max"])
        if group.get(P_FOLLOWS.name) is None:
            if isinstance(group["lr"], float) and p_max > 2.0:
                largest, p_max_then = self._rates.setdefault(index, (group["lr"], p_max))
                if group["lr"] >= largest:
                    self._rates[index] = (group["lr"], p_max)
                elif p_max == p_max_then:  # nobody writes it while the rate falls
                    warn_once(_STAYS)
            return p_max
        lr, before = float(group["lr"]), group.get(LARGEST_LR, 0.0)
        self._is_rising[index] = lr > before
        return 2.0 + (p_max - 2.0) * (max(lr, 0.0) / largest if (largest := largest_lr(group)) > 0 else 1.0)

    def is_past_warmup(self) -> bool:
        """Say whether no learning rate that p follows is rising."""
        return not any(self._is_rising.values())

    def begin_update(self) -> None: ...

    def why_other_than(self, p: float, p_max: float) -> str | None:
        """Say why p cannot be that of a saved state, if no rate is followed."""
        return None if self._is_rising or p == p_max else _NO_TIE


def write_p(
    groups: Sequence[dict[str, Any]], tie: Tie, written: dict[int, float], loaded_p_max: dict[int, float]
) -> None:
    """Write p into all param groups of an optimizer; by their places, what was `written` before, and p_max as loaded.

    Where the p of a group is that of a loaded state, or was written by someone else, and no such run can have had it,
    there is a warning.
    """
    for index, group in enumerate(groups):
        p, found = tie.p_of(group, index), float(group["p"])
        if found not in (p, written.get(index)):
            reason = tie.why_other_than(found, loaded_p_max.get(index, float(group["p_max"])))
            if reason is not None:
                warn_user(f"p goes from {found:.4g} in the param group to {p:.4g}: {reason}.")
        written[index] = group["p"] = p
