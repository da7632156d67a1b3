"""A cell of the study that a Trainer script trains, by nothing but the script's flags where the Trainer has them."""

import contextlib
import importlib
import io
import math
import tempfile
import time
from statistics import median
from typing import Any

import torch
from transformers import TrainerCallback

import hf_lpsgd  # noqa: F401  registers --optim lpsgd and lpsgdm, as `python -m hf_lpsgd` does

from .contenders import reference_size_of
from .data import PLACES
from .tasks import Task

__all__ = ["flags_of", "train_by_trainer"]

# Options of a cell that are flags, and no options of the optimizer.
FLAGS = {
    "clip": "max_grad_norm",
    "weight_decay": "weight_decay",
    "batch_size": "per_device_train_batch_size",
    "adam_beta2": "adam_beta2",
    "dtype": "dtype",
}
NAMES = {
    "AdamW": "adamw_torch",
    "AdamW8bit": "adamw_8bit",  # needs bitsandbytes
    "SGD": "sgd",
    "Adafactor": "adafactor",
    "LPSGD": "lpsgd",
    "LPSGDM": "lpsgdm",
}


class _Watch(TrainerCallback):
    """What the Trainer logs, a point each time that it evaluates, and how long the steps take."""

    def __init__(self, metric: str) -> None:
        self.names = {"loss": "loss", "learning_rate": "lr", "p": "p", "eval_loss": "eval_loss", metric: metric}
        self.points: list[dict[str, float]] = []
        self.logged: dict[str, float] = {}
        self.steps: list[tuple[float, float]] = []
        self.began = (0.0, 0.0)

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        self.began = time.perf_counter(), time.process_time()

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self.steps.append((time.perf_counter() - self.began[0], time.process_time() - self.began[1]))

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **kwargs: Any) -> None:
        self.logged.update(logs or {})
        if logs and "eval_loss" in logs:
            self.logged["accuracy"] = logs.get("eval_accuracy", math.nan)
            point = {"step": state.global_step}
            point.update({short: self.logged[name] for name, short in self.names.items() if name in self.logged})
            self.points.append({name: _number(value, 4) for name, value in point.items()})


def _number(value: float, digits: int = 6) -> Any:
    """The number in short; None where it is none, which JSON does not know."""
    return float(f"{value:.{digits}g}") if math.isfinite(value) else None


def flags_of(cell: dict[str, Any], task: Task, folder: str, device: str = "cpu") -> tuple[list[str], dict[str, Any]]:
    """The flags that train the cell, and what the Trainer has no flag for."""
    options = dict(cell["options"])
    chooses = cell.get("split") == "validation" and task.epochs_to_choose
    epochs = task.epochs_to_choose if chooses else task.epochs
    flags = (
        f"--output_dir {folder} --seed {cell['seed']} --learning_rate {cell['rate']} --max_grad_norm 1 "
        f"--weight_decay 0 --num_train_epochs {epochs} --per_device_train_batch_size {task.batch_size} "
        "--per_device_eval_batch_size 200 --lr_scheduler_type cosine --warmup_steps 0.1 "
        "--save_strategy no --report_to none --disable_tqdm true --log_level error"
    ).split()
    flags += ["--use_cpu"] if device == "cpu" else []
    flags += ["--split", cell.get("split", "validation")]
    if cell.get("split") == "test":
        flags += ["--logging_steps", "0.05", "--eval_steps", "0.1", "--eval_strategy", "steps"]
    else:
        flags += ["--logging_strategy", "epoch"]
    flags += [flag.format_map(PLACES) for flag in task.flags.split()]
    for name in FLAGS.keys() & options.keys():
        flags += [f"--{FLAGS[name]}", str(options.pop(name))]
    layerwise = "_layerwise" if options.pop("layerwise", False) else ""
    if cell["optimizer"] == "Lion":
        from lion_pytorch import Lion

        return flags, {"optimizer_cls_and_kwargs": (Lion, {"lr": cell["rate"], **options})}
    if cell["optimizer"] == "SGD":
        options = {"momentum": 0.9, **options}
    if cell["optimizer"].startswith("LP"):
        options.setdefault("grad_rms", None)  # as in the loop; the default of --optim is another
        if cell["optimizer"] == "LPSGDM":
            options.setdefault("momentum", 0.9)
    flags += ["--optim", NAMES[cell["optimizer"]] + layerwise]
    if options:
        flags += ["--optim_args", ",".join(f"{name}={value}" for name, value in options.items())]
    return flags, {}


def train_by_trainer(cell: dict[str, Any], task: Task, device: str = "cpu") -> dict[str, Any]:
    """Train a cell; besides what every cell has, the milliseconds of a step and the bytes that the optimizer keeps.

    A step's time is the median by the clock, and that of this process alone, which other load hardly changes.
    """
    watch = _Watch(task.metric)
    script = importlib.import_module(f".{task.script}", __package__)
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        flags, more = flags_of(cell, task, folder, device)
        trainer, final = script.main(flags, callbacks=[watch], **more)
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    optimizer = getattr(trainer.optimizer, "optimizer", trainer.optimizer)
    clock, own = ([1000 * times[index] for times in watch.steps] for index in (0, 1))
    tensors = [value for of in optimizer.state.values() for value in of.values() if isinstance(value, torch.Tensor)]
    trained = sum(parameter.numel() for parameter in trainer.model.parameters() if parameter.requires_grad)
    curve = watch.points[:-1]  # the last is the evaluation at the end
    return {
        **({"accuracy": round(final["eval_accuracy"], 5)} if "eval_accuracy" in final else {}),
        "eval_loss": _number(final["eval_loss"]),
        "loss": _number(losses[-1]),
        "grad_rms": reference_size_of(optimizer),
        **({"curve": curve} if curve else {}),
        "ms_per_step": round(median(clock), 1),
        "own_ms_per_step": round(median(own), 1),
        "parameters": trained,
        "state_bytes": sum(tensor.nbytes for tensor in tensors if tensor.numel() > 1),
    }
