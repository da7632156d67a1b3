"""One record for each optimizer; the parser of `optim_args`, its messages, the tests and the docs all read it."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

from .base import LpOptimizer
from .lpsgd import LPSGD
from .lpsgdm import LPSGDM
from .options import Number, NumberOrWord, Switch


@dataclass(frozen=True)
class OptimizerRecord:
    """What there is to know about an optimizer: its name, as in `--optim lpsgdm`, its class, and a line for tables."""

    name: str
    cls: type[LpOptimizer]
    description: str

    @property
    def options(self) -> tuple[Number | NumberOrWord | Switch, ...]:
        """The options of its param groups, with their ranges and meanings."""
        return self.cls.options

    @property
    def defaults(self) -> dict[str, Any]:
        """The default value of each option."""
        parameters = inspect.signature(self.cls).parameters
        return {option.name: parameters[option.name].default for option in self.options}


OPTIMIZERS: dict[str, OptimizerRecord] = {
    "lpsgd": OptimizerRecord("lpsgd", LPSGD, "SGD in an lp norm; keeps no state"),
    "lpsgdm": OptimizerRecord("lpsgdm", LPSGDM, "SGD with momentum in an lp norm; keeps one buffer per parameter"),
}
"""One record per optimizer, by the name that `--optim` takes."""
