"""The images: where they come from, their columns and splits, and their random views."""

import math
import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from errors.fail import fail, first_line
from errors.nearest import did_you_mean
from huggingface_hub.utils import logging as hub_logging
from PIL import Image, ImageOps

AUGMENTATIONS = ("auto", "none", "shift", "shift_flip", "resized_crop_flip")


@dataclass
class DataArguments:
    """Which images, and what is done to them."""

    dataset_name: str | None = field(
        default=None, metadata={"help": "Hub name, or local folder that `load_dataset` reads. Default: the digits."}
    )
    dataset_config_name: str | None = field(default=None, metadata={"help": "Configuration of the dataset."})
    train_dir: str | None = field(default=None, metadata={"help": "Training images, one folder per class."})
    validation_dir: str | None = field(default=None, metadata={"help": "Evaluation images, one folder per class."})
    train_split_name: str = field(default="train", metadata={"help": "Split to train on."})
    eval_split_name: str | None = field(
        default=None,
        metadata={"help": "Split to evaluate on. Default: validation, or test, or a part of the training split."},
    )
    train_val_split: float = field(
        default=0.15, metadata={"help": "Share of the training split held out where there is no split to evaluate on."}
    )
    image_column_name: str | None = field(default=None, metadata={"help": "Default: the only column of images."})
    label_column_name: str | None = field(default=None, metadata={"help": "Default: the only column of labels."})
    max_train_samples: int | None = field(default=None, metadata={"help": "Train on this many images at most."})
    max_eval_samples: int | None = field(default=None, metadata={"help": "Evaluate on this many images at most."})
    image_size: int | None = field(
        default=None,
        metadata={
            "help": "Side of the square that a from-scratch model sees. Default: the images' own up to 64, else 224."
        },
    )
    augmentation: str = field(
        default="auto",
        metadata={
            "help": f"One of {', '.join(AUGMENTATIONS)}. A shift is by up to an eighth of the side; shift alone "
            "leaves half of the images as they are. auto: up to 64 pixels shift for grey images, as they may be "
            "digits or letters, and shift_flip for others; then resized_crop_flip."
        },
    )
    on_bad_image: str = field(
        default="error",
        metadata={
            "help": "error, or skip: leave out the images that cannot be decoded, and tell their number in the log "
            "and on the model card. skip decodes all images once before training."
        },
    )
    image_cache_mb: int = field(
        default=2048,
        metadata={
            "help": "Decode the images of a split once, into at most this many megabytes in each process (CIFAR-10: "
            "150), where all end up at one size. A split that needs more is decoded anew in each epoch; 0 always does."
        },
    )
    streaming: bool = field(
        default=False,
        metadata={
            "help": "Read the images as they are needed, and download none beforehand; needs --max_steps. A resumed "
            "run reads the stream again up to where it was, and then goes on exactly."
        },
    )
    shuffle_buffer: int = field(
        default=5000,
        metadata={
            "help": "From how many still encoded images --streaming draws the next one at random (ImageNet: 0.1 MB "
            "each); the order of the files is shuffled too."
        },
    )

    @property
    def is_digits(self) -> bool:
        return self.dataset_name is None and self.train_dir is None and self.validation_dir is None

    def check(self) -> None:
        if self.dataset_name and (self.train_dir or self.validation_dir):
            fail("--dataset_name and --train_dir/--validation_dir exclude each other: pass one of them")
        for name in ("train_dir", "validation_dir"):
            folder = getattr(self, name)
            if folder is not None and not Path(folder).is_dir():
                fail(f"--{name} {folder!r}: no such folder; it must hold one folder of images for each class")
        for name in ("max_train_samples", "max_eval_samples", "image_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                fail(f"--{name} must be at least 1, not {value}")
        if not 0 < self.train_val_split < 1:
            fail(f"--train_val_split must be between 0 and 1, not {self.train_val_split}")
        if self.image_cache_mb < 0:
            fail(f"--image_cache_mb must be at least 0, not {self.image_cache_mb}")
        if self.shuffle_buffer < 1:
            fail(f"--shuffle_buffer must be at least 1, not {self.shuffle_buffer}")
        if self.streaming and self.is_digits:
            fail("--streaming needs --dataset_name or --train_dir")
        if self.on_bad_image not in ("error", "skip"):
            guess = did_you_mean(self.on_bad_image, ("error", "skip"))
            fail(f"--on_bad_image must be error or skip, not {self.on_bad_image!r}{guess and '.'}{guess}")
        if self.streaming and self.on_bad_image == "skip":
            fail("--on_bad_image skip decodes all images beforehand, so it cannot go with --streaming")
        if self.augmentation not in AUGMENTATIONS:
            guess = did_you_mean(self.augmentation, AUGMENTATIONS)
            names = ", ".join(AUGMENTATIONS)
            fail(f"--augmentation must be one of {names}, not {self.augmentation!r}{guess and '.'}{guess}")


class BadData(Exception):
    """An image or a label that the model cannot be trained on."""

    @property
    def line(self) -> str:
        # A data worker sends its whole traceback as the message, which ends with the message proper.
        return str(self).strip().splitlines()[-1].rpartition(f"{type(self).__name__}: ")[2]


def load_digits() -> datasets.DatasetDict:
    """scikit-learn's 1,797 digits, always split in the same way: 1,437 to train on, 360 to evaluate on."""
    from sklearn.datasets import load_digits as sklearn_digits

    digits = sklearn_digits()
    pixels = np.rint(digits.images * (255 / 16)).astype(np.uint8)
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(num_classes=10)})
    rows = {"image": [Image.fromarray(array) for array in pixels], "label": digits.target}
    dataset = datasets.Dataset.from_dict(rows, features=features)
    halves = dataset.train_test_split(test_size=360, stratify_by_column="label", seed=42)
    return datasets.DatasetDict(train=halves["train"], validation=halves["test"])


def load_splits(args: DataArguments, cache_dir: str | None) -> datasets.DatasetDict:
    """All splits of the dataset that --dataset_name names, or of the digits."""
    name = args.dataset_name
    if name is None:
        return load_digits()
    verbosity = hub_logging.get_verbosity()
    hub_logging.set_verbosity_error()  # a Hub out of reach would be told six times before it is an error
    try:
        local = Path(name).expanduser()
        if name.startswith((".", "/", "~")) and not local.is_dir():
            fail(f"--dataset_name {name!r}: no such folder")
        path = str(local) if local.is_dir() else name
        return datasets.load_dataset(path, args.dataset_config_name, cache_dir=cache_dir, streaming=args.streaming)
    except Exception as error:  # `datasets` raises a dozen kinds for a dataset that cannot be had
        fail(f"cannot load --dataset_name {name!r}: {first_line(error)}")
    finally:
        hub_logging.set_verbosity(verbosity)


def choose_splits(
    splits: datasets.DatasetDict, args: DataArguments, label: str, do_train: bool, do_eval: bool
) -> tuple[datasets.Dataset | None, datasets.Dataset | None]:
    """The datasets to train and to evaluate on; None where not asked for."""
    available = ", ".join(splits)

    def split(name: str, option: str) -> datasets.Dataset:
        if name not in splits:
            guess = did_you_mean(name, splits)
            fail(f"{option} {name!r}: the dataset has no such split.{guess} Its splits: {available}")
        found, classes = splits[name].unique(label), splits[name].features[label].num_classes
        if not found or None in found or min(found) < 0:
            fail(f"{option} {name!r} has no images, or images without a label; the dataset's splits: {available}")
        if max(found) >= classes:
            value = max(found)
            row = splits[name][label].index(value)
            fail(f"{option} {name!r}: row {row} has the {label} {value}; the {classes} classes end at {classes - 1}")
        return splits[name]

    train = evaluation = None
    eval_name = args.eval_split_name or next((name for name in ("validation", "test") if name in splits), None)
    if do_train or (do_eval and eval_name is None):
        train = split(args.train_split_name, "--train_split_name")
    if do_eval and eval_name is not None:
        evaluation = split(eval_name, "--eval_split_name")
    elif do_eval and train is not None:
        try:
            parts = train.train_test_split(args.train_val_split, seed=42, stratify_by_column=label)
        except ValueError:  # too few images of some class
            parts = train.train_test_split(args.train_val_split, seed=42)
        train, evaluation = parts["train"], parts["test"]
    if train is not None and args.max_train_samples is not None:
        train = train.shuffle(seed=42).select(range(min(args.max_train_samples, len(train))))
    if evaluation is not None and args.max_eval_samples is not None:
        evaluation = evaluation.shuffle(seed=42).select(range(min(args.max_eval_samples, len(evaluation))))
    return (train if do_train else None), evaluation


class NotEightBit(ValueError):
    """An image with more than 8 bits per value, of which Pillow makes something else without a word."""


def converted(image: Image.Image, mode: str | None) -> Image.Image:
    """`image` in `mode`; as it is with None."""
    if image.mode.startswith(("I", "F")):
        raise NotEightBit(
            f"has the mode {image.mode}, of 16 or 32 bits per value: convert the images to 8 bits (mode L or RGB)"
        )
    return image if mode is None else image.convert(mode)


def decode(cell: dict[str, Any], mode: str | None = None) -> Image.Image:
    """The image in `cell`, which holds it encoded."""
    return converted(datasets.Image().decode_example(cell), mode)


def read_images(data: datasets.Dataset, indices: list[int], columns: tuple[str, str], mode: str) -> tuple[list, list]:
    """The images and labels of the rows `indices`.

    Raises:
        BadData: one of the images cannot be decoded; names it.
    """
    image, label = columns
    try:
        rows = data[indices]
        return [converted(cell, mode) for cell in rows[image]], rows[label]
    except Exception:  # as many kinds as there are image formats
        encoded = data.cast_column(image, datasets.Image(decode=False))
        for index in indices:
            cell = encoded[index][image]
            try:
                decode(cell, mode)
            except Exception as error:
                raise BadData(cannot_decode(f"row {index}", cell, error)) from error
        raise


def cannot_decode(where: str, cell: Any, error: Exception) -> str:
    if cell is None:
        return f"there is no image in {where}"
    file = f" ({cell['path']})" if cell.get("path") else ""
    if isinstance(error, NotEightBit):
        return f"the image in {where}{file} {error}"
    # Of an image that is no file the message names an object in memory, which tells nobody anything.
    reason = type(error).__name__ if "BytesIO" in str(error) else first_line(error)
    return f"the image in {where}{file} cannot be decoded: {reason}"


def first_images(
    data: datasets.Dataset | datasets.IterableDataset, column: str, skip_bad: bool = False
) -> list[Image.Image]:
    """The first few images of `data`, as they are; with `skip_bad` of those that can be decoded."""
    images: list[Image.Image] = []
    for number, row in enumerate(data.cast_column(column, datasets.Image(decode=False))):
        try:
            images.append(decode(row[column]))
        except Exception as error:  # as many kinds as there are image formats
            if not skip_bad or isinstance(error, NotEightBit):
                raise BadData(cannot_decode(f"row {number}", row[column], error)) from error
        if len(images) == 16:
            break
    if not images:
        raise BadData(f"the dataset has no images{' that can be decoded' if skip_bad else ''}")
    return images


def fitted(image: Image.Image, height: int, width: int) -> Image.Image:
    """The largest central part of `image` with the proportions of `height` and `width`, resized to these."""
    if image.size == (width, height):
        return image
    return ImageOps.fit(image, (width, height), Image.Resampling.BILINEAR)


def draw_shift(margin: int, kind: str, rng: random.Random) -> tuple[int, int, bool]:
    """Left and top of a random view in the image with a margin around it, and whether the view is mirrored."""
    left, top = rng.randint(0, 2 * margin), rng.randint(0, 2 * margin)
    if kind == "shift" and rng.random() >= 0.5:
        left = top = margin
    return left, top, kind.endswith("flip") and rng.random() < 0.5


def margin_for(height: int, width: int) -> int:
    return max(1, min(height, width) // 8)


def augment(image: Image.Image, height: int, width: int, kind: str, rng: random.Random) -> Image.Image:
    """A random view of `image`, `height` by `width` pixels."""
    if kind == "resized_crop_flip":
        # As wide a choice of windows as is usual for ImageNet: 8 to 100% of the area, sides from 3:4 to 4:3.
        area = image.width * image.height * rng.uniform(0.08, 1.0)
        ratio = math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))
        w, h = min(image.width, math.sqrt(area * ratio)), min(image.height, math.sqrt(area / ratio))
        left, top = rng.uniform(0, image.width - w), rng.uniform(0, image.height - h)
        image = image.resize((width, height), Image.Resampling.BILINEAR, box=(left, top, left + w, top + h))
        mirrored = rng.random() < 0.5
    else:
        margin = margin_for(height, width)
        x, y, mirrored = draw_shift(margin, kind, rng)
        image = ImageOps.expand(fitted(image, height, width), margin).crop((x, y, x + width, y + height))
    return ImageOps.mirror(image) if mirrored else image


class Views:
    """Turns images into the input of the model, as random views or as they are.

    Args:
        processor: image processor of the model.
        mode: `L` or `RGB`, what images are converted to.
        kind: one of AUGMENTATIONS but `auto`; with `none` the processor alone prepares the images.
    """

    def __init__(self, processor: Any, mode: str, kind: str) -> None:
        self.processor, self.mode, self.kind = processor, mode, kind
        size = processor.crop_size if getattr(processor, "do_center_crop", False) else processor.size
        edge = size.get("shortest_edge")
        self.height, self.width = size.get("height", edge), size.get("width", edge)
        # Whether an image of just this size would be resized and cropped to itself.
        self.keeps_size = size is processor.size or {self.height, self.width} == {processor.size.get("shortest_edge")}

    def __call__(self, images: list[Image.Image], seeds: list[str], **options: Any) -> Any:
        """The pixels of `images`. Each random view follows from its seed; `options` are given to the processor."""
        ready = self.keeps_size and all(image.size == (self.width, self.height) for image in images)
        if self.kind != "none":
            images = [
                augment(image, self.height, self.width, self.kind, random.Random(seed))
                for image, seed in zip(images, seeds, strict=True)
            ]
            ready = True
        if ready:
            options |= {"do_resize": False, "do_center_crop": False}
        return self.processed(images, "pt", **options)

    def processed(self, images: list[Image.Image], kind: str, **options: Any) -> Any:
        """What the processor makes of `images`, as tensors of that kind."""
        given: list[Any] = images
        if self.mode == "L":
            given = [np.asarray(image)[None] for image in images]  # transformers 5.2 needs to be shown the one channel
        return self.processor(given, return_tensors=kind, **options)["pixel_values"]


class ImageDataset(torch.utils.data.Dataset):
    """Images as input of the model. Every random view follows from (seed, epoch, index) alone.

    So a resumed run sees the same images, and so does a run with another number of data workers or processes.

    Args:
        data: dataset with a column of images and one of labels.
        columns: names of the two.
        processor: image processor of the model.
        mode: `L` or `RGB`, what images are converted to.
        kind: one of AUGMENTATIONS but `auto`; with `none` the processor alone prepares the images.
        seed: of the random views.
    """

    def __init__(self, data: Any, columns: tuple[str, str], processor: Any, mode: str, kind: str, seed: int) -> None:
        self.data, self.columns, self.seed = data, columns, seed
        self.views = Views(processor, mode, kind)
        # Shared memory: data workers that outlive an epoch must see the new number too.
        self.epoch = torch.zeros((), dtype=torch.long).share_memory_()

    def __len__(self) -> int:
        return len(self.data)

    def seeds(self, indices: list[int]) -> list[str]:
        epoch = int(self.epoch)
        return [f"{self.seed} {epoch} {index}" for index in indices]

    def __getitems__(self, indices: list[int]) -> list[dict[str, Any]]:
        images, labels = read_images(self.data, indices, self.columns, self.views.mode)
        pixels = self.views(images, self.seeds(indices))
        return [{"pixel_values": p, "labels": y} for p, y in zip(pixels, labels, strict=True)]

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.__getitems__([index])[0]
