"""What is looked at in the param groups of a state that is loaded, before it takes the place of the present one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from torch.optim import Optimizer

from . import grad_rms, stochastic
from .options import (
    FOREACH,
    FUSED,
    GRAD_RMS,
    LR,
    LR_FACTOR,
    MOMENTUM,
    MOMENTUM_DTYPE,
    ROUNDING,
    ROUNDING_SEED,
    SATURATION,
    Number,
    Option,
)

# The value of an option in states of versions that did not know it.
_BEFORE: dict[Option, Any] = {
    GRAD_RMS: None,
    SATURATION: None,
    MOMENTUM_DTYPE: None,
    ROUNDING: "nearest",
    ROUNDING_SEED: 0,
}

_INSTEAD = "load a checkpoint that the same optimizer wrote, or the weights of the model alone for a new run."


def check_kind(cls: type[Optimizer], group: dict[str, Any], present: dict[str, Any] | None) -> None:
    """Fail unless a loaded group is one of `cls`: it has its numbers, and no option of another class.

    Args:
        cls: the class of the optimizer, with its `options`.
        group: the loaded group.
        present: the group whose place it takes, if there is one.
    """
    options: tuple[Option, ...] = cls.options  # type: ignore[attr-defined]
    missing = [option.name for option in options if isinstance(option, Number) and option.name not in group]
    if missing:
        raise ValueError(
            f"The state holds no {' and no '.join(missing)} and so is not one of {cls.__name__}: {_INSTEAD}"
        )
    if present is None:
        return
    names = {option.name for option in options}
    base = cls.__mro__[cls.__mro__.index(Optimizer) - 1]
    for other in _subclasses(base):
        foreign = [option.name for option in other.options if option.name not in names]
        held = [name for name in foreign if name in group and name not in present]
        if held:
            raise ValueError(
                f"The state holds {' and '.join(held)} and so is one of {other.__name__}, not of "
                f"{cls.__name__}: {_INSTEAD}"
            )


def _subclasses(cls: type[Any]) -> Iterator[type[Any]]:
    for child in cls.__subclasses__():
        yield child
        yield from _subclasses(child)


def add_what_older_versions_lack(group: dict[str, Any], options: Sequence[Option]) -> None:
    """Give a loaded group the entries that the version which wrote it did not know, with the meaning that it had."""
    add_options(group, options)
    group.setdefault("p", group["p_max"])
    if ROUNDING in options and stochastic.takes_part(group):
        stochastic.begin(group)
    if GRAD_RMS in options:
        GRAD_RMS.check(group["grad_rms"], " in the loaded state")
        if grad_rms.takes_part(group) and grad_rms.MEASURED not in group:
            grad_rms.join(group, ())


def add_options(values: dict[str, Any], options: Sequence[Option]) -> None:
    """Give the options of a loaded group, or the loaded defaults of all groups, those that an older version lacks."""
    values.setdefault("maximize", False)
    for option in options:
        if option in _BEFORE:
            values.setdefault(option.name, _BEFORE[option])
    if LR_FACTOR in options:  # which the first steps with a measured size did not know
        values.setdefault(LR_FACTOR.name, 1.0 if grad_rms.MEASURED in values else None)


def replaced_options(
    options: Sequence[Option], present: Sequence[dict[str, Any]], loaded: Sequence[dict[str, Any]]
) -> list[str]:
    """In words, each option whose value in a loaded group differs from the one in force so far."""
    names = [option.name for option in options if option not in (LR, FOREACH, FUSED)]
    words: dict[str, None] = {}
    for before, after in zip(present, loaded, strict=False):
        cycled = MOMENTUM.name if "max_momentum" in after else None  # by OneCycleLR or CyclicLR, at each step
        for name in (*names, "initial_lr"):
            if name == "grad_rms" and grad_rms.takes_part(before) and grad_rms.MEASURED in after:
                continue  # a number that was asked for as "auto"
            if name != cycled and name in before and name in after and before[name] != after[name]:
                shown = "lr (initial_lr)" if name == "initial_lr" else name
                words[f"{shown} is {_shown(after[name])}, not {_shown(before[name])} as asked for"] = None
    return list(words)


def _shown(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
