"""One cell of the study: a model trained by one optimizer at one learning rate with one seed."""

import math
import time
import warnings
from typing import Any

import torch
from torch.nn.functional import cross_entropy
from torch.optim.lr_scheduler import LambdaLR

from hf_lpsgd import tie_p_schedule
from hf_lpsgd.optim.base import LpOptimizer

from .contenders import make_optimizers, reference_size_of
from .tasks import TASKS

__all__ = ["train"]

WARMUP = 0.1
CLIP = 1.0


def train(cell: dict[str, Any]) -> dict[str, Any]:
    """Train one cell; the accuracy on the data held out, the mean loss of the last epoch, and the time it took.

    Args:
        cell: `task`, `optimizer`, `rate`, `seed`, and `options`: those of the optimizer's constructor, and
            `p_schedule`.
    """
    warnings.filterwarnings("ignore", message="lr_scheduler.step")
    began = time.perf_counter()
    task = TASKS[cell["task"]]
    data = task.data()
    torch.manual_seed(cell["seed"])
    model = task.model()
    options = dict(cell["options"])
    schedule = options.pop("p_schedule", "cosine")
    optimizers = make_optimizers(model, cell["optimizer"], cell["rate"], options)
    inputs, labels = data.train
    steps_per_epoch = len(inputs) // task.batch_size
    steps = steps_per_epoch * task.epochs
    warmup = round(WARMUP * steps)

    def factor(step: int) -> float:
        if step < warmup:
            return step / warmup
        return 0.5 * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup)))

    schedulers = [LambdaLR(optimizer, factor) for optimizer in optimizers]
    for optimizer, scheduler in zip(optimizers, schedulers, strict=True):
        if isinstance(optimizer, LpOptimizer):
            tie_p_schedule(optimizer, scheduler, schedule, num_training_steps=steps, num_warmup_steps=warmup)
    generator = torch.Generator().manual_seed(cell["seed"])
    parameters = list(model.parameters())
    model.train()
    losses = []
    for step in range(steps):
        place = step % steps_per_epoch
        if place == 0:
            order = torch.randperm(len(inputs), generator=generator)
        batch = order[place * task.batch_size :][: task.batch_size]
        loss = cross_entropy(model(inputs[batch]).flatten(0, -2), labels[batch].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, CLIP)
        for optimizer, scheduler in zip(optimizers, schedulers, strict=True):
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
        losses.append(loss.item())
        if not math.isfinite(losses[-1]):
            break
    model.eval()
    inputs, labels = data.held_out
    with torch.no_grad():
        accuracy = (model(inputs).argmax(-1) == labels).float().mean().item()
    return {
        "accuracy": round(accuracy, 5),
        "loss": round(sum(losses[-steps_per_epoch:]) / steps_per_epoch, 5),
        "grad_rms": reference_size_of(optimizers),
        "seconds": round(time.perf_counter() - began, 2),
    }
