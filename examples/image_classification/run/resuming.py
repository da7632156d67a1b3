"""Resuming: from which checkpoint, and so that the run ends as the uninterrupted one would."""

import json
import logging
from pathlib import Path
from typing import Any

import torch
from errors.fail import fail
from images.inputs import ImageDataset
from models.loading import load_exactly
from transformers import Trainer, TrainerCallback
from transformers.trainer_callback import ExportableState


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
    """Restores on a resume what the Trainer does not restore: the running loss, and the epoch of the random views.

    Attributes:
        total: sum of the loss over the steps up to the last log.
        since_log: sum of the loss over the steps since then.
        last_log: step of the last log.
        first: step before the first one that is summed.
    """

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer
        self.restart(0)

    def restart(self, step: int) -> None:
        self.total, self.last_log, self.first = 0.0, step, step
        self.since_log = torch.zeros((), device=self.trainer.args.device)

    def state(self) -> dict[str, Any]:
        running = {"total": self.total, "since_log": self.since_log.item(), "last_log": self.last_log}
        return {"args": {}, "attributes": {**running, "first": self.first}}

    def add(self, loss: torch.Tensor) -> None:
        if self.trainer.args.logging_nan_inf_filter:
            mean = self.since_log / (1 + self.trainer.state.global_step - self.last_log)
            loss = torch.where(loss.isfinite(), loss, mean)
        self.since_log += loss

    def share(self) -> None:
        """Replace `since_log` by its mean over all processes, because only the first process saves it."""
        if self.trainer.args.world_size > 1:
            self.since_log = self.trainer.accelerator.reduce(self.since_log, "mean")

    def correct(self, logs: dict[str, float]) -> None:
        """Replace the Trainer's mean losses, which leave out the steps before the resume."""
        step = self.trainer.state.global_step
        if "loss" in logs or "train_loss" in logs:
            self.share()
            loss = self.since_log.item()
            self.total += loss
            self.since_log = torch.zeros_like(self.since_log)
            if "loss" in logs:
                logs["loss"] = loss / (step - self.last_log)
            elif step > self.first:
                logs["train_loss"] = self.total / (step - self.first)
            self.last_log = step

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        running = state.stateful_callbacks.setdefault("ExactResume", {"args": {}, "attributes": {}})["attributes"]
        self.restart(state.global_step)
        if state.global_step > 0 and running:
            self.total, self.last_log = running["total"], running["last_log"]
            self.since_log += running["since_log"]
            self.first = running.get("first", 0)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if control.should_save:
            self.share()

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if isinstance(self.trainer.train_dataset, ImageDataset):
            self.trainer.train_dataset.epoch.fill_(int(state.epoch or 0))

    on_epoch_end = on_step_end


class ExactTrainer(Trainer):
    """A Trainer that resumes exactly. Its model must be that of the checkpoint, to the last tensor."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.running = ExactResume(self)
        self.add_callback(self.running)

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        loss = super().training_step(*args, **kwargs)
        self.running.add(loss)
        return loss

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        self.running.correct(logs)
        super().log(logs, *args, **kwargs)

    def train_exactly(self, checkpoint: str | None) -> dict[str, float]:
        """`train`, with every tensor of the best model restored.

        Args:
            checkpoint: where to go on from; None to start at the beginning.

        Returns:
            The metrics of the training.
        """
        # The Trainer itself restores only tensors saved under the names they have in memory, and warns of the others;
        # `load_exactly` restores and checks them all.
        logger = logging.getLogger("transformers.trainer")

        def tells_more(record: logging.LogRecord) -> bool:
            return "keys in the checkpoint model loaded" not in record.getMessage()

        logger.addFilter(tells_more)
        try:
            result = self.train(resume_from_checkpoint=checkpoint)
        finally:
            logger.removeFilter(tells_more)
        best = self.state.best_model_checkpoint
        sharded = self.is_deepspeed_enabled or self.is_fsdp_enabled
        if self.args.load_best_model_at_end and best is not None and not sharded:
            self.accelerator.unwrap_model(self.model).load_state_dict(load_exactly(best).state_dict())
        return result.metrics
