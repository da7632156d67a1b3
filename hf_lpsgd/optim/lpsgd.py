"""LPSGD and LPSGDM: SGD in an lp norm, without momentum and with it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from .base import LpOptimizer
from .kernels.rounding import FLOAT8, from_float8, rounded
from .kernels.tensors import local
from .options import MOMENTUM, MOMENTUM_DTYPE, MOMENTUM_UNIT, OF_LPSGD

# None stands for the dtype of the parameter.
_DTYPES = {None: None, "bfloat16": torch.bfloat16, "float32": torch.float32, "float8": FLOAT8}


class LPSGD(LpOptimizer):
    """SGD in the lp norm (LPSGD of Xu and Yang, arXiv:2606.02078).

    With `rho = (p - 2) / (p - 1)`, element by element,

        theta <- (1 - lr*wd) * theta - lr * g / (|g| + eps)^rho

    With `p = 2` it is SGD. With a large `p` it is close to sign descent. No state is kept. p is `p_max`, unless
    [`tie_p_schedule`][hf_lpsgd.tie_p_schedule] ties it to an LR scheduler, or `p_schedule` is "lr".

    Arguments and errors are those of [`LPSGDM`][hf_lpsgd.LPSGDM], with the gradient g in place of its moving average
    m, and without `momentum` and `momentum_dtype`.
    """

    options = OF_LPSGD

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        p_max: float = 20.0,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        *,
        grad_rms: float | Literal["auto"] | None = None,
        p_schedule: Literal["lr"] | None = None,
        rounding: Literal["nearest", "stochastic"] = "nearest",
        rounding_seed: int = 0,
        maximize: bool = False,
        foreach: bool | None = None,
        fused: bool | None = None,
    ) -> None:
        numbers = {"lr": lr, "p_max": p_max, "eps": eps, "weight_decay": weight_decay, "grad_rms": grad_rms}
        precision = {"rounding": rounding, "rounding_seed": rounding_seed}
        switches = {"p_schedule": p_schedule, "maximize": maximize, "foreach": foreach, "fused": fused}
        super().__init__(params, **numbers, **precision, **switches)


class LPSGDM(LpOptimizer):
    """SGD with momentum in the lp norm (LPSGDM of Xu and Yang, arXiv:2606.02078).

    With `rho = (p - 2) / (p - 1)`, element by element,

        m     <- momentum * m + (1 - momentum) * g
        theta <- (1 - lr*wd) * theta - lr * m / (|m| + eps)^rho

    With `p = 2` it is SGD on an exponential moving average of the gradient. With a large `p` the step is close to the
    sign of that average. p is `p_max`, unless [`tie_p_schedule`][hf_lpsgd.tie_p_schedule] ties it to an LR
    scheduler. The state is one tensor per parameter, `momentum_buffer`, of the parameter's shape. It starts at zero.
    There is no bias correction.

    Args:
        params: parameters, named parameters or dicts that define param groups, with their own options.
        lr: learning rate, at least 0. An element changes by about `lr * |m|^(1/(p-1))` per step, so the best value
            falls as `p_max` rises.
        momentum: decay of the moving average, in [0, 1).
        p_max: the largest order of the norm, at least 2.
        eps: added to `|m|` before the power, at least 0.
        weight_decay: decoupled weight decay, at least 0.
        grad_rms: None for the paper's step. A number r is the root mean square of m, and an element moves by
            `lr/2 * min(10 |m|/r, 1)^(1/(p-1))`. So the learning rates of AdamW serve, for every p, and eps is
            relative to r. `"auto"` measures r over the warm-up of the LR scheduler that p is tied to, at least over
            20 updates, and then freezes it, as a number in the param groups. The first update only measures, and
            changes no parameter. Weight decay is not scaled.
        p_schedule: "lr" lets p - 2 be proportional to the learning rate of the param group. p is `p_max` at the
            largest rate so far. It is for configs that name a class and can call nothing. A tie replaces it.
        momentum_dtype: dtype in which the momentum is kept, "bfloat16", "float32" or "float8", or None for that of the
            parameter. The arithmetic is in float32, and the momentum is rounded when it is stored. "float8" takes a
            byte, and needs `grad_rms` and `rounding="stochastic"`: `momentum_buffer` has the bits of
            `torch.float8_e5m2` as uint8, and `momentum_unit` in the param group is what 1 stands for.
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

    options = (*LPSGD.options, MOMENTUM, MOMENTUM_DTYPE)

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
        p_schedule: Literal["lr"] | None = None,
        momentum_dtype: torch.dtype | Literal["bfloat16", "float32", "float8"] | None = None,
        rounding: Literal["nearest", "stochastic"] = "nearest",
        rounding_seed: int = 0,
        maximize: bool = False,
        foreach: bool | None = None,
        fused: bool | None = None,
    ) -> None:
        numbers = {"lr": lr, "momentum": momentum, "p_max": p_max, "eps": eps, "weight_decay": weight_decay}
        precision = {"momentum_dtype": momentum_dtype, "rounding": rounding, "rounding_seed": rounding_seed}
        switches = {"maximize": maximize, "foreach": foreach, "fused": fused}
        super().__init__(params, **numbers, grad_rms=grad_rms, p_schedule=p_schedule, **precision, **switches)

    def buffers(self, group: dict[str, Any], params: Sequence[Tensor]) -> list[Tensor]:
        """Return the momentum buffers of `params`, made where there are none yet."""
        buffers, unit = [], group.get(MOMENTUM_UNIT, 0.0)
        named = _DTYPES[group["momentum_dtype"]]
        for param in params:
            state, dtype = self.state[param], named or param.dtype
            buffer = state.get("momentum_buffer")
            if buffer is None or (buffer.dtype is not dtype and (unit or dtype is not FLOAT8)):
                state["momentum_buffer"] = new = torch.zeros_like(param, dtype=dtype)
                if buffer is not None:  # the option was changed
                    values = local(buffer)
                    values = from_float8(values, unit or 1.0, torch.float32) if buffer.dtype == FLOAT8 else values
                    local(new).copy_(rounded(values, 2**15, FLOAT8, unit) if dtype == FLOAT8 else values)
            buffers.append(state["momentum_buffer"])
        return buffers

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state that `state_dict` gave; the momentum keeps the dtype that `momentum_dtype` says.

        Raises:
            ValueError: the state is that of another optimizer or of other param groups; nothing was loaded.
        """
        used: dict[str, Any] = {}  # as the hooks before have left it
        with (
            self.register_load_state_dict_pre_hook(lambda _, given: used.update(given)),
            self.register_load_state_dict_post_hook(lambda _: self._restore_buffers(used), prepend=True),
        ):
            super().load_state_dict(state_dict)

    def _restore_buffers(self, state_dict: dict[str, Any]) -> None:
        # torch has cast every buffer to its parameter's dtype, which rounds a float32 buffer of a bfloat16 parameter.
        for saved, group in zip(state_dict["param_groups"], self.param_groups, strict=True):
            for identity, param in zip(saved["params"], group["params"], strict=True):
                buffer = state_dict["state"].get(identity, {}).get("momentum_buffer")
                dtype = _DTYPES[group["momentum_dtype"]] or param.dtype
                if buffer is not None and FLOAT8 in (buffer.dtype, dtype):
                    dtype = buffer.dtype  # the next step converts it
                if buffer is not None and dtype != param.dtype:
                    self.state[param]["momentum_buffer"] = buffer.to(device=param.device, dtype=dtype)
