"""The tasks of the study: data, model, number of epochs; each small enough for one core and some seconds."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from . import data
from .data import Data
from .models import VGG, ResNet, Transformer

__all__ = ["TASKS", "Task"]


def _of_the_script() -> NoReturn:
    raise TypeError("the task's script has its own data and model")


@dataclass(frozen=True)
class Task:
    """A task: what it is in one line, its data, and a new model, made after the seed was set.

    Attributes:
        script: the Trainer script in this folder that trains it; None for the loop of training.py.
        flags: more flags of the script, after those of every script; {NAME} is a place of `data.PLACES`.
        metric: what a cell is judged by, the name of its entry; a loss is better if it is lower.
        epochs_to_choose: how long to train where the learning rate is chosen; None for `epochs`.
    """

    description: str
    data: Callable[[], Data]
    model: Callable[[], nn.Module]
    epochs: int
    batch_size: int = 64
    script: str | None = None
    flags: str = ""
    metric: str = "accuracy"
    epochs_to_choose: int | None = None

    @property
    def lower_is_better(self) -> bool:
        return self.metric.endswith("loss")

    @property
    def measure(self) -> str:
        """The metric in words."""
        return "loss" if self.lower_is_better else self.metric

    def value(self, cell: dict[str, Any]) -> float:
        """The metric of a cell; the worst where the training diverged."""
        value = cell[self.metric]
        return math.inf if value is None else value

    def best(self, values: dict[Any, float]) -> Any:
        """The key of the best value."""
        return (min if self.lower_is_better else max)(values, key=lambda key: values[key])


def _pretrain(model: nn.Module, images: Tensor, labels: Tensor, epochs: int, rate: float) -> dict[str, Tensor]:
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate)
    steps_per_epoch = len(images) // 64
    steps = epochs * steps_per_epoch
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps)
    for step in range(steps):
        if step % steps_per_epoch == 0:
            order = torch.randperm(len(images))
        batch = order[step % steps_per_epoch * 64 :][:64]
        nn.functional.cross_entropy(model(images[batch]), labels[batch]).backward()
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
    return model.state_dict()


@cache
def _pretrained_resnet() -> dict[str, Tensor]:
    """A residual network trained on 10,000 images of the first five classes."""
    images, labels = data.of_classes(data.cifar("train"), 0, 4, 10_000)
    torch.manual_seed(0)
    return _pretrain(ResNet(5), images, labels, 8, 3e-3)


@cache
def _pretrained_vit() -> dict[str, Tensor]:
    """A transformer trained on 15,000 images of the first five classes."""
    images, labels = data.of_classes(data.cifar("train"), 0, 4, 15_000)
    torch.manual_seed(0)
    return _pretrain(Transformer(192, 16, 5), data.patches(images, 8), labels, 12, 1e-3)


def _with_new_head(model: nn.Module, pretrained: dict[str, Tensor]) -> nn.Module:
    weights = {name: weight for name, weight in pretrained.items() if not name.startswith("head.")}
    model.load_state_dict(weights, strict=False)
    return model


def _resnet_with_new_head() -> nn.Module:
    model = ResNet(5)
    return _with_new_head(model, _pretrained_resnet())


def _vit_with_new_head() -> nn.Module:
    model = Transformer(192, 16, 5)
    return _with_new_head(model, _pretrained_vit())


def _text_model() -> nn.Module:
    classes = data.text_vocabulary()
    return Transformer(classes, data.TEXT_LENGTH, classes, is_text=True)


def _shakespeare(steps: int) -> Task:
    return Task(
        f"next character of tinyshakespeare, nanoGPT's model for a CPU (0.8 million parameters), {steps:,} steps of "
        "12 pieces of 64 characters; the loss on the last tenth of the text, or on a part before it to choose by",
        _of_the_script,
        _of_the_script,
        epochs=1,
        batch_size=12,
        script="character_model",
        flags=f"--text_file {{texts}}/tinyshakespeare.txt --max_steps {steps} --warmup_steps 100 --weight_decay 0.1 "
        '--lr_scheduler_type cosine_with_min_lr --lr_scheduler_kwargs {{"min_lr_rate":0.1}} --adam_beta2 0.99 '
        "--logging_strategy steps --logging_steps 0.05 --eval_strategy steps --eval_steps 0.1",
        metric="eval_loss",
    )


def _sst2(examples: int, epochs: int) -> Task:
    return Task(
        f"SST-2, a pretrained MiniLM (22.7 million parameters), {examples:,} examples, {epochs} "
        f"{'epoch' if epochs == 1 else 'epochs'} of batches of 32; the accuracy on the 872 development examples, "
        "or on 2,000 of the training file to choose by",
        _of_the_script,
        _of_the_script,
        epochs=epochs,
        batch_size=32,
        script="sentence_classifier",
        flags="--model_name_or_path {minilm} --train_file {texts}/sst2_train.tsv --test_file {texts}/sst2_dev.tsv "
        f"--max_train_samples {examples} --lr_scheduler_type linear --warmup_steps 0.06 --weight_decay 0.01 "
        "--train_sampling_strategy group_by_length --per_device_eval_batch_size 32 "
        "--logging_strategy steps --logging_steps 0.1 --eval_strategy steps --eval_steps 0.25",
    )


TASKS = {
    "digits_vit": Task(
        "digits, ViT, initial weights of standard deviation 0.02",
        data.digit_patches,
        lambda: Transformer(4, 16, 10),
        15,
    ),
    "digits_vit_torch_init": Task(
        "digits, ViT, torch's default initialization",
        data.digit_patches,
        lambda: Transformer(4, 16, 10, std=None),
        15,
    ),
    "digits_resnet": Task(
        "digits, ResNet with batch norm", data.digit_images, lambda: ResNet(10, channels=1, stem_stride=1), 8
    ),
    "cifar_vit": Task("CIFAR-10, ViT, 4,000 images", data.cifar_patches, lambda: Transformer(192, 16, 10), 5),
    "cifar_resnet": Task("CIFAR-10, ResNet, 4,000 images", data.cifar_images, lambda: ResNet(10), 4),
    "cifar_vgg": Task(
        "CIFAR-10, VGG-11 with batch norm and a quarter of its channels, 4,000 images",
        data.cifar_images,
        lambda: VGG(10),
        4,
    ),
    "finetune_resnet": Task(
        "ResNet pretrained on five classes of CIFAR-10, fine-tuned on 2,000 images of the others",
        data.cifar_new_classes,
        _resnet_with_new_head,
        8,
    ),
    "finetune_vit": Task(
        "ViT pretrained on five classes of CIFAR-10, fine-tuned on 2,000 images of the others",
        data.cifar_new_classes_patches,
        _vit_with_new_head,
        8,
    ),
    "text": Task("next character of a Python module, causal transformer", data.text, _text_model, 6, batch_size=32),
    "text_trainer": Task(
        "next character of a Python module, GPT-2 of two layers, by a Trainer script that does not know this package",
        data.text,
        _text_model,
        6,
        batch_size=32,
        script="language_model",
    ),
    "shakespeare": _shakespeare(2000),
    "shakespeare_8000": _shakespeare(8000),
    "sst2": _sst2(16000, 1),
    "sst2_2000": _sst2(2000, 3),
    "cifar10": Task(
        "CIFAR-10, all 50,000 images, a ResNet of 1.2 million parameters and as many operations as ResNet-20, from "
        "scratch by the showcase, 30 epochs of batches of 128, with bfloat16 autocast; learning rates chosen with 5 "
        "epochs",
        _of_the_script,
        _of_the_script,
        epochs=30,
        batch_size=128,
        script="image_classifier",
        flags="--cifar10 {cifar10} --bf16 --warmup_steps 0.05 --weight_decay 0.05 --logging_strategy steps "
        "--logging_steps 0.02",
        epochs_to_choose=5,
    ),
}
"""The tasks by name."""
