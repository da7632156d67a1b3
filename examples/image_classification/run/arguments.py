"""The command line of run_image_classification.py: flags, recipes in files, and the checks that need no data.

Both scripts read their flags by `parse`.
"""

import argparse
import json
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import torch
import yaml
from errors.fail import fail, refused_in_one_line
from errors.nearest import did_you_mean, listed, nearest
from images.arguments import DataArguments
from models.arguments import ModelArguments
from transformers import HfArgumentParser, TrainingArguments, get_scheduler
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

from hf_lpsgd.processes import check_processes
from hf_lpsgd.trainer import OptimArgs, validate_optim_args

from .output_paths import check_cache_folder, check_output_folder

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
        metadata={
            "help": "Licence for the model card, as the Hub names it. Default: that of --model_name_or_path, if any."
        },
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
    """An HfArgumentParser whose error is one line, without the usage of 150 options, and guesses what was meant.

    Attributes:
        choices: from each argument that allows certain values only to what reads its text.
        flags: names of all flags.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.choices: dict[str, Callable[[str], Any]] = {}
        self.flags: list[str] = []
        super().__init__(*args, **kwargs)

    def add_argument(self, *names: Any, **options: Any) -> argparse.Action:
        if options.get("choices"):
            options["type"] = one_of(options["choices"], options.get("type") or str)
            self.choices[names[0].lstrip("-").replace("-", "_")] = options["type"]
        if options.get("help"):
            # A percent sign alone, as transformers 5.2 has one, ends --help with an error of argparse.
            options["help"] = re.sub(r"%%|%(?!\()", "%%", options["help"])
        self.flags += names
        return super().add_argument(*names, **options)

    def error(self, message: str) -> NoReturn:
        fail(message)


def one_of(choices: Sequence[Any], read: Callable[[str], Any]) -> Callable[[str], Any]:
    """`read`, which refuses a text that means none of `choices`, and names the nearest first."""

    def read_choice(text: str) -> Any:
        value = read(text)
        if value not in choices:
            guess, names = did_you_mean(text, choices), listed(text, choices)
            raise argparse.ArgumentTypeError(f"invalid choice: {text!r}.{guess} Choose from {names}")
        return value

    return read_choice


def guess_flag(unknown: Sequence[str], flags: Sequence[str]) -> str:
    """What the first flag among `unknown` arguments may have been meant to be."""
    given = [argument.partition("=")[0].lstrip("-") for argument in unknown if argument.startswith("--")]
    name = nearest(given[0], [flag[2:] for flag in flags if flag.startswith("--")]) if given else None
    return "" if name is None else f" Did you mean --{name}?"


def read_recipe(file: str, kinds: Sequence[type]) -> dict[str, Any]:
    """The arguments in a .json or .yaml file, by name; each must be a field of one of the dataclasses `kinds`."""
    text = Path(file).read_text(encoding="utf-8")
    values = json.loads(text) if file.endswith(".json") else yaml.safe_load(text)
    if not isinstance(values, dict):
        fail(f"{file} must hold one object of argument names and values")
    known = {option.name for kind in kinds for option in fields(kind)}
    unknown = [str(name) for name in values if name not in known]
    if unknown:
        guess = did_you_mean(unknown[0], known)
        fail(f"{file} has unknown arguments: {', '.join(unknown)}{f'.{guess}' if guess else ';'} --help lists all")
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
    parser = Parser(kinds, description=description, allow_abbrev=False)
    sources = {"dataset_name", "train_dir", "validation_dir"}
    recipe = argv[0] if argv and argv[0].endswith((".json", ".yaml", ".yml")) else None
    flags = list(argv) if recipe is None else list(argv[1:])
    try:
        values = {} if recipe is None else read_recipe(recipe, kinds)
        named = {name for name, value in values.items() if value}
        named |= {flag.partition("=")[0].lstrip("-").replace("-", "_") for flag in flags}
        # A text is read as if it were given on the command line. YAML takes a bare `no` for false.
        for name in values.keys() & parser.choices.keys():
            if values[name] is not None:
                values[name] = "no" if values[name] is False else str(values[name])
        parser.set_defaults(**{**({} if sources & named else digits or {}), **values})
        *objects, unknown = parser.parse_args_into_dataclasses(args=flags, return_remaining_strings=True)
    except OSError as error:
        fail(f"cannot read {recipe}: {error.strerror}{guess_recipe(str(recipe))}")
    except (TypeError, ValueError, yaml.YAMLError) as error:
        fail(" ".join(str(error).split()))
    if unknown:
        guess = guess_flag(unknown, parser.flags)
        fail(f"unknown arguments: {' '.join(unknown)}{f'.{guess}' if guess else ';'} --help lists all")
    return objects


def check_at_least(arguments: Any, low: int, *names: str) -> None:
    """End the run with one line where one of the arguments `names` is below `low`; None is left alone."""
    for name in names:
        value = getattr(arguments, name)
        if value is not None and not value >= low:  # as NaN is not
            fail(f"--{name} must be at least {low}, not {value}")


def guess_recipe(file: str) -> str:
    """Which file beside `file` may have been meant."""
    folder = Path(file).parent
    names = [path.name for path in folder.glob("*.*")] if folder.is_dir() else []
    found = [name for name in names if name.endswith((".json", ".yaml", ".yml"))]
    guess = nearest(Path(file).name, found)
    return f". Did you mean {folder / guess}?" if guess else ""


def parse_arguments(argv: Sequence[str], description: str | None = None) -> Arguments:
    """The arguments of the Trainer script, with `--optim_args` parsed."""
    description = f"{description or ''}\nWith the digits these defaults change: {DIGITS_TRAINING}"
    kinds = (ModelArguments, DataArguments, OutputArguments, TrainingArguments)
    model_args, data_args, output_args, training_args = parse(kinds, argv, description, DIGITS_TRAINING)
    with refused_in_one_line():
        optim_args = validate_optim_args(training_args)
        check_processes(training_args.world_size)
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
    for name in training_args.report_to or ():
        if name not in INTEGRATION_TO_CALLBACK:
            guess, names = did_you_mean(name, INTEGRATION_TO_CALLBACK), ", ".join(INTEGRATION_TO_CALLBACK)
            fail(f"--report_to {name!r} is not known.{guess} It must be all, none, or of {names}")
    batches = ("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps")
    check_at_least(training_args, 1, *batches)
    check_at_least(training_args, 0, "seed", "dataloader_num_workers", "max_grad_norm")
    data_args.check()
    if training_args.do_train:  # a model is also evaluated by the recipe that it was trained by
        arguments.model.check(data_args.image_size)
        check_scheduler(training_args)
    check_paths(arguments)
    if training_args.do_train and data_args.validation_dir and not data_args.train_dir:
        fail("--do_train with --validation_dir also needs --train_dir")
    if data_args.streaming and training_args.do_train:
        if training_args.max_steps <= 0:
            fail("--streaming does not know how many images there are: pass --max_steps")
        if data_args.dataset_name and data_args.max_train_samples is not None:
            fail("--max_train_samples: a stream may begin with one class only: leave this out, or --streaming")
        for name in ("eval", "save", "logging"):
            if getattr(training_args, f"{name}_strategy") == "epoch":
                fail(f"--{name}_strategy epoch: a stream has no epochs, so pass steps and --{name}_steps")
        if arguments.optim is not None and arguments.optim.p_granularity == "epoch":
            fail("--optim_args p_granularity=epoch: a stream has no epochs, so pass p_granularity=step")


def check_scheduler(training_args: TrainingArguments) -> None:
    """End the run with one line where the LR scheduler cannot be made."""
    name: Any = training_args.lr_scheduler_type
    options: Any = training_args.lr_scheduler_kwargs or {}
    what = f"--lr_scheduler_type {name.value} with --lr_scheduler_kwargs '{json.dumps(options)}': "
    with refused_in_one_line(what, by=(TypeError, ValueError)):
        get_scheduler(name, torch.optim.SGD([torch.zeros(1)], lr=1e-3), 1, 2, scheduler_specific_kwargs=options)


def check_paths(arguments: Arguments) -> None:
    """End the run with one line where it could not write what it has to."""
    training_args = arguments.training
    check_output_folder("--output_dir", str(training_args.output_dir))
    check_cache_folder("--cache_dir", arguments.model.cache_dir)
    if "tensorboard" in (training_args.report_to or ()):
        for name, folder in (
            ("--logging_dir", getattr(training_args, "logging_dir", None)),  # not in every version of transformers
            ("TENSORBOARD_LOGGING_DIR", os.environ.get("TENSORBOARD_LOGGING_DIR")),
        ):
            if folder:
                check_output_folder(name, Path(folder).expanduser())
