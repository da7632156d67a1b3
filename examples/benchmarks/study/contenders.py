"""The optimizers of the study, each as a list of real optimizers that step together."""

import math
from collections.abc import Callable, Iterable
from typing import Any

from torch import nn
from torch.optim import SGD, AdamW, Optimizer

from hf_lpsgd import LPSGD, LPSGDM
from hf_lpsgd.optim.grad_rms import MEASURED, Measurement

__all__ = ["make_optimizers", "reference_size_of"]


def make_optimizers(model: nn.Module, optimizer: str, rate: float, options: dict[str, Any]) -> list[Optimizer]:
    """The optimizers that train `model`: one, except where a variant measures each group or tensor by itself."""
    params = [
        {"params": [param for param in model.parameters() if param.dim() > 1]},  # as the Trainer groups them
        {"params": [param for param in model.parameters() if param.dim() <= 1]},
    ]
    if optimizer == "Lion":
        from lion_pytorch import Lion

        return [Lion(params, lr=rate, **options)]
    if optimizer == "SGD":
        return [SGD(params, lr=rate, **{"momentum": 0.9, **options})]
    if optimizer == "AdamW":
        return [AdamW(params, lr=rate, **{"weight_decay": 0.0, **options})]
    variant = options.get("variant", "")
    options = {name: value for name, value in options.items() if name != "variant"}
    cls: Callable[..., Optimizer] = {"LPSGD": LPSGD, "LPSGDM": LPSGDM}[optimizer]
    if variant in ("unbounded", "every step"):
        cls = {"unbounded": _Unbounded, "every step": _EveryStep}[variant]
    pieces: Iterable[Any] = [params]
    if variant == "per group":
        pieces = [[group] for group in params]
    if variant == "per tensor":
        pieces = [[param] for group in params for param in group["params"]]
    return [cls(piece, lr=rate, **options) for piece in pieces]


def reference_size_of(optimizers: list[Optimizer]) -> float | None:
    """The frozen reference size of the first param group, if it has one."""
    value = optimizers[0].param_groups[0].get("grad_rms")
    return value if isinstance(value, float) else None


class _Unbounded(LPSGDM):
    _bounded = False


class _LastUpdateOnly(Measurement):
    """Never frozen, and nothing is kept of the updates before the last."""

    def begin_call(self, groups: Any, first: Any) -> None:
        self.updates_wanted = math.inf  # type: ignore[assignment]
        for group in groups:
            _, _, squares, count = group[MEASURED]
            if count:
                group[MEASURED] = [0.0, 0, squares, count]
        super().begin_call(groups, first)


class _EveryStep(LPSGDM):
    """The reference size of a step is that of the update before it."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._measurement = _LastUpdateOnly()
