"""Train an image classifier with LPSGDM in a plain Accelerate loop, without the Trainer.

    python run_image_classification_no_trainer.py --output_dir runs/loop
    accelerate launch --num_processes 2 run_image_classification_no_trainer.py --mixed_precision bf16 --output_dir runs/loop

The model and the data are those of image_classification.py: a small vision transformer and scikit-learn's digits.
"""

import argparse
import math
import os
import shutil
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NoReturn

import torch
from accelerate import Accelerator
from accelerate.utils import DataLoaderConfiguration, ProjectConfiguration, set_seed
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch.utils.data import DataLoader, TensorDataset
from tqdm.auto import tqdm
from transformers import ViTConfig, ViTForImageClassification, get_cosine_schedule_with_warmup

from hf_lpsgd import LPSGDM, tie_p_schedule

MODEL: dict[str, Any] = {
    "image_size": 8,
    "num_channels": 1,
    "patch_size": 2,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "initializer_range": 0.1,
    "num_labels": 10,
}
UNFINISHED = "unfinished_"


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


def fail(message: str) -> NoReturn:
    """End the run with one line, printed by the first process only."""
    if os.environ.get("RANK", "0") == "0":
        print(f"run_image_classification_no_trainer.py: error: {message}", file=sys.stderr)
    raise SystemExit(2)


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        fail(message)


def positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    add = parser.add_argument
    add("--num_epochs", type=positive, default=40)
    add("--max_train_steps", type=positive, help="Optimizer steps to make; takes the place of --num_epochs.")
    add("--batch_size", type=positive, default=64, help="On each process; of all together with --split_batches.")
    add("--split_batches", action="store_true", help="Split each batch over the processes.")
    add("--gradient_accumulation_steps", type=positive, default=1)
    add("--lr", type=float, default=2e-3)
    add("--num_warmup_steps", type=float, default=0.1, help="Optimizer steps; below 1, a share of all of them.")
    add("--p_max", type=float, default=20.0)
    add("--p_schedule", default="cosine", help="cosine, linear, lr or constant.")
    add("--momentum", type=float, default=0.9)
    add("--weight_decay", type=float, default=0.0)
    add("--max_grad_norm", type=float, default=1.0, help="0 does not clip.")
    add("--seed", type=int, default=42)
    add("--cpu", action="store_true", help="Train on the CPU, whatever else there is.")
    add("--mixed_precision", choices=["no", "fp16", "bf16", "fp8"], help="Default: what Accelerate's config says.")
    add("--checkpointing_steps", help="Save the state every so many optimizer steps, or at each 'epoch'.")
    add("--resume_from_checkpoint", type=Path, help="Folder that --checkpointing_steps left: step_N or epoch_N.")
    add("--with_tracking", action="store_true", help="Log to TensorBoard, in --output_dir.")
    add("--output_dir", "--project_dir", type=Path, default=Path("runs/accelerate_loop"))
    args = parser.parse_args(argv)
    every = args.checkpointing_steps
    if every not in (None, "epoch") and not (every.isdecimal() and int(every) > 0):
        fail(f"--checkpointing_steps {every!r} is neither 'epoch' nor a whole number of at least 1")
    folder = args.resume_from_checkpoint
    if folder is not None and (
        folder.name.startswith(UNFINISHED) or not (folder / "custom_checkpoint_0.pkl").is_file()
    ):
        fail(f"--resume_from_checkpoint '{folder}' is no folder that a save by --checkpointing_steps completed")
    if args.num_warmup_steps < 0 or (args.num_warmup_steps >= 1 and args.num_warmup_steps % 1):
        fail(f"--num_warmup_steps {args.num_warmup_steps} is neither a number of steps nor a share of them")
    return args


def get_dataloaders(batch_size: int) -> tuple[DataLoader, DataLoader]:
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 8 - 1
    labels = torch.tensor(digits.target)
    train, evaluation = train_test_split(range(len(labels)), test_size=360, stratify=labels, random_state=42)
    # Without a generator of its own a loader draws from dropout's whenever it starts, and a resumed run starts it once
    # more than the uninterrupted one.
    return (
        DataLoader(TensorDataset(images[train], labels[train]), batch_size, shuffle=True, generator=torch.Generator()),
        DataLoader(TensorDataset(images[evaluation], labels[evaluation]), 120, generator=torch.Generator()),
    )


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
    for images, labels in loader:
        predictions = model(pixel_values=images).logits.argmax(-1)
        predictions, labels = accelerator.gather_for_metrics((predictions, labels))
        correct.append((predictions == labels).float())
    return torch.cat(correct).mean().item()


def main(args: argparse.Namespace) -> None:
    set_seed(args.seed)
    train_loader, eval_loader = get_dataloaders(args.batch_size)
    model = ViTForImageClassification(ViTConfig(**MODEL))
    try:
        accelerator = Accelerator(
            cpu=args.cpu,
            mixed_precision=args.mixed_precision,
            gradient_accumulation_steps=args.gradient_accumulation_steps,
            dataloader_config=DataLoaderConfiguration(split_batches=args.split_batches, use_seedable_sampler=True),
            log_with="tensorboard" if args.with_tracking else None,
            project_config=ProjectConfiguration(project_dir=str(args.output_dir)),
        )
        if accelerator.state.deepspeed_plugin is not None:
            # Left alone, "auto" clips at 1.0, and an offloaded optimizer is replaced by DeepSpeed's own Adam.
            deepspeed_config = accelerator.state.deepspeed_plugin.deepspeed_config
            deepspeed_config["gradient_clipping"] = args.max_grad_norm
            deepspeed_config["zero_force_ds_cpu_optimizer"] = False
        optimizer = LPSGDM(
            model.parameters(),
            lr=args.lr,
            p_max=args.p_max,
            momentum=args.momentum,
            weight_decay=args.weight_decay,
        )
        processes = accelerator.num_processes
        batches_per_epoch = math.ceil(len(train_loader) / (1 if args.split_batches else processes))
        steps_per_epoch = math.ceil(batches_per_epoch / args.gradient_accumulation_steps)
        total = args.max_train_steps or args.num_epochs * steps_per_epoch
        warmup = args.num_warmup_steps
        warmup = math.ceil(warmup * total) if warmup < 1 else int(warmup)
        # Unless batches are split, Accelerate steps the LR scheduler once for each process at every optimizer step. So
        # its length is given in those steps; tie_p_schedule is given the same numbers and sees to the rest itself.
        unit = 1 if args.split_batches else processes
        scheduler = get_cosine_schedule_with_warmup(optimizer, warmup * unit, total * unit)
        model, optimizer, train_loader, eval_loader, scheduler = accelerator.prepare(
            model, optimizer, train_loader, eval_loader, scheduler
        )
        tie_p_schedule(
            optimizer,
            scheduler,
            args.p_schedule,
            num_training_steps=total * unit,
            num_warmup_steps=warmup * unit,
        )
        if len(train_loader) != batches_per_epoch:
            raise ValueError(f"{len(train_loader)} batches an epoch, and the schedules count {batches_per_epoch}")
    except ValueError as error:
        fail(str(error))

    progress = Progress()
    accelerator.register_for_checkpointing(progress)
    if args.resume_from_checkpoint:
        accelerator.load_state(str(args.resume_from_checkpoint))
    if args.with_tracking:
        config = {name: value for name, value in vars(args).items() if isinstance(value, (int, float, str))}
        accelerator.init_trackers("logs", config)
    every = args.checkpointing_steps
    bar = tqdm(total=total, initial=progress.step, disable=not accelerator.is_local_main_process)
    accuracy = math.nan
    while progress.step < total:
        train_loader.set_epoch(progress.epoch)
        batches = accelerator.skip_first_batches(train_loader, progress.batch) if progress.batch else train_loader
        losses = []
        model.train()
        for images, labels in batches:
            progress.batch += 1
            with accelerator.accumulate(model):
                loss = model(pixel_values=images, labels=labels).loss
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
            losses.clear()
            accelerator.log(logs, step=progress.step)
            bar.update()
            bar.set_postfix({name: f"{value:.4g}" for name, value in logs.items()}, refresh=False)
            if every not in (None, "epoch") and progress.step % int(every) == 0:
                save_state(accelerator, args.output_dir / f"step_{progress.step}")
            if progress.step == total:
                break
        accuracy = evaluate(accelerator, model, eval_loader)
        accelerator.log({"accuracy": accuracy}, step=progress.step)
        progress.epoch, progress.batch = progress.epoch + 1, 0
        if every == "epoch":
            save_state(accelerator, args.output_dir / f"epoch_{progress.epoch}")
    bar.close()
    if math.isnan(accuracy):
        accuracy = evaluate(accelerator, model, eval_loader)
    accelerator.unwrap_model(model).save_pretrained(
        args.output_dir,
        is_main_process=accelerator.is_main_process,
        state_dict=accelerator.get_state_dict(model),
        save_function=accelerator.save,
    )
    accelerator.end_training()
    accelerator.print(f"accuracy = {accuracy:.3f}")


if __name__ == "__main__":
    main(parse_args())
