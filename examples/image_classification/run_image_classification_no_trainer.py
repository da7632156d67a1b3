"""Train an image classifier with LPSGDM in a plain Accelerate loop, without the Trainer.

    python run_image_classification_no_trainer.py --output_dir runs/loop
    torchrun --nproc_per_node 2 run_image_classification_no_trainer.py --mixed_precision bf16 --output_dir runs/loop

The images and the models are those of run_image_classification.py, under the same flags. With no dataset named, they
are scikit-learn's digits and a small vision transformer. This script needs the folders beside it.
"""

import math
import os
import shutil
import sys
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import DataLoaderConfiguration, DeepSpeedPlugin, ProjectConfiguration, set_seed
from errors.fail import fail, last_line, refused_in_one_line
from errors.nearest import did_you_mean
from images.arguments import DataArguments
from images.decoding import BadData
from images.inputs import ImageDataset
from images.prepare import choose_augmentation, chosen_lines, for_model, leave_out_bad, load_images
from models.arguments import ModelArguments
from models.loading import load_model
from run.arguments import check_at_least, parse
from run.last_batch import is_left_out
from run.output_paths import check_cache_folder, check_output_folder
from run.settings import settle
from torch.utils.data import DataLoader
from tqdm.auto import tqdm
from transformers import get_cosine_schedule_with_warmup

from hf_lpsgd import LPSGDM, tie_p_schedule
from hf_lpsgd.optim.measurement import reference_size
from hf_lpsgd.processes import check_processes
from hf_lpsgd.schedules import P_SCHEDULES

UNFINISHED = "unfinished_"


@dataclass
class LoopArguments:
    """How the model is trained, and what is saved."""

    num_epochs: int = field(default=40, metadata={"aliases": ["--num_train_epochs"]})
    max_train_steps: int | None = field(
        default=None, metadata={"help": "Optimizer steps to make; takes the place of --num_epochs."}
    )
    batch_size: int = field(
        default=64,
        metadata={
            "aliases": ["--per_device_train_batch_size"],
            "help": "On each process; of all processes together with --split_batches.",
        },
    )
    eval_batch_size: int = field(
        default=120, metadata={"aliases": ["--per_device_eval_batch_size"], "help": "As --batch_size."}
    )
    split_batches: bool = field(default=False, metadata={"help": "Split each batch over the processes."})
    gradient_accumulation_steps: int = 1
    lr: float = field(default=2e-3, metadata={"aliases": ["--learning_rate"], "help": "Peak of the learning rate."})
    num_warmup_steps: float = field(
        default=0.1, metadata={"help": "Optimizer steps; below 1, a share of all of them."}
    )
    p_max: float = field(default=20.0, metadata={"help": "Largest order of the norm."})
    grad_rms: str | None = field(
        default="auto",
        metadata={
            "help": "Root mean square of the gradient, which the step divides by: a number, auto to measure it, or "
            "none for the paper's step."
        },
    )
    p_schedule: str = field(default="cosine", metadata={"help": f"One of {', '.join(P_SCHEDULES)}."})
    momentum: float = 0.6
    weight_decay: float = 0.0
    max_grad_norm: float = field(default=1.0, metadata={"help": "0 does not clip."})
    seed: int = 42
    cpu: bool = field(default=False, metadata={"help": "Train on the CPU, whatever else there is."})
    mixed_precision: Literal["no", "fp16", "bf16", "fp8"] | None = field(
        default=None, metadata={"help": "Default: what Accelerate's config says."}
    )
    dataloader_num_workers: int = field(default=0, metadata={"help": "Processes that prepare the images."})
    checkpointing_steps: str | None = field(
        default=None, metadata={"help": "Optimizer steps between two saves of the state, or 'epoch'."}
    )
    resume_from_checkpoint: str | None = field(
        default=None, metadata={"help": "Folder that --checkpointing_steps left: step_N or epoch_N."}
    )
    with_tracking: bool = field(default=False, metadata={"help": "Log to TensorBoard, in --output_dir."})
    output_dir: str = field(default="runs/accelerate_loop", metadata={"aliases": ["--project_dir"]})

    @property
    def save_every(self) -> int | None:
        """How many optimizer steps lie between two saves."""
        return None if self.checkpointing_steps in (None, "epoch") else int(str(self.checkpointing_steps))

    def check(self) -> None:
        sizes = ("batch_size", "eval_batch_size", "gradient_accumulation_steps")
        check_at_least(self, 1, "num_epochs", "max_train_steps", *sizes)
        check_at_least(self, 0, "seed", "dataloader_num_workers", "max_grad_norm")
        every, folder = self.checkpointing_steps, self.resume_from_checkpoint
        if every not in (None, "epoch") and not (str(every).isdecimal() and int(str(every)) > 0):
            fail(f"--checkpointing_steps {every!r} is neither 'epoch' nor a whole number of at least 1")
        if folder is not None and (
            Path(folder).name.startswith(UNFINISHED) or not (Path(folder) / "custom_checkpoint_0.pkl").is_file()
        ):
            fail(f"--resume_from_checkpoint '{folder}' is no folder that a save by --checkpointing_steps completed")
        if not (self.num_warmup_steps >= 0 and (self.num_warmup_steps < 1 or self.num_warmup_steps % 1 == 0)):
            fail(f"--num_warmup_steps {self.num_warmup_steps} is neither a number of steps nor a share of them")
        if self.p_schedule not in P_SCHEDULES:
            guess = did_you_mean(self.p_schedule, P_SCHEDULES)
            fail(f"Invalid p schedule: {self.p_schedule!r}.{guess} It must be one of {', '.join(P_SCHEDULES)}.")
        # A trial, so that a wrong value is reported before the images are loaded.
        with refused_in_one_line():
            trial = self.optimizer([torch.zeros(1)])
            self.tie(trial, get_cosine_schedule_with_warmup(trial, 0, 1), 1, 0)

    def optimizer(self, parameters: Iterable[torch.Tensor]) -> LPSGDM:
        grad_rms: Any = None if str(self.grad_rms).lower() == "none" else self.grad_rms
        with suppress(TypeError, ValueError):  # the optimizer says what is wrong
            grad_rms = float(grad_rms)
        options: dict[str, Any] = {"lr": self.lr, "momentum": self.momentum, "weight_decay": self.weight_decay}
        return LPSGDM(parameters, p_max=self.p_max, grad_rms=grad_rms, **options)

    def tie(self, optimizer: Any, scheduler: Any, steps: int, warmup: int) -> None:
        """Tie p to `scheduler`, which counts `steps` steps; the first `warmup` of them are the warm-up."""
        schedule: Any = self.p_schedule  # any name; the wrong ones are refused
        tie_p_schedule(optimizer, scheduler, schedule, num_training_steps=steps, num_warmup_steps=warmup)


@dataclass
class Progress:
    """How far training is; registered with Accelerate, so that it is saved and loaded with everything else."""

    epoch: int = 0
    batch: int = 0  # of this epoch, on each process
    step: int = 0  # of the optimizer

    def state_dict(self) -> dict[str, int]:
        return asdict(self)

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.__dict__.update(state)


def parse_arguments(argv: list[str]) -> tuple[ModelArguments, DataArguments, LoopArguments]:
    model_args, data_args, args = parse((ModelArguments, DataArguments, LoopArguments), argv, __doc__)
    data_args.check()
    model_args.check(data_args.image_size)
    if data_args.streaming:
        fail("--streaming: this loop needs to know how many images there are; run_image_classification.py does not")
    args.check()
    check_output_folder("--output_dir", args.output_dir)
    check_cache_folder("--cache_dir", model_args.cache_dir)
    return model_args, data_args, args


def make_accelerator(args: LoopArguments) -> Accelerator:
    # Older versions of Accelerate do not read DeepSpeed's settings themselves where there is a PartialState already.
    is_deepspeed = os.environ.get("ACCELERATE_USE_DEEPSPEED", "").lower() == "true"
    accelerator = Accelerator(
        cpu=args.cpu,
        mixed_precision=args.mixed_precision,
        gradient_accumulation_steps=args.gradient_accumulation_steps,
        deepspeed_plugin=DeepSpeedPlugin() if is_deepspeed else None,
        dataloader_config=DataLoaderConfiguration(split_batches=args.split_batches, use_seedable_sampler=True),
        log_with="tensorboard" if args.with_tracking else None,
        project_config=ProjectConfiguration(project_dir=args.output_dir),
    )
    check_processes(accelerator.num_processes, "--cpu to this script")
    if accelerator.state.deepspeed_plugin is not None:
        # Left alone, "auto" clips at 1.0, and an offloaded optimizer is replaced by DeepSpeed's own Adam.
        deepspeed_config = accelerator.state.deepspeed_plugin.deepspeed_config
        deepspeed_config["gradient_clipping"] = args.max_grad_norm
        deepspeed_config["zero_force_ds_cpu_optimizer"] = False
    return accelerator


def make_loader(images: Any, batch_size: int, shuffle: bool, workers: int, drop_last: bool = False) -> DataLoader:
    # Without a generator of its own a loader draws from dropout's whenever it starts, and a resumed run starts it once
    # more than the uninterrupted one.
    options: dict[str, Any] = {"num_workers": workers, "drop_last": drop_last, "generator": torch.Generator()}
    return DataLoader(images, batch_size, shuffle=shuffle, **options)


def save_state(accelerator: Accelerator, folder: Path) -> None:
    """Save under another name first, so that a run killed in the middle leaves nothing that looks complete."""
    unfinished = folder.with_name(UNFINISHED + folder.name)
    accelerator.save_state(str(unfinished))
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        shutil.rmtree(folder, ignore_errors=True)
        unfinished.rename(folder)
    accelerator.wait_for_everyone()


@torch.no_grad()
def evaluate(accelerator: Accelerator, model: torch.nn.Module, loader: DataLoader) -> float:
    model.eval()
    correct = []
    for batch in loader:
        labels = batch.pop("labels")
        predictions, labels = accelerator.gather_for_metrics((model(**batch).logits.argmax(-1), labels))
        correct.append((predictions == labels).float())
    return torch.cat(correct).mean().item()


def main(model_args: ModelArguments, data_args: DataArguments, args: LoopArguments) -> None:
    processes = PartialState(cpu=args.cpu)
    settle(data_args, quiet=not processes.is_local_main_process)
    with processes.main_process_first():
        try:
            images = load_images(data_args, model_args.cache_dir, do_train=True, do_eval=True)
        except BaseException:
            if processes.is_main_process:
                processes.wait_for_everyone()  # the others wait for this one, and end for the same reason
            raise
    images = leave_out_bad(images, data_args)
    set_seed(args.seed)
    model, processor = load_model(model_args, data_args, images)
    augmentation = choose_augmentation(data_args, processor, images)
    train, evaluation = for_model(images, model, processor, augmentation, args.seed, data_args)
    assert isinstance(train, ImageDataset)
    each = args.batch_size // processes.num_processes if args.split_batches else args.batch_size
    drop_last = is_left_out(model, processor, len(train), each, processes.num_processes, "--batch_size")
    train_loader = make_loader(train, args.batch_size, True, args.dataloader_num_workers, drop_last)
    eval_loader = make_loader(evaluation, args.eval_batch_size, False, args.dataloader_num_workers)

    with refused_in_one_line():
        accelerator = make_accelerator(args)
    accelerator.print(chosen_lines(images, processor, data_args, augmentation))
    optimizer: Any = args.optimizer(model.parameters())
    # Unless batches are split, Accelerate steps the LR scheduler once per process at every optimizer step. So its
    # length is given in those steps. tie_p_schedule is given the same numbers and sees to the rest itself.
    unit = 1 if args.split_batches else accelerator.num_processes
    batches_per_epoch = math.ceil(len(train_loader) / unit)
    total = args.max_train_steps or args.num_epochs * math.ceil(batches_per_epoch / args.gradient_accumulation_steps)
    warmup = math.ceil(args.num_warmup_steps * total) if args.num_warmup_steps < 1 else int(args.num_warmup_steps)
    scheduler = get_cosine_schedule_with_warmup(optimizer, warmup * unit, total * unit)
    with refused_in_one_line():
        model, optimizer, train_loader, eval_loader, scheduler = accelerator.prepare(
            model, optimizer, train_loader, eval_loader, scheduler
        )
        args.tie(optimizer, scheduler, total * unit, warmup * unit)
        if len(train_loader) != batches_per_epoch:
            raise ValueError(f"{len(train_loader)} batches per epoch, and the schedules count {batches_per_epoch}")

    progress, output_dir = Progress(), Path(args.output_dir)
    accelerator.register_for_checkpointing(progress)
    if args.resume_from_checkpoint:
        try:
            accelerator.load_state(args.resume_from_checkpoint)
        except Exception as error:  # of as many kinds as there are files in it
            where = f"--resume_from_checkpoint '{args.resume_from_checkpoint}'"
            fail(f"{where} cannot be loaded into this model: {last_line(error)}")
    if args.with_tracking:
        config = {name: value for name, value in asdict(args).items() if isinstance(value, (int, float, str))}
        accelerator.init_trackers("logs", config)
    bar = tqdm(total=total, initial=progress.step, disable=not accelerator.is_local_main_process)
    accuracy = math.nan
    while progress.step < total:
        train_loader.set_epoch(progress.epoch)
        train.epoch.fill_(progress.epoch)
        batches: Any = train_loader
        if progress.batch:
            # Where none are left, older versions of Accelerate would give one that is None.
            are_left = progress.batch < batches_per_epoch
            batches = accelerator.skip_first_batches(train_loader, progress.batch) if are_left else ()
        losses = []
        model.train()
        for batch in batches:
            progress.batch += 1
            with accelerator.accumulate(model):
                loss = model(**batch).loss
                accelerator.backward(loss)
                if accelerator.sync_gradients and args.max_grad_norm > 0:
                    accelerator.clip_grad_norm_(model.parameters(), args.max_grad_norm)
                lr = scheduler.get_last_lr()[0]
                optimizer.step()
                scheduler.step()
                optimizer.zero_grad()
            losses.append(loss.detach())
            if not accelerator.sync_gradients:
                continue
            progress.step += 1
            logs = {"loss": accelerator.reduce(torch.stack(losses).mean(), "mean").item(), "learning_rate": lr}
            logs["p"] = optimizer.param_groups[0]["p"]
            size = reference_size(optimizer.param_groups[0])
            if size is not None:
                logs["grad_rms"] = size
            losses.clear()
            accelerator.log(logs, step=progress.step)
            bar.update()
            bar.set_postfix({name: f"{value:.4g}" for name, value in logs.items()}, refresh=False)
            if args.save_every is not None and progress.step % args.save_every == 0:
                save_state(accelerator, output_dir / f"step_{progress.step}")
            if progress.step == total:
                break
        accuracy = evaluate(accelerator, model, eval_loader)
        accelerator.log({"accuracy": accuracy}, step=progress.step)
        progress.epoch, progress.batch = progress.epoch + 1, 0
        if args.checkpointing_steps == "epoch":
            save_state(accelerator, output_dir / f"epoch_{progress.epoch}")
    bar.close()
    if math.isnan(accuracy):
        accuracy = evaluate(accelerator, model, eval_loader)
    accelerator.unwrap_model(model).save_pretrained(
        output_dir,
        is_main_process=accelerator.is_main_process,
        state_dict=accelerator.get_state_dict(model),
        save_function=accelerator.save,
    )
    if accelerator.is_main_process:
        processor.save_pretrained(output_dir)
    accelerator.wait_for_everyone()
    accelerator.end_training()
    accelerator.print(f"accuracy = {accuracy:.3f}")


if __name__ == "__main__":
    arguments = parse_arguments(sys.argv[1:])
    try:
        main(*arguments)
    except BadData as error:
        fail(error.line, anywhere=True)
