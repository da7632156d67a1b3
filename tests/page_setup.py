"""What snippets on pages call by name without making it: a tiny model, images, and a script of the reader's own."""

from pathlib import Path

import torch
from transformers import (
    Trainer,
    TrainerCallback,
    TrainingArguments,
    ViTConfig,
    ViTForImageClassification,
)

SCRIPT = """\
from transformers import HfArgumentParser, TrainingArguments

args, = HfArgumentParser(TrainingArguments).parse_args_into_dataclasses()
print("optimizer:", args.optim.value)
"""


def make_model():
    config = ViTConfig(
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        image_size=8,
        patch_size=4,
        num_channels=1,
    )
    return ViTForImageClassification(config)


train_dataset = [{"pixel_values": torch.randn(1, 8, 8), "labels": label} for label in (0, 1) * 4]
batches = torch.utils.data.DataLoader(train_dataset, batch_size=2)


def write_script(name="train.py"):
    """Write a script that parses the Trainer's arguments and does not import hf_lpsgd."""
    Path(name).write_text(SCRIPT)


def interrupted_run(folder):
    """Train two steps of four, with a checkpoint after them; the arguments of the run."""
    import hf_lpsgd  # noqa: F401

    class Interrupted(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            control.should_training_stop = state.global_step == 2

    args = TrainingArguments(
        folder, max_steps=4, save_steps=2, per_device_train_batch_size=2, optim="lpsgdm", report_to="none"
    )
    Trainer(make_model(), args, train_dataset=train_dataset, callbacks=[Interrupted()]).train()
    return args
