"""One cell of the study: a model trained by one optimizer at one learning rate with one seed."""

import math
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim.lr_scheduler import LambdaLR

from hf_lpsgd import LPSGD, LPSGDM, step_in_backward, tie_p_schedule

from .contenders import make_optimizer, reference_size_of
from .tasks import TASKS

__all__ = ["train"]

WARMUP = 0.1
CLIP = 1.0
POINTS = 20  # of a curve
WATCHED = 500  # of the examples held out, on which a curve has the accuracy


Watch = Callable[[int, int, nn.Module, torch.optim.Optimizer], None]


def train(cell: dict[str, Any], device: str = "cpu", watch: Watch | None = None) -> dict[str, Any]:
    """Train one cell; its accuracy, the mean loss of the last epoch, and the time it took.

    Args:
        cell: `task`, `optimizer`, `rate`, `seed`, and `options`: those of the optimizer's constructor, and
            `p_schedule`, `p_granularity`, `batch_size`, `layerwise`, `clip`, the largest norm of the gradient, 0 for
            none, and `dtype`, that of the weights, the activations and the gradients. `split` is `validation` where
            the accuracy is that on the examples held out, `test` where it is that on the test data, along with a curve
            over training. Without it there are no test data, and all others are trained on.
        device: what to train on.
        watch: called before each step with its number, the number of steps, the model and the optimizer.
    """
    warnings.filterwarnings("ignore", message="lr_scheduler.step")
    began = time.perf_counter()
    task = TASKS[cell["task"]]
    if task.script:
        from .trainer_cell import train_by_trainer

        result = train_by_trainer(cell, task, device)
    else:
        result = _train_by_loop(cell, device, watch)
    return {**result, "seconds": round(time.perf_counter() - began, 2)}


def accuracy_of(model: nn.Module, inputs: Tensor, labels: Tensor) -> float:
    was_training = model.training
    model.eval()
    with torch.no_grad():
        right = sum(
            int((model(piece).argmax(-1) == wanted).sum())
            for piece, wanted in zip(inputs.split(500), labels.split(500), strict=True)
        )
    model.train(was_training)
    return right / labels.numel()


def _train_by_loop(cell: dict[str, Any], device: str, watch: Watch | None) -> dict[str, Any]:
    task = TASKS[cell["task"]]
    data = task.data().with_test() if "split" in cell else task.data()
    torch.manual_seed(cell["seed"])
    options = dict(cell["options"])
    dtype = getattr(torch, options.pop("dtype", "float32"))
    data = data.on(device, dtype)
    model = task.model().to(device, dtype)
    tie = {name: options.pop(name) for name in ("p_schedule", "p_granularity") if name in options}
    batch_size, layerwise = options.pop("batch_size", task.batch_size), options.pop("layerwise", False)
    clip = options.pop("clip", 0 if layerwise else CLIP)
    optimizer = make_optimizer(model, cell["optimizer"], cell["rate"], options)
    inputs, labels = data.train
    steps_per_epoch = len(inputs) // batch_size
    steps = steps_per_epoch * task.epochs
    warmup = round(WARMUP * steps)

    def factor(step: int) -> float:
        if step < warmup:
            return step / warmup
        return 0.5 * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup)))

    scheduler = LambdaLR(optimizer, factor)
    if isinstance(optimizer, LPSGD | LPSGDM):
        of_epochs = {"steps_per_epoch": steps_per_epoch} if tie.get("p_granularity") == "epoch" else {}
        tie_p_schedule(
            optimizer,
            scheduler,
            tie.get("p_schedule", "cosine"),
            num_training_steps=steps,
            num_warmup_steps=warmup,
            granularity=tie.get("p_granularity", "step"),
            **of_epochs,
        )
    if layerwise:
        step_in_backward(optimizer)  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(cell["seed"])
    parameters = list(model.parameters())
    model.train()
    losses: list[float] = []
    curve: list[dict[str, float]] = []
    for step in range(steps):
        place = step % steps_per_epoch
        if place == 0:
            order = torch.randperm(len(inputs), generator=generator).to(device)
        batch = order[place * batch_size :][:batch_size]
        if watch is not None:
            watch(step, steps, model, optimizer)
        loss = cross_entropy(model(inputs[batch]).flatten(0, -2).float(), labels[batch].flatten())
        loss.backward()
        if clip:
            torch.nn.utils.clip_grad_norm_(parameters, clip)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        if not math.isfinite(losses[-1]):
            break
        if cell.get("split") == "test" and (step + 1) * POINTS // steps > step * POINTS // steps:
            watched = accuracy_of(model, data.held_out[0][:WATCHED], data.held_out[1][:WATCHED])
            curve.append(_point(step + 1, losses[-max(1, steps // POINTS) :], watched, optimizer))
    of_whom = data.test if cell.get("split") == "test" else data.held_out
    assert of_whom is not None
    return {
        "accuracy": round(accuracy_of(model, *of_whom), 5),
        "loss": round(sum(losses[-steps_per_epoch:]) / steps_per_epoch, 5),
        "grad_rms": reference_size_of(optimizer),
        **({"curve": curve} if cell.get("split") == "test" else {}),
    }


def _point(step: int, losses: list[float], accuracy: float, optimizer: torch.optim.Optimizer) -> dict[str, float]:
    group = optimizer.param_groups[0]
    point = {"step": step, "loss": sum(losses) / len(losses), "accuracy": accuracy, "lr": float(group["lr"])}
    if "p" in group:
        point["p"] = float(group["p"])
    return {name: float(f"{value:.4g}") for name, value in point.items()}
