"""What is looked at in a state before it is loaded, and what the states of older versions lack."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch.optim import Optimizer

from .measurement import AUTO, MEASURED
from .options import EVERY_OPTION, FOREACH, FUSED, LR, MOMENTUM, Option, P

_INSTEAD = "load a checkpoint that the same optimizer wrote, or the weights of the model alone for a new run."


def prepare(cls: type[Optimizer], present: Sequence[dict[str, Any]], state: dict[str, Any]) -> list[str]:
    """Check the param groups of a state, and complete them in place.

    Args:
        cls: the class of the optimizer, with its `options`.
        present: the param groups whose place they take; none while a pickle is read.
        state: the state.

    Returns:
        In words, each option whose value differs from the one in force so far.

    Raises:
        ValueError: the state is that of another optimizer, or an option is out of range.
    """
    options: tuple[Option, ...] = cls.options  # type: ignore[attr-defined]
    defaults = {option.name: option.absent for option in options if option.absent is not ...}
    for index, group in enumerate(state["param_groups"]):
        _check_kind(cls, group, present[index] if present else None)
        group.update({"p": group["p_max"], **defaults, **group})
        for option in (FOREACH, FUSED) if present else ():
            # The implementation is a matter of this machine, not of the one that wrote the checkpoint.
            group[option.name] = present[index][option.name]
        for option in (*options, P):
            if option is not LR:  # which LR schedulers set
                option.check(group[option.name], " in the loaded state")
    if "defaults" in state:
        state["defaults"].update({**defaults, **state["defaults"]})
    return _replaced(options, present, state["param_groups"])


def differs(present: Sequence[dict[str, Any]], state: dict[str, Any]) -> bool:
    """Say whether a state brings anything new into the param groups; a copy and a pickle do."""
    return not present or any(
        bool(before.get(name) != value)
        for before, after in zip(present, state["param_groups"], strict=False)
        for name, value in after.items()
        if name != "params"
    )


def _check_kind(cls: type[Optimizer], group: dict[str, Any], present: dict[str, Any] | None) -> None:
    """Fail unless a loaded group is one of `cls`: it has its numbers, and no option of another class."""
    options: tuple[Option, ...] = cls.options  # type: ignore[attr-defined]
    missing = [option.name for option in options if option.absent is ... and option.name not in group]
    if missing:
        raise ValueError(
            f"The state holds no {' and no '.join(missing)} and so is not one of {cls.__name__}: {_INSTEAD}"
        )
    foreign = [option.name for option in EVERY_OPTION if option not in options and option.name in group]
    held = [name for name in foreign if present is not None and name not in present]
    if held:
        raise ValueError(f"The state holds {' and '.join(held)} and so is not one of {cls.__name__}: {_INSTEAD}")


def _replaced(
    options: Sequence[Option], present: Sequence[dict[str, Any]], loaded: Sequence[dict[str, Any]]
) -> list[str]:
    names = [option.name for option in options if option not in (LR, FOREACH, FUSED)]
    words: dict[str, None] = {}
    for before, after in zip(present, loaded, strict=False):
        cycled = MOMENTUM.name if "max_momentum" in after else None  # by OneCycleLR or CyclicLR, at each step
        measured = MEASURED in after and (before.get("grad_rms") == AUTO or MEASURED in before)
        for name in (*names, "initial_lr"):
            if name == cycled or (name == "grad_rms" and measured):
                continue
            if name in before and name in after and before[name] != after[name]:
                shown = "lr (initial_lr)" if name == "initial_lr" else name
                words[f"{shown} is {_shown(after[name])}, not {_shown(before[name])} as requested"] = None
    return list(words)


def _shown(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
