"""What rounding to the nearest of 16 bits loses, said once: small changes of the momentum, and of the weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, distributed

from ..notices import warn_once
from .kernels.hyperparameters import MOST_MOVED
from .kernels.rounding import ROUNDED
from .kernels.tensors import PLAIN_TENSOR_TYPES

Groups = Sequence[dict[str, Any]]


class Precision:
    """Looks at the momentum before the first step, and at the weights as soon as the learning rate does not rise."""

    def __init__(self) -> None:
        self._lr: float | None = 0.0  # of the update before; None when all is said

    def begin_update(self, groups: Groups) -> None:
        if self._lr is None or is_recorded():
            return
        if self._lr == 0:
            check_momentum(groups)
        rates = [group["lr"] for group in groups]
        if any(isinstance(lr, Tensor) for lr in rates):  # to read it would wait for the device
            self._lr = None
            return
        before, self._lr = self._lr, max(rates)
        if before >= self._lr > 0:
            self._lr = None
            _check_weights(groups)


def check_momentum(groups: Groups, *, at_construction: bool = False) -> None:
    """Warn where the momentum is rounded too coarsely for its decay."""
    # An engine that joins processes may still replace parameters by others, in float32.
    may_change = at_construction and distributed.is_available() and distributed.is_initialized()
    for group in _nearest(groups):
        named, momentum = group.get("momentum_dtype"), group.get("momentum", 0.0)
        dtypes = {torch.bfloat16} if named == "bfloat16" else set[torch.dtype]()
        if named is None and not may_change:
            dtypes = {param.dtype for param in group["params"] if param.requires_grad}
        for dtype in dtypes:
            # A change below some 0.35 eps of the average is dropped, on average over the sizes of numbers.
            reached = (1 - momentum) / (1 - momentum + 0.35 * torch.finfo(dtype).eps)
            if reached < 0.8:  # in bfloat16 it is 0.88 for a momentum of 0.98 and 0.79 for one of 0.99
                warn_once(
                    f"momentum={momentum:g} is kept in {str(dtype)[6:]} and rounded to the nearest, which drops small "
                    f"changes: of a gradient that stays the same, it reaches {reached:.2f} times the value. Use "
                    "rounding=stochastic or momentum_dtype=float32."
                )


def _check_weights(groups: Groups) -> None:
    """Warn if not even the largest step at the peak of the learning rate changes half of the elements."""
    elements = changed = lr = 0.0
    for group in _nearest(groups):
        peak = max(group["lr"], group.get("initial_lr", 0.0), group.get("max_lr", 0.0))
        step = peak if group["grad_rms"] is None else MOST_MOVED * peak
        for param in group["params"]:
            local = param.to_local() if hasattr(param, "to_local") else param
            if local.dtype in ROUNDED and local.requires_grad and local.numel() and _has_values(local):
                some = local.detach().flatten()[:: local.numel() // 4096 | 1]
                share = ((some.float() + step).to(some.dtype) != some).double().mean()
                elements, changed, lr = elements + local.numel(), changed + local.numel() * float(share), max(lr, peak)
    if changed < 0.5 * elements:
        warn_once(
            f"At a learning rate of {lr:g}, a step can change {changed / elements:.0%} of the elements of the bfloat16 "
            "or float16 weights: smaller changes are dropped, as weights are rounded to the nearest. Use "
            "rounding=stochastic, or float32 weights (and --bf16 for speed)."
        )


def _nearest(groups: Groups) -> list[dict[str, Any]]:
    return [group for group in groups if group.get("rounding") != "stochastic"]


def _has_values(tensor: Tensor) -> bool:
    return type(tensor) in PLAIN_TENSOR_TYPES and not tensor.is_meta


def is_recorded() -> bool:
    """Say whether the operations of a step are recorded now, to be repeated later."""
    return torch.compiler.is_compiling() or (torch.cuda.is_available() and torch.cuda.is_current_stream_capturing())
