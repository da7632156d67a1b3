"""The model card of a Trainer run: metadata and text made from what was logged, never from what was planned."""

from __future__ import annotations

import math
import os
import platform
import re
import shlex
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from curves import plot_history
from huggingface_hub import EvalResult, ModelCard, ModelCardData, get_token

from hf_lpsgd.optim.base import LpOptimizer
from hf_lpsgd.schedules import P_SCHEDULES, unwrap_optimizer
from hf_lpsgd.trainer import OPTIMIZERS, OptimArgs
from hf_lpsgd.trainer.optim_args import name_of

__all__ = ["PLOT_NAME", "RunFacts", "command_line", "license_of", "make_model_card", "write_model_card"]

PLOT_NAME = "training_curves.png"
_MOST_ROWS = 40
_SECRET = "***"

_CITATION = """\
@article{xu2026beyond,
  title   = {Beyond l2-norm and l-inf-norm: A Curvature-Inspired lp-Norm Scheme for Deep Neural Networks},
  author  = {Xu, J. and Yang, Z.},
  journal = {arXiv preprint arXiv:2606.02078},
  year    = {2026},
  url     = {https://arxiv.org/abs/2606.02078}
}"""

# What a row may show: its key, its heading, and the format of its numbers.
_COLUMNS = (
    ("epoch", "epoch", ".4g"),
    ("step", "step", "d"),
    ("loss", "training loss", ".4f"),
    ("eval_loss", "evaluation loss", ".4f"),
    ("eval_accuracy", "accuracy", ".4f"),
    ("learning_rate", "learning rate", ".3e"),
    ("p", "p", ".3f"),
)


@dataclass(frozen=True)
class RunFacts:
    """What the Trainer does not know of a run, and the card tells.

    Attributes:
        dataset: the dataset's name for a reader.
        dataset_id: its name on the Hub. Default: it is not there.
        dataset_config: its configuration. Default: none.
        eval_split: the split evaluated on. Default: none was.
        train_images: number of images trained on. Default: not told.
        eval_images: number of images evaluated on. Default: not told.
        base_model: the pretrained model that was started from. Default: trained from scratch.
        license: identifier of the model's licence, one of the Hub's. Default: `apache-2.0`.
        hyperparameters: further rows of the table of hyperparameters.
    """

    dataset: str
    dataset_id: str | None = None
    dataset_config: str | None = None
    eval_split: str | None = None
    train_images: int | None = None
    eval_images: int | None = None
    base_model: str | None = None
    license: str = "apache-2.0"
    hyperparameters: Mapping[str, Any] = field(default_factory=dict)


def license_of(model: str) -> str:
    """The licence that the card of a pretrained model names: on the Hub or in a folder. `unknown` if it has none."""
    readme = Path(model) / "README.md"
    try:
        if not readme.is_file() and Path(model).is_dir():
            return "unknown"
        return ModelCard.load(readme if readme.is_file() else model).data.license or "unknown"
    except (OSError, ValueError):  # out of reach, or a card with faulty metadata
        return "unknown"


def write_model_card(trainer: Any, facts: RunFacts) -> str | None:
    """Write the card of `trainer`'s run, as far as it has come, into its output folder, and the curves beside it.

    Args:
        trainer: a Trainer.
        facts: what it does not know.

    Returns:
        Why there is no picture of the curves; None if there is one.
    """
    folder = Path(trainer.args.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    problem = None
    try:
        title = f"{trainer.model.config.model_type}, --optim {name_of(trainer.args.optim)}"
        plot_history(trainer.state.log_history, folder / PLOT_NAME, title=title)
    except (ImportError, ValueError) as error:
        problem = str(error)
    make_model_card(trainer, facts, None if problem else PLOT_NAME).save(folder / "README.md")
    return problem


def make_model_card(trainer: Any, facts: RunFacts, plot: str | None = None) -> ModelCard:
    """The card of `trainer`'s run, as far as it has come; its numbers are those of the Trainer's log history.

    Args:
        trainer: a Trainer.
        facts: what it does not know.
        plot: path of the picture of the curves, relative to the card. Default: the card has no picture.
    """
    args, state = trainer.args, trainer.state
    name = str(trainer.hub_model_id or Path(args.output_dir).absolute().name).split("/")[-1]
    optim = name_of(args.optim)
    kind = trainer.model.config.model_type
    final = _last_evaluation(state.log_history)
    evaluated_on = facts.dataset_id or re.sub(r"[^a-z0-9]+", "-", facts.dataset.lower()).strip("-")
    results = [
        EvalResult(
            task_type="image-classification",
            task_name="Image Classification",
            dataset_type=evaluated_on,
            dataset_name=facts.dataset,
            dataset_config=facts.dataset_config,
            dataset_split=facts.eval_split,
            metric_type=metric,
            metric_name=metric.capitalize(),
            metric_value=final[f"eval_{metric}"],
        )
        for metric in ("accuracy", "loss")
        if math.isfinite(final.get(f"eval_{metric}", math.nan))
    ]
    data = ModelCardData(
        library_name="transformers",
        license=facts.license,
        pipeline_tag="image-classification",
        base_model=None if facts.base_model is None or Path(facts.base_model).is_dir() else facts.base_model,
        datasets=[facts.dataset_id] if facts.dataset_id else None,
        metrics=["accuracy"],
        tags=["image-classification", "vision", kind, optim, "hf_lpsgd"],
        model_name=name if results else None,
        eval_results=results or None,
    )
    sections = [
        _introduction(trainer, facts, name),
        _results(trainer, facts, final, plot),
        _training(trainer, facts),
        _environment(trainer),
        _use(trainer),
    ]
    if optim in OPTIMIZERS:
        sections.append(f"## Citation\n\nThe optimizer is described in\n\n```bibtex\n{_CITATION}\n```")
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n" + "\n\n".join(sections) + "\n")


def results_rows(log_history: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One row for each evaluation during training, or for each epoch where there was none.

    A row holds `epoch`, `step`, what the evaluation gave, and the training `loss`, `learning_rate` and `p` last logged
    by then. An evaluation after training, perhaps of another model than the last, is no row.
    """
    during: list[Mapping[str, Any]] = []
    for entry in log_history:
        if "train_runtime" in entry:
            break
        during.append(entry)
    latest: dict[str, Any] = {}
    evaluations: dict[int, dict[str, Any]] = {}
    epochs: dict[int, dict[str, Any]] = {}
    for entry in during:
        latest.update({key: entry[key] for key in ("loss", "learning_rate", "p") if key in entry})
        row = {**latest, "epoch": entry.get("epoch", 0.0), "step": entry["step"]}
        if any(key.startswith("eval_") for key in entry):
            row.update({key: entry[key] for key in ("eval_loss", "eval_accuracy") if key in entry})
            evaluations[entry["step"]] = row
        else:
            epochs[math.ceil(row["epoch"])] = row
    return list((evaluations or epochs).values())


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


def _title(optim: str) -> str:
    return {"lpsgd": "LPSGD", "lpsgdm": "LPSGDM"}.get(optim, f"`{optim}`")


def _last_evaluation(log_history: Iterable[Mapping[str, Any]]) -> Mapping[str, Any]:
    evaluations = [entry for entry in log_history if "eval_loss" in entry or "eval_accuracy" in entry]
    return evaluations[-1] if evaluations else {}


def _table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)


def _introduction(trainer: Any, facts: RunFacts, name: str) -> str:
    state, model = trainer.state, trainer.model
    start = "trained from scratch"
    if facts.base_model:
        base = Path(facts.base_model)
        start = f"fine-tuned from `{base.absolute().name if base.is_dir() else facts.base_model}`"
    lines = [
        f"# {name}",
        f"An image classifier of type `{model.config.model_type}` with {model.num_parameters():,} parameters and "
        f"{model.config.num_labels} classes, {start} on {_dataset(facts)} with "
        f"{_title(name_of(trainer.args.optim))}.",
    ]
    if not any("train_runtime" in entry for entry in state.log_history):
        progress = f"step {state.global_step} of {state.max_steps}"
        lines.append(f"**Training was under way when this card was written: {progress}.**")
    return "\n\n".join(lines)


def _dataset(facts: RunFacts) -> str:
    if facts.dataset_id:
        return f"[{facts.dataset}](https://huggingface.co/datasets/{facts.dataset_id})"
    return facts.dataset


def _results(trainer: Any, facts: RunFacts, final: Mapping[str, Any], plot: str | None) -> str:
    history, best = trainer.state.log_history, trainer.state.best_model_checkpoint
    parts = ["## Results"]
    if final:
        words = {"eval_accuracy": "accuracy", "eval_loss": "loss"}
        numbers = " and ".join(f"{word} {final[key]:.4f}" for key, word in words.items() if key in final)
        images = f"{facts.eval_images:,} images" if facts.eval_images else "images"
        split = f" of the split `{facts.eval_split}`" if facts.eval_split else ""
        parts.append(f"On the {images}{split}, at step {final['step']}: **{numbers}**.")
        finished = any("train_runtime" in entry for entry in history)
        if trainer.args.load_best_model_at_end and best is not None and finished:
            parts[-1] += f" The model is the best one by {trainer.args.metric_for_best_model}, of `{Path(best).name}`."
    rows = results_rows(history)
    if rows:
        shown = _thinned(rows)
        columns = [column for column in _COLUMNS if any(column[0] in row for row in rows)]
        cells = [[format(row[key], spec) if key in row else "" for key, _, spec in columns] for row in shown]
        parts.append(_table([heading for _, heading, _ in columns], cells))
        note = "Training loss, learning rate and p are those last logged by that step."
        if len(shown) < len(rows):
            note += f" {len(shown)} of {len(rows)} rows are shown; all are in `trainer_state.json`."
        parts.append(note)
    if plot is not None:
        parts.append(f"![Loss, accuracy, learning rate and p over the steps]({plot})")
    if len(parts) == 1:
        parts.append("Nothing was evaluated or logged.")
    return "\n\n".join(parts)


def _thinned(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    if len(rows) <= _MOST_ROWS:
        return rows
    kept = {round(index * (len(rows) - 1) / (_MOST_ROWS - 1)) for index in range(_MOST_ROWS)}
    return [row for index, row in enumerate(rows) if index in kept]


def _training(trainer: Any, facts: RunFacts) -> str:
    args = trainer.args
    secrets = _secrets(args)
    parts = ["## Training", f"```console\n$ {command_line(sys.argv, secrets)}\n```"]
    for file in map(Path, sys.argv[1:]):
        if file.suffix in (".json", ".yaml", ".yml") and file.is_file():
            parts += [f"with `{file.name}`:", f"```{file.suffix[1:]}\n{_file_text(file, secrets)}\n```"]
    parts += [_optimizer_words(trainer), _table(["hyperparameter", "value"], _hyperparameters(trainer, facts))]
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
        f"{_title(optim)} is {what} in an lp norm: with rho = (p - 2) / (p - 1), a step is "
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
            "images a step",
            f"{total} ({args.per_device_train_batch_size} a device, {args.world_size} process"
            f"{'es' if args.world_size > 1 else ''}, {args.gradient_accumulation_steps} accumulated)",
        ),
        ("largest gradient norm", f"{args.max_grad_norm:g}" if args.max_grad_norm else "not clipped"),
        ("label smoothing", f"{args.label_smoothing_factor:g}"),
        ("precision", "bfloat16, mixed" if args.bf16 else "float16, mixed" if args.fp16 else "float32"),
        ("seed", args.seed),
    ]
    if facts.train_images is not None:
        rows.append(("images to train", f"{facts.train_images:,}"))
    return [*rows, *facts.hyperparameters.items()]


def _environment(trainer: Any) -> str:
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
        rows.append(("training took", f"{times[-1]['train_runtime']:.1f} s, {speed:.1f} images a second"))
    return "## Versions and hardware\n\n" + _table(["what", "which"], rows)


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


def _use(trainer: Any) -> str:
    config = trainer.model.config
    code = getattr(trainer.model, "_auto_class", None) is not None or getattr(config, "auto_map", None)
    trust = ", trust_remote_code=True" if code else ""
    where = trainer.hub_model_id or trainer.args.output_dir
    return f"""## Use

```python
from transformers import pipeline

classifier = pipeline("image-classification", model="{where}"{trust})
print(classifier("image.png"))  # a path, a URL or a PIL image
```

The weights need nothing but transformers. `training_args.bin`, a pickle of the training arguments, can be read only
where the package `hf_lpsgd` is installed."""
