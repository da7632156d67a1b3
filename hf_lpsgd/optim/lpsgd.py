"""LPSGD: SGD in an lp norm, without momentum and without state."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.optim.optimizer import ParamsT

from . import functional
from .base import LpOptimizer


class LPSGD(LpOptimizer):
    r"""SGD in the lp norm (LPSGD of Xu and Yang, arXiv:2606.02078).

    With $\rho = (p - 2)/(p - 1)$, element by element,

    $$\theta \leftarrow (1 - \mathrm{lr} \cdot \mathrm{wd})\,\theta - \mathrm{lr}\, g / (|g| + \epsilon)^{\rho}$$

    `p = 2` is SGD; the larger `p`, the nearer to sign descent. `p` is read from each param group at each step. It
    starts at `p_max` and stays there until [`~hf_lpsgd.tie_p_schedule`] ties it to an LR scheduler. No state is kept.

    Args:
        params: parameters, named parameters or dicts that define param groups, with their own options.
        lr (`float`, *optional*, defaults to 1e-3): learning rate, at least 0. A step is about
            `lr * |g|^(1/(p-1))` in size, so the best value falls as `p_max` rises.
        p_max (`float`, *optional*, defaults to 20.0): the largest order of the norm, at least 2.
        eps (`float`, *optional*, defaults to 1e-8): added to `|g|` before the power, at least 0.
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

    hyperparameters = ("lr", "p_max", "eps", "weight_decay")

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
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
            "p_max": p_max,
            "eps": eps,
            "weight_decay": weight_decay,
            "maximize": maximize,
            "foreach": foreach,
            "fused": fused,
        }
        super().__init__(params, defaults)

    def _update_group(self, group: dict[str, Any], params: list[Tensor], grads: list[Tensor]) -> None:
        functional.lpsgd(
            params,
            grads,
            lr=group["lr"],
            p=group["p"],
            eps=group["eps"],
            weight_decay=group["weight_decay"],
            maximize=group["maximize"],
            foreach=group["foreach"],
            fused=group["fused"],
        )
