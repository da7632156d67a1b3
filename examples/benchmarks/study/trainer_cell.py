"""A cell of the study that a Trainer script trains, by nothing but the script's flags where the Trainer has them."""

import contextlib
import io
import tempfile
from typing import Any

from transformers import TrainerCallback

import hf_lpsgd  # noqa: F401  registers --optim lpsgd and lpsgdm, as `python -m hf_lpsgd` does

from . import language_model
from .contenders import reference_size_of
from .tasks import Task

__all__ = ["train_by_trainer"]


class _Curve(TrainerCallback):
    """What the Trainer logs and evaluates, a point each time that it evaluates."""

    def __init__(self) -> None:
        self.points: list[dict[str, float]] = []
        self.logged: dict[str, float] = {}

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **kwargs: Any) -> None:
        self.logged.update(logs or {})
        if logs and "eval_accuracy" in logs:
            names = {"loss": "loss", "learning_rate": "lr", "p": "p"}
            point = {"step": state.global_step, "accuracy": logs["eval_accuracy"]}
            point.update({short: self.logged[name] for name, short in names.items() if name in self.logged})
            self.points.append({name: float(f"{value:.4g}") for name, value in point.items()})


def _flags(cell: dict[str, Any], task: Task, folder: str) -> tuple[list[str], dict[str, Any]]:
    """The flags that train the cell, and what the Trainer has no flag for."""
    options = dict(cell["options"])
    clip = options.pop("clip", 1.0)
    decay = options.pop("weight_decay", 0.0)
    flags = (
        f"--output_dir {folder} --seed {cell['seed']} --learning_rate {cell['rate']} --max_grad_norm {clip} "
        f"--weight_decay {decay} --num_train_epochs {task.epochs} --per_device_train_batch_size {task.batch_size} "
        "--per_device_eval_batch_size 200 --lr_scheduler_type cosine --warmup_steps 0.1 --use_cpu "
        "--save_strategy no --report_to none --disable_tqdm true --log_level error"
    ).split()
    if cell.get("split") == "test":
        flags += ["--logging_steps", "0.05", "--eval_steps", "0.1", "--eval_strategy", "steps"]
    else:
        flags += ["--logging_strategy", "epoch"]
    if cell["optimizer"] == "Lion":
        from lion_pytorch import Lion

        return flags, {"optimizer_cls_and_kwargs": (Lion, {"lr": cell["rate"], **options})}
    if cell["optimizer"] == "SGD":
        options = {"momentum": 0.9, **options}
    if cell["optimizer"].startswith("LP"):
        options.setdefault("grad_rms", None)  # as in the loop; the default of --optim is another
        if cell["optimizer"] == "LPSGDM":
            options.setdefault("momentum", 0.9)
    names = {"AdamW": "adamw_torch", "SGD": "sgd", "LPSGD": "lpsgd", "LPSGDM": "lpsgdm"}
    flags += ["--optim", names[cell["optimizer"]]]
    if options:
        flags += ["--optim_args", ",".join(f"{name}={value}" for name, value in options.items())]
    return flags, {}


def train_by_trainer(cell: dict[str, Any], task: Task) -> dict[str, Any]:
    curve = _Curve()
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        flags, more = _flags(cell, task, folder)
        trainer = language_model.main(flags, callbacks=[curve], **more)
        is_test = cell.get("split") == "test"
        data = language_model.text().with_test()
        of_whom = data.test if is_test else data.held_out
        assert of_whom is not None
        points = list(curve.points)
        final = trainer.evaluate(language_model.Pieces(*of_whom))
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    optimizer = getattr(trainer.optimizer, "optimizer", trainer.optimizer)
    assert optimizer is not None
    return {
        "accuracy": round(final["eval_accuracy"], 5),
        "loss": round(losses[-1], 5),
        "grad_rms": reference_size_of(optimizer),
        **({"curve": points} if is_test else {}),
    }
