"""Train and evaluate an image classifier with the Trainer and `--optim lpsgdm`.

    python run_image_classification.py --do_train --do_eval --optim lpsgdm --output_dir runs/my_digits

With no dataset named it trains a small vision transformer on scikit-learn's digits (8x8 grey images, nothing to
download). Name another dataset with --dataset_name (Hub name or local folder) or --train_dir (one folder per class).
The arguments may also stand in a .json or .yaml file, such as those in recipes/. Name it before all flags; the flags
override it. This script needs the folders beside it.
"""

import hf_lpsgd  # noqa: F401  # makes `--optim lpsgd` and `--optim lpsgdm` known to the Trainer

# isort: split
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import evaluate
import transformers
from card.facts import RunFacts, license_of
from card.writing import PLOT_NAME
from errors.fail import fail
from images.decoding import BadData
from images.labels import composed
from images.prepare import Images, choose_augmentation, chosen_lines, for_model, leave_out_bad, load_images
from models.loading import load_exactly, load_model
from models.trial import divides_by_labels
from run.arguments import Arguments, check_arguments, parse_arguments
from run.hub import CardTrainer, check_push, keep_token_out_of_files
from run.last_batch import LastBatchTrainer, is_left_out
from run.resuming import ExactTrainer, checkpoints_in, find_checkpoint
from run.settings import settle
from transformers import AutoImageProcessor, TrainingArguments, set_seed


class ImageTrainer(ExactTrainer, CardTrainer, LastBatchTrainer):
    """A Trainer that resumes exactly, writes and pushes a model card of its own, and evaluates on every image."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.model_accepts_loss_kwargs and self.args.gradient_accumulation_steps > 1:
            self.model_accepts_loss_kwargs = divides_by_labels(self.model, self.processing_class)


def make_trainer(
    model: Any,
    processor: Any,
    training_args: TrainingArguments,
    train: Any,
    evaluation: Any,
    facts: RunFacts,
    **trainer_options: Any,
) -> ImageTrainer:
    """A Trainer of `model` on the datasets `train` and `evaluation`, either of which may be None."""
    metric = evaluate.load(str(Path(__file__).parent / "run" / "accuracy.py"), keep_in_memory=True)
    return ImageTrainer(
        facts=facts,
        model=model,
        args=training_args,
        train_dataset=train,
        eval_dataset=evaluation,
        processing_class=processor,
        preprocess_logits_for_metrics=lambda out, _: (out[0] if isinstance(out, tuple) else out).argmax(-1),
        compute_metrics=lambda result: metric.compute(predictions=result.predictions, references=result.label_ids),
        **trainer_options,
    )


def facts_for_card(arguments: Arguments, images: Images, augmentation: str) -> RunFacts:
    """What the model card states and the Trainer does not know."""
    data_args, base = arguments.data, arguments.model.model_name_or_path
    name = data_args.dataset_name
    hub_id = None if name is None or Path(name).expanduser().is_dir() else name
    given = name or data_args.train_dir or data_args.validation_dir or ""
    folder = None if hub_id or data_args.is_digits else os.path.basename(os.path.abspath(Path(given).expanduser()))
    held_out = f"{data_args.train_split_name}, {data_args.train_val_split:g} of it held out"
    eval_split = images.evaluation_split or held_out
    return RunFacts(
        dataset="scikit-learn digits" if data_args.is_digits else hub_id or f"the local dataset {folder}",
        dataset_folder=folder,
        dataset_id=hub_id,
        dataset_config=data_args.dataset_config_name,
        eval_split=None if images.evaluation is None else eval_split,
        train_examples=len(images.train) if isinstance(images.train, datasets.Dataset) else None,
        eval_examples=len(images.evaluation) if isinstance(images.evaluation, datasets.Dataset) else None,
        left_out=images.left_out,
        base_model=base,
        license=arguments.output.license or (license_of(base) if base else None),
        hyperparameters={"augmentation": augmentation},
    )


def main(flags: Sequence[str] | None = None, **trainer_options: Any) -> ImageTrainer:
    """Do what the flags say, and return the Trainer.

    Args:
        flags: default: those of the command line.
        trainer_options: more arguments of the Trainer, such as `callbacks`.
    """
    arguments = parse_arguments(sys.argv[1:] if flags is None else flags, __doc__)
    check_arguments(arguments)
    try:
        return run(arguments, **trainer_options)
    except BadData as error:
        fail(error.line, anywhere=True)


def delete(checkpoint: Path) -> None:
    try:
        shutil.rmtree(checkpoint)
    except OSError as error:
        why = "it is a symbolic link" if checkpoint.is_symlink() else error.strerror or error
        fail(f"--overwrite_output_dir cannot delete {str(checkpoint)!r}: {why}; name another --output_dir")


def run(arguments: Arguments, **trainer_options: Any) -> ImageTrainer:
    """Train, evaluate, or both, and leave all there is to know of it in the output folder."""
    training_args, data_args = arguments.training, arguments.data
    do_train, do_eval = training_args.do_train, training_args.do_eval
    keep_token_out_of_files(training_args)
    problem = check_push(training_args) if training_args.push_to_hub else None
    if problem is not None:
        fail(f"--push_to_hub cannot work, so nothing was begun: {problem}")
    transformers.utils.logging.set_verbosity(training_args.get_process_log_level())
    output_dir = Path(str(training_args.output_dir))
    checkpoint = find_checkpoint(training_args.resume_from_checkpoint, output_dir) if do_train else None
    old = checkpoints_in(output_dir) if do_train and checkpoint is None else []
    if old and not arguments.output.overwrite_output_dir:
        fail(
            f"--output_dir {str(output_dir)!r} holds {old[-1].name} of an earlier run: pass --resume_from_checkpoint "
            "True to continue it, --overwrite_output_dir to delete its checkpoints, or another --output_dir"
        )

    if training_args.device.type == "cpu":
        training_args.dataloader_pin_memory = False  # else torch warns that there is nothing to pin for
    settle(data_args, quiet=training_args.process_index > 0 or bool(training_args.disable_tqdm))
    set_seed(training_args.seed)
    with training_args.main_process_first(desc="preparing the data"):
        if training_args.process_index == 0:
            for path in old:
                delete(path)
        images = load_images(data_args, arguments.model.cache_dir, do_train, do_eval)
    images = leave_out_bad(images, data_args)
    if checkpoint is not None:
        model, processor = load_exactly(checkpoint), AutoImageProcessor.from_pretrained(checkpoint)
        if [composed(name) for name in model.config.id2label.values()] != images.classes:
            classes = ", ".join(images.classes)
            fail(f"the classes of {checkpoint!r} are not those of the dataset, which has: {classes}")
    else:
        model, processor = load_model(arguments.model, data_args, images, do_train)
    augmentation = choose_augmentation(data_args, processor, images)
    train, evaluation = for_model(images, model, processor, augmentation, training_args.seed, data_args)
    facts = facts_for_card(arguments, images, augmentation)
    trainer = make_trainer(model, processor, training_args, train, evaluation, facts, **trainer_options)
    if do_train:
        batch, processes = training_args.train_batch_size, training_args.world_size
        config: Any = training_args.accelerator_config
        if config.split_batches:
            batch //= processes
        option = "--per_device_train_batch_size"
        trainer.leaves_out_last = is_left_out(model, processor, facts.train_examples, batch, processes, option)
    is_main = trainer.is_world_process_zero()
    if is_main:
        counts = [
            f"{'a stream of' if data_args.streaming else f'{len(data):,}'} images to {verb}"
            for data, verb in ((images.train, "train"), (images.evaluation, "evaluate"))
            if data
        ]
        size = f"{model.config.model_type} of {model.num_parameters():,} parameters"
        if checkpoint is None and not arguments.model.chosen and not data_args.is_digits:
            size += " (for another: --model_type, --config_overrides)"
        print(f"{' and '.join(counts)} in {len(images.classes)} classes; {size}")
        if do_train:
            print(chosen_lines(images, processor, data_args, augmentation))

    if do_train:
        metrics = trainer.train_exactly(checkpoint)
        trainer.save_model()
        trainer.log_metrics("train", metrics)
        trainer.save_metrics("train", metrics)
        trainer.save_state()
    if do_eval:
        metrics = trainer.evaluate()
        trainer.log_metrics("eval", metrics)
        trainer.save_metrics("eval", metrics)
        trainer.save_state()
    not_drawn = trainer.write_card() if do_train else None
    not_pushed = trainer.push_all() if training_args.push_to_hub else None
    # Communication still under way while Python shuts down can crash a process.
    trainer.accelerator.wait_for_everyone()
    trainer.accelerator.end_training()
    if not is_main:
        return trainer
    if do_eval:
        print(f"accuracy = {metrics['eval_accuracy']:.3f}")
    if do_train:
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
    return trainer


if __name__ == "__main__":
    main()
