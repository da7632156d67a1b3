"""`--optim_args` of lpsgd and lpsgdm: parsed, typed and checked."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import lru_cache
from numbers import Real
from typing import TYPE_CHECKING, Any, cast

import torch
from torch.optim import Optimizer

from ..optim import OPTIMIZERS, OptimizerRecord
from ..optim.functional import check_fused
from ..optim.options import LR, WEIGHT_DECAY, Choice, Count, Number, NumberOrWord, Option, Switch, invalid
from ..processes import check_processes
from ..schedules import P_GRANULARITY, P_SCHEDULE, Granularity, PSchedule, check_schedule
from .layerwise import check_layerwise

if TYPE_CHECKING:
    from transformers import TrainingArguments

# LR schedulers of transformers that the Trainer steps at evaluations.
_COUNT_EVALUATIONS = {"reduce_lr_on_plateau": "ReduceLROnPlateau", "greedy": "GreedyLR"}

_SWITCHES = {"true": True, "false": False, "none": None}


@dataclass(frozen=True)
class OptimArgs:
    """What `--optim_args` says.

    Attributes:
        optimizer_kwargs: arguments of the optimizer's constructor, where they are given.
        p_schedule: `cosine` (the default), `linear`, `lr` or `constant`.
        p_granularity: `step` (the default) or `epoch`.
    """

    optimizer_kwargs: dict[str, Any] = field(default_factory=dict)
    p_schedule: PSchedule = "cosine"
    p_granularity: Granularity = "step"

    @classmethod
    def parse(cls, optim: str, optim_args: str | Mapping[str, Any] | None) -> OptimArgs:
        """Read `optim_args`, a comma-separated list of `key=value` or a mapping, for the optimizer `optim`.

        The same text is parsed once. A mistake in it is a ValueError of one line.
        """
        parsed = _parse(OPTIMIZERS[optim], as_text(optim, optim_args))
        return replace(parsed, optimizer_kwargs=dict(parsed.optimizer_kwargs))  # the first result stays as it is


def name_of(choice: Any) -> str:
    """The name on the command line of a choice in training arguments, which is text or a member of an enum."""
    return str(getattr(choice, "value", choice))


def as_text(optim: str, optim_args: Any) -> str:
    """`optim_args` in the form of the command line, as transformers reads it; None is the empty text.

    Raises:
        ValueError: it is neither text nor a mapping.
    """
    if optim_args is None or isinstance(optim_args, str):
        return optim_args or ""
    if isinstance(optim_args, Mapping):
        for key, value in optim_args.items():
            if not isinstance(value, str | Real | None) or "," in str(value):
                raise invalid(f"{key} in optim_args", value, "a number, a name, True, False or None")
        return ",".join(f"{key}={_written(value)}" for key, value in optim_args.items())
    raise ValueError(
        f"Invalid optim_args for {optim}: {optim_args!r}. It must be text, as in 'p_max=20,p_schedule=cosine', or a "
        "mapping, as in {'p_max': 20, 'p_schedule': 'cosine'}."
    )


def _written(value: Any) -> str:
    return str(value).lower() if value is None or isinstance(value, bool) else str(value)


def validate_optim_args(args: TrainingArguments) -> OptimArgs | None:
    """Check all that `args` says about lpsgd or lpsgdm.

    The constructor of the Trainer calls it. Call it yourself right after parsing the arguments to hear of a mistake
    before data and model are loaded.

    Args:
        args: training arguments. Those of other optimizers are not checked. Where `args.optim_args` is a mapping, as
            in a JSON or YAML file, it becomes text, which is what transformers reads.

    Returns:
        The parsed `args.optim_args`, or None for other optimizers.

    Raises:
        ValueError: names the key, the value and what is allowed; or a launcher started more processes than would
            train together.
    """
    optim = name_of(getattr(args, "optim", None))
    if optim not in OPTIMIZERS:
        return None
    if args.optim_args is not None:
        args.optim_args = as_text(optim, args.optim_args)
    parsed = OptimArgs.parse(optim, args.optim_args)
    for option, value in ((LR, args.learning_rate), (WEIGHT_DECAY, args.weight_decay)):
        option.check(value, f" ({option.trainer_flag})")
    OPTIMIZERS[optim].cls([torch.zeros(1, device="meta")], **_with_defaults(optim, parsed))
    if parsed.optimizer_kwargs.get("fused"):
        check_fused(args.device, " in optim_args")
    lr_scheduler = name_of(args.lr_scheduler_type)
    shown = _COUNT_EVALUATIONS.get(lr_scheduler, lr_scheduler)
    check_schedule(parsed.p_schedule, parsed.p_granularity, shown, lr_scheduler in _COUNT_EVALUATIONS)
    check_processes(args.world_size)
    ordinary = OPTIMIZERS[optim].ordinary
    if ordinary is not None:
        check_layerwise(args, f"--optim {optim}", f"use --optim {ordinary}")
    return parsed


def optimizer_class_and_kwargs(args: TrainingArguments) -> tuple[type[Optimizer], dict[str, Any]]:
    """The optimizer class that `args.optim` names, and the arguments of its constructor except the parameters.

    Raises:
        ValueError: as [`validate_optim_args`][hf_lpsgd.trainer.validate_optim_args].
    """
    parsed = validate_optim_args(args)
    assert parsed is not None
    optim = name_of(args.optim)
    return OPTIMIZERS[optim].cls, {"lr": args.learning_rate, **_with_defaults(optim, parsed)}


def _with_defaults(optim: str, parsed: OptimArgs) -> dict[str, Any]:
    return {**OPTIMIZERS[optim].trainer_defaults, **parsed.optimizer_kwargs}


@lru_cache
def _parse(record: OptimizerRecord, text: str) -> OptimArgs:
    keys = _keys(record)
    wrong = f"Invalid optim_args for {record.name}"
    values: dict[str, Any] = {}
    for item in text.split(",") if text else []:
        item = item.strip()
        if not item:
            raise ValueError(f"{wrong}: {text!r} has an empty entry. Remove the extra comma.")
        key, equals, value = (part.strip() for part in item.partition("="))
        if key not in keys:
            raise ValueError(f"{wrong}: {_unknown_key(record, key, item)}")
        if not equals or not value:
            raise ValueError(f"{wrong}: {item!r} has no value. Write it as {keys[key].form}.")
        if key in values:
            raise ValueError(f"{wrong}: {key} is given twice. Give it once.")
        values[key] = _read(keys[key], value)
    schedule = values.pop(P_SCHEDULE.name, OptimArgs.p_schedule)
    granularity = values.pop(P_GRANULARITY.name, OptimArgs.p_granularity)
    return OptimArgs(values, cast(PSchedule, schedule), cast(Granularity, granularity))


def _keys(record: OptimizerRecord) -> dict[str, Option]:
    given = [option for option in record.options if getattr(option, "trainer_flag", None) is None]
    switches = [option for option in given if isinstance(option, Switch) and option.for_trainer]
    others = [option for option in given if not isinstance(option, Switch)]
    options: list[Option] = [*others, P_SCHEDULE, P_GRANULARITY, *switches]
    return {option.name: option for option in options}


def _read(option: Option, text: str) -> Any:
    value: Any = text
    may_be_none = isinstance(option, NumberOrWord) or (isinstance(option, Choice) and option.optional)
    if may_be_none and text.lower() == "none":
        value = None
    elif isinstance(option, Count):
        with suppress(ValueError):  # the check tells
            value = int(text)
    elif isinstance(option, Number | NumberOrWord):
        with suppress(ValueError):  # the check tells
            value = float(text)
    elif isinstance(option, Switch):
        if text.lower() not in _SWITCHES:
            raise invalid(f"{option.name} in optim_args", text, "one of true, false, none")
        value = _SWITCHES[text.lower()]
    return option.check(value, " in optim_args")


def _unknown_key(record: OptimizerRecord, key: str, item: str) -> str:
    keys = list(_keys(record))
    valid = ", ".join(keys)
    flag = {"learning_rate": LR, "lr": LR, "weight_decay": WEIGHT_DECAY}.get(key)
    if flag is not None:
        return f"{item!r}. Give it as {flag.trainer_flag}; the keys here are {valid}."
    others = [other.name for other in OPTIMIZERS.values() if key in _keys(other)]
    if others:
        return f"{item!r}. {key} is a key of {others[0]}; those of {record.name} are {valid}."
    guess = difflib.get_close_matches(key, keys, n=1, cutoff=0.5)
    hint = f" Did you mean {guess[0]}?" if guess else ""
    return f"{item!r} has no known key.{hint} The keys are {valid}, as in p_max=20."
