"""An optimizer, an LR scheduler with a warm-up, and a run of both that tells each step's p and learning rate."""

import torch
from torch.optim import lr_scheduler as torch_schedulers

from hf_lpsgd import LPSGDM

STEPS, WARMUP, P_MAX = 12, 3, 20.0


def make_optimizer(cls=LPSGDM, **options):
    param = torch.ones(3, requires_grad=True)
    return cls([param], **{"lr": 0.1, "p_max": P_MAX, **options})


def linear_warmup(optimizer, warmup=WARMUP, steps=STEPS):
    def factor(step):
        return step / warmup if step < warmup else max(0.0, (steps - step) / (steps - warmup))

    return torch_schedulers.LambdaLR(optimizer, factor)


def run(optimizer, scheduler, steps=STEPS):
    """Train `steps` steps; the p and lr that each step was made with."""
    ps, lrs = [], []
    for _ in range(steps):
        for group in optimizer.param_groups:
            for param in group["params"]:
                param.grad = torch.ones_like(param)
        lrs.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        ps.append(optimizer.param_groups[0]["p"])
        scheduler.step()
    return ps, lrs
