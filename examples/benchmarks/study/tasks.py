"""The tasks of the study: data, model, number of epochs; each small enough for one core and some seconds."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor, nn

from . import data
from .data import Data
from .models import VGG, ResNet, Transformer

__all__ = ["TASKS", "Task"]


@dataclass(frozen=True)
class Task:
    """A task: what it is in one line, its data, and a new model, made after the seed was set.

    Attributes:
        by_trainer: trained by the Trainer script language_model.py, and not by the loop of training.py.
    """

    description: str
    data: Callable[[], Data]
    model: Callable[[], nn.Module]
    epochs: int
    batch_size: int = 64
    by_trainer: bool = False


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
        by_trainer=True,
    ),
}
"""The tasks by name."""
