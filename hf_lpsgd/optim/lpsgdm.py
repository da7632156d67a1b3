"""LPSGDM: SGD with momentum in an lp norm."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, Literal, cast

import torch
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
    MOMENTUM,
    MOMENTUM_DTYPE,
    P_MAX,
    ROUNDING,
    ROUNDING_SEED,
    SATURATION,
    WEIGHT_DECAY,
)

_DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}


class LPSGDM(LpOptimizer):
    """SGD with momentum in the lp norm (LPSGDM of Xu and Yang, arXiv:2606.02078).

    With `rho = (p - 2) / (p - 1)`, element by element,

        m     <- momentum * m + (1 - momentum) * g
        theta <- (1 - lr*wd) * theta - lr * m / (|m| + eps)^rho

    With `p = 2` it is SGD on an exponential moving average of the gradient. With a large `p` the step is close to the
    sign of that average. Each step reads `p` from the param group. It starts at `p_max` and stays there until
    [`tie_p_schedule`][hf_lpsgd.tie_p_schedule] ties it to an LR scheduler. The state is one tensor per parameter,
    `momentum_buffer`, of the parameter's shape. It starts at zero, and there is no bias correction.

    Args:
        params: parameters, named parameters or dicts that define param groups, with their own options.
        lr: learning rate, at least 0. An element changes by about `lr * |m|^(1/(p-1))` per step, so the best value
            falls as `p_max` rises.
        momentum: decay of the moving average, in [0, 1).
        p_max: the largest order of the norm, at least 2.
        eps: added to `|m|` before the power, at least 0.
        weight_decay: decoupled weight decay, at least 0.
        grad_rms: None for the paper's step. A number r divides m by r and bounds it, so that an element moves by
            `lr * min(|m|/r, 1)^(1/(p-1))` and one learning rate serves every p. `"auto"` measures the root mean
            square of m over the warm-up of the LR scheduler that p is tied to, at least over 20 steps, and then
            freezes it, as a number in the param groups. Weight decay is not scaled.
        saturation: with `grad_rms`, r is `saturation * grad_rms`. None is 0.1 with `"auto"`, and 1 with a number.
        lr_factor: with `grad_rms`, the update is multiplied by it, and weight decay is not. None is 0.5 with
            `"auto"`, so that the learning rates of AdamW serve, and 1 with a number.
        momentum_dtype: dtype in which the momentum is kept, "bfloat16" or "float32", or None for that of the
            parameter. The arithmetic is in float32, and the momentum is rounded when it is stored.
        rounding: how parameters and momentum in bfloat16 or float16 are rounded: "nearest", or "stochastic", up or
            down at random so that the mean is exact. With it, changes far below the precision of a parameter are not
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
        MOMENTUM,
        EPS,
        WEIGHT_DECAY,
        GRAD_RMS,
        SATURATION,
        LR_FACTOR,
        MOMENTUM_DTYPE,
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
        momentum: float = 0.9,
        p_max: float = 20.0,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        *,
        grad_rms: float | Literal["auto"] | None = None,
        saturation: float | None = None,
        lr_factor: float | None = None,
        momentum_dtype: torch.dtype | Literal["bfloat16", "float32"] | None = None,
        rounding: Literal["nearest", "stochastic"] = "nearest",
        rounding_seed: int = 0,
        maximize: bool = False,
        foreach: bool | None = None,
        fused: bool | None = None,
    ) -> None:
        numbers = {"lr": lr, "momentum": momentum, "p_max": p_max, "eps": eps, "weight_decay": weight_decay}
        switches = {"maximize": maximize, "foreach": foreach, "fused": fused}
        sizes = {"grad_rms": grad_rms, "saturation": saturation, "lr_factor": lr_factor}
        precision = {"momentum_dtype": momentum_dtype, "rounding": rounding, "rounding_seed": rounding_seed}
        super().__init__(params, **numbers, **sizes, **precision, **switches)

    def _buffers(self, group: dict[str, Any], params: list[Tensor]) -> list[Tensor]:
        buffers = []
        named = None if group["momentum_dtype"] is None else _DTYPES[group["momentum_dtype"]]
        for param in params:
            state = self.state[param]
            buffer = state.get("momentum_buffer")
            dtype = named or param.dtype
            if buffer is None:
                buffer = torch.zeros_like(param, dtype=dtype, memory_format=torch.preserve_format)
                state["momentum_buffer"] = buffer
            elif buffer.dtype is not dtype:  # the option was changed
                state["momentum_buffer"] = buffer = buffer.to(dtype)
            buffers.append(buffer)
        return buffers

    def _update_group(
        self, params: list[Tensor], grads: list[Tensor], *, buffers: Sequence[Tensor | None], **hyper: Any
    ) -> None:
        functional.lpsgdm(params, grads, cast("list[Tensor]", buffers), **hyper)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state that `state_dict` gave; the momentum keeps the dtype that `momentum_dtype` says.

        Raises:
            ValueError: the state is that of another optimizer or of other param groups; nothing was loaded.
        """
        used: list[dict[str, Any]] = []  # as the hooks before have left it
        hooks = [
            self.register_load_state_dict_pre_hook(lambda _, given: used.append(given)),
            self.register_load_state_dict_post_hook(lambda _: self._restore_buffers(used[-1]), prepend=True),
        ]
        try:
            super().load_state_dict(state_dict)
        finally:
            for hook in hooks:
                hook.remove()

    def _restore_buffers(self, state_dict: dict[str, Any]) -> None:
        # torch has cast every buffer to its parameter's dtype, which rounds a float32 buffer of a bfloat16 parameter.
        saved = itertools.chain.from_iterable(group["params"] for group in state_dict["param_groups"])
        present = [(group, param) for group in self.param_groups for param in group["params"]]
        for identity, (group, param) in zip(saved, present, strict=True):
            buffer = state_dict["state"].get(identity, {}).get("momentum_buffer")
            name = group["momentum_dtype"]
            dtype = param.dtype if name is None else _DTYPES[name]
            if buffer is not None and dtype != param.dtype:
                self.state[param]["momentum_buffer"] = buffer.to(device=param.device, dtype=dtype)
