"""`--optim_args` of lpsgd and lpsgdm: parsed, typed and checked."""

from __future__ import annotations

import difflib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch.optim import Optimizer

from ..optim import OPTIMIZERS, OptimizerRecord
from ..optim.kernels.choice import check_fused
from ..optim.options import LR, WEIGHT_DECAY, Option, invalid
from ..processes import check_processes
from ..schedules import P_GRANULARITY, P_SCHEDULE, Granularity, PSchedule, check_schedule
from .checks import check_layerwise

if TYPE_CHECKING:
    from transformers import TrainingArguments

# LR schedulers of transformers that the Trainer steps at evaluations.
_COUNT_EVALUATIONS = {"reduce_lr_on_plateau": "ReduceLROnPlateau", "greedy": "GreedyLR"}


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
    def parse(cls, optim: str, optim_args: str | None) -> OptimArgs:
        """Read `optim_args`, a comma-separated list of `key=value`, for the optimizer `optim`.

        Raises:
            ValueError: there is a mistake in it; one line says which.
        """
        record, text, values = OPTIMIZERS[optim], optim_args or "", dict[str, Any]()
        if not isinstance(text, str):
            raise invalid(f"optim_args for {optim}", text, "text, as in 'p_max=20,p_schedule=cosine'")
        keys, wrong = _keys(record), f"Invalid optim_args for {optim}"
        for item in text.split(",") if text else ():
            key, _, value = (part.strip() for part in item.partition("="))
            if not item.strip():
                raise ValueError(f"{wrong}: {text!r} has an empty entry. Remove the extra comma.")
            if key not in keys:
                raise _unknown_key(record, key, item.strip())
            if key in values:
                raise ValueError(f"{wrong}: {key} is given twice. Give it once.")
            values[key] = keys[key].read(value, " in optim_args")
        of_tie = {name: values.pop(name) for name in (P_SCHEDULE.name, P_GRANULARITY.name) if name in values}
        return cls(values, **of_tie)


def name_of(choice: Any) -> str:
    """Return the name on the command line of a choice in training arguments, which is text or a member of an enum."""
    return str(getattr(choice, "value", choice))


def parse_optim_args(args: TrainingArguments) -> OptimArgs | None:
    """Read `args.optim_args`, and check nothing else; return None for optimizers that are not ours."""
    optim = name_of(getattr(args, "optim", None))
    return OptimArgs.parse(optim, args.optim_args) if optim in OPTIMIZERS else None


def validate_optim_args(args: TrainingArguments) -> OptimArgs | None:
    """Check all that `args` says about lpsgd or lpsgdm, and return the parsed `args.optim_args`; None for others.

    The constructor of the Trainer calls it. Call it yourself right after parsing the arguments to hear of a mistake
    before data and model are loaded.

    Raises:
        ValueError: an argument is not allowed, or several of them together, or a launcher started more processes than
            would train together; one line says what is wrong.
    """
    parsed = parse_optim_args(args)
    if parsed is None:
        return None
    optim = name_of(args.optim)
    for option, value in ((LR, args.learning_rate), (WEIGHT_DECAY, args.weight_decay)):
        option.check(value, f" ({option.trainer_flag})")
    cls, kwargs = optimizer_class_and_kwargs(args)
    cls([torch.zeros(1, dtype=torch.float32, device="meta")], **kwargs)  # which checks the options against each other
    if kwargs.get("fused"):
        check_fused(args.device, " in optim_args")
    check_schedule(parsed.p_schedule, parsed.p_granularity, _COUNT_EVALUATIONS.get(name_of(args.lr_scheduler_type)))
    check_processes(args.world_size)
    if OPTIMIZERS[optim].ordinary is not None:
        check_layerwise(args, f"--optim {optim}", f"use --optim {OPTIMIZERS[optim].ordinary}")
    return parsed


def optimizer_class_and_kwargs(args: TrainingArguments) -> tuple[type[Optimizer], dict[str, Any]]:
    """Return the optimizer class that `args.optim` names, and the arguments of its constructor but the parameters."""
    record = OPTIMIZERS[name_of(args.optim)]
    parsed = OptimArgs.parse(record.name, args.optim_args)
    return record.cls, {"lr": args.learning_rate, **record.trainer_defaults, **parsed.optimizer_kwargs}


def _keys(record: OptimizerRecord) -> dict[str, Option]:
    own = [option for option in record.options if option.trainer_flag is None and option.for_trainer]
    return {option.name: option for option in (*own, P_SCHEDULE, P_GRANULARITY)}


def _unknown_key(record: OptimizerRecord, key: str, item: str) -> ValueError:
    from transformers import TrainingArguments

    keys, name = _keys(record), "--learning_rate" if key == LR.name else f"--{key}"
    guesses = difflib.get_close_matches(key.lower(), keys, n=1)
    hint = f" Did you mean {guesses[0]}?" if guesses else ""
    if name[2:] in TrainingArguments.__dataclass_fields__ and not key.startswith("adam_"):
        hint = f" Give it as {name}."
    wrong = f"Invalid optim_args for {record.name}: {item!r} has no known key."
    return ValueError(f"{wrong}{hint} The keys are {', '.join(keys)}, as in p_max=20.")
