"""Train and evaluate an image classifier with the Trainer and `--optim lpsgdm`.

    python run_image_classification.py --do_train --do_eval --optim lpsgdm --output_dir runs/digits

With no dataset named it trains a small vision transformer on scikit-learn's digits (8x8 grey images, nothing to
download). Name another dataset with --dataset_name (Hub name or local folder) or --train_dir (one folder a class).
The arguments may also stand in a .json or .yaml file, such as those in recipes/, named before any others; these
override it. Needs the other files of this folder beside it.
"""

import hf_lpsgd  # noqa: F401  # makes `--optim lpsgd` and `--optim lpsgdm` known to the Trainer

# isort: split
import json
import logging
import shutil
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any, NoReturn

import datasets
import evaluate
import torch
import transformers
import yaml
from cached_images import prepare_images
from hub import CardTrainer, check_push, keep_token_out_of_files
from image_data import (
    BadData,
    DataArguments,
    ImageDataset,
    choose_splits,
    fail,
    find_columns,
    first_images,
    load_splits,
    with_class_labels,
)
from image_models import ModelArguments, from_scratch, load_exactly, pretrained
from model_card import PLOT_NAME, RunFacts, license_of
from streamed_images import Stream, StreamedImages, choose_streams
from transformers import (
    AutoImageProcessor,
    HfArgumentParser,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)
from transformers.trainer_callback import ExportableState

from hf_lpsgd.trainer import validate_optim_args

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


ARGUMENTS = (ModelArguments, DataArguments, TrainingArguments)


class Parser(HfArgumentParser):
    """An HfArgumentParser that answers a mistake with the mistake, without the usage of 150 options."""

    def error(self, message: str) -> NoReturn:
        fail(message)


def read_recipe(file: str) -> dict[str, Any]:
    """The arguments in a .json or .yaml file, by name."""
    text = Path(file).read_text(encoding="utf-8")
    values = json.loads(text) if file.endswith(".json") else yaml.safe_load(text)
    if not isinstance(values, dict):
        fail(f"{file} must hold one object of argument names and values")
    known = {option.name for kind in ARGUMENTS for option in fields(kind)}
    unknown = [str(name) for name in values if name not in known]
    if unknown:
        fail(f"{file} has unknown arguments: {', '.join(unknown)}; --help lists all")
    return values


def parse_arguments(argv: list[str]) -> tuple[ModelArguments, DataArguments, TrainingArguments]:
    parser = Parser(
        ARGUMENTS,  # type: ignore[arg-type]
        description=f"{__doc__}\nWith the digits these defaults change: {DIGITS_TRAINING}",
        allow_abbrev=False,
    )
    sources = {"dataset_name", "train_dir", "validation_dir"}
    arguments: Any
    recipe = argv[0] if argv and argv[0].endswith((".json", ".yaml", ".yml")) else None
    flags = argv if recipe is None else argv[1:]
    try:
        values = {} if recipe is None else read_recipe(recipe)
        named = {name for name, value in values.items() if value}
        named |= {flag.partition("=")[0].lstrip("-").replace("-", "_") for flag in flags}
        parser.set_defaults(**{**({} if sources & named else DIGITS_TRAINING), **values})
        *arguments, unknown = parser.parse_args_into_dataclasses(args=flags, return_remaining_strings=True)
        if unknown:
            fail(f"unknown arguments: {' '.join(unknown)}; --help lists all")
        validate_optim_args(arguments[2])
    except OSError as error:
        fail(f"cannot read {recipe}: {error.strerror}")
    except (TypeError, ValueError, yaml.YAMLError) as error:
        fail(" ".join(str(error).split()))
    return arguments[0], arguments[1], arguments[2]


def check_arguments(model_args: ModelArguments, data_args: DataArguments, training_args: TrainingArguments) -> None:
    if not training_args.do_train and model_args.model_name_or_path is None:
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
        optim_args = validate_optim_args(training_args)
        if optim_args is not None and optim_args.p_granularity == "epoch":
            fail("--optim_args p_granularity=epoch: a stream has no epochs, so pass p_granularity=step")


def checkpoints_in(folder: Path) -> list[Path]:
    """The checkpoints in `folder`, oldest first."""
    numbered = [(path.name.removeprefix("checkpoint-"), path) for path in folder.glob("checkpoint-*")]
    return [path for _, path in sorted((int(number), path) for number, path in numbered if number.isdigit())]


def is_complete(checkpoint: Path) -> bool:
    # The Trainer writes its state last, so a checkpoint cut short by a kill has none that can be read.
    try:
        json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return True


def find_checkpoint(wanted: str | bool | None, folder: Path) -> str | None:
    """The checkpoint that --resume_from_checkpoint means: a path, or for True the last complete one in `folder`."""
    if wanted is None or str(wanted).lower() == "false":
        return None
    if str(wanted).lower() == "true":
        complete = [path for path in checkpoints_in(folder) if is_complete(path)]
        if not complete:
            fail(f"--resume_from_checkpoint True: {str(folder)!r} holds no complete checkpoint to go on from")
        return str(complete[-1])
    if not is_complete(Path(str(wanted))):
        fail(f"--resume_from_checkpoint {wanted!r} is no complete checkpoint: it has no trainer_state.json")
    return str(wanted)


class ExactResume(TrainerCallback, ExportableState):
    """Carries over a resume what the Trainer does not: the epoch of the random views and the running loss."""

    def __init__(self, images: ImageDataset | None) -> None:
        self.images = images
        self.trainer: Any = None

    def state(self) -> dict[str, Any]:
        if not hasattr(self.trainer, "_tr_loss"):  # not training yet
            return {"args": {}, "attributes": {}}
        running = {
            "total": float(self.trainer._total_loss_scalar),
            "since_log": float(self.trainer._tr_loss),
            "last_log": self.trainer._globalstep_last_logged,
        }
        return {"args": {}, "attributes": running}

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        running = state.stateful_callbacks.setdefault("ExactResume", self.state())["attributes"]
        if state.global_step == 0 or not running:
            return
        self.trainer._total_loss_scalar = running["total"]
        if args.world_size == 1:  # with several processes each has its own sum, and only one was saved
            self.trainer._tr_loss += running["since_log"]
            self.trainer._globalstep_last_logged = running["last_log"]

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if "train_loss" in (logs or {}) and state.global_step:
            # The Trainer's mean is over the steps since the resume; this one is over all of them.
            for entry in (logs, state.log_history[-1]):
                entry["train_loss"] = self.trainer._total_loss_scalar / state.global_step

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.images is not None:
            self.images.epoch.fill_(int(state.epoch or 0))


def make_trainer(
    model: Any,
    processor: Any,
    training_args: TrainingArguments,
    train: datasets.Dataset | Stream | None,
    evaluation: datasets.Dataset | Stream | None,
    columns: tuple[str, str],
    augmentation: str,
    data_args: DataArguments,
    facts: RunFacts,
) -> CardTrainer:
    mode = "L" if getattr(model.config, "num_channels", 3) == 1 else "RGB"
    prepared: list[Any] = []
    for data, kind in ((train, augmentation), (evaluation, "none")):
        options = (data, columns, processor, mode, kind, training_args.seed)
        if isinstance(data, Stream):
            prepared.append(StreamedImages(*options, data_args.shuffle_buffer if data is train else None))
        else:
            prepared.append(None if data is None else prepare_images(*options, data_args.image_cache_mb))
    metric = evaluate.load(str(Path(__file__).with_name("accuracy.py")), keep_in_memory=True)
    exact = ExactResume(prepared[0] if isinstance(prepared[0], ImageDataset) else None)
    exact.trainer = CardTrainer(
        facts=facts,
        model=model,
        args=training_args,
        train_dataset=prepared[0],
        eval_dataset=prepared[1],
        processing_class=processor,
        callbacks=[exact],
        preprocess_logits_for_metrics=lambda out, _: (out[0] if isinstance(out, tuple) else out).argmax(-1),
        compute_metrics=lambda result: metric.compute(predictions=result.predictions, references=result.label_ids),
    )
    return exact.trainer


def facts_for_card(
    model_args: ModelArguments,
    data_args: DataArguments,
    splits: datasets.DatasetDict,
    train: datasets.Dataset | None,
    evaluation: datasets.Dataset | None,
    augmentation: str,
) -> RunFacts:
    """What the model card tells and the Trainer does not know."""
    name, base = data_args.dataset_name, model_args.model_name_or_path
    hub_id = None if name is None or Path(name).expanduser().is_dir() else name
    folder = Path(name or data_args.train_dir or data_args.validation_dir or "").expanduser().resolve().name
    held_out = f"{data_args.train_split_name}, {data_args.train_val_split:g} of it held out"
    found = (split for split in ("validation", "test") if split in splits)
    return RunFacts(
        dataset="scikit-learn digits" if data_args.is_digits else hub_id or f"the local dataset {folder}",
        dataset_id=hub_id,
        dataset_config=data_args.dataset_config_name,
        eval_split=None if evaluation is None else data_args.eval_split_name or next(found, held_out),
        train_images=len(train) if isinstance(train, datasets.Dataset) else None,
        eval_images=len(evaluation) if isinstance(evaluation, datasets.Dataset) else None,
        base_model=base,
        license=model_args.license or (license_of(base) if base else "apache-2.0"),
        hyperparameters={"augmentation": augmentation},
    )


def train_exactly(trainer: Trainer, checkpoint: str | None) -> dict[str, float]:
    """`trainer.train`, with every tensor of the best model restored; the model must be that of `checkpoint`."""
    # The Trainer itself restores only tensors saved under the names they have in memory, and warns of the others;
    # `load_exactly` restores and checks them all.
    logger = logging.getLogger("transformers.trainer")

    def tells_more(record: logging.LogRecord) -> bool:
        return "keys in the checkpoint model loaded" not in record.getMessage()

    logger.addFilter(tells_more)
    try:
        result = trainer.train(resume_from_checkpoint=checkpoint)
    finally:
        logger.removeFilter(tells_more)
    best = trainer.state.best_model_checkpoint
    sharded = trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled
    if trainer.args.load_best_model_at_end and best is not None and not sharded:
        trainer.accelerator.unwrap_model(trainer.model).load_state_dict(load_exactly(best).state_dict())
    return result.metrics


def main() -> None:
    arguments = parse_arguments(sys.argv[1:])
    check_arguments(*arguments)
    try:
        run(*arguments)
    except BadData as error:
        fail(error.line, anywhere=True)


def run(model_args: ModelArguments, data_args: DataArguments, training_args: TrainingArguments) -> None:
    """Train, evaluate, or both, and leave all there is to know of it in the output folder."""
    keep_token_out_of_files(training_args)
    problem = check_push(training_args) if training_args.push_to_hub else None
    if problem is not None:
        fail(f"--push_to_hub cannot work, so nothing was begun: {problem}")
    transformers.utils.logging.set_verbosity(training_args.get_process_log_level())
    output_dir = Path(str(training_args.output_dir))
    checkpoint, old = None, []
    if training_args.do_train:
        checkpoint = find_checkpoint(training_args.resume_from_checkpoint, output_dir)
        old = [] if checkpoint else checkpoints_in(output_dir)
    if old and not model_args.overwrite_output_dir:
        fail(
            f"--output_dir {str(output_dir)!r} holds {old[-1].name} of an earlier run: pass --resume_from_checkpoint "
            "True to continue it, --overwrite_output_dir to delete its checkpoints, or another --output_dir"
        )

    if training_args.device.type == "cpu":
        training_args.dataloader_pin_memory = False  # else torch warns that there is nothing to pin for
    if training_args.process_index > 0 or training_args.disable_tqdm or data_args.is_digits:
        datasets.disable_progress_bars()
    if data_args.is_digits:
        torch.set_num_threads(1)  # in layers this small, threads wait for each other longer than they compute
    set_seed(training_args.seed)
    with training_args.main_process_first(desc="preparing the data"):
        if training_args.process_index == 0:
            for path in old:
                shutil.rmtree(path)
        splits = load_splits(data_args, model_args.cache_dir)
        columns = find_columns(next(iter(splits.values())), data_args)
        wanted = training_args.do_train, training_args.do_eval
        if data_args.streaming:
            train, evaluation = choose_streams(splits, data_args, columns, *wanted)
        else:
            splits = with_class_labels(splits, columns[1])
            train, evaluation = choose_splits(splits, data_args, columns[1], *wanted)
    some = train if train is not None else evaluation
    assert some is not None
    names = some.features[columns[1]].names
    labels = {"id2label": dict(enumerate(names)), "label2id": {name: index for index, name in enumerate(names)}}
    if checkpoint is not None:
        model, processor = load_exactly(checkpoint), AutoImageProcessor.from_pretrained(checkpoint)
        if model.config.id2label != labels["id2label"]:
            fail(f"the classes of {checkpoint!r} are not those of the dataset, which has: {', '.join(names)}")
    elif model_args.model_name_or_path is not None:
        model, processor = pretrained(model_args, labels)
    else:
        model, processor = from_scratch(model_args, data_args, first_images(some, columns[0]), labels)

    augmentation = data_args.augmentation
    if augmentation == "auto":
        small = processor.size.get("height", processor.size.get("shortest_edge", 224)) <= 64
        augmentation = "shift" if data_args.is_digits else "shift_flip" if small else "resized_crop_flip"
    facts = facts_for_card(model_args, data_args, splits, train, evaluation, augmentation)
    trainer = make_trainer(model, processor, training_args, train, evaluation, columns, augmentation, data_args, facts)
    is_main = trainer.is_world_process_zero()
    if is_main:
        counts = [
            f"{'a stream of' if data_args.streaming else f'{len(data):,}'} images to {verb}"
            for data, verb in ((train, "train"), (evaluation, "evaluate"))
            if data
        ]
        size = f"{model.config.model_type} of {model.num_parameters():,} parameters"
        print(f"{' and '.join(counts)} in {len(names)} classes; {size}")

    if training_args.do_train:
        metrics = train_exactly(trainer, checkpoint)
        trainer.save_model(_internal_call=True)  # else it pushes too, before there is a result to tell
        trainer.log_metrics("train", metrics)
        trainer.save_metrics("train", metrics)
        trainer.save_state()
    if training_args.do_eval:
        metrics = trainer.evaluate()
        trainer.log_metrics("eval", metrics)
        trainer.save_metrics("eval", metrics)
        trainer.save_state()
    not_drawn = trainer.write_card() if training_args.do_train else None
    not_pushed = trainer.push_all() if training_args.push_to_hub else None
    if not is_main:
        return
    if training_args.do_eval:
        print(f"accuracy = {metrics['eval_accuracy']:.3f}")
    if training_args.do_train:
        print(f"model:   {output_dir}")
        print(f"card:    {output_dir / 'README.md'}")
        print(f"curves:  {output_dir / PLOT_NAME if not_drawn is None else f'not drawn. {not_drawn}'}")
    print(f"metrics: {output_dir / 'all_results.json'}")
    print(f"state:   {output_dir / 'trainer_state.json'}")
    if training_args.push_to_hub:
        failed, pushes = trainer.failed_pushes(), len(trainer.background_pushes)
        if failed:
            print(f"warning: {len(failed)} of {pushes} pushes during training failed; the first because {failed[0]}")
        if not_pushed is not None:
            again = f"hf upload {trainer.hub_model_id} {output_dir} --exclude 'checkpoint-*'"
            sys.stdout.flush()
            fail(f"the push failed: {not_pushed}. All is saved in {output_dir}; to push it again: {again}")
        print(f"hub:     {trainer.hub_model_id}")


if __name__ == "__main__":
    main()
