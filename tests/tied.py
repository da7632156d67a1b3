"""An optimizer of one or more groups, an LR scheduler for it, single steps, and what was said of p."""

import torch
from torch.optim import lr_scheduler as torch_schedulers

from hf_lpsgd import LPSGDM

STEPS, P_MAX = 40, 20.0


def make_optimizer(groups=1, **options):
    params = [{"params": [torch.ones(3, requires_grad=True)]} for _ in range(groups)]
    return LPSGDM(params, **{"lr": 0.1, "p_max": P_MAX, **options})


def linear(optimizer, steps=STEPS):
    return torch_schedulers.LambdaLR(optimizer, lambda step: 1 - step / steps)


def step(optimizer):
    for group in optimizer.param_groups:
        for param in group["params"]:
            param.grad = torch.ones_like(param)
    optimizer.step()


def messages(caught):
    return [str(warning.message) for warning in caught if "p " in str(warning.message)]
