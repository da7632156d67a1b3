"""LPSGDM: SGD with momentum in an lp norm."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from . import functional
from .base import LpOptimizer


class LPSGDM(LpOptimizer):
    r"""SGD with momentum in the lp norm (LPSGDM of Xu and Yang, arXiv:2606.02078).

    With $\rho = (p - 2)/(p - 1)$, element by element,

    $$m \leftarrow \mu\, m + (1 - \mu)\, g$$
    $$\theta \leftarrow (1 - \mathrm{lr} \cdot \mathrm{wd})\,\theta - \mathrm{lr}\, m / (|m| + \epsilon)^{\rho}$$

    `p = 2` is SGD on an exponential moving average of the gradient; the larger `p`, the nearer to the sign of that
    average. `p` is read from each param group at each step. It starts at `p_max` and stays there until
    [`~hf_lpsgd.tie_p_schedule`] ties it to an LR scheduler. The state is one tensor a parameter, `momentum_buffer`,
    of the parameter's shape and dtype; it starts at zero and there is no bias correction.

    Args:
        params: parameters, named parameters or dicts that define param groups, with their own options.
        lr (`float`, *optional*, defaults to 1e-3): learning rate, at least 0. A step is about
            `lr * |m|^(1/(p-1))` in size, so the best value falls as `p_max` rises.
        momentum (`float`, *optional*, defaults to 0.9): decay of the moving average, in [0, 1).
        p_max (`float`, *optional*, defaults to 20.0): the largest order of the norm, at least 2.
        eps (`float`, *optional*, defaults to 1e-8): added to `|m|` before the power, at least 0.
        weight_decay (`float`, *optional*, defaults to 0.0): decoupled weight decay, at least 0.
        maximize (`bool`, *optional*, defaults to False): ascend the objective.
        foreach (`bool`, *optional*): use the foreach implementation, or not.
        fused (`bool`, *optional*): use the fused implementation, or not: on CUDA a Triton kernel, on the CPU compiled
            C++, both in one pass over memory. Where `foreach` and `fused` are None, the best implementation available
            is chosen anew at each step: fused, otherwise foreach on accelerators, otherwise one tensor at a time.

    Raises:
        ValueError: an option is out of range, in the constructor's arguments or in a param group, a parameter is
            complex, or `fused` is True and there is no fused implementation for a parameter's device.
    """

    hyperparameters = ("lr", "momentum", "p_max", "eps", "weight_decay")

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        momentum: float = 0.9,
        p_max: float = 20.0,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        fused: bool | None = None,
    ) -> None:
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "p_max": p_max,
            "eps": eps,
            "weight_decay": weight_decay,
            "maximize": maximize,
            "foreach": foreach,
            "fused": fused,
        }
        super().__init__(params, defaults)

    def _update_group(self, group: dict[str, Any], params: list[Tensor], grads: list[Tensor]) -> None:
        buffers = []
        for param in params:
            state = self.state[param]
            if "momentum_buffer" not in state:
                state["momentum_buffer"] = torch.zeros_like(param, memory_format=torch.preserve_format)
            buffers.append(state["momentum_buffer"])
        functional.lpsgdm(
            params,
            grads,
            buffers,
            lr=group["lr"],
            momentum=group["momentum"],
            p=group["p"],
            eps=group["eps"],
            weight_decay=group["weight_decay"],
            maximize=group["maximize"],
            foreach=group["foreach"],
            fused=group["fused"],
        )
