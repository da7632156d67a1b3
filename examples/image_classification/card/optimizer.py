"""What a model card tells of the optimizer: of the one in force, or where there is none, of the one asked for."""

from __future__ import annotations

from typing import Any

import torch

from hf_lpsgd.optim.base import LpOptimizer
from hf_lpsgd.optim.kernels.choice import implementation_for
from hf_lpsgd.optim.measurement import MEASURED, reference_size
from hf_lpsgd.trainer import OPTIMIZERS, OptimArgs
from hf_lpsgd.trainer.optim_args import name_of
from hf_lpsgd.wrappers import unwrap_optimizer

__all__ = [
    "implementation_of",
    "measured_over",
    "optimizer_name",
    "optimizer_title",
    "record_of",
    "settings_of",
    "size_of_gradient",
]

_IMPLEMENTATIONS = {"single": "one tensor at a time"}


def record_of(trainer: Any) -> Any:
    """The record of LPSGD or of LPSGDM; None where the optimizer is another."""
    optimizer, asked = unwrap_optimizer(trainer.optimizer), OPTIMIZERS.get(name_of(trainer.args.optim))
    if optimizer is None or (asked is not None and type(optimizer) is asked.cls):
        return asked
    for kind in type(optimizer).__mro__:
        for record in OPTIMIZERS.values():
            if record.cls is kind:
                return record
    return None


def optimizer_name(trainer: Any) -> str:
    """As `--optim` names it, or its class where that is another than the one that `--optim` asks for."""
    record, asked = record_of(trainer), name_of(trainer.args.optim)
    if record is not None:
        return record.name
    return type(unwrap_optimizer(trainer.optimizer)).__name__ if asked in OPTIMIZERS else asked


def optimizer_title(trainer: Any) -> str:
    record = record_of(trainer)
    return f"`{optimizer_name(trainer)}`" if record is None else record.cls.__name__


def _group(trainer: Any) -> dict[str, Any]:
    """The first param group; a resumed run takes it from its checkpoint."""
    optimizer = unwrap_optimizer(trainer.optimizer)
    if isinstance(optimizer, LpOptimizer):
        return optimizer.param_groups[0]
    args, optim = trainer.args, name_of(trainer.args.optim)
    given = OptimArgs.parse(optim, args.optim_args).optimizer_kwargs
    some = [torch.zeros(1, device=args.device)]
    return OPTIMIZERS[optim].cls(some, weight_decay=args.weight_decay, **given).param_groups[0]


def settings_of(trainer: Any) -> dict[str, Any]:
    """The options in force, without what else the param group may hold."""
    record, group = record_of(trainer), _group(trainer)
    return {option.name: group[option.name] for option in record.options}


def size_of_gradient(trainer: Any) -> float | None:
    """The reference size of the gradient in force, if there is one."""
    return reference_size(_group(trainer))


def measured_over(trainer: Any) -> str:
    """In words, over how many updates the reference size was measured; empty where it was given."""
    group = _group(trainer)
    if MEASURED not in group:
        return ", as given"
    _, updates, _, unfinished = group[MEASURED]
    return f", measured over {updates + (1 if unfinished else 0)} updates"


def implementation_of(trainer: Any) -> str:
    """What computes the step: fused, foreach, or one tensor at a time."""
    group = _group(trainer)
    device = next((parameter.device for parameter in group["params"]), trainer.args.device)
    name = implementation_for(device, group["foreach"], group["fused"])
    return f"{_IMPLEMENTATIONS.get(name, name)}, on {device.type}"
