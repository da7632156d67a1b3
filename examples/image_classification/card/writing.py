"""The model card of a Trainer run: metadata and text made from what was logged, never from what was planned."""

import math
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from .command import shown_path, without_homes, without_secrets
from .curves import plot_history
from .facts import RunFacts
from .optimizer import optimizer_name, optimizer_title, record_of
from .training import environment_section, secrets_of, table, training_section

PLOT_NAME = "training_curves.png"
_MOST_ROWS = 40

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


def write_model_card(trainer: Any, facts: RunFacts) -> str | None:
    """Write the card of `trainer`'s run, as far as it has come, into its output folder, and the curves beside it.

    Returns:
        Why there is no picture of the curves; None if there is one.
    """
    folder = Path(trainer.args.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    problem = None
    try:
        title = f"{trainer.model.config.model_type}, --optim {optimizer_name(trainer)}"
        plot_history(trainer.state.log_history, folder / PLOT_NAME, title=title)
    except (ImportError, OSError, ValueError) as error:
        problem = str(error)
    make_model_card(trainer, facts, None if problem else PLOT_NAME).save(folder / "README.md")
    return problem


def make_model_card(trainer: Any, facts: RunFacts, plot: str | None = None) -> ModelCard:
    """The card of `trainer`'s run, as far as it has come; its numbers are those of the Trainer's log history.

    Args:
        trainer: a Trainer.
        facts: what the Trainer does not know.
        plot: path of the picture of the curves, relative to the card. Default: the card has no picture.
    """
    args, state = trainer.args, trainer.state
    name = str(trainer.hub_model_id or Path(args.output_dir).absolute().name).split("/")[-1]
    optim = optimizer_name(trainer)
    model_type = trainer.model.config.model_type
    final = _last_evaluation(state.log_history)
    evaluated_on = facts.dataset_id or re.sub(r"[^\w.]+", "-", facts.dataset_folder or facts.dataset).strip("-")
    results = [
        EvalResult(
            task_type=facts.task,
            task_name=facts.task.replace("-", " ").title(),
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
        pipeline_tag=facts.task,
        base_model=None if facts.base_model is None or Path(facts.base_model).is_dir() else facts.base_model,
        datasets=[facts.dataset_id] if facts.dataset_id else None,
        metrics=["accuracy"] if "eval_accuracy" in final else None,
        tags=[facts.task, *(["vision"] if facts.task.startswith("image") else []), model_type, optim, "hf_lpsgd"],
        model_name=name if results else None,
        eval_results=results or None,
    )
    sections = [
        _introduction(trainer, facts, name),
        _results(trainer, facts, final, plot),
        training_section(trainer, facts),
        environment_section(trainer, facts),
        *([_use(trainer, facts)] if facts.pipeline_input else []),
    ]
    if record_of(trainer) is not None:
        sections.append(f"## Citation\n\nThe optimizer is described in\n\n```bibtex\n{_CITATION}\n```")
    card = f"---\n{data.to_yaml()}\n---\n\n" + "\n\n".join(sections) + "\n"
    return ModelCard(without_homes(without_secrets(card, secrets_of(args))))


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


def _last_evaluation(log_history: Iterable[Mapping[str, Any]]) -> Mapping[str, Any]:
    evaluations = [entry for entry in log_history if "eval_loss" in entry or "eval_accuracy" in entry]
    return evaluations[-1] if evaluations else {}


def _introduction(trainer: Any, facts: RunFacts, name: str) -> str:
    state, model = trainer.state, trainer.model
    start = "trained from scratch"
    if facts.base_model:
        base = Path(facts.base_model)
        start = f"fine-tuned from `{base.absolute().name if base.is_dir() else facts.base_model}`"
    classes = f" and {model.config.num_labels} classes" if "classification" in facts.task else ""
    lines = [
        f"# {name}",
        f"{facts.kind} of type `{model.config.model_type}` with {model.num_parameters():,} parameters{classes}, "
        f"{start} on {_dataset(facts)} with {optimizer_title(trainer)}.",
    ]
    if not any("train_runtime" in entry for entry in state.log_history):
        progress = f"step {state.global_step} of {state.max_steps}"
        lines.append(f"**Training was under way when this card was written: {progress}.**")
    return "\n\n".join(lines)


def _dataset(facts: RunFacts) -> str:
    if facts.dataset_id:
        return f"[{facts.dataset}](https://huggingface.co/datasets/{facts.dataset_id})"
    if facts.dataset_folder:
        return f"the local dataset `{facts.dataset_folder}`"
    return facts.dataset


def _results(trainer: Any, facts: RunFacts, final: Mapping[str, Any], plot: str | None) -> str:
    history, best = trainer.state.log_history, trainer.state.best_model_checkpoint
    parts = ["## Results"]
    if final:
        words = {"eval_accuracy": "accuracy", "eval_loss": "loss"}
        numbers = " and ".join(f"{word} {final[key]:.4f}" for key, word in words.items() if key in final)
        number = f"{facts.eval_examples:,} " if facts.eval_examples else ""
        split = f" of the split `{facts.eval_split}`" if facts.eval_split else ""
        parts.append(f"On the {number}{facts.examples}{split}, at step {final['step']}: **{numbers}**.")
        finished = any("train_runtime" in entry for entry in history)
        if trainer.args.load_best_model_at_end and best is not None and finished:
            parts[-1] += f" The model is the best one by {trainer.args.metric_for_best_model}, of `{Path(best).name}`."
    rows = results_rows(history)
    if rows:
        shown = _thinned(rows)
        columns = [column for column in _COLUMNS if any(column[0] in row for row in rows)]
        cells = [[format(row[key], spec) if key in row else "" for key, _, spec in columns] for row in shown]
        parts.append(table([heading for _, heading, _ in columns], cells))
        note = "Training loss, learning rate and p are those last logged by that step."
        if facts.watched not in (None, facts.eval_examples) and any("eval_loss" in row for row in rows):
            note += f" The evaluations in this table are on {facts.watched} of the {facts.examples}."
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


def _use(trainer: Any, facts: RunFacts) -> str:
    own_code = not type(trainer.model).__module__.startswith("transformers.")
    trust = ", trust_remote_code=True" if own_code else ""
    where, note = trainer.hub_model_id, ""
    if not where:
        where = shown_path(str(trainer.args.output_dir))
        if os.path.isabs(where) or where.startswith(("~", "...")):
            where, note = Path(where).name, "  # the folder of this card"
    return f"""## Use

```python
from transformers import pipeline

classifier = pipeline("{facts.task}", model="{where}"{trust}){note}
print(classifier({facts.pipeline_input}))
```

The weights need nothing but transformers. `training_args.bin`, a pickle of the training arguments, can be read only
where the package `hf_lpsgd` is installed."""
