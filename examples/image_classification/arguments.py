"""The command line of run_image_classification.py: flags, recipes in files, and the checks that need no data.

Both scripts read their flags by `parse`.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import yaml
from image_data import DataArguments, fail
from image_models import ModelArguments
from transformers import HfArgumentParser, TrainingArguments

from hf_lpsgd.processes import check_processes
from hf_lpsgd.trainer import OptimArgs, validate_optim_args

# What changes when no dataset is named, so that the shortest command line already trains well.
DIGITS_TRAINING = {
    "num_train_epochs": 40,
    "per_device_train_batch_size": 64,
    "per_device_eval_batch_size": 120,
    "learning_rate": 1e-3,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 0.1,
    "eval_strategy": "epoch",
    "logging_steps": 10,
}


@dataclass
class OutputArguments:
    """What is done with the output folder."""

    license: str | None = field(
        default=None,
        metadata={"help": "Licence for the model card. Default: that of --model_name_or_path, else apache-2.0."},
    )
    overwrite_output_dir: bool = field(
        default=False, metadata={"help": "Delete the checkpoints of an earlier run in --output_dir, then start anew."}
    )


class Arguments(NamedTuple):
    """All arguments of a run. `optim` is `training.optim_args`, parsed; None unless the optimizer is one of ours."""

    model: ModelArguments
    data: DataArguments
    output: OutputArguments
    training: TrainingArguments
    optim: OptimArgs | None


class Parser(HfArgumentParser):
    """An HfArgumentParser whose error is one line, without the usage of 150 options."""

    def error(self, message: str) -> NoReturn:
        fail(message)


def read_recipe(file: str, kinds: Sequence[type]) -> dict[str, Any]:
    """The arguments in a .json or .yaml file, by name; each must be a field of one of the dataclasses `kinds`."""
    text = Path(file).read_text(encoding="utf-8")
    values = json.loads(text) if file.endswith(".json") else yaml.safe_load(text)
    if not isinstance(values, dict):
        fail(f"{file} must hold one object of argument names and values")
    known = {option.name for kind in kinds for option in fields(kind)}
    unknown = [str(name) for name in values if name not in known]
    if unknown:
        fail(f"{file} has unknown arguments: {', '.join(unknown)}; --help lists all")
    return values


def parse(
    kinds: Sequence[type], argv: Sequence[str], description: str | None, digits: dict[str, Any] | None = None
) -> list[Any]:
    """One object of each of the dataclasses `kinds`, as the flags in `argv` say.

    Args:
        kinds: dataclasses whose fields are the flags.
        argv: the flags, after the path of a recipe where there is one.
        description: of the script, for --help.
        digits: defaults that hold where no dataset is named.
    """
    parser = Parser(kinds, description=description, allow_abbrev=False)  # type: ignore[arg-type]
    sources = {"dataset_name", "train_dir", "validation_dir"}
    recipe = argv[0] if argv and argv[0].endswith((".json", ".yaml", ".yml")) else None
    flags = list(argv) if recipe is None else list(argv[1:])
    try:
        values = {} if recipe is None else read_recipe(recipe, kinds)
        named = {name for name, value in values.items() if value}
        named |= {flag.partition("=")[0].lstrip("-").replace("-", "_") for flag in flags}
        parser.set_defaults(**{**({} if sources & named else digits or {}), **values})
        *objects, unknown = parser.parse_args_into_dataclasses(args=flags, return_remaining_strings=True)
    except OSError as error:
        fail(f"cannot read {recipe}: {error.strerror}")
    except (TypeError, ValueError, yaml.YAMLError) as error:
        fail(" ".join(str(error).split()))
    if unknown:
        fail(f"unknown arguments: {' '.join(unknown)}; --help lists all")
    return objects


def parse_arguments(argv: Sequence[str], description: str | None = None) -> Arguments:
    """The arguments of the Trainer script, with `--optim_args` parsed."""
    description = f"{description or ''}\nWith the digits these defaults change: {DIGITS_TRAINING}"
    kinds = (ModelArguments, DataArguments, OutputArguments, TrainingArguments)
    model_args, data_args, output_args, training_args = parse(kinds, argv, description, DIGITS_TRAINING)
    try:
        optim_args = validate_optim_args(training_args)
        check_processes(training_args.world_size)
    except ValueError as error:
        fail(" ".join(str(error).split()))
    return Arguments(model_args, data_args, output_args, training_args, optim_args)


def check_arguments(arguments: Arguments) -> None:
    """End the run with one line where the arguments do not fit together."""
    training_args, data_args = arguments.training, arguments.data
    if not training_args.do_train and arguments.model.model_name_or_path is None:
        fail("nothing to do: pass --do_train, or --do_eval and the trained model as --model_name_or_path")
    if not training_args.do_train and not training_args.do_eval:
        fail("nothing to do: pass --do_train, --do_eval or both")
    if training_args.push_to_hub and not training_args.do_train:
        fail("--push_to_hub needs --do_train: nothing was trained that could be pushed")
    data_args.check()
    if training_args.do_train and data_args.validation_dir and not data_args.train_dir:
        fail("--do_train with --validation_dir also needs --train_dir")
    if data_args.streaming and training_args.do_train:
        if training_args.max_steps <= 0:
            fail("--streaming does not know how many images there are: pass --max_steps")
        for name in ("eval", "save", "logging"):
            if getattr(training_args, f"{name}_strategy") == "epoch":
                fail(f"--{name}_strategy epoch: a stream has no epochs, so pass steps and --{name}_steps")
        if arguments.optim is not None and arguments.optim.p_granularity == "epoch":
            fail("--optim_args p_granularity=epoch: a stream has no epochs, so pass p_granularity=step")
