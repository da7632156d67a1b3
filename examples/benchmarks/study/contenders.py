"""The optimizers of the study."""

from collections.abc import Callable
from typing import Any

from torch import nn
from torch.optim import SGD, AdamW, Optimizer

from hf_lpsgd import LPSGD, LPSGDM

__all__ = ["make_optimizer", "reference_size_of"]


def make_optimizer(model: nn.Module, optimizer: str, rate: float, options: dict[str, Any]) -> Optimizer:
    """The optimizer that trains `model`."""
    params = [
        {"params": [param for param in model.parameters() if param.dim() > 1]},  # as the Trainer groups them
        {"params": [param for param in model.parameters() if param.dim() <= 1]},
    ]
    if optimizer == "Lion":
        from lion_pytorch import Lion

        return Lion(params, lr=rate, **options)
    if optimizer == "SGD":
        return SGD(params, lr=rate, **{"momentum": 0.9, **options})
    if optimizer == "AdamW":
        return AdamW(params, lr=rate, **{"weight_decay": 0.0, **options})
    cls: Callable[..., Optimizer] = {"LPSGD": LPSGD, "LPSGDM": LPSGDM}[optimizer]
    return cls(params, lr=rate, **options)


def reference_size_of(optimizer: Optimizer) -> float | None:
    """The frozen reference size of the first param group, if it has one."""
    value = optimizer.param_groups[0].get("grad_rms")
    return value if isinstance(value, float) else None
