"""The options of the optimizers: their meaning, the values that they can take, and every check of a value."""

from __future__ import annotations

import math
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

import torch


@dataclass(frozen=True)
class Option:
    """An option of an optimizer: an argument of its constructor, and an entry of its param groups."""

    name: str  # of the argument, of the entry, and of the key of `optim_args`
    meaning: str  # one line for tables
    low: float | None = None  # the least number that is allowed; None where numbers are not
    below: float | None = None  # a number that is too large already; None where there is none
    whole: bool = False  # whether numbers must be whole
    values: Collection[Any] = ()  # what else is allowed: names, True, False and None; may be a table that grows
    note: str = ""  # a remark on the range, for messages
    trainer_flag: str | None = None  # by which the Trainer is told; None for a key of `optim_args`
    for_trainer: bool = True  # whether the Trainer can be told at all
    absent: Any = None  # the value in a state of a version that did not know it

    @property
    def allowed(self) -> str:
        """What is allowed, in words."""
        names = [value for value in self.values if isinstance(value, str)]
        if self.low is None and names:
            return f"one of {', '.join(names)}{' and None' if None in self.values else ''}"
        allowed = [repr(value) for value in self.values]
        if self.low is not None:
            kind = "whole " if self.whole else "finite " if self.below is None else ""
            end = "" if self.below is None else f" and less than {self.below:g}"
            allowed.append(f"a {kind}number of at least {self.low:g}{end}" + (f" ({self.note})" if self.note else ""))
        *others, last = allowed
        return f"{', '.join(others)} or {last}" if others else last

    def check(self, value: Any, where: str = "") -> Any:
        """Return `value`, a number as a float and a dtype as its name, if it is allowed; otherwise raise a ValueError.

        A tensor of one element stands for its number. `where` follows the option's name, as " in param group 1".
        """
        given = value.item() if isinstance(value, torch.Tensor) and value.numel() == 1 else value
        if isinstance(given, torch.dtype):
            given = str(given).removeprefix("torch.").removesuffix("_e5m2")
        if any(given is other or (isinstance(given, str) and given == other) for other in self.values):
            return given
        is_number = isinstance(given, Integral if self.whole else Real) and not isinstance(given, bool)
        if self.low is not None and is_number:
            with suppress(OverflowError):  # an integer that no float can hold
                number = int(given) if self.whole else float(given)
                if self.low <= number < (math.inf if self.below is None else self.below):
                    return number
        raise invalid(self.name + where, value, self.allowed)

    def read(self, text: str, where: str = "") -> Any:
        """Return the value that a text of a command line stands for, if it is allowed."""
        for value in self.values:
            if not isinstance(value, str) and text.lower() == str(value).lower():
                return value
        number: Any = text
        if self.low is not None:
            with suppress(ValueError):  # the check tells
                number = int(text) if self.whole else float(text)
        return self.check(number, where)


LR = Option("lr", "learning rate", low=0.0, trainer_flag="--learning_rate")
P_MAX = Option("p_max", "largest order p of the norm", low=2.0, note="2 is SGD, 1e6 is sign descent in effect")
P = Option("p", "order of the norm in force", low=2.0)
MOMENTUM = Option("momentum", "decay of the moving average of the gradient", low=0.0, below=1.0)
EPS = Option("eps", "added to the magnitude before the power; relative to grad_rms where there is one", low=0.0)
WEIGHT_DECAY = Option("weight_decay", "decoupled weight decay", low=0.0, trainer_flag="--weight_decay")
GRAD_RMS = Option(
    "grad_rms", "root mean square of the gradient, the unit of a step; auto measures it", 1e-30, values=(None, "auto")
)
MOMENTUM_DTYPE = Option(
    "momentum_dtype", "dtype of the momentum; None: as the parameter", values=(None, "bfloat16", "float32", "float8")
)
# In a group with momentum_dtype="float8": the power of two in which it counts; 0 until the gradient is measured.
MOMENTUM_UNIT = "momentum_unit"
ROUNDED = "how parameters and momentum in bfloat16 or float16 are rounded"
ROUNDING = Option("rounding", ROUNDED, values=("nearest", "stochastic"), absent="nearest")
ROUNDING_SEED = Option(
    "rounding_seed", "seed for rounding=stochastic; the same on all processes", low=0, whole=True, absent=0
)
P_FOLLOWS = Option(
    "p_schedule", "without a tie: lr lets p fall with the learning rate", values=(None, "lr"), for_trainer=False
)
MAXIMIZE = Option("maximize", "ascend the objective", values=(True, False), for_trainer=False, absent=False)
FOREACH = Option(
    "foreach", "True or False to use the foreach implementation or not, None for the best", values=(True, False, None)
)
FUSED = Option(
    "fused", "the same for the fused implementation: Triton on CUDA, compiled C++ on a CPU", values=(True, False, None)
)

OF_LPSGD = (LR, P_MAX, EPS, WEIGHT_DECAY, GRAD_RMS, P_FOLLOWS, ROUNDING, ROUNDING_SEED, MAXIMIZE, FOREACH, FUSED)
EVERY_OPTION = tuple(value for value in list(globals().values()) if isinstance(value, Option))


def check_together(group: dict[str, Any], where: str = "") -> None:
    """Fail where options of a param group cannot be combined."""
    if group["fused"] and group["foreach"]:
        raise ValueError(f"Invalid fused{where}: True, with foreach=True. Only one can be True; leave both None.")
    if group.get("momentum_dtype") == "float8" and (group["grad_rms"] is None or group["rounding"] == "nearest"):
        raise ValueError(
            f"Invalid momentum_dtype{where}: float8. It counts in the size of the gradient, and is rounded at random: "
            "set rounding to stochastic and grad_rms to auto or a number, or momentum_dtype to bfloat16."
        )


def invalid(name: str, value: Any, allowed: str) -> ValueError:
    """Return the error for a value that an option cannot take."""
    is_large = isinstance(value, torch.Tensor) and value.numel() != 1
    shown = f"a tensor of {value.numel()} elements" if is_large else " ".join(repr(value).split())
    return ValueError(f"Invalid {name}: {shown}. It must be {allowed}.")
