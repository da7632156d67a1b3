"""The parts of a model card about the training: the command, the optimizer, hyperparameters, versions, hardware."""

from __future__ import annotations

import os
import platform
import re
import shlex
import sys
from collections.abc import Iterable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from card_facts import RunFacts
from huggingface_hub import get_token

from hf_lpsgd.optim.base import LpOptimizer
from hf_lpsgd.schedules import P_SCHEDULES, unwrap_optimizer
from hf_lpsgd.trainer import OPTIMIZERS, OptimArgs
from hf_lpsgd.trainer.optim_args import name_of

__all__ = ["command_line", "environment_section", "optimizer_title", "table", "training_section"]

_SECRET = "***"


def optimizer_title(optim: str) -> str:
    return OPTIMIZERS[optim].cls.__name__ if optim in OPTIMIZERS else f"`{optim}`"


def table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)


def command_line(argv: Sequence[str], secrets: Iterable[str | None] = ()) -> str:
    """The command that started this process, fit to be shown: without tokens.

    Args:
        argv: the script and its arguments, as in `sys.argv`.
        secrets: strings that must not be shown, wherever they stand.
    """
    script = os.path.relpath(argv[0])
    shown = [Path(script).name if script.startswith("..") else script]
    hide = False
    for argument in argv[1:]:
        flag = argument.partition("=")[0]
        if flag.startswith("-"):
            hide = _names_a_secret(flag)
        if not hide:
            shown.append(argument)
    launcher = ["python"]
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        launcher = ["torchrun", "--nproc_per_node", os.environ.get("LOCAL_WORLD_SIZE", "1")]
    return _without(shlex.join(launcher + shown), secrets)


def _names_a_secret(name: str) -> bool:
    return re.search(r"(^|[-_])(token|password|secret|api[-_]?key)$", name, re.IGNORECASE) is not None


def _without(text: str, secrets: Iterable[str | None]) -> str:
    for secret in filter(None, secrets):
        text = text.replace(secret, _SECRET)
    return text


def _secrets(args: Any) -> list[str]:
    return [secret for secret in (args.hub_token, get_token()) if secret]


def training_section(trainer: Any, facts: RunFacts) -> str:
    args = trainer.args
    secrets = _secrets(args)
    parts = ["## Training", f"```console\n$ {command_line(sys.argv, secrets)}\n```"]
    for file in map(Path, sys.argv[1:]):
        if file.suffix in (".json", ".yaml", ".yml") and file.is_file():
            parts += [f"with `{file.name}`:", f"```{file.suffix[1:]}\n{_file_text(file, secrets)}\n```"]
    parts += [_optimizer_words(trainer), table(["hyperparameter", "value"], _hyperparameters(trainer, facts))]
    return "\n\n".join(parts)


def _file_text(file: Path, secrets: list[str]) -> str:
    def hidden(match: re.Match[str]) -> str:
        return match[1] + _SECRET if _names_a_secret(match[2]) else match[0]

    text = file.read_text(encoding="utf-8").strip()
    entry = r"""((?:["']|\b)([\w-]+)["']?\s*:\s*)("[^"\n]*"|'[^'\n]*'|[^\s,}{\[\]]+)"""
    return _without(re.sub(entry, hidden, text), secrets)


def _lp_settings(trainer: Any) -> dict[str, Any]:
    """p_max, momentum, eps and weight decay in force; a resumed run takes them from its checkpoint."""
    optimizer = unwrap_optimizer(trainer.optimizer)
    if isinstance(optimizer, LpOptimizer):
        return dict(optimizer.param_groups[0])
    optim = name_of(trainer.args.optim)
    given = OptimArgs.parse(optim, trainer.args.optim_args).optimizer_kwargs
    return OPTIMIZERS[optim].cls([torch.zeros(1)], weight_decay=trainer.args.weight_decay, **given).param_groups[0]


def _optimizer_words(trainer: Any) -> str:
    args = trainer.args
    optim = name_of(args.optim)
    if optim not in OPTIMIZERS:
        given = f" with `{args.optim_args}`" if args.optim_args else ""
        return f"The optimizer is the Trainer's `{optim}`{given}."
    parsed, group = OptimArgs.parse(optim, args.optim_args), _lp_settings(trainer)
    course = P_SCHEDULES[parsed.p_schedule].course.format(p_max=f"{group['p_max']:g}")
    changes = "" if parsed.p_schedule == "constant" else f"; it changes at every {parsed.p_granularity}"
    what, of, meaning = "SGD", "g", "the gradient"
    if "momentum" in group:
        what, of, meaning = "SGD with momentum", "m", "the moving average of the gradient"
    return (
        f"{optimizer_title(optim)} is {what} in an lp norm: with rho = (p - 2) / (p - 1), a step is "
        f"`lr * {of} / (|{of}| + eps)^rho`, element by element, where {of} is {meaning}. Here {course}{changes}."
    )


def _hyperparameters(trainer: Any, facts: RunFacts) -> list[tuple[str, Any]]:
    args, state = trainer.args, trainer.state
    optim = name_of(args.optim)
    rows: list[tuple[str, Any]] = [("optimizer", f"`{optim}`")]
    weight_decay = args.weight_decay
    if optim in OPTIMIZERS:
        parsed, group = OptimArgs.parse(optim, args.optim_args), _lp_settings(trainer)
        weight_decay = group["weight_decay"]
        rows.append(("largest order of the norm (p_max)", f"{group['p_max']:g}"))
        rows.append(("p schedule", f"{parsed.p_schedule}, changing by {parsed.p_granularity}"))
        if "momentum" in group:
            rows.append(("momentum", f"{group['momentum']:g}"))
        rows.append(("eps", f"{group['eps']:g}"))
    elif args.optim_args:
        rows.append(("optimizer's options", f"`{args.optim_args}`"))
    total = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
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
            "images per step",
            f"{total} ({args.per_device_train_batch_size} per device, {args.world_size} process"
            f"{'es' if args.world_size > 1 else ''}, {args.gradient_accumulation_steps} accumulated)",
        ),
        ("largest gradient norm", f"{args.max_grad_norm:g}" if args.max_grad_norm else "not clipped"),
        ("label smoothing", f"{args.label_smoothing_factor:g}"),
        ("precision", "bfloat16, mixed" if args.bf16 else "float16, mixed" if args.fp16 else "float32"),
        ("seed", args.seed),
    ]
    if facts.train_images is not None:
        rows.append(("images to train", f"{facts.train_images:,}"))
    if facts.left_out is not None:
        train, evaluation = facts.left_out
        rows.append(("images left out, as they cannot be decoded", f"{train:,} to train, {evaluation:,} to evaluate"))
    return [*rows, *facts.hyperparameters.items()]


def environment_section(trainer: Any) -> str:
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
        rows.append(("training took", f"{times[-1]['train_runtime']:.1f} s, {speed:.1f} images per second"))
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
