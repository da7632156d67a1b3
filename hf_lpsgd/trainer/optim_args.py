"""`--optim_args` of lpsgd and lpsgdm: parsed, typed and checked."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch.optim import Optimizer

from ..optim import LPSGD, LPSGDM
from ..optim.checks import check_number
from ..optim.functional import check_fused
from ..schedules import GRANULARITIES, P_SCHEDULES, check_choice, check_granularity, check_scheduler_counts_steps

if TYPE_CHECKING:
    from transformers import TrainingArguments

OPTIMIZERS: dict[str, type[LPSGD] | type[LPSGDM]] = {"lpsgd": LPSGD, "lpsgdm": LPSGDM}

# LR schedulers of transformers that Trainer steps at evaluations.
_COUNT_EVALUATIONS = {"reduce_lr_on_plateau": "ReduceLROnPlateau", "greedy": "GreedyLR"}

_EXAMPLES = {
    "p_max": "p_max=NUMBER with a number of at least 2",
    "momentum": "momentum=NUMBER with a number of at least 0 and less than 1",
    "eps": "eps=NUMBER with a number of at least 0",
    "p_schedule": f"p_schedule=NAME with one of {', '.join(P_SCHEDULES)}",
    "p_granularity": f"p_granularity=NAME with one of {', '.join(GRANULARITIES)}",
    "foreach": "foreach=true, foreach=false or foreach=none",
    "fused": "fused=true, fused=false or fused=none",
}

_TRAINER_FLAGS = {"lr": "--learning_rate", "learning_rate": "--learning_rate", "weight_decay": "--weight_decay"}


@dataclass
class OptimArgs:
    """What `--optim_args` says.

    Attributes:
        optimizer_kwargs: arguments of the optimizer's constructor.
        p_schedule: `cosine` (the default), `linear`, `lr` or `constant`.
        p_granularity: `step` (the default) or `epoch`.
    """

    optimizer_kwargs: dict[str, Any] = field(default_factory=dict)
    p_schedule: str = "cosine"
    p_granularity: str = "step"

    @classmethod
    def parse(cls, optim: str, text: str | None) -> OptimArgs:
        """Read `text`, a comma-separated list of `key=value`, for the optimizer `optim`.

        Raises:
            ValueError: a key is unknown or given twice, an `=` is missing, or a value is not one the key can take.
        """
        parsed = cls()
        seen: set[str] = set()
        for item in text.split(",") if text else []:
            item = item.strip()
            if not item:
                raise ValueError(
                    f"Invalid optim_args for {optim}: {text!r} has an empty entry. Remove the extra comma."
                )
            key, equals, value = (part.strip() for part in item.partition("="))
            if key not in _readers(optim):
                raise ValueError(_unknown_key(optim, key, item))
            if not equals or not value:
                raise ValueError(
                    f"Invalid optim_args for {optim}: {item!r} has no value. Write it as {_EXAMPLES[key]}."
                )
            if key in seen:
                raise ValueError(f"Invalid optim_args for {optim}: {key} is given twice. Give it once.")
            seen.add(key)
            _readers(optim)[key](parsed, key, value)
        return parsed


def name_of(choice: Any) -> str:
    """The name that a choice in training arguments has on the command line; it may be a member of an enum or text."""
    return str(getattr(choice, "value", choice))


def validate_optim_args(args: TrainingArguments) -> OptimArgs | None:
    """Check all that `args` says of lpsgd or lpsgdm; call it to hear of a typo before data is loaded.

    The Trainer's constructor calls it too.

    Args:
        args: training arguments; those of other optimizers are not looked at.

    Returns:
        The parsed `args.optim_args`, or None for other optimizers.

    Raises:
        ValueError: names the key, the value and what is allowed.
    """
    optim = name_of(getattr(args, "optim", None))
    if optim not in OPTIMIZERS:
        return None
    parsed = OptimArgs.parse(optim, args.optim_args)
    check_number("lr", args.learning_rate, " (--learning_rate)")
    check_number("weight_decay", args.weight_decay, " (--weight_decay)")
    check_granularity(parsed.p_schedule, parsed.p_granularity)
    OPTIMIZERS[optim]([torch.zeros(1, device="meta")], **parsed.optimizer_kwargs)
    if parsed.optimizer_kwargs.get("fused"):
        check_fused(args.device, " in optim_args")
    lr_scheduler = name_of(args.lr_scheduler_type)
    check_scheduler_counts_steps(
        _COUNT_EVALUATIONS.get(lr_scheduler, lr_scheduler), parsed.p_schedule, lr_scheduler in _COUNT_EVALUATIONS
    )
    return parsed


def _unknown_key(optim: str, key: str, item: str) -> str:
    valid = ", ".join(_readers(optim))
    if key in _TRAINER_FLAGS:
        return (
            f"Invalid optim_args for {optim}: {item!r}. Give it as {_TRAINER_FLAGS[key]}; the keys here are {valid}."
        )
    others = [name for name in OPTIMIZERS if name != optim and key in _readers(name)]
    if others:
        return (
            f"Invalid optim_args for {optim}: {item!r}. {key} is a key of {others[0]}; those of {optim} are {valid}."
        )
    guess = difflib.get_close_matches(key, list(_readers(optim)), n=1, cutoff=0.5)
    hint = f" Did you mean {guess[0]}?" if guess else ""
    return f"Invalid optim_args for {optim}: {item!r} has no known key.{hint} The keys are {valid}, as in p_max=20."


def _read_number(parsed: OptimArgs, key: str, value: str) -> None:
    try:
        number: float | str = float(value)
    except ValueError:
        number = value
    parsed.optimizer_kwargs[key] = check_number(key, number, " in optim_args")


def _read_switch(parsed: OptimArgs, key: str, value: str) -> None:
    switches = {"true": True, "false": False, "none": None}
    if value.lower() not in switches:
        raise ValueError(f"Invalid {key} in optim_args: {value!r}. It must be one of true, false, none.")
    parsed.optimizer_kwargs[key] = switches[value.lower()]


def _read_p_schedule(parsed: OptimArgs, key: str, value: str) -> None:
    check_choice(f"{key} in optim_args", value, P_SCHEDULES)
    parsed.p_schedule = value


def _read_p_granularity(parsed: OptimArgs, key: str, value: str) -> None:
    check_choice(f"{key} in optim_args", value, GRANULARITIES)
    parsed.p_granularity = value


def _readers(optim: str) -> dict[str, Callable[[OptimArgs, str, str], None]]:
    momentum = {"momentum": _read_number} if optim == "lpsgdm" else {}
    return {
        "p_max": _read_number,
        **momentum,
        "eps": _read_number,
        "p_schedule": _read_p_schedule,
        "p_granularity": _read_p_granularity,
        "foreach": _read_switch,
        "fused": _read_switch,
    }


def optimizer_class_and_kwargs(args: TrainingArguments) -> tuple[type[Optimizer], dict[str, Any]]:
    """The optimizer class that `args.optim` names, and its constructor's arguments but for the parameters.

    Raises:
        ValueError: as [`validate_optim_args`].
    """
    parsed = validate_optim_args(args)
    assert parsed is not None
    optim = name_of(args.optim)
    return OPTIMIZERS[optim], {"lr": args.learning_rate, **parsed.optimizer_kwargs}
