"""One record for each optimizer; the parser of `optim_args`, its messages, the tests and the docs all read it."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from .base import LpOptimizer
from .lpsgd import LPSGD
from .lpsgdm import LPSGDM
from .options import Option


@dataclass(frozen=True)
class OptimizerRecord:
    """What there is to know about an optimizer.

    Attributes:
        name: as in `--optim lpsgdm`.
        cls: the class. The defaults of its constructor are the paper's step.
        description: a line for tables.
        trainer_defaults: the options whose default is another one with `--optim`, and that default.
        ordinary: of an optimizer that makes its step in the backward pass, the name of the one with the ordinary
            step; None for the others.
    """

    name: str
    cls: type[LpOptimizer]
    description: str
    trainer_defaults: Mapping[str, Any] = field(default_factory=dict, hash=False)
    ordinary: str | None = None

    @property
    def options(self) -> tuple[Option, ...]:
        """The options of its param groups, with their ranges and meanings."""
        return self.cls.options

    @property
    def defaults(self) -> dict[str, Any]:
        """The default value of each option."""
        parameters = inspect.signature(self.cls).parameters
        return {option.name: parameters[option.name].default for option in self.options}


# So that the learning rate that a script has for AdamW serves; docs/results.md has the study.
_AT_ADAMWS_RATE = {"grad_rms": "auto"}

OPTIMIZERS: dict[str, OptimizerRecord] = {
    "lpsgd": OptimizerRecord("lpsgd", LPSGD, "SGD in an lp norm; keeps no state", _AT_ADAMWS_RATE),
    "lpsgdm": OptimizerRecord(
        "lpsgdm",
        LPSGDM,
        "SGD with momentum in an lp norm; keeps one buffer per parameter",
        {**_AT_ADAMWS_RATE, "momentum": 0.6},
    ),
}
"""One record per optimizer, by the name that `--optim` takes."""

OPTIMIZERS.update(
    {
        f"{name}_layerwise": replace(
            record,
            name=f"{name}_layerwise",
            description=f"{name}, updated in the backward pass, with each gradient freed at once",
            ordinary=name,
        )
        for name, record in OPTIMIZERS.items()
    }
)
