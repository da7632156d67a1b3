"""The options of the optimizers: their meaning, the values they can take, and every check of a value.

A check returns the value, or fails with a ValueError of one line: the option, what was given and what is allowed. Its
`where` is said after the option's name, as " in param group 1".
"""

from __future__ import annotations

import math
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

import torch

# How far below the least value rounding may leave an option that a schedule lowers; harmless except in eps.
_ROUNDING = 1e-9


@dataclass(frozen=True)
class Number:
    """An option that takes a number of at least `low`, and less than `below` if that is not None.

    Attributes:
        name: of the constructor's argument, and of the entry in a param group.
        meaning: one line for tables.
        note: said after the range.
        trainer_flag: the flag by which the Trainer is told; None for a key of `optim_args`.
    """

    name: str
    meaning: str
    low: float = 0.0
    below: float | None = None
    note: str = ""
    trainer_flag: str | None = None

    @property
    def allowed(self) -> str:
        finite, end = ("finite ", "") if self.below is None else ("", f" and less than {self.below:g}")
        return f"a {finite}number of at least {self.low:g}{end}" + (f" ({self.note})" if self.note else "")

    @property
    def form(self) -> str:
        """How to write it in `optim_args`."""
        return f"{self.name}=NUMBER with {self.allowed.replace(' finite', '').removesuffix(f' ({self.note})')}"

    def check(self, value: Any, where: str = "") -> float:
        """Return a number, or the number in a tensor of one element, as a float, if it is allowed."""
        number = value.item() if isinstance(value, torch.Tensor) and value.numel() == 1 else value
        is_number = isinstance(number, Real) and not isinstance(number, bool)
        try:
            number = float(number) if is_number else math.nan
        except OverflowError:
            number = math.inf
        if not math.isfinite(number) or number < self.low or (self.below is not None and number >= self.below):
            raise invalid(self.name + where, value, self.allowed)
        return float(number)


@dataclass(frozen=True)
class Switch:
    """An option that is True or False, or None where `optional`; a key of `optim_args` where `for_trainer`."""

    name: str
    meaning: str
    optional: bool = True
    for_trainer: bool = True

    @property
    def allowed(self) -> str:
        return "True, False or None" if self.optional else "True or False"

    @property
    def form(self) -> str:
        """How to write it in `optim_args`."""
        return f"{self.name}=true, {self.name}=false or {self.name}=none"

    def check(self, value: Any, where: str = "") -> bool | None:
        """Return `value`, if it is allowed."""
        if isinstance(value, bool) or (self.optional and value is None):
            return value
        raise invalid(self.name + where, value, self.allowed)


@dataclass(frozen=True)
class NumberOrWord:
    """An option that takes None, a number of at least `low`, or `word` if there is one; a key of `optim_args`."""

    name: str
    meaning: str
    low: float
    word: str | None = None

    @property
    def allowed(self) -> str:
        words = "None" if self.word is None else f"None, {self.word!r}"
        return f"{words} or a finite number of at least {self.low:g}"

    @property
    def form(self) -> str:
        """How to write it in `optim_args`."""
        words = [word for word in (self.word, "none") if word is not None]
        return ", ".join(f"{self.name}={word}" for word in words) + f" or {self.name}=NUMBER"

    def check(self, value: Any, where: str = "") -> float | str | None:
        """Return `value`, if it is allowed; a number as a float."""
        if value is None or (isinstance(value, str) and value == self.word):
            return value
        with suppress(ValueError):
            return Number(self.name, self.meaning, self.low).check(value)
        raise invalid(self.name + where, value, self.allowed)


@dataclass(frozen=True)
class Count:
    """An option that takes a whole number of at least 0; a key of `optim_args`."""

    name: str
    meaning: str

    @property
    def allowed(self) -> str:
        return "a whole number of at least 0"

    @property
    def form(self) -> str:
        """How to write it in `optim_args`."""
        return f"{self.name}=NUMBER with {self.allowed}"

    def check(self, value: Any, where: str = "") -> int:
        """Return `value`, if it is allowed."""
        if isinstance(value, Integral) and not isinstance(value, bool) and int(value) >= 0:
            return int(value)
        raise invalid(self.name + where, value, self.allowed)


@dataclass(frozen=True)
class Choice:
    """An option that takes one of `names`, which each check looks up anew, so that a table may grow.

    Attributes:
        optional: whether it takes None too.
    """

    name: str
    meaning: str
    names: Collection[str]
    optional: bool = False

    @property
    def allowed(self) -> str:
        return f"one of {', '.join(self.names)}{' and None' if self.optional else ''}"

    @property
    def form(self) -> str:
        """How to write it in `optim_args`."""
        return f"{self.name}=NAME with one of {', '.join((*self.names, *(['none'] if self.optional else [])))}"

    def check(self, value: Any, where: str = "") -> str | None:
        """Return `value`, if it is allowed; of a torch.dtype, its name."""
        if isinstance(value, torch.dtype):
            value = str(value).removeprefix("torch.")
        if (isinstance(value, str) and value in self.names) or (self.optional and value is None):
            return value
        raise invalid(self.name + where, value, self.allowed)


Option = Number | NumberOrWord | Switch | Choice | Count

LR = Number("lr", "learning rate", trainer_flag="--learning_rate")
P_MAX = Number("p_max", "largest order p of the norm", low=2.0, note="2 is SGD, 1e6 is sign descent in effect")
P = Number("p", "order of the norm in force", low=2.0)
MOMENTUM = Number("momentum", "decay of the moving average of the gradient", below=1.0)
EPS = Number("eps", "added to the magnitude before the power")
WEIGHT_DECAY = Number("weight_decay", "decoupled weight decay", trainer_flag="--weight_decay")
GRAD_RMS = NumberOrWord(
    "grad_rms", "root mean square of the gradient, which the step divides by; auto measures it", low=1e-30, word="auto"
)
SATURATION = NumberOrWord(
    "saturation",
    "share of grad_rms from which on an element moves by the most; None is 0.1 with auto, else 1",
    low=1e-6,
)
LR_FACTOR = NumberOrWord(
    "lr_factor", "with grad_rms, an element moves by at most lr_factor * lr; None is 0.5 with auto, else 1", low=1e-6
)
MOMENTUM_DTYPE = Choice(
    "momentum_dtype", "dtype of the momentum; None is that of the parameter", ("bfloat16", "float32"), optional=True
)
ROUNDING = Choice(
    "rounding", "how parameters and momentum in bfloat16 or float16 are rounded", ("nearest", "stochastic")
)
ROUNDING_SEED = Count("rounding_seed", "seed of the random numbers of rounding=stochastic; the same on all processes")
MAXIMIZE = Switch("maximize", "ascend the objective instead of descending", optional=False, for_trainer=False)
FOREACH = Switch("foreach", "True or False to use the foreach implementation or not, None for the best available")
FUSED = Switch("fused", "the same for the fused implementation: Triton on CUDA, compiled C++ on a CPU")


def is_plainly_allowed(option: Option, value: Any) -> bool:
    """Whether a number is a float in the option's range, by a test that costs little; others are for `check`."""
    if not isinstance(option, Number) or type(value) is not float:
        return False
    low = option.low if option is EPS else option.low - _ROUNDING
    return low <= value < (math.inf if option.below is None else option.below)


def check_count(name: str, value: Any, low: int, why: str, *, optional: bool = False) -> None:
    """Fail unless `value` is an integer of at least `low`, or None where `optional`; `why` is said last."""
    if optional and value is None:
        return
    if isinstance(value, bool) or not isinstance(value, Integral) or int(value) < low:
        raise invalid(name, value, f"an integer of at least {low}: {why}")


def invalid(name: str, value: Any, allowed: str) -> ValueError:
    """The error for a value that an option cannot take."""
    if isinstance(value, torch.Tensor) and value.numel() != 1:
        return ValueError(f"Invalid {name}: a tensor of {value.numel()} elements. It must be {allowed}, not several.")
    return ValueError(f"Invalid {name}: {value!r}. It must be {allowed}.")
