"""The tasks of the study: data, model, number of epochs; each small enough for one core and some seconds."""

import argparse
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from .models import ResNet, Transformer

__all__ = ["TASKS", "Task", "use_cifar10"]

_cifar10 = "uoft-cs/cifar10"


@dataclass(frozen=True)
class Data:
    """Inputs and labels to train on, and to tell the accuracy on."""

    train: tuple[Tensor, Tensor]
    held_out: tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Task:
    """A task: what it is in one line, its data, and a new model, made after the seed was set."""

    description: str
    data: Callable[[], Data]
    model: Callable[[], nn.Module]
    epochs: int
    batch_size: int = 64


def use_cifar10(name: str) -> None:
    """Where CIFAR-10 is to be loaded from: a dataset on the Hub, or a folder of its parquet files."""
    global _cifar10
    _cifar10 = name
    _cifar.cache_clear()


@cache
def _digits() -> Data:
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = torch.tensor(digits.images / 16, dtype=torch.float32)
    labels = torch.tensor(digits.target)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    patches = _patches((images[order] - 0.305) / 0.376, 2)
    labels = labels[order]
    return Data((patches[:1437], labels[:1437]), (patches[1437:], labels[1437:]))


@cache
def _cifar() -> tuple[Tensor, Tensor]:
    """The training images of CIFAR-10, normalized, and their labels."""
    from datasets import load_dataset

    if Path(_cifar10).is_dir():
        files = {"train": str(Path(_cifar10) / "train-*.parquet")}
        dataset = load_dataset("parquet", data_files=files, split="train")
    else:
        dataset = load_dataset(_cifar10, split="train")
    dataset = dataset.select(range(30_000))
    images = np.stack([np.asarray(image) for image in dataset["img"]])
    pixels = torch.tensor(images).permute(0, 3, 1, 2).float().div(255).sub(0.473).div(0.251)
    return pixels, torch.tensor(dataset["label"])


def _patches(images: Tensor, size: int) -> Tensor:
    images = images.unsqueeze(1) if images.dim() == 3 else images
    patches = images.unfold(2, size, size).unfold(3, size, size)
    return patches.permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2).contiguous()


@cache
def _cifar_images() -> Data:
    images, labels = _cifar()
    return Data((images[:4000], labels[:4000]), (images[4000:6000], labels[4000:6000]))


@cache
def _cifar_patches() -> Data:
    data = _cifar_images()
    return Data(*((_patches(images, 8), labels) for images, labels in (data.train, data.held_out)))


@cache
def _new_classes() -> Data:
    """2,000 images of the five classes that the pretrained network has not seen, and 2,000 others of them."""
    images, labels = _cifar()
    chosen = (labels >= 5).nonzero().flatten()[:4000]
    images, labels = images[chosen], labels[chosen] - 5
    return Data((images[:2000], labels[:2000]), (images[2000:], labels[2000:]))


@cache
def _pretrained() -> dict[str, Tensor]:
    """A residual network trained on 10,000 images of the first five classes."""
    images, labels = _cifar()
    chosen = (labels < 5).nonzero().flatten()[:10_000]
    torch.manual_seed(0)
    model = ResNet(5)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    steps = 8 * (len(chosen) // 64)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
    for step in range(steps):
        if step % (len(chosen) // 64) == 0:
            order = chosen[torch.randperm(len(chosen))]
        batch = order[step % (len(chosen) // 64) * 64 :][:64]
        nn.functional.cross_entropy(model(images[batch]), labels[batch]).backward()
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
    return model.state_dict()


def _with_new_head() -> nn.Module:
    model = ResNet(5)
    weights = {name: weight for name, weight in _pretrained().items() if not name.startswith("head.")}
    model.load_state_dict(weights, strict=False)
    return model


_TEXT_LENGTH = 32


@cache
def _text() -> Data:
    """The source of Python's argparse, cut into pieces; each character is to be told from those before it."""
    text = inspect.getsource(argparse)
    vocabulary = {character: number for number, character in enumerate(sorted(set(text)))}
    numbers = torch.tensor([vocabulary[character] for character in text])
    pieces = numbers[: len(numbers) // _TEXT_LENGTH * _TEXT_LENGTH].view(-1, _TEXT_LENGTH)
    following = numbers[1:].unfold(0, _TEXT_LENGTH, _TEXT_LENGTH)
    pieces = pieces[: len(following)]
    order = torch.randperm(len(pieces), generator=torch.Generator().manual_seed(0))
    pieces, following = pieces[order], following[order]
    cut = len(pieces) - 400
    return Data((pieces[:cut], following[:cut]), (pieces[cut:], following[cut:]))


def _text_model() -> nn.Module:
    classes = int(max(tensor.max() for tensor in _text().train)) + 1
    return Transformer(classes, _TEXT_LENGTH, classes, is_text=True)


TASKS = {
    "digits_vit": Task(
        "digits, ViT, initial weights of standard deviation 0.02", _digits, lambda: Transformer(4, 16, 10), 15
    ),
    "digits_vit_torch_init": Task(
        "digits, ViT, torch's default initialization", _digits, lambda: Transformer(4, 16, 10, std=None), 15
    ),
    "cifar_vit": Task("CIFAR-10, ViT, 4,000 images", _cifar_patches, lambda: Transformer(192, 16, 10), 5),
    "cifar_resnet": Task("CIFAR-10, ResNet, 4,000 images", _cifar_images, lambda: ResNet(10), 4),
    "finetune_resnet": Task(
        "ResNet pretrained on five classes of CIFAR-10, fine-tuned on 2,000 images of the others",
        _new_classes,
        _with_new_head,
        8,
    ),
    "text": Task("next character of a Python module, causal transformer", _text, _text_model, 6, batch_size=32),
}
"""The tasks by name."""
