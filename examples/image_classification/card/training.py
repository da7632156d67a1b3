"""The parts of a model card about the training: the command, the optimizer, hyperparameters, versions, hardware."""

from __future__ import annotations

import os
import platform
import re
import sys
from collections.abc import Iterable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import get_token

from hf_lpsgd.optim.kernels.hyperparameters import MOST_MOVED, SATURATION
from hf_lpsgd.schedules import P_SCHEDULES
from hf_lpsgd.trainer import OptimArgs
from hf_lpsgd.trainer.optim_args import name_of

from .command import command_of, without_secret_entries
from .facts import RunFacts
from .optimizer import (
    implementation_of,
    measured_over,
    optimizer_name,
    optimizer_title,
    record_of,
    settings_of,
    size_of_gradient,
)

__all__ = ["environment_section", "secrets_of", "table", "training_section"]


def table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)


def secrets_of(args: Any) -> list[str]:
    return [secret for secret in (args.hub_token, get_token()) if secret]


def training_section(trainer: Any, facts: RunFacts) -> str:
    args = trainer.args
    secrets = secrets_of(args)
    command = command_of(sys.argv, secrets)
    title = "The command:" if command.is_typed else "An equivalent command:"
    parts = ["## Training", title, f"```console\n$ {command.line}\n```"]
    for file in map(Path, sys.argv[1:]):
        if file.suffix in (".json", ".yaml", ".yml") and file.is_file():
            parts += [f"with `{file.name}`:", f"```{file.suffix[1:]}\n{_file_text(file, secrets)}\n```"]
    parts += [_optimizer_words(trainer), table(["hyperparameter", "value"], _hyperparameters(trainer, facts))]
    return "\n\n".join(parts)


def _file_text(file: Path, secrets: list[str]) -> str:
    return without_secret_entries(file.read_text(encoding="utf-8").strip(), secrets)


def _p_arguments(trainer: Any) -> OptimArgs | None:
    """What `--optim_args` says of p; None where it does not speak of the optimizer in force."""
    optim, record = name_of(trainer.args.optim), record_of(trainer)
    return OptimArgs.parse(optim, trainer.args.optim_args) if record is not None and record.name == optim else None


def _optimizer_words(trainer: Any) -> str:
    args, record = trainer.args, record_of(trainer)
    if record is None:
        given = f" with `{args.optim_args}`" if args.optim_args else ""
        whose = "the Trainer's `" if optimizer_name(trainer) == name_of(args.optim) else "`"
        return f"The optimizer is {whose}{optimizer_name(trainer)}`{given}."
    parsed, settings = _p_arguments(trainer), settings_of(trainer)
    what, of, meaning = "SGD", "g", "the gradient"
    if "momentum" in settings:
        what, of, meaning = "SGD with momentum", "m", "the moving average of the gradient"
    words = (
        f"{optimizer_title(trainer)} is {what} in an lp norm: with rho = (p - 2) / (p - 1), a step is "
        f"`lr * {of} / (|{of}| + eps)^rho`, element by element, where {of} is {meaning}."
    )
    if size_of_gradient(trainer) is not None:
        words = words.removesuffix(f", where {of} is {meaning}.")
        words += (
            f", with {of} divided by r and cut off at 1 in magnitude, where {of} is {meaning} and r is {SATURATION:g} "
            f"times its root mean square. The step is multiplied by {MOST_MOVED:g}. So no element moves by more than "
            f"{MOST_MOVED:g} * lr."
        )
    if parsed is None:
        return words
    course = P_SCHEDULES[parsed.p_schedule].description.format(p_max=f"p_max = {settings['p_max']:g}")
    changes = "" if parsed.p_schedule == "constant" else f"; it changes at every {parsed.p_granularity}"
    return f"{words} Here {course}{changes}."


def _processes(trainer: Any) -> str:
    """How many processes there were, and what divided the work between them."""
    args = trainer.args
    count = args.world_size
    state = getattr(getattr(trainer, "accelerator", None), "state", None)
    deepspeed, fsdp = getattr(state, "deepspeed_plugin", None), getattr(state, "fsdp_plugin", None)
    if deepspeed is not None:
        return f"{count}, DeepSpeed with ZeRO stage {deepspeed.zero_stage}"
    if getattr(trainer, "is_fsdp_enabled", False) and fsdp is not None:
        number = getattr(fsdp, "fsdp_version", 1)
        strategy = getattr(fsdp.sharding_strategy, "name", None) if number == 1 else None  # of FSDP1 alone
        return f"{count}, FSDP{number}{f' ({strategy})' if strategy else ''}"
    if count > 1:
        return f"{count}, DDP"
    return f"1, DataParallel on {args.n_gpu} GPUs" if args.n_gpu > 1 else "1"


def _precision(trainer: Any) -> str:
    # Accelerate's config may set it too.
    accelerator = getattr(trainer, "accelerator", None)
    asked = "bf16" if trainer.args.bf16 else "fp16" if trainer.args.fp16 else "no"
    mixed = str(getattr(accelerator, "mixed_precision", asked))
    return {"no": "float32", "bf16": "bfloat16, mixed", "fp16": "float16, mixed"}.get(mixed, f"{mixed}, mixed")


def _hyperparameters(trainer: Any, facts: RunFacts) -> list[tuple[str, Any]]:
    args, state, record = trainer.args, trainer.state, record_of(trainer)
    rows: list[tuple[str, Any]] = [("optimizer", f"`{optimizer_name(trainer)}`")]
    weight_decay = args.weight_decay
    if record is not None:
        parsed, settings = _p_arguments(trainer), settings_of(trainer)
        weight_decay = settings["weight_decay"]
        rows.append(("largest order of the norm (p_max)", f"{settings['p_max']:g}"))
        if parsed is not None:
            rows.append(("p schedule", f"{parsed.p_schedule}, changing by {parsed.p_granularity}"))
        if "momentum" in settings:
            rows.append(("momentum", f"{settings['momentum']:g}"))
        rows.append(("eps", f"{settings['eps']:g}"))
        size = size_of_gradient(trainer)
        if size is not None:
            rows.append(("root mean square of the gradient (grad_rms)", f"{size:.7g}{measured_over(trainer)}"))
        rows.append(("implementation of the step", implementation_of(trainer)))
    elif args.optim_args:
        rows.append(("optimizer's options", f"`{args.optim_args}`"))
    total = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
    scheduler = name_of(args.lr_scheduler_type)
    if args.lr_scheduler_kwargs:
        scheduler += f" with {args.lr_scheduler_kwargs}"
    rows += [
        ("weight decay", f"{weight_decay:g}"),
        ("peak learning rate", f"{args.learning_rate:g}"),
        ("learning rate schedule", scheduler),
        ("warm-up steps", args.get_warmup_steps(state.max_steps)),
        ("epochs", f"{state.num_train_epochs}"),
        ("optimizer steps", state.max_steps),
        (
            f"{facts.examples} per step",
            f"{total} ({args.per_device_train_batch_size} per device, {args.world_size} process"
            f"{'es' if args.world_size > 1 else ''}, {args.gradient_accumulation_steps} accumulated)",
        ),
        ("largest gradient norm", f"{args.max_grad_norm:g}" if args.max_grad_norm else "not clipped"),
        ("label smoothing", f"{args.label_smoothing_factor:g}"),
        ("precision", _precision(trainer)),
        ("processes", _processes(trainer)),
        ("seed", args.seed),
    ]
    if facts.train_examples is not None:
        rows.append((f"{facts.examples} to train", f"{facts.train_examples:,}"))
    if facts.left_out is not None:
        train, evaluation = facts.left_out
        rows.append(("images left out, as they cannot be decoded", f"{train:,} to train, {evaluation:,} to evaluate"))
    return [*rows, *facts.hyperparameters.items()]


def environment_section(trainer: Any, facts: RunFacts) -> str:
    packages = ("hf-lpsgd", "torch", "transformers", "accelerate", "datasets", "huggingface_hub")
    rows: list[tuple[str, Any]] = [("Python", platform.python_version())]
    for package in packages:
        try:
            rows.append((package, version(package)))
        except PackageNotFoundError:
            continue
    rows.append(("hardware", _hardware(trainer.args)))
    times = [entry for entry in trainer.state.log_history if "train_runtime" in entry]
    if times:
        speed = times[-1].get("train_samples_per_second", 0)
        rows.append(("training took", f"{times[-1]['train_runtime']:.1f} s, {speed:.1f} {facts.examples} per second"))
    return "## Versions and hardware\n\n" + table(["what", "which"], rows)


def _hardware(args: Any) -> str:
    if args.device.type == "cuda":
        return f"{args.world_size * max(args.n_gpu, 1)} x {torch.cuda.get_device_name(args.device)}"
    name = platform.processor() or platform.machine()
    try:
        found = re.search(r"^model name\s*: (.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
        name = found[1] if found else name
    except OSError:
        pass
    device = "" if args.device.type == "cpu" else f"{args.device.type} device, "
    return f"{device}{name}, {os.cpu_count()} CPU cores"
