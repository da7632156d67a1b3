"""LPSGD: SGD in an lp norm, without momentum and without state."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from torch import Tensor
from torch.optim.optimizer import ParamsT

from . import functional
from .base import LpOptimizer
from .options import (
    EPS,
    FOREACH,
    FUSED,
    GRAD_RMS,
    LR,
    LR_FACTOR,
    MAXIMIZE,
    P_MAX,
    ROUNDING,
    ROUNDING_SEED,
    SATURATION,
    WEIGHT_DECAY,
)


class LPSGD(LpOptimizer):
    """SGD in the lp norm (LPSGD of Xu and Yang, arXiv:2606.02078).

    With `rho = (p - 2) / (p - 1)`, element by element,

        theta <- (1 - lr*wd) * theta - lr * g / (|g| + eps)^rho

    With `p = 2` it is SGD. With a large `p` it is close to sign descent. Each step reads `p` from the param group. It
    starts at `p_max` and stays there until [`tie_p_schedule`][hf_lpsgd.tie_p_schedule] ties it to an LR scheduler. No
    state is kept.

    Args:
        params: parameters, named parameters or dicts that define param groups, with their own options.
        lr: learning rate, at least 0. An element changes by about `lr * |g|^(1/(p-1))` per step, so the best value
            falls as `p_max` rises.
        p_max: the largest order of the norm, at least 2.
        eps: added to `|g|` before the power, at least 0.
        weight_decay: decoupled weight decay, at least 0.
        grad_rms: None for the paper's step. A number r divides g by r and bounds it, so that an element moves by
            `lr * min(|g|/r, 1)^(1/(p-1))` and one learning rate serves every p. `"auto"` measures the root mean
            square of g over the warm-up of the LR scheduler that p is tied to, at least over 20 steps, and then
            freezes it, as a number in the param groups. Weight decay is not scaled.
        saturation: with `grad_rms`, r is `saturation * grad_rms`. None is 0.1 with `"auto"`, and 1 with a number.
        lr_factor: with `grad_rms`, the update is multiplied by it, and weight decay is not. None is 0.5 with
            `"auto"`, so that the learning rates of AdamW serve, and 1 with a number.
        rounding: how a parameter in bfloat16 or float16 is rounded: "nearest", or "stochastic", up or down
            at random so that the mean is exact. With it, changes far below the precision of the parameter are not
            lost. It has no effect on float32 and float64.
        rounding_seed: seed of the random numbers of "stochastic"; the same on all processes.
        maximize: ascend the objective.
        foreach: use the foreach implementation, or not.
        fused: use the fused implementation, or not: a Triton kernel on CUDA, compiled C++ on a CPU. Where `foreach`
            and `fused` are None, each step uses the best available implementation: fused, otherwise foreach on
            accelerators, otherwise one tensor at a time.

    Raises:
        ValueError: an option of the constructor or of a param group is out of range, a parameter is complex, or
            `fused` is True and there is no fused implementation for a parameter's device.
    """

    options = (
        LR,
        P_MAX,
        EPS,
        WEIGHT_DECAY,
        GRAD_RMS,
        SATURATION,
        LR_FACTOR,
        ROUNDING,
        ROUNDING_SEED,
        MAXIMIZE,
        FOREACH,
        FUSED,
    )

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        p_max: float = 20.0,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        *,
        grad_rms: float | Literal["auto"] | None = None,
        saturation: float | None = None,
        lr_factor: float | None = None,
        rounding: Literal["nearest", "stochastic"] = "nearest",
        rounding_seed: int = 0,
        maximize: bool = False,
        foreach: bool | None = None,
        fused: bool | None = None,
    ) -> None:
        numbers = {"lr": lr, "p_max": p_max, "eps": eps, "weight_decay": weight_decay}
        switches = {"maximize": maximize, "foreach": foreach, "fused": fused}
        sizes = {"grad_rms": grad_rms, "saturation": saturation, "lr_factor": lr_factor}
        precision = {"rounding": rounding, "rounding_seed": rounding_seed}
        super().__init__(params, **numbers, **sizes, **precision, **switches)

    def _update_group(
        self, params: list[Tensor], grads: list[Tensor], *, buffers: Sequence[Tensor | None], **hyper: Any
    ) -> None:
        functional.lpsgd(params, grads, **hyper)
