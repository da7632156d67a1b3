"""One record for each optimizer; the parser of `optim_args`, its messages, the tests and the docs all read it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from .base import LpOptimizer
from .lpsgd import LPSGD, LPSGDM
from .options import Option


@dataclass(frozen=True)
class OptimizerRecord:
    """What there is to know about an optimizer."""

    name: str  # as in `--optim lpsgdm`
    cls: type[LpOptimizer]  # the defaults of its constructor are the paper's step
    description: str  # a line for tables
    trainer_defaults: Mapping[str, Any] = field(default_factory=dict, hash=False)  # those of `--optim` that differ
    ordinary: str | None = None  # the name of the one with the ordinary step, where this steps in the backward pass

    @property
    def options(self) -> tuple[Option, ...]:
        """The options of its param groups."""
        return self.cls.options


_ORDINARY = (
    # grad_rms="auto" lets the learning rate serve that a script has for AdamW; docs/results.md has the study.
    OptimizerRecord("lpsgd", LPSGD, "SGD in an lp norm; keeps no state", {"grad_rms": "auto"}),
    OptimizerRecord(
        "lpsgdm",
        LPSGDM,
        "SGD with momentum in an lp norm; keeps one buffer per parameter",
        {"grad_rms": "auto", "momentum": 0.6},
    ),
)
_BACKWARD = "{}, updated in the backward pass, with each gradient freed at once"
_LAYERWISE = (
    replace(one, name=f"{one.name}_layerwise", description=_BACKWARD.format(one.name), ordinary=one.name)
    for one in _ORDINARY
)

OPTIMIZERS: dict[str, OptimizerRecord] = {record.name: record for record in (*_ORDINARY, *_LAYERWISE)}
"""One record per optimizer, by the name that `--optim` takes."""
