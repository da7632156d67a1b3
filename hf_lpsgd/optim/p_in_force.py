"""The order p of the norm that is in force in each param group: what the tie says, and without a tie `p_max`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from ..notices import warn_user

_NO_TIE = (
    "no LR scheduler is tied to this optimizer, so p is p_max. Call hf_lpsgd.tie_p_schedule, as before the state was "
    "saved. If p is to stay, set p_max to it"
)


class Tie(Protocol):
    """What p follows. The optimizer asks it at the beginning of each update."""

    def p_of(self, group: dict[str, Any], index: int) -> float:
        """Return the p of the param group at `index`, now."""

    def is_past_warmup(self) -> bool:
        """Say whether the warm-up, over which `grad_rms="auto"` measures, is over."""

    def begin_update(self) -> None:
        """Take note that an update begins."""

    def why_other_than(self, p: float, p_max: float) -> str | None:
        """Say why a state that was saved at this p, with this `p_max`, is not of this run; None if it can be."""


class PInForce:
    """Writes p into the param groups, and notices where someone else has written it."""

    def __init__(self) -> None:
        self._written: dict[int, float] = {}  # by the identity of a group
        self._p_max: dict[int, float] = {}  # as it was loaded, likewise

    def begin(self, group: dict[str, Any]) -> None:
        """Give a new param group its `p_max`."""
        self._written[id(group)] = group["p_max"]
        group.setdefault("p", group["p_max"])

    def move(self, before: Sequence[dict[str, Any]], after: Sequence[dict[str, Any]]) -> None:
        """Take for written what was written in the groups whose place others have taken."""
        pairs = [(id(old), id(new)) for old, new in zip(before, after, strict=False)]
        self._written = {new: self._written[old] for old, new in pairs if old in self._written}
        self._p_max = {id(group): float(group["p_max"]) for group in after}

    def write(
        self, groups: Sequence[dict[str, Any]], every: Sequence[dict[str, Any]], tie: Tie | None, *, warn: bool
    ) -> None:
        """Write p into `groups`, which are some of `every` group of the optimizer.

        Where the p of a group is that of a loaded state, or was written by someone else, and no such run can have had
        it, there is a warning if `warn`.
        """
        places = {id(group): index for index, group in enumerate(every)}
        for group in groups:
            p, found = float(group["p_max"]), float(group["p"])
            if tie is not None:
                p = tie.p_of(group, places[id(group)])
            if warn and self._written.get(id(group)) != found:
                p_max = self._p_max.get(id(group), float(group["p_max"]))
                reason = _NO_TIE if tie is None and found not in (p, p_max) else None
                if tie is not None:
                    reason = tie.why_other_than(found, p_max)
                if reason is not None:
                    warn_user(f"p goes from {found:.4g} in the param group to {p:.4g}: {reason}.")
            self._written[id(group)] = group["p"] = p
