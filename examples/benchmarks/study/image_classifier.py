"""Train a ResNet on CIFAR-10 by the showcase, examples/image_classification: the study calls `main`."""

import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import HfArgumentParser, Trainer

from .showcase import of_showcase

MODEL = ["--model_type", "cifar_resnet", "--config_overrides", "depths=[1,1,1,1],hidden_sizes=[16,64,128,256]"]


@dataclass
class Arguments:
    """Which images."""

    cifar10: str = field(metadata={"help": "a folder of the parquet files of CIFAR-10"})
    split: str = field(
        default="test",
        metadata={"help": "validation: hold a tenth of the training images out, and evaluate on them"},
    )


def main(arguments: list[str], **trainer_options: Any) -> tuple[Trainer, dict[str, float]]:
    """Train, and return the Trainer and the evaluation at the end.

    Args:
        arguments: the flags of the showcase and of `Arguments`.
        trainer_options: more arguments of the Trainer.
    """
    parser = HfArgumentParser(Arguments)  # type: ignore[arg-type]
    ours, flags = parser.parse_args_into_dataclasses(arguments, return_remaining_strings=True)
    with tempfile.TemporaryDirectory() as folder:
        dataset = Path(ours.cifar10).resolve()
        if ours.split == "validation":  # without the test images the showcase holds some of the others out
            without_test = Path(folder) / "cifar10"
            without_test.mkdir()
            for file in dataset.rglob("train-*.parquet"):
                (without_test / file.name).symlink_to(file)
            dataset = without_test
            flags += ["--train_val_split", "0.1"]
        flags += ["--dataset_name", str(dataset)]
        trainer = of_showcase("run_image_classification").main(
            ["--do_train", "--do_eval", *MODEL, *flags], **trainer_options
        )
    return trainer, trainer.state.log_history[-1]
