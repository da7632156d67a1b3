"""What rounding to the nearest of 16 bits loses, said once: small changes of the momentum, and of the weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, distributed

from ..notices import warn_once
from .kernels.hyperparameters import MOST_MOVED
from .kernels.rounding import ROUNDED
from .kernels.tensors import PLAIN_TENSOR_TYPES, local

Groups = Sequence[dict[str, Any]]


def check_momentum(groups: Groups, *, at_construction: bool = False) -> None:
    """Warn where the momentum is rounded too coarsely for its decay."""
    if at_construction and distributed.is_available() and distributed.is_initialized():
        return  # engines that join processes may yet put float32 in the place of the parameters
    for group in groups:
        momentum, named = group.get("momentum", 0.0), group.get("momentum_dtype")
        params = [] if named else [param for param in group["params"] if param.requires_grad]
        for dtype in {torch.bfloat16} if named == "bfloat16" else {param.dtype for param in params}:
            # Changes below some 0.35 eps of the value are dropped: in bfloat16, 0.98 reaches 0.88 and 0.99 only 0.79.
            reached = (1 - momentum) / (1 - momentum + 0.35 * torch.finfo(dtype).eps)
            if reached < 0.8 and group.get("rounding") == "nearest":
                warn_once(
                    f"momentum={momentum:g} is kept in {str(dtype)[6:]} and rounded to the nearest. Of a steady "
                    f"gradient, it reaches {reached:.2f} times the value. Use rounding=stochastic or "
                    "momentum_dtype=float32."
                )


def check_precision(groups: Groups, before: float | None) -> float | None:
    """Check the momentum, and whether a step at the peak of the learning rate changes half of the weights in 16 bits.

    Those of the largest parameter of each group are judged once, as soon as the learning rate is not above that of the
    update `before`. Returns the learning rate of this update, or None when nothing is left to judge.
    """
    if before is None or (torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()):  # which cannot wait
        return None
    if before == 0.0:
        check_momentum(groups)
    rates = [group["lr"] for group in groups]
    if any(isinstance(lr, Tensor) for lr in rates):  # to read it would wait for the device
        return None
    if not before >= max(rates) > 0:
        return float(max(rates))
    for group in groups:
        peak = max(group["lr"], group.get("initial_lr", 0.0), group.get("max_lr", 0.0))
        step = peak if group.get("grad_rms") is None else MOST_MOVED * peak
        values = [local(param.detach()) for param in group["params"] if param.requires_grad]
        judged = [x for x in values if x.dtype in ROUNDED and type(x) in PLAIN_TENSOR_TYPES and not x.is_meta]
        if judged and group.get("rounding") == "nearest":  # which an optimizer of another kind may not have
            largest = max(judged, key=Tensor.numel).flatten()
            some = largest[:: len(largest) // 4096 | 1]
            share = float(((some.float() + step).to(some.dtype) != some).float().mean())
            if share < 0.5:
                warn_once(
                    f"At a learning rate of {peak:g}, a step can change {share:.0%} of the elements of the bfloat16 "
                    "or float16 weights: rounding to the nearest drops smaller changes. Use rounding=stochastic, or "
                    "float32 weights (and --bf16 for speed)."
                )
                break
    return None
