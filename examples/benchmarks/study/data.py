"""The data of the study's tasks: what to train on, what to choose by, and what to test on once."""

import argparse
import inspect
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

__all__ = ["Data", "cifar_images", "cifar_patches", "digit_images", "digit_patches", "text", "use_data"]

Examples = tuple[Tensor, Tensor]

PLACES = {"cifar10": "uoft-cs/cifar10", "texts": "", "minilm": ""}
"""Where the data lie that are no part of the project: `cifar10`, a dataset on the Hub or a folder of its parquet
files; `texts`, a folder with tinyshakespeare.txt, sst2_train.tsv and sst2_dev.tsv; `minilm`, a pretrained model."""


@dataclass(frozen=True)
class Data:
    """Inputs and labels.

    Attributes:
        train: to train on.
        held_out: to choose learning rates by.
        test: to test on; None where the data has no such part.
        kept_back: how many of the last training examples `with_test` takes as test data, where `test` is None.
    """

    train: Examples
    held_out: Examples
    test: Examples | None = None
    kept_back: int = 0

    def with_test(self) -> "Data":
        """The same with test data, taken from the training data where there is none."""
        if self.test is not None:
            return self
        cut = len(self.train[0]) - self.kept_back
        (inputs, labels) = self.train
        return replace(self, train=(inputs[:cut], labels[:cut]), test=(inputs[cut:], labels[cut:]))

    def on(self, device: str, dtype: torch.dtype) -> "Data":
        """The same on a device, with inputs of `dtype` unless they are tokens."""
        test = None if self.test is None else _on(device, dtype, self.test)
        train, held_out = _on(device, dtype, self.train), _on(device, dtype, self.held_out)
        return replace(self, train=train, held_out=held_out, test=test)


def _on(device: str, dtype: torch.dtype, examples: Examples) -> Examples:
    inputs, labels = examples
    return inputs.to(device, dtype if inputs.is_floating_point() else inputs.dtype), labels.to(device)


def use_data(**places: str) -> None:
    """Set the `PLACES` that are named."""
    PLACES.update(places)
    cifar.cache_clear()


@cache
def digit_images() -> Data:
    """scikit-learn's digits: 1,437 images of 8 x 8 to train on, 360 held out."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = torch.tensor(digits.images / 16, dtype=torch.float32).unsqueeze(1)
    labels = torch.tensor(digits.target)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    images, labels = (images[order] - 0.305) / 0.376, labels[order]
    return Data((images[:1437], labels[:1437]), (images[1437:], labels[1437:]), kept_back=360)


@cache
def digit_patches() -> Data:
    return _in_patches(digit_images(), 2)


@cache
def cifar(split: str) -> Examples:
    """Images of a split of CIFAR-10, normalized, and their labels: the first 30,000 to train on, or all to test on."""
    from datasets import load_dataset

    if Path(PLACES["cifar10"]).is_dir():
        files = {split: str(Path(PLACES["cifar10"]) / f"{split}-*.parquet")}
        dataset = load_dataset("parquet", data_files=files, split=split)
    else:
        dataset = load_dataset(PLACES["cifar10"], split=split)
    dataset = dataset.select(range(min(len(dataset), 30_000)))
    images = np.stack([np.asarray(image) for image in dataset["img"]])
    pixels = torch.tensor(images).permute(0, 3, 1, 2).float().div(255).sub(0.473).div(0.251)
    return pixels, torch.tensor(dataset["label"])


@cache
def cifar_images() -> Data:
    """CIFAR-10: 4,000 images to train on, 2,000 held out, the test split."""
    images, labels = cifar("train")
    return Data((images[:4000], labels[:4000]), (images[4000:6000], labels[4000:6000]), cifar("test"))


@cache
def cifar_patches() -> Data:
    return _in_patches(cifar_images(), 8)


def of_classes(examples: Examples, first: int, last: int, number: int | None = None) -> Examples:
    """The first images of the classes from `first` up to `last`, which are numbered from 0 then."""
    images, labels = examples
    chosen = ((labels >= first) & (labels <= last)).nonzero().flatten()[:number]
    return images[chosen], labels[chosen] - first


@cache
def cifar_new_classes() -> Data:
    """Of the last five classes: 2,000 images to train on, 2,000 held out, all of the test split."""
    images, labels = of_classes(cifar("train"), 5, 9, 4000)
    test = of_classes(cifar("test"), 5, 9)
    return Data((images[:2000], labels[:2000]), (images[2000:], labels[2000:]), test)


@cache
def cifar_new_classes_patches() -> Data:
    return _in_patches(cifar_new_classes(), 8)


def patches(images: Tensor, size: int) -> Tensor:
    """Images as sequences of flat patches of `size` x `size` pixels."""
    unfolded = images.unfold(2, size, size).unfold(3, size, size)
    return unfolded.permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2).contiguous()


def _in_patches(data: Data, size: int) -> Data:
    def cut(examples: Examples) -> Examples:
        return patches(examples[0], size), examples[1]

    test = None if data.test is None else cut(data.test)
    return replace(data, train=cut(data.train), held_out=cut(data.held_out), test=test)


TEXT_LENGTH = 32


@cache
def text() -> Data:
    """The source of Python's argparse, cut into pieces; each character is to be predicted from those before it."""
    source = inspect.getsource(argparse)
    vocabulary = {character: number for number, character in enumerate(sorted(set(source)))}
    numbers = torch.tensor([vocabulary[character] for character in source])
    pieces = numbers[: len(numbers) // TEXT_LENGTH * TEXT_LENGTH].view(-1, TEXT_LENGTH)
    following = numbers[1:].unfold(0, TEXT_LENGTH, TEXT_LENGTH)
    pieces = pieces[: len(following)]
    order = torch.randperm(len(pieces), generator=torch.Generator().manual_seed(0))
    pieces, following = pieces[order], following[order]
    cut = len(pieces) - 400
    return Data((pieces[:cut], following[:cut]), (pieces[cut:], following[cut:]), kept_back=400)


def text_vocabulary() -> int:
    """How many characters the text knows."""
    return int(max(part[1].max() for part in (text().train, text().held_out))) + 1
