"""What rounding to the nearest of 16 bits loses, said once: small changes of the momentum, and of the weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, distributed

from ..notices import warn_once
from .kernels.hyperparameters import MOST_MOVED
from .kernels.rounding import ROUNDED
from .kernels.tensors import is_recorded, local

Groups = Sequence[dict[str, Any]]


def check_momentum(groups: Groups, *, at_construction: bool = False) -> None:
    """Warn where the momentum is rounded too coarsely for its decay."""
    # Engines that join processes may yet put float32 in the place of the parameters.
    may_change = at_construction and distributed.is_available() and distributed.is_initialized()
    for group in groups:
        momentum, named = group.get("momentum", 0.0), group.get("momentum_dtype")
        params = [] if named or may_change else [param for param in group["params"] if param.requires_grad]
        for dtype in {torch.bfloat16} if named == "bfloat16" else {param.dtype for param in params}:
            # Changes below some 0.35 eps of the value are dropped: in bfloat16, 0.98 reaches 0.88 and 0.99 only 0.79.
            reached = (1 - momentum) / (1 - momentum + 0.35 * torch.finfo(dtype).eps)
            if reached < 0.8 and group["rounding"] == "nearest":
                warn_once(
                    f"momentum={momentum:g} is kept in {str(dtype)[6:]} and rounded to the nearest: of a gradient that "
                    f"stays, it reaches {reached:.2f} times the value. Use rounding=stochastic or momentum_dtype=float32."
                )


def check_precision(groups: Groups, before: float | None) -> float | None:
    """Check the momentum, and whether a step at the peak of the learning rate changes half of the weights in 16 bits.

    The weights are judged once, as soon as the learning rate is not above that of the update `before`. Returns the
    learning rate of this update, or None when nothing is left to judge.
    """
    if before is None or is_recorded():
        return None
    if before == 0.0:
        check_momentum(groups)
    rates = [group["lr"] for group in groups]
    if any(isinstance(lr, Tensor) for lr in rates):  # to read it would wait for the device
        return None
    if not before >= max(rates) > 0:
        return float(max(rates))
    elements = changed = highest = 0.0
    for group in groups:
        peak = max(group["lr"], group.get("initial_lr", 0.0), group.get("max_lr", 0.0))
        step = peak if group["grad_rms"] is None else MOST_MOVED * peak
        for param in group["params"] if group["rounding"] == "nearest" else ():
            if param.dtype in ROUNDED and param.requires_grad and not param.is_meta:
                values = local(param.detach()).flatten()
                stride = len(values) // 4096 | 1
                some = values[::stride]
                elements += stride * len(some)
                changed += stride * float(((some.float() + step).to(some.dtype) != some).sum())
                highest = max(highest, peak)
    if changed < 0.5 * elements:
        warn_once(
            f"At a learning rate of {highest:g}, a step can change {changed / elements:.0%} of the elements of the "
            "bfloat16 or float16 weights: rounding to the nearest drops smaller changes. Use rounding=stochastic, or "
            "float32 weights (and --bf16 for speed)."
        )
    return None
