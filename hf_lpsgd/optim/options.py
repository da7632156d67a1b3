"""The options of the optimizers: their meaning, the values they can take, and every check of a value.

A check that fails says in one line which option was wrong, what was given and what is allowed.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

import torch


@dataclass(frozen=True)
class Number:
    """An option that takes a number.

    Attributes:
        name: of the constructor's argument, and of the entry in a param group.
        meaning: one line for tables.
        low: the smallest allowed value.
        below: all allowed values are less than this; None for any finite number.
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
    def range(self) -> str:
        """The allowed values, as in "a number of at least 0 and less than 1"."""
        return f"a number of at least {self.low:g}" + ("" if self.below is None else f" and less than {self.below:g}")

    @property
    def allowed(self) -> str:
        """The allowed values in full, with the note."""
        words = self.range if self.below is not None else self.range.replace("a number", "a finite number")
        return f"{words} ({self.note})" if self.note else words

    @property
    def form(self) -> str:
        """How to write it in `optim_args`."""
        return f"{self.name}=NUMBER with {self.range}"

    def check(self, value: Any, where: str = "") -> float:
        """Return `value` as a float.

        Args:
            value: anything; a number or a tensor of one element can be right.
            where: said after the name, as " in param group 1".

        Raises:
            ValueError: it is not an allowed number.
        """
        number = value.item() if isinstance(value, torch.Tensor) and value.numel() == 1 else value
        is_number = isinstance(number, Real) and not isinstance(number, bool)
        try:
            number = float(number) if is_number else math.nan
        except OverflowError:
            number = math.inf
        if not math.isfinite(number) or number < self.low or (self.below is not None and number >= self.below):
            raise ValueError(f"Invalid {self.name}{where}: {value!r}. It must be {self.allowed}.")
        return float(number)


@dataclass(frozen=True)
class Switch:
    """An option that is True or False, or None where `optional`.

    Attributes:
        name: of the constructor's argument, and of the entry in a param group.
        meaning: one line for tables.
        optional: whether None is allowed.
        for_trainer: whether it is a key of `optim_args`.
    """

    name: str
    meaning: str
    optional: bool = True
    for_trainer: bool = True

    @property
    def allowed(self) -> str:
        """The allowed values, in words."""
        return "True, False or None" if self.optional else "True or False"

    @property
    def form(self) -> str:
        """How to write it in `optim_args`."""
        return f"{self.name}=true, {self.name}=false or {self.name}=none"

    def check(self, value: Any, where: str = "") -> bool | None:
        """Return `value`.

        Raises:
            ValueError: it is neither True nor False, nor None where that is allowed.
        """
        if isinstance(value, bool) or (self.optional and value is None):
            return value
        raise ValueError(f"Invalid {self.name}{where}: {value!r}. It must be {self.allowed}.")


@dataclass(frozen=True)
class Choice:
    """An option that takes one of several names.

    Attributes:
        name: of the option.
        meaning: one line for tables.
        names: the allowed ones; they are looked up at each check, so a table may grow.
    """

    name: str
    meaning: str
    names: Collection[str]

    @property
    def allowed(self) -> str:
        """The allowed values, in words."""
        return f"one of {', '.join(self.names)}"

    @property
    def form(self) -> str:
        """How to write it in `optim_args`."""
        return f"{self.name}=NAME with {self.allowed}"

    def check(self, value: Any, where: str = "") -> str:
        """Return `value`.

        Raises:
            ValueError: it is not one of the names.
        """
        if isinstance(value, str) and value in self.names:
            return value
        raise ValueError(f"Invalid {self.name}{where}: {value!r}. It must be {self.allowed}.")


Option = Number | Switch | Choice

LR = Number("lr", "learning rate", trainer_flag="--learning_rate")
P_MAX = Number("p_max", "largest order p of the norm", low=2.0, note="2 is SGD, 1e6 is sign descent in effect")
P = Number("p", "order of the norm in force", low=2.0)
MOMENTUM = Number("momentum", "decay of the moving average of the gradient", below=1.0)
EPS = Number("eps", "added to the magnitude before the power")
WEIGHT_DECAY = Number("weight_decay", "decoupled weight decay", trainer_flag="--weight_decay")
MAXIMIZE = Switch("maximize", "ascend the objective instead of descending", optional=False, for_trainer=False)
FOREACH = Switch("foreach", "use the foreach implementation, or not")
FUSED = Switch("fused", "use the fused implementation, or not: Triton on CUDA, compiled C++ on a CPU")


def check_count(name: str, value: Any, low: int, why: str, *, optional: bool = False) -> None:
    """Fail unless `value` is an integer of at least `low`, or None where `optional`.

    Args:
        name: of the argument.
        value: anything.
        low: the smallest allowed value.
        why: said last in the error, as "the p schedule needs it".
        optional: whether None is allowed.

    Raises:
        ValueError: names the argument, the value and what is allowed.
    """
    if optional and value is None:
        return
    if isinstance(value, bool) or not isinstance(value, Integral) or int(value) < low:
        raise ValueError(f"Invalid {name}: {value!r}. It must be an integer of at least {low}: {why}.")


def check_implementation(foreach: bool | None, fused: bool | None, where: str = "") -> None:
    """Fail where two implementations are asked for.

    Raises:
        ValueError: both are True.
    """
    if fused and foreach:
        raise ValueError(
            f"Invalid fused{where}: True, with foreach=True. Only one of them can be True; leave both None, and "
            "the best implementation available will be used."
        )
