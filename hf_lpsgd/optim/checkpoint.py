"""What is looked at in a state before it is loaded, and what the states of older versions lack."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from .measurement import AUTO, MEASURED
from .options import EPS, EVERY_OPTION, LR, MOMENTUM, MOMENTUM_UNIT, P_MAX, WEIGHT_DECAY, Option, P

_IN_EVERY_STATE = (LR, P_MAX, MOMENTUM, EPS, WEIGHT_DECAY)


def is_same(present: Sequence[dict[str, Any]], state: dict[str, Any]) -> bool:
    """Say whether a state has what the param groups have already, as the one that Accelerate loads at once."""
    one, other = ([{**group, "params": None} for group in groups] for groups in (present, state["param_groups"]))
    return one == other


def prepare(cls: type[Any], present: Sequence[dict[str, Any]], state: dict[str, Any]) -> list[str]:
    """Check the param groups of a state, complete them in place, and return in words each option that they replace.

    They take the place of those that are `present`; there are none while a pickle is read. A ValueError says that the
    state is one of another optimizer than `cls`, or that an option is out of range.
    """
    options: tuple[Option, ...] = cls.options
    defaults = {option.name: option.absent for option in options if option not in _IN_EVERY_STATE}
    replaced: dict[str, None] = {}
    for index, group in enumerate(state["param_groups"]):
        before = present[index] if present else {}
        missing = [f"no {one.name}" for one in options if one in _IN_EVERY_STATE and one.name not in group]
        missing += [f"no {MOMENTUM_UNIT}"] * (group.get("momentum_dtype") == "float8" and MOMENTUM_UNIT not in group)
        foreign = [one.name for one in EVERY_OPTION if before and one.name in group and one.name not in before]
        if missing or foreign:
            raise ValueError(
                f"The state holds {' and '.join(missing or foreign)} and so is not one of {cls.__name__}: load a "
                "checkpoint that the same optimizer wrote, or the weights of the model alone for a new run."
            )
        group.update({"p": group["p_max"], **defaults, **group})
        if before:  # the implementation is a matter of this machine, not of the one that wrote the checkpoint
            group.update(foreach=before["foreach"], fused=before["fused"])
        for option in (*options, P):
            if option is not LR:  # which LR schedulers set
                option.check(group[option.name], " in the loaded state")
        replaced |= dict.fromkeys(_replaced(options, before, group))
    if "defaults" in state:
        state["defaults"].update({**defaults, **state["defaults"]})
    return list(replaced)


def _replaced(options: Sequence[Option], before: dict[str, Any], after: dict[str, Any]) -> Iterator[str]:
    """Yield in words what changes in a group, but for what is meant to."""
    changing = {LR.name}
    if "max_momentum" in after:  # OneCycleLR and CyclicLR change it at each step
        changing.add(MOMENTUM.name)
    if MEASURED in after and (before.get("grad_rms") == AUTO or MEASURED in before):
        changing.add("grad_rms")
    for name in (*(option.name for option in options), "initial_lr"):
        if name not in changing and name in before and name in after and before[name] != after[name]:
            shown = "lr (initial_lr)" if name == "initial_lr" else name
            new, old = (f"{value:g}" if isinstance(value, float) else value for value in (after[name], before[name]))
            yield f"{shown} is {new}, not {old} as requested"
