"""Train and evaluate an image classifier with the Trainer and `--optim lpsgdm`.

    python examples/image_classification.py --do_train --do_eval --optim lpsgdm --output_dir runs/digits

With no dataset named it trains a small vision transformer on scikit-learn's digits (8x8 grey images, nothing to
download). Name another dataset with --dataset_name (Hub name or local folder) or --train_dir (one folder a class).
The arguments may also stand in a .json or .yaml file, named as the only argument. Needs image_data.py beside it.
"""

import hf_lpsgd  # makes `--optim lpsgd` and `--optim lpsgdm` known to the Trainer

# isort: split
import json
import logging
import re
import shutil
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import datasets
import evaluate
import torch
import transformers
import yaml
from image_data import (
    DataArguments,
    ImageDataset,
    choose_splits,
    fail,
    find_columns,
    first_line,
    load_splits,
    with_class_labels,
)
from PIL import Image
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForImageClassification,
    HfArgumentParser,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)
from transformers.trainer_callback import ExportableState

from hf_lpsgd.plotting import plot_history
from hf_lpsgd.trainer import validate_optim_args

# What changes when no dataset is named, so that the shortest command line already trains well.
DIGITS_MODEL = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "patch_size": 2,
    "initializer_range": 0.1,
}
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
class ModelArguments:
    """Which model is trained."""

    model_name_or_path: str | None = field(
        default=None, metadata={"help": "Pretrained model to start from: a Hub name or a local folder."}
    )
    model_type: str = field(
        default="vit", metadata={"help": "Architecture to train from scratch (vit, resnet, convnext, swin, ...)."}
    )
    config_overrides: str | None = field(
        default=None,
        metadata={"help": "Changes to the from-scratch config: 'hidden_size=192,depths=[1,1]', or a JSON object."},
    )
    ignore_mismatched_sizes: bool = field(
        default=False, metadata={"help": "Replace a pretrained head whose number of classes differs."}
    )
    model_revision: str = field(default="main", metadata={"help": "Branch, tag or commit of the pretrained model."})
    cache_dir: str | None = field(default=None, metadata={"help": "Where models and datasets are cached."})
    overwrite_output_dir: bool = field(
        default=False, metadata={"help": "Delete the checkpoints of an earlier run in --output_dir, then start anew."}
    )


class Parser(HfArgumentParser):
    """An HfArgumentParser that answers a mistake with the mistake, without the usage of 150 options."""

    def error(self, message: str) -> NoReturn:
        fail(message)


def parse_arguments(argv: list[str]) -> tuple[ModelArguments, DataArguments, TrainingArguments]:
    parser = Parser(
        (ModelArguments, DataArguments, TrainingArguments),  # type: ignore[arg-type]
        description=f"{__doc__}\nWith the digits these defaults change: {DIGITS_TRAINING}",
        allow_abbrev=False,
    )
    sources = {"dataset_name", "train_dir", "validation_dir"}
    arguments: Any
    try:
        if len(argv) == 1 and argv[0].endswith((".json", ".yaml", ".yml")):
            values = yaml.safe_load(Path(argv[0]).read_text(encoding="utf-8"))
            if not isinstance(values, dict):
                fail(f"{argv[0]} must hold one object of argument names and values")
            changed = {} if any(values.get(name) for name in sources) else DIGITS_TRAINING
            arguments = parser.parse_dict({**changed, **values})
        else:
            if not sources & {argument.partition("=")[0].lstrip("-").replace("-", "_") for argument in argv}:
                parser.set_defaults(**DIGITS_TRAINING)
            *arguments, unknown = parser.parse_args_into_dataclasses(args=argv, return_remaining_strings=True)
            if unknown:
                fail(f"unknown arguments: {' '.join(unknown)}; --help lists all")
        validate_optim_args(arguments[2])
    except OSError as error:
        fail(f"cannot read {argv[0]}: {error.strerror}")
    except (TypeError, ValueError, yaml.YAMLError) as error:
        fail(" ".join(str(error).split()))
    return arguments[0], arguments[1], arguments[2]


def check_arguments(model_args: ModelArguments, data_args: DataArguments, training_args: TrainingArguments) -> None:
    if not training_args.do_train and model_args.model_name_or_path is None:
        fail("nothing to do: pass --do_train, or --do_eval and the trained model as --model_name_or_path")
    if not training_args.do_train and not training_args.do_eval:
        fail("nothing to do: pass --do_train, --do_eval or both")
    data_args.check()
    if training_args.do_train and data_args.validation_dir and not data_args.train_dir:
        fail("--do_train with --validation_dir also needs --train_dir")


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


def load_exactly(folder: str) -> Any:
    """The model saved in `folder`, after a check that every tensor of it was restored."""
    try:
        model, info = AutoModelForImageClassification.from_pretrained(folder, output_loading_info=True)
    except (OSError, RuntimeError, ValueError) as error:
        fail(f"cannot load the model in {folder!r}: {first_line(error)}")
    wrong = {key: sorted(map(str, value)) for key, value in info.items() if value}
    if wrong:
        fail(f"the model in {folder!r} was not restored in full, so the run cannot go on exactly: {wrong}")
    return model


def read_overrides(text: str) -> dict[str, Any]:
    if text.lstrip().startswith("{"):
        return json.loads(text)
    overrides = {}
    for item in re.split(r",(?![^\[]*\])", text):
        key, equals, value = (part.strip() for part in item.partition("="))
        if not equals:
            raise ValueError(f"{item!r} has no '='")
        try:
            overrides[key] = json.loads(value.lower() if value in ("True", "False") else value)
        except ValueError:
            overrides[key] = value
    return overrides


def from_scratch(
    model_args: ModelArguments, data_args: DataArguments, sample: list[Image.Image], labels: dict[str, Any]
) -> tuple[Any, Any]:
    """A model with random weights and an image processor for it, for images such as those in `sample`."""
    kind, side = model_args.model_type, min(sample[0].size)
    grey = all(image.mode in ("1", "L", "LA") for image in sample)
    changes: dict[str, Any] = {"image_size": data_args.image_size or (side if side <= 64 else 224)}
    changes["num_channels"] = 1 if grey else 3
    try:
        known = AutoConfig.for_model(kind).to_dict()
    except ValueError:
        fail(f"--model_type {kind!r} is no architecture of transformers; try vit, resnet or swin")
    try:
        overrides = read_overrides(model_args.config_overrides) if model_args.config_overrides else {}
    except ValueError as error:
        fail(f"--config_overrides {model_args.config_overrides!r} is neither 'key=value,...' nor JSON: {error}")
    unknown = sorted(set(overrides) - set(known) - set(changes))
    if unknown:
        fail(f"--config_overrides: {kind} has no {', '.join(unknown)}; it has {', '.join(known)}")
    size = overrides.get("image_size", changes["image_size"])
    if size < 128 and isinstance(known.get("patch_size"), int):
        # The default of 16 is meant for 224 pixels; take about 8 patches a side, and none that is cut.
        changes["patch_size"] = next(patch for patch in range(max(2, size // 8), size + 1) if size % patch == 0)
    if data_args.is_digits and kind == "vit":
        changes.update(DIGITS_MODEL)
    given = {**changes, **overrides}
    try:
        config = AutoConfig.for_model(kind, **given, **labels)
        model = AutoModelForImageClassification.from_config(config)
    except Exception as error:  # of the many kinds that configs and layers raise for values that do not fit
        fail(f"no image classifier of --model_type {kind!r} with {given}: {' '.join(str(error).split())}")
    # The class that needs no torchvision; before transformers had two backends, the plain name was that class.
    processor_class = getattr(transformers, "BitImageProcessorPil", None) or transformers.BitImageProcessor
    channels = config.num_channels
    return model, processor_class(
        size={"shortest_edge": size if size < 128 else round(size / 0.875)},
        crop_size={"height": size, "width": size},
        image_mean=[0.5] * channels,
        image_std=[0.5] * channels,
        do_convert_rgb=channels == 3,
    )


def pretrained(model_args: ModelArguments, labels: dict[str, Any]) -> tuple[Any, Any]:
    """The model and image processor of --model_name_or_path, with a head for `labels`."""
    name = str(model_args.model_name_or_path)
    source: dict[str, Any] = {"revision": model_args.model_revision, "cache_dir": model_args.cache_dir}
    replace = model_args.ignore_mismatched_sizes
    try:
        config = AutoConfig.from_pretrained(name, **source, **labels)
        processor = AutoImageProcessor.from_pretrained(name, **source)
        model = AutoModelForImageClassification.from_pretrained(
            name, config=config, ignore_mismatched_sizes=replace, **source
        )
    except (OSError, RuntimeError, ValueError) as error:
        if "ignore_mismatched_sizes" in str(error):
            classes = len(labels["id2label"])
            fail(f"{name!r} has a head for other classes than the dataset's {classes}: add --ignore_mismatched_sizes")
        fail(f"--model_name_or_path {name!r} cannot be loaded: {first_line(error)}")
    return model, processor


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

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.images is not None:
            self.images.epoch.fill_(int(state.epoch or 0))


def make_trainer(
    model: Any,
    processor: Any,
    training_args: TrainingArguments,
    train: datasets.Dataset | None,
    evaluation: datasets.Dataset | None,
    columns: tuple[str, str],
    augmentation: str,
) -> Trainer:
    mode = "L" if getattr(model.config, "num_channels", 3) == 1 else "RGB"
    prepared = [
        None if data is None else ImageDataset(data, columns, processor, mode, kind, training_args.seed)
        for data, kind in ((train, augmentation), (evaluation, "none"))
    ]
    metric = evaluate.load(str(Path(hf_lpsgd.__file__).with_name("metrics") / "accuracy.py"), keep_in_memory=True)
    exact = ExactResume(prepared[0])
    exact.trainer = Trainer(
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
    model_args, data_args, training_args = parse_arguments(sys.argv[1:])
    check_arguments(model_args, data_args, training_args)
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

    if training_args.process_index > 0 or data_args.is_digits:
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
        splits = with_class_labels(splits, columns[1])
        train, evaluation = choose_splits(splits, data_args, columns[1], training_args.do_train, training_args.do_eval)
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
        model, processor = from_scratch(model_args, data_args, some[:16][columns[0]], labels)

    augmentation = data_args.augmentation
    if augmentation == "auto":
        small = processor.size.get("height", processor.size.get("shortest_edge", 224)) <= 64
        augmentation = "shift" if data_args.is_digits else "shift_flip" if small else "resized_crop_flip"
    trainer = make_trainer(model, processor, training_args, train, evaluation, columns, augmentation)
    is_main = trainer.is_world_process_zero()
    if is_main:
        counts = [
            f"{len(data):,} images to {verb}" for data, verb in ((train, "train"), (evaluation, "evaluate")) if data
        ]
        size = f"{model.config.model_type} of {model.num_parameters():,} parameters"
        print(f"{' and '.join(counts)} in {len(names)} classes; {size}")

    if training_args.do_train:
        metrics = train_exactly(trainer, checkpoint)
        trainer.save_model()
        trainer.log_metrics("train", metrics)
        trainer.save_metrics("train", metrics)
        trainer.save_state()
    if training_args.do_eval:
        metrics = trainer.evaluate()
        trainer.log_metrics("eval", metrics)
        trainer.save_metrics("eval", metrics)
        trainer.save_state()
    if training_args.push_to_hub:
        trainer.push_to_hub(dataset=data_args.dataset_name, tasks="image-classification")
    if not is_main:
        return
    if training_args.do_eval:
        print(f"accuracy = {metrics['eval_accuracy']:.3f}")
    if training_args.do_train:
        print(f"model:   {output_dir}")
        curves = output_dir / "training_curves.png"
        optim = getattr(training_args.optim, "value", training_args.optim)
        try:
            plot_history(trainer.state.log_history, curves, title=f"{model.config.model_type}, --optim {optim}")
            print(f"curves:  {curves}")
        except (ImportError, ValueError) as error:
            print(f"curves:  not drawn. {error}")
    print(f"metrics: {output_dir / 'all_results.json'}")
    print(f"state:   {output_dir / 'trainer_state.json'}")


if __name__ == "__main__":
    main()
